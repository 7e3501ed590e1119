/* See replay.h: the groups of one step. Each sample is sampled again by the engine of the run, each
 * token under the version that the record names, and scored again; or it is read from what the run
 * kept. Either way its digest must be the recorded one. */
#include "app/replay.h"

#include "core/log.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* --- what differs
 * ------------------------------------------------------------------------------------ */

/* First token of two samples that is not the same; the shorter one's length if one goes on. */
static uint32_t first_different(const struct trajectory *a, const struct trajectory *b)
{
    uint32_t count =
        a->completion_count < b->completion_count ? a->completion_count : b->completion_count;
    for (uint32_t i = 0; i < count; i++) {
        if (a->tokens[a->prompt_count + i] != b->tokens[b->prompt_count + i] ||
            memcmp(&a->logprob[i], &b->logprob[i], sizeof(float)) != 0 ||
            a->version[i] != b->version[i]) {
            return i;
        }
    }
    return count;
}

static void describe_sample(struct replay *r, uint64_t ticket, const struct trajectory *kept,
                            const struct trajectory *made)
{
    uint64_t step = r->step + 1;
    uint32_t at = first_different(kept, made);
    if (at < kept->completion_count && at < made->completion_count) {
        replay_differs(r, step,
                       "ticket %" PRIu64 ", sample %" PRIu32 ", token %" PRIu32
                       ": recorded id %" PRId32 " with log-prob %.9g by version %" PRIu32
                       "; replayed id %" PRId32 " with log-prob %.9g by version %" PRIu32,
                       ticket, kept->sample_index, at, kept->tokens[kept->prompt_count + at],
                       (double)kept->logprob[at], kept->version[at],
                       made->tokens[made->prompt_count + at], (double)made->logprob[at],
                       made->version[at]);
    } else if (kept->completion_count != made->completion_count) {
        replay_differs(r, step,
                       "ticket %" PRIu64 ", sample %" PRIu32 ", token %" PRIu32
                       ": recorded %" PRIu32 " tokens, replayed %" PRIu32,
                       ticket, kept->sample_index, at, kept->completion_count,
                       made->completion_count);
    } else if (kept->reward_valid != made->reward_valid || kept->reward != made->reward ||
               kept->accuracy != made->accuracy) {
        replay_differs(r, step,
                       "ticket %" PRIu64 ", sample %" PRIu32
                       ": recorded reward %.9g, replayed %.9g (all tokens are equal)",
                       ticket, kept->sample_index, (double)kept->reward, (double)made->reward);
    }
}

/* Without the recorded tokens: what the record itself says of the sample. */
static void describe_runs(struct replay *r, const struct event_step *step,
                          const struct event_group *group, const struct trajectory_group *made)
{
    for (uint32_t s = 0; s < group->sample_count && s < made->sample_count; s++) {
        const struct event_sample *sample = &step->samples[group->first_sample + s];
        if (sample->completion_count != made->samples[s].completion_count) {
            replay_differs(r, step->step,
                           "ticket %" PRIu64 ", sample %" PRIu32 ": recorded %" PRIu32
                           " tokens, replayed %" PRIu32,
                           group->ticket, s, sample->completion_count,
                           made->samples[s].completion_count);
        }
    }
    replay_differs(r, step->step,
                   "ticket %" PRIu64 ": its tokens, log-probs or rewards are not the recorded ones "
                   "(no rollout segment holds them to compare with)",
                   group->ticket);
}

static rl_status describe(struct replay *r, const struct event_step *step,
                          const struct event_group *group, const struct trajectory_group *made)
{
    const struct trajectory_group *kept = NULL;
    rl_status status = replay_segments_find(&r->segments, step->step, group->ticket, &kept);
    if (status == RL_OK && event_group_digest(kept) == group->digest &&
        kept->sample_count == made->sample_count) {
        for (uint32_t s = 0; s < kept->sample_count; s++) {
            describe_sample(r, group->ticket, &kept->samples[s], &made->samples[s]);
        }
    }
    describe_runs(r, step, group, made);
    return status == RL_NOT_FOUND ? RL_OK : status;
}

/* --- generating
 * -------------------------------------------------------------------------------------- */

static struct device_source find_image(void *arg, uint32_t version)
{
    return (struct device_source){.data = replay_image(arg, version)};
}

static bool has_versions(const struct replay *r, const struct event_step *step,
                         const struct event_group *group)
{
    for (uint32_t s = 0; s < group->sample_count; s++) {
        const struct event_sample *sample = &step->samples[group->first_sample + s];
        for (uint32_t i = 0; i < sample->run_count; i++) {
            if (replay_image(r, step->runs[sample->first_run + i].version) == NULL) {
                return false;
            }
        }
    }
    return true;
}

