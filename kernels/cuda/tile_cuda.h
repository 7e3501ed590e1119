/* Tiles in shared memory and products of them by one warp: on tensor cores for bf16, whose numbers
 * are uint16_t here, and in plain fp32 for float, with the accumulators in the same lanes and
 * registers, so that what is done to them is written once. Each number of a product is a sum in one
 * order over k, whatever tile it is part of. Owns no policy: what the tiles mean is the caller's.
 */
#ifndef FORESIGHT_KERNELS_CUDA_TILE_CUDA_H
#define FORESIGHT_KERNELS_CUDA_TILE_CUDA_H

#include "kernels/cuda/mma_cuda.h"

enum { TILE_WARP = 32, TILE_ROWS = 16 /* of a product's accumulators */, TILE_UNIT_BYTES = 16 };

/* Numbers of a 16-byte unit. */
template <typename T> __device__ __forceinline__ constexpr int tile_unit(void)
{
    return TILE_UNIT_BYTES / (int)sizeof(T);
}

/* Rows of WIDTH numbers in shared memory, a multiple of 8 units, aligned to one. The units of
 * a row change places with its number, so that eight rows' same unit lies in different banks. */
template <typename T, int WIDTH> struct tile {
    using number = T;
    static constexpr int width = WIDTH;
    T *data;
};

template <typename T, int WIDTH>
__device__ __forceinline__ T *tile_at(const tile<T, WIDTH> &a, int row, int column)
{
    constexpr int unit = tile_unit<T>();
    return a.data + row * WIDTH + ((column / unit) ^ (row & 7)) * unit + column % unit;
}

__device__ __forceinline__ int tile_lane(void)
{
    return (int)(threadIdx.x % TILE_WARP);
}

__device__ __forceinline__ int tile_warp(void)
{
    return (int)(threadIdx.x / TILE_WARP);
}

/* Row (0 .. 15) and column (of a product's columns) that accumulator [n][e] of this lane is. */
__device__ __forceinline__ int tile_row(int e)
{
    return tile_lane() / 4 + (e & 2) * 4;
}

__device__ __forceinline__ int tile_column(int n, int e)
{
    return n * 8 + tile_lane() % 4 * 2 + (e & 1);
}

__device__ __forceinline__ void tile_store(uint16_t *to, float value)
{
    *to = mma_bf16(value);
}

__device__ __forceinline__ void tile_store(float *to, float value)
{
    *to = value;
}

__device__ __forceinline__ float tile_float(uint16_t bits)
{
    return mma_float(bits);
}

__device__ __forceinline__ float tile_float(float value)
{
    return value;
}

/* --- bf16: fragments --- */

/* The left operand's rows row .. row+15, k .. k+15; stored by rows, or (BY_K) by k. */
template <bool BY_K, int WIDTH>
__device__ __forceinline__ void tile_load_left(uint32_t to[4], const tile<uint16_t, WIDTH> &a,
                                               int row, int k)
{
    const int lane = tile_lane();
    if (BY_K) {
        mma_load_x4_transposed(to,
                               tile_at(a, k + lane % 8 + lane / 16 * 8, row + lane / 8 % 2 * 8));
    } else {
        mma_load_x4(to, tile_at(a, row + lane % 16, k + lane / 16 * 8));
    }
}

/* The right operand's k .. k+15, columns column .. column+15: those of two accumulators. */
template <bool BY_K, int WIDTH>
__device__ __forceinline__ void tile_load_right(uint32_t to[4], const tile<uint16_t, WIDTH> &b,
                                                int k, int column)
{
    const int lane = tile_lane();
    if (BY_K) {
        mma_load_x4_transposed(to, tile_at(b, k + lane % 16, column + lane / 16 * 8));
    } else {
        mma_load_x4(to, tile_at(b, column + lane % 8 + lane / 16 * 8, k + lane / 8 % 2 * 8));
    }
}

/* --- products --- */

template <int K, bool LEFT_BY_K, bool RIGHT_BY_K, int N, typename LEFT, typename RIGHT>
__device__ __forceinline__ void tile_multiply_bf16(float (&acc)[N][4], const LEFT &a, int row,
                                                   const RIGHT &b, int column)
{
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        uint32_t left[4];
        tile_load_left<LEFT_BY_K>(left, a, row, k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t right[4];
            tile_load_right<RIGHT_BY_K>(right, b, k, column + n * 8);
            mma_m16n8k16_bf16(acc[n], left, right);
            mma_m16n8k16_bf16(acc[n + 1], left, right + 2);
        }
    }
}

/* Number k of what this lane's two rows of the left operand hold, times the right operand's. */
template <bool RIGHT_BY_K, int N, typename RIGHT>
__device__ __forceinline__ void tile_multiply_step(float (&acc)[N][4], const float (&left)[2],
                                                   int k, const RIGHT &b, int column)
{
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int c = column + tile_column(n, e);
            const float right = RIGHT_BY_K ? *tile_at(b, k, c) : *tile_at(b, c, k);
            acc[n][e] = __fmaf_rn(left[0], right, acc[n][e]);
            acc[n][e + 2] = __fmaf_rn(left[1], right, acc[n][e + 2]);
        }
    }
}

