/* Packing of weights, shared by linear_pack and the optimizer: the image is [N rounded up to
 * 32][K] of dtype, so its first N * K elements are those of the matrix, in order. */
#ifndef FORESIGHT_KERNELS_CUDA_PACK_CUDA_H
#define FORESIGHT_KERNELS_CUDA_PACK_CUDA_H

#include "kernels/cuda/float_cuda.h"
#include "kernels/kernels.h"

struct pack_job {
    const float *w;
    void *packed;
    const void *previous;
    uint8_t *changed;
    enum kernel_dtype dtype;
    int64_t count, total; /* elements of the matrix, of the image */
};

static inline struct pack_job pack_job_make(const struct kernel_linear_pack_args *a)
{
    const int64_t rows = (a->n + KERNEL_PANEL - 1) / KERNEL_PANEL * KERNEL_PANEL;
    struct pack_job job;
    job.w = a->w;
    job.packed = a->packed;
    job.previous = a->previous;
    job.changed = a->changed;
    job.dtype = a->dtype;
    job.count = a->n * a->k;
    job.total = rows * a->k;
    return job;
}

/* Bit i: do 32-bit words i differ? */
static inline __device__ uint32_t words_differ(uint4 x, uint4 y)
{
    return (uint32_t)(x.x != y.x) | (uint32_t)(x.y != y.y) << 1 | (uint32_t)(x.z != y.z) << 2 |
           (uint32_t)(x.w != y.w) << 3;
}

/* Bits 0 and 1: do the lower and upper half of the words differ? */
static inline __device__ uint32_t halves_differ(uint32_t x, uint32_t y)
{
    const uint32_t other = x ^ y;
    return (uint32_t)((other & 0xffffu) != 0) | (uint32_t)((other >> 16) != 0) << 1;
}

/* Bit i: do elements i of 16 bits differ? */
static inline __device__ uint32_t run_differs(uint4 x, uint4 y)
{
    return halves_differ(x.x, y.x) | halves_differ(x.y, y.y) << 2 | halves_differ(x.z, y.z) << 4 |
           halves_differ(x.w, y.w) << 6;
}

/* Elements at .. at + RUN - 1 of the image, and their byte of the map. */
static inline __device__ void pack_run(const struct pack_job *job, int64_t at,
                                       const float value[RUN])
{
    uint32_t map = 0;
    if (job->dtype == KERNEL_BF16) {
        const uint4 now = bf16_run(value);
        if (job->changed != NULL) {
            const uint4 old = *(const uint4 *)((const uint16_t *)job->previous + at);
            map = run_differs(now, old);
        }
        *(uint4 *)((uint16_t *)job->packed + at) = now;
    } else {
        for (int i = 0; i < RUN; i += 4) {
            uint4 now;
            now.x = __float_as_uint(value[i]);
            now.y = __float_as_uint(value[i + 1]);
            now.z = __float_as_uint(value[i + 2]);
            now.w = __float_as_uint(value[i + 3]);
            if (job->changed != NULL) {
                const uint4 old = *(const uint4 *)((const uint32_t *)job->previous + at + i);
                map |= words_differ(now, old) << i;
            }
            *(uint4 *)((uint32_t *)job->packed + at + i) = now;
        }
    }
    if (job->changed != NULL) {
        job->changed[at / RUN] = (uint8_t)map;
    }
}

#endif
