/* The calls of channel.h: forwards to the implementation's table, and what all of them share. Owns
 * the checks of arguments; nothing of the queues. */
#include "transport/channel.h"

#include "core/clock.h"
#include "core/log.h"

#include <stdlib.h>
#include <string.h>

rl_status channel_send(struct channel *channel, struct channel_message *message)
{
    if (message->peer < 0 || message->peer >= channel->size) {
        return rl_fail(RL_INVALID, "send to rank %d: ranks are 0 to %d", message->peer,
                       channel->size - 1);
    }
    if (message->kind >= CHANNEL_KIND_RESERVED) {
        return rl_fail(RL_INVALID, "send of kind %#x: reserved for the channel", message->kind);
    }
    if (message->bytes > 0 && message->data == NULL) {
        return rl_fail(RL_INVALID, "send of %zu bytes without data", message->bytes);
    }
    return channel->ops->send(channel, message);
}

rl_status channel_send_wait(struct channel *channel, struct channel_message *message,
                            double timeout_s)
{
    double started_s = rl_clock_now_s(NULL);
    double pause_s = 50e-6;
    for (;;) {
        rl_status status = channel_send(channel, message);
        if (status != RL_AGAIN) {
            return status;
        }
        double waited_s = rl_clock_now_s(NULL) - started_s;
        if (waited_s >= timeout_s) {
            return rl_fail(
                RL_TIMEOUT,
                "rank %d waits to send to rank %d: it took no message of kind %u for %.1f s",
                channel->rank, message->peer, message->kind, waited_s);
        }
        rl_clock_sleep_s(NULL, pause_s);
        pause_s = pause_s < 1e-3 ? pause_s * 2 : 2e-3;
    }
}

rl_status channel_receive(struct channel *channel, double timeout_s, struct channel_message *out)
{
    return channel->ops->receive(channel, timeout_s, out);
}

bool channel_peer_alive(struct channel *channel, int peer)
{
    return peer >= 0 && peer < channel->size && channel->ops->peer_alive(channel, peer);
}

void channel_counters(struct channel *channel, struct channel_counters *out)
{
    channel->ops->counters(channel, out);
}

void channel_close(struct channel *channel)
{
    if (channel != NULL) {
        channel->ops->close(channel);
    }
}

void channel_message_fini(struct channel_message *message)
{
    free(message->data);
    memset(message, 0, sizeof *message);
}
