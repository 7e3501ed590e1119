/* See ticket_queue.h. */
#include "rollout/ticket_queue.h"

#include "core/log.h"

#include <stdlib.h>

enum { TICKETS_MAX = 65536 };

void ticket_queue_fini(struct ticket_queue *queue)
{
    while (queue->count > 0) {
        ticket_queue_pop(queue);
    }
    trajectory_group_destroy(queue->partial);
    free(queue->entries);
    *queue = (struct ticket_queue){0};
}

void ticket_queue_hold(struct ticket_queue *queue, struct trajectory_group *group)
{
    trajectory_group_destroy(queue->partial);
    queue->partial = group;
}

struct ticket_entry *ticket_queue_at(const struct ticket_queue *queue, size_t index)
{
    return &queue->entries[(queue->head + index) % queue->capacity];
}

static rl_status grow(struct ticket_queue *queue)
{
    size_t capacity = queue->capacity == 0 ? 64 : 2 * queue->capacity;
    if (capacity > TICKETS_MAX) {
        return rl_fail(RL_INVALID, "worker: more than %d tickets at once", TICKETS_MAX);
    }
    struct ticket_entry *grown = calloc(capacity, sizeof(*grown));
    if (grown == NULL) {
        return rl_fail(RL_NO_MEMORY, "worker: out of memory for tickets");
    }
    for (size_t i = 0; i < queue->count; i++) {
        grown[i] = *ticket_queue_at(queue, i);
    }
    free(queue->entries);
    queue->entries = grown;
    queue->head = 0;
    queue->capacity = capacity;
    return RL_OK;
}

rl_status ticket_queue_push(struct ticket_queue *queue, const struct wire_ticket *ticket)
{
    if (queue->count == queue->capacity) {
        RL_TRY(grow(queue));
    }
    struct ticket_entry *entry = ticket_queue_at(queue, queue->count++);
    *entry = (struct ticket_entry){.ticket = *ticket};
    if (queue->partial != NULL && queue->partial->ticket == ticket->ticket) {
        entry->done = queue->partial;
        queue->partial = NULL;
    }
    ticket_queue_hold(queue, NULL);
    return RL_OK;
}

void ticket_queue_pop(struct ticket_queue *queue)
{
    trajectory_group_destroy(queue->entries[queue->head].done);
    queue->head = (queue->head + 1) % queue->capacity;
    queue->count--;
}
