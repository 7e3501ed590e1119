/* See learner.h. learner_step is a list of named phases; each fills its part of the report. */
#include "trainer/learner_internal.h"

#include "core/clock.h"
#include "core/hash.h"
#include "core/log.h"
#include "kernels/device.h"
#include "kernels/sampling.h"
#include "trainer/staleness_control.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- life cycle
 * ------------------------------------------------------------------------------------- */

static rl_status set_options(struct learner *l)
{
    const struct rl_config *config = l->args.config;
    struct optimizer_options optimizer;
    int64_t updates = config->run.steps * config->optimizer.updates_per_step;
    optimizer_options_from_config(config, updates, l->args.collective, &optimizer);
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
        .mask_truncated = config->loss.mask_truncated_completions,
        .share_prompts = config->optimizer.share_prompts};
    struct kernel_sampling sampling = {.temperature = (float)config->rollout.temperature};
    /* The very division that sampling makes: anything else would cost the last bit. */
    l->inv_temperature = kernel_sampling_inverse_temperature(&sampling);
    l->recompute_old = config->loss.old_logprob == CONFIG_OLD_RECOMPUTE;
    l->needs_old = objective_needs_proximal(config);
    l->kl_in_reward = config->loss.beta > 0 && config->loss.kl_in == CONFIG_KL_IN_REWARD;
    l->guard_options = (struct guard_options){.norm_score_max = config->alarms.skip_grad_norm_score,
                                              .lag = config->async.max_staleness == CONFIG_AUTO
                                                         ? CONFIG_FIXED_LAG_MAX
                                                         : (uint32_t)config->async.max_staleness};
    l->version_per_step = config->async.enabled && config->async.order == CONFIG_ORDER_FIXED_LAG;
    guard_init(&l->guard);
    return RL_OK;
}

/* Gradient, and images where they are not made in the arena's slots. */
static rl_status make_memory(struct learner *l)
{
    const struct model_layout *layout = l->args.layout;
    struct device *device = layout->device;
    size_t slab_bytes = (size_t)layout->master_count * sizeof(float);
    struct weight_arena *arena = l->args.arena;
    void *memory = NULL;
    RL_TRY(device_buffer_alloc(device, slab_bytes, "gradients", &memory));
    l->grad = memory;
    if (arena == NULL) {
        return device_buffer_alloc(device, layout->image_bytes, "weight image", &l->own_image);
    }
    RL_TRY(weight_arena_add_device(arena, device));
    if (device != NULL) {
        RL_TRY(device_buffer_alloc(device, learner_mask_bytes(layout), "mask of changes", &memory));
        l->own_changed = memory;
    }
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
    l->args.master = NULL;
    l->slot = -1;
    l->context = (struct model_context){
        .layout = args->layout, .kernels = args->kernels, .pool = args->pool};
    batcher_arrays_init(&l->arrays);
    rl_status status = RL_OK;
    RL_TRY_GOTO(model_slab_take(args->layout, args->master, args->layout->master_count,
                                "master weights", &l->master),
                status, fail);
    RL_TRY_GOTO(set_options(l), status, fail);
    if (objective_needs_reference(args->config) && args->reference_image == NULL) {
        status = rl_fail(RL_INVALID, "learner: loss.beta > 0 needs a reference model");
        goto fail;
    }
    RL_TRY_GOTO(learner_frozen_image(l, args->reference_image, &l->reference), status, fail);
    RL_TRY_GOTO(learner_teacher_open(l), status, fail);
    RL_TRY_GOTO(make_memory(l), status, fail);
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
    learner_teacher_close(learner);
    optimizer_destroy(learner->optimizer);
    struct device *device = learner->args.layout->device;
    device_buffer_free(device, learner->own_changed);
    device_buffer_free(device, learner->own_image);
    device_buffer_free(device, learner->grad);
    learner_frozen_free(learner, learner->reference);
    model_slab_fini(learner->args.layout, &learner->master);
    free(learner);
}

