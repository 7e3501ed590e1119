/* A worker's answer to WIRE_SNAPSHOT: copies of its groups with finished samples, unfinished ones
 * and those on their way to be scored or sent, taken at once and sent as the channel takes them,
 * while decoding goes on. One thread. */
#ifndef FORESIGHT_ROLLOUT_SNAPSHOT_REPLY_H
#define FORESIGHT_ROLLOUT_SNAPSHOT_REPLY_H

#include "core/trajectory.h"
#include "transport/channel.h"

/* Starts zeroed. */
struct snapshot_reply {
    bool due; /* something is left to send */
    uint64_t id;
    struct trajectory_group **groups; /* [count] owned, those from `next` on still to send */
    size_t count, next, capacity;
};

/* Begin the answer to snapshot `id`; one not yet sent whole is dropped. */
void snapshot_reply_start(struct snapshot_reply *reply, uint64_t id);

/* Add a copy of a group (NULL: nothing), or groups, which are taken over with their array, on
 * errors too. Errors: RL_NO_MEMORY. */
rl_status snapshot_reply_add(struct snapshot_reply *reply, const struct trajectory_group *group);
rl_status snapshot_reply_take(struct snapshot_reply *reply, struct trajectory_group **groups,
                              size_t count);

/* Send what `peer` takes now. Errors: of the channel, RL_NO_MEMORY. */
rl_status snapshot_reply_send(struct snapshot_reply *reply, struct channel *channel, int peer);

/* Drop what was not sent. */
void snapshot_reply_fini(struct snapshot_reply *reply);

#endif
