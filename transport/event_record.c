/* See event_record.h. */
#include "transport/event_record.h"

#include "core/cursor.h"
#include "core/hash.h"
#include "core/log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "hashes and doubles are little-endian and copied as they lie in memory"
#endif

/* Fewest bytes of a group, a sample and a run: what bounds counts before anything is allocated. */
enum { GROUP_BYTES_MIN = 12, SAMPLE_BYTES_MIN = 2, VARINT_BYTES_MAX = 10 };

/* --- writing -------------------------------------------------------------------------------------
 */

static rl_status put_number(struct rl_text *out, uint64_t value)
{
    unsigned char bytes[VARINT_BYTES_MAX];
    size_t count = 0;
    for (; value >= 0x80; value >>= 7) {
        bytes[count++] = (unsigned char)(value | 0x80);
    }
    bytes[count++] = (unsigned char)value;
    return rl_text_append(out, bytes, count);
}

static rl_status put_signed(struct rl_text *out, int64_t value)
{
    return put_number(out, ((uint64_t)value << 1) ^ (uint64_t)(value < 0 ? -1 : 0));
}

static rl_status put_fixed(struct rl_text *out, uint64_t value)
{
    return rl_text_append(out, &value, sizeof(value));
}

rl_status event_encode_start(const struct event_start *start, struct rl_text *out)
{
    const uint64_t numbers[] = {start->step, start->version, start->seed,
                                start->isa,  start->threads, start->learners};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        RL_TRY(put_number(out, numbers[i]));
    }
    RL_TRY(put_fixed(out, start->prompts_hash));
    RL_TRY(put_fixed(out, start->image_hash));
    RL_TRY(put_fixed(out, start->master_hash));
    RL_TRY(put_number(out, start->config_bytes));
    return rl_text_append(out, start->config, start->config_bytes);
}

rl_status event_encode_arrival(const struct event_arrival *arrival, struct rl_text *out)
{
    RL_TRY(put_number(out, arrival->ticket));
    RL_TRY(put_number(out, arrival->worker));
    return put_number(out, (uint64_t)arrival->verdict);
}

rl_status event_encode_place(uint64_t step, struct rl_text *out)
{
    return put_number(out, step);
}

rl_status event_encode_rollback(const struct event_rollback *rollback, struct rl_text *out)
{
    uint64_t scale = 0;
    memcpy(&scale, &rollback->rate_scale, sizeof(scale));
    RL_TRY(put_number(out, rollback->step));
    RL_TRY(put_number(out, rollback->to_step));
    return put_fixed(out, scale);
}

static uint32_t count_runs(const struct trajectory *sample)
{
    uint32_t runs = sample->completion_count > 0;
    for (uint32_t i = 1; i < sample->completion_count; i++) {
        runs += sample->version[i] != sample->version[i - 1];
    }
    return runs;
}

/* Runs of equal versions: where each begins (the first at 0, unsaid), and its version relative to
 * the one before, the first relative to the step's. */
static rl_status put_sample(struct rl_text *out, const struct trajectory *sample, uint32_t version)
{
    uint64_t head = (uint64_t)sample->completion_count << 1 | (sample->reward_valid ? 0 : 1);
    uint32_t position = 0;
    RL_TRY(put_number(out, head));
    RL_TRY(put_number(out, count_runs(sample)));
    for (uint32_t i = 0; i < sample->completion_count; i++) {
        if (i > 0 && sample->version[i] == sample->version[i - 1]) {
            continue;
        }
        if (i > 0) {
            RL_TRY(put_number(out, i - position));
        }
        RL_TRY(put_signed(out, (int64_t)sample->version[i] - (int64_t)version));
        version = sample->version[i];
        position = i;
    }
    return RL_OK;
}

rl_status event_encode_step(const struct event_step *step,
                            const struct trajectory_group *const *groups, uint32_t count,
                            struct rl_text *out)
{
    uint64_t ticket = 0;
    RL_TRY(put_number(out, step->step));
    RL_TRY(put_number(out, step->version));
    RL_TRY(put_fixed(out, step->image_hash));
    RL_TRY(put_fixed(out, step->master_hash));
    RL_TRY(put_number(out, step->updates));
    RL_TRY(put_number(out, step->skipped));
    RL_TRY(put_number(out, count));
    for (uint32_t g = 0; g < count; g++) {
        RL_TRY(put_signed(out, (int64_t)(groups[g]->ticket - ticket)));
        RL_TRY(put_number(out, groups[g]->prompt_id));
        RL_TRY(put_number(out, groups[g]->epoch));
        RL_TRY(put_fixed(out, event_group_digest(groups[g])));
        RL_TRY(put_number(out, groups[g]->sample_count));
        for (uint32_t s = 0; s < groups[g]->sample_count; s++) {
            RL_TRY(put_sample(out, &groups[g]->samples[s], step->version));
        }
        ticket = groups[g]->ticket;
    }
    return RL_OK;
}