struct learner_bytes learner_bytes(const struct model_layout *layout,
                                   const struct rl_config *config, int learners)
{
    size_t slab = (size_t)layout->master_count * sizeof(float);
    int64_t share = optimizer_largest_share(config, layout->master_count, learners);
    bool taught = config->teacher.loss != CONFIG_TEACHER_NONE;
    bool average = taught && config->teacher.policy == CONFIG_TEACHER_EMA;
    bool frozen = taught && config->teacher.policy == CONFIG_TEACHER_INITIAL;
    size_t images = objective_needs_reference(config) + (average || frozen);
    struct learner_bytes bytes = {.masters = slab,
                                  .gradients = slab,
                                  .moments = 2 * (size_t)share * sizeof(float),
                                  .average = average ? slab : 0,
                                  .frozen = images * layout->image_bytes};
    bytes.all = bytes.masters + bytes.gradients + bytes.moments + bytes.average + bytes.frozen;
    return bytes;
}

/* --- updates
 * ------------------------------------------------------------------------------------------ */

/* Gradient, figures and faults of all ranks together. */
static rl_status reduce(struct learner *l, struct objective_stats *stats, uint32_t *faults)
{
    struct collective *c = l->args.collective;
    double bits[] = {(*faults & GUARD_LOGPROB) != 0, (*faults & GUARD_ADVANTAGE) != 0};
    RL_TRY(optimizer_reduce(l->optimizer, c, l->grad, l->args.pool));
    RL_TRY(collective_sum_double(c, objective_stats_sums(stats), OBJECTIVE_SUM_COUNT));
    RL_TRY(collective_max_double(c, objective_stats_maxima(stats), OBJECTIVE_MAX_COUNT));
    RL_TRY(collective_min_double(c, objective_stats_minima(stats), OBJECTIVE_MIN_COUNT));
    RL_TRY(collective_max_double(c, bits, 2));
    *faults = (bits[0] > 0 ? GUARD_LOGPROB : 0) | (bits[1] > 0 ? GUARD_ADVANTAGE : 0);
    return RL_OK;
}

static void skip(struct learner *l, enum guard_verdict verdict, uint32_t faults,
                 struct learner_report *report)
{
    char text[128];
    if (verdict == GUARD_SKIP_OUTLIER) {
        report->outliers++;
        rl_log(RL_LOG_WARN, "update skipped: its gradient norm stands out (%.1f deviations)",
               report->norm_score);
        return;
    }
    char why[160];
    report->skipped++;
    snprintf(why, sizeof(why), "%s%s", faults == GUARD_REVOKED ? "" : "not finite: ",
             guard_faults_text(faults, text, sizeof(text)));
    optimizer_skip(l->optimizer, why);
}

/* New masters and their image, in one pass. */
static rl_status apply(struct learner *l, const struct optimizer_report *would,
                       struct learner_report *report)
{
    struct model_image_diff diff;
    struct optimizer_weights weights = {.master = l->master.data, .grad = l->grad};
    double wait_s;
    bool finite = true;
    RL_TRY(learner_begin_image(l, &weights.image, &wait_s));
    report->slot_wait_s += wait_s;
    weights.diff = learner_image_diff(l, &diff);
    RL_TRY(optimizer_apply(l->optimizer, &weights, would, l->args.pool, &finite));
    report->grad_norm += would->grad_norm;
    report->updates++;
    report->faults |= finite ? 0 : GUARD_WEIGHTS;
    l->image = weights.image;
    return RL_OK;
}

/* Every rank comes to the same verdict: all it is made of was reduced. */
static rl_status update(struct learner *l, const struct objective_stats *stats, uint32_t faults,
                        struct learner_report *report)
{
    struct optimizer_report would;
    double denominator = objective_denominator(&l->objective, stats);
    RL_TRY(optimizer_measure(l->optimizer, l->grad, denominator > 0 ? 1.0 / denominator : 0,
                             l->args.pool, &would));
    report->learning_rate = would.learning_rate;
    bool loss_finite = isfinite(objective_loss(&l->objective, stats));
    faults |= would.outcome == OPTIMIZER_SKIPPED_NONFINITE || !loss_finite ? GUARD_GRADIENT : 0;
    report->faults |= faults;
    if (would.outcome == OPTIMIZER_SKIPPED_EMPTY && faults == 0) {
        return RL_OK;
    }
    report->norm_score = fmax(report->norm_score, guard_norm_score(&l->guard, would.grad_norm));
    enum guard_verdict verdict = guard_judge(&l->guard, &l->guard_options, faults, would.grad_norm);
    if (verdict != GUARD_APPLY) {
        skip(l, verdict, faults, report);
        return RL_OK;
    }
    return apply(l, &would, report);
}

