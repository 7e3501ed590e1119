/* One call of a case of check_kernels: which table, how large, how often, how long it took. */
#ifndef FORESIGHT_TESTS_KERNEL_CALLS_H
#define FORESIGHT_TESTS_KERNEL_CALLS_H

#include "kernels/bf16.h"
#include "tests/kernel_support.h"

#include <time.h>

enum size { SIZE_ODD, SIZE_THREADS, SIZE_BENCH };

/* One run of one case. */
struct call {
    struct memory memory;
    const struct kernel_table *table;
    struct rl_pool *pool;
    enum size size;
    enum kernel_dtype dtype;
    bool int8; /* weights that no backward op reads may be */
    int repeats;
    int done;
    double flops, seconds; /* of one call; best time */
    struct timespec since;
};

typedef void (*case_fn)(struct call *c);

/* True while the op is to be called (again). */
static bool call_again(struct call *c)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double seconds =
        (double)(now.tv_sec - c->since.tv_sec) + 1e-9 * (double)(now.tv_nsec - c->since.tv_nsec);
    if (c->done > 0 && (c->seconds == 0.0 || seconds < c->seconds)) {
        c->seconds = seconds;
    }
    clock_gettime(CLOCK_MONOTONIC, &c->since);
    return c->done++ < c->repeats;
}

/* A size: random and odd, or fixed. */
static int64_t call_size(struct call *c, int64_t low, int64_t high, int64_t bench)
{
    switch (c->size) {
    case SIZE_ODD:
        return memory_pick(&c->memory, low, high);
    case SIZE_THREADS:
        return bench / 2 + 3;
    default:
        return bench;
    }
}

static bool call_flip(struct call *c)
{
    return c->size != SIZE_BENCH && memory_pick(&c->memory, 0, 1) == 1;
}

static enum kernel_dtype call_dtype(struct call *c)
{
    c->dtype = call_flip(c) ? KERNEL_BF16 : KERNEL_FP32;
    return c->dtype;
}

static enum kernel_dtype call_weights(struct call *c)
{
    return call_flip(c) && c->int8 ? KERNEL_INT8 : call_dtype(c);
}

/* Inputs of a product with bf16 weights, which a GPU rounds to bf16: rounded for all, so that what
 * is compared is the product. */
static float *call_inputs(struct call *c, int64_t count, double scale)
{
    float *data = memory_floats(&c->memory, count, scale);
    for (int64_t i = 0; c->dtype == KERNEL_BF16 && i < count; i++) {
        data[i] = kernel_bf16_to_float(kernel_bf16_from_float(data[i]));
    }
    return data;
}

#endif
