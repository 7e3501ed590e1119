/* See scheduler.h. Groups wait in a FIFO until all their samples have started; sequence slots are
 * scanned in index order, so a plan is a pure function of the calls made so far. */
#include "rollout/scheduler.h"

#include "core/log.h"
#include "kernels/kernels.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct group {
    bool used;
    int32_t prompt_count, max_new, samples;
    int32_t started, finished;
    int32_t prefix_computed;
    int32_t page_count; /* pages held for the prefix, 0: none yet */
};

enum slot_state { SLOT_FREE, SLOT_WAITS_PREFIX, SLOT_RUNS };

struct slot {
    enum slot_state state;
    int32_t group, sample;
    int32_t length;       /* tokens known */
    int32_t computed;     /* tokens whose keys and values are in the cache */
    int32_t shared_count; /* leading pages that belong to a prefix too; valid once forked */
    int32_t page_count;
    bool forked; /* holds references to its shared pages */
};

struct rollout_scheduler {
    struct rollout_scheduler_limits limits;
    int32_t pages_per_sequence, page_count;
    struct group *groups; /* [max_groups] */
    struct slot *slots;   /* [max_running] */
    int32_t *group_pages; /* [max_groups][pages_per_sequence] */
    int32_t *slot_pages;  /* [max_running][pages_per_sequence] */
    int32_t *queue;       /* [max_groups] ring of groups with samples still to start */
    int32_t queue_head, queue_count;
    int32_t *free_pages; /* [page_count] stack */
    int32_t free_count;
    int32_t *references; /* [page_count] */
    int32_t running, group_count;
    struct rollout_segment *segments; /* [max_running + max_groups] */
    struct rollout_page_copy *copies; /* [max_running] */
};

