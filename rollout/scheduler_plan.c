/* See scheduler_internal.h. Which version the next pass runs with, and its segments. */
#include "rollout/scheduler_internal.h"

/* A prefix is ready: the sample takes its pages and copies the partial one. */
static void fork_from_prefix(struct rollout_scheduler *s, int32_t slot_index,
                             struct rollout_plan *plan)
{
    struct slot *slot = &s->slots[slot_index];
    const struct group *group = &s->groups[slot->group];
    int32_t *pages = scheduler_pages_of_slot(s, slot_index);
    const int32_t *prefix = scheduler_pages_of_group(s, slot->group);
    if (!slot->forked) {
        for (int32_t i = 0; i < slot->shared_count; i++) {
            pages[i] = prefix[i];
            s->references[prefix[i]]++;
        }
        slot->forked = true;
    }
    if (scheduler_prefix_length(group) % KERNEL_PAGE_TOKENS != 0) {
        plan->copies[plan->copy_count++] = (struct rollout_page_copy){
            .from = prefix[slot->shared_count], .to = pages[slot->shared_count]};
    }
    slot->computed = scheduler_prefix_length(group);
    slot->state = SLOT_RUNS;
}

static uint32_t version_of_group(const struct rollout_scheduler *s, const struct group *group)
{
    return group->schedule != NULL ? group->version : s->newest;
}

static uint32_t version_of_slot(const struct rollout_scheduler *s, const struct slot *slot)
{
    return s->groups[slot->group].schedule != NULL ? slot->version : s->newest;
}

/* Tokens of a prefix still to compute, as far as it has pages to put them. */
static int32_t prefix_left(const struct group *group)
{
    bool held =
        group->used && group->page_count == scheduler_pages_for(scheduler_prefix_length(group));
    return held ? scheduler_prefix_length(group) - group->prefix_computed : 0;
}

static bool can_fork(const struct rollout_scheduler *s, const struct slot *slot)
{
    const struct group *group = &s->groups[slot->group];
    return slot->state == SLOT_WAITS_PREFIX &&
           group->prefix_computed == scheduler_prefix_length(group);
}

/* The lowest version >= `from` that something could run with; UINT64_MAX: none. */
static uint64_t next_version(const struct rollout_scheduler *s, uint64_t from)
{
    uint64_t lowest = UINT64_MAX;
    for (int32_t i = 0; i < s->limits.max_running; i++) {
        const struct slot *slot = &s->slots[i];
        if (slot->state == SLOT_RUNS || can_fork(s, slot)) {
            uint64_t version = version_of_slot(s, slot);
            lowest = version >= from && version < lowest ? version : lowest;
        }
    }
    for (int32_t i = 0; i < s->limits.max_groups; i++) {
        if (prefix_left(&s->groups[i]) > 0) {
            uint64_t version = version_of_group(s, &s->groups[i]);
            lowest = version >= from && version < lowest ? version : lowest;
        }
    }
    return lowest;
}

static bool usable_from(const struct rollout_scheduler *s, uint64_t from, uint32_t *version)
{
    uint64_t found = next_version(s, from);
    while (found != UINT64_MAX && s->usable != NULL && !s->usable(s->usable_arg, (uint32_t)found)) {
        found = next_version(s, found + 1);
    }
    *version = (uint32_t)found;
    return found != UINT64_MAX;
}

/* The usable version above the last pass's, else the lowest one. */
static bool choose_version(const struct rollout_scheduler *s, uint32_t *version)
{
    if (s->scheduled_groups == 0) {
        *version = s->newest;
        return s->usable == NULL || s->usable(s->usable_arg, s->newest);
    }
    return usable_from(s, (uint64_t)s->last + 1, version) || usable_from(s, 0, version);
}

static void plan_prefixes(struct rollout_scheduler *s, struct rollout_plan *plan, int32_t *budget)
{
    for (int32_t i = 0; i<s->limits.max_groups && * budget> 0; i++) {
        struct group *group = &s->groups[i];
        int32_t left = prefix_left(group);
        if (left <= 0 || version_of_group(s, group) != plan->version) {
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
        if (slot->state == SLOT_FREE || version_of_slot(s, slot) != plan->version) {
            continue;
        }
        if (can_fork(s, slot)) {
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

void scheduler_plan_pass(struct rollout_scheduler *s, struct rollout_plan *plan)
{
    if (!choose_version(s, &plan->version)) {
        return;
    }
    s->last = plan->version;
    int32_t budget = s->limits.prefill_chunk;
    /* Sequences first: their forks must see prefixes finished in an earlier pass only. */
    plan_sequences(s, plan, &budget);
    plan_prefixes(s, plan, &budget);
}
