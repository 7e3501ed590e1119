/* See snapshot_reply.h. */
#include "rollout/snapshot_reply.h"

#include "core/log.h"
#include "transport/wire.h"

#include <stdlib.h>

void snapshot_reply_fini(struct snapshot_reply *reply)
{
    for (size_t i = reply->next; i < reply->count; i++) {
        trajectory_group_destroy(reply->groups[i]);
    }
    free(reply->groups);
    *reply = (struct snapshot_reply){0};
}

void snapshot_reply_start(struct snapshot_reply *reply, uint64_t id)
{
    snapshot_reply_fini(reply);
    reply->due = true;
    reply->id = id;
}

static rl_status reserve(struct snapshot_reply *reply, size_t more)
{
    if (reply->capacity - reply->count >= more) {
        return RL_OK;
    }
    size_t capacity = 2 * (reply->count + more);
    struct trajectory_group **grown =
        realloc(reply->groups, capacity * sizeof(struct trajectory_group *));
    if (grown == NULL) {
        return rl_fail(RL_NO_MEMORY, "worker: out of memory for a snapshot");
    }
    reply->groups = grown;
    reply->capacity = capacity;
    return RL_OK;
}

rl_status snapshot_reply_add(struct snapshot_reply *reply, const struct trajectory_group *group)
{
    if (group == NULL) {
        return RL_OK;
    }
    RL_TRY(reserve(reply, 1));
    RL_TRY(trajectory_group_copy(group, &reply->groups[reply->count]));
    reply->count++;
    return RL_OK;
}

rl_status snapshot_reply_take(struct snapshot_reply *reply, struct trajectory_group **groups,
                              size_t count)
{
    rl_status status = reserve(reply, count);
    for (size_t i = 0; i < count; i++) {
        if (status == RL_OK) {
            reply->groups[reply->count++] = groups[i];
        } else {
            trajectory_group_destroy(groups[i]);
        }
    }
    free(groups);
    return status;
}

rl_status snapshot_reply_send(struct snapshot_reply *reply, struct channel *channel, int peer)
{
    while (reply->due) {
        bool last = reply->next == reply->count;
        struct channel_message message = {.peer = peer};
        RL_TRY(wire_encode_partial(reply->id, last ? NULL : reply->groups[reply->next], &message));
        rl_status status = channel_send(channel, &message);
        channel_message_fini(&message);
        if (status == RL_AGAIN) {
            return RL_OK;
        }
        RL_TRY(status);
        if (last) {
            snapshot_reply_fini(reply);
        } else {
            trajectory_group_destroy(reply->groups[reply->next++]);
        }
    }
    return RL_OK;
}
