/* Messages of the weight path between nodes, as contents of WIRE_BYTES frames (which carry their
 * own hash): pieces of an image or a delta one way, what has arrived the other. Owns their layout.
 * Pure; any thread. */
#ifndef FORESIGHT_TRANSPORT_WEIGHT_MESSAGE_H
#define FORESIGHT_TRANSPORT_WEIGHT_MESSAGE_H

#include "core/status.h"
#include "transport/channel.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum weight_message_type {
    WEIGHT_PIECE = 1, /* learner 0 to a node's leader: `bytes` of a transfer, from `offset` on */
    WEIGHT_STATE = 2, /* back: how far the transfer has come, and how it ended */
    WEIGHT_CLEAR = 3  /* learner 0 to a node's leader: reader index `readers` is dead */
};

enum weight_transfer_form { WEIGHT_FULL = 1, WEIGHT_DELTA = 2 };
enum weight_transfer_state { WEIGHT_COMING = 1, WEIGHT_PUBLISHED = 2, WEIGHT_REFUSED = 3 };

/* No version: nothing is kept. */
#define WEIGHT_KEEP_NONE UINT64_MAX

struct weight_message {
    uint32_t type;     /* enum weight_message_type */
    uint32_t form;     /* enum weight_transfer_form */
    uint64_t transfer; /* number of the transfer, from 1 on: tells late answers from others */
    uint32_t version;
    uint32_t state;       /* enum weight_transfer_state; WEIGHT_STATE only */
    uint64_t total_bytes; /* of the transfer */
    uint64_t offset;      /* WEIGHT_PIECE: of this piece; WEIGHT_STATE: bytes received */
    uint64_t hash;        /* xxh3 of the whole resulting image */
    uint64_t keep_from;   /* the receiver's arena keeps versions from here on */
    uint32_t slots;       /* the receiver's arena has as many as the sender's, */
    uint32_t readers;     /* and as many reader indices */
    const void *data;     /* WEIGHT_PIECE: [bytes] */
    size_t bytes;
};

/* Encode into a new frame; `peer` of *out is left alone. Errors: RL_NO_MEMORY, RL_INVALID. */
rl_status weight_message_encode(const struct weight_message *message, struct channel_message *out);

/* out->data borrows from the frame. Errors: RL_CORRUPT (also for WIRE_BYTES of other modules). */
rl_status weight_message_decode(const struct channel_message *frame, struct weight_message *out);

#endif