static void add_losses(const struct learner *l, const struct objective_stats *stats,
                       struct learner_report *report)
{
    double divisor = objective_denominator(&l->objective, stats);
    report->loss += objective_loss(&l->objective, stats);
    report->policy_loss += divisor > 0 ? stats->sum.policy_loss / divisor : 0;
    report->distill_loss += divisor > 0 ? stats->sum.distill_loss / divisor : 0;
}

static rl_status run_minibatch(struct learner *l, const struct batcher_plan *plan, uint32_t index,
                               struct learner_report *report)
{
    const struct batcher_minibatch *mini = &plan->minibatches[index];
    struct objective_stats stats;
    uint32_t faults = l->faults;
    double start = rl_clock_now_s(NULL);
    objective_stats_init(&stats);
    RL_TRY(learner_measure_minibatch(l, plan, mini));
    size_t bytes = (size_t)l->args.layout->master_count * sizeof(float);
    l->args.kernels->zero(&(struct kernel_zero_args){l->grad, bytes}, l->args.pool);
    for (uint32_t i = 0; i < mini->microbatch_count; i++) {
        uint32_t micro = mini->first_microbatch + i;
        RL_TRY(learner_teacher_microbatch(l, plan, micro));
        RL_TRY(learner_forward_microbatch(l, plan, micro, l->image, l->logprob, l->entropy));
        faults |= learner_objective_of_microbatch(l, plan, micro, index == 0, &stats);
        learner_teacher_divergence(l, &stats);
        model_backward(
            &l->context, l->image, &l->kv, &l->arrays.batch, l->workspace,
            &(struct model_backward_args){
                l->g_logprob, l->objective.entropy_coef != 0 ? l->g_entropy : NULL, l->grad});
    }
    RL_TRY(device_wait(l->args.pool)); /* what was queued belongs to this part's time */
    double middle = rl_clock_now_s(NULL);
    RL_TRY(reduce(l, &stats, &faults));
    double reduced = rl_clock_now_s(NULL);
    RL_TRY(update(l, &stats, faults, report));
    add_losses(l, &stats, report);
    objective_stats_merge(&report->objective, &stats);
    report->forward_backward_s += middle - start;
    report->reduce_s += reduced - middle;
    report->update_s += rl_clock_now_s(NULL) - reduced;
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
    RL_TRY(learner_teacher_prepare(l, groups, plan));
    report->teacher_lambda = l->objective.teacher.lambda;
    RL_TRY(learner_grow_activations(l, plan));
    RL_TRY(learner_grow_step_rows(l, plan));
    RL_TRY(learner_grow_samples(l, samples));
    RL_TRY(learner_fixed_logprobs(l, plan));
    if (l->kl_in_reward) {
        RL_TRY(learner_penalties(l, plan, samples));
    }
    RL_TRY(advantage_of_groups(&l->advantage, groups, count,
                               l->kl_in_reward ? l->sample_penalty : NULL, l->sample_advantage,
                               &report->advantage));
    for (size_t i = 0; i < samples; i++) {
        bool finite = isfinite(l->sample_advantage[i]) &&
                      (!l->kl_in_reward || isfinite(l->sample_penalty[i]));
        l->faults |= finite ? 0 : GUARD_ADVANTAGE;
    }
    return advantage_by_token(&l->advantage) ? learner_token_advantages(l, groups, count, plan)
                                             : RL_OK;
}

static rl_status finish(struct learner *l, uint64_t step, struct learner_report *report)
{
    double start = rl_clock_now_s(NULL);
    report->action = guard_end_step(&l->guard, &(struct guard_step){.step = step,
                                                                    .updates = report->updates,
                                                                    .skipped = report->skipped,
                                                                    .faults = report->faults});
    if (report->action != GUARD_GO_ON) {
        return RL_OK; /* the caller acts first */
    }
    if (report->updates > 0) {
        learner_teacher_follow(l);
    }
    if (report->updates > 0) {
        RL_TRY(learner_settle_image(l));
    } else if (l->version_per_step) { /* the same weights under the next version */
        RL_TRY(learner_refresh_image(l, &report->slot_wait_s));
    }
    if (report->updates > 0 || l->version_per_step) {
        report->version = l->version + 1;
        report->hash = learner_version_hash(l);
        report->changed_fraction = l->args.history != NULL ? learner_changed_fraction(l) : 0;
    }
    report->publish_s = rl_clock_now_s(NULL) - start;
    return RL_OK;
}

