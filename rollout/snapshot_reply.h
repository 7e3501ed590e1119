/* A worker's answer to WIRE_SNAPSHOT: copies of its unfinished groups with finished samples, taken
 * at once and sent as the channel takes them, while decoding goes on. One thread. */
#ifndef FORESIGHT_ROLLOUT_SNAPSHOT_REPLY_H
#define FORESIGHT_ROLLOUT_SNAPSHOT_REPLY_H

#include "rollout/generator.h"
#include "rollout/ticket_queue.h"
#include "transport/channel.h"

/* Starts zeroed. */
struct snapshot_reply {
    bool due; /* something is left to send */
    uint64_t id;
    struct trajectory_group **groups; /* [count] owned, those from `next` on still to send */
    size_t count, next;
};

/* Take the copies: groups in the engine, and what waiting tickets go on from. An answer not yet
 * sent whole is dropped. Errors: RL_NO_MEMORY. */
rl_status snapshot_reply_start(struct snapshot_reply *reply, uint64_t id,
                               const struct rollout_generator *generator,
                               const struct ticket_queue *queue);

/* Send what `peer` takes now. Errors: of the channel, RL_NO_MEMORY. */
rl_status snapshot_reply_send(struct snapshot_reply *reply, struct channel *channel, int peer);

/* Drop what was not sent. */
void snapshot_reply_fini(struct snapshot_reply *reply);

#endif
