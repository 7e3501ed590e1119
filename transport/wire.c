/* Frames and payloads. Owns the byte layout: little-endian, no padding, fields in the order below.
 * Invariant: a reader checks the bytes that are left before each field, and memory is asked for
 * only after the frame has been found long enough to fill it. */
#include "transport/wire.h"

#include "core/log.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "frames are little-endian and copied as they lie in memory"
#endif

enum {
    WIRE_MAGIC = 0x31575346, /* "FSW1" */
    WIRE_FORMAT = 1,
    WIRE_GROUP_FIXED = 48, /* payload bytes before the samples */
    WIRE_SAMPLE_FIXED = 64 /* bytes of a sample before its arrays */
};

/* Where the next field is written. The frame is allocated in full beforehand. */
struct wire_writer {
    unsigned char *at;
};

static void put(struct wire_writer *writer, const void *data, size_t bytes)
{
    if (bytes > 0) {
        memcpy(writer->at, data, bytes);
        writer->at += bytes;
    }
}

static void put_u32(struct wire_writer *writer, uint32_t value)
{
    put(writer, &value, sizeof value);
}

static void put_u64(struct wire_writer *writer, uint64_t value)
{
    put(writer, &value, sizeof value);
}

static void put_f64(struct wire_writer *writer, double value)
{
    put(writer, &value, sizeof value);
}

/* What is left to read; `bad` sticks, so a run of fields is checked once at its end. */
struct wire_reader {
    const unsigned char *at;
    size_t left;
    bool bad;
};

static void get(struct wire_reader *reader, void *data, size_t bytes)
{
    if (reader->bad || reader->left < bytes) {
        reader->bad = true;
        memset(data, 0, bytes);
        return;
    }
    if (bytes > 0) {
        memcpy(data, reader->at, bytes);
        reader->at += bytes;
        reader->left -= bytes;
    }
}

static uint32_t get_u32(struct wire_reader *reader)
{
    uint32_t value = 0;
    get(reader, &value, sizeof value);
    return value;
}

static uint64_t get_u64(struct wire_reader *reader)
{
    uint64_t value = 0;
    get(reader, &value, sizeof value);
    return value;
}

static double get_f64(struct wire_reader *reader)
{
    double value = 0;
    get(reader, &value, sizeof value);
    return value;
}

const char *wire_kind_name(uint32_t kind)
{
    static const char *const names[] = {"unknown", "hello", "ticket", "group",
                                        "status",  "stop",  "bytes"};
    return kind < sizeof names / sizeof names[0] ? names[kind] : names[0];
}

/* Memory for header and payload; the writer starts at the payload. */
static rl_status frame_begin(size_t payload_bytes, unsigned char **frame,
                             struct wire_writer *writer)
{
    if (payload_bytes > WIRE_BYTES_MAX) {
        return rl_fail(RL_TOO_LONG, "frame of %zu bytes, the limit is %d", payload_bytes,
                       WIRE_BYTES_MAX);
    }
    *frame = malloc(WIRE_HEADER_BYTES + payload_bytes);
    if (*frame == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a frame of %zu bytes", payload_bytes);
    }
    writer->at = *frame + WIRE_HEADER_BYTES;
    return RL_OK;
}

/* The kind seeds the hash, so that a frame cannot pass as one of another kind. */
static void frame_end(unsigned char *frame, uint32_t kind, size_t payload_bytes,
                      struct channel_message *out)
{
    struct wire_writer header = {.at = frame};
    put_u32(&header, WIRE_MAGIC);
    put_u32(&header, WIRE_FORMAT);
    put_u32(&header, kind);
    put_u32(&header, 0);
    put_u64(&header, payload_bytes);
    put_u64(&header, XXH3_64bits_withSeed(frame + WIRE_HEADER_BYTES, payload_bytes, kind));
    out->kind = kind;
    out->bytes = WIRE_HEADER_BYTES + payload_bytes;
    out->data = frame;
}

