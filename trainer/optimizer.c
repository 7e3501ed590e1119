/* AdamW with clipping, schedule and the guard against numbers that are not finite. Owns the
 * moments; the master weights and the gradient belong to the learner. The invariant: weights and
 * moments only ever change together, by a finite update. */
#include "trainer/optimizer.h"

#include "core/log.h"
#include "model/slab.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW_END = -1 }; /* optimizer_window.slab: nothing more is fetched */

/* Added to the norm before dividing, as torch.nn.utils.clip_grad_norm_ does. */
#define OPTIMIZER_CLIP_EPSILON 1e-6

struct optimizer {
    struct optimizer_options options;
    const struct model_layout *layout;
    const struct kernel_table *kernels;
    struct optimizer_state state;
    struct optimizer_share share;
    struct model_slab m, v;     /* mirrored in `state` */
    struct optimizer_share sum; /* of a device's gradient, if every rank takes all of it */
    double *block_sums;         /* scratch of the norm */
};

void optimizer_options_from_config(const struct rl_config *config, int64_t total_updates,
                                   struct collective *learners, struct optimizer_options *out)
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
        .share_among = config->optimizer.zero_stage > 0 ? learners : NULL,
    };
}

int64_t optimizer_largest_share(const struct rl_config *config, int64_t count, int learners)
{
    return config->optimizer.zero_stage > 0 ? optimizer_share_largest(count, learners) : count;
}

enum model_keep optimizer_keep(const struct rl_config *config)
{
    static const enum model_keep keeps[] = {[CONFIG_RECOMPUTE_SELECTIVE] = MODEL_KEEP_COSTLY,
                                            [CONFIG_RECOMPUTE_FULL] = MODEL_KEEP_INPUTS,
                                            [CONFIG_RECOMPUTE_OFF] = MODEL_KEEP_ALL};
    return keeps[config->optimizer.recompute];
}

