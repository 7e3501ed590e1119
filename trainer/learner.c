/* See learner.h. learner_step is a list of named phases; each fills its part of the report. */
#include "trainer/learner_internal.h"

#include "core/clock.h"
#include "core/log.h"
#include "kernels/device.h"
#include "kernels/sampling.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LEARNER_SKIPS_MAX = 3 };
static const double publish_timeout_s = 60;

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

void learner_destroy(struct learner *learner)
{
    if (learner == NULL) {
        return;
    }
    learner_free_memory(learner);
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

/* --- passes
 * ------------------------------------------------------------------------------------------- */

/* Log-probs that stay fixed during the step: of the policy at its start and of the reference. */
static rl_status fixed_logprobs(struct learner *l, const struct batcher_plan *plan)
{
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        if (l->rows.old != NULL) {
            RL_TRY(learner_forward_microbatch(l, plan, i, l->image, l->rows.old + l->rows.base[i],
                                              NULL));
        }
        if (l->args.reference_image != NULL) {
            RL_TRY(learner_forward_microbatch(l, plan, i, l->args.reference_image,
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
            .on_version = first && learner_sampled_by(sequence->sample, l->version)};
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
        RL_TRY(learner_forward_microbatch(l, plan, micro, l->image, l->logprob, l->entropy));
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
    RL_TRY(learner_grow_activations(l, plan));
    RL_TRY(learner_grow_step_rows(l, plan));
    RL_TRY(learner_grow_samples(l, samples));
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
