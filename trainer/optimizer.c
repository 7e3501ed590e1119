/* AdamW with clipping, schedule and the guard against numbers that are not finite. Owns the
 * moments; the master weights and the gradient belong to the learner. The invariant: weights and
 * moments only ever change together, by a finite update. */
#include "trainer/optimizer.h"

#include "core/log.h"
#include "kernels/device.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

enum { OPTIMIZER_NORM_BLOCK = 65536 }; /* kernel_sum_squares_args.block_sums */

/* Added to the norm before dividing, as torch.nn.utils.clip_grad_norm_ does. */
#define OPTIMIZER_CLIP_EPSILON 1e-6

struct optimizer {
    struct optimizer_options options;
    const struct model_layout *layout;
    const struct kernel_table *kernels;
    struct optimizer_state state;
    double *block_sums; /* scratch of the norm */
};

void optimizer_options_from_config(const struct rl_config *config, int64_t total_updates,
                                   struct optimizer_options *out)
{
    *out = (struct optimizer_options){
        .schedule =
            {
                .type = (enum config_lr_schedule)config->optimizer.lr_scheduler_type,
                .peak = config->optimizer.learning_rate,
                .min_ratio = config->optimizer.min_lr_ratio,
                .warmup_updates = config->optimizer.warmup_steps,
                .total_updates = total_updates,
            },
        .beta1 = config->optimizer.adam_beta1,
        .beta2 = config->optimizer.adam_beta2,
        .epsilon = config->optimizer.adam_epsilon,
        .weight_decay = config->optimizer.weight_decay,
        .max_grad_norm = config->optimizer.max_grad_norm,
    };
}

enum model_keep optimizer_keep(const struct rl_config *config)
{
    static const enum model_keep keeps[] = {[CONFIG_RECOMPUTE_SELECTIVE] = MODEL_KEEP_COSTLY,
                                            [CONFIG_RECOMPUTE_FULL] = MODEL_KEEP_INPUTS,
                                            [CONFIG_RECOMPUTE_OFF] = MODEL_KEEP_ALL};
    return keeps[config->optimizer.recompute];
}

static rl_status optimizer_check(const struct optimizer_options *options)
{
    if (!(options->epsilon > 0) || !((float)options->epsilon > 0)) {
        return rl_fail(RL_INVALID,
                       "optimizer.adam_epsilon is %g: must be above 0 (a weight without gradient "
                       "would become 0/0)",
                       options->epsilon);
    }
    bool betas = options->beta1 >= 0 && options->beta1 < 1 && options->beta2 >= 0 &&
                 options->beta2 < 1 && (float)options->beta1 < 1 && (float)options->beta2 < 1;
    if (!betas) {
        return rl_fail(RL_INVALID, "optimizer.adam_beta1, adam_beta2 are %g, %g: expected [0, 1)",
                       options->beta1, options->beta2);
    }
    if (!isfinite(options->schedule.peak) || options->schedule.peak < 0 ||
        !(options->weight_decay >= 0) || !(options->max_grad_norm >= 0)) {
        return rl_fail(RL_INVALID,
                       "optimizer: learning_rate %g, weight_decay %g, max_grad_norm %g: expected "
                       "numbers not below 0",
                       options->schedule.peak, options->weight_decay, options->max_grad_norm);
    }
    return RL_OK;
}

rl_status optimizer_create(const struct optimizer_options *options,
                           const struct model_layout *layout, const struct kernel_table *kernels,
                           struct optimizer **out)
{
    RL_TRY(optimizer_check(options));
    struct optimizer *optimizer = calloc(1, sizeof(*optimizer));
    if (optimizer == NULL) {
        return rl_fail(RL_NO_MEMORY, "optimizer: no memory for %zu bytes", sizeof(*optimizer));
    }
    optimizer->options = *options;
    optimizer->layout = layout;
    optimizer->kernels = kernels;
    optimizer->state.count = layout->master_count;
    optimizer->state.rate_scale = 1;
    size_t bytes = (size_t)layout->master_count * sizeof(float);
    size_t blocks = (size_t)layout->master_count / OPTIMIZER_NORM_BLOCK + 1;
    rl_status status;
    void *buffer = NULL;
    RL_TRY_GOTO(device_alloc(bytes, "first moments", &buffer), status, fail);
    optimizer->state.m = buffer;
    RL_TRY_GOTO(device_alloc(bytes, "second moments", &buffer), status, fail);
    optimizer->state.v = buffer;
    RL_TRY_GOTO(device_alloc(blocks * sizeof(double), "norm scratch", &buffer), status, fail);
    optimizer->block_sums = buffer;
    *out = optimizer;
    return RL_OK;
fail:
    optimizer_destroy(optimizer);
    return status;
}

void optimizer_destroy(struct optimizer *optimizer)
{
    if (optimizer == NULL) {
        return;
    }
    device_free(optimizer->block_sums);
    device_free(optimizer->state.v);
    device_free(optimizer->state.m);
    free(optimizer);
}

