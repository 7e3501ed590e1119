/* What bench_gemm compares: libraries behind one small table, each in a file of its own (gemm_*.c),
 * because each is the only one to see its foreign header. */
#ifndef FORESIGHT_TESTS_BENCH_BENCH_GEMM_H
#define FORESIGHT_TESTS_BENCH_BENCH_GEMM_H

#include "kernels/kernels.h"

enum gemm_op { GEMM_FORWARD, GEMM_BACKWARD_INPUT, GEMM_BACKWARD_WEIGHT };

/* One product, as kernel_linear_args has it: y = x W^T, x = y W or dw (+)= y^T x. The buffers are
 * the benchmark's. Calls go round `copies` of the weights, so that these come from memory. */
struct gemm_problem {
    enum gemm_op op;
    int64_t m, n, k;
    const float *w; /* [N, K], as a checkpoint has it; packing is not timed */
    float *x;       /* [M, K] */
    float *y;       /* [M, N] */
    float *dw;      /* [N, K] */
    int copies;
    const struct kernel_table *table;
    struct rl_pool *pool;
};

struct gemm_library {
    const char *name;
    /* Prepare a problem, weights packed where the library can. NULL: it does not do this product,
     * or there is no memory. Borrows *problem. */
    void *(*create)(const struct gemm_problem *problem);
    /* Compute with one copy of the weights. */
    void (*run)(void *state, int copy);
    void (*destroy)(void *state); /* takes NULL */
};

extern const struct gemm_library gemm_fp32; /* this project */
extern const struct gemm_library gemm_bf16; /* the same with weights stored as bf16 */
extern const struct gemm_library gemm_libxsmm;
extern const struct gemm_library gemm_onednn;
extern const struct gemm_library gemm_openblas;

#endif
