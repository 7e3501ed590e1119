/* See learner.h. learner_step is a list of named phases; each fills its part of the report. */
#include "trainer/learner.h"

#include "core/clock.h"
#include "core/log.h"
#include "kernels/device.h"
#include "kernels/sampling.h"
#include "trainer/batcher.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LEARNER_SKIPS_MAX = 3 };
static const double publish_timeout_s = 60;

/* Arrays over all completion tokens of this rank's step, micro-batch after micro-batch. */
struct step_rows {
    float *old, *reference; /* [capacity]; NULL where not needed */
    size_t *base;           /* [microbatch_count] first row of each micro-batch */
    size_t capacity, base_capacity;
};

struct learner {
    struct learner_args args;
    struct model_context context;
    struct objective_options objective;
    struct advantage_options advantage;
    struct batcher_options batcher;
    struct optimizer *optimizer;
    float *grad;       /* [master_count] */
    void *own_image;   /* [image_bytes] learners that do not publish */
    const void *image; /* what forward passes read */
    int slot;          /* arena slot being written; -1: none */
    uint32_t version;
    float inv_temperature;
    bool recompute_old, kl_in_reward;
    int64_t skipped_in_a_row;
    /* activations of one micro-batch, grown to the largest seen */
    struct model_workspace *workspace;
    struct model_kv kv;
    int64_t workspace_tokens, kv_pages;
    struct batcher_arrays arrays;
    float *logprob, *entropy, *g_logprob, *g_entropy; /* [row_capacity] */
    uint32_t row_capacity;
    struct step_rows rows;
    float *sample_advantage; /* [sample_capacity] */
    double *sample_penalty;  /* [sample_capacity] */
    size_t sample_capacity;
};

/* --- life cycle
 * ------------------------------------------------------------------------------------- */

static rl_status set_options(struct learner *l)
{
    const struct rl_config *config = l->args.config;
    struct optimizer_options optimizer;
    int64_t updates = config->run.steps * config->optimizer.updates_per_step;
    optimizer_options_from_config(config, updates, &optimizer);
    RL_TRY(optimizer_create(&optimizer, l->args.layout, l->args.kernels, &l->optimizer));
    RL_TRY(objective_options_from_config(config, &l->objective));
    advantage_options_from_config(config, &l->advantage);
    l->batcher = (struct batcher_options){
        .updates_per_step = (uint32_t)config->optimizer.updates_per_step,
        .max_tokens_per_microbatch = (uint32_t)config->optimizer.max_tokens_per_microbatch,
        .ranks = (uint32_t)l->args.collective->size,
        .rank = (uint32_t)l->args.collective->rank,
        .shuffle = true,
        .seed = (uint64_t)config->run.seed,
        .mask_truncated = config->loss.mask_truncated_completions};
    struct kernel_sampling sampling = {.temperature = (float)config->rollout.temperature};
    /* The very division that sampling makes: anything else would cost the last bit. */
    l->inv_temperature = kernel_sampling_inverse_temperature(&sampling);
    l->recompute_old = config->loss.old_logprob == CONFIG_OLD_RECOMPUTE;
    l->kl_in_reward = config->loss.beta > 0 && config->loss.kl_in == CONFIG_KL_IN_REWARD;
    return RL_OK;
}

rl_status learner_create(const struct learner_args *args, struct learner **out)
{
    struct learner *l = calloc(1, sizeof(*l));
    if (l == NULL) {
        device_free(args->master);
        return rl_fail(RL_NO_MEMORY, "learner: out of memory");
    }
    l->args = *args;
    l->slot = -1;
    l->context = (struct model_context){
        .layout = args->layout, .kernels = args->kernels, .pool = args->pool};
    batcher_arrays_init(&l->arrays);
    rl_status status = RL_OK;
    void *memory = NULL;
    RL_TRY_GOTO(set_options(l), status, fail);
    if (objective_needs_reference(args->config) && args->reference_image == NULL) {
        status = rl_fail(RL_INVALID, "learner: loss.beta > 0 needs a reference model");
        goto fail;
    }
    size_t slab_bytes = (size_t)args->layout->master_count * sizeof(float);
    RL_TRY_GOTO(device_alloc(slab_bytes, "gradients", &memory), status, fail);
    l->grad = memory;
    if (args->arena == NULL) {
        RL_TRY_GOTO(device_alloc(args->layout->image_bytes, "weight image", &l->own_image), status,
                    fail);
    }
    *out = l;
    return RL_OK;
fail:
    learner_destroy(l);
    return status;
}

