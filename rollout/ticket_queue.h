/* Tickets that a worker has received and not yet begun, in order, each with the samples that were
 * finished for it earlier. Owns those; knows no channel and no engine. One thread. */
#ifndef FORESIGHT_ROLLOUT_TICKET_QUEUE_H
#define FORESIGHT_ROLLOUT_TICKET_QUEUE_H

#include "transport/wire.h"

struct ticket_entry {
    struct wire_ticket ticket;
    struct trajectory_group *done; /* or NULL */
};

/* Starts zeroed. */
struct ticket_queue {
    struct ticket_entry *entries; /* ring [capacity] */
    size_t head, count, capacity;
    struct trajectory_group *partial; /* came last, its ticket has not come yet; or NULL */
};

/* Drop everything; zeroed again. */
void ticket_queue_fini(struct ticket_queue *queue);

/* Keep a partial group for the ticket that comes next; takes `group`. */
void ticket_queue_hold(struct ticket_queue *queue, struct trajectory_group *group);

/* Append a ticket; a held group of its number becomes its `done`, of another one is dropped.
 * Errors: RL_INVALID (absurdly many), RL_NO_MEMORY. */
rl_status ticket_queue_push(struct ticket_queue *queue, const struct wire_ticket *ticket);

/* Entry `index` from the head, 0 <= index < count; borrowed until the next call. */
struct ticket_entry *ticket_queue_at(const struct ticket_queue *queue, size_t index);

/* Drop the head with its `done`. */
void ticket_queue_pop(struct ticket_queue *queue);

#endif
