/* Owns the memory of trajectories and groups and the rules that a group must satisfy wherever it
 * arrives (from a sampler, over the wire, from a file). Invariant: the three arrays of a sample lie
 * in one block that starts at `tokens`. */
#include "core/trajectory.h"

#include "core/log.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

rl_status trajectory_group_create(uint32_t sample_count, struct trajectory_group **out)
{
    struct trajectory_group *group = calloc(1, sizeof *group);
    struct trajectory *samples = calloc(sample_count > 0 ? sample_count : 1, sizeof *samples);
    if (group == NULL || samples == NULL) {
        free(samples);
        free(group);
        return rl_fail(RL_NO_MEMORY, "no memory for a group of %" PRIu32 " samples", sample_count);
    }
    for (uint32_t i = 0; i < sample_count; i++) {
        samples[i].sample_index = i;
    }
    group->sample_count = sample_count;
    group->samples = samples;
    *out = group;
    return RL_OK;
}

void trajectory_group_destroy(struct trajectory_group *group)
{
    if (group == NULL) {
        return;
    }
    for (uint32_t i = 0; i < group->sample_count; i++) {
        free(group->samples[i].tokens);
    }
    free(group->samples);
    free(group);
}

/* memcpy that allows (NULL, 0). */
static void trajectory_copy_array(void *to, const void *from, size_t bytes)
{
    if (bytes > 0) {
        memcpy(to, from, bytes);
    }
}

rl_status trajectory_set_tokens(struct trajectory *sample, const int32_t *tokens,
                                const float *logprob, const uint32_t *version,
                                uint32_t prompt_count, uint32_t completion_count)
{
    size_t total = (size_t)prompt_count + completion_count;
    size_t words = total + (size_t)completion_count * 2;
    int32_t *block = malloc((words > 0 ? words : 1) * sizeof *block);
    if (block == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a trajectory of %zu tokens", total);
    }
    float *block_logprob = (float *)(void *)(block + total);
    uint32_t *block_version = (uint32_t *)(void *)(block + total + completion_count);
    trajectory_copy_array(block, tokens, total * sizeof *tokens);
    trajectory_copy_array(block_logprob, logprob, completion_count * sizeof *logprob);
    trajectory_copy_array(block_version, version, completion_count * sizeof *version);
    free(sample->tokens);
    sample->tokens = block;
    sample->logprob = block_logprob;
    sample->version = block_version;
    sample->prompt_count = prompt_count;
    sample->completion_count = completion_count;
    return RL_OK;
}

static rl_status trajectory_copy(const struct trajectory *from, struct trajectory *to)
{
    *to = *from;
    to->tokens = NULL;
    to->logprob = NULL;
    to->version = NULL;
    if (from->tokens == NULL) {
        return RL_OK;
    }
    return trajectory_set_tokens(to, from->tokens, from->logprob, from->version, from->prompt_count,
                                 from->completion_count);
}

rl_status trajectory_group_copy(const struct trajectory_group *group, struct trajectory_group **out)
{
    struct trajectory_group *copy = NULL;
    RL_TRY(trajectory_group_create(group->sample_count, &copy));
    struct trajectory *samples = copy->samples;
    *copy = *group;
    copy->samples = samples;
    for (uint32_t i = 0; i < group->sample_count; i++) {
        rl_status status = trajectory_copy(&group->samples[i], &samples[i]);
        if (status != RL_OK) {
            trajectory_group_destroy(copy);
            return status;
        }
    }
    *out = copy;
    return RL_OK;
}

#define TRAJECTORY_BAD(format, ...)                                                                \
    rl_fail(RL_INVALID, "group of ticket %" PRIu64 ", sample %" PRIu32 ": " format, group->ticket, \
            index, __VA_ARGS__)

static rl_status trajectory_check_tokens(const struct trajectory_group *group, uint32_t index)
{
    const struct trajectory *sample = &group->samples[index];
    size_t total = (size_t)sample->prompt_count + sample->completion_count;
    if (total > 0 && sample->tokens == NULL) {
        return TRAJECTORY_BAD("counts %zu tokens but holds none", total);
    }
    if (sample->completion_count > 0 && (sample->logprob == NULL || sample->version == NULL)) {
        return TRAJECTORY_BAD("%" PRIu32 " sampled tokens without logprob or version",
                              sample->completion_count);
    }
    for (size_t i = 0; i < total; i++) {
        if (sample->tokens[i] < 0) {
            return TRAJECTORY_BAD("tokens[%zu] is %" PRId32 ", expected >= 0", i,
                                  sample->tokens[i]);
        }
    }
    if (!(sample->kept_mass >= 0.0f && sample->kept_mass <= 1.0f)) {
        return TRAJECTORY_BAD("kept_mass is %g, expected 0 .. 1", (double)sample->kept_mass);
    }
    for (uint32_t i = 0; i < sample->completion_count; i++) {
        if (!isfinite(sample->logprob[i]) || sample->logprob[i] > 0.0f) {
            return TRAJECTORY_BAD("logprob[%" PRIu32 "] is %g, expected finite and <= 0", i,
                                  (double)sample->logprob[i]);
        }
    }
    return RL_OK;
}

static rl_status trajectory_check_reward(const struct trajectory_group *group, uint32_t index)
{
    const struct trajectory *sample = &group->samples[index];
    if (sample->reward_part_count > RL_REWARD_PARTS_MAX) {
        return TRAJECTORY_BAD("reward_part_count is %" PRIu32 ", expected <= %d",
                              sample->reward_part_count, RL_REWARD_PARTS_MAX);
    }
    if (!sample->reward_valid) {
        return RL_OK;
    }
    if (!isfinite(sample->reward) || !isfinite(sample->accuracy)) {
        return TRAJECTORY_BAD("reward %g, accuracy %g, expected finite", (double)sample->reward,
                              (double)sample->accuracy);
    }
    for (uint32_t i = 0; i < sample->reward_part_count; i++) {
        if (!isfinite(sample->reward_part[i])) {
            return TRAJECTORY_BAD("reward_part[%" PRIu32 "] is %g, expected finite", i,
                                  (double)sample->reward_part[i]);
        }
    }
    return RL_OK;
}

rl_status trajectory_group_check(const struct trajectory_group *group)
{
    if (group->sample_count == 0 || group->samples == NULL) {
        return rl_fail(RL_INVALID, "group of ticket %" PRIu64 ": sample_count is 0", group->ticket);
    }
    for (uint32_t index = 0; index < group->sample_count; index++) {
        const struct trajectory *sample = &group->samples[index];
        if (sample->sample_index != index) {
            return TRAJECTORY_BAD("sample_index is %" PRIu32, sample->sample_index);
        }
        if ((unsigned)sample->finish > RL_FINISH_ABORTED) {
            return TRAJECTORY_BAD("finish is %u, unknown", (unsigned)sample->finish);
        }
        RL_TRY(trajectory_check_tokens(group, index));
        RL_TRY(trajectory_check_reward(group, index));
    }
    return RL_OK;
}

void trajectory_group_versions(const struct trajectory_group *group, uint32_t *oldest,
                               uint32_t *newest)
{
    uint32_t low = UINT32_MAX;
    uint32_t high = 0;
    for (uint32_t i = 0; i < group->sample_count; i++) {
        const struct trajectory *sample = &group->samples[i];
        for (uint32_t t = 0; t < sample->completion_count; t++) {
            low = sample->version[t] < low ? sample->version[t] : low;
            high = sample->version[t] > high ? sample->version[t] : high;
        }
    }
    *oldest = low <= high ? low : 0;
    *newest = high;
}
