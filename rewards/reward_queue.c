/* Linked queues of groups: see reward_queue.h. */
#include "rewards/reward_queue.h"

#include <stdlib.h>

void reward_queue_push(struct reward_queue *queue, struct reward_entry *entry)
{
    entry->link = NULL;
    if (queue->tail != NULL) {
        queue->tail->link = entry;
    } else {
        queue->head = entry;
    }
    queue->tail = entry;
}

struct reward_entry *reward_queue_pop(struct reward_queue *queue)
{
    struct reward_entry *entry = queue->head;
    if (entry != NULL) {
        queue->head = entry->link;
        queue->tail = queue->head != NULL ? queue->tail : NULL;
    }
    return entry;
}

void reward_queue_remove(struct reward_queue *queue, struct reward_entry *entry)
{
    struct reward_entry *previous = NULL;
    for (struct reward_entry *at = queue->head; at != NULL && at != entry; at = at->link) {
        previous = at;
    }
    if (previous == NULL) {
        queue->head = entry->link;
    } else {
        previous->link = entry->link;
    }
    queue->tail = queue->tail == entry ? previous : queue->tail;
}

rl_status reward_queue_copy(const struct reward_queue *queue, struct trajectory_group **groups,
                            uint32_t *count)
{
    for (const struct reward_entry *at = queue->head; at != NULL; at = at->link) {
        RL_TRY(trajectory_group_copy(at->group, &groups[*count]));
        ++*count;
    }
    return RL_OK;
}

void reward_queue_clear(struct reward_queue *queue)
{
    struct reward_entry *entry;
    while ((entry = reward_queue_pop(queue)) != NULL) {
        trajectory_group_destroy(entry->group);
        free(entry);
    }
}
