/* See wire.h and wire_internal.h: groups, whole and partial. */
#include "transport/wire_internal.h"

#include "core/log.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

enum {
    WIRE_GROUP_FIXED = 48,  /* payload bytes before the samples */
    WIRE_SAMPLE_FIXED = 68, /* bytes of a sample before its arrays */
    WIRE_PARTIAL_FIXED = 8  /* payload bytes before the group */
};

/* Payload bytes of a group, or an error where a limit is passed. */
static rl_status group_bytes(const struct trajectory_group *group, size_t *bytes)
{
    uint64_t total = WIRE_GROUP_FIXED;
    for (uint32_t i = 0; i < group->sample_count; i++) {
        const struct trajectory *sample = &group->samples[i];
        uint64_t tokens = (uint64_t)sample->prompt_count + sample->completion_count;
        if (tokens > WIRE_SAMPLE_TOKENS_MAX) {
            return rl_fail(RL_TOO_LONG,
                           "ticket %" PRIu64 " sample %u: %" PRIu64 " tokens, the limit is %d",
                           group->ticket, i, tokens, WIRE_SAMPLE_TOKENS_MAX);
        }
        total += WIRE_SAMPLE_FIXED + 4 * (tokens + 2 * (uint64_t)sample->completion_count);
        if (total > WIRE_BYTES_MAX) {
            return rl_fail(RL_TOO_LONG, "ticket %" PRIu64 ": the group is larger than %d bytes",
                           group->ticket, WIRE_BYTES_MAX);
        }
    }
    *bytes = (size_t)total;
    return RL_OK;
}

static rl_status group_check(const struct trajectory_group *group, rl_status status)
{
    if (group->sample_count > WIRE_SAMPLES_MAX) {
        return rl_fail(status, "ticket %" PRIu64 ": %u samples, the limit is %d", group->ticket,
                       group->sample_count, WIRE_SAMPLES_MAX);
    }
    if (!isfinite(group->started_s) || !isfinite(group->finished_s)) {
        return rl_fail(status, "ticket %" PRIu64 ": started_s or finished_s is not finite",
                       group->ticket);
    }
    return trajectory_group_check(group) == RL_OK ? RL_OK : status;
}

static void put_sample(struct wire_writer *writer, const struct trajectory *sample)
{
    size_t tokens = (size_t)sample->prompt_count + sample->completion_count;
    put_u32(writer, sample->sample_index);
    put_u32(writer, sample->prompt_count);
    put_u32(writer, sample->completion_count);
    put_u32(writer, (uint32_t)sample->finish);
    put_u32(writer, sample->reward_valid ? 1 : 0);
    put(writer, &sample->reward, sizeof sample->reward);
    put(writer, &sample->accuracy, sizeof sample->accuracy);
    put(writer, &sample->kept_mass, sizeof sample->kept_mass);
    put_u32(writer, sample->reward_part_count);
    put(writer, sample->reward_part, sizeof sample->reward_part);
    put(writer, sample->tokens, tokens * sizeof *sample->tokens);
    put(writer, sample->logprob, sample->completion_count * sizeof *sample->logprob);
    put(writer, sample->version, sample->completion_count * sizeof *sample->version);
}

static void put_group(struct wire_writer *writer, const struct trajectory_group *group)
{
    put_u64(writer, group->ticket);
    put_u64(writer, group->prompt_id);
    put_u32(writer, group->epoch);
    put_u32(writer, group->sample_count);
    put(writer, &group->worker, sizeof group->worker);
    put_u32(writer, 0);
    put_f64(writer, group->started_s);
    put_f64(writer, group->finished_s);
    for (uint32_t i = 0; i < group->sample_count; i++) {
        put_sample(writer, &group->samples[i]);
    }
}

rl_status wire_encode_group(const struct trajectory_group *group, struct channel_message *out)
{
    RL_TRY(group_check(group, RL_INVALID));
    size_t bytes = 0;
    RL_TRY(group_bytes(group, &bytes));
    unsigned char *frame = NULL;
    struct wire_writer writer = {0};
    RL_TRY(wire_frame_begin(bytes, &frame, &writer));
    put_group(&writer, group);
    wire_frame_end(frame, WIRE_GROUP, bytes, out);
    return RL_OK;
}

rl_status wire_encode_partial(uint64_t id, const struct trajectory_group *group,
                              struct channel_message *out)
{
    size_t bytes = 0;
    if (group != NULL) {
        RL_TRY(group_check(group, RL_INVALID));
        RL_TRY(group_bytes(group, &bytes));
    }
    unsigned char *frame = NULL;
    struct wire_writer writer = {0};
    bytes += WIRE_PARTIAL_FIXED;
    RL_TRY(wire_frame_begin(bytes, &frame, &writer));
    put_u64(&writer, id);
    if (group != NULL) {
        put_group(&writer, group);
    }
    wire_frame_end(frame, WIRE_PARTIAL, bytes, out);
    return RL_OK;
}

