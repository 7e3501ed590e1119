/* The dispatcher's state as bytes and back. Owns the format: little-endian words: a header, the
 * tickets, the refills of fixed_lag's steps, a check sum. The invariant: bytes that were not
 * written by dispatcher_save, or for another order of prompts, are refused and change nothing. */
#include "core/cursor.h"
#include "core/log.h"
#include "trainer/dispatcher_state.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define DISPATCHER_MAGIC UINT64_C(0x5053494453465354) /* file mark */

enum {
    DISPATCHER_FORMAT = 2,
    DISPATCHER_HEADER_WORDS = 15 + DISPATCHER_REASON_COUNT,
    DISPATCHER_TICKET_WORDS = 5
};

static void dispatcher_put(uint8_t **place, uint64_t word)
{
    for (int i = 0; i < 8; i++) {
        *(*place)++ = (uint8_t)(word >> (8 * i));
    }
}

/* FNV-1a, 64 bits: finds accidents, not malice; the checkpoint's manifest has a stronger hash. */
static uint64_t dispatcher_sum(const uint8_t *data, size_t bytes)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < bytes; i++) {
        hash = (hash ^ data[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

/* Steps whose refills are counted. */
static uint64_t dispatcher_window(const struct dispatcher *dispatcher)
{
    bool fixed = dispatcher->options.order == DISPATCHER_FIXED_LAG;
    return fixed ? (uint64_t)dispatcher->options.max_staleness + 1 : 0;
}

static void dispatcher_put_header(uint8_t **place, const struct dispatcher *dispatcher)
{
    dispatcher_put(place, DISPATCHER_MAGIC);
    dispatcher_put(place, DISPATCHER_FORMAT);
    dispatcher_put(place, dispatcher->live);
    dispatcher_put(place, dispatcher_window(dispatcher));
    dispatcher_put(place, (uint64_t)dispatcher->options.order);
    dispatcher_put(place, dispatcher->options.prompts_per_step);
    dispatcher_put(place, dispatcher->options.max_staleness);
    dispatcher_put(place, dispatcher->refills);
    dispatcher_put(place, dispatcher->version);
    dispatcher_put(place, dispatcher->created);
    dispatcher_put(place, dispatcher->issues);
    dispatcher_put(place, dispatcher->reissues);
    dispatcher_put(place, dispatcher->trained);
    dispatcher_put(place, dispatcher->duplicates);
    dispatcher_put(place, dispatcher->unknown);
    for (int i = 0; i < DISPATCHER_REASON_COUNT; i++) {
        dispatcher_put(place, dispatcher->dropped[i]);
    }
}

rl_status dispatcher_save(const struct dispatcher *dispatcher, uint8_t **data, size_t *bytes)
{
    uint64_t window = dispatcher_window(dispatcher);
    size_t words = DISPATCHER_HEADER_WORDS + (size_t)dispatcher->live * DISPATCHER_TICKET_WORDS +
                   (size_t)window + 1;
    uint8_t *block = malloc(words * 8);
    if (block == NULL) {
        return rl_fail(RL_NO_MEMORY, "dispatcher: no memory to save %" PRIu64 " tickets",
                       dispatcher->live);
    }
    uint8_t *place = block;
    dispatcher_put_header(&place, dispatcher);
    for (uint64_t i = 0; i < dispatcher->live; i++) {
        const struct dispatcher_ticket *ticket = &dispatcher->tickets[i];
        dispatcher_put(&place, ticket->number);
        dispatcher_put(&place, ticket->prompt_id);
        dispatcher_put(&place, (uint64_t)ticket->epoch << 32 | ticket->version);
        dispatcher_put(&place, (uint64_t)ticket->issue_count << 32 | (uint32_t)ticket->worker);
        dispatcher_put(&place, (uint64_t)ticket->state);
    }
    for (uint64_t i = 0; i < window; i++) {
        dispatcher_put(&place, dispatcher->step_refills[i]);
    }
    dispatcher_put(&place, dispatcher_sum(block, (words - 1) * 8));
    *data = block;
    *bytes = words * 8;
    return RL_OK;
}

/* Frame of the bytes: length, magic, format, check sum. */
static rl_status dispatcher_check_bytes(const uint8_t *data, size_t bytes)
{
    if (bytes % 8 != 0 || bytes < (DISPATCHER_HEADER_WORDS + 1) * 8) {
        return rl_fail(RL_CORRUPT, "dispatcher state: %zu bytes, expected whole words, at least %d",
                       bytes, (DISPATCHER_HEADER_WORDS + 1) * 8);
    }
    struct rl_cursor cursor = {.at = data, .left = bytes};
    uint64_t magic = rl_cursor_u64(&cursor);
    uint64_t format = rl_cursor_u64(&cursor);
    uint64_t live = rl_cursor_u64(&cursor);
    uint64_t window = rl_cursor_u64(&cursor);
    if (magic != DISPATCHER_MAGIC || format != DISPATCHER_FORMAT) {
        return rl_fail(RL_CORRUPT,
                       "dispatcher state: magic %016" PRIx64 " format %" PRIu64
                       ", expected %016" PRIx64 " format %d",
                       magic, format, DISPATCHER_MAGIC, DISPATCHER_FORMAT);
    }
    uint64_t words = bytes / 8 - DISPATCHER_HEADER_WORDS - 1;
    if (window > words || (words - window) % DISPATCHER_TICKET_WORDS != 0 ||
        (words - window) / DISPATCHER_TICKET_WORDS != live) {
        return rl_fail(RL_CORRUPT, "dispatcher state: %zu bytes cannot hold %" PRIu64 " tickets",
                       bytes, live);
    }
    struct rl_cursor tail = {.at = data + bytes - 8, .left = 8};
    if (rl_cursor_u64(&tail) != dispatcher_sum(data, bytes - 8)) {
        return rl_fail(RL_CORRUPT, "dispatcher state: check sum differs");
    }
    return RL_OK;
}

/* May the run that made this state go on with these options? */
static rl_status dispatcher_check_order(const struct dispatcher_options *now,
                                        const struct dispatcher_options *then)
{
    bool same = now->order == then->order && now->prompts_per_step == then->prompts_per_step &&
                now->max_staleness == then->max_staleness;
    if (now->order != DISPATCHER_FIXED_LAG || same) {
        return RL_OK;
    }
    static const char *const names[] = {"ready", "ticket", "fixed_lag"};
    return rl_fail(RL_INVALID,
                   "async.order is fixed_lag with %" PRIu32
                   " prompts a step and max_staleness %" PRIu32
                   ", but the checkpoint was made in order %s with %" PRIu32 " and %" PRIu32
                   ": its tickets belong to other steps and versions. Go on as it was, or in "
                   "another order",
                   now->prompts_per_step, now->max_staleness, names[then->order],
                   then->prompts_per_step, then->max_staleness);
}

static rl_status dispatcher_take_options(struct rl_cursor *cursor, struct dispatcher *out)
{
    struct dispatcher_options then = {0};
    uint64_t order = rl_cursor_u64(cursor);
    uint64_t prompts_per_step = rl_cursor_u64(cursor);
    uint64_t max_staleness = rl_cursor_u64(cursor);
    if (order > DISPATCHER_FIXED_LAG || prompts_per_step > UINT32_MAX ||
        max_staleness > UINT32_MAX) {
        return rl_fail(RL_CORRUPT,
                       "dispatcher state: order %" PRIu64 ", %" PRIu64
                       " prompts a step, staleness %" PRIu64,
                       order, prompts_per_step, max_staleness);
    }
    then.order = (enum dispatcher_order)order;
    then.prompts_per_step = (uint32_t)prompts_per_step;
    then.max_staleness = (uint32_t)max_staleness;
    return dispatcher_check_order(&out->options, &then);
}

static rl_status dispatcher_take_header(struct rl_cursor *cursor, struct dispatcher *out)
{
    (void)rl_cursor_view(cursor, 16); /* magic and format, checked before */
    uint64_t live = rl_cursor_u64(cursor);
    uint64_t window = rl_cursor_u64(cursor);
    RL_TRY(dispatcher_take_options(cursor, out));
    if (out->step_refills != NULL && window != dispatcher_window(out)) {
        return rl_fail(RL_CORRUPT, "dispatcher state: refills of %" PRIu64 " steps", window);
    }
    out->refills = rl_cursor_u64(cursor);
    uint64_t version = rl_cursor_u64(cursor);
    if (version > UINT32_MAX) {
        return rl_fail(RL_CORRUPT, "dispatcher state: version %" PRIu64, version);
    }
    out->version = (uint32_t)version;
    out->created = rl_cursor_u64(cursor);
    out->issues = rl_cursor_u64(cursor);
    out->reissues = rl_cursor_u64(cursor);
    out->trained = rl_cursor_u64(cursor);
    out->duplicates = rl_cursor_u64(cursor);
    out->unknown = rl_cursor_u64(cursor);
    for (int i = 0; i < DISPATCHER_REASON_COUNT; i++) {
        out->dropped[i] = rl_cursor_u64(cursor);
    }
    RL_TRY(dispatcher_reserve(out, live));
    out->live = live;
    return RL_OK;
}

static rl_status dispatcher_take_ticket(struct rl_cursor *cursor, struct dispatcher_ticket *out)
{
    out->number = rl_cursor_u64(cursor);
    out->prompt_id = rl_cursor_u64(cursor);
    uint64_t epoch_version = rl_cursor_u64(cursor);
    uint64_t count_worker = rl_cursor_u64(cursor);
    uint64_t state = rl_cursor_u64(cursor);
    if (state >= DISPATCHER_STATE_COUNT) {
        return rl_fail(RL_CORRUPT, "dispatcher state: ticket %" PRIu64 " in state %" PRIu64,
                       out->number, state);
    }
    out->epoch = (uint32_t)(epoch_version >> 32);
    out->version = (uint32_t)epoch_version;
    out->issue_count = (uint32_t)(count_worker >> 32);
    out->worker = (int32_t)(uint32_t)count_worker;
    out->state = (enum dispatcher_state)state;
    if (out->state == DISPATCHER_ISSUED || out->state == DISPATCHER_GENERATED) {
        out->state = DISPATCHER_PENDING; /* the worker that had it is gone */
        out->worker = -1;
    }
    return RL_OK;
}

/* Does the order of prompts still give the prompts that were handed out? */
static rl_status dispatcher_check_prompt(const struct dispatcher *dispatcher,
                                         const struct dispatcher_ticket *ticket)
{
    uint64_t prompt_id = 0;
    uint32_t epoch = 0;
    RL_TRY(
        dispatcher->options.next(dispatcher->options.next_arg, ticket->number, &prompt_id, &epoch));
    if (prompt_id != ticket->prompt_id || epoch != ticket->epoch) {
        return rl_fail(RL_INVALID,
                       "dispatcher state: ticket %" PRIu64 " was prompt %" PRIu64
                       " of epoch %" PRIu32 " but is now prompt %" PRIu64 " of epoch %" PRIu32
                       ": the data or their order have changed",
                       ticket->number, ticket->prompt_id, ticket->epoch, prompt_id, epoch);
    }
    return RL_OK;
}

static int dispatcher_compare_number(const void *left, const void *right)
{
    const struct dispatcher_ticket *a = left;
    const struct dispatcher_ticket *b = right;
    return (a->number > b->number) - (a->number < b->number);
}

static rl_status dispatcher_parse(const uint8_t *data, size_t bytes, struct dispatcher *out)
{
    struct rl_cursor cursor = {.at = data, .left = bytes};
    RL_TRY(dispatcher_take_header(&cursor, out));
    for (uint64_t i = 0; i < out->live; i++) {
        RL_TRY(dispatcher_take_ticket(&cursor, &out->tickets[i]));
    }
    if (out->step_refills == NULL && out->live > 0) { /* refills of a run that was in fixed_lag */
        qsort(out->tickets, out->live, sizeof(*out->tickets), dispatcher_compare_number);
    }
    for (uint64_t i = 0; i < dispatcher_window(out); i++) {
        out->step_refills[i] = (uint32_t)rl_cursor_u64(&cursor);
    }
    if (cursor.problem != NULL || dispatcher_check(out) != RL_OK) {
        return rl_fail(RL_CORRUPT, "dispatcher state: its counters do not add up");
    }
    for (uint64_t i = 0; i < out->live; i++) {
        RL_TRY(dispatcher_check_prompt(out, &out->tickets[i]));
    }
    return RL_OK;
}

rl_status dispatcher_load(struct dispatcher *dispatcher, const uint8_t *data, size_t bytes)
{
    RL_TRY(dispatcher_check_bytes(data, bytes));
    struct dispatcher *loaded = NULL;
    RL_TRY(dispatcher_create(&dispatcher->options, &loaded));
    rl_status status = dispatcher_parse(data, bytes, loaded);
    if (status == RL_OK) {
        struct dispatcher before = *dispatcher;
        *dispatcher = *loaded;
        *loaded = before;
    }
    dispatcher_destroy(loaded);
    return status;
}
