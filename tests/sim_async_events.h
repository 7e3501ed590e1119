/* Virtual time for sim_async: a heap of events, earliest first, ties in order of posting. */
#ifndef FORESIGHT_TESTS_SIM_ASYNC_EVENTS_H
#define FORESIGHT_TESTS_SIM_ASYNC_EVENTS_H

#include <check.h>
#include <stdint.h>
#include <stdlib.h>

enum sim_event_kind {
    SIM_TICKET_AT_WORKER, /* a ticket has reached a worker */
    SIM_GENERATED,        /* a worker has finished a group */
    SIM_NOTICE,           /* "generated" has reached the learner */
    SIM_GROUP_AT_LEARNER, /* a scored group has reached the learner */
    SIM_VERSION_AT_WORKER,
    SIM_STEP_DONE, /* the learner has trained on its batch */
    SIM_TICK,      /* the learner looks at heartbeats and deadlines */
    SIM_TROUBLE    /* something happens to a worker */
};

struct sim_event {
    double time;
    uint64_t order;
    enum sim_event_kind kind;
    int worker;
    uint32_t life; /* of the worker, or of the learner: events of an earlier one are void */
    uint64_t ticket;
    uint32_t first_version, last_version;
};

struct sim_events {
    struct sim_event *heap;
    size_t count, reserved;
    uint64_t posted;
};

static inline int sim_before(const struct sim_event *a, const struct sim_event *b)
{
    return a->time < b->time || (!(a->time > b->time) && a->order < b->order);
}

static inline void sim_swap(struct sim_event *a, struct sim_event *b)
{
    struct sim_event kept = *a;
    *a = *b;
    *b = kept;
}

static inline void sim_post(struct sim_events *events, struct sim_event event)
{
    if (events->count == events->reserved) {
        events->reserved = events->reserved > 0 ? events->reserved * 2 : 64;
        events->heap = realloc(events->heap, events->reserved * sizeof(*events->heap));
        ck_assert_ptr_nonnull(events->heap);
    }
    event.order = events->posted++;
    size_t at = events->count++;
    events->heap[at] = event;
    while (at > 0 && sim_before(&events->heap[at], &events->heap[(at - 1) / 2])) {
        sim_swap(&events->heap[at], &events->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
}

/* Remove the earliest event; 0 if there is none. */
static inline int sim_next(struct sim_events *events, struct sim_event *out)
{
    if (events->count == 0) {
        return 0;
    }
    *out = events->heap[0];
    events->heap[0] = events->heap[--events->count];
    for (size_t at = 0;;) {
        size_t child = 2 * at + 1;
        if (child + 1 < events->count &&
            sim_before(&events->heap[child + 1], &events->heap[child])) {
            child++;
        }
        if (child >= events->count || !sim_before(&events->heap[child], &events->heap[at])) {
            return 1;
        }
        sim_swap(&events->heap[child], &events->heap[at]);
        at = child;
    }
}

static inline void sim_clear(struct sim_events *events)
{
    free(events->heap);
    *events = (struct sim_events){0};
}

#endif
