/* Virtual time: a binary heap of events, earliest first, equal times in order of posting, so that a
 * simulation is a function of its options. */
#include "app/simulate_internal.h"

#include "core/log.h"

#include <stdlib.h>

static bool event_before(const struct simulate_event *a, const struct simulate_event *b)
{
    return a->time < b->time || (!(a->time > b->time) && a->order < b->order);
}

static void swap_events(struct simulate_event *a, struct simulate_event *b)
{
    struct simulate_event kept = *a;
    *a = *b;
    *b = kept;
}

rl_status simulate_events_post(struct simulate_events *events, struct simulate_event event)
{
    if (events->count == events->reserved) {
        size_t reserved = events->reserved > 0 ? events->reserved * 2 : 256;
        struct simulate_event *heap = realloc(events->heap, reserved * sizeof *heap);
        if (heap == NULL) {
            return rl_fail(RL_NO_MEMORY, "simulate: no memory for %zu events", reserved);
        }
        events->heap = heap;
        events->reserved = reserved;
    }
    event.order = events->posted++;
    size_t at = events->count++;
    events->heap[at] = event;
    while (at > 0 && event_before(&events->heap[at], &events->heap[(at - 1) / 2])) {
        swap_events(&events->heap[at], &events->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    return RL_OK;
}

bool simulate_events_next(struct simulate_events *events, struct simulate_event *out)
{
    if (events->count == 0) {
        return false;
    }
    *out = events->heap[0];
    events->heap[0] = events->heap[--events->count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child + 1 < events->count &&
            event_before(&events->heap[child + 1], &events->heap[child])) {
            child++;
        }
        if (child >= events->count || !event_before(&events->heap[child], &events->heap[at])) {
            return true;
        }
        swap_events(&events->heap[child], &events->heap[at]);
        at = child;
    }
}

void simulate_events_fini(struct simulate_events *events)
{
    for (size_t i = 0; i < events->count; i++) {
        trajectory_group_destroy(events->heap[i].group);
    }
    free(events->heap);
    *events = (struct simulate_events){0};
}
