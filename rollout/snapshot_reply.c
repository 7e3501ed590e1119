/* See snapshot_reply.h. */
#include "rollout/snapshot_reply.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

void snapshot_reply_fini(struct snapshot_reply *reply)
{
    for (size_t i = reply->next; i < reply->count; i++) {
        trajectory_group_destroy(reply->groups[i]);
    }
    free(reply->groups);
    *reply = (struct snapshot_reply){0};
}

rl_status snapshot_reply_start(struct snapshot_reply *reply, uint64_t id,
                               const struct rollout_generator *generator,
                               const struct ticket_queue *queue)
{
    struct trajectory_group **inside = NULL;
    int32_t inside_count = 0;
    snapshot_reply_fini(reply);
    RL_TRY(rollout_generator_partials(generator, &inside, &inside_count));
    struct trajectory_group **groups = realloc(inside, ((size_t)inside_count + queue->count + 1) *
                                                           sizeof(struct trajectory_group *));
    *reply = (struct snapshot_reply){.due = true,
                                     .id = id,
                                     .groups = groups != NULL ? groups : inside,
                                     .count = (size_t)inside_count};
    if (groups == NULL) {
        return rl_fail(RL_NO_MEMORY, "worker: out of memory for a snapshot");
    }
    for (size_t i = 0; i < queue->count; i++) {
        const struct ticket_entry *entry = ticket_queue_at(queue, i);
        if (entry->done != NULL) {
            RL_TRY(trajectory_group_copy(entry->done, &groups[reply->count]));
            reply->count++;
        }
    }
    return RL_OK;
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
