/* See sft.h. An update takes examples in the shuffled order until sft.batch_tokens are reached and
 * runs them as packed micro-batches; gradients are summed and divided once by the number of
 * completion tokens. */
#include "trainer/sft.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/rng.h"
#include "kernels/device.h"
#include "model/forward.h"
#include "trainer/optimizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SFT_SKIPS_MAX = 3, SFT_ORDER_STREAM = 0x5f };

struct sft {
    const struct sft_args *args;
    struct model_context context;
    struct optimizer *optimizer;
    struct model_workspace *workspace;
    struct model_packing *packing;
    struct model_kv kv;
    void *image;
    float *grad;
    int64_t budget;             /* tokens of a micro-batch */
    int32_t *rows, *targets;    /* [budget] */
    float *logprob, *g_logprob; /* [budget] */
    int64_t row_count;
    uint64_t *order;               /* [example_count] of the current epoch */
    uint64_t position;             /* examples taken so far, over epochs */
    uint64_t tokens, total_tokens; /* fed; to feed */
    double loss_sum;               /* of the current update */
    uint64_t loss_tokens;
    struct sft_progress progress;
    double tail_loss;
    int64_t tail_updates;
};

static uint32_t fed_tokens(const struct sft_example *example)
{
    return example->count - 1; /* the last token predicts nothing */
}

static rl_status check_examples(const struct sft_args *args, uint64_t *tokens, uint32_t *longest)
{
    *tokens = 0;
    *longest = 0;
    for (uint64_t i = 0; i < args->example_count; i++) {
        const struct sft_example *example = &args->examples[i];
        if (example->prompt_count < 1 || example->prompt_count >= example->count) {
            return rl_fail(RL_INVALID, "sft: example %llu has %u tokens of which %u are prompt",
                           (unsigned long long)i, example->count, example->prompt_count);
        }
        if ((int64_t)example->count > args->layout->rope_positions) {
            return rl_fail(RL_TOO_LONG, "sft: example %llu has %u tokens, the limit is %d",
                           (unsigned long long)i, example->count, args->layout->rope_positions);
        }
        *tokens += fed_tokens(example);
        *longest = fed_tokens(example) > *longest ? fed_tokens(example) : *longest;
    }
    return args->example_count > 0 ? RL_OK : rl_fail(RL_INVALID, "sft: no examples");
}

static rl_status allocate(struct sft *s, uint32_t longest)
{
    const struct model_layout *layout = s->args->layout;
    int64_t budget = s->args->config->optimizer.max_tokens_per_microbatch;
    int64_t batch = s->args->config->sft.batch_tokens + longest;
    void *memory = NULL;
    budget = budget < batch ? budget : batch;
    s->budget = budget > longest ? budget : longest;
    RL_TRY(device_alloc((size_t)layout->master_count * sizeof(float), "gradients", &memory));
    s->grad = memory;
    RL_TRY(device_alloc(layout->image_bytes, "weight image", &s->image));
    RL_TRY(model_workspace_create(layout, s->budget, true, &s->workspace));
    RL_TRY(model_packing_create(s->budget, s->budget, &s->packing));
    RL_TRY(model_kv_create(layout, model_packing_pages(s->budget, s->budget), &s->kv));
    size_t rows = (size_t)s->budget;
    s->rows = calloc(rows, sizeof(int32_t));
    s->targets = calloc(rows, sizeof(int32_t));
    s->logprob = calloc(rows, sizeof(float));
    s->g_logprob = calloc(rows, sizeof(float));
    s->order = calloc(s->args->example_count, sizeof(uint64_t));
    if (!s->rows || !s->targets || !s->logprob || !s->g_logprob || !s->order) {
        return rl_fail(RL_NO_MEMORY, "sft: out of memory");
    }
    return RL_OK;
}

static void release(struct sft *s)
{
    free(s->order);
    free(s->g_logprob);
    free(s->logprob);
    free(s->targets);
    free(s->rows);
    model_kv_fini(&s->kv);
    model_packing_destroy(s->packing);
    model_workspace_destroy(s->workspace);
    device_free(s->image);
    device_free(s->grad);
    optimizer_destroy(s->optimizer);
}

static rl_status create_optimizer(struct sft *s)
{
    struct optimizer_options options;
    const struct rl_config *config = s->args->config;
    s->progress.updates = (int64_t)((s->total_tokens + (uint64_t)config->sft.batch_tokens - 1) /
                                    (uint64_t)config->sft.batch_tokens);
    optimizer_options_from_config(config, s->progress.updates, &options);
    return optimizer_create(&options, s->args->layout, s->args->kernels, &s->optimizer);
}

/* The next example in this epoch's order; a new order at each epoch's start. */
static const struct sft_example *next_example(struct sft *s)
{
    uint64_t index = s->position % s->args->example_count;
    if (index == 0) {
        uint64_t epoch = s->position / s->args->example_count;
        struct rl_rng_key key =
            rl_rng_key_make((uint64_t)s->args->config->run.seed, epoch, SFT_ORDER_STREAM);
        rl_rng_permutation(key, s->args->example_count, s->order);
    }
    return &s->args->examples[s->order[index]];
}

