/* The groups that wait to be trained on. Owns them until they leave in a batch; the dispatcher,
 * which is borrowed, hears of everything. The invariant: groups inside and tickets in state scored
 * are the same set, seen between two calls. */
#include "trainer/admission.h"

#include "core/log.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ADMISSION_WASTE_ROUNDS = 10 };

struct admission {
    struct admission_options options;
    struct dispatcher *dispatcher;
    struct trajectory_group **waiting; /* [count] in order of arrival */
    uint32_t count, reserved;
    struct admission_counts counts; /* since the last batch */
};

void admission_options_from_config(const struct rl_config *config, struct admission_options *out)
{
    int order = config->async.enabled ? config->async.order : CONFIG_ORDER_READY;
    *out = (struct admission_options){
        .prompts_per_step = (uint32_t)config->rollout.prompts_per_step,
        .samples_per_prompt = (uint32_t)config->rollout.samples_per_prompt,
        .max_staleness = rl_config_first_staleness(config),
        .order = (enum dispatcher_order)order,
        .dynamic_sampling = config->loss.dynamic_sampling,
        .dynamic_sampling_rounds = (uint32_t)config->loss.dynamic_sampling_rounds,
    };
}

rl_status admission_create(const struct admission_options *options, struct dispatcher *dispatcher,
                           struct admission **out)
{
    if (options->prompts_per_step == 0 || options->samples_per_prompt == 0 ||
        (options->dynamic_sampling && options->dynamic_sampling_rounds == 0)) {
        return rl_fail(RL_INVALID,
                       "admission: prompts_per_step %" PRIu32 ", samples_per_prompt %" PRIu32
                       ", dynamic_sampling_rounds %" PRIu32 ": each must be at least 1",
                       options->prompts_per_step, options->samples_per_prompt,
                       options->dynamic_sampling_rounds);
    }
    struct admission *admission = calloc(1, sizeof(*admission));
    if (admission == NULL) {
        return rl_fail(RL_NO_MEMORY, "admission: no memory for %zu bytes", sizeof(*admission));
    }
    admission->options = *options;
    admission->dispatcher = dispatcher;
    *out = admission;
    return RL_OK;
}

void admission_set_max_staleness(struct admission *admission, uint32_t max_staleness)
{
    admission->options.max_staleness = max_staleness;
}

void admission_destroy(struct admission *admission)
{
    if (admission == NULL) {
        return;
    }
    for (uint32_t i = 0; i < admission->count; i++) {
        trajectory_group_destroy(admission->waiting[i]);
    }
    free(admission->waiting);
    free(admission);
}

/* --- what an arriving group is worth ------------------------------------------------------------
 */

static rl_status admission_grow(struct admission *admission)
{
    if (admission->count < admission->reserved) {
        return RL_OK;
    }
    uint32_t reserved = admission->reserved > 0 ? admission->reserved * 2 : 16;
    struct trajectory_group **waiting =
        reserved > admission->reserved
            ? realloc(admission->waiting, (size_t)reserved * sizeof(struct trajectory_group *))
            : NULL;
    if (waiting == NULL) {
        return rl_fail(RL_NO_MEMORY, "admission: no memory for %" PRIu32 " groups", reserved);
    }
    admission->waiting = waiting;
    admission->reserved = reserved;
    return RL_OK;
}

static uint32_t admission_tokens(const struct trajectory_group *group)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < group->sample_count; i++) {
        uint32_t tokens = group->samples[i].completion_count;
        most = tokens > most ? tokens : most;
    }
    return most;
}

/* True if the engine ended a sample because its log-prob was not finite: a matter for the learner's
 * guard, which must see such groups whatever their rewards are. */
static bool admission_aborted(const struct trajectory_group *group)
{
    for (uint32_t i = 0; i < group->sample_count; i++) {
        if (group->samples[i].finish == RL_FINISH_ABORTED) {
            return true;
        }
    }
    return false;
}

static bool admission_fixed(const struct admission *admission)
{
    return admission->options.order == DISPATCHER_FIXED_LAG;
}

/* Are the group's tokens those of a version that may have made them? In fixed_lag a group without
 * tokens is one that this version ends at once: the same group would come again. */