static rl_status train_on(struct learner *l, struct trajectory_group *const *groups, uint32_t count,
                          struct learner_report *report)
{
    struct batcher_plan *plan = NULL;
    rl_status status = RL_OK;
    double start = rl_clock_now_s(NULL);
    l->faults = 0;
    RL_TRY(batcher_plan_create(&l->batcher, groups, count, &plan));
    RL_TRY_GOTO(prepare(l, groups, count, plan, report), status, done);
    report->prepare_s = rl_clock_now_s(NULL) - start;
    for (uint32_t i = 0; i < plan->minibatch_count; i++) {
        RL_TRY_GOTO(run_minibatch(l, plan, i, report), status, done);
        if ((report->faults & GUARD_WEIGHTS) != 0) {
            break;
        }
    }
    report->loss /= plan->minibatch_count;
    report->policy_loss /= plan->minibatch_count;
    report->distill_loss /= plan->minibatch_count;
    report->grad_norm /= report->updates > 0 ? (double)report->updates : 1.0;
done:
    batcher_plan_destroy(plan);
    return status;
}

rl_status learner_step(struct learner *learner, struct trajectory_group *const *groups,
                       uint32_t count, uint64_t step, struct learner_report *report)
{
    struct learner *l = learner;
    *report = (struct learner_report){.version = l->version};
    objective_stats_init(&report->objective);
    l->batcher.step = step;
    report->faults = guard_examine(&l->guard, groups, count, step);
    if (report->faults != 0) {
        skip(l, GUARD_SKIP, report->faults, report); /* every rank has the same groups */
    } else {
        RL_TRY(train_on(l, groups, count, report));
    }
    return finish(l, step, report);
}

rl_status learner_roll_back(struct learner *learner, uint32_t version,
                            struct learner_report *report)
{
    struct learner *l = learner;
    learner_push(l);
    learner_forget(l);
    if (!optimizer_weights_finite(l->optimizer, l->master.data, l->args.pool)) {
        return rl_fail(RL_NONFINITE, "the weights to go back to are not finite");
    }
    guard_rolled_back(&l->guard, &l->guard_options, l->batcher.step, version, l->version + 1);
    optimizer_state(l->optimizer)->rate_scale = l->guard.rate_scale;
    RL_TRY(learner_refresh_image(l, &report->slot_wait_s));
    report->version = l->version + 1;
    report->hash = learner_version_hash(l);
    return RL_OK;
}

uint32_t learner_version(const struct learner *learner)
{
    return learner->version;
}

float *learner_master(struct learner *learner)
{
    return learner->master.host;
}

uint64_t learner_master_hash(const struct learner *learner)
{
    const struct model_slab *master = &learner->master;
    uint64_t hash = 0;
    if (learner->args.layout->device == NULL) {
        return rl_hash(master->data, master->bytes);
    }
    struct kernel_hash_args args = {.words = (const uint32_t *)(const void *)master->data,
                                    .count = learner->args.layout->master_count,
                                    .sum = &hash};
    learner->args.kernels->hash_words(&args, learner->args.pool); /* the next wait says an error */
    return hash;
}

struct optimizer_state *learner_optimizer(struct learner *learner)
{
    return optimizer_state(learner->optimizer);
}

struct optimizer *learner_shared_optimizer(struct learner *learner)
{
    return optimizer_is_shared(learner->optimizer) ? learner->optimizer : NULL;
}

struct guard_state *learner_guard(struct learner *learner)
{
    return &learner->guard;
}

rl_status learner_restore_guard(struct learner *learner, const struct guard_state *state)
{
    RL_TRY(guard_check(state));
    learner->guard = *state;
    optimizer_state(learner->optimizer)->rate_scale = state->rate_scale;
    return RL_OK;
}
