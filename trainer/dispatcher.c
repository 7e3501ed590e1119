/* Tickets and the data cursor. Owns the table of live tickets, in the order in which they are
 * consumed; a number below the cursor that is not in the table is trained or dropped. The invariant
 * is dispatcher_check. */
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
    uint32_t *step_refills = options->order == DISPATCHER_FIXED_LAG
                                 ? calloc((size_t)options->max_staleness + 1, sizeof(uint32_t))
                                 : NULL;
    if (dispatcher == NULL || (options->order == DISPATCHER_FIXED_LAG && step_refills == NULL)) {
        free(dispatcher);
        free(step_refills);
        return rl_fail(RL_NO_MEMORY, "dispatcher: no memory for a window of %" PRIu32 " steps",
                       options->max_staleness);
    }
    dispatcher->options = *options;
    dispatcher->step_refills = step_refills;
    *out = dispatcher;
    return RL_OK;
}

void dispatcher_destroy(struct dispatcher *dispatcher)
{
    if (dispatcher == NULL) {
        return;
    }
    free(dispatcher->step_refills);
    free(dispatcher->tickets);
    free(dispatcher);
}

/* --- steps and refills of fixed_lag ---------------------------------------------------------- */

static bool dispatcher_fixed(const struct dispatcher *dispatcher)
{
    return dispatcher->options.order == DISPATCHER_FIXED_LAG;
}

uint64_t dispatcher_step(const struct dispatcher *dispatcher, uint64_t number)
{
    return (number & DISPATCHER_REFILL) != 0
               ? (number & (DISPATCHER_REFILL - 1)) >> DISPATCHER_REFILL_BITS
               : number / dispatcher->options.prompts_per_step;
}

static uint32_t dispatcher_refill_index(uint64_t number)
{
    return (uint32_t)(number & ((UINT64_C(1) << DISPATCHER_REFILL_BITS) - 1));
}

uint64_t dispatcher_key(const struct dispatcher *dispatcher, uint64_t number)
{
    if (!dispatcher_fixed(dispatcher)) {
        return number;
    }
    bool refill = (number & DISPATCHER_REFILL) != 0;
    uint64_t index = refill
                         ? UINT64_C(1) << DISPATCHER_REFILL_BITS | dispatcher_refill_index(number)
                         : number % dispatcher->options.prompts_per_step;
    return dispatcher_step(dispatcher, number) << (DISPATCHER_REFILL_BITS + 1) | index;
}

static uint32_t *dispatcher_step_refills(const struct dispatcher *dispatcher, uint64_t step)
{
    return &dispatcher->step_refills[step % ((uint64_t)dispatcher->options.max_staleness + 1)];
}

uint32_t dispatcher_refills(const struct dispatcher *dispatcher)
{
    return dispatcher_fixed(dispatcher) ? *dispatcher_step_refills(dispatcher, dispatcher->version)
                                        : 0;
}

/* Was a ticket of this number ever made? */
static bool dispatcher_made(const struct dispatcher *dispatcher, uint64_t number)
{
    if ((number & DISPATCHER_REFILL) == 0) {
        return number < dispatcher->created;
    }
    uint64_t step = dispatcher_step(dispatcher, number);
    if (step < dispatcher->version || !dispatcher_fixed(dispatcher)) {
        return dispatcher->refills > 0;
    }
    return step - dispatcher->version <= dispatcher->options.max_staleness &&
           dispatcher_refill_index(number) < *dispatcher_step_refills(dispatcher, step);
}

/* --- the table of live tickets --------------------------------------------------------------- */

static uint64_t dispatcher_capacity_fixed(const struct dispatcher *dispatcher)
{
    uint64_t steps = (uint64_t)dispatcher->version + dispatcher->options.max_staleness + 1;
    uint64_t limit = steps * dispatcher->options.prompts_per_step;
    return dispatcher->created < limit ? limit - dispatcher->created : 0;
}

