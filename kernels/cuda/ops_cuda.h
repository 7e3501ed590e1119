/* The CUDA back end: every op of ops.def as `NAME_cuda`. Arrays of floats, packed weights and pages
 * are the device's; index arrays, keys and counters are the host's, and so are the few results that
 * an op waits for (ids, logprob and kept of head_decode, the sum of sum_squares, nonfinite of
 * adamw). A packed weight is row-major here: [N rounded up to 32][K]. */
#ifndef FORESIGHT_KERNELS_CUDA_OPS_CUDA_H
#define FORESIGHT_KERNELS_CUDA_OPS_CUDA_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KERNEL_OP(name, args, tolerance)                                                           \
    void name##_cuda(const struct args *a, struct rl_pool *pool);
#include "kernels/ops.def"

#ifdef __cplusplus
}
#endif

#endif