static rl_status admission_examine_versions(const struct admission *admission,
                                            const struct dispatcher_ticket *ticket,
                                            const struct trajectory_group *group)
{
    uint32_t oldest;
    uint32_t newest;
    uint32_t now = dispatcher_version(admission->dispatcher);
    bool empty = admission_tokens(group) == 0;
    trajectory_group_versions(group, &oldest, &newest);
    if (admission_fixed(admission)) {
        if (!empty && (oldest != ticket->version || newest != ticket->version)) {
            return rl_fail(RL_INVALID,
                           "group of ticket %" PRIu64 ": versions %" PRIu32 " to %" PRIu32
                           ", expected version %" PRIu32 " alone",
                           group->ticket, oldest, newest, ticket->version);
        }
        return RL_OK;
    }
    if (newest > now || (empty && !admission_aborted(group))) {
        return rl_fail(RL_INVALID,
                       "group of ticket %" PRIu64 ": no token, or version %" PRIu32
                       " newer than the learner's %" PRIu32,
                       group->ticket, newest, now);
    }
    return RL_OK;
}

/* Does the group belong to its ticket and make sense? */
static rl_status admission_examine(const struct admission *admission,
                                   const struct trajectory_group *group)
{
    RL_TRY(trajectory_group_check(group));
    struct dispatcher_ticket ticket;
    rl_status found = dispatcher_find(admission->dispatcher, group->ticket, &ticket);
    if (found != RL_OK || ticket.prompt_id != group->prompt_id || ticket.epoch != group->epoch) {
        return rl_fail(RL_INVALID,
                       "group of ticket %" PRIu64 ": prompt %" PRIu64 " of epoch %" PRIu32
                       " is not the ticket's",
                       group->ticket, group->prompt_id, group->epoch);
    }
    if (group->sample_count != admission->options.samples_per_prompt) {
        return rl_fail(RL_INVALID,
                       "group of ticket %" PRIu64 ": %" PRIu32 " samples, expected %" PRIu32,
                       group->ticket, group->sample_count, admission->options.samples_per_prompt);
    }
    return admission_examine_versions(admission, &ticket, group);
}

static uint32_t admission_age(const struct admission *admission,
                              const struct trajectory_group *group)
{
    uint32_t oldest;
    uint32_t newest;
    if (admission_tokens(group) == 0) {
        return 0; /* nothing in it is of any version */
    }
    trajectory_group_versions(group, &oldest, &newest);
    return dispatcher_version(admission->dispatcher) - oldest;
}

bool admission_young(const struct admission *admission, const struct trajectory_group *group)
{
    return admission_fixed(admission) ||
           admission_age(admission, group) <= admission->options.max_staleness;
}

bool admission_awaits(const struct admission *admission, uint64_t ticket)
{
    struct dispatcher_ticket found;
    return dispatcher_find(admission->dispatcher, ticket, &found) == RL_OK &&
           found.state != DISPATCHER_SCORED && found.state != DISPATCHER_ADMITTED;
}

rl_status admission_check_partial(const struct admission *admission,
                                  const struct trajectory_group *group)
{
    RL_TRY(admission_examine(admission, group));
    return admission_awaits(admission, group->ticket) ? RL_OK : RL_AGAIN;
}

static bool admission_scorable(const struct trajectory_group *group)
{
    for (uint32_t i = 0; i < group->sample_count; i++) {
        if (group->samples[i].reward_valid) {
            return true;
        }
    }
    return false;
}

/* All valid samples equally accurate; a group of one sample is no case for this rule. */
static bool admission_flat(const struct trajectory_group *group)
{
    float low = INFINITY;
    float high = -INFINITY;
    for (uint32_t i = 0; i < group->sample_count; i++) {
        if (group->samples[i].reward_valid) {
            low = fminf(low, group->samples[i].accuracy);
            high = fmaxf(high, group->samples[i].accuracy);
        }
    }
    return group->sample_count > 1 && !(high > low);
}

/* All valid samples right. */
static bool admission_solved(const struct trajectory_group *group)
{
    for (uint32_t i = 0; i < group->sample_count; i++) {
        if (group->samples[i].reward_valid && group->samples[i].accuracy < 1) {
            return false;
        }
    }
    return true;
}