uint64_t dispatcher_capacity(const struct dispatcher *dispatcher)
{
    if (dispatcher_fixed(dispatcher)) {
        return dispatcher_capacity_fixed(dispatcher);
    }
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

/* Where a ticket of this number is, or would be, in the table. */
static uint64_t dispatcher_place(const struct dispatcher *dispatcher, uint64_t number)
{
    uint64_t key = dispatcher_key(dispatcher, number);
    uint64_t low = 0;
    uint64_t high = dispatcher->live;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (dispatcher_key(dispatcher, dispatcher->tickets[middle].number) < key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Index of a live ticket, or UINT64_MAX. */
static uint64_t dispatcher_index(const struct dispatcher *dispatcher, uint64_t number)
{
    uint64_t place = dispatcher_place(dispatcher, number);
    bool found = place < dispatcher->live && dispatcher->tickets[place].number == number;
    return found ? place : UINT64_MAX;
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

/* A pending ticket of this number in its place of the table. */
static rl_status dispatcher_make(struct dispatcher *dispatcher, uint64_t number,
                                 struct dispatcher_ticket **out)
{
    RL_TRY(dispatcher_reserve(dispatcher, dispatcher->live + 1));
    struct dispatcher_ticket ticket = {.number = number, .worker = -1, .state = DISPATCHER_PENDING};
    if (dispatcher_fixed(dispatcher)) {
        uint64_t step = dispatcher_step(dispatcher, number);
        uint64_t lag = dispatcher->options.max_staleness;
        ticket.version = step > lag ? (uint32_t)(step - lag) : 0;
    }
    RL_TRY(dispatcher->options.next(dispatcher->options.next_arg, ticket.number, &ticket.prompt_id,
                                    &ticket.epoch));
    uint64_t place = dispatcher_place(dispatcher, number);
    memmove(&dispatcher->tickets[place + 1], &dispatcher->tickets[place],
            (dispatcher->live - place) * sizeof(*dispatcher->tickets));
    dispatcher->tickets[place] = ticket;
    dispatcher->live++;
    *out = &dispatcher->tickets[place];
    return RL_OK;
}

/* The next refill of the step that `number` belongs to. */
static rl_status dispatcher_refill(struct dispatcher *dispatcher, uint64_t number)
{
    uint64_t step = dispatcher_step(dispatcher, number);
    uint32_t *made = dispatcher_step_refills(dispatcher, step);
    struct dispatcher_ticket *ticket = NULL;
    if (*made == UINT32_C(1) << DISPATCHER_REFILL_BITS) {
        return rl_fail(RL_INVALID, "dispatcher: step %" PRIu64 " has had %" PRIu32 " refills", step,
                       *made);
    }
    RL_TRY(dispatcher_make(dispatcher, DISPATCHER_REFILL | step << DISPATCHER_REFILL_BITS | *made,
                           &ticket));
    (*made)++;
    dispatcher->refills++;
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
        RL_TRY(dispatcher_make(dispatcher, dispatcher->created, &ticket));
        dispatcher->created++;
    }
    dispatcher->issues++;
    dispatcher->reissues += ticket->issue_count > 0 ? 1 : 0;
    ticket->issue_count++;
    ticket->version = dispatcher_fixed(dispatcher) ? ticket->version : dispatcher->version;
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
    if (!dispatcher_made(dispatcher, number)) {
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
    if (dispatcher_fixed(dispatcher)) {
        RL_TRY(dispatcher_refill(dispatcher, number));
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
    for (uint64_t step = dispatcher->version; dispatcher_fixed(dispatcher) && step < version;
         step++) {
        *dispatcher_step_refills(dispatcher, step) = 0; /* now the count of step + eta + 1 */
    }
    dispatcher->version = version;
    dispatcher->ahead = 0;
    return RL_OK;
}

rl_status dispatcher_set_max_staleness(struct dispatcher *dispatcher, uint32_t max_staleness)
{
    if (dispatcher_fixed(dispatcher)) {
        return rl_fail(RL_INVALID, "dispatcher: in fixed_lag the lag cannot change");
    }
    dispatcher->options.max_staleness = max_staleness;
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
        .created = dispatcher->created + dispatcher->refills,
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
        bool ordered = i == 0 || dispatcher_key(dispatcher, ticket[-1].number) <
                                     dispatcher_key(dispatcher, ticket->number);
        bool issued =
            !dispatcher_at_worker(ticket) || (ticket->worker >= 0 && ticket->issue_count > 0);
        bool waiting = ticket->state != DISPATCHER_PENDING || ticket->worker == -1;
        hand_overs += ticket->issue_count;
        if (!ordered || !issued || !waiting || !dispatcher_made(dispatcher, ticket->number) ||
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
    uint64_t created = dispatcher->created + dispatcher->refills;
    if (known != created || dispatcher->ahead > dispatcher->trained) {
        return rl_fail(RL_INTERNAL,
                       "dispatcher: %" PRIu64 " tickets made, but %" PRIu64 " live + %" PRIu64
                       " trained + %" PRIu64 " dropped = %" PRIu64,
                       created, dispatcher->live, dispatcher->trained, dropped, known);
    }
    return dispatcher_check_table(dispatcher);
}
