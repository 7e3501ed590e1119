/* Tickets and the data cursor. Owns the table of live tickets, sorted by number; a number below the
 * cursor that is not in the table is trained or dropped. The invariant is dispatcher_check. */
#include "trainer/dispatcher.h"

#include "core/log.h"
#include "trainer/dispatcher_state.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

rl_status dispatcher_create(const struct dispatcher_options *options, struct dispatcher **out)
{
    if (options->prompts_per_step == 0 || options->next == NULL) {
        return rl_fail(RL_INVALID,
                       "dispatcher: prompts_per_step is %" PRIu32
                       " and must be at least 1, with an order of prompts",
                       options->prompts_per_step);
    }
    struct dispatcher *dispatcher = calloc(1, sizeof(*dispatcher));
    if (dispatcher == NULL) {
        return rl_fail(RL_NO_MEMORY, "dispatcher: no memory for %zu bytes", sizeof(*dispatcher));
    }
    dispatcher->options = *options;
    *out = dispatcher;
    return RL_OK;
}

void dispatcher_destroy(struct dispatcher *dispatcher)
{
    if (dispatcher == NULL) {
        return;
    }
    free(dispatcher->tickets);
    free(dispatcher);
}

uint64_t dispatcher_capacity(const struct dispatcher *dispatcher)
{
    uint64_t limit =
        ((uint64_t)dispatcher->options.max_staleness + 1) * dispatcher->options.prompts_per_step;
    uint64_t used = dispatcher->live + dispatcher->ahead;
    return used < limit ? limit - used : 0;
}

static bool dispatcher_at_worker(const struct dispatcher_ticket *ticket)
{
    return ticket->state == DISPATCHER_ISSUED || ticket->state == DISPATCHER_GENERATED;
}

uint32_t dispatcher_outstanding(const struct dispatcher *dispatcher, int32_t worker)
{
    uint32_t count = 0;
    for (uint64_t i = 0; i < dispatcher->live; i++) {
        const struct dispatcher_ticket *ticket = &dispatcher->tickets[i];
        count += ticket->worker == worker && dispatcher_at_worker(ticket) ? 1 : 0;
    }
    return count;
}

int32_t dispatcher_pick_worker(const struct dispatcher *dispatcher, const int32_t *workers,
                               uint32_t count, uint32_t max_outstanding)
{
    int32_t best = -1;
    uint32_t fewest = max_outstanding;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t has = dispatcher_outstanding(dispatcher, workers[i]);
        if (has < fewest) {
            fewest = has;
            best = workers[i];
        }
    }
    return best;
}

/* Index of a live ticket, or UINT64_MAX. */
static uint64_t dispatcher_index(const struct dispatcher *dispatcher, uint64_t number)
{
    uint64_t low = 0;
    uint64_t high = dispatcher->live;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (dispatcher->tickets[middle].number < number) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    bool found = low < dispatcher->live && dispatcher->tickets[low].number == number;
    return found ? low : UINT64_MAX;
}

static struct dispatcher_ticket *dispatcher_get(struct dispatcher *dispatcher, uint64_t number)
{
    uint64_t index = dispatcher_index(dispatcher, number);
    return index != UINT64_MAX ? &dispatcher->tickets[index] : NULL;
}

static void dispatcher_remove(struct dispatcher *dispatcher, uint64_t number)
{
    uint64_t index = dispatcher_index(dispatcher, number);
    uint64_t after = dispatcher->live - index - 1;
    memmove(&dispatcher->tickets[index], &dispatcher->tickets[index + 1],
            after * sizeof(*dispatcher->tickets));
    dispatcher->live--;
}

rl_status dispatcher_reserve(struct dispatcher *dispatcher, uint64_t count)
{
    if (count <= dispatcher->reserved) {
        return RL_OK;
    }
    uint64_t reserved = dispatcher->reserved * 2 > count ? dispatcher->reserved * 2 : count;
    struct dispatcher_ticket *tickets =
        reserved <= SIZE_MAX / sizeof(*tickets)
            ? realloc(dispatcher->tickets, reserved * sizeof(*tickets))
            : NULL;
    if (tickets == NULL) {
        return rl_fail(RL_NO_MEMORY, "dispatcher: no memory for %" PRIu64 " tickets", reserved);
    }
    dispatcher->tickets = tickets;
    dispatcher->reserved = reserved;
    return RL_OK;
}

/* The next prompt as a pending ticket at the end of the table. */
static rl_status dispatcher_make(struct dispatcher *dispatcher, struct dispatcher_ticket **out)
{
    RL_TRY(dispatcher_reserve(dispatcher, dispatcher->live + 1));
    struct dispatcher_ticket ticket = {
        .number = dispatcher->created, .worker = -1, .state = DISPATCHER_PENDING};
    RL_TRY(dispatcher->options.next(dispatcher->options.next_arg, ticket.number, &ticket.prompt_id,
                                    &ticket.epoch));
    dispatcher->tickets[dispatcher->live] = ticket;
    *out = &dispatcher->tickets[dispatcher->live];
    dispatcher->live++;
    dispatcher->created++;
    return RL_OK;
}

