/* The calls of collective.h, and the collective of a single learner. */
#include "transport/collective.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

static rl_status collective_check(const struct collective *c, const void *values, int64_t count)
{
    if (count < 0 || (count > 0 && values == NULL)) {
        return rl_fail(RL_INVALID, "learner %d: collective over %lld values at %p", c->rank,
                       (long long)count, values);
    }
    return RL_OK;
}

rl_status collective_sum_float(struct collective *c, float *values, int64_t count)
{
    RL_TRY(collective_check(c, values, count));
    return c->ops->sum_float(c, values, count);
}

rl_status collective_sum_double(struct collective *c, double *values, int64_t count)
{
    RL_TRY(collective_check(c, values, count));
    return c->ops->sum_double(c, values, count);
}

rl_status collective_max_double(struct collective *c, double *values, int64_t count)
{
    RL_TRY(collective_check(c, values, count));
    return c->ops->max_double(c, values, count);
}

rl_status collective_min_double(struct collective *c, double *values, int64_t count)
{
    RL_TRY(collective_check(c, values, count));
    return c->ops->min_double(c, values, count);
}

rl_status collective_broadcast(struct collective *c, void *data, size_t bytes, int root)
{
    RL_TRY(collective_check(c, data, bytes > INT64_MAX ? -1 : (int64_t)bytes));
    if (root < 0 || root >= c->size) {
        return rl_fail(RL_INVALID, "broadcast from learner %d of %d", root, c->size);
    }
    return c->ops->broadcast(c, data, bytes, root);
}

static rl_status bounds_check(const struct collective *c, const int64_t *bounds)
{
    if (bounds[0] != 0) {
        return rl_fail(RL_INVALID, "learner %d: parts that begin at %lld", c->rank,
                       (long long)bounds[0]);
    }
    for (int rank = 0; rank < c->size; rank++) {
        if (bounds[rank + 1] < bounds[rank]) {
            return rl_fail(RL_INVALID, "learner %d: the part of rank %d is [%lld, %lld)", c->rank,
                           rank, (long long)bounds[rank], (long long)bounds[rank + 1]);
        }
    }
    return RL_OK;
}

rl_status collective_sum_share(struct collective *c, float *values, const int64_t *bounds)
{
    RL_TRY(bounds_check(c, bounds));
    RL_TRY(collective_check(c, values, bounds[c->size]));
    return c->ops->sum_share(c, values, bounds);
}

rl_status collective_gather(struct collective *c, const void *part, const int64_t *bounds,
                            void *whole, int root)
{
    RL_TRY(bounds_check(c, bounds));
    RL_TRY(collective_check(c, part, bounds[c->rank + 1] - bounds[c->rank]));
    if (root < COLLECTIVE_ALL || root >= c->size) {
        return rl_fail(RL_INVALID, "gathering at learner %d of %d", root, c->size);
    }
    if (root == COLLECTIVE_ALL || root == c->rank) {
        RL_TRY(collective_check(c, whole, bounds[c->size]));
    }
    return c->ops->gather(c, part, bounds, whole, root);
}

rl_status collective_agree(struct collective *c, rl_status mine, rl_status *worst)
{
    return c->ops->agree(c, mine, worst);
}

rl_status collective_barrier(struct collective *c)
{
    rl_status worst = RL_OK;
    return c->ops->agree(c, RL_OK, &worst);
}

void collective_destroy(struct collective *c)
{
    if (c != NULL) {
        c->ops->destroy(c);
    }
}

static rl_status local_float(struct collective *c, float *values, int64_t count)
{
    (void)c;
    (void)values;
    (void)count;
    return RL_OK;
}

static rl_status local_double(struct collective *c, double *values, int64_t count)
{
    (void)c;
    (void)values;
    (void)count;
    return RL_OK;
}

static rl_status local_broadcast(struct collective *c, void *data, size_t bytes, int root)
{
    (void)c;
    (void)data;
    (void)bytes;
    (void)root;
    return RL_OK;
}

static rl_status local_sum_share(struct collective *c, float *values, const int64_t *bounds)
{
    (void)c;
    (void)values;
    (void)bounds;
    return RL_OK;
}

static rl_status local_gather(struct collective *c, const void *part, const int64_t *bounds,
                              void *whole, int root)
{
    (void)c;
    (void)root;
    if (part != whole && bounds[1] > 0) {
        memcpy(whole, part, (size_t)bounds[1]);
    }
    return RL_OK;
}

static rl_status local_agree(struct collective *c, rl_status mine, rl_status *worst)
{
    (void)c;
    *worst = mine;
    return RL_OK;
}

static void local_destroy(struct collective *c)
{
    free(c);
}

static const struct collective_ops local_ops = {
    .sum_float = local_float,
    .sum_double = local_double,
    .max_double = local_double,
    .min_double = local_double,
    .broadcast = local_broadcast,
    .sum_share = local_sum_share,
    .gather = local_gather,
    .agree = local_agree,
    .destroy = local_destroy,
};

rl_status collective_local_create(struct collective **out)
{
    struct collective *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a collective");
    }
    *c = (struct collective){.ops = &local_ops, .rank = 0, .size = 1};
    *out = c;
    return RL_OK;
}
