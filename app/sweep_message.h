/* What the ranks of a sweep tell one another. */
#ifndef FORESIGHT_APP_SWEEP_MESSAGE_H
#define FORESIGHT_APP_SWEEP_MESSAGE_H

#include "app/sweep.h"
#include "transport/channel.h"

enum sweep_message_kind {
    SWEEP_MESSAGE_READY, /* helper to head: the plan that it has read, and its slots */
    SWEEP_MESSAGE_JOB,   /* head to helper */
    SWEEP_MESSAGE_END,   /* helper to head: how a job ended */
    SWEEP_MESSAGE_STOP,  /* head to helper: stop what is at work, with checkpoints */
    SWEEP_MESSAGE_LEAVE  /* head to helper: there is no more work */
};

/* Sent as it lies in memory: all ranks are of one program on machines of one kind. */
struct sweep_message {
    uint32_t kind;
    uint32_t capacity;  /* READY */
    uint64_t plan_hash; /* READY */
    struct sweep_job job;
    struct sweep_outcome outcome;
};

/* Hash of the resolved plan, by which ranks make sure that they have read the same. */
rl_status sweep_message_plan_hash(const struct sweep_plan *plan, uint64_t *hash);

/* Queue a message. Errors: RL_NO_MEMORY, RL_AGAIN (no room: try again), RL_PEER_LOST. */
rl_status sweep_message_send(struct channel *channel, int peer,
                             const struct sweep_message *message);

/* Read a message of the channel. Errors: RL_CORRUPT. */
rl_status sweep_message_read(const struct channel_message *from, struct sweep_message *out);

#endif
