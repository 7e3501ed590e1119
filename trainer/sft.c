/* See sft.h. An update takes examples in the shuffled order until sft.batch_tokens are reached and
 * runs its rank's share as packed micro-batches; gradients are summed and divided once by the
 * number of completion tokens. */
#include "trainer/sft.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/rng.h"
#include "model/forward.h"
#include "model/slab.h"
#include "trainer/optimizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SFT_SKIPS_MAX = 3, SFT_ORDER_STREAM = 0x5f };

/* What ranks add up in an update. */
enum sft_sum { SFT_LOSS, SFT_ENTROPY, SFT_TOKENS, SFT_STOP, SFT_SUMS };

/* One example of a micro-batch: its rows there. */
struct sft_span {
    const struct sft_example *example;
    int64_t first, count; /* rows */
};

struct sft {
    const struct sft_args *args;
    struct collective *alone; /* where args->collective is NULL */
    struct collective *collective;
    struct model_context context;
    struct optimizer *optimizer;
    struct model_workspace *workspace;
    struct model_packing *packing;
    struct model_kv kv;
    float *master; /* the layout's device's, as the two below; on the CPU args->master itself */
    void *image;
    float *grad;
    int64_t budget;                       /* tokens of a micro-batch */
    int32_t *rows, *targets;              /* [budget] */
    float *logprob, *g_logprob, *entropy; /* [budget] */
    struct sft_span *spans;               /* [budget] of the micro-batch */
    int64_t row_count, span_count;
    uint64_t *order; /* [example_count] of epoch order_epoch */
    uint64_t order_epoch;
    uint64_t *rank_tokens; /* [ranks] of the current update */
    struct sft_state state;
    uint64_t total_tokens; /* to feed */
    double sums[SFT_SUMS]; /* of the current update */
    double started_s;
    struct sft_progress progress;
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
        if (!isfinite(example->weight) || example->weight == 0.0F ||
            (args->objective != NULL && example->behaviour == NULL)) {
            return rl_fail(RL_INVALID, "sft: example %llu has weight %g%s", (unsigned long long)i,
                           (double)example->weight,
                           args->objective != NULL && example->behaviour == NULL
                               ? " and no behaviour log-probs"
                               : "");
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
    size_t slab_bytes = (size_t)layout->master_count * sizeof(float);
    if (layout->device != NULL) {
        RL_TRY(device_buffer_alloc(layout->device, slab_bytes, "master weights", &memory));
    }
    s->master = layout->device != NULL ? memory : s->args->master;
    RL_TRY(device_buffer_alloc(layout->device, slab_bytes, "gradients", &memory));
    s->grad = memory;
    RL_TRY(device_buffer_alloc(layout->device, layout->image_bytes, "weight image", &s->image));
    RL_TRY(
        model_workspace_create(layout, s->budget, optimizer_keep(s->args->config), &s->workspace));
    RL_TRY(model_packing_create(s->budget, s->budget, &s->packing));
    RL_TRY(model_kv_create(layout, model_packing_pages(s->budget, s->budget), &s->kv));
    size_t rows = (size_t)s->budget;
    s->rows = calloc(rows, sizeof(int32_t));
    s->targets = calloc(rows, sizeof(int32_t));
    s->logprob = calloc(rows, sizeof(float));
    s->g_logprob = calloc(rows, sizeof(float));
    s->entropy = calloc(rows, sizeof(float));
    s->spans = calloc(rows, sizeof(*s->spans));
    s->order = calloc(s->args->example_count, sizeof(uint64_t));
    s->order_epoch = UINT64_MAX;
    s->rank_tokens = calloc((size_t)s->collective->size, sizeof(uint64_t));
    if (!s->rows || !s->targets || !s->logprob || !s->g_logprob || !s->entropy || !s->spans ||
        !s->order || !s->rank_tokens) {
        return rl_fail(RL_NO_MEMORY, "sft: out of memory");
    }
    return RL_OK;
}

static void release(struct sft *s)
{
    free(s->rank_tokens);
    free(s->order);
    free(s->spans);
    free(s->entropy);
    free(s->g_logprob);
    free(s->logprob);
    free(s->targets);
    free(s->rows);
    model_kv_fini(&s->kv);
    model_packing_destroy(s->packing);
    model_workspace_destroy(s->workspace);
    struct device *device = s->args->layout->device;
    device_buffer_free(device, s->image);
    device_buffer_free(device, s->grad);
    if (device != NULL) {
        device_buffer_free(device, s->master);
    }
    optimizer_destroy(s->optimizer);
    collective_destroy(s->alone);
}

static rl_status create_optimizer(struct sft *s)
{
    struct optimizer_options options;
    const struct rl_config *config = s->args->config;
    s->progress.updates = (int64_t)((s->total_tokens + (uint64_t)config->sft.batch_tokens - 1) /
                                    (uint64_t)config->sft.batch_tokens);
    optimizer_options_from_config(config, s->progress.updates, s->collective, &options);
    return optimizer_create(&options, s->args->layout, s->args->kernels, &s->optimizer);
}

/* The next example in this epoch's order. */
static const struct sft_example *next_example(struct sft *s)
{
    uint64_t epoch = s->state.position / s->args->example_count;
    if (epoch != s->order_epoch) {
        uint64_t stream = SFT_ORDER_STREAM ^ (s->args->stream << 8);
        struct rl_rng_key key = rl_rng_key_make((uint64_t)s->args->config->run.seed, epoch, stream);
        rl_rng_permutation(key, s->args->example_count, s->order);
        s->order_epoch = epoch;
    }
    return &s->args->examples[s->order[s->state.position % s->args->example_count]];
}

/* Gradients of one example's rows, and its part of the update's sums. */
static void differentiate(struct sft *s, const struct sft_span *span)
{
    const struct sft_example *example = span->example;
    const float *logprob = s->logprob + span->first;
    if (s->args->objective != NULL) {
        struct objective_stats stats;
        objective_stats_init(&stats);
        objective_sequence(s->args->objective,
                           &(struct objective_sequence){.count = (uint32_t)span->count,
                                                        .logprob = logprob,
                                                        .old = example->behaviour,
                                                        .advantage = example->weight},
                           s->g_logprob + span->first, NULL, &stats);
        s->sums[SFT_LOSS] += stats.sum.policy_loss;
        return;
    }
    for (int64_t i = 0; i < span->count; i++) {
        s->sums[SFT_LOSS] -= (double)(example->weight * logprob[i]);
        s->g_logprob[span->first + i] = -example->weight;
    }
}

static void run_microbatch(struct sft *s)
{
    const float *hidden = NULL;
    struct model_head_args head = {.hidden_rows = s->rows,
                                   .targets = s->targets,
                                   .m = s->row_count,
                                   .inv_temperature =
                                       s->args->objective != NULL ? s->args->inv_temperature : 1.0F,
                                   .logprob = s->logprob,
                                   .entropy = s->entropy};
    if (s->row_count == 0) {
        return;
    }
    model_forward(&s->context, s->image, &s->kv, &s->packing->batch, s->workspace, &hidden);
    model_head_forward(&s->context, s->image, s->workspace, &head);
    for (int64_t i = 0; i < s->span_count; i++) {
        differentiate(s, &s->spans[i]);
    }
    for (int64_t i = 0; i < s->row_count; i++) {
        s->sums[SFT_ENTROPY] += s->entropy[i];
    }
    s->sums[SFT_TOKENS] += (double)s->row_count;
    model_backward(&s->context, s->image, &s->kv, &s->packing->batch, s->workspace,
                   &(struct model_backward_args){s->g_logprob, NULL, s->grad});
    model_packing_reset(s->packing);
    s->row_count = 0;
    s->span_count = 0;
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
    s->spans[s->span_count++] =
        (struct sft_span){example, s->row_count, example->count - example->prompt_count};
    for (uint32_t t = example->prompt_count; t < example->count; t++) {
        s->rows[s->row_count] = (int32_t)(first + t - 1);
        s->targets[s->row_count++] = example->tokens[t];
    }
    return RL_OK;
}

/* The rank with the fewest tokens of this update so far; the lowest of equals. */
static int rank_of_next(struct sft *s, uint32_t tokens)
{
    int least = 0;
    for (int rank = 1; rank < s->collective->size; rank++) {
        least = s->rank_tokens[rank] < s->rank_tokens[least] ? rank : least;
    }
    s->rank_tokens[least] += tokens;
    return least;
}

/* This rank's share of the update's examples: gradients and sums. */
static rl_status run_share(struct sft *s, uint64_t *tokens)
{
    size_t bytes = (size_t)s->args->layout->master_count * sizeof(float);
    s->args->kernels->zero(&(struct kernel_zero_args){s->grad, bytes}, s->args->pool);
    memset(s->sums, 0, sizeof(s->sums));
    memset(s->rank_tokens, 0, (size_t)s->collective->size * sizeof(uint64_t));
    *tokens = 0;
    while (*tokens < (uint64_t)s->args->config->sft.batch_tokens &&
           s->state.tokens + *tokens < s->total_tokens) {
        const struct sft_example *example = next_example(s);
        if (rank_of_next(s, fed_tokens(example)) == s->collective->rank) {
            RL_TRY(pack(s, example));
        }
        s->state.position++;
        *tokens += fed_tokens(example);
    }
    run_microbatch(s);
    return RL_OK;
}

static rl_status run_update(struct sft *s, struct optimizer_report *report)
{
    double start = rl_clock_now_s(NULL);
    RL_TRY(run_share(s, &s->progress.update_tokens));
    s->progress.busy_s += rl_clock_now_s(NULL) - start;
    RL_TRY(optimizer_reduce(s->optimizer, s->collective, s->grad, s->args->pool));
    RL_TRY(collective_sum_double(s->collective, s->sums, SFT_SUMS));
    start = rl_clock_now_s(NULL);
    struct optimizer_weights weights = {.master = s->master, .grad = s->grad, .image = s->image};
    RL_TRY(
        optimizer_step(s->optimizer, &weights, 1.0 / s->sums[SFT_TOKENS], s->args->pool, report));
    s->progress.busy_s += rl_clock_now_s(NULL) - start;
    s->state.tokens += s->progress.update_tokens;
    s->state.update++;
    return RL_OK;
}

static bool is_finished(const struct sft *s)
{
    return s->state.tokens >= s->total_tokens;
}

/* Figures of the update; *stop is set if any rank wants to. */
static rl_status report_update(struct sft *s, const struct optimizer_report *report, bool *stop)
{
    s->progress.update = s->state.update;
    s->progress.loss = s->sums[SFT_LOSS] / s->sums[SFT_TOKENS];
    s->progress.entropy = s->sums[SFT_ENTROPY] / s->sums[SFT_TOKENS];
    s->progress.learning_rate = report->learning_rate;
    s->progress.grad_norm = report->grad_norm;
    s->progress.skipped = report->outcome != OPTIMIZER_UPDATED;
    s->progress.tokens = s->state.tokens;
    s->progress.elapsed_s = rl_clock_now_s(NULL) - s->started_s;
    if (s->state.tokens >= s->total_tokens - s->total_tokens / 10) {
        s->state.tail_loss += s->progress.loss;
        s->state.tail_updates++;
    }
    bool goes_on =
        s->args->progress == NULL || s->args->progress(s->args->progress_arg, &s->progress);
    double wish = goes_on ? 0 : 1;
    RL_TRY(collective_max_double(s->collective, &wish, 1));
    *stop = wish > 0;
    return RL_OK;
}

/* Weights and moments between the host, where they are loaded and saved, and the device. */
static void push(const struct sft *s)
{
    size_t bytes = (size_t)s->args->layout->master_count * sizeof(float);
    if (s->args->layout->device != NULL) {
        model_upload(s->args->pool, s->master, s->args->master, bytes);
        optimizer_push(s->optimizer, s->args->pool);
    }
}

static rl_status pull(const struct sft *s)
{
    size_t bytes = (size_t)s->args->layout->master_count * sizeof(float);
    if (s->args->layout->device == NULL) {
        return RL_OK;
    }
    RL_TRY(model_download(s->args->pool, s->args->master, s->master, bytes));
    return optimizer_pull(s->optimizer, s->args->pool);
}

static rl_status save_point(struct sft *s)
{
    RL_TRY(pull(s));
    const struct optimizer_state *optimizer = optimizer_state(s->optimizer);
    bool shared = optimizer_is_shared(s->optimizer);
    struct sft_point point = {.state = s->state,
                              .master = s->args->master,
                              .adam_m = shared ? NULL : optimizer->m,
                              .adam_v = shared ? NULL : optimizer->v,
                              .shared = shared ? s->optimizer : NULL,
                              .finished = is_finished(s)};
    point.state.optimizer_step = optimizer->step;
    point.state.skipped = optimizer->skipped;
    point.state.skipped_run = optimizer->skipped_run;
    return s->args->save != NULL ? s->args->save(s->args->save_arg, &point) : RL_OK;
}

static rl_status after_update(struct sft *s, const struct optimizer_report *report)
{
    bool stop = false;
    int64_t every = s->args->save_every;
    RL_TRY(report_update(s, report, &stop));
    if (optimizer_state(s->optimizer)->skipped_run >= SFT_SKIPS_MAX) {
        return rl_fail(RL_NONFINITE, "sft: %d updates in a row were not finite", SFT_SKIPS_MAX);
    }
    if (is_finished(s) || stop || (every > 0 && s->state.update % every == 0)) {
        RL_TRY(save_point(s));
    }
    return stop && !is_finished(s) ? RL_INTERRUPTED : RL_OK;
}

static void resume(struct sft *s)
{
    const struct sft_resume *from = s->args->resume;
    struct optimizer_state *optimizer = optimizer_state(s->optimizer);
    size_t bytes = (size_t)optimizer->count * sizeof(float);
    if (from == NULL) {
        return;
    }
    s->state = from->state;
    memcpy(optimizer->m, from->adam_m, bytes);
    memcpy(optimizer->v, from->adam_v, bytes);
    optimizer->step = from->state.optimizer_step;
    optimizer->skipped = from->state.skipped;
    optimizer->skipped_run = from->state.skipped_run;
}

static rl_status run_all(struct sft *s)
{
    s->started_s = rl_clock_now_s(NULL);
    resume(s);
    push(s);
    model_params_publish(s->args->layout, s->args->kernels, s->master, s->image, s->args->pool);
    while (!is_finished(s)) {
        struct optimizer_report report;
        RL_TRY(run_update(s, &report));
        RL_TRY(after_update(s, &report));
    }
    return RL_OK;
}

static rl_status open_collective(struct sft *s)
{
    if (s->args->collective == NULL) {
        RL_TRY(collective_local_create(&s->alone));
    }
    s->collective = s->args->collective != NULL ? s->args->collective : s->alone;
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
    RL_TRY_GOTO(open_collective(&s), status, done);
    RL_TRY_GOTO(create_optimizer(&s), status, done);
    RL_TRY_GOTO(allocate(&s, longest), status, done);
    RL_TRY_GOTO(run_all(&s), status, done);
    *mean_loss = s.state.tail_updates > 0 ? s.state.tail_loss / (double)s.state.tail_updates
                                          : s.progress.loss;
done:
    release(&s);
    return status;
}