static int32_t pages_for(int32_t tokens)
{
    return (tokens + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
}

static int32_t prefix_length(const struct group *group)
{
    return group->prompt_count - 1;
}

/* Every slot's own pages, a prefix for every group that has a running sample and for the next one:
 * with so many, samples that wait for a prefix can always be served once running ones finish. */
static int32_t pages_needed(const struct rollout_scheduler_limits *limits)
{
    int32_t groups =
        limits->max_groups < limits->max_running ? limits->max_groups : limits->max_running;
    return (limits->max_running + groups + 1) * pages_for(limits->max_length);
}

rl_status rollout_scheduler_create(const struct rollout_scheduler_limits *limits,
                                   struct rollout_scheduler **out)
{
    if (limits->max_running < 1 || limits->max_groups < 1 || limits->max_length < 2 ||
        limits->prefill_chunk < 1) {
        return rl_fail(RL_INVALID, "scheduler: every limit must be positive");
    }
    int32_t per_sequence = pages_for(limits->max_length);
    if ((int64_t)(2 * (int64_t)limits->max_running + 1) * per_sequence > INT32_MAX) {
        return rl_fail(RL_INVALID, "scheduler: %d sequences of %d tokens need too many KV pages",
                       limits->max_running, limits->max_length);
    }
    struct rollout_scheduler *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        return rl_fail(RL_NO_MEMORY, "scheduler: out of memory");
    }
    s->limits = *limits;
    s->pages_per_sequence = per_sequence;
    size_t groups = (size_t)limits->max_groups;
    size_t slots = (size_t)limits->max_running;
    s->page_count = pages_needed(limits);
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

static int32_t *pages_of_group(const struct rollout_scheduler *s, int32_t group)
{
    return s->group_pages + (size_t)group * (size_t)s->pages_per_sequence;
}

static int32_t *pages_of_slot(const struct rollout_scheduler *s, int32_t slot)
{
    return s->slot_pages + (size_t)slot * (size_t)s->pages_per_sequence;
}

/* --- adding and starting
 * -------------------------------------------------------------------------- */

rl_status rollout_scheduler_add(struct rollout_scheduler *scheduler, int32_t prompt_count,
                                int32_t max_new, int32_t samples, int32_t *group)
{
    assert(prompt_count >= 1 && max_new >= 1 && samples >= 1);
    if (prompt_count > scheduler->limits.max_length - max_new) {
        return rl_fail(RL_TOO_LONG, "prompt of %d tokens and %d new ones exceed the limit of %d",
                       prompt_count, max_new, scheduler->limits.max_length);
    }
    int32_t index = 0;
    while (index < scheduler->limits.max_groups && scheduler->groups[index].used) {
        index++;
    }
    if (index == scheduler->limits.max_groups) {
        return RL_AGAIN;
    }
    scheduler->groups[index] = (struct group){
        .used = true, .prompt_count = prompt_count, .max_new = max_new, .samples = samples};
    int32_t tail = (scheduler->queue_head + scheduler->queue_count) % scheduler->limits.max_groups;
    scheduler->queue[tail] = index;
    scheduler->queue_count++;
    scheduler->group_count++;
    *group = index;
    return RL_OK;
}

/* Give the group's prefix its pages if it needs some and has none. */
static bool hold_prefix(struct rollout_scheduler *s, int32_t index)
{
    struct group *group = &s->groups[index];
    int32_t need = pages_for(prefix_length(group));
    if (group->page_count == need) {
        return true;
    }
    if (s->free_count < need) {
        return false;
    }
    take_pages(s, pages_of_group(s, index), need);
    group->page_count = need;
    return true;
}

static int32_t own_pages(const struct group *group)
{
    return pages_for(group->prompt_count + group->max_new) -
           prefix_length(group) / KERNEL_PAGE_TOKENS;
}

static void start_sample(struct rollout_scheduler *s, int32_t index, int32_t slot_index)
{
    struct group *group = &s->groups[index];
    struct slot *slot = &s->slots[slot_index];
    int32_t shared = prefix_length(group) / KERNEL_PAGE_TOKENS;
    *slot = (struct slot){.state = SLOT_WAITS_PREFIX,
                          .group = index,
                          .sample = group->started++,
                          .length = group->prompt_count,
                          .shared_count = shared,
                          .page_count = shared + own_pages(group)};
    take_pages(s, pages_of_slot(s, slot_index) + shared, own_pages(group));
    s->running++;
}

/* Start samples of the oldest groups while slots and pages last. */
static void start_samples(struct rollout_scheduler *s)
{
    int32_t slot = 0;
    while (s->queue_count > 0) {
        int32_t index = s->queue[s->queue_head];
        struct group *group = &s->groups[index];
        while (slot < s->limits.max_running && s->slots[slot].state != SLOT_FREE) {
            slot++;
        }
        if (slot == s->limits.max_running || !hold_prefix(s, index) ||
            s->free_count < own_pages(group)) {
            return;
        }
        start_sample(s, index, slot);
        if (group->started == group->samples) {
            s->queue_head = (s->queue_head + 1) % s->limits.max_groups;
            s->queue_count--;
        }
    }
}

/* A prefix is ready: the sample takes its pages and copies the partial one. */
static void fork_from_prefix(struct rollout_scheduler *s, int32_t slot_index,
                             struct rollout_plan *plan)
{
    struct slot *slot = &s->slots[slot_index];
    const struct group *group = &s->groups[slot->group];
    int32_t *pages = pages_of_slot(s, slot_index);
    const int32_t *prefix = pages_of_group(s, slot->group);
    if (!slot->forked) {
        for (int32_t i = 0; i < slot->shared_count; i++) {
            pages[i] = prefix[i];
            s->references[prefix[i]]++;
        }
        slot->forked = true;
    }
    if (prefix_length(group) % KERNEL_PAGE_TOKENS != 0) {
        plan->copies[plan->copy_count++] = (struct rollout_page_copy){
            .from = prefix[slot->shared_count], .to = pages[slot->shared_count]};
    }
    slot->computed = prefix_length(group);
    slot->state = SLOT_RUNS;
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

static void plan_prefixes(struct rollout_scheduler *s, struct rollout_plan *plan, int32_t *budget)
{
    for (int32_t i = 0; i<s->limits.max_groups && * budget> 0; i++) {
        struct group *group = &s->groups[i];
        int32_t left = prefix_length(group) - group->prefix_computed;
        bool held = group->used && group->page_count == pages_for(prefix_length(group));
        if (!held || left <= 0) {
            continue;
        }
        int32_t count = left < *budget ? left : *budget;
        plan->segments[plan->segment_count++] = (struct rollout_segment){
            .prefix = true, .index = i, .first = group->prefix_computed, .count = count};
        plan->token_count += count;
        *budget -= count;
    }
}

static void plan_sequences(struct rollout_scheduler *s, struct rollout_plan *plan, int32_t *budget)
{
    for (int32_t i = 0; i < s->limits.max_running; i++) {
        struct slot *slot = &s->slots[i];
        if (slot->state == SLOT_WAITS_PREFIX &&
            s->groups[slot->group].prefix_computed == prefix_length(&s->groups[slot->group])) {
            fork_from_prefix(s, i, plan);
        }
        if (slot->state != SLOT_RUNS) {
            continue;
        }
        int32_t left = slot->length - slot->computed;
        int32_t count = left;
        if (left > 1) {
            count = left < *budget ? left : *budget;
            *budget -= count;
        }
        if (count <= 0) {
            continue;
        }
        plan->segments[plan->segment_count++] =
            (struct rollout_segment){.sample = slot->computed + count == slot->length,
                                     .index = i,
                                     .first = slot->computed,
                                     .count = count};
        plan->token_count += count;
    }
}

void rollout_scheduler_plan(struct rollout_scheduler *scheduler, struct rollout_plan *plan)
{
    *plan = (struct rollout_plan){.segments = scheduler->segments, .copies = scheduler->copies};
    hold_waiting_prefixes(scheduler);
    start_samples(scheduler);
    int32_t budget = scheduler->limits.prefill_chunk;
    /* Sequences first: their forks must see prefixes finished in an earlier pass only. */
    plan_sequences(scheduler, plan, &budget);
    plan_prefixes(scheduler, plan, &budget);
}

void rollout_scheduler_commit(struct rollout_scheduler *scheduler, const struct rollout_plan *plan)
{
    for (int32_t i = 0; i < plan->segment_count; i++) {
        const struct rollout_segment *segment = &plan->segments[i];
        if (segment->prefix) {
            scheduler->groups[segment->index].prefix_computed += segment->count;
        } else {
            scheduler->slots[segment->index].computed += segment->count;
        }
    }
}

static void finish_group(struct rollout_scheduler *s, int32_t index)
{
    struct group *group = &s->groups[index];
    release_pages(s, pages_of_group(s, index), group->page_count);
    *group = (struct group){0};
    s->group_count--;
}

void rollout_scheduler_append(struct rollout_scheduler *scheduler, int32_t slot, bool finished,
                              bool *group_done)
{
    struct slot *sequence = &scheduler->slots[slot];
    struct group *group = &scheduler->groups[sequence->group];
    assert(sequence->state == SLOT_RUNS && sequence->computed == sequence->length);
    *group_done = false;
    sequence->length++;
    if (!finished) {
        assert(sequence->length - group->prompt_count < group->max_new);
        return;
    }
    release_pages(scheduler, pages_of_slot(scheduler, slot), sequence->page_count);
    *group_done = ++group->finished == group->samples;
    if (*group_done) {
        finish_group(scheduler, sequence->group);
    }
    *sequence = (struct slot){0};
    scheduler->running--;
}

void rollout_scheduler_switch(struct rollout_scheduler *scheduler, bool recompute)
{
    for (int32_t i = 0; i < scheduler->limits.max_groups; i++) {
        struct group *group = &scheduler->groups[i];
        if (!recompute && group->used) {
            /* Running samples keep their references; later ones need a prefix of the new version.
             */
            release_pages(scheduler, pages_of_group(scheduler, i), group->page_count);
            group->page_count = 0;
        }
        group->prefix_computed = 0;
    }
    for (int32_t i = 0; i < scheduler->limits.max_running; i++) {
        struct slot *slot = &scheduler->slots[i];
        if (recompute && slot->state == SLOT_RUNS) {
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
    return segment->prefix ? pages_of_group(scheduler, segment->index)
                           : pages_of_slot(scheduler, segment->index);
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
