/* See learner_internal.h: what the objective is given. The invariant: log-probs of the step's start
 * and of the reference are computed once, before the first update, and everything that is measured
 * over more than this rank's sequences is summed over the learners before anybody uses it. */
#include "trainer/learner_internal.h"

#include "core/log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint32_t fault_of_rows(const float *rows, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (!isfinite(rows[i])) {
            return GUARD_LOGPROB;
        }
    }
    return 0;
}

rl_status learner_fixed_logprobs(struct learner *l, const struct batcher_plan *plan)
{
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        if (l->rows.old != NULL) {
            float *old = l->rows.old + l->rows.base[i];
            RL_TRY(learner_forward_microbatch(l, plan, i, l->image, old, NULL));
            l->faults |= fault_of_rows(old, plan->microbatches[i].row_count);
        }
        if (l->args.reference_image != NULL) {
            float *reference = l->rows.reference + l->rows.base[i];
            RL_TRY(learner_forward_microbatch(l, plan, i, l->reference, reference, NULL));
            l->faults |= fault_of_rows(reference, plan->microbatches[i].row_count);
        }
    }
    return RL_OK;
}

/* Each rank knows its own sequences; zeros stand for the others' until the sum. */
rl_status learner_penalties(struct learner *l, const struct batcher_plan *plan, size_t samples)
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

/* KL in the reward of every token of the step; as above. */
static rl_status token_penalties(struct learner *l, const struct batcher_plan *plan, size_t tokens)
{
    memset(l->token_penalty, 0, tokens * sizeof(float));
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        const struct batcher_microbatch *micro = &plan->microbatches[i];
        size_t row = l->rows.base[i];
        for (uint32_t s = 0; s < micro->sequence_count; s++) {
            const struct batcher_sequence *sequence = &plan->sequences[micro->first_sequence + s];
            float *out = l->token_penalty + l->token_first[sequence->index];
            for (uint32_t t = 0; t < sequence->sample->completion_count; t++, row++) {
                out[t] = (float)objective_kl_penalty(l->args.config->loss.beta, l->rows.old + row,
                                                     l->rows.reference + row, NULL, 1);
            }
        }
    }
    return collective_sum_float(l->args.collective, l->token_penalty, (int64_t)tokens);
}

/* Of this rank's sequences only: nothing is measured over the batch. */
static void vtrace_advantages(struct learner *l, const struct batcher_plan *plan)
{
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        const struct batcher_microbatch *micro = &plan->microbatches[i];
        size_t row = l->rows.base[i];
        for (uint32_t s = 0; s < micro->sequence_count; s++) {
            const struct batcher_sequence *sequence = &plan->sequences[micro->first_sequence + s];
            const struct trajectory *sample = sequence->sample;
            advantage_vtrace(&l->advantage, l->sample_advantage[sequence->index], l->rows.old + row,
                             sample->logprob, sample->completion_count,
                             l->token_advantage + l->token_first[sequence->index]);
            row += sample->completion_count;
        }
    }
}

rl_status learner_token_advantages(struct learner *l, struct trajectory_group *const *groups,
                                   uint32_t count, const struct batcher_plan *plan)
{
    size_t tokens = advantage_token_count(groups, count);
    size_t index = 0;
    size_t first = 0;
    RL_TRY(learner_grow_tokens(l, tokens));
    for (uint32_t g = 0; g < count; g++) {
        for (uint32_t s = 0; s < groups[g]->sample_count; s++) {
            l->token_first[index++] = first;
            first += groups[g]->samples[s].completion_count;
        }
    }
    if (l->advantage.mode == CONFIG_ADV_VTRACE) {
        vtrace_advantages(l, plan);
        return RL_OK;
    }
    if (l->kl_in_reward) {
        RL_TRY(token_penalties(l, plan, tokens));
    }
    advantage_of_tokens(&l->advantage, groups, count, l->sample_advantage,
                        l->kl_in_reward ? l->token_penalty : NULL, l->token_advantage);
    return RL_OK;
}

static rl_status reduce_sum(void *collective, double *values, int64_t count)
{
    return collective_sum_double(collective, values, count);
}

