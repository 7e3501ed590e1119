/* The order in which a run visits its prompts: each epoch is one keyed permutation of all of them
 * (or their own order), so the prompt at a position is a function of (seed, position) and a run
 * resumes by its position alone. */
#ifndef FORESIGHT_ROLLOUT_PROMPT_ORDER_H
#define FORESIGHT_ROLLOUT_PROMPT_ORDER_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

struct prompt_order;

/* Order over `count` >= 1 prompts. `shuffle` false: 0, 1, 2, ... in every epoch. Caller owns *out.
 * Errors: RL_INVALID (no prompts), RL_NO_MEMORY. */
rl_status prompt_order_create(uint64_t count, uint64_t seed, bool shuffle,
                              struct prompt_order **out);

/* Takes NULL. */
void prompt_order_destroy(struct prompt_order *order);

/* Prompt and epoch (from 0) at `position`: position / count is the epoch. One thread at a time;
 * positions may come in any order, but a step to another epoch costs O(count).
 * Errors: RL_INVALID (an epoch past 2^32 - 1). */
rl_status prompt_order_at(struct prompt_order *order, uint64_t position, uint64_t *prompt_id,
                          uint32_t *epoch);

#endif