/* True if the group is worth keeping; else *reason says why not. */
static bool admission_judge(struct admission *admission, const struct trajectory_group *group,
                            enum dispatcher_reason *reason)
{
    struct admission_counts *counts = &admission->counts;
    if (admission_examine(admission, group) != RL_OK) {
        counts->rejected++;
        *reason = DISPATCHER_REJECTED;
        return false;
    }
    bool fixed = admission_fixed(admission);
    if (!admission_young(admission, group)) {
        counts->stale++;
        *reason = DISPATCHER_STALE;
        return false;
    }
    if (admission_aborted(group)) {
        return true;
    }
    if (!admission_scorable(group)) {
        counts->unscorable++;
        *reason = DISPATCHER_UNSCORABLE;
        return fixed && !admission->options.dynamic_sampling;
    }
    bool flat = admission_flat(group);
    counts->zero_variance += flat ? 1 : 0;
    if (flat && admission->options.dynamic_sampling) {
        bool solved = admission_solved(group);
        counts->filtered_solved += solved ? 1 : 0;
        counts->filtered_unsolved += solved ? 0 : 1;
        *reason = DISPATCHER_ZERO_VARIANCE;
        return false;
    }
    return true;
}

/* A group that is not worth keeping. In fixed_lag its ticket may not vanish: a malformed group is
 * asked for again. Takes the group. */
static rl_status admission_discard(struct admission *admission, struct trajectory_group *group,
                                   enum dispatcher_reason reason)
{
    uint64_t number = group->ticket;
    trajectory_group_destroy(group);
    if (admission_fixed(admission) && reason == DISPATCHER_REJECTED) {
        return dispatcher_requeue(admission->dispatcher, number);
    }
    return dispatcher_drop(admission->dispatcher, number, reason);
}

rl_status admission_offer(struct admission *admission, struct trajectory_group *group)
{
    uint64_t number = group->ticket;
    admission->counts.offered++;
    enum dispatcher_verdict verdict = dispatcher_deliver(admission->dispatcher, number);
    if (verdict != DISPATCHER_ACCEPTED) {
        bool unknown = verdict == DISPATCHER_UNKNOWN;
        admission->counts.unknown += unknown ? 1 : 0;
        admission->counts.duplicates += unknown ? 0 : 1;
        rl_log(unknown ? RL_LOG_WARN : RL_LOG_DEBUG,
               "group of ticket %" PRIu64 " from rank %" PRId32 " thrown away: %s", number,
               group->worker, unknown ? "no such ticket" : "it came before");
        trajectory_group_destroy(group);
        return RL_OK;
    }
    enum dispatcher_reason reason;
    if (!admission_judge(admission, group, &reason)) {
        return admission_discard(admission, group, reason);
    }
    rl_status status = admission_grow(admission);
    if (status != RL_OK) {
        trajectory_group_destroy(group);
        RL_TRY(dispatcher_requeue(admission->dispatcher, number));
        return status;
    }
    admission->waiting[admission->count++] = group;
    admission->counts.queued++;
    return RL_OK;
}

const struct admission_counts *admission_counts(const struct admission *admission)
{
    return &admission->counts;
}

/* --- making a batch -----------------------------------------------------------------------------
 */

static rl_status admission_sweep(struct admission *admission)
{
    uint32_t kept = 0;
    rl_status status = RL_OK;
    if (admission_fixed(admission)) {
        return RL_OK;
    }
    for (uint32_t i = 0; i < admission->count; i++) {
        struct trajectory_group *group = admission->waiting[i];
        if (admission_age(admission, group) <= admission->options.max_staleness) {
            admission->waiting[kept++] = group;
            continue;
        }
        rl_status dropped = dispatcher_drop(admission->dispatcher, group->ticket, DISPATCHER_STALE);
        status = status == RL_OK ? dropped : status;
        admission->counts.stale++;
        trajectory_group_destroy(group);
    }
    admission->count = kept;
    return status;
}

struct admission_rank {
    uint32_t oldest; /* version of the oldest token */
    uint64_t ticket;
    uint32_t place; /* in waiting */
};

static int admission_compare_age(const void *left, const void *right)
{
    const struct admission_rank *a = left;
    const struct admission_rank *b = right;
    if (a->oldest != b->oldest) {
        return a->oldest < b->oldest ? -1 : 1;
    }
    return (a->ticket > b->ticket) - (a->ticket < b->ticket);
}

static int admission_compare_ticket(const void *left, const void *right)
{
    const struct admission_rank *a = left;
    const struct admission_rank *b = right;
    return (a->ticket > b->ticket) - (a->ticket < b->ticket);
}

/* Are the groups of the B lowest live tickets all here? */
static bool admission_head_complete(const struct admission *admission)
{
    uint64_t live = 0;
    const struct dispatcher_ticket *tickets = dispatcher_tickets(admission->dispatcher, &live);
    uint32_t wanted = admission->options.prompts_per_step;
    for (uint32_t i = 0; i < wanted; i++) {
        if (i >= live || tickets[i].state != DISPATCHER_SCORED) {
            return false;
        }
    }
    return true;
}