rl_status wire_frame_check(const void *data, size_t bytes, uint32_t *kind)
{
    struct wire_reader reader = {.at = data, .left = bytes};
    uint32_t magic = get_u32(&reader);
    uint32_t format = get_u32(&reader);
    uint32_t found = get_u32(&reader);
    uint32_t reserved = get_u32(&reader);
    uint64_t payload_bytes = get_u64(&reader);
    uint64_t hash = get_u64(&reader);
    if (reader.bad) {
        return rl_fail(RL_CORRUPT, "frame of %zu bytes is shorter than its header", bytes);
    }
    if (magic != WIRE_MAGIC || format != WIRE_FORMAT || reserved != 0) {
        return rl_fail(RL_CORRUPT, "frame with magic %#x, format %u: expected %#x, %u", magic,
                       format, WIRE_MAGIC, WIRE_FORMAT);
    }
    if (found < WIRE_HELLO || found > WIRE_BYTES) {
        return rl_fail(RL_CORRUPT, "frame of unknown kind %u", found);
    }
    if (payload_bytes != reader.left || payload_bytes > WIRE_BYTES_MAX) {
        return rl_fail(RL_CORRUPT, "%s frame says %" PRIu64 " payload bytes and has %zu",
                       wire_kind_name(found), payload_bytes, reader.left);
    }
    if (XXH3_64bits_withSeed(reader.at, reader.left, found) != hash) {
        return rl_fail(RL_CORRUPT, "%s frame: payload does not match its hash",
                       wire_kind_name(found));
    }
    *kind = found;
    return RL_OK;
}

/* Check the frame and start reading its payload. */
static rl_status frame_open(const struct channel_message *message, uint32_t expected,
                            struct wire_reader *reader)
{
    uint32_t kind = 0;
    RL_TRY(wire_frame_check(message->data, message->bytes, &kind));
    if (kind != expected) {
        return rl_fail(RL_CORRUPT, "frame from rank %d is a %s, expected a %s", message->peer,
                       wire_kind_name(kind), wire_kind_name(expected));
    }
    reader->at = (const unsigned char *)message->data + WIRE_HEADER_BYTES;
    reader->left = message->bytes - WIRE_HEADER_BYTES;
    reader->bad = false;
    return RL_OK;
}

/* The payload must end exactly where its last field does. */
static rl_status frame_done(const struct wire_reader *reader, uint32_t kind)
{
    if (reader->bad) {
        return rl_fail(RL_CORRUPT, "%s frame ends in the middle of a field", wire_kind_name(kind));
    }
    if (reader->left != 0) {
        return rl_fail(RL_CORRUPT, "%s frame has %zu bytes too many", wire_kind_name(kind),
                       reader->left);
    }
    return RL_OK;
}

/* Names travel in full width, zero-filled; anything after the NUL must be zero. */
static bool name_is_clean(const char *name)
{
    const char *end = memchr(name, 0, WIRE_NAME_MAX);
    if (end == NULL) {
        return false;
    }
    for (const char *c = name; c < end; c++) {
        if ((unsigned char)*c < 0x20 || (unsigned char)*c > 0x7e) {
            return false;
        }
    }
    return true;
}

static void put_name(struct wire_writer *writer, const char *name)
{
    char padded[WIRE_NAME_MAX] = {0};
    memcpy(padded, name, strnlen(name, WIRE_NAME_MAX - 1));
    put(writer, padded, sizeof padded);
}

static rl_status hello_check(const struct wire_hello *hello, rl_status status)
{
    if (!name_is_clean(hello->arena_name) || !name_is_clean(hello->host)) {
        return rl_fail(status, "hello: arena_name or host is not printable ASCII of < %d bytes",
                       WIRE_NAME_MAX);
    }
    if (hello->rank >= hello->world_size) {
        return rl_fail(status, "hello: rank %u in a world of %u", hello->rank, hello->world_size);
    }
    return RL_OK;
}

enum { WIRE_HELLO_BYTES = 4 + 4 + 8 + 8 + 8 + 2 * WIRE_NAME_MAX };

rl_status wire_encode_hello(const struct wire_hello *hello, struct channel_message *out)
{
    RL_TRY(hello_check(hello, RL_INVALID));
    unsigned char *frame = NULL;
    struct wire_writer writer = {0};
    RL_TRY(frame_begin(WIRE_HELLO_BYTES, &frame, &writer));
    put_u32(&writer, hello->rank);
    put_u32(&writer, hello->world_size);
    put_u64(&writer, hello->pid);
    put_u64(&writer, hello->config_hash);
    put_u64(&writer, hello->slot_bytes);
    put_name(&writer, hello->arena_name);
    put_name(&writer, hello->host);
    frame_end(frame, WIRE_HELLO, WIRE_HELLO_BYTES, out);
    return RL_OK;
}

