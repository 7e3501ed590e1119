/* Linked queues of the groups inside the scoring pool. No locks: the pool's lock guards them. */
#ifndef FORESIGHT_REWARDS_REWARD_QUEUE_H
#define FORESIGHT_REWARDS_REWARD_QUEUE_H

#include "core/trajectory.h"

/* A group inside the pool; in one queue at a time. */
struct reward_entry {
    struct trajectory_group *group; /* owned */
    uint32_t next;                  /* first sample not yet handed to a thread */
    uint32_t left;                  /* samples not finished */
    struct reward_entry *link;
};

/* First in, first out. Starts zeroed. */
struct reward_queue {
    struct reward_entry *head;
    struct reward_entry *tail;
};

/* Append; the queue owns the entry from now on. */
void reward_queue_push(struct reward_queue *queue, struct reward_entry *entry);

/* Take the oldest entry, NULL if there is none; the caller owns it. */
struct reward_entry *reward_queue_pop(struct reward_queue *queue);

/* Take out an entry that is in the queue; the caller owns it. */
void reward_queue_remove(struct reward_queue *queue, struct reward_entry *entry);

/* Append copies of the queue's groups to `groups`, which has room for them; *count grows with each.
 * Errors: RL_NO_MEMORY (the copies made so far stay). */
rl_status reward_queue_copy(const struct reward_queue *queue, struct trajectory_group **groups,
                            uint32_t *count);

/* Destroy every entry and its group. */
void reward_queue_clear(struct reward_queue *queue);

#endif
