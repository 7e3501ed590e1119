/* See learner.h: promise P1 measured on any groups. */
#include "trainer/learner_internal.h"

#include "core/log.h"

#include <math.h>

bool learner_sampled_by(const struct trajectory *sample, uint32_t version)
{
    for (uint32_t i = 0; i < sample->completion_count; i++) {
        if (sample->version[i] != version) {
            return false;
        }
    }
    return true;
}

static rl_status probe_microbatch(struct learner *l, const struct batcher_plan *plan,
                                  uint32_t index, double *largest, uint64_t *tokens)
{
    const struct batcher_microbatch *micro = &plan->microbatches[index];
    RL_TRY(learner_forward_microbatch(l, plan, index, l->image, l->logprob, NULL));
    for (uint32_t s = 0; s < micro->sequence_count; s++) {
        const struct trajectory *sample = plan->sequences[micro->first_sequence + s].sample;
        const float *logprob = l->logprob + l->arrays.row_start[s];
        if (!learner_sampled_by(sample, l->version)) {
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
    RL_TRY_GOTO(learner_grow_activations(learner, plan), status, done);
    for (uint32_t i = 0; i < plan->microbatch_count; i++) {
        RL_TRY_GOTO(probe_microbatch(learner, plan, i, &most, &seen), status, done);
    }
    *largest = most;
    *tokens = seen;
done:
    batcher_plan_destroy(plan);
    return status;
}