/* --- reading -------------------------------------------------------------------------------------
 */

static uint32_t get_u32(struct rl_cursor *reader)
{
    return (uint32_t)rl_cursor_bounded(reader, UINT32_MAX, "a number has more than 32 bits");
}

static int64_t get_signed(struct rl_cursor *reader)
{
    uint64_t value = rl_cursor_number(reader);
    return (int64_t)(value >> 1) ^ -(int64_t)(value & 1);
}

static void get_start(struct rl_cursor *reader, struct event_start *start)
{
    start->step = rl_cursor_number(reader);
    start->version = get_u32(reader);
    start->seed = rl_cursor_number(reader);
    start->isa = get_u32(reader);
    start->threads = get_u32(reader);
    start->learners = get_u32(reader);
    start->prompts_hash = rl_cursor_u64(reader);
    start->image_hash = rl_cursor_u64(reader);
    start->master_hash = rl_cursor_u64(reader);
    start->config_bytes = get_u32(reader);
    start->config = rl_cursor_view(reader, start->config_bytes);
    if (start->config != NULL && memchr(start->config, '\0', start->config_bytes) != NULL) {
        rl_cursor_spoil(reader, "the configuration holds a zero byte");
    }
}

static void get_arrival(struct rl_cursor *reader, struct event_arrival *arrival)
{
    arrival->ticket = rl_cursor_number(reader);
    arrival->worker = get_u32(reader);
    arrival->verdict = (enum event_verdict)rl_cursor_bounded(reader, EVENT_VERDICT_COUNT - 1,
                                                             "a verdict that does not exist");
}

static void get_rollback(struct rl_cursor *reader, struct event_rollback *rollback)
{
    rollback->step = rl_cursor_number(reader);
    rollback->to_step = rl_cursor_number(reader);
    uint64_t scale = rl_cursor_u64(reader);
    memcpy(&rollback->rate_scale, &scale, sizeof(scale));
    if (!isfinite(rollback->rate_scale) || rollback->rate_scale < 0) {
        rl_cursor_spoil(reader, "a learning-rate factor that is negative or not finite");
    }
    if (reader->problem == NULL && rollback->to_step >= rollback->step) {
        rl_cursor_spoil(reader, "a rollback to a step that is not before its own");
    }
}

/* Room for one more run; runs cost at least a byte each, so memory stays within what is read. */
static bool add_run(struct event_step *step, uint32_t *capacity, struct event_run run)
{
    if (step->run_count == *capacity) {
        uint32_t more = *capacity < 64 ? 64 : 2 * *capacity;
        struct event_run *grown = realloc(step->runs, more * sizeof(*grown));
        if (grown == NULL) {
            return false;
        }
        step->runs = grown;
        *capacity = more;
    }
    step->runs[step->run_count++] = run;
    return true;
}

static void get_runs(struct rl_cursor *reader, struct event_step *step, struct event_sample *sample,
                     uint32_t *capacity)
{
    uint32_t count = get_u32(reader);
    struct event_run run = {.version = step->version};
    sample->first_run = step->run_count;
    if (count > sample->completion_count || (count == 0) != (sample->completion_count == 0)) {
        rl_cursor_spoil(reader, "a number of version runs that does not fit the completion");
    }
    for (uint32_t i = 0; i < count && reader->problem == NULL; i++) {
        uint64_t gap = i > 0 ? rl_cursor_number(reader) : 0;
        int64_t version = (int64_t)run.version + get_signed(reader);
        if (i > 0 && (gap == 0 || gap >= sample->completion_count - run.position)) {
            rl_cursor_spoil(reader, "a version run outside its completion");
        }
        if (version < 0 || version > UINT32_MAX) {
            rl_cursor_spoil(reader, "a version outside 0 .. 2^32 - 1");
        }
        run = (struct event_run){run.position + (uint32_t)gap, (uint32_t)version};
        if (reader->problem == NULL && !add_run(step, capacity, run)) {
            rl_cursor_spoil(reader, "out of memory");
        }
    }
    sample->run_count = step->run_count - sample->first_run;
}

/* Append the samples of one group. */
static rl_status get_samples(struct rl_cursor *reader, struct event_step *step,
                             struct event_group *group, uint32_t *run_capacity)
{
    uint32_t count = (uint32_t)rl_cursor_bounded(reader, reader->left / SAMPLE_BYTES_MIN,
                                                 "more samples than bytes for them");
    group->first_sample = step->sample_count;
    group->sample_count = count;
    if (reader->problem != NULL || count == 0) {
        rl_cursor_spoil(reader, "a group without samples");
        return RL_OK;
    }
    struct event_sample *grown =
        realloc(step->samples, ((size_t)step->sample_count + count) * sizeof(*grown));
    if (grown == NULL) {
        return rl_fail(RL_NO_MEMORY, "events: out of memory for %u samples", count);
    }
    step->samples = grown;
    for (uint32_t s = 0; s < count && reader->problem == NULL; s++) {
        struct event_sample *sample = &step->samples[step->sample_count];
        uint64_t head = rl_cursor_bounded(reader, (uint64_t)UINT32_MAX << 1 | 1,
                                          "a completion of more than 2^32 - 1 tokens");
        *sample = (struct event_sample){.completion_count = (uint32_t)(head >> 1),
                                        .unscored = (head & 1) != 0};
        step->sample_count++;
        get_runs(reader, step, sample, run_capacity);
    }
    return RL_OK;
}

