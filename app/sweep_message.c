/* See sweep_message.h. */
#include "app/sweep_message.h"

#include "core/hash.h"
#include "core/log.h"
#include "transport/wire.h"

#include <stdlib.h>
#include <string.h>

rl_status sweep_message_plan_hash(const struct sweep_plan *plan, uint64_t *hash)
{
    char *text = NULL;
    RL_TRY(sweep_plan_json(plan, &text));
    *hash = rl_hash(text, strlen(text));
    free(text);
    return RL_OK;
}

rl_status sweep_message_send(struct channel *channel, int peer, const struct sweep_message *message)
{
    struct channel_message out = {.peer = peer,
                                  .kind = WIRE_BYTES,
                                  .bytes = sizeof *message,
                                  .data = malloc(sizeof *message)};
    if (out.data == NULL) {
        return rl_fail(RL_NO_MEMORY, "sweep: out of memory");
    }
    memcpy(out.data, message, sizeof *message);
    rl_status status = channel_send(channel, &out);
    channel_message_fini(&out);
    return status;
}

rl_status sweep_message_read(const struct channel_message *from, struct sweep_message *out)
{
    if (from->kind != WIRE_BYTES || from->bytes != sizeof *out) {
        return rl_fail(RL_CORRUPT, "sweep: rank %d sent what no sweep sends (kind %u, %zu bytes)",
                       from->peer, from->kind, from->bytes);
    }
    memcpy(out, from->data, sizeof *out);
    out->outcome.reason[sizeof out->outcome.reason - 1] = '\0';
    return RL_OK;
}