template <int K, bool LEFT_BY_K, bool RIGHT_BY_K, int N, typename LEFT, typename RIGHT>
__device__ __forceinline__ void tile_multiply_fp32(float (&acc)[N][4], const LEFT &a, int row,
                                                   const RIGHT &b, int column)
{
    const int low = row + tile_row(0);
    const int high = row + tile_row(2);
#pragma unroll 4
    for (int k = 0; k < K; k++) {
        const float left[2] = {LEFT_BY_K ? *tile_at(a, k, low) : *tile_at(a, low, k),
                               LEFT_BY_K ? *tile_at(a, k, high) : *tile_at(a, high, k)};
        tile_multiply_step<RIGHT_BY_K>(acc, left, k, b, column);
    }
}

/* acc [N][4] += a b: rows row .. row+15 of the left operand, columns column .. column + 8 N - 1 of
 * the right one, k 0 .. K-1. LEFT_BY_K: the left tile's rows are its k; else its rows. RIGHT_BY_K:
 * the right tile's rows are its k; else its columns. */
template <int K, bool LEFT_BY_K, bool RIGHT_BY_K, int N, typename LEFT, typename RIGHT>
__device__ __forceinline__ void tile_multiply(float (&acc)[N][4], const LEFT &a, int row,
                                              const RIGHT &b, int column)
{
    if constexpr (sizeof(typename LEFT::number) == sizeof(float)) {
        tile_multiply_fp32<K, LEFT_BY_K, RIGHT_BY_K>(acc, a, row, b, column);
    } else {
        tile_multiply_bf16<K, LEFT_BY_K, RIGHT_BY_K>(acc, a, row, b, column);
    }
}

/* --- accumulators as the left operand of the next product: tile_left_set, then tile_multiply_rows,
 * which is tile_multiply by them --- */

/* A warp's 16 rows of K numbers, rounded to bf16, in registers. */
template <typename T, int K> struct tile_left {
    uint32_t a[K / 16][4];
};

/* The same in fp32: in shared memory of the warp's own, [16][K]. */
template <int K> struct tile_left<float, K> {
    float *rows;
};

/* Bytes of shared memory that a warp's tile_left needs. */
template <typename T, int K> __device__ __host__ constexpr int tile_left_bytes(void)
{
    return sizeof(T) == sizeof(float) ? TILE_ROWS * K * (int)sizeof(float) : 0;
}

template <int K> __device__ __forceinline__ void tile_left_init(tile_left<uint16_t, K> *, char *)
{
}

/* `room`: shared memory of all warps of the block, tile_left_bytes each. */
template <int K>
__device__ __forceinline__ void tile_left_init(tile_left<float, K> *left, char *room)
{
    left->rows = (float *)(room + tile_warp() * tile_left_bytes<float, K>());
}

template <int K>
__device__ __forceinline__ void tile_left_set(tile_left<uint16_t, K> *left,
                                              const float (&acc)[K / 8][4])
{
#pragma unroll
    for (int j = 0; j < K / 16; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float *pair = acc[2 * j + i / 2] + i % 2 * 2;
            left->a[j][i] = mma_bf16_pair(pair[0], pair[1]);
        }
    }
}

template <int K>
__device__ __forceinline__ void tile_left_set(tile_left<float, K> *left,
                                              const float (&acc)[K / 8][4])
{
    __syncwarp(0xffffffffU); /* the last product has read what was there */
#pragma unroll
    for (int n = 0; n < K / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            left->rows[tile_row(e) * K + tile_column(n, e)] = acc[n][e];
        }
    }
    __syncwarp(0xffffffffU);
}

template <bool RIGHT_BY_K, int K, int N, typename RIGHT>
__device__ __forceinline__ void tile_multiply_rows(float (&acc)[N][4],
                                                   const tile_left<uint16_t, K> &left,
                                                   const RIGHT &b, int column)
{
#pragma unroll
    for (int j = 0; j < K / 16; j++) {
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t right[4];
            tile_load_right<RIGHT_BY_K>(right, b, j * 16, column + n * 8);
            mma_m16n8k16_bf16(acc[n], left.a[j], right);
            mma_m16n8k16_bf16(acc[n + 1], left.a[j], right + 2);
        }
    }
}

template <bool RIGHT_BY_K, int K, int N, typename RIGHT>
__device__ __forceinline__ void
tile_multiply_rows(float (&acc)[N][4], const tile_left<float, K> &rows, const RIGHT &b, int column)
{
#pragma unroll 4
    for (int k = 0; k < K; k++) {
        const float left[2] = {rows.rows[tile_row(0) * K + k], rows.rows[tile_row(2) * K + k]};
        tile_multiply_step<RIGHT_BY_K>(acc, left, k, b, column);
    }
}

template <int N> __device__ __forceinline__ void tile_zero(float (&acc)[N][4])
{
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            acc[n][e] = 0.0f;
        }
    }
}

#endif