static rl_status get_step(struct rl_cursor *reader, struct event_step *step)
{
    uint32_t run_capacity = 0;
    uint64_t ticket = 0;
    step->step = rl_cursor_number(reader);
    step->version = get_u32(reader);
    step->image_hash = rl_cursor_u64(reader);
    step->master_hash = rl_cursor_u64(reader);
    step->updates = rl_cursor_number(reader);
    step->skipped = rl_cursor_number(reader);
    uint64_t count = rl_cursor_bounded(reader, reader->left / GROUP_BYTES_MIN,
                                       "more groups than bytes for them");
    if (reader->problem != NULL) {
        return RL_OK;
    }
    step->groups = calloc(count + 1, sizeof(*step->groups));
    if (step->groups == NULL) {
        return rl_fail(RL_NO_MEMORY, "events: out of memory for a step");
    }
    for (uint64_t g = 0; g < count && reader->problem == NULL; g++) {
        struct event_group *group = &step->groups[step->group_count++];
        ticket += (uint64_t)get_signed(reader);
        group->ticket = ticket;
        group->prompt_id = rl_cursor_number(reader);
        group->epoch = get_u32(reader);
        group->digest = rl_cursor_u64(reader);
        RL_TRY(get_samples(reader, step, group, &run_capacity));
    }
    return RL_OK;
}

static rl_status get_payload(struct rl_cursor *reader, struct event *event)
{
    switch (event->kind) {
    case EVENT_START:
        get_start(reader, &event->start);
        return RL_OK;
    case EVENT_ARRIVAL:
        get_arrival(reader, &event->arrival);
        return RL_OK;
    case EVENT_STEP:
        return get_step(reader, &event->step);
    case EVENT_CHECKPOINT:
        event->checkpoint = rl_cursor_number(reader);
        return RL_OK;
    case EVENT_END:
        event->end = rl_cursor_number(reader);
        return RL_OK;
    case EVENT_DELTA:
        event->delta = (struct event_delta){reader->at, reader->left};
        reader->left = 0;
        return RL_OK;
    case EVENT_ROLLBACK:
        get_rollback(reader, &event->rollback);
        return RL_OK;
    default:
        rl_cursor_spoil(reader, "a kind of record that does not exist");
        return RL_OK;
    }
}

rl_status event_decode(uint32_t kind, const void *data, size_t bytes, struct event *out,
                       char *problem)
{
    struct rl_cursor reader = {.at = data, .left = bytes};
    struct event event = {.kind = kind < EVENT_KIND_END ? (enum event_kind)kind : EVENT_KIND_END};
    rl_status status = get_payload(&reader, &event);
    if (status == RL_OK && reader.problem == NULL && reader.left > 0) {
        rl_cursor_spoil(&reader, "bytes are left behind its end");
    }
    if (status == RL_OK && reader.problem != NULL) {
        snprintf(problem, EVENT_PROBLEM_BYTES, "%s", reader.problem);
        status = RL_CORRUPT;
    }
    if (status != RL_OK) {
        event_fini(&event);
        return status;
    }
    *out = event;
    return RL_OK;
}

void event_fini(struct event *event)
{
    if (event->kind == EVENT_STEP) {
        free(event->step.groups);
        free(event->step.samples);
        free(event->step.runs);
    }
    *event = (struct event){0};
}

/* --- digest --------------------------------------------------------------------------------------
 */

uint64_t event_group_digest(const struct trajectory_group *group)
{
    uint64_t digest = group->prompt_id;
    for (uint32_t s = 0; s < group->sample_count; s++) {
        const struct trajectory *sample = &group->samples[s];
        uint32_t head[6] = {sample->prompt_count, sample->completion_count,
                            (uint32_t)sample->finish, sample->reward_valid};
        size_t count = sample->completion_count;
        if (sample->reward_valid) {
            memcpy(&head[4], &sample->reward, sizeof(head[4]));
            memcpy(&head[5], &sample->accuracy, sizeof(head[5]));
        }
        digest = rl_hash_seeded(head, sizeof(head), digest);
        digest = rl_hash_seeded(sample->tokens, (sample->prompt_count + count) * sizeof(int32_t),
                                digest);
        digest = rl_hash_seeded(sample->logprob, count * sizeof(float), digest);
        digest = rl_hash_seeded(sample->version, count * sizeof(uint32_t), digest);
    }
    return digest;
}
