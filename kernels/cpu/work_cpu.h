/* When to use the pool. An op says what it costs (about one unit per floating-point operation);
 * calls that are over before a helper would wake stay on the caller. The items are the same either
 * way. */
#ifndef FORESIGHT_KERNELS_CPU_WORK_CPU_H
#define FORESIGHT_KERNELS_CPU_WORK_CPU_H

#include "core/pool.h"

#include <stddef.h>
#include <stdint.h>

enum {
    WORK_MIN_COST = 1000000, /* below: about 10 us, not worth a wake-up */
    WORK_ITEM_COST = 2000000 /* aim for one item */
};

/* Run fn(arg, 0 .. count-1), on the pool if `cost` of all items together is worth it. */
static inline void work_run(struct rl_pool *pool, double cost, int64_t count, rl_pool_fn fn,
                            void *arg)
{
    rl_pool_run(cost < (double)WORK_MIN_COST ? NULL : pool, (int)count, fn, arg);
}

static inline int64_t work_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t work_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static inline int64_t work_ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Units per item so that an item costs about WORK_ITEM_COST; 1 .. units. */
static inline int64_t work_units_per_item(double unit_cost, int64_t units)
{
    double wanted = (double)WORK_ITEM_COST / (unit_cost > 1.0 ? unit_cost : 1.0);
    return work_max(1, wanted < (double)units ? (int64_t)wanted : units);
}

#endif
