/* A node leader's end of the weight path: takes what weight_sender sends, patches a free slot of an
 * arena that it shares with its node, checks the hash of the whole image, and publishes. One thread
 * of its own; generation never waits for it. What does not fit or does not have its hash is never
 * published: it is refused, counted, and answered, so that the whole image comes next. */
#ifndef FORESIGHT_TRANSPORT_WEIGHT_RECEIVER_H
#define FORESIGHT_TRANSPORT_WEIGHT_RECEIVER_H

#include "core/status.h"
#include "transport/channel.h"
#include "transport/weight_arena.h"

struct weight_receiver;

/* Borrowed for the receiver's life. */
struct weight_receiver_options {
    struct channel *channel;
    int learner; /* rank that sends, and is answered */
    size_t image_bytes;
    /* Called once, on the receiver's thread, when the first version can be read. */
    void (*ready)(void *arg, struct weight_arena *arena);
    void *arg;
};

/* Start the thread; the arena is made when the first piece arrives. Caller owns *out.
 * Errors: RL_NO_MEMORY, RL_INTERNAL. */
rl_status weight_receiver_start(const struct weight_receiver_options *options,
                                struct weight_receiver **out);

/* End the thread and close the arena: nobody of this process may be reading it. Takes NULL. */
void weight_receiver_stop(struct weight_receiver *receiver);

/* Hand over a WIRE_BYTES message; its data is the receiver's from here on. Any thread. */
void weight_receiver_give(struct weight_receiver *receiver, struct channel_message *message);

#endif