static void free_rows(struct learner *l)
{
    free(l->logprob);
    free(l->entropy);
    free(l->g_logprob);
    free(l->g_entropy);
    l->logprob = l->entropy = l->g_logprob = l->g_entropy = NULL;
    l->row_capacity = 0;
}

void learner_destroy(struct learner *learner)
{
    if (learner == NULL) {
        return;
    }
    free_rows(learner);
    free(learner->rows.old);
    free(learner->rows.reference);
    free(learner->rows.base);
    free(learner->sample_advantage);
    free(learner->sample_penalty);
    batcher_arrays_fini(&learner->arrays);
    model_workspace_destroy(learner->workspace);
    model_kv_fini(&learner->kv);
    optimizer_destroy(learner->optimizer);
    device_free(learner->own_image);
    device_free(learner->grad);
    device_free(learner->args.master);
    free(learner);
}

size_t learner_bytes(const struct model_layout *layout, bool reference)
{
    size_t slab = (size_t)layout->master_count * sizeof(float);
    return 4 * slab + (reference ? layout->image_bytes : 0);
}

/* --- images
 * ----------------------------------------------------------------------------------------- */

/* The masters have changed: make their image. The first time in a step the publishing rank takes a
 * free slot; until it is published nobody else reads it, so later updates rewrite it in place. */
static rl_status refresh_image(struct learner *l)
{
    void *image = l->own_image;
    if (l->args.arena != NULL) {
        struct rl_wait wait = rl_wait_begin(l->args.waits, "learner waits for a weight slot");
        rl_status status =
            weight_arena_begin_write(l->args.arena, publish_timeout_s, &l->slot, &image);
        (void)rl_wait_end(&wait);
        RL_TRY(status);
    }
    model_params_publish(l->args.layout, l->args.kernels, l->args.master, image, l->args.pool);
    l->image = image;
    return RL_OK;
}

static uint64_t hash_image(const struct learner *l)
{
    return l->args.arena != NULL ? model_image_hash(l->args.layout, l->image) : 0;
}

static rl_status publish(struct learner *l, uint32_t version, uint64_t hash)
{
    if (l->args.arena != NULL) {
        RL_TRY(weight_arena_publish(l->args.arena, l->slot, version, hash));
        l->slot = -1;
    }
    l->version = version;
    return RL_OK;
}

rl_status learner_publish_first(struct learner *learner, uint32_t version)
{
    RL_TRY(refresh_image(learner));
    return publish(learner, version, hash_image(learner));
}

rl_status learner_publish(struct learner *learner, const struct learner_report *report)
{
    if (report->updates == 0) {
        return RL_OK;
    }
    if (report->version != learner->version + 1) {
        return rl_fail(RL_INVALID, "learner: version %u cannot follow %u", report->version,
                       learner->version);
    }
    return publish(learner, report->version, report->hash);
}

/* --- memory of a step
 * ------------------------------------------------------------------------------- */

static rl_status grow_rows(struct learner *l, uint32_t rows)
{
    if (rows <= l->row_capacity) {
        return RL_OK;
    }
    free_rows(l);
    l->logprob = calloc(rows, sizeof(float));
    l->entropy = calloc(rows, sizeof(float));
    l->g_logprob = calloc(rows, sizeof(float));
    l->g_entropy = calloc(rows, sizeof(float));
    if (!l->logprob || !l->entropy || !l->g_logprob || !l->g_entropy) {
        free_rows(l);
        return rl_fail(RL_NO_MEMORY, "learner: out of memory for %u token rows", rows);
    }
    l->row_capacity = rows;
    return RL_OK;
}

static rl_status grow_activations(struct learner *l, const struct batcher_plan *plan)
{
    if ((int64_t)plan->max_tokens > l->workspace_tokens) {
        model_workspace_destroy(l->workspace);
        l->workspace = NULL;
        l->workspace_tokens = 0;
        RL_TRY(model_workspace_create(l->args.layout, plan->max_tokens, true, &l->workspace));
        l->workspace_tokens = plan->max_tokens;
    }
    if ((int64_t)plan->max_pages > l->kv_pages) {
        model_kv_fini(&l->kv);
        l->kv = (struct model_kv){0};
        l->kv_pages = 0;
        RL_TRY(model_kv_create(l->args.layout, (int32_t)plan->max_pages, &l->kv));
        l->kv_pages = plan->max_pages;
    }
    return grow_rows(l, plan->max_rows);
}

