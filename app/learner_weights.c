/* See learner_weights.h. */
#include "app/learner_weights.h"

#include "core/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NO_LEADER = -1 };

/* A node other than learner 0's; indexed by world_node, or by rank with force_remote. */
struct node {
    int leader;
    char arena_name[WIRE_NAME_MAX]; /* "": the leader has no weights yet */
};

struct member {
    bool there;
    bool told; /* where its weights are, and they are there */
};

struct learner_weights {
    struct learner_weights_options options;
    struct weight_sender *sender; /* NULL without remote nodes */
    struct node *nodes;           /* [world size] */
    struct member *members;       /* [world size] */
};

static int node_of(const struct rl_config *config, const struct world *world, int rank)
{
    return config->transport.force_remote ? rank : world_node_of(world, rank);
}

static bool is_remote(const struct rl_config *config, const struct world *world, int rank)
{
    return world_role(world, rank) == WORLD_WORKER &&
           node_of(config, world, rank) != node_of(config, world, 0);
}

static bool member_is_remote(const struct learner_weights *w, int rank)
{
    return is_remote(w->options.config, w->options.world, rank);
}

static struct node *member_node(const struct learner_weights *w, int rank)
{
    return &w->nodes[node_of(w->options.config, w->options.world, rank)];
}

bool learner_weights_any_remote(const struct rl_config *config, const struct world *world)
{
    bool any = false;
    for (int rank = 0; rank < world_size(world); rank++) {
        any = any || is_remote(config, world, rank);
    }
    return any;
}

static rl_status start_sender(struct learner_weights *w)
{
    struct weight_sender_options options = {.channel = w->options.channel,
                                            .arena = w->options.arena,
                                            .reader = world_rank(w->options.world),
                                            .history = w->options.history,
                                            .image_bytes = w->options.hello.slot_bytes,
                                            .element_bytes = w->options.element_bytes};
    return learner_weights_any_remote(w->options.config, w->options.world)
               ? weight_sender_start(&options, &w->sender)
               : RL_OK;
}

rl_status learner_weights_create(const struct learner_weights_options *options,
                                 struct learner_weights **out)
{
    struct learner_weights *w = calloc(1, sizeof(*w));
    size_t size = (size_t)world_size(options->world);
    if (w == NULL) {
        return rl_fail(RL_NO_MEMORY, "learner: out of memory");
    }
    w->options = *options;
    w->nodes = calloc(size, sizeof(*w->nodes));
    w->members = calloc(size, sizeof(*w->members));
    rl_status status = w->nodes != NULL && w->members != NULL
                           ? start_sender(w)
                           : rl_fail(RL_NO_MEMORY, "learner: out of memory");
    if (status != RL_OK) {
        learner_weights_destroy(w);
        return status;
    }
    for (size_t i = 0; i < size; i++) {
        w->nodes[i].leader = NO_LEADER;
    }
    *out = w;
    return RL_OK;
}

void learner_weights_destroy(struct learner_weights *weights)
{
    if (weights == NULL) {
        return;
    }
    weight_sender_stop(weights->sender);
    free(weights->nodes);
    free(weights->members);
    free(weights);
}

static rl_status send_hello(struct learner_weights *w, int rank, const char *arena_name)
{
    struct wire_hello hello = w->options.hello;
    struct channel_message message = {.peer = rank};
    snprintf(hello.arena_name, sizeof(hello.arena_name), "%s", arena_name);
    RL_TRY(wire_encode_hello(&hello, &message));
    rl_status status = channel_send(w->options.channel, &message);
    channel_message_fini(&message);
    return status == RL_PEER_LOST ? RL_OK : status; /* its loss is announced otherwise */
}

static rl_status make_leader(struct learner_weights *w, int rank)
{
    struct node *node = member_node(w, rank);
    node->leader = rank;
    node->arena_name[0] = '\0';
    RL_TRY(send_hello(w, rank, ""));
    weight_sender_add(w->sender, rank);
    return RL_OK;
}