/* The switches of every sample of a group: the runs of its versions, as they were recorded. */
static rl_status submit(struct replay *r, const struct event_step *step,
                        const struct event_group *group)
{
    struct rollout_schedule *schedule = calloc(group->sample_count, sizeof(*schedule));
    struct rollout_switch *switches = calloc((size_t)step->run_count + 1, sizeof(*switches));
    rl_status status = RL_OK;
    if (schedule == NULL || switches == NULL) {
        status = rl_fail(RL_NO_MEMORY, "replay: out of memory for a schedule");
    }
    for (uint32_t i = 0; status == RL_OK && i < step->run_count; i++) {
        switches[i] = (struct rollout_switch){step->runs[i].position, step->runs[i].version};
    }
    for (uint32_t s = 0; status == RL_OK && s < group->sample_count; s++) {
        const struct event_sample *sample = &step->samples[group->first_sample + s];
        /* A sample without tokens ended at its first pass; which weights made it was lost with it.
         */
        bool empty = sample->run_count == 0;
        switches[step->run_count] = (struct rollout_switch){.version = learner_version(r->learner)};
        schedule[s] = (struct rollout_schedule){.count = empty ? 1 : sample->run_count,
                                                .switches = empty ? &switches[step->run_count]
                                                                  : &switches[sample->first_run]};
    }
    if (status == RL_OK && group->prompt_id >= prompts_count(r->prompts)) {
        status =
            rl_fail(RL_CORRUPT,
                    "replay: ticket %" PRIu64 " is of prompt %" PRIu64 ", and there are %" PRIu64,
                    group->ticket, group->prompt_id, prompts_count(r->prompts));
    }
    if (status == RL_OK) {
        status = sampler_submit_scheduled(r->sampler, group->ticket, group->prompt_id, group->epoch,
                                          group->sample_count, schedule);
    }
    free(switches);
    free(schedule);
    return status;
}

/* A sample that could not be scored in the run cannot be here either. */
static void forget_rewards(const struct event_step *step, const struct event_group *group,
                           struct trajectory_group *made)
{
    for (uint32_t s = 0; s < made->sample_count && s < group->sample_count; s++) {
        struct trajectory *sample = &made->samples[s];
        if (step->samples[group->first_sample + s].unscored) {
            memset(sample->reward_part, 0, sizeof(sample->reward_part));
            sample->reward_valid = false;
            sample->reward = 0.0F;
            sample->accuracy = 0.0F;
        }
    }
}

static rl_status take_finished(struct replay *r, const struct event_step *step,
                               struct trajectory_group **groups, uint32_t *missing)
{
    struct trajectory_group *group = NULL;
    while (sampler_take(r->sampler, &group) == RL_OK) {
        uint32_t g = 0;
        while (g < step->group_count &&
               (groups[g] != NULL || step->groups[g].ticket != group->ticket)) {
            g++;
        }
        if (g == step->group_count) {
            trajectory_group_destroy(group);
            return rl_fail(RL_INTERNAL, "replay: a group that nobody asked for");
        }
        forget_rewards(step, &step->groups[g], group);
        groups[g] = group;
        r->totals.groups_generated++;
        (*missing)--;
    }
    return RL_OK;
}

/* Generate every group that is not there yet. */
static rl_status generate(struct replay *r, const struct event_step *step,
                          struct trajectory_group **groups, uint32_t missing)
{
    uint32_t next = 0;
    uint32_t version = learner_version(r->learner);
    RL_TRY(sampler_load_weights(r->sampler, find_image(r, version), version));
    sampler_set_image_source(r->sampler, find_image, r);
    while (missing > 0) {
        rl_status status = RL_OK;
        while (next < step->group_count && status == RL_OK) {
            status = groups[next] == NULL ? submit(r, step, &step->groups[next]) : RL_OK;
            next += status == RL_OK;
        }
        if (status != RL_AGAIN) {
            RL_TRY(status);
        }
        RL_TRY(sampler_step(r->sampler));
        RL_TRY(take_finished(r, step, groups, &missing));
    }
    return RL_OK;
}

/* --- all groups of a step
 * ---------------------------------------------------------------------------- */

/* From the segments if that is wanted or the only way. */
static rl_status take_recorded(struct replay *r, const struct event_step *step,
                               const struct event_group *group, struct trajectory_group **out)
{
    const struct trajectory_group *kept = NULL;
    bool can_generate = has_versions(r, step, group);
    if (can_generate && !r->options.recorded) {
        return RL_NOT_FOUND;
    }
    rl_status status = replay_segments_find(&r->segments, step->step, group->ticket, &kept);
    if (status == RL_NOT_FOUND && !can_generate) {
        rl_fail(RL_NOT_FOUND,
                "replay: step %" PRIu64 ", ticket %" PRIu64
                ": a version that sampled it is older than where the replay began, and no rollout "
                "segment holds it; begin earlier (without --from)",
                step->step, group->ticket);
        return RL_INVALID;
    }
    RL_TRY(status);
    r->totals.groups_recorded++;
    return trajectory_group_copy(kept, out);
}

static rl_status check(struct replay *r, const struct event_step *step,
                       struct trajectory_group *const *groups, bool *equal)
{
    for (uint32_t g = 0; g < step->group_count; g++) {
        if (event_group_digest(groups[g]) != step->groups[g].digest) {
            return describe(r, step, &step->groups[g], groups[g]);
        }
        r->totals.samples += groups[g]->sample_count;
        for (uint32_t s = 0; s < groups[g]->sample_count; s++) {
            r->totals.tokens += groups[g]->samples[s].completion_count;
        }
    }
    for (uint32_t s = 0; s < step->sample_count; s++) {
        r->totals.switched += step->samples[s].run_count > 1;
    }
    *equal = true;
    return RL_OK;
}

rl_status replay_groups_make(struct replay *r, const struct event_step *step,
                             struct trajectory_group **groups, bool *equal)
{
    uint32_t missing = 0;
    *equal = false;
    for (uint32_t g = 0; g < step->group_count; g++) {
        rl_status status = take_recorded(r, step, &step->groups[g], &groups[g]);
        missing += status == RL_NOT_FOUND;
        if (status != RL_NOT_FOUND) {
            RL_TRY(status);
        }
    }
    RL_TRY(generate(r, step, groups, missing));
    return check(r, step, groups, equal);
}