rl_status wire_decode_hello(const struct channel_message *message, struct wire_hello *out)
{
    struct wire_reader reader = {0};
    RL_TRY(frame_open(message, WIRE_HELLO, &reader));
    struct wire_hello hello;
    hello.rank = get_u32(&reader);
    hello.world_size = get_u32(&reader);
    hello.pid = get_u64(&reader);
    hello.config_hash = get_u64(&reader);
    hello.slot_bytes = get_u64(&reader);
    get(&reader, hello.arena_name, WIRE_NAME_MAX);
    get(&reader, hello.host, WIRE_NAME_MAX);
    RL_TRY(frame_done(&reader, WIRE_HELLO));
    RL_TRY(hello_check(&hello, RL_CORRUPT));
    *out = hello;
    return RL_OK;
}

static rl_status ticket_check(const struct wire_ticket *ticket, rl_status status)
{
    if (ticket->sample_count < 1 || ticket->sample_count > WIRE_SAMPLES_MAX) {
        return rl_fail(status, "ticket %" PRIu64 ": sample_count is %u, expected 1 to %d",
                       ticket->ticket, ticket->sample_count, WIRE_SAMPLES_MAX);
    }
    return RL_OK;
}

enum { WIRE_TICKET_BYTES = 8 + 8 + 4 + 4 + 8 };

rl_status wire_encode_ticket(const struct wire_ticket *ticket, struct channel_message *out)
{
    RL_TRY(ticket_check(ticket, RL_INVALID));
    unsigned char *frame = NULL;
    struct wire_writer writer = {0};
    RL_TRY(frame_begin(WIRE_TICKET_BYTES, &frame, &writer));
    put_u64(&writer, ticket->ticket);
    put_u64(&writer, ticket->prompt_id);
    put_u32(&writer, ticket->epoch);
    put_u32(&writer, ticket->sample_count);
    put_u64(&writer, ticket->seed);
    frame_end(frame, WIRE_TICKET, WIRE_TICKET_BYTES, out);
    return RL_OK;
}

rl_status wire_decode_ticket(const struct channel_message *message, struct wire_ticket *out)
{
    struct wire_reader reader = {0};
    RL_TRY(frame_open(message, WIRE_TICKET, &reader));
    struct wire_ticket ticket;
    ticket.ticket = get_u64(&reader);
    ticket.prompt_id = get_u64(&reader);
    ticket.epoch = get_u32(&reader);
    ticket.sample_count = get_u32(&reader);
    ticket.seed = get_u64(&reader);
    RL_TRY(frame_done(&reader, WIRE_TICKET));
    RL_TRY(ticket_check(&ticket, RL_CORRUPT));
    *out = ticket;
    return RL_OK;
}

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
    put_u32(writer, sample->reward_part_count);
    put(writer, sample->reward_part, sizeof sample->reward_part);
    put(writer, sample->tokens, tokens * sizeof *sample->tokens);
    put(writer, sample->logprob, sample->completion_count * sizeof *sample->logprob);
    put(writer, sample->version, sample->completion_count * sizeof *sample->version);
}

rl_status wire_encode_group(const struct trajectory_group *group, struct channel_message *out)
{
    RL_TRY(group_check(group, RL_INVALID));
    size_t bytes = 0;
    RL_TRY(group_bytes(group, &bytes));
    unsigned char *frame = NULL;
    struct wire_writer writer = {0};
    RL_TRY(frame_begin(bytes, &frame, &writer));
    put_u64(&writer, group->ticket);
    put_u64(&writer, group->prompt_id);
    put_u32(&writer, group->epoch);
    put_u32(&writer, group->sample_count);
    put(&writer, &group->worker, sizeof group->worker);
    put_u32(&writer, 0);
    put_f64(&writer, group->started_s);
    put_f64(&writer, group->finished_s);
    for (uint32_t i = 0; i < group->sample_count; i++) {
        put_sample(&writer, &group->samples[i]);
    }
    frame_end(frame, WIRE_GROUP, bytes, out);
    return RL_OK;
}

