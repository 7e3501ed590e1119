/* The loop of a rollout rank's compute thread: tickets in, scored groups out, newest weights
 * between two passes. It owns nothing but the groups on their way; whoever composes the rank gives
 * it the engine, the channel, the weights and a scorer. Another thread pumps the channel. */
#ifndef FORESIGHT_ROLLOUT_WORKER_H
#define FORESIGHT_ROLLOUT_WORKER_H

#include "core/wait.h"
#include "rollout/generator.h"
#include "rollout/prompts.h"
#include "transport/channel.h"
#include "transport/weight_source.h"
#include "transport/wire.h"

#include <stdatomic.h>

/* What scores finished groups beside decoding (rewards/ is not visible from here). No call blocks.
 * submit takes the group on RL_OK; RL_AGAIN when full. take: RL_AGAIN if none is ready. copy: all
 * that are inside; the caller owns the groups and frees the array. */
struct rollout_scorer {
    rl_status (*submit)(void *arg, struct trajectory_group *group);
    rl_status (*take)(void *arg, struct trajectory_group **group);
    rl_status (*copy)(void *arg, struct trajectory_group ***groups, uint32_t *count);
    void *arg;
};

struct rollout_worker_args {
    int rank;    /* own world rank */
    int learner; /* rank that issues tickets and takes groups */
    struct channel *channel;
    struct weight_source *weights;
    /* Takes the data of messages that are not the worker's own (of the weight path). */
    void (*deliver)(void *arg, struct channel_message *message);
    void *deliver_arg;
    struct rollout_generator *generator;
    const struct prompts *prompts;
    struct rollout_scorer scorer;
    struct rl_waits *waits;    /* may be NULL */
    const atomic_bool *cancel; /* set by another thread to leave at once */
    double status_every_s;     /* interval of WIRE_STATUS */
};

/* Run until a WIRE_STOP arrives (*stop is then filled), `cancel` is set (RL_INTERRUPTED) or the
 * learner is lost (RL_PEER_LOST, not logged: the channel said why). Compute thread; blocking.
 * Errors: also those of the engine, and RL_CORRUPT for a malformed frame. */
rl_status rollout_worker_run(const struct rollout_worker_args *args, struct wire_stop *stop);

#endif