static bool grow_floats(float **array, size_t count)
{
    float *grown = realloc(*array, (count == 0 ? 1 : count) * sizeof(float));
    if (grown == NULL) {
        return false;
    }
    *array = grown;
    return true;
}

static rl_status grow_step_rows(struct learner *l, const struct batcher_plan *plan)
{
    struct step_rows *rows = &l->rows;
    size_t *base = realloc(rows->base, (plan->microbatch_count + 1) * sizeof(*base));
    if (base == NULL) {
        return rl_fail(RL_NO_MEMORY, "learner: out of memory for a plan");
    }
    rows->base = base;
    size_t total = 0;
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        base[i] = total;
        total += plan->microbatches[i].row_count;
    }
    bool ok = true;
    if (l->recompute_old || l->kl_in_reward) {
        ok = grow_floats(&rows->old, total);
    }
    if (l->args.reference_image != NULL) {
        ok = ok && grow_floats(&rows->reference, total);
    }
    return ok ? RL_OK : rl_fail(RL_NO_MEMORY, "learner: out of memory for %zu log-probs", total);
}

static rl_status grow_samples(struct learner *l, size_t samples)
{
    if (samples <= l->sample_capacity) {
        return RL_OK;
    }
    free(l->sample_advantage);
    free(l->sample_penalty);
    l->sample_capacity = 0;
    l->sample_advantage = calloc(samples, sizeof(float));
    l->sample_penalty = calloc(samples, sizeof(double));
    if (l->sample_advantage == NULL || l->sample_penalty == NULL) {
        return rl_fail(RL_NO_MEMORY, "learner: out of memory for %zu samples", samples);
    }
    l->sample_capacity = samples;
    return RL_OK;
}

/* --- passes
 * ------------------------------------------------------------------------------------------- */

/* Log-probs (and entropies, may be NULL) of micro-batch `index` under `image`. */
static rl_status forward_microbatch(struct learner *l, const struct batcher_plan *plan,
                                    uint32_t index, const void *image, float *logprob,
                                    float *entropy)
{
    const float *hidden = NULL;
    RL_TRY(batcher_arrays_fill(&l->arrays, plan, index));
    model_forward(&l->context, image, &l->kv, &l->arrays.batch, l->workspace, &hidden);
    model_head_forward(&l->context, image, l->workspace,
                       &(struct model_head_args){l->arrays.hidden_rows, l->arrays.targets,
                                                 l->arrays.row_count, l->inv_temperature, logprob,
                                                 entropy});
    return RL_OK;
}

/* Log-probs that stay fixed during the step: of the policy at its start and of the reference. */
static rl_status fixed_logprobs(struct learner *l, const struct batcher_plan *plan)
{
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        if (l->rows.old != NULL) {
            RL_TRY(forward_microbatch(l, plan, i, l->image, l->rows.old + l->rows.base[i], NULL));
        }
        if (l->args.reference_image != NULL) {
            RL_TRY(forward_microbatch(l, plan, i, l->args.reference_image,
                                      l->rows.reference + l->rows.base[i], NULL));
        }
    }
    return RL_OK;
}

/* KL in the reward: what it takes off each sample, summed over ranks (each rank knows its own). */
static rl_status penalties(struct learner *l, const struct batcher_plan *plan, size_t samples)
{
    memset(l->sample_penalty, 0, samples * sizeof(double));
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        const struct batcher_microbatch *micro = &plan->microbatches[i];
        size_t row = l->rows.base[i];
        for (uint32_t s = 0; s < micro->sequence_count; s++) {
            const struct batcher_sequence *sequence = &plan->sequences[micro->first_sequence + s];
            uint32_t count = sequence->sample->completion_count;
            l->sample_penalty[sequence->index] = objective_kl_penalty(
                l->args.config->loss.beta, l->rows.old + row, l->rows.reference + row, NULL, count);
            row += count;
        }
    }
    return collective_sum_double(l->args.collective, l->sample_penalty, (int64_t)samples);
}

static bool sampled_by(const struct trajectory *sample, uint32_t version)
{
    for (uint32_t i = 0; i < sample->completion_count; i++) {
        if (sample->version[i] != version) {
            return false;
        }
    }
    return true;
}