void optimizer_own_share(const struct rl_config *config, const struct collective *learners,
                         int64_t count, int64_t *first, int64_t *own)
{
    int64_t unit = optimizer_largest_share(config, count, learners->size);
    int64_t begin = config->optimizer.zero_stage > 0 ? unit * learners->rank : 0;
    *first = begin < count ? begin : count;
    *own = count - *first < unit ? count - *first : unit;
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

static rl_status share_out(struct optimizer *optimizer)
{
    struct optimizer_state *state = &optimizer->state;
    int64_t count = optimizer->layout->master_count;
    RL_TRY(optimizer_share_init(&optimizer->share, optimizer->options.share_among, count));
    state->count = count;
    if (optimizer->share.collective != NULL) {
        int rank = optimizer->share.collective->rank;
        state->first = optimizer->share.bounds[rank];
        state->count = optimizer->share.bounds[rank + 1] - state->first;
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
    optimizer->state.rate_scale = 1;
    size_t blocks = (size_t)layout->master_count / OPTIMIZER_NORM_BLOCK + 1;
    rl_status status;
    void *buffer = NULL;
    RL_TRY_GOTO(share_out(optimizer), status, fail);
    int64_t count = optimizer->state.count;
    RL_TRY_GOTO(model_slab_create(layout, count, "first moments", &optimizer->m), status, fail);
    RL_TRY_GOTO(model_slab_create(layout, count, "second moments", &optimizer->v), status, fail);
    optimizer->state.m = optimizer->m.host;
    optimizer->state.v = optimizer->v.host;
    RL_TRY_GOTO(
        device_buffer_alloc(layout->device, blocks * sizeof(double), "norm scratch", &buffer),
        status, fail);
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
    device_buffer_free(optimizer->layout->device, optimizer->block_sums);
    optimizer_share_fini(&optimizer->sum);
    model_slab_fini(optimizer->layout, &optimizer->v);
    model_slab_fini(optimizer->layout, &optimizer->m);
    optimizer_share_fini(&optimizer->share);
    free(optimizer);
}

/* Padding between tensors is 0, so the norm may run over the whole slab at once. */
static struct kernel_sum_squares_args squares_args(const struct optimizer *optimizer,
                                                   const float *slab, double *squares)
{
    return (struct kernel_sum_squares_args){.x = slab,
                                            .count = optimizer->layout->master_count,
                                            .sum = squares,
                                            .block_sums = optimizer->block_sums};
}

static rl_status gradient_norm(struct optimizer *optimizer, const float *grad, struct rl_pool *pool,
                               double *norm)
{
    double squares = 0;
    struct kernel_sum_squares_args args = squares_args(optimizer, grad, &squares);
    if (optimizer->share.collective != NULL) {
        RL_TRY(optimizer_share_squares(&optimizer->share, optimizer->kernels, &args, pool));
    } else {
        optimizer->kernels->sum_squares(&args, pool);
    }
    *norm = sqrt(squares);
    return RL_OK;
}

/* In two halves, so that the bits are those of moments that are shared out. */
static rl_status reduce_whole(struct optimizer *optimizer, struct collective *collective,
                              float *grad, struct rl_pool *pool)
{
    struct optimizer_share *sum = &optimizer->sum;
    if (sum->collective != collective) {
        optimizer_share_fini(sum);
        RL_TRY(optimizer_share_init(sum, collective, optimizer->layout->master_count));
    }
    if (sum->collective == NULL) {
        return RL_OK; /* it is alone */
    }
    RL_TRY(collective_device_sum_share(collective, pool, grad, sum->bounds));
    return collective_device_gather(collective, pool, sum->bytes, grad);
}

rl_status optimizer_reduce(struct optimizer *optimizer, struct collective *collective, float *grad,
                           struct rl_pool *pool)
{
    if (optimizer->share.collective != NULL) {
        return collective_device_sum_share(collective, pool, grad, optimizer->share.bounds);
    }
    return optimizer->layout->device != NULL
               ? reduce_whole(optimizer, collective, grad, pool)
               : collective_sum_float(collective, grad, optimizer->layout->master_count);
}

bool optimizer_is_shared(const struct optimizer *optimizer)
{
    return optimizer->share.collective != NULL;
}

static rl_status window_check(const struct optimizer *optimizer,
                              const struct optimizer_window *window)
{
    int64_t total = optimizer->layout->master_count;
    if (window->slab < 0 || window->slab > 1 || window->first < 0 || window->count < 0 ||
        window->first > total - window->count) {
        return rl_fail(RL_INVALID, "optimizer: moments %" PRId64 " + %" PRId64 " of slab %" PRId64,
                       window->first, window->count, window->slab);
    }
    return RL_OK;
}

static const float *slab_of(const struct optimizer *optimizer,
                            const struct optimizer_window *window)
{
    return window->slab == 0 ? optimizer->state.m : optimizer->state.v;
}

rl_status optimizer_fetch(struct optimizer *optimizer, const struct optimizer_window *window)
{
    const float *slab = slab_of(optimizer, window);
    struct optimizer_window asked = *window;
    RL_TRY(window_check(optimizer, window));
    if (!optimizer_is_shared(optimizer)) {
        memcpy(window->out, slab + window->first, (size_t)window->count * sizeof(float));
        return RL_OK;
    }
    RL_TRY(collective_broadcast(optimizer->share.collective, &asked, sizeof(asked), 0));
    return optimizer_share_collect(&optimizer->share, slab, window);
}

rl_status optimizer_fetch_end(struct optimizer *optimizer)
{
    struct optimizer_window end = {.slab = WINDOW_END};
    return optimizer_is_shared(optimizer)
               ? collective_broadcast(optimizer->share.collective, &end, sizeof(end), 0)
               : RL_OK;
}

rl_status optimizer_serve(struct optimizer *optimizer)
{
    struct optimizer_window window = {0};
    while (optimizer_is_shared(optimizer)) {
        RL_TRY(collective_broadcast(optimizer->share.collective, &window, sizeof(window), 0));
        if (window.slab == WINDOW_END) {
            break;
        }
        window.out = NULL;
        RL_TRY(window_check(optimizer, &window));
        RL_TRY(optimizer_share_collect(&optimizer->share, slab_of(optimizer, &window), &window));
    }
    return RL_OK;
}

/* The floats of a tensor whose moments are here: [first, end) within it. */
struct tensor_part {
    int64_t first, end;
    bool whole;
};

static struct tensor_part tensor_part(const struct optimizer_state *state,
                                      const struct model_tensor *tensor)
{
    int64_t count = tensor->rows * tensor->cols;
    int64_t first = state->first - tensor->offset;
    int64_t end = first + state->count;
    struct tensor_part part = {.first = first > 0 ? first : 0, .end = end < count ? end : count};
    part.whole = part.first == 0 && part.end == count;
    return part;
}

/* A tensor's update and, of a whole matrix, its part of the image, in one pass over its elements.
 */
static void update_tensor(struct optimizer *optimizer, const struct model_tensor *tensor,
                          const struct optimizer_weights *weights,
                          const struct kernel_adamw_args *common, struct rl_pool *pool)
{
    const struct model_layout *layout = optimizer->layout;
    struct tensor_part part = tensor_part(&optimizer->state, tensor);
    struct kernel_adamw_pack_args args = {.adamw = *common};
    int64_t at = tensor->offset + part.first;
    if (part.first >= part.end) {
        return;
    }
    args.adamw.param += at;
    args.adamw.grad += at;
    args.adamw.m += at - optimizer->state.first;
    args.adamw.v += at - optimizer->state.first;
    args.adamw.count = part.end - part.first;
    args.adamw.weight_decay = tensor->matrix ? (float)optimizer->options.weight_decay : 0;
    if (tensor->matrix && part.whole) {
        args.pack =
            model_params_pack_args(layout, tensor, weights->master, weights->image, weights->diff);
        optimizer->kernels->adamw_pack(&args, pool);
    } else {
        optimizer->kernels->adamw(&args.adamw, pool);
    }
}

/* What update_tensor left out of the image. */
static void publish_rest(struct optimizer *optimizer, const struct model_tensor *tensor,
                         const struct optimizer_weights *weights, struct rl_pool *pool)
{
    const struct model_layout *layout = optimizer->layout;
    if (!tensor->matrix) {
        struct kernel_vector_pack_args pack = model_params_vector_args(
            layout, tensor, weights->master, weights->image, weights->diff);
        optimizer->kernels->vector_pack(&pack, pool);
    } else if (!tensor_part(&optimizer->state, tensor).whole) {
        struct kernel_linear_pack_args pack =
            model_params_pack_args(layout, tensor, weights->master, weights->image, weights->diff);
        optimizer->kernels->linear_pack(&pack, pool);
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

rl_status optimizer_measure(struct optimizer *optimizer, const float *grad, double inv_denominator,
                            struct rl_pool *pool, struct optimizer_report *report)
{
    const struct optimizer_options *options = &optimizer->options;
    double norm = 0;
    RL_TRY(gradient_norm(optimizer, grad, pool, &norm));
    norm *= inv_denominator;
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
    return RL_OK;
}

rl_status optimizer_apply(struct optimizer *optimizer, const struct optimizer_weights *weights,
                          const struct optimizer_report *report, struct rl_pool *pool, bool *finite)
{
    const struct optimizer_options *options = &optimizer->options;
    const struct model_layout *layout = optimizer->layout;
    struct optimizer_state *state = &optimizer->state;
    int32_t nonfinite = 0;
    assert(report->outcome == OPTIMIZER_UPDATED);
    state->skipped_run = 0;
    state->step++;
    struct kernel_adamw_args common = {
        .param = weights->master,
        .m = optimizer->m.data,
        .v = optimizer->v.data,
        .grad = weights->grad,
        .step = state->step,
        .grad_scale = (float)report->grad_scale,
        .learning_rate = (float)report->learning_rate,
        .beta1 = (float)options->beta1,
        .beta2 = (float)options->beta2,
        .epsilon = (float)options->epsilon,
        .nonfinite = &nonfinite,
    };
    for (int32_t i = 0; i < layout->tensor_count; i++) {
        update_tensor(optimizer, &layout->tensors[i], weights, &common, pool);
    }
    if (optimizer->share.collective != NULL) {
        RL_TRY(optimizer_share_spread(&optimizer->share, weights->master, &nonfinite, pool));
    }
    for (int32_t i = 0; i < layout->tensor_count; i++) {
        publish_rest(optimizer, &layout->tensors[i], weights, pool);
    }
    *finite = nonfinite == 0;
    return device_wait(pool);
}

void optimizer_skip(struct optimizer *optimizer, const char *why)
{
    struct optimizer_state *state = &optimizer->state;
    state->skipped++;
    state->skipped_run++;
    rl_log(RL_LOG_WARN, "update after %" PRId64 " skipped: %s", state->step, why);
}

rl_status optimizer_step(struct optimizer *optimizer, const struct optimizer_weights *weights,
                         double inv_denominator, struct rl_pool *pool,
                         struct optimizer_report *report)
{
    bool finite = true;
    RL_TRY(optimizer_measure(optimizer, weights->grad, inv_denominator, pool, report));
    if (report->outcome == OPTIMIZER_UPDATED) {
        return optimizer_apply(optimizer, weights, report, pool, &finite);
    }
    if (report->outcome == OPTIMIZER_SKIPPED_NONFINITE) {
        optimizer_skip(optimizer, "the gradient is not finite");
    }
    return RL_OK;
}

bool optimizer_weights_finite(struct optimizer *optimizer, const float *master,
                              struct rl_pool *pool)
{
    double squares = 0;
    struct kernel_sum_squares_args args = squares_args(optimizer, master, &squares);
    optimizer->kernels->sum_squares(&args, pool);
    return isfinite(squares);
}

void optimizer_push(const struct optimizer *optimizer, struct rl_pool *pool)
{
    model_slab_push(&optimizer->m, pool);
    model_slab_push(&optimizer->v, pool);
}

rl_status optimizer_pull(const struct optimizer *optimizer, struct rl_pool *pool)
{
    RL_TRY(model_slab_pull(&optimizer->m, pool));
    return model_slab_pull(&optimizer->v, pool);
}

void optimizer_forget(const struct optimizer *optimizer)
{
    model_slab_forget(&optimizer->m);
    model_slab_forget(&optimizer->v);
}

struct optimizer_state *optimizer_state(struct optimizer *optimizer)
{
    return &optimizer->state;
}
