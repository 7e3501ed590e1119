/* What one reward function is, and how a set of them is built from a table. Only the files of this
 * folder and its tests include this; users see reward.h. */
#ifndef FORESIGHT_REWARDS_REWARD_OPS_H
#define FORESIGHT_REWARDS_REWARD_OPS_H

#include "rewards/reward.h"

#include <stddef.h>

/* A reward function. `create` and `destroy` may be NULL for functions without state. `score` runs
 * on any thread, several at once, on the same state, and must not touch anything else that changes:
 * an overdue call goes on in an abandoned thread while the program has moved on. */
struct reward_ops {
    const char *name;
    bool gold_is_puzzle; /* the ground truth states a problem; it is not itself an answer */
    /* Make the function's state from the options. Logs its own error. */
    rl_status (*create)(const struct rl_config *config, void **state);
    void (*destroy)(void *state);
    /* Fill *out; it comes in as {valid false, value 0, reason ""}. */
    void (*score)(const void *state, const struct reward_input *input, struct reward_output *out);
};

/* As reward_set_create, with the functions to choose from given: a table of pointers [count],
 * borrowed for the life of the set and of any scoring thread. */
rl_status reward_set_create_from_ops(const struct reward_ops *const *table, size_t count,
                                     const struct rl_config *config, struct reward_set **out);

/* One more owner of the set: reward_set_destroy frees it when the last one has called it. The pool
 * takes one for each scoring call, since an abandoned thread may outlive everything else. */
struct reward_set *reward_set_acquire(const struct reward_set *set);

#endif