/* In the orders ticket and fixed_lag: the groups of the B lowest live tickets in `ranks`. */
static void admission_select_head(const struct admission *admission, struct admission_rank *ranks)
{
    uint64_t live = 0;
    const struct dispatcher_ticket *tickets = dispatcher_tickets(admission->dispatcher, &live);
    for (uint32_t i = 0; i < admission->options.prompts_per_step; i++) {
        ranks[i].ticket = tickets[i].number;
        for (uint32_t place = 0; place < admission->count; place++) {
            if (admission->waiting[place]->ticket == tickets[i].number) {
                ranks[i].place = place;
            }
        }
    }
}

/* The B groups with the oldest tokens first in `ranks`, those in order of ticket. */
static void admission_select_oldest(const struct admission *admission, struct admission_rank *ranks)
{
    for (uint32_t i = 0; i < admission->count; i++) {
        uint32_t newest;
        trajectory_group_versions(admission->waiting[i], &ranks[i].oldest, &newest);
        ranks[i].ticket = admission->waiting[i]->ticket;
        ranks[i].place = i;
    }
    qsort(ranks, admission->count, sizeof(*ranks), admission_compare_age);
    qsort(ranks, admission->options.prompts_per_step, sizeof(*ranks), admission_compare_ticket);
}

static void admission_close_gaps(struct admission *admission)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < admission->count; i++) {
        if (admission->waiting[i] != NULL) {
            admission->waiting[kept++] = admission->waiting[i];
        }
    }
    admission->count = kept;
}

static rl_status admission_fill(struct admission *admission, const struct admission_rank *ranks,
                                struct admission_batch *batch)
{
    double ages = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        RL_TRY(dispatcher_admit(admission->dispatcher, ranks[i].ticket));
        struct trajectory_group *group = admission->waiting[ranks[i].place];
        admission->waiting[ranks[i].place] = NULL;
        uint32_t age = admission_tokens(group) > 0 ? admission_age(admission, group) : 0;
        ages += age;
        batch->staleness_max = age > batch->staleness_max ? age : batch->staleness_max;
        batch->groups[i] = group;
    }
    batch->staleness_mean = ages / batch->count;
    batch->counts = admission->counts;
    return RL_OK;
}

/* Groups that the next batch has cost so far. In the order ticket, groups of later batches arrive
 * meanwhile and count as one batch's worth for each that may be ahead. */
static uint64_t admission_effort(const struct admission *admission)
{
    const struct admission_counts *counts = &admission->counts;
    uint64_t dropped = counts->filtered_solved + counts->filtered_unsolved;
    uint64_t wanted = admission->options.prompts_per_step;
    switch (admission->options.order) {
    case DISPATCHER_FIXED_LAG:
        return wanted + dispatcher_refills(admission->dispatcher);
    case DISPATCHER_TICKET:
        return dropped / ((uint64_t)admission->options.max_staleness + 1);
    case DISPATCHER_READY:
    default:
        return counts->queued + dropped;
    }
}

/* Refilling has a bound: prompts that are all too easy or too hard would be drawn for ever. */
static rl_status admission_check_variance(const struct admission *admission)
{
    const struct admission_counts *counts = &admission->counts;
    uint64_t dropped = counts->filtered_solved + counts->filtered_unsolved;
    uint64_t seen = admission_effort(admission);
    uint64_t limit =
        (uint64_t)admission->options.dynamic_sampling_rounds * admission->options.prompts_per_step;
    if (!admission->options.dynamic_sampling || dropped == 0 || seen < limit) {
        return RL_AGAIN;
    }
    return rl_fail(RL_NOT_FOUND,
                   "dynamic sampling: %" PRIu64
                   " groups asked for, and since the last step %" PRIu64
                   " came all right and %" PRIu64 " all wrong, too few usable of the %" PRIu32
                   " needed: the prompts are too easy or too hard "
                   "(loss.dynamic_sampling_rounds is %" PRIu32 ")",
                   seen, counts->filtered_solved, counts->filtered_unsolved,
                   admission->options.prompts_per_step, admission->options.dynamic_sampling_rounds);
}

/* The same for groups that are of no use to anybody. No version passes between two batches, so at
 * most one capacity's worth of groups can honestly be stale. */
