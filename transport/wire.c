/* Frames and payloads. Owns the byte layout: little-endian, no padding, fields in the order below.
 * Invariant: a reader checks the bytes that are left before each field, and memory is asked for
 * only after the frame has been found long enough to fill it. */
#include "transport/wire_internal.h"

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
    WIRE_FORMAT = 2
};

const char *wire_kind_name(uint32_t kind)
{
    static const char *const names[] = {"unknown", "hello", "ticket",   "group",  "status",
                                        "stop",    "bytes", "snapshot", "partial"};
    return kind < sizeof names / sizeof names[0] ? names[kind] : names[0];
}

rl_status wire_frame_begin(size_t payload_bytes, unsigned char **frame, struct wire_writer *writer)
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
void wire_frame_end(unsigned char *frame, uint32_t kind, size_t payload_bytes,
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
    struct rl_cursor reader = {.at = data, .left = bytes};
    uint32_t magic = rl_cursor_u32(&reader);
    uint32_t format = rl_cursor_u32(&reader);
    uint32_t found = rl_cursor_u32(&reader);
    uint32_t reserved = rl_cursor_u32(&reader);
    uint64_t payload_bytes = rl_cursor_u64(&reader);
    uint64_t hash = rl_cursor_u64(&reader);
    if (reader.problem != NULL) {
        return rl_fail(RL_CORRUPT, "frame of %zu bytes is shorter than its header", bytes);
    }
    if (magic != WIRE_MAGIC || format != WIRE_FORMAT || reserved != 0) {
        return rl_fail(RL_CORRUPT, "frame with magic %#x, format %u: expected %#x, %u", magic,
                       format, WIRE_MAGIC, WIRE_FORMAT);
    }
    if (found < WIRE_HELLO || found > WIRE_PARTIAL) {
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

rl_status wire_frame_open(const struct channel_message *message, uint32_t expected,
                          struct rl_cursor *reader)
{
    uint32_t kind = 0;
    RL_TRY(wire_frame_check(message->data, message->bytes, &kind));
    if (kind != expected) {
        return rl_fail(RL_CORRUPT, "frame from rank %d is a %s, expected a %s", message->peer,
                       wire_kind_name(kind), wire_kind_name(expected));
    }
    reader->at = (const unsigned char *)message->data + WIRE_HEADER_BYTES;
    reader->left = message->bytes - WIRE_HEADER_BYTES;
    reader->problem = NULL;
    return RL_OK;
}

rl_status wire_frame_done(const struct rl_cursor *reader, uint32_t kind)
{
    if (reader->problem != NULL) {
        return rl_fail(RL_CORRUPT, "%s frame: %s", wire_kind_name(kind), reader->problem);
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
    RL_TRY(wire_frame_begin(WIRE_HELLO_BYTES, &frame, &writer));
    put_u32(&writer, hello->rank);
    put_u32(&writer, hello->world_size);
    put_u64(&writer, hello->pid);
    put_u64(&writer, hello->config_hash);
    put_u64(&writer, hello->slot_bytes);
    put_name(&writer, hello->arena_name);
    put_name(&writer, hello->host);
    wire_frame_end(frame, WIRE_HELLO, WIRE_HELLO_BYTES, out);
    return RL_OK;
}

rl_status wire_decode_hello(const struct channel_message *message, struct wire_hello *out)
{
    struct rl_cursor reader = {0};
    RL_TRY(wire_frame_open(message, WIRE_HELLO, &reader));
    struct wire_hello hello;
    hello.rank = rl_cursor_u32(&reader);
    hello.world_size = rl_cursor_u32(&reader);
    hello.pid = rl_cursor_u64(&reader);
    hello.config_hash = rl_cursor_u64(&reader);
    hello.slot_bytes = rl_cursor_u64(&reader);
    rl_cursor_get(&reader, hello.arena_name, WIRE_NAME_MAX);
    rl_cursor_get(&reader, hello.host, WIRE_NAME_MAX);
    RL_TRY(wire_frame_done(&reader, WIRE_HELLO));
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

enum { WIRE_TICKET_BYTES = 8 + 8 + 4 + 4 + 8 + 4 + 4 };

rl_status wire_encode_ticket(const struct wire_ticket *ticket, struct channel_message *out)
{
    RL_TRY(ticket_check(ticket, RL_INVALID));
    unsigned char *frame = NULL;
    struct wire_writer writer = {0};
    RL_TRY(wire_frame_begin(WIRE_TICKET_BYTES, &frame, &writer));
    put_u64(&writer, ticket->ticket);
    put_u64(&writer, ticket->prompt_id);
    put_u32(&writer, ticket->epoch);
    put_u32(&writer, ticket->sample_count);
    put_u64(&writer, ticket->seed);
    put_u32(&writer, ticket->version);
    put_u32(&writer, ticket->pinned ? 1 : 0);
    wire_frame_end(frame, WIRE_TICKET, WIRE_TICKET_BYTES, out);
    return RL_OK;
}

rl_status wire_decode_ticket(const struct channel_message *message, struct wire_ticket *out)
{
    struct rl_cursor reader = {0};
    RL_TRY(wire_frame_open(message, WIRE_TICKET, &reader));
    struct wire_ticket ticket = {0};
    ticket.ticket = rl_cursor_u64(&reader);
    ticket.prompt_id = rl_cursor_u64(&reader);
    ticket.epoch = rl_cursor_u32(&reader);
    ticket.sample_count = rl_cursor_u32(&reader);
    ticket.seed = rl_cursor_u64(&reader);
    ticket.version = rl_cursor_u32(&reader);
    uint32_t pinned = rl_cursor_u32(&reader);
    ticket.pinned = pinned == 1;
    if (pinned > 1) {
        rl_cursor_spoil(&reader, "a flag is neither 0 nor 1");
    }
    RL_TRY(wire_frame_done(&reader, WIRE_TICKET));
    RL_TRY(ticket_check(&ticket, RL_CORRUPT));
    *out = ticket;
    return RL_OK;
}

static rl_status status_check(const struct wire_status *s, rl_status status)
{
    const double values[] = {s->passes.switch_gap_max_s, s->decode_busy_s, s->idle_s, s->cpu_s};
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

enum {
    WIRE_STATUS_BYTES = 4 * 4 + 4 * 8 + (6 + RL_ROLLOUT_TIMES) * 8 + 2 * RL_HISTOGRAM_BUCKETS * 8
};

rl_status wire_encode_status(const struct wire_status *status, struct channel_message *out)
{
    RL_TRY(status_check(status, RL_INVALID));
    unsigned char *frame = NULL;
    struct wire_writer writer = {0};
    RL_TRY(wire_frame_begin(WIRE_STATUS_BYTES, &frame, &writer));
    put_u32(&writer, status->rank);
    put_u32(&writer, status->version);
    put_u32(&writer, status->running_sequences);
    put_u32(&writer, status->waiting_sequences);
    put_u64(&writer, status->tickets_open);
    put_u64(&writer, status->tokens_generated);
    put_u64(&writer, status->prompt_tokens);
    put_u64(&writer, status->weight_switches);
    put_f64(&writer, status->decode_busy_s);
    put_f64(&writer, status->idle_s);
    put_f64(&writer, status->cpu_s);
    for (int i = 0; i < RL_ROLLOUT_TIMES; i++) {
        put_f64(&writer, status->time_s[i]);
    }
    put(&writer, status->passes.pass_us, sizeof status->passes.pass_us);
    put(&writer, status->passes.switch_gap_us, sizeof status->passes.switch_gap_us);
    put_f64(&writer, status->passes.switch_gap_max_s);
    put_u64(&writer, status->passes.guessed_tokens);
    put_u64(&writer, status->passes.right_guesses);
    wire_frame_end(frame, WIRE_STATUS, WIRE_STATUS_BYTES, out);
    return RL_OK;
}

rl_status wire_decode_status(const struct channel_message *message, struct wire_status *out)
{
    struct rl_cursor reader = {0};
    RL_TRY(wire_frame_open(message, WIRE_STATUS, &reader));
    struct wire_status status;
    status.rank = rl_cursor_u32(&reader);
    status.version = rl_cursor_u32(&reader);
    status.running_sequences = rl_cursor_u32(&reader);
    status.waiting_sequences = rl_cursor_u32(&reader);
    status.tickets_open = rl_cursor_u64(&reader);
    status.tokens_generated = rl_cursor_u64(&reader);
    status.prompt_tokens = rl_cursor_u64(&reader);
    status.weight_switches = rl_cursor_u64(&reader);
    status.decode_busy_s = rl_cursor_f64(&reader);
    status.idle_s = rl_cursor_f64(&reader);
    status.cpu_s = rl_cursor_f64(&reader);
    for (int i = 0; i < RL_ROLLOUT_TIMES; i++) {
        status.time_s[i] = rl_cursor_f64(&reader);
    }
    rl_cursor_get(&reader, status.passes.pass_us, sizeof status.passes.pass_us);
    rl_cursor_get(&reader, status.passes.switch_gap_us, sizeof status.passes.switch_gap_us);
    status.passes.switch_gap_max_s = rl_cursor_f64(&reader);
    status.passes.guessed_tokens = rl_cursor_u64(&reader);
    status.passes.right_guesses = rl_cursor_u64(&reader);
    RL_TRY(wire_frame_done(&reader, WIRE_STATUS));
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
    RL_TRY(wire_frame_begin(WIRE_STOP_BYTES, &frame, &writer));
    put_u32(&writer, stop->reason);
    put(&writer, &stop->exit_code, sizeof stop->exit_code);
    wire_frame_end(frame, WIRE_STOP, WIRE_STOP_BYTES, out);
    return RL_OK;
}

rl_status wire_decode_stop(const struct channel_message *message, struct wire_stop *out)
{
    struct rl_cursor reader = {0};
    RL_TRY(wire_frame_open(message, WIRE_STOP, &reader));
    struct wire_stop stop;
    stop.reason = rl_cursor_u32(&reader);
    rl_cursor_get(&reader, &stop.exit_code, sizeof stop.exit_code);
    RL_TRY(wire_frame_done(&reader, WIRE_STOP));
    if (stop.reason > WIRE_STOP_FAILED) {
        return rl_fail(RL_CORRUPT, "stop frame: reason %u is unknown", stop.reason);
    }
    *out = stop;
    return RL_OK;
}

enum { WIRE_SNAPSHOT_BYTES = 8 };

rl_status wire_encode_snapshot(uint64_t id, struct channel_message *out)
{
    unsigned char *frame = NULL;
    struct wire_writer writer = {0};
    RL_TRY(wire_frame_begin(WIRE_SNAPSHOT_BYTES, &frame, &writer));
    put_u64(&writer, id);
    wire_frame_end(frame, WIRE_SNAPSHOT, WIRE_SNAPSHOT_BYTES, out);
    return RL_OK;
}

rl_status wire_decode_snapshot(const struct channel_message *message, uint64_t *id)
{
    struct rl_cursor reader = {0};
    RL_TRY(wire_frame_open(message, WIRE_SNAPSHOT, &reader));
    uint64_t found = rl_cursor_u64(&reader);
    RL_TRY(wire_frame_done(&reader, WIRE_SNAPSHOT));
    *id = found;
    return RL_OK;
}

rl_status wire_encode_bytes(const void *data, size_t bytes, struct channel_message *out)
{
    unsigned char *frame = NULL;
    struct wire_writer writer = {0};
    RL_TRY(wire_frame_begin(bytes, &frame, &writer));
    put(&writer, data, bytes);
    wire_frame_end(frame, WIRE_BYTES, bytes, out);
    return RL_OK;
}

rl_status wire_decode_bytes(const struct channel_message *message, const void **data, size_t *bytes)
{
    struct rl_cursor reader = {0};
    RL_TRY(wire_frame_open(message, WIRE_BYTES, &reader));
    *data = reader.at;
    *bytes = reader.left;
    return RL_OK;
}
