/* Messages between ranks. A channel is one rank's end: send to any peer, receive from all, both
 * bounded. Every deadline is the caller's; a peer that falls silent is reported, once, by a message
 * of kind CHANNEL_PEER_LOST in the same stream, and stays lost: what it sends later is dropped.
 * Messages from one peer arrive in the order they were sent (channel_local may be told otherwise).
 * Owns the queue and its bounds, not the meaning of the bytes (wire.h). */
#ifndef FORESIGHT_TRANSPORT_CHANNEL_H
#define FORESIGHT_TRANSPORT_CHANNEL_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Kinds from here on are made by the channel itself and carry no data. */
enum { CHANNEL_KIND_RESERVED = 0x7fff0000, CHANNEL_PEER_LOST = 0x7fff0001 };

struct channel_message {
    int peer;      /* receiver when sending, sender when received */
    uint32_t kind; /* enum wire_kind, or CHANNEL_PEER_LOST */
    size_t bytes;
    void *data; /* malloc'ed; owned by whoever holds the message; NULL if bytes is 0 */
};

/* Monotonic totals of one end. */
struct channel_counters {
    uint64_t sent_messages, sent_bytes;
    uint64_t received_messages, received_bytes;
    uint64_t credit_waits;     /* sends refused because the peer's credits were used up */
    uint64_t ring_waits;       /* sends refused because the outbound ring was full */
    uint64_t dropped_messages; /* to or from a lost peer, or refused (too large, malformed) */
    uint64_t lost_peers;
};

struct channel;

struct channel_ops {
    rl_status (*send)(struct channel *channel, struct channel_message *message);
    rl_status (*receive)(struct channel *channel, double timeout_s, struct channel_message *out);
    bool (*peer_alive)(struct channel *channel, int peer);
    void (*counters)(struct channel *channel, struct channel_counters *out);
    void (*close)(struct channel *channel);
};

/* First member of every implementation. */
struct channel {
    const struct channel_ops *ops;
    int rank; /* this end */
    int size; /* ranks, this one included */
};

/* Take the message: on RL_OK its data belongs to the channel and `message` is zeroed. Never
 * blocks: RL_AGAIN if the peer has used up its credits or the outbound ring is full (the message
 * stays the caller's; try again later). To a lost peer: RL_PEER_LOST, the message stays the
 * caller's. To oneself is allowed. Any thread. Errors: RL_INVALID (peer, kind or size out of
 * range), RL_CLOSED, RL_NO_MEMORY. */
rl_status channel_send(struct channel *channel, struct channel_message *message);

/* The same, trying again until timeout_s has passed. Errors: as above, RL_TIMEOUT. */
rl_status channel_send_wait(struct channel *channel, struct channel_message *message,
                            double timeout_s);

/* Next message; waits up to timeout_s (0: only looks). The caller owns out->data. Any thread.
 * RL_AGAIN: none came in time. RL_CLOSED: closed and empty. */
rl_status channel_receive(struct channel *channel, double timeout_s, struct channel_message *out);

/* False once the peer is lost. Any thread. */
bool channel_peer_alive(struct channel *channel, int peer);

/* Totals so far. Any thread. */
void channel_counters(struct channel *channel, struct channel_counters *out);

/* Free the end and what is still in it. No other thread may be in it. Takes NULL. */
void channel_close(struct channel *channel);

/* Free the data of a message and zero it. Takes a zeroed message. */
void channel_message_fini(struct channel_message *message);

#endif