static rl_status tell(struct learner_weights *w, int rank, const char *arena_name)
{
    RL_TRY(send_hello(w, rank, arena_name));
    w->members[rank].told = true;
    return RL_OK;
}

rl_status learner_weights_greet(struct learner_weights *weights, int rank)
{
    struct learner_weights *w = weights;
    w->members[rank] = (struct member){.there = true};
    if (!member_is_remote(w, rank)) {
        return tell(w, rank, weight_arena_name(w->options.arena));
    }
    struct node *node = member_node(w, rank);
    if (node->leader == NO_LEADER) {
        return make_leader(w, rank);
    }
    return node->arena_name[0] != '\0' ? tell(w, rank, node->arena_name) : RL_OK;
}

/* The lowest living rank of the node leads it from now on; the others follow when it says where. */
static rl_status elect(struct learner_weights *w, const struct node *node)
{
    for (int rank = 0; rank < world_size(w->options.world); rank++) {
        if (w->members[rank].there && member_is_remote(w, rank) && member_node(w, rank) == node) {
            rl_log(RL_LOG_INFO, "rollout rank %d now receives the weights for its node", rank);
            return make_leader(w, rank);
        }
    }
    return RL_OK;
}

rl_status learner_weights_lose(struct learner_weights *weights, int rank, int reader)
{
    struct learner_weights *w = weights;
    w->members[rank] = (struct member){0};
    if (!member_is_remote(w, rank)) {
        weight_arena_clear_reader(w->options.arena, reader);
        return RL_OK;
    }
    struct node *node = member_node(w, rank);
    if (node->leader != rank) {
        if (node->leader != NO_LEADER) {
            weight_sender_clear_reader(w->sender, node->leader, reader);
        }
        return RL_OK;
    }
    weight_sender_remove(w->sender, rank);
    *node = (struct node){.leader = NO_LEADER};
    return elect(w, node);
}

/* A leader says where its node's arena is: all of the node are sent there. */
static rl_status take_hello(struct learner_weights *w, int leader, const char *arena_name)
{
    struct node *node = member_node(w, leader);
    if (!member_is_remote(w, leader) || node->leader != leader) {
        return RL_OK; /* it has been replaced meanwhile */
    }
    snprintf(node->arena_name, sizeof(node->arena_name), "%s", arena_name);
    w->members[leader].told = true;
    for (int rank = 0; rank < world_size(w->options.world); rank++) {
        bool follows = rank != leader && w->members[rank].there && member_is_remote(w, rank) &&
                       member_node(w, rank) == node;
        if (follows) {
            RL_TRY(tell(w, rank, arena_name));
        }
    }
    return RL_OK;
}

rl_status learner_weights_take(struct learner_weights *weights,
                               const struct channel_message *message)
{
    struct wire_hello hello;
    if (message->kind == WIRE_HELLO && wire_decode_hello(message, &hello) == RL_OK) {
        return take_hello(weights, message->peer, hello.arena_name);
    }
    if (message->kind == WIRE_BYTES && weights->sender != NULL) {
        (void)weight_sender_take(weights->sender, message); /* logged; no reason to stop */
    }
    return RL_OK;
}

bool learner_weights_ready(const struct learner_weights *weights, int rank, const uint32_t *version)
{
    const struct learner_weights *w = weights;
    uint32_t has = 0;
    if (!w->members[rank].told) {
        return false;
    }
    return version == NULL || !member_is_remote(w, rank) ||
           (weight_sender_version(w->sender, member_node(w, rank)->leader, &has) &&
            has >= *version);
}

void learner_weights_published(struct learner_weights *weights)
{
    if (weights->sender != NULL) {
        weight_sender_notify(weights->sender);
    }
}

void learner_weights_counters(const struct learner_weights *weights,
                              struct weight_sender_counters *out)
{
    *out = (struct weight_sender_counters){0};
    if (weights->sender != NULL) {
        weight_sender_counters(weights->sender, out);
    }
}
