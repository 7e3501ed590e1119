/* What kernels share: bf16 as bits, stretches of values, and sums over warps and blocks in one
 * fixed order. Rounding is that of kernels/bf16.h. */
#ifndef FORESIGHT_KERNELS_CUDA_FLOAT_CUDA_H
#define FORESIGHT_KERNELS_CUDA_FLOAT_CUDA_H

#include "kernels/cuda/cuda_kernel.h"

#include <math.h>
#include <stdint.h>

enum { WARP = 32, RUN = 8 /* elements of a stretch: 16 bytes of bf16 */ };

#define WARP_ALL 0xffffffffu

static inline __device__ uint32_t bf16_bits(float value)
{
    uint32_t wide = __float_as_uint(value);
    if ((wide & 0x7fffffffu) > 0x7f800000u) {
        return (wide >> 16) | 0x40u;
    }
    return (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
}

static inline __device__ float bf16_value(uint32_t bits)
{
    return __uint_as_float(bits << 16);
}

/* RUN floats; `from` aligned to 16 bytes. */
static inline __device__ void load_floats(const float *from, float value[RUN])
{
    for (int i = 0; i < RUN; i += 4) {
        const float4 four = *(const float4 *)(from + i);
        value[i] = four.x;
        value[i + 1] = four.y;
        value[i + 2] = four.z;
        value[i + 3] = four.w;
    }
}

static inline __device__ void store_floats(float *to, const float value[RUN])
{
    for (int i = 0; i < RUN; i += 4) {
        float4 four;
        four.x = value[i];
        four.y = value[i + 1];
        four.z = value[i + 2];
        four.w = value[i + 3];
        *(float4 *)(to + i) = four;
    }
}

/* RUN floats as bf16, in 16 bytes. */
static inline __device__ uint4 bf16_run(const float value[RUN])
{
    uint4 bits;
    bits.x = bf16_bits(value[0]) | bf16_bits(value[1]) << 16;
    bits.y = bf16_bits(value[2]) | bf16_bits(value[3]) << 16;
    bits.z = bf16_bits(value[4]) | bf16_bits(value[5]) << 16;
    bits.w = bf16_bits(value[6]) | bf16_bits(value[7]) << 16;
    return bits;
}

/* Sum over the warp, the same in every lane. */
template <typename T> static inline __device__ T warp_sum(T value)
{
    for (int step = WARP / 2; step > 0; step /= 2) {
        value += __shfl_xor_sync(WARP_ALL, value, step);
    }
    return value;
}

/* Sum over the block, the same in every thread: warps in order. `room` [warps] is shared and may be
 * used again after the next __syncthreads. */
template <typename T> static inline __device__ T block_sum(T value, T *room)
{
    const int warps = (int)(blockDim.x + WARP - 1) / WARP;
    value = warp_sum(value);
    if (warps == 1) {
        return value;
    }
    if (threadIdx.x % WARP == 0) {
        room[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    T sum = room[0];
    for (int i = 1; i < warps; i++) {
        sum += room[i];
    }
    return sum;
}

#endif