static struct dispatcher_ticket *dispatcher_first_pending(struct dispatcher *dispatcher)
{
    for (uint64_t i = 0; i < dispatcher->live; i++) {
        if (dispatcher->tickets[i].state == DISPATCHER_PENDING) {
            return &dispatcher->tickets[i];
        }
    }
    return NULL;
}

rl_status dispatcher_issue(struct dispatcher *dispatcher, int32_t worker, uint32_t max_outstanding,
                           struct dispatcher_ticket *out)
{
    if (dispatcher_outstanding(dispatcher, worker) >= max_outstanding) {
        return RL_AGAIN;
    }
    struct dispatcher_ticket *ticket = dispatcher_first_pending(dispatcher);
    if (ticket == NULL) {
        if (dispatcher_capacity(dispatcher) == 0) {
            return RL_AGAIN;
        }
        RL_TRY(dispatcher_make(dispatcher, &ticket));
    }
    dispatcher->issues++;
    dispatcher->reissues += ticket->issue_count > 0 ? 1 : 0;
    ticket->issue_count++;
    ticket->version = dispatcher->version;
    ticket->worker = worker;
    ticket->state = DISPATCHER_ISSUED;
    *out = *ticket;
    return RL_OK;
}

void dispatcher_generated(struct dispatcher *dispatcher, uint64_t number, int32_t worker)
{
    struct dispatcher_ticket *ticket = dispatcher_get(dispatcher, number);
    if (ticket != NULL && ticket->state == DISPATCHER_ISSUED && ticket->worker == worker) {
        ticket->state = DISPATCHER_GENERATED;
    }
}

enum dispatcher_verdict dispatcher_deliver(struct dispatcher *dispatcher, uint64_t number)
{
    if (number >= dispatcher->created) {
        dispatcher->unknown++;
        return DISPATCHER_UNKNOWN;
    }
    struct dispatcher_ticket *ticket = dispatcher_get(dispatcher, number);
    bool awaited =
        ticket != NULL && (dispatcher_at_worker(ticket) || ticket->state == DISPATCHER_PENDING);
    if (!awaited) {
        dispatcher->duplicates++;
        return DISPATCHER_DUPLICATE;
    }
    ticket->state = DISPATCHER_SCORED;
    return DISPATCHER_ACCEPTED;
}

static rl_status dispatcher_not_live(const struct dispatcher *dispatcher, uint64_t number,
                                     const char *wish)
{
    return rl_fail(RL_INVALID,
                   "dispatcher: ticket %" PRIu64 " cannot be %s: it is not live (%" PRIu64
                   " made so far)",
                   number, wish, dispatcher->created);
}

/* Move a live ticket from one state to the next; anything else is an error of the caller. */
static rl_status dispatcher_advance(struct dispatcher *dispatcher, uint64_t number,
                                    enum dispatcher_state from, enum dispatcher_state to)
{
    struct dispatcher_ticket *ticket = dispatcher_get(dispatcher, number);
    if (ticket == NULL) {
        return dispatcher_not_live(dispatcher, number, "moved on");
    }
    if (ticket->state != from) {
        return rl_fail(RL_INVALID, "dispatcher: ticket %" PRIu64 " is in state %d, expected %d",
                       number, (int)ticket->state, (int)from);
    }
    ticket->state = to;
    return RL_OK;
}

rl_status dispatcher_admit(struct dispatcher *dispatcher, uint64_t number)
{
    return dispatcher_advance(dispatcher, number, DISPATCHER_SCORED, DISPATCHER_ADMITTED);
}

rl_status dispatcher_train(struct dispatcher *dispatcher, uint64_t number)
{
    RL_TRY(dispatcher_advance(dispatcher, number, DISPATCHER_ADMITTED, DISPATCHER_ADMITTED));
    dispatcher_remove(dispatcher, number);
    dispatcher->trained++;
    dispatcher->ahead++;
    return RL_OK;
}

rl_status dispatcher_drop(struct dispatcher *dispatcher, uint64_t number,
                          enum dispatcher_reason reason)
{
    if (dispatcher_index(dispatcher, number) == UINT64_MAX) {
        return dispatcher_not_live(dispatcher, number, "dropped");
    }
    dispatcher_remove(dispatcher, number);
    dispatcher->dropped[reason]++;
    return RL_OK;
}

static void dispatcher_set_pending(struct dispatcher_ticket *ticket)
{
    ticket->state = DISPATCHER_PENDING;
    ticket->worker = -1;
}

