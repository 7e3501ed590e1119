/* See scheduler.h. Groups wait in a FIFO until all their samples have started; sequence slots are
 * scanned in index order, so a plan is a pure function of the calls made so far. */
#include "rollout/scheduler_internal.h"

#include "core/log.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Every slot's own pages, a prefix for every group that has a running sample and for the next one:
 * with so many, samples that wait for a prefix can always be served once running ones finish. */
int64_t rollout_scheduler_pages_wanted(const struct rollout_scheduler_limits *limits)
{
    int64_t groups =
        limits->max_groups < limits->max_running ? limits->max_groups : limits->max_running;
    return (limits->max_running + groups + 1) * scheduler_pages_for(limits->max_length);
}

/* Groups other than the oldest in the queue hold a prefix only while a sample of theirs runs, so
 * that with nothing running all but one prefix's pages are free. With a schedule that sample may
 * not share the prefix. */
int64_t rollout_scheduler_pages_least(const struct rollout_scheduler_limits *limits)
{
    return 2 * (int64_t)scheduler_pages_for(limits->max_length);
}

static rl_status check_limits(const struct rollout_scheduler_limits *limits)
{
    if (limits->max_running < 1 || limits->max_groups < 1 || limits->max_length < 2 ||
        limits->prefill_chunk < 1) {
        return rl_fail(RL_INVALID, "scheduler: every limit must be positive");
    }
    int32_t per_sequence = scheduler_pages_for(limits->max_length);
    if ((int64_t)(2 * (int64_t)limits->max_running + 1) * per_sequence > INT32_MAX) {
        return rl_fail(RL_INVALID, "scheduler: %d sequences of %d tokens need too many KV pages",
                       limits->max_running, limits->max_length);
    }
    if (limits->pages != 0 && limits->pages < rollout_scheduler_pages_least(limits)) {
        return rl_fail(RL_INVALID, "scheduler: %d KV pages, but sequences of %d tokens need %lld",
                       limits->pages, limits->max_length,
                       (long long)rollout_scheduler_pages_least(limits));
    }
    return RL_OK;
}

rl_status rollout_scheduler_create(const struct rollout_scheduler_limits *limits,
                                   struct rollout_scheduler **out)
{
    RL_TRY(check_limits(limits));
    int32_t wanted = (int32_t)rollout_scheduler_pages_wanted(limits);
    int32_t per_sequence = scheduler_pages_for(limits->max_length);
    struct rollout_scheduler *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        return rl_fail(RL_NO_MEMORY, "scheduler: out of memory");
    }
    s->limits = *limits;
    s->pages_per_sequence = per_sequence;
    size_t groups = (size_t)limits->max_groups;
    size_t slots = (size_t)limits->max_running;
    s->page_count = limits->pages > 0 && limits->pages < wanted ? limits->pages : wanted;
    size_t pages = (size_t)s->page_count;
    s->groups = calloc(groups, sizeof(*s->groups));
    s->slots = calloc(slots, sizeof(*s->slots));
    s->group_pages = calloc(groups * (size_t)per_sequence, sizeof(int32_t));
    s->slot_pages = calloc(slots * (size_t)per_sequence, sizeof(int32_t));
    s->queue = calloc(groups, sizeof(int32_t));
    s->free_pages = calloc(pages, sizeof(int32_t));
    s->references = calloc(pages, sizeof(int32_t));
    s->segments = calloc(slots + groups, sizeof(*s->segments));
    s->copies = calloc(slots, sizeof(*s->copies));
    if (!s->groups || !s->slots || !s->group_pages || !s->slot_pages || !s->queue ||
        !s->free_pages || !s->references || !s->segments || !s->copies) {
        rollout_scheduler_destroy(s);
        return rl_fail(RL_NO_MEMORY, "scheduler: out of memory");
    }
    s->free_count = s->page_count;
    for (int32_t i = 0; i < s->page_count; i++) {
        s->free_pages[i] = s->page_count - 1 - i;
    }
    *out = s;
    return RL_OK;
}

void rollout_scheduler_destroy(struct rollout_scheduler *scheduler)
{
    if (scheduler == NULL) {
        return;
    }
    free(scheduler->copies);
    free(scheduler->segments);
    free(scheduler->references);
    free(scheduler->free_pages);
    free(scheduler->queue);
    free(scheduler->slot_pages);
    free(scheduler->group_pages);
    free(scheduler->slots);
    free(scheduler->groups);
    free(scheduler);
}

