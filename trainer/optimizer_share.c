/* See optimizer_share.h. */
#include "trainer/optimizer_share.h"

#include "core/log.h"
#include "kernels/device.h"

#include <stdlib.h>

static int64_t share_floats(int64_t count, int ranks)
{
    int64_t blocks = (count + OPTIMIZER_NORM_BLOCK - 1) / OPTIMIZER_NORM_BLOCK;
    return (blocks + ranks - 1) / ranks * OPTIMIZER_NORM_BLOCK;
}

void optimizer_share_bounds(int64_t count, int ranks, int64_t *bounds)
{
    int64_t unit = share_floats(count, ranks);
    bounds[0] = 0;
    for (int rank = 0; rank < ranks; rank++) {
        int64_t end = bounds[rank] + unit;
        bounds[rank + 1] = end < count ? end : count;
    }
}

int64_t optimizer_share_largest(int64_t count, int ranks)
{
    int64_t unit = share_floats(count, ranks);
    return unit < count ? unit : count;
}

rl_status optimizer_share_init(struct optimizer_share *share, struct collective *collective,
                               int64_t count)
{
    *share = (struct optimizer_share){0};
    if (collective == NULL || collective->size == 1) {
        return RL_OK;
    }
    size_t ends = (size_t)collective->size + 1;
    share->bounds = calloc(3 * ends, sizeof(*share->bounds));
    if (share->bounds == NULL) {
        return rl_fail(RL_NO_MEMORY, "optimizer: no memory for the shares of %zu learners",
                       ends - 1);
    }
    share->collective = collective;
    share->bytes = share->bounds + ends;
    share->sums = share->bytes + ends;
    optimizer_share_bounds(count, collective->size, share->bounds);
    for (size_t i = 0; i < ends; i++) {
        int64_t blocks = (share->bounds[i] + OPTIMIZER_NORM_BLOCK - 1) / OPTIMIZER_NORM_BLOCK;
        share->bytes[i] = share->bounds[i] * (int64_t)sizeof(float);
        share->sums[i] = blocks * (int64_t)sizeof(double);
    }
    return RL_OK;
}

void optimizer_share_fini(struct optimizer_share *share)
{
    free(share->bounds);
    *share = (struct optimizer_share){0};
}

static void own_squares(const struct optimizer_share *share, const struct kernel_table *kernels,
                        const struct kernel_sum_squares_args *args, struct rl_pool *pool)
{
    int rank = share->collective->rank;
    int64_t first = share->bounds[rank];
    double own_sum = 0;
    struct kernel_sum_squares_args own = {.x = args->x + first,
                                          .count = share->bounds[rank + 1] - first,
                                          .sum = &own_sum,
                                          .block_sums =
                                              args->block_sums + first / OPTIMIZER_NORM_BLOCK};
    if (own.count > 0) {
        kernels->sum_squares(&own, pool);
    }
}

/* The kernel adds the sums of the blocks from the first to the last; so it is here. */
static rl_status add_squares(const struct optimizer_share *share,
                             const struct kernel_sum_squares_args *args, struct rl_pool *pool,
                             double *sums)
{
    struct collective *c = share->collective;
    const int64_t *bytes = share->sums;
    char *own = (char *)sums + bytes[c->rank];
    double total = 0;
    RL_TRY(device_read(pool, own, (const char *)args->block_sums + bytes[c->rank],
                       (size_t)(bytes[c->rank + 1] - bytes[c->rank])));
    RL_TRY(collective_gather(c, own, bytes, sums, COLLECTIVE_ALL));
    for (size_t b = 0; b < (size_t)bytes[c->size] / sizeof(double); b++) {
        total += sums[b];
    }
    *args->sum = total;
    return RL_OK;
}

rl_status optimizer_share_squares(const struct optimizer_share *share,
                                  const struct kernel_table *kernels,
                                  const struct kernel_sum_squares_args *args, struct rl_pool *pool)
{
    double *sums = malloc((size_t)share->sums[share->collective->size]);
    if (sums == NULL) {
        return rl_fail(RL_NO_MEMORY, "optimizer: no memory for the sums of the norm");
    }
    own_squares(share, kernels, args, pool);
    rl_status status = add_squares(share, args, pool, sums);
    free(sums);
    return status;
}

rl_status optimizer_share_spread(const struct optimizer_share *share, float *slab,
                                 int32_t *nonfinite, struct rl_pool *pool)
{
    struct collective *c = share->collective;
    double bad = *nonfinite;
    RL_TRY(collective_device_gather(c, pool, share->bytes, slab));
    RL_TRY(collective_max_double(c, &bad, 1));
    *nonfinite = bad != 0;
    return RL_OK;
}

static int64_t clamp(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

rl_status optimizer_share_collect(const struct optimizer_share *share, const float *own,
                                  const struct optimizer_window *window)
{
    struct collective *c = share->collective;
    int64_t end = window->first + window->count;
    int64_t own_first = share->bounds[c->rank];
    int64_t own_end = share->bounds[c->rank + 1];
    int64_t skip = clamp(window->first, own_first, own_end) - own_first;
    int64_t *bounds = malloc(((size_t)c->size + 1) * sizeof(*bounds));
    if (bounds == NULL) {
        return rl_fail(RL_NO_MEMORY, "optimizer: no memory for a window of the moments");
    }
    for (int rank = 0; rank <= c->size; rank++) {
        int64_t at = clamp(share->bounds[rank], window->first, end) - window->first;
        bounds[rank] = at * (int64_t)sizeof(float);
    }
    rl_status status = collective_gather(c, own + skip, bounds, window->out, 0);
    free(bounds);
    return status;
}