rl_status dispatcher_requeue(struct dispatcher *dispatcher, uint64_t number)
{
    struct dispatcher_ticket *ticket = dispatcher_get(dispatcher, number);
    if (ticket == NULL) {
        return dispatcher_not_live(dispatcher, number, "issued again");
    }
    dispatcher_set_pending(ticket);
    return RL_OK;
}

uint32_t dispatcher_worker_lost(struct dispatcher *dispatcher, int32_t worker)
{
    uint32_t count = 0;
    for (uint64_t i = 0; i < dispatcher->live; i++) {
        struct dispatcher_ticket *ticket = &dispatcher->tickets[i];
        if (ticket->worker == worker && dispatcher_at_worker(ticket)) {
            dispatcher_set_pending(ticket);
            count++;
        }
    }
    return count;
}

rl_status dispatcher_set_version(struct dispatcher *dispatcher, uint32_t version)
{
    if (version < dispatcher->version) {
        return rl_fail(RL_INVALID, "dispatcher: version went back from %" PRIu32 " to %" PRIu32,
                       dispatcher->version, version);
    }
    dispatcher->version = version;
    dispatcher->ahead = 0;
    return RL_OK;
}

uint32_t dispatcher_version(const struct dispatcher *dispatcher)
{
    return dispatcher->version;
}

uint64_t dispatcher_drop_all(struct dispatcher *dispatcher)
{
    uint64_t count = dispatcher->live;
    dispatcher->dropped[DISPATCHER_SURPLUS] += count;
    dispatcher->live = 0;
    return count;
}

rl_status dispatcher_find(const struct dispatcher *dispatcher, uint64_t number,
                          struct dispatcher_ticket *out)
{
    uint64_t index = dispatcher_index(dispatcher, number);
    if (index == UINT64_MAX) {
        return RL_NOT_FOUND;
    }
    *out = dispatcher->tickets[index];
    return RL_OK;
}

const struct dispatcher_ticket *dispatcher_tickets(const struct dispatcher *dispatcher,
                                                   uint64_t *count)
{
    *count = dispatcher->live;
    return dispatcher->tickets;
}

void dispatcher_count(const struct dispatcher *dispatcher, struct dispatcher_counters *out)
{
    *out = (struct dispatcher_counters){
        .created = dispatcher->created,
        .issues = dispatcher->issues,
        .reissues = dispatcher->reissues,
        .trained = dispatcher->trained,
        .duplicates = dispatcher->duplicates,
        .unknown = dispatcher->unknown,
    };
    memcpy(out->dropped, dispatcher->dropped, sizeof(out->dropped));
    for (uint64_t i = 0; i < dispatcher->live; i++) {
        out->live[dispatcher->tickets[i].state]++;
    }
}

/* Order and fields of the table of live tickets. */
static rl_status dispatcher_check_table(const struct dispatcher *dispatcher)
{
    uint64_t hand_overs = 0;
    for (uint64_t i = 0; i < dispatcher->live; i++) {
        const struct dispatcher_ticket *ticket = &dispatcher->tickets[i];
        bool ordered = i == 0 || dispatcher->tickets[i - 1].number < ticket->number;
        bool issued =
            !dispatcher_at_worker(ticket) || (ticket->worker >= 0 && ticket->issue_count > 0);
        bool waiting = ticket->state != DISPATCHER_PENDING || ticket->worker == -1;
        hand_overs += ticket->issue_count;
        if (!ordered || !issued || !waiting || ticket->number >= dispatcher->created ||
            ticket->version > dispatcher->version) {
            return rl_fail(RL_INTERNAL,
                           "dispatcher: live ticket %" PRIu64 " (state %d, worker %" PRId32
                           ", version %" PRIu32 ") breaks the order of the table",
                           ticket->number, (int)ticket->state, ticket->worker, ticket->version);
        }
    }
    if (hand_overs > dispatcher->issues || dispatcher->reissues > dispatcher->issues) {
        return rl_fail(RL_INTERNAL, "dispatcher: %" PRIu64 " issues, but live tickets had %" PRIu64,
                       dispatcher->issues, hand_overs);
    }
    return RL_OK;
}

rl_status dispatcher_check(const struct dispatcher *dispatcher)
{
    uint64_t dropped = 0;
    for (int i = 0; i < DISPATCHER_REASON_COUNT; i++) {
        dropped += dispatcher->dropped[i];
    }
    uint64_t known = dispatcher->live + dispatcher->trained + dropped;
    if (known != dispatcher->created || dispatcher->ahead > dispatcher->trained) {
        return rl_fail(RL_INTERNAL,
                       "dispatcher: %" PRIu64 " tickets made, but %" PRIu64 " live + %" PRIu64
                       " trained + %" PRIu64 " dropped = %" PRIu64,
                       dispatcher->created, dispatcher->live, dispatcher->trained, dropped, known);
    }
    return dispatcher_check_table(dispatcher);
}