/* --- pages --------------------------------------------------------------------------------------
 */

static void take_pages(struct rollout_scheduler *s, int32_t *pages, int32_t count)
{
    assert(s->free_count >= count);
    for (int32_t i = 0; i < count; i++) {
        pages[i] = s->free_pages[--s->free_count];
        s->references[pages[i]] = 1;
    }
}

static void release_pages(struct rollout_scheduler *s, const int32_t *pages, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        assert(s->references[pages[i]] > 0);
        if (--s->references[pages[i]] == 0) {
            s->free_pages[s->free_count++] = pages[i];
        }
    }
}

/* --- adding and starting
 * -------------------------------------------------------------------------- */

void rollout_scheduler_set_usable(struct rollout_scheduler *scheduler, rollout_usable_fn usable,
                                  void *arg)
{
    scheduler->usable = usable;
    scheduler->usable_arg = arg;
}

/* The first sample from `index` on that is to be generated. */
static int32_t next_sample(const struct group *group, int32_t index)
{
    while (index < group->samples && group->skip != NULL && group->skip[index]) {
        index++;
    }
    return index;
}

static struct group make_group(const struct rollout_scheduler_group *args)
{
    struct group group = {.used = true,
                          .prompt_count = args->prompt_count,
                          .max_new = args->max_new,
                          .samples = args->samples,
                          .schedule = args->schedule,
                          .skip = args->skip};
    for (int32_t i = 0; i < args->samples; i++) {
        group.left += args->skip == NULL || !args->skip[i];
    }
    assert(group.left > 0);
    group.next = next_sample(&group, 0);
    group.version = args->schedule != NULL ? args->schedule[group.next].switches[0].version : 0;
    return group;
}

rl_status rollout_scheduler_add(struct rollout_scheduler *scheduler,
                                const struct rollout_scheduler_group *group, int32_t *index)
{
    assert(group->prompt_count >= 1 && group->max_new >= 1 && group->samples >= 1);
    if (group->prompt_count > scheduler->limits.max_length - group->max_new) {
        return rl_fail(RL_TOO_LONG, "prompt of %d tokens and %d new ones exceed the limit of %d",
                       group->prompt_count, group->max_new, scheduler->limits.max_length);
    }
    int32_t found = 0;
    while (found < scheduler->limits.max_groups && scheduler->groups[found].used) {
        found++;
    }
    if (found == scheduler->limits.max_groups) {
        return RL_AGAIN;
    }
    scheduler->groups[found] = make_group(group);
    int32_t tail = (scheduler->queue_head + scheduler->queue_count) % scheduler->limits.max_groups;
    scheduler->queue[tail] = found;
    scheduler->queue_count++;
    scheduler->group_count++;
    scheduler->scheduled_groups += group->schedule != NULL;
    *index = found;
    return RL_OK;
}

/* Give the group's prefix its pages if it needs some and has none. */
static bool hold_prefix(struct rollout_scheduler *s, int32_t index)
{
    struct group *group = &s->groups[index];
    int32_t need = scheduler_pages_for(scheduler_prefix_length(group));
    if (group->page_count == need) {
        return true;
    }
    if (s->free_count < need) {
        return false;
    }
    take_pages(s, scheduler_pages_of_group(s, index), need);
    group->page_count = need;
    return true;
}

/* Whether a sample can start from its group's prefix: computed by the version of its first token,
 * and never to be computed again by another. */
static bool shares_prefix(const struct rollout_scheduler *s, const struct group *group,
                          int32_t sample)
{
    if (group->schedule == NULL) {
        return true;
    }
    const struct rollout_schedule *schedule = &group->schedule[sample];
    return schedule->switches[0].version == group->version &&
           (schedule->count == 1 || !s->limits.recompute);
}

static int32_t own_pages(const struct group *group, bool shares)
{
    return scheduler_pages_for(group->prompt_count + group->max_new) -
           (shares ? scheduler_prefix_length(group) / KERNEL_PAGE_TOKENS : 0);
}

