/* How learners share the optimizer's moments out (ZeRO stage 1): every rank keeps those of one
 * stretch of the slabs, updates its weights, and gets the others' weights from whose they are. The
 * invariant: shares are whole blocks of the gradient norm's sum, so that norm, update and weights
 * have the bits of a single optimizer that is given the same gradient. */
#ifndef FORESIGHT_TRAINER_OPTIMIZER_SHARE_H
#define FORESIGHT_TRAINER_OPTIMIZER_SHARE_H

#include "core/status.h"
#include "kernels/kernels.h"
#include "transport/collective.h"

#include <stdint.h>

enum { OPTIMIZER_NORM_BLOCK = 65536 }; /* kernel_sum_squares_args.block_sums */

/* Who keeps what. */
struct optimizer_share {
    struct collective *collective; /* borrowed; NULL: nothing is shared out */
    int64_t *bounds;               /* [size + 1] floats: rank r has [bounds[r], bounds[r + 1]) */
    int64_t *bytes;                /* [size + 1] the same in bytes of the slabs */
    int64_t *sums;                 /* [size + 1] the same in bytes of the norm's block sums */
};

/* bounds [ranks + 1] over `count` floats: equal shares of whole blocks, the last ones less or
 * empty.
 */
void optimizer_share_bounds(int64_t count, int ranks, int64_t *bounds);

/* The largest share, floats. */
int64_t optimizer_share_largest(int64_t count, int ranks);

/* Shares of slabs of `count` floats among the ranks of `collective` (NULL or of one rank: no
 * shares). Errors: RL_NO_MEMORY. */
rl_status optimizer_share_init(struct optimizer_share *share, struct collective *collective,
                               int64_t count);

/* Takes a zeroed struct. */
void optimizer_share_fini(struct optimizer_share *share);

/* *squares = sum of squares of all of a slab [count], of which every rank has its own share right:
 * `args` are the kernel's for the whole slab. Collective. Errors: the collective's, the device's,
 * RL_NO_MEMORY. */
rl_status optimizer_share_squares(const struct optimizer_share *share,
                                  const struct kernel_table *kernels,
                                  const struct kernel_sum_squares_args *args, struct rl_pool *pool);

/* Every rank's share of a slab, on the pool's device, to every rank, and *nonfinite set where any
 * rank has it set. Collective. Errors: the collective's, the device's. */
rl_status optimizer_share_spread(const struct optimizer_share *share, float *slab,
                                 int32_t *nonfinite, struct rl_pool *pool);

/* A stretch [first, first + count) of a slab; `out` [count] on rank 0, NULL elsewhere. */
struct optimizer_window {
    int64_t slab; /* 0: m, 1: v */
    int64_t first, count;
    float *out;
};

/* The window's floats to rank 0; `own` is this rank's share of its slab. Collective. Errors: the
 * collective's, RL_NO_MEMORY. */
rl_status optimizer_share_collect(const struct optimizer_share *share, const float *own,
                                  const struct optimizer_window *window);

#endif
