/* Linear maps of few rows, as decoding has them: one kernel of our own that rounds its inputs on
 * the way and reads each weight once for up to 32 rows.
 *
 * Invariant: a number of y is a sum over k in steps of 16 by one warp's mma.m16n8k16, from the
 * first to the last of its segment; segments are added in order. It depends on its row alone. */
#ifndef FORESIGHT_KERNELS_CUDA_LINEAR_FEW_CUDA_H
#define FORESIGHT_KERNELS_CUDA_LINEAR_FEW_CUDA_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_stream;

/* y = x W^T, segments of the depth in order: ((first (+ old y)) + second ...) (+ bias). */
struct few_map {
    const void *w;     /* [n, k] bf16 */
    const float *bias; /* [n] or NULL */
    float *y;          /* [m, y_stride] */
    int64_t n, y_stride;
    bool accumulate;
};

/* Maps of the same rows. x and w are aligned to 16 bytes, k is a multiple of 8, x_stride of 4. */
struct few_args {
    const float *x; /* [m, x_stride] */
    int64_t m, k, x_stride;
    int64_t segment; /* of the depth: a multiple of 64, or no less than k; at most 4 of them */
    int count;       /* of maps */
    struct few_map maps[KERNEL_SET_MAPS];
};

/* Enqueue. False, and nothing is queued, if the device's shared memory does not hold what these
 * sizes need. */
bool few_run(struct cuda_stream *stream, const struct few_args *args);

#ifdef __cplusplus
}
#endif

#endif