static void start_sample(struct rollout_scheduler *s, int32_t index, int32_t slot_index)
{
    struct group *group = &s->groups[index];
    struct slot *slot = &s->slots[slot_index];
    bool shares = shares_prefix(s, group, group->next);
    int32_t own = own_pages(group, shares);
    int32_t shared = shares ? scheduler_prefix_length(group) / KERNEL_PAGE_TOKENS : 0;
    *slot = (struct slot){.state = shares ? SLOT_WAITS_PREFIX : SLOT_RUNS,
                          .group = index,
                          .sample = group->next,
                          .length = group->prompt_count,
                          .shared_count = shared,
                          .page_count = shared + own};
    if (group->schedule != NULL) {
        slot->version = group->schedule[group->next].switches[0].version;
    }
    take_pages(s, scheduler_pages_of_slot(s, slot_index) + shared, own);
    group->next = next_sample(group, group->next + 1);
    s->running++;
}

/* Start samples of the oldest groups while slots and pages last. */
static void start_samples(struct rollout_scheduler *s)
{
    int32_t slot = 0;
    while (s->queue_count > 0) {
        int32_t index = s->queue[s->queue_head];
        struct group *group = &s->groups[index];
        bool shares = shares_prefix(s, group, group->next);
        while (slot < s->limits.max_running && s->slots[slot].state != SLOT_FREE) {
            slot++;
        }
        if (slot == s->limits.max_running || (shares && !hold_prefix(s, index)) ||
            s->free_count < own_pages(group, shares)) {
            return;
        }
        start_sample(s, index, slot);
        if (group->next == group->samples) {
            s->queue_head = (s->queue_head + 1) % s->limits.max_groups;
            s->queue_count--;
        }
    }
}

/* After a switch that kept running caches, samples that still wait need a prefix of the new version
 * in pages of its own, though their group may have left the queue. */
static void hold_waiting_prefixes(struct rollout_scheduler *s)
{
    for (int32_t i = 0; i < s->limits.max_running; i++) {
        if (s->slots[i].state == SLOT_WAITS_PREFIX) {
            (void)hold_prefix(s, s->slots[i].group);
        }
    }
}

/* --- planning
 * --------------------------------------------------------------------------------------- */

void rollout_scheduler_plan(struct rollout_scheduler *scheduler, struct rollout_plan *plan)
{
    *plan = (struct rollout_plan){.segments = scheduler->segments, .copies = scheduler->copies};
    hold_waiting_prefixes(scheduler);
    start_samples(scheduler);
    scheduler_plan_pass(scheduler, plan);
}

void rollout_scheduler_commit(struct rollout_scheduler *scheduler, const struct rollout_plan *plan)
{
    for (int32_t i = 0; i < plan->segment_count; i++) {
        const struct rollout_segment *segment = &plan->segments[i];
        if (segment->prefix) {
            scheduler->groups[segment->index].prefix_computed += segment->count;
        } else {
            scheduler->slots[segment->index].computed += segment->count - segment->guessed;
        }
    }
}

static void finish_group(struct rollout_scheduler *s, int32_t index)
{
    struct group *group = &s->groups[index];
    release_pages(s, scheduler_pages_of_group(s, index), group->page_count);
    s->scheduled_groups -= group->schedule != NULL;
    *group = (struct group){0};
    s->group_count--;
}

int32_t rollout_scheduler_room(const struct rollout_scheduler *scheduler, int32_t slot)
{
    const struct slot *sequence = &scheduler->slots[slot];
    const struct group *group = &scheduler->groups[sequence->group];
    int32_t position = sequence->length - group->prompt_count;
    int32_t end = group->max_new;
    if (group->schedule != NULL) {
        const struct rollout_schedule *schedule = &group->schedule[sequence->sample];
        uint32_t next = sequence->run + 1;
        if (next < schedule->count && schedule->switches[next].position < (uint32_t)end) {
            end = (int32_t)schedule->switches[next].position;
        }
    }
    return end - position;
}

void rollout_scheduler_extend(struct rollout_scheduler *scheduler, struct rollout_plan *plan,
                              int32_t segment, int32_t count)
{
    struct rollout_segment *extended = &plan->segments[segment];
    assert(!extended->prefix && extended->sample && extended->count == 1);
    assert(count >= 0 && count < rollout_scheduler_room(scheduler, extended->index));
    (void)scheduler;
    extended->count += count;
    extended->guessed = count;
    plan->token_count += count;
}

/* The sequence has grown: which version samples the next token? */
static void follow_schedule(struct rollout_scheduler *s, struct slot *slot)
{
    const struct group *group = &s->groups[slot->group];
    if (group->schedule == NULL) {
        return;
    }
    const struct rollout_schedule *schedule = &group->schedule[slot->sample];
    uint32_t position = (uint32_t)(slot->length - group->prompt_count);
    uint32_t next = slot->run + 1;
    if (next == schedule->count || schedule->switches[next].position != position) {
        return;
    }
    slot->run = next;
    slot->version = schedule->switches[next].version;
    if (s->limits.recompute) {
        slot->computed = 0; /* it shares nothing: see shares_prefix */
    }
}