/* Padding between tensors is 0, so the norm may run over the whole slab at once. */
static double optimizer_norm(struct optimizer *optimizer, const float *slab, double factor,
                             struct rl_pool *pool)
{
    double squares = 0;
    struct kernel_sum_squares_args args = {
        .x = slab,
        .count = optimizer->state.count,
        .sum = &squares,
        .block_sums = optimizer->block_sums,
    };
    optimizer->kernels->sum_squares(&args, pool);
    return sqrt(squares) * factor;
}

/* A tensor's update and its part of the image, in one pass over its elements. */
static void optimizer_update_tensor(struct optimizer *optimizer, const struct model_tensor *tensor,
                                    const struct optimizer_weights *weights,
                                    const struct kernel_adamw_args *common, struct rl_pool *pool)
{
    const struct model_layout *layout = optimizer->layout;
    struct kernel_adamw_pack_args args = {.adamw = *common};
    args.adamw.param += tensor->offset;
    args.adamw.grad += tensor->offset;
    args.adamw.m += tensor->offset;
    args.adamw.v += tensor->offset;
    args.adamw.count = tensor->rows * tensor->cols;
    if (tensor->matrix) {
        args.adamw.weight_decay = (float)optimizer->options.weight_decay;
        args.pack =
            model_params_pack_args(layout, tensor, weights->master, weights->image, weights->diff);
        optimizer->kernels->adamw_pack(&args, pool);
    } else {
        optimizer->kernels->adamw(&args.adamw, pool);
        struct kernel_vector_pack_args pack = model_params_vector_args(
            layout, tensor, weights->master, weights->image, weights->diff);
        optimizer->kernels->vector_pack(&pack, pool);
    }
}

/* The second moment squares the clipped gradient: beyond float it would be inf and stay so. */
static enum optimizer_outcome optimizer_judge(double norm, double scale, double clip,
                                              double inv_denominator)
{
    double clipped = norm * clip;
    if (!isfinite(norm) || !isfinite(inv_denominator) || inv_denominator < 0 ||
        !isfinite((float)scale) || !isfinite((float)(clipped * clipped))) {
        return OPTIMIZER_SKIPPED_NONFINITE;
    }
    return inv_denominator > 0 ? OPTIMIZER_UPDATED : OPTIMIZER_SKIPPED_EMPTY;
}

void optimizer_measure(struct optimizer *optimizer, const float *grad, double inv_denominator,
                       struct rl_pool *pool, struct optimizer_report *report)
{
    const struct optimizer_options *options = &optimizer->options;
    double norm = optimizer_norm(optimizer, grad, inv_denominator, pool);
    double limit = options->max_grad_norm;
    double clip = limit > 0 ? fmin(1.0, limit / (norm + OPTIMIZER_CLIP_EPSILON)) : 1.0;
    double scale = inv_denominator * clip;
    double rate = schedule_rate(&options->schedule, optimizer->state.step);
    *report =
        (struct optimizer_report){.outcome = optimizer_judge(norm, scale, clip, inv_denominator),
                                  .grad_norm = norm,
                                  .learning_rate = rate * optimizer->state.rate_scale,
                                  .clip_scale = clip,
                                  .grad_scale = scale};
}

bool optimizer_apply(struct optimizer *optimizer, const struct optimizer_weights *weights,
                     const struct optimizer_report *report, struct rl_pool *pool)
{
    const struct optimizer_options *options = &optimizer->options;
    struct optimizer_state *state = &optimizer->state;
    int32_t nonfinite = 0;
    assert(report->outcome == OPTIMIZER_UPDATED);
    state->skipped_run = 0;
    state->step++;
    struct kernel_adamw_args common = {
        .param = weights->master,
        .m = state->m,
        .v = state->v,
        .grad = weights->grad,
        .step = state->step,
        .grad_scale = (float)report->grad_scale,
        .learning_rate = (float)report->learning_rate,
        .beta1 = (float)options->beta1,
        .beta2 = (float)options->beta2,
        .epsilon = (float)options->epsilon,
        .nonfinite = &nonfinite,
    };
    for (int32_t i = 0; i < optimizer->layout->tensor_count; i++) {
        optimizer_update_tensor(optimizer, &optimizer->layout->tensors[i], weights, &common, pool);
    }
    return nonfinite == 0;
}

void optimizer_skip(struct optimizer *optimizer, const char *why)
{
    struct optimizer_state *state = &optimizer->state;
    state->skipped++;
    state->skipped_run++;
    rl_log(RL_LOG_WARN, "update after %" PRId64 " skipped: %s", state->step, why);
}

void optimizer_step(struct optimizer *optimizer, const struct optimizer_weights *weights,
                    double inv_denominator, struct rl_pool *pool, struct optimizer_report *report)
{
    optimizer_measure(optimizer, weights->grad, inv_denominator, pool, report);
    if (report->outcome == OPTIMIZER_UPDATED) {
        (void)optimizer_apply(optimizer, weights, report, pool);
    } else if (report->outcome == OPTIMIZER_SKIPPED_NONFINITE) {
        optimizer_skip(optimizer, "the gradient is not finite");
    }
}

bool optimizer_weights_finite(struct optimizer *optimizer, const float *master,
                              struct rl_pool *pool)
{
    return isfinite(optimizer_norm(optimizer, master, 1, pool));
}

struct optimizer_state *optimizer_state(struct optimizer *optimizer)
{
    return &optimizer->state;
}