/* Objective of every sequence of the micro-batch just forwarded: fills g_logprob and g_entropy. */
static void objective_of_microbatch(struct learner *l, const struct batcher_plan *plan,
                                    uint32_t index, bool first, struct objective_stats *stats)
{
    const struct batcher_microbatch *micro = &plan->microbatches[index];
    for (uint32_t s = 0; s < micro->sequence_count; s++) {
        const struct batcher_sequence *sequence = &plan->sequences[micro->first_sequence + s];
        size_t row = (size_t)l->arrays.row_start[s];
        size_t step_row = l->rows.base[index] + row;
        struct objective_sequence input = {
            .count = sequence->sample->completion_count,
            .logprob = l->logprob + row,
            .old = l->recompute_old ? l->rows.old + step_row : l->arrays.behaviour + row,
            .behaviour = l->arrays.behaviour + row,
            .reference = l->args.reference_image != NULL ? l->rows.reference + step_row : NULL,
            .entropy = l->entropy + row,
            .advantage = l->sample_advantage[sequence->index],
            .version = l->arrays.version + row,
            .version_now = l->version,
            .on_version = first && sampled_by(sequence->sample, l->version)};
        objective_sequence(&l->objective, &input, l->g_logprob + row, l->g_entropy + row, stats);
    }
}

static rl_status reduce(struct learner *l, struct objective_stats *stats)
{
    struct collective *c = l->args.collective;
    RL_TRY(collective_sum_float(c, l->grad, l->args.layout->master_count));
    RL_TRY(collective_sum_double(c, objective_stats_sums(stats), OBJECTIVE_SUM_COUNT));
    RL_TRY(collective_max_double(c, objective_stats_maxima(stats), OBJECTIVE_MAX_COUNT));
    return collective_min_double(c, objective_stats_minima(stats), OBJECTIVE_MIN_COUNT);
}

static rl_status update(struct learner *l, const struct objective_stats *stats,
                        struct learner_report *report)
{
    struct optimizer_report done;
    double denominator = objective_denominator(&l->objective, stats);
    optimizer_step(l->optimizer, l->args.master, l->grad, denominator > 0 ? 1.0 / denominator : 0,
                   l->args.pool, &done);
    report->learning_rate = done.learning_rate;
    if (done.outcome == OPTIMIZER_UPDATED) {
        report->grad_norm += done.grad_norm;
        report->updates++;
        return refresh_image(l);
    }
    report->skipped += done.outcome == OPTIMIZER_SKIPPED_NONFINITE;
    return RL_OK;
}

static rl_status run_minibatch(struct learner *l, const struct batcher_plan *plan, uint32_t index,
                               struct learner_report *report)
{
    const struct batcher_minibatch *mini = &plan->minibatches[index];
    struct objective_stats stats;
    double start = rl_clock_now_s(NULL);
    objective_stats_init(&stats);
    memset(l->grad, 0, (size_t)l->args.layout->master_count * sizeof(float));
    for (uint32_t i = 0; i < mini->microbatch_count; i++) {
        uint32_t micro = mini->first_microbatch + i;
        RL_TRY(forward_microbatch(l, plan, micro, l->image, l->logprob, l->entropy));
        objective_of_microbatch(l, plan, micro, index == 0, &stats);
        model_backward(
            &l->context, l->image, &l->kv, &l->arrays.batch, l->workspace,
            &(struct model_backward_args){
                l->g_logprob, l->objective.entropy_coef != 0 ? l->g_entropy : NULL, l->grad});
    }
    double middle = rl_clock_now_s(NULL);
    RL_TRY(reduce(l, &stats));
    RL_TRY(update(l, &stats, report));
    report->loss += objective_loss(&l->objective, &stats);
    objective_stats_merge(&report->objective, &stats);
    report->forward_backward_s += middle - start;
    report->update_s += rl_clock_now_s(NULL) - middle;
    return RL_OK;
}

/* --- the step
 * ------------------------------------------------------------------------------------------ */

static rl_status prepare(struct learner *l, struct trajectory_group *const *groups, uint32_t count,
                         const struct batcher_plan *plan, struct learner_report *report)
{
    size_t samples = 0;
    for (uint32_t i = 0; i < count; i++) {
        samples += groups[i]->sample_count;
        for (uint32_t s = 0; s < groups[i]->sample_count; s++) {
            const struct trajectory *sample = &groups[i]->samples[s];
            if (sample->completion_count > 0) {
                report->tokens += sample->prompt_count + sample->completion_count - 1;
            }
        }
    }
    RL_TRY(grow_activations(l, plan));
    RL_TRY(grow_step_rows(l, plan));
    RL_TRY(grow_samples(l, samples));
    RL_TRY(fixed_logprobs(l, plan));
    if (l->kl_in_reward) {
        RL_TRY(penalties(l, plan, samples));
    }
    return advantage_of_groups(&l->advantage, groups, count,
                               l->kl_in_reward ? l->sample_penalty : NULL, l->sample_advantage,
                               &report->advantage);
}