void rollout_scheduler_append(struct rollout_scheduler *scheduler, int32_t slot, int32_t count,
                              bool finished, bool *group_done)
{
    struct slot *sequence = &scheduler->slots[slot];
    struct group *group = &scheduler->groups[sequence->group];
    assert(sequence->state == SLOT_RUNS && sequence->computed == sequence->length);
    assert(count >= 1);
    *group_done = false;
    sequence->length += count;
    sequence->computed += count - 1;
    if (!finished) {
        assert(sequence->length - group->prompt_count < group->max_new);
        follow_schedule(scheduler, sequence);
        return;
    }
    release_pages(scheduler, scheduler_pages_of_slot(scheduler, slot), sequence->page_count);
    *group_done = --group->left == 0;
    if (*group_done) {
        finish_group(scheduler, sequence->group);
    }
    *sequence = (struct slot){0};
    scheduler->running--;
}

void rollout_scheduler_switch(struct rollout_scheduler *scheduler, uint32_t version)
{
    bool recompute = scheduler->limits.recompute;
    scheduler->newest = version;
    for (int32_t i = 0; i < scheduler->limits.max_groups; i++) {
        struct group *group = &scheduler->groups[i];
        if (!group->used || group->schedule != NULL) {
            continue;
        }
        if (!recompute) {
            /* Running samples keep their references; later ones need a prefix of the new version.
             */
            release_pages(scheduler, scheduler_pages_of_group(scheduler, i), group->page_count);
            group->page_count = 0;
        }
        group->prefix_computed = 0;
    }
    for (int32_t i = 0; i < scheduler->limits.max_running; i++) {
        struct slot *slot = &scheduler->slots[i];
        if (recompute && slot->state == SLOT_RUNS &&
            scheduler->groups[slot->group].schedule == NULL) {
            slot->state = SLOT_WAITS_PREFIX;
            slot->computed = 0;
        }
    }
}

/* --- facts
 * ---------------------------------------------------------------------------------------- */

int32_t rollout_scheduler_group_of(const struct rollout_scheduler *scheduler, int32_t slot)
{
    return scheduler->slots[slot].group;
}

int32_t rollout_scheduler_sample_of(const struct rollout_scheduler *scheduler, int32_t slot)
{
    return scheduler->slots[slot].sample;
}

const int32_t *rollout_scheduler_pages(const struct rollout_scheduler *scheduler,
                                       const struct rollout_segment *segment)
{
    return segment->prefix ? scheduler_pages_of_group(scheduler, segment->index)
                           : scheduler_pages_of_slot(scheduler, segment->index);
}

int32_t rollout_scheduler_running(const struct rollout_scheduler *scheduler)
{
    return scheduler->running;
}

int32_t rollout_scheduler_groups(const struct rollout_scheduler *scheduler)
{
    return scheduler->group_count;
}

int32_t rollout_scheduler_page_count(const struct rollout_scheduler *scheduler)
{
    return scheduler->page_count;
}

int32_t rollout_scheduler_free_pages(const struct rollout_scheduler *scheduler)
{
    return scheduler->free_count;
}

rl_status rollout_scheduler_check(const struct rollout_scheduler *scheduler)
{
    const struct rollout_scheduler *s = scheduler;
    int64_t held = 0;
    int64_t counted = 0;
    for (int32_t i = 0; i < s->limits.max_groups; i++) {
        held += s->groups[i].used ? s->groups[i].page_count : 0;
    }
    for (int32_t i = 0; i < s->limits.max_running; i++) {
        const struct slot *slot = &s->slots[i];
        if (slot->state != SLOT_FREE) {
            held += slot->page_count - (slot->forked ? 0 : slot->shared_count);
        }
    }
    int32_t referenced = 0;
    for (int32_t i = 0; i < s->page_count; i++) {
        counted += s->references[i];
        referenced += s->references[i] > 0;
    }
    if (held != counted || referenced + s->free_count != s->page_count) {
        return rl_fail(
            RL_INTERNAL, "scheduler: %lld page references held, %lld counted, %d + %d of %d",
            (long long)held, (long long)counted, referenced, s->free_count, s->page_count);
    }
    return RL_OK;
}
