/* The learner's end of the weight path between nodes: brings every leader of another node to the
 * newest version, by a delta from what it has or by the whole image. One thread of its own, so that
 * neither training nor the pump waits; it holds a slot of the arena only while it encodes. Versions
 * coalesce, unless the arena keeps a window of them (weight_arena_keep_from): then each is sent in
 * turn. Owns what each leader has and the transfers under way; other nodes' workers are not its
 * business. A transfer has at most a window of bytes unanswered, so tickets pass it. */
#ifndef FORESIGHT_TRANSPORT_WEIGHT_SENDER_H
#define FORESIGHT_TRANSPORT_WEIGHT_SENDER_H

#include "core/status.h"
#include "transport/channel.h"
#include "transport/weight_arena.h"
#include "transport/weight_history.h"

struct weight_sender;

/* Everything borrowed for the sender's life. */
struct weight_sender_options {
    struct channel *channel;
    struct weight_arena *arena; /* the learner's own */
    int reader;                 /* reader index of the arena that nobody else uses */
    struct weight_history *history;
    size_t image_bytes;
    uint32_t element_bytes; /* as masks count */
};

/* Since the start. */
struct weight_sender_counters {
    uint64_t sends;      /* transfers of a version to a node begun */
    uint64_t bytes;      /* of them */
    uint64_t full_sends; /* of them, whole images */
    uint64_t published;  /* of them, published by the node's leader */
    uint64_t refused;    /* transfers that a leader refused */
    double encode_s;     /* CPU time spent making deltas and copies */
};

/* Start the thread. Caller owns *out. Errors: RL_NO_MEMORY, RL_INTERNAL. */
rl_status weight_sender_start(const struct weight_sender_options *options,
                              struct weight_sender **out);

/* End the thread, transfers or not. Before the channel is closed. Takes NULL. */
void weight_sender_stop(struct weight_sender *sender);

/* `peer` leads a node and has nothing yet; added again, it starts anew. Any thread. */
void weight_sender_add(struct weight_sender *sender, int peer);

/* `peer` is lost or leads no more. Any thread. */
void weight_sender_remove(struct weight_sender *sender, int peer);

/* Reader index `reader` of the arena that `peer` leads belongs to a dead process. Any thread. */
void weight_sender_clear_reader(struct weight_sender *sender, int peer, int reader);

/* The newest version that `peer` has published on its node; false: none yet. Any thread. */
bool weight_sender_version(struct weight_sender *sender, int peer, uint32_t *version);

/* A version was published: wakes the thread (it would look by itself a little later). Any thread.
 */
void weight_sender_notify(struct weight_sender *sender);

/* An answer of a leader (WIRE_BYTES). The message stays the caller's. Any thread.
 * Errors: RL_CORRUPT. */
rl_status weight_sender_take(struct weight_sender *sender, const struct channel_message *message);

/* sum += more. */
void weight_sender_counters_add(struct weight_sender_counters *sum,
                                const struct weight_sender_counters *more);

/* What `now` has more than `before`. */
struct weight_sender_counters
weight_sender_counters_since(const struct weight_sender_counters *now,
                             const struct weight_sender_counters *before);

/* Totals. Any thread. */
void weight_sender_counters(struct weight_sender *sender, struct weight_sender_counters *out);

#endif