static rl_status finish(struct learner *l, struct learner_report *report)
{
    double start = rl_clock_now_s(NULL);
    if (report->updates > 0) {
        report->version = l->version + 1;
        report->hash = hash_image(l);
    }
    l->skipped_in_a_row = report->skipped > 0 && report->updates == 0 ? l->skipped_in_a_row + 1 : 0;
    report->publish_s = rl_clock_now_s(NULL) - start;
    if (l->skipped_in_a_row >= LEARNER_SKIPS_MAX) {
        return rl_fail(RL_NONFINITE, "learner: %d steps in a row without one finite gradient",
                       LEARNER_SKIPS_MAX);
    }
    return RL_OK;
}

rl_status learner_step(struct learner *learner, struct trajectory_group *const *groups,
                       uint32_t count, uint64_t step, struct learner_report *report)
{
    struct learner *l = learner;
    struct batcher_plan *plan = NULL;
    rl_status status = RL_OK;
    double start = rl_clock_now_s(NULL);
    *report = (struct learner_report){.version = l->version};
    objective_stats_init(&report->objective);
    l->batcher.step = step;
    RL_TRY(batcher_plan_create(&l->batcher, groups, count, &plan));
    RL_TRY_GOTO(prepare(l, groups, count, plan, report), status, done);
    report->prepare_s = rl_clock_now_s(NULL) - start;
    for (uint32_t i = 0; i < plan->minibatch_count; i++) {
        RL_TRY_GOTO(run_minibatch(l, plan, i, report), status, done);
    }
    report->loss /= plan->minibatch_count;
    report->grad_norm /= report->updates > 0 ? (double)report->updates : 1.0;
    status = finish(l, report);
done:
    batcher_plan_destroy(plan);
    return status;
}

uint32_t learner_version(const struct learner *learner)
{
    return learner->version;
}

float *learner_master(struct learner *learner)
{
    return learner->args.master;
}

struct optimizer_state *learner_optimizer(struct learner *learner)
{
    return optimizer_state(learner->optimizer);
}

/* --- probe
 * --------------------------------------------------------------------------------------------- */

static rl_status probe_microbatch(struct learner *l, const struct batcher_plan *plan,
                                  uint32_t index, double *largest, uint64_t *tokens)
{
    const struct batcher_microbatch *micro = &plan->microbatches[index];
    RL_TRY(forward_microbatch(l, plan, index, l->image, l->logprob, NULL));
    for (uint32_t s = 0; s < micro->sequence_count; s++) {
        const struct trajectory *sample = plan->sequences[micro->first_sequence + s].sample;
        const float *logprob = l->logprob + l->arrays.row_start[s];
        if (!sampled_by(sample, l->version)) {
            continue;
        }
        for (uint32_t i = 0; i < sample->completion_count; i++) {
            double gap = fabs((double)logprob[i] - (double)sample->logprob[i]);
            if (!isfinite(gap)) {
                return rl_fail(RL_NONFINITE, "probe: a log-prob is not finite");
            }
            *largest = gap > *largest ? gap : *largest;
        }
        *tokens += sample->completion_count;
    }
    return RL_OK;
}

rl_status learner_probe(struct learner *learner, struct trajectory_group *const *groups,
                        uint32_t count, double *largest, uint64_t *tokens)
{
    struct batcher_options options = learner->batcher;
    struct batcher_plan *plan = NULL;
    rl_status status = RL_OK;
    double most = 0;
    uint64_t seen = 0;
    options.ranks = 1;
    options.rank = 0;
    options.mask_truncated = false;
    RL_TRY(batcher_plan_create(&options, groups, count, &plan));
    RL_TRY_GOTO(grow_activations(learner, plan), status, done);
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        RL_TRY_GOTO(probe_microbatch(learner, plan, i, &most, &seen), status, done);
    }
    *largest = most;
    *tokens = seen;
done:
    batcher_plan_destroy(plan);
    return status;
}
