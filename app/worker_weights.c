/* See worker_weights.h. Arenas that were replaced stay mapped to the end: images of theirs may
 * still be in use, and it takes a leader's death to replace one. */
#include "app/worker_weights.h"

#include "core/log.h"
#include "transport/weight_receiver.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

enum { EVENT_LED = 1, EVENT_WORKING = 2 };
static const double hello_timeout_s = 10;

struct worker_weights {
    struct worker_weights_options options;
    struct weight_source *source;
    struct weight_receiver *receiver; /* of a leader */
    struct weight_arena **attached;   /* [attached_count] other processes' */
    size_t attached_count;
    struct weight_arena *own; /* the receiver's, after EVENT_LED */
    atomic_uint events;
    atomic_bool ready;
};

rl_status worker_weights_create(const struct worker_weights_options *options,
                                struct worker_weights **out)
{
    struct worker_weights *w = calloc(1, sizeof(*w));
    if (w == NULL) {
        return rl_fail(RL_NO_MEMORY, "worker: out of memory");
    }
    w->options = *options;
    rl_status status = weight_source_create(options->reader, &w->source);
    if (status != RL_OK) {
        free(w);
        return status;
    }
    *out = w;
    return RL_OK;
}

void worker_weights_destroy(struct worker_weights *weights)
{
    if (weights == NULL) {
        return;
    }
    weight_source_destroy(weights->source);
    weight_receiver_stop(weights->receiver);
    for (size_t i = 0; i < weights->attached_count; i++) {
        weight_arena_close(weights->attached[i]);
    }
    free(weights->attached);
    free(weights);
}

/* Tell the learner where this node's arena is, once: when there is one and tickets can be taken.
 * The one of the two events that comes second does it. */
static void announce(struct worker_weights *w, unsigned event)
{
    unsigned before = atomic_fetch_or(&w->events, event);
    struct wire_hello hello = {.rank = (uint32_t)w->options.rank,
                               .world_size = (uint32_t)w->options.channel->size,
                               .slot_bytes = w->options.image_bytes};
    struct channel_message message = {.peer = w->options.learner};
    if (before == (EVENT_LED | EVENT_WORKING) || (before | event) != (EVENT_LED | EVENT_WORKING)) {
        return;
    }
    snprintf(hello.arena_name, sizeof(hello.arena_name), "%s", weight_arena_name(w->own));
    if (wire_encode_hello(&hello, &message) == RL_OK) {
        (void)channel_send_wait(w->options.channel, &message, hello_timeout_s);
        channel_message_fini(&message);
    }
}

/* The receiver's thread: this node has its first weights. */
static void first_weights(void *arg, struct weight_arena *arena)
{
    struct worker_weights *w = arg;
    w->own = arena;
    weight_source_attach(w->source, arena);
    atomic_store(&w->ready, true);
    announce(w, EVENT_LED);
}

void worker_weights_working(struct worker_weights *weights)
{
    announce(weights, EVENT_WORKING);
}

static rl_status lead(struct worker_weights *w)
{
    struct weight_receiver_options options = {.channel = w->options.channel,
                                              .learner = w->options.learner,
                                              .image_bytes = w->options.image_bytes,
                                              .ready = first_weights,
                                              .arg = w};
    return w->receiver != NULL ? RL_OK : weight_receiver_start(&options, &w->receiver);
}

static rl_status follow(struct worker_weights *w, const char *name)
{
    struct weight_arena *arena = NULL;
    struct weight_arena **grown =
        realloc(w->attached, (w->attached_count + 1) * sizeof(struct weight_arena *));
    if (grown == NULL) {
        return rl_fail(RL_NO_MEMORY, "worker: out of memory");
    }
    w->attached = grown;
    RL_TRY(weight_arena_attach(name, w->options.image_bytes, &arena));
    w->attached[w->attached_count++] = arena;
    weight_arena_map_device(arena, w->options.device, w->options.reader);
    weight_source_attach(w->source, arena);
    atomic_store(&w->ready, true);
    return RL_OK;
}

rl_status worker_weights_hello(struct worker_weights *weights, const struct wire_hello *hello)
{
    return hello->arena_name[0] == '\0' ? lead(weights) : follow(weights, hello->arena_name);
}

void worker_weights_deliver(void *arg, struct channel_message *message)
{
    struct worker_weights *w = arg;
    struct wire_hello hello;
    if (message->kind == WIRE_BYTES && w->receiver != NULL) {
        weight_receiver_give(w->receiver, message);
    } else if (message->kind == WIRE_HELLO && wire_decode_hello(message, &hello) == RL_OK) {
        (void)worker_weights_hello(w, &hello); /* logged; it goes on with the weights it has */
    }
    channel_message_fini(message);
}

bool worker_weights_ready(struct worker_weights *weights)
{
    return atomic_load(&weights->ready);
}

struct weight_source *worker_weights_source(struct worker_weights *weights)
{
    return weights->source;
}