/* Fixed part of a sample, into a sample that owns no arrays yet. */
static void get_sample_fixed(struct wire_reader *reader, struct trajectory *sample)
{
    sample->sample_index = get_u32(reader);
    sample->prompt_count = get_u32(reader);
    sample->completion_count = get_u32(reader);
    uint32_t finish = get_u32(reader);
    uint32_t valid = get_u32(reader);
    get(reader, &sample->reward, sizeof sample->reward);
    get(reader, &sample->accuracy, sizeof sample->accuracy);
    sample->reward_part_count = get_u32(reader);
    get(reader, sample->reward_part, sizeof sample->reward_part);
    reader->bad = reader->bad || finish > RL_FINISH_ABORTED || valid > 1;
    sample->finish = reader->bad ? RL_FINISH_NONE : (enum rl_finish)finish;
    sample->reward_valid = valid == 1;
}

static rl_status get_sample(struct wire_reader *reader, uint32_t index, struct trajectory *sample)
{
    struct trajectory fixed = {0};
    get_sample_fixed(reader, &fixed);
    uint64_t tokens = (uint64_t)fixed.prompt_count + fixed.completion_count;
    uint64_t array_bytes = 4 * (tokens + 2 * (uint64_t)fixed.completion_count);
    if (reader->bad || tokens > WIRE_SAMPLE_TOKENS_MAX || array_bytes > reader->left) {
        return rl_fail(RL_CORRUPT, "group frame: sample %u: %u + %u tokens, %zu bytes left", index,
                       fixed.prompt_count, fixed.completion_count, reader->left);
    }
    /* The frame may lie at any address; the arrays are copied as bytes after the allocation. */
    uint32_t *words = malloc(array_bytes > 0 ? array_bytes : 1);
    if (words == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a sample of %" PRIu64 " tokens", tokens);
    }
    get(reader, words, array_bytes);
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
static rl_status get_group(struct wire_reader *reader, struct trajectory_group **out)
{
    struct trajectory_group fixed = {0};
    fixed.ticket = get_u64(reader);
    fixed.prompt_id = get_u64(reader);
    fixed.epoch = get_u32(reader);
    fixed.sample_count = get_u32(reader);
    get(reader, &fixed.worker, sizeof fixed.worker);
    uint32_t reserved = get_u32(reader);
    fixed.started_s = get_f64(reader);
    fixed.finished_s = get_f64(reader);
    if (reader->bad || reserved != 0 || fixed.sample_count < 1 ||
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

rl_status wire_decode_group(const struct channel_message *message, struct trajectory_group **out)
{
    struct wire_reader reader = {0};
    RL_TRY(frame_open(message, WIRE_GROUP, &reader));
    struct trajectory_group *group = NULL;
    RL_TRY(get_group(&reader, &group));
    rl_status status = RL_OK;
    for (uint32_t i = 0; i < group->sample_count && status == RL_OK; i++) {
        status = get_sample(&reader, i, &group->samples[i]);
    }
    if (status == RL_OK) {
        status = frame_done(&reader, WIRE_GROUP);
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

static rl_status status_check(const struct wire_status *s, rl_status status)
{
    const double values[] = {s->switch_pause_s, s->decode_busy_s, s->idle_s, s->cpu_s};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        if (!isfinite(values[i]) || values[i] < 0.0) {
            return rl_fail(status, "status of rank %u: a time is %g, expected finite and >= 0",
                           s->rank, values[i]);
        }
    }
    for (int i = 0; i < RL_ROLLOUT_TIMES; i++) {
        if (!isfinite(s->time_s[i]) || s->time_s[i] < 0.0) {
            return rl_fail(status, "status of rank %u: time of %s is %g, expected finite and >= 0",
                           s->rank, rl_rollout_time_name((enum rl_rollout_time)i), s->time_s[i]);
        }
    }
    return RL_OK;
}

enum { WIRE_STATUS_BYTES = 4 * 4 + 4 * 8 + (4 + RL_ROLLOUT_TIMES) * 8 };

rl_status wire_encode_status(const struct wire_status *status, struct channel_message *out)
{
    RL_TRY(status_check(status, RL_INVALID));
    unsigned char *frame = NULL;
    struct wire_writer writer = {0};
    RL_TRY(frame_begin(WIRE_STATUS_BYTES, &frame, &writer));
    put_u32(&writer, status->rank);
    put_u32(&writer, status->version);
    put_u32(&writer, status->running_sequences);
    put_u32(&writer, status->waiting_sequences);
    put_u64(&writer, status->tickets_open);
    put_u64(&writer, status->tokens_generated);
    put_u64(&writer, status->prompt_tokens);
    put_u64(&writer, status->weight_switches);
    put_f64(&writer, status->switch_pause_s);
    put_f64(&writer, status->decode_busy_s);
    put_f64(&writer, status->idle_s);
    put_f64(&writer, status->cpu_s);
    for (int i = 0; i < RL_ROLLOUT_TIMES; i++) {
        put_f64(&writer, status->time_s[i]);
    }
    frame_end(frame, WIRE_STATUS, WIRE_STATUS_BYTES, out);
    return RL_OK;
}

rl_status wire_decode_status(const struct channel_message *message, struct wire_status *out)
{
    struct wire_reader reader = {0};
    RL_TRY(frame_open(message, WIRE_STATUS, &reader));
    struct wire_status status;
    status.rank = get_u32(&reader);
    status.version = get_u32(&reader);
    status.running_sequences = get_u32(&reader);
    status.waiting_sequences = get_u32(&reader);
    status.tickets_open = get_u64(&reader);
    status.tokens_generated = get_u64(&reader);
    status.prompt_tokens = get_u64(&reader);
    status.weight_switches = get_u64(&reader);
    status.switch_pause_s = get_f64(&reader);
    status.decode_busy_s = get_f64(&reader);
    status.idle_s = get_f64(&reader);
    status.cpu_s = get_f64(&reader);
    for (int i = 0; i < RL_ROLLOUT_TIMES; i++) {
        status.time_s[i] = get_f64(&reader);
    }
    RL_TRY(frame_done(&reader, WIRE_STATUS));
    RL_TRY(status_check(&status, RL_CORRUPT));
    *out = status;
    return RL_OK;
}

enum { WIRE_STOP_BYTES = 8 };

rl_status wire_encode_stop(const struct wire_stop *stop, struct channel_message *out)
{
    if (stop->reason > WIRE_STOP_FAILED) {
        return rl_fail(RL_INVALID, "stop: reason %u is unknown", stop->reason);
    }
    unsigned char *frame = NULL;
    struct wire_writer writer = {0};
    RL_TRY(frame_begin(WIRE_STOP_BYTES, &frame, &writer));
    put_u32(&writer, stop->reason);
    put(&writer, &stop->exit_code, sizeof stop->exit_code);
    frame_end(frame, WIRE_STOP, WIRE_STOP_BYTES, out);
    return RL_OK;
}

rl_status wire_decode_stop(const struct channel_message *message, struct wire_stop *out)
{
    struct wire_reader reader = {0};
    RL_TRY(frame_open(message, WIRE_STOP, &reader));
    struct wire_stop stop;
    stop.reason = get_u32(&reader);
    get(&reader, &stop.exit_code, sizeof stop.exit_code);
    RL_TRY(frame_done(&reader, WIRE_STOP));
    if (stop.reason > WIRE_STOP_FAILED) {
        return rl_fail(RL_CORRUPT, "stop frame: reason %u is unknown", stop.reason);
    }
    *out = stop;
    return RL_OK;
}

rl_status wire_encode_bytes(const void *data, size_t bytes, struct channel_message *out)
{
    unsigned char *frame = NULL;
    struct wire_writer writer = {0};
    RL_TRY(frame_begin(bytes, &frame, &writer));
    put(&writer, data, bytes);
    frame_end(frame, WIRE_BYTES, bytes, out);
    return RL_OK;
}

rl_status wire_decode_bytes(const struct channel_message *message, const void **data, size_t *bytes)
{
    struct wire_reader reader = {0};
    RL_TRY(frame_open(message, WIRE_BYTES, &reader));
    *data = reader.at;
    *bytes = reader.left;
    return RL_OK;
}
