/* Drawing one id of a row, on the device. */
#ifndef FORESIGHT_KERNELS_CUDA_HEAD_DRAW_CUDA_H
#define FORESIGHT_KERNELS_CUDA_HEAD_DRAW_CUDA_H

#include "kernels/cuda/float_cuda.h"
#include "kernels/cuda/head_cuda.h"

/* What a row's id is chosen from. Device memory, but for `sampling`. */
struct head_decode_job {
    struct kernel_sampling sampling;
    const float *z; /* [m, stride] logits of the whole vocabulary */
    int64_t m, v, stride, chunks;
    float inv_temperature;
    bool greedy, truncates;
    const struct head_sum *sums; /* [m, chunks] */
    const struct head_row *rows; /* [m] */
    const float *parts;          /* [m, chunks, KERNEL_DECODE_PARTS] */
    const int32_t *forced;       /* [m] or NULL */
    const struct rl_rng_key *keys;
    const uint64_t *counters;
    int32_t *ids;          /* [m] */
    float *logprob, *kept; /* [m] */
};

/* rl_rng_uniform of core/rng: Philox4x32-10, the first 53 of its bits. */
static inline __device__ double draw_uniform(struct rl_rng_key key, uint64_t counter)
{
    uint32_t c0 = (uint32_t)counter;
    uint32_t c1 = (uint32_t)(counter >> 32);
    uint32_t c2 = 0; /* plain bits */
    uint32_t c3 = 0; /* the first attempt */
    uint32_t k0 = key.k[0];
    uint32_t k1 = key.k[1];
    for (int round = 0; round < 10; round++) {
        const uint64_t product0 = (uint64_t)0xD2511F53u * c0;
        const uint64_t product1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const uint64_t bits = (uint64_t)c1 << 32 | c0;
    return (double)(bits >> 11) * (1.0 / 9007199254740992.0);
}

/* A walk along masses in order, WARP at a time, to the first at which their sum passes a target.
 * Known to every lane of the warp that walks. */
struct draw_walk {
    double sum;    /* of all masses so far */
    double before; /* of those before `found` */
    int64_t found; /* index of the mass, or of the last that is not 0; -1: none */
    bool done;
};

static inline __device__ struct draw_walk draw_walk_make(double before)
{
    struct draw_walk walk;
    walk.sum = before;
    walk.before = before;
    walk.found = -1;
    walk.done = false;
    return walk;
}

/* Take in the masses of indices first .. first + WARP - 1, one a lane. */
static inline __device__ void draw_walk_step(struct draw_walk *walk, int64_t first, double mass,
                                             double target)
{
    const int lane = (int)threadIdx.x % WARP;
    double end = mass;
    for (int step = 1; step < WARP; step *= 2) {
        const double other = __shfl_up_sync(WARP_ALL, end, step);
        end += lane >= step ? other : 0.0;
    }
    end += walk->sum;
    double before = __shfl_up_sync(WARP_ALL, end, 1);
    before = lane > 0 ? before : walk->sum;
    const unsigned some = __ballot_sync(WARP_ALL, mass > 0.0);
    const unsigned past = __ballot_sync(WARP_ALL, mass > 0.0 && end > target);
    if (some != 0) {
        const int place = past != 0 ? __ffs((int)past) - 1 : WARP - 1 - __clz((int)some);
        walk->before = __shfl_sync(WARP_ALL, before, place);
        walk->found = first + place;
    }
    walk->done = past != 0;
    walk->sum = __shfl_sync(WARP_ALL, end, WARP - 1);
}

#ifdef __cplusplus
extern "C" {
#endif

/* Ids of rows that top-k, top-p or min-p cut: job->ids and job->kept of rows that are finite and
 * not forced. Enqueues. */
void head_cut_run(struct cuda_stream *stream, const struct head_decode_job *job);

#ifdef __cplusplus
}
#endif

#endif
