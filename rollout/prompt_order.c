/* The order of prompts: see prompt_order.h. Keeps the permutation of one epoch, the last asked for.
 */
#include "rollout/prompt_order.h"

#include "core/log.h"
#include "core/rng.h"

#include <stdlib.h>

/* Tag of this stream in the top byte of the key's last word (core/rng.h). */
static const uint64_t order_tag = UINT64_C(0x4f) << 56;

struct prompt_order {
    uint64_t count;
    uint64_t seed;
    uint64_t *permutation; /* [count]; NULL: no shuffling */
    uint64_t cached_epoch; /* of `permutation`; UINT64_MAX: none yet */
};

rl_status prompt_order_create(uint64_t count, uint64_t seed, bool shuffle,
                              struct prompt_order **out)
{
    if (count == 0 || count > SIZE_MAX / sizeof(uint64_t)) {
        return rl_fail(RL_INVALID, "order of prompts: %llu prompts; expected at least one",
                       (unsigned long long)count);
    }
    struct prompt_order *order = calloc(1, sizeof(*order));
    uint64_t *permutation = shuffle ? malloc(count * sizeof(*permutation)) : NULL;
    if (order == NULL || (shuffle && permutation == NULL)) {
        free(permutation);
        free(order);
        return rl_fail(RL_NO_MEMORY, "order of %llu prompts", (unsigned long long)count);
    }
    *order = (struct prompt_order){count, seed, permutation, UINT64_MAX};
    *out = order;
    return RL_OK;
}

void prompt_order_destroy(struct prompt_order *order)
{
    if (order != NULL) {
        free(order->permutation);
        free(order);
    }
}

rl_status prompt_order_at(struct prompt_order *order, uint64_t position, uint64_t *prompt_id,
                          uint32_t *epoch)
{
    uint64_t at_epoch = position / order->count;
    uint64_t index = position % order->count;
    if (at_epoch > UINT32_MAX) {
        return rl_fail(RL_INVALID,
                       "order of prompts: position %llu is in epoch %llu, past 2^32 - 1",
                       (unsigned long long)position, (unsigned long long)at_epoch);
    }
    if (order->permutation != NULL && order->cached_epoch != at_epoch) {
        rl_rng_permutation(rl_rng_key_make(order->seed, at_epoch, order_tag), order->count,
                           order->permutation);
        order->cached_epoch = at_epoch;
    }
    *prompt_id = order->permutation != NULL ? order->permutation[index] : index;
    *epoch = (uint32_t)at_epoch;
    return RL_OK;
}