static rl_status admission_check_waste(const struct admission *admission)
{
    const struct admission_counts *counts = &admission->counts;
    uint64_t useless = counts->unscorable + counts->rejected + counts->stale;
    uint64_t limit = ADMISSION_WASTE_ROUNDS * ((uint64_t)admission->options.max_staleness + 1) *
                     admission->options.prompts_per_step;
    if (useless < limit) {
        return RL_AGAIN;
    }
    return rl_fail(RL_NOT_FOUND,
                   "no batch: since the last step %" PRIu64 " groups were unscorable, %" PRIu64
                   " malformed and %" PRIu64 " too old, %" PRIu32 " usable of %" PRIu32 " needed",
                   counts->unscorable, counts->rejected, counts->stale, admission->count,
                   admission->options.prompts_per_step);
}

static rl_status admission_exhausted(const struct admission *admission)
{
    rl_status status = admission_check_variance(admission);
    return status == RL_AGAIN ? admission_check_waste(admission) : status;
}

rl_status admission_take(struct admission *admission, struct admission_batch *out)
{
    RL_TRY(admission_sweep(admission));
    uint32_t wanted = admission->options.prompts_per_step;
    bool ready = admission->options.order == DISPATCHER_READY;
    if (admission->count < wanted || (!ready && !admission_head_complete(admission))) {
        return admission_exhausted(admission);
    }
    struct admission_batch batch = {.count = wanted};
    struct admission_rank *ranks = calloc(admission->count, sizeof(*ranks));
    batch.groups = calloc(wanted, sizeof(struct trajectory_group *));
    rl_status status = RL_OK;
    if (ranks == NULL || batch.groups == NULL) {
        status =
            rl_fail(RL_NO_MEMORY, "admission: no memory for a batch of %" PRIu32 " groups", wanted);
        goto fail;
    }
    if (ready) {
        admission_select_oldest(admission, ranks);
    } else {
        admission_select_head(admission, ranks);
    }
    RL_TRY_GOTO(admission_fill(admission, ranks, &batch), status, fail);
    admission_close_gaps(admission);
    admission->counts = (struct admission_counts){0};
    free(ranks);
    *out = batch;
    return RL_OK;
fail:
    if (batch.groups != NULL) {
        admission_close_gaps(admission);
        admission_batch_fini(&batch);
    }
    free(ranks);
    return status;
}

rl_status admission_trained(struct admission *admission, const struct admission_batch *batch)
{
    for (uint32_t i = 0; i < batch->count; i++) {
        RL_TRY(dispatcher_train(admission->dispatcher, batch->groups[i]->ticket));
    }
    return RL_OK;
}

rl_status admission_rejected(struct admission *admission, const struct admission_batch *batch)
{
    if (admission_fixed(admission)) {
        return rl_fail(RL_INVALID, "admission: in fixed_lag no batch can be given up");
    }
    for (uint32_t i = 0; i < batch->count; i++) {
        uint64_t ticket = batch->groups[i]->ticket;
        RL_TRY(dispatcher_drop(admission->dispatcher, ticket, DISPATCHER_REJECTED));
    }
    return RL_OK;
}

void admission_batch_fini(struct admission_batch *batch)
{
    for (uint32_t i = 0; i < batch->count && batch->groups != NULL; i++) {
        trajectory_group_destroy(batch->groups[i]);
    }
    free(batch->groups);
    *batch = (struct admission_batch){0};
}

/* --- checkpoints --------------------------------------------------------------------------------
 */

struct trajectory_group *const *admission_waiting(const struct admission *admission,
                                                  uint32_t *count)
{
    *count = admission->count;
    return admission->waiting;
}

rl_status admission_restore(struct admission *admission, struct trajectory_group *group)
{
    RL_TRY(admission_examine(admission, group));
    for (uint32_t i = 0; i < admission->count; i++) {
        if (admission->waiting[i]->ticket == group->ticket) {
            return rl_fail(RL_INVALID, "group of ticket %" PRIu64 " is restored twice",
                           group->ticket);
        }
    }
    RL_TRY(admission_grow(admission));
    RL_TRY(dispatcher_requeue(admission->dispatcher, group->ticket));
    if (dispatcher_deliver(admission->dispatcher, group->ticket) != DISPATCHER_ACCEPTED) {
        return rl_fail(RL_INTERNAL, "group of ticket %" PRIu64 " was refused", group->ticket);
    }
    admission->waiting[admission->count++] = group;
    return RL_OK;
}