/* Fixed part of a sample, into a sample that owns no arrays yet. */
static void get_sample_fixed(struct rl_cursor *reader, struct trajectory *sample)
{
    sample->sample_index = rl_cursor_u32(reader);
    sample->prompt_count = rl_cursor_u32(reader);
    sample->completion_count = rl_cursor_u32(reader);
    uint32_t finish = rl_cursor_u32(reader);
    uint32_t valid = rl_cursor_u32(reader);
    rl_cursor_get(reader, &sample->reward, sizeof sample->reward);
    rl_cursor_get(reader, &sample->accuracy, sizeof sample->accuracy);
    rl_cursor_get(reader, &sample->kept_mass, sizeof sample->kept_mass);
    sample->reward_part_count = rl_cursor_u32(reader);
    rl_cursor_get(reader, sample->reward_part, sizeof sample->reward_part);
    if (finish > RL_FINISH_ABORTED || valid > 1) {
        rl_cursor_spoil(reader, "a finish reason or flag that does not exist");
    }
    sample->finish = reader->problem != NULL ? RL_FINISH_NONE : (enum rl_finish)finish;
    sample->reward_valid = valid == 1;
}

static rl_status get_sample(struct rl_cursor *reader, uint32_t index, struct trajectory *sample)
{
    struct trajectory fixed = {0};
    get_sample_fixed(reader, &fixed);
    uint64_t tokens = (uint64_t)fixed.prompt_count + fixed.completion_count;
    uint64_t array_bytes = 4 * (tokens + 2 * (uint64_t)fixed.completion_count);
    if (reader->problem != NULL || tokens > WIRE_SAMPLE_TOKENS_MAX || array_bytes > reader->left) {
        return rl_fail(RL_CORRUPT, "group frame: sample %u: %u + %u tokens, %zu bytes left", index,
                       fixed.prompt_count, fixed.completion_count, reader->left);
    }
    /* The frame may lie at any address; the arrays are copied as bytes after the allocation. */
    uint32_t *words = malloc(array_bytes > 0 ? array_bytes : 1);
    if (words == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a sample of %" PRIu64 " tokens", tokens);
    }
    rl_cursor_get(reader, words, array_bytes);
    rl_status status = trajectory_set_tokens(
        sample, (const int32_t *)(const void *)words, (const float *)(const void *)(words + tokens),
        words + tokens + fixed.completion_count, fixed.prompt_count, fixed.completion_count);
    free(words);
    RL_TRY(status);
    fixed.tokens = sample->tokens;
    fixed.logprob = sample->logprob;
    fixed.version = sample->version;
    *sample = fixed;
    return RL_OK;
}

/* Header fields of a group; makes the group once the frame is known to be able to fill it. */
static rl_status get_group(struct rl_cursor *reader, struct trajectory_group **out)
{
    struct trajectory_group fixed = {0};
    fixed.ticket = rl_cursor_u64(reader);
    fixed.prompt_id = rl_cursor_u64(reader);
    fixed.epoch = rl_cursor_u32(reader);
    fixed.sample_count = rl_cursor_u32(reader);
    rl_cursor_get(reader, &fixed.worker, sizeof fixed.worker);
    uint32_t reserved = rl_cursor_u32(reader);
    fixed.started_s = rl_cursor_f64(reader);
    fixed.finished_s = rl_cursor_f64(reader);
    if (reader->problem != NULL || reserved != 0 || fixed.sample_count < 1 ||
        fixed.sample_count > WIRE_SAMPLES_MAX ||
        (size_t)fixed.sample_count * WIRE_SAMPLE_FIXED > reader->left) {
        return rl_fail(RL_CORRUPT, "group frame: %u samples cannot lie in %zu bytes",
                       fixed.sample_count, reader->left);
    }
    struct trajectory_group *group = NULL;
    RL_TRY(trajectory_group_create(fixed.sample_count, &group));
    fixed.samples = group->samples;
    *group = fixed;
    *out = group;
    return RL_OK;
}

/* A group with its samples, to the end of the payload. */
static rl_status get_whole_group(struct rl_cursor *reader, uint32_t kind,
                                 struct trajectory_group **out)
{
    struct trajectory_group *group = NULL;
    RL_TRY(get_group(reader, &group));
    rl_status status = RL_OK;
    for (uint32_t i = 0; i < group->sample_count && status == RL_OK; i++) {
        status = get_sample(reader, i, &group->samples[i]);
    }
    if (status == RL_OK) {
        status = wire_frame_done(reader, kind);
    }
    if (status == RL_OK) {
        status = group_check(group, RL_CORRUPT);
    }
    if (status != RL_OK) {
        trajectory_group_destroy(group);
        return status;
    }
    *out = group;
    return RL_OK;
}

rl_status wire_decode_group(const struct channel_message *message, struct trajectory_group **out)
{
    struct rl_cursor reader = {0};
    RL_TRY(wire_frame_open(message, WIRE_GROUP, &reader));
    return get_whole_group(&reader, WIRE_GROUP, out);
}

rl_status wire_decode_partial(const struct channel_message *message, uint64_t *id,
                              struct trajectory_group **out)
{
    struct rl_cursor reader = {0};
    struct trajectory_group *group = NULL;
    RL_TRY(wire_frame_open(message, WIRE_PARTIAL, &reader));
    uint64_t found = rl_cursor_u64(&reader);
    if (reader.problem != NULL || reader.left > 0) {
        RL_TRY(get_whole_group(&reader, WIRE_PARTIAL, &group));
    }
    *id = found;
    *out = group;
    return RL_OK;
}
