/* The scheduler's state, shared by scheduler.c (groups, pages, life of sequences) and
 * scheduler_plan.c (what a pass holds). Nobody else includes this. */
#ifndef FORESIGHT_ROLLOUT_SCHEDULER_INTERNAL_H
#define FORESIGHT_ROLLOUT_SCHEDULER_INTERNAL_H

#include "kernels/kernels.h"
#include "rollout/scheduler.h"

struct group {
    bool used;
    int32_t prompt_count, max_new, samples;
    int32_t next, left;                      /* next sample to start; samples to finish */
    const struct rollout_schedule *schedule; /* [samples], borrowed; NULL: the newest weights */
    const bool *skip;                        /* [samples], borrowed, or NULL */
    uint32_t version;                        /* of the prefix, with a schedule */
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
    bool forked;      /* holds references to its shared pages */
    uint32_t run;     /* of its schedule: the one that its next token is in */
    uint32_t version; /* of the next token, with a schedule */
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
    int32_t scheduled_groups; /* groups inside with schedules */
    uint32_t newest;          /* weights of groups without */
    uint32_t last;            /* version of the last pass */
    rollout_usable_fn usable; /* or NULL */
    void *usable_arg;
    struct rollout_segment *segments; /* [max_running + max_groups] */
    struct rollout_page_copy *copies; /* [max_running] */
};

static inline int32_t scheduler_pages_for(int32_t tokens)
{
    return (tokens + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
}

static inline int32_t scheduler_prefix_length(const struct group *group)
{
    return group->prompt_count - 1;
}

static inline int32_t *scheduler_pages_of_group(const struct rollout_scheduler *s, int32_t group)
{
    return s->group_pages + (size_t)group * (size_t)s->pages_per_sequence;
}

static inline int32_t *scheduler_pages_of_slot(const struct rollout_scheduler *s, int32_t slot)
{
    return s->slot_pages + (size_t)slot * (size_t)s->pages_per_sequence;
}

/* Choose the version of the next pass and lay out what runs with it: fills *plan, whose arrays are
 * set and empty. Samples and prefixes that can start have started. */
void scheduler_plan_pass(struct rollout_scheduler *s, struct rollout_plan *plan);

#endif
