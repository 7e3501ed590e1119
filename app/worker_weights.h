/* Where a rollout rank's weights come from, as learner 0 tells it by WIRE_HELLO: a named arena (the
 * learner's own, or that of its node's leader), or no name: this rank leads its node, makes the
 * arena, receives what the learner sends, and says where the arena is. A later hello replaces the
 * arena when the node has got another leader. */
#ifndef FORESIGHT_APP_WORKER_WEIGHTS_H
#define FORESIGHT_APP_WORKER_WEIGHTS_H

#include "transport/channel.h"
#include "transport/weight_source.h"
#include "transport/wire.h"

struct worker_weights;

/* Borrowed for its life. */
struct worker_weights_options {
    struct channel *channel;
    int learner;
    int rank;   /* own */
    int reader; /* own index in arenas */
    size_t image_bytes;
    struct device *device; /* that the weights are for; NULL: the CPU */
};

/* Caller owns *out. Errors: RL_NO_MEMORY, RL_INTERNAL. */
rl_status worker_weights_create(const struct worker_weights_options *options,
                                struct worker_weights **out);

/* After the worker's loop has ended. Takes NULL. */
void worker_weights_destroy(struct worker_weights *weights);

/* Do what the learner's hello says. Compute thread. Errors: RL_NOT_FOUND, RL_CORRUPT, RL_INVALID,
 * RL_IO (the arena cannot be used), RL_NO_MEMORY. */
rl_status worker_weights_hello(struct worker_weights *weights, const struct wire_hello *hello);

/* A message that is not the worker's own: hello or weights; takes its data. `arg`: struct
 * worker_weights. Compute thread. */
void worker_weights_deliver(void *arg, struct channel_message *message);

/* From here on this rank takes tickets: a leader's node is announced to the learner. */
void worker_weights_working(struct worker_weights *weights);

/* True once there are weights to generate with. Any thread. */
bool worker_weights_ready(struct worker_weights *weights);

/* The source to read from. Borrowed. */
struct weight_source *worker_weights_source(struct worker_weights *weights);

#endif