static void run_microbatch(struct sft *s)
{
    const float *hidden = NULL;
    if (s->row_count == 0) {
        return;
    }
    model_forward(&s->context, s->image, &s->kv, &s->packing->batch, s->workspace, &hidden);
    model_head_forward(
        &s->context, s->image, s->workspace,
        &(struct model_head_args){s->rows, s->targets, s->row_count, 1.0F, s->logprob, NULL});
    for (int64_t i = 0; i < s->row_count; i++) {
        s->loss_sum -= s->logprob[i];
        s->g_logprob[i] = -1.0F;
    }
    s->loss_tokens += (uint64_t)s->row_count;
    model_backward(&s->context, s->image, &s->kv, &s->packing->batch, s->workspace,
                   &(struct model_backward_args){s->g_logprob, NULL, s->grad});
    model_packing_reset(s->packing);
    s->row_count = 0;
}

static rl_status pack(struct sft *s, const struct sft_example *example)
{
    int64_t first = 0;
    uint32_t count = fed_tokens(example);
    rl_status status = model_packing_add(s->packing, example->tokens, count, &first);
    if (status == RL_AGAIN) {
        run_microbatch(s);
        status = model_packing_add(s->packing, example->tokens, count, &first);
    }
    RL_TRY(status);
    for (uint32_t t = example->prompt_count; t < example->count; t++) {
        s->rows[s->row_count] = (int32_t)(first + t - 1);
        s->targets[s->row_count++] = example->tokens[t];
    }
    return RL_OK;
}

static rl_status run_update(struct sft *s, struct optimizer_report *report)
{
    const struct model_layout *layout = s->args->layout;
    uint64_t tokens = 0;
    memset(s->grad, 0, (size_t)layout->master_count * sizeof(float));
    s->loss_sum = 0;
    s->loss_tokens = 0;
    while (tokens < (uint64_t)s->args->config->sft.batch_tokens &&
           s->tokens + tokens < s->total_tokens) {
        const struct sft_example *example = next_example(s);
        RL_TRY(pack(s, example));
        s->position++;
        tokens += fed_tokens(example);
    }
    run_microbatch(s);
    s->tokens += tokens;
    optimizer_step(s->optimizer, s->args->master, s->grad, 1.0 / (double)s->loss_tokens,
                   s->args->pool, report);
    if (report->outcome == OPTIMIZER_UPDATED) {
        model_params_publish(layout, s->args->kernels, s->args->master, s->image, s->args->pool);
    }
    return RL_OK;
}

static bool report_update(struct sft *s, const struct optimizer_report *report, double start)
{
    s->progress.update++;
    s->progress.loss = s->loss_sum / (double)s->loss_tokens;
    s->progress.learning_rate = report->learning_rate;
    s->progress.grad_norm = report->grad_norm;
    s->progress.tokens = s->tokens;
    s->progress.elapsed_s = rl_clock_now_s(NULL) - start;
    if (s->tokens >= s->total_tokens - s->total_tokens / 10) {
        s->tail_loss += s->progress.loss;
        s->tail_updates++;
    }
    return s->args->progress == NULL || s->args->progress(s->args->progress_arg, &s->progress);
}

static rl_status run_all(struct sft *s)
{
    double start = rl_clock_now_s(NULL);
    model_params_publish(s->args->layout, s->args->kernels, s->args->master, s->image,
                         s->args->pool);
    while (s->tokens < s->total_tokens) {
        struct optimizer_report report;
        RL_TRY(run_update(s, &report));
        if (optimizer_state(s->optimizer)->skipped_run >= SFT_SKIPS_MAX) {
            return rl_fail(RL_NONFINITE, "sft: %d updates in a row were not finite", SFT_SKIPS_MAX);
        }
        if (!report_update(s, &report, start)) {
            return RL_INTERRUPTED;
        }
    }
    return RL_OK;
}

rl_status sft_run(const struct sft_args *args, double *mean_loss)
{
    struct sft s = {.args = args};
    uint64_t epoch_tokens = 0;
    uint32_t longest = 0;
    rl_status status = RL_OK;
    s.context = (struct model_context){
        .layout = args->layout, .kernels = args->kernels, .pool = args->pool};
    RL_TRY(check_examples(args, &epoch_tokens, &longest));
    s.total_tokens = (uint64_t)ceil(args->config->sft.epochs * (double)epoch_tokens);
    if (s.total_tokens == 0) {
        return rl_fail(RL_INVALID, "sft: sft.epochs is 0: nothing to do");
    }
    RL_TRY_GOTO(create_optimizer(&s), status, done);
    RL_TRY_GOTO(allocate(&s, longest), status, done);
    RL_TRY_GOTO(run_all(&s), status, done);
    *mean_loss = s.tail_updates > 0 ? s.tail_loss / (double)s.tail_updates : s.progress.loss;
done:
    release(&s);
    return status;
}
