/* Who gets weights how: rollout ranks on learner 0's node read its arena; of every other node one
 * rank leads, is sent the weights, and shares them with its node. Owns the nodes' leaders and the
 * sender. With transport.force_remote every rollout rank is a node of its own. Learner rank 0's
 * mutex must be held for everything but create and destroy. */
#ifndef FORESIGHT_APP_LEARNER_WEIGHTS_H
#define FORESIGHT_APP_LEARNER_WEIGHTS_H

#include "core/config.h"
#include "transport/channel.h"
#include "transport/weight_sender.h"
#include "transport/wire.h"
#include "transport/world.h"

struct learner_weights;

/* Borrowed for its life. */
struct learner_weights_options {
    const struct rl_config *config;
    struct world *world;
    struct channel *channel;
    struct weight_arena *arena;
    struct weight_history *history;
    struct wire_hello hello; /* what every rank is told, the arena's name apart */
    uint32_t element_bytes;  /* of the image, as masks count */
};

/* True if some rollout rank's weights travel by messages. */
bool learner_weights_any_remote(const struct rl_config *config, const struct world *world);

/* Starts the sender where there are remote nodes. Caller owns *out. Errors: RL_NO_MEMORY,
 * RL_INTERNAL. */
rl_status learner_weights_create(const struct learner_weights_options *options,
                                 struct learner_weights **out);

/* Before the channel is closed. Takes NULL. */
void learner_weights_destroy(struct learner_weights *weights);

/* A rollout rank (or its successor) is there: tell it where its weights are, as soon as that is
 * known. Errors: those of channel_send but RL_PEER_LOST. */
rl_status learner_weights_greet(struct learner_weights *weights, int rank);

/* `rank` is lost; it read as `reader`. Its node gets another leader if it led. */
rl_status learner_weights_lose(struct learner_weights *weights, int rank, int reader);

/* WIRE_HELLO or WIRE_BYTES of a rollout rank. The message stays the caller's. */
rl_status learner_weights_take(struct learner_weights *weights,
                               const struct channel_message *message);

/* True if `rank` has been told where its weights are, and they are there: it may get tickets. With
 * `version` (NULL: any) only if its node has at least that version. */
bool learner_weights_ready(const struct learner_weights *weights, int rank,
                           const uint32_t *version);

/* A version was published. */
void learner_weights_published(struct learner_weights *weights);

/* The sender's totals (all zero without remote nodes). Needs no mutex. */
void learner_weights_counters(const struct learner_weights *weights,
                              struct weight_sender_counters *out);

#endif