static rl_status reduce_max(void *collective, double *values, int64_t count)
{
    return collective_max_double(collective, values, count);
}

/* Behaviour, old and proximal log-probs of a sequence whose rows of the step begin at `row`. */
static void fill_policies(const struct learner *l, const struct trajectory *sample, size_t row,
                          struct objective_sequence *out)
{
    const float *start = l->needs_old ? l->rows.old + row : NULL;
    out->count = sample->completion_count;
    out->behaviour = sample->logprob;
    out->old = l->recompute_old ? start : sample->logprob;
    out->proximal = l->recompute_old ? NULL : start;
    out->version = sample->version;
    out->version_now = l->version;
}

static rl_status grow_ahead(struct learner *l, size_t count)
{
    if (count <= l->ahead_capacity) {
        return RL_OK;
    }
    free(l->ahead);
    l->ahead_capacity = 0;
    l->ahead = calloc(count, sizeof(*l->ahead));
    if (l->ahead == NULL) {
        return rl_fail(RL_NO_MEMORY, "learner: out of memory for a minibatch");
    }
    l->ahead_capacity = count;
    return RL_OK;
}

rl_status learner_measure_minibatch(struct learner *l, const struct batcher_plan *plan,
                                    const struct batcher_minibatch *mini)
{
    size_t count = 0;
    l->minibatch = (struct objective_minibatch){.gap_limit = INFINITY, .weight_scale = 1};
    if (!objective_needs_measure(&l->objective)) {
        return RL_OK;
    }
    RL_TRY(grow_ahead(l, plan->sequence_count));
    for (uint32_t i = 0; i < mini->microbatch_count; i++) {
        uint32_t index = mini->first_microbatch + i;
        const struct batcher_microbatch *micro = &plan->microbatches[index];
        size_t row = l->rows.base[index];
        for (uint32_t s = 0; s < micro->sequence_count; s++) {
            const struct trajectory *sample = plan->sequences[micro->first_sequence + s].sample;
            l->ahead[count] = (struct objective_sequence){0};
            fill_policies(l, sample, row, &l->ahead[count++]);
            row += sample->completion_count;
        }
    }
    struct objective_reduce reduce = {reduce_sum, reduce_max, l->args.collective};
    return objective_minibatch_measure(&l->objective, l->ahead, (uint32_t)count, &reduce,
                                       &l->minibatch);
}

uint32_t learner_objective_of_microbatch(struct learner *l, const struct batcher_plan *plan,
                                         uint32_t index, bool first, struct objective_stats *stats)
{
    const struct batcher_microbatch *micro = &plan->microbatches[index];
    uint32_t faults = fault_of_rows(l->logprob, micro->row_count);
    for (uint32_t s = 0; s < micro->sequence_count; s++) {
        const struct batcher_sequence *sequence = &plan->sequences[micro->first_sequence + s];
        size_t row = (size_t)l->arrays.row_start[s];
        size_t step_row = l->rows.base[index] + row;
        struct objective_sequence input = {
            .logprob = l->logprob + row,
            .reference = l->args.reference_image != NULL ? l->rows.reference + step_row : NULL,
            .entropy = l->entropy + row,
            .advantage = l->sample_advantage[sequence->index],
            .minibatch = &l->minibatch,
            .on_version = first && learner_sampled_by(sequence->sample, l->version)};
        if (advantage_by_token(&l->advantage)) {
            input.token_advantage = l->token_advantage + l->token_first[sequence->index];
        }
        input.teacher = learner_teacher_rows(l, micro->first_sequence + s, row);
        input.g_divergence =
            l->teaching.g_divergence != NULL ? l->teaching.g_divergence + row : NULL;
        fill_policies(l, sequence->sample, step_row, &input);
        faults |= input.teacher != NULL ? fault_of_rows(input.teacher, input.count) : 0;
        faults |= fault_of_rows(input.behaviour, input.count);
        objective_sequence(&l->objective, &input, l->g_logprob + row, l->g_entropy + row, stats);
    }
    return faults;
}
