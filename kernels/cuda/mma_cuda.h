/* Tensor cores, shared memory in fragments, and copies that do not pass through registers: PTX
 * under nvcc, and under g++ what tests/emulation does in its place. All are for a whole warp of a
 * one-dimensional block, except the copies, which are each thread's own. Fragments are laid out as
 * the PTX ISA says for mma.m16n8k16: with g = lane / 4 and t = lane % 4, register pairs hold
 *   a[0] row g,     k 2t, 2t+1    a[1] row g + 8, k 2t, 2t+1
 *   a[2] row g, k 2t+8, 2t+9      a[3] row g + 8, k 2t+8, 2t+9
 *   b[0] k 2t, 2t+1, column g     b[1] k 2t+8, 2t+9, column g
 *   d[0], d[1] row g, columns 2t, 2t+1     d[2], d[3] the same of row g + 8
 * the lower index in the lower half. bf16 numbers are held as their bits, uint16_t. */
#ifndef FORESIGHT_KERNELS_CUDA_MMA_CUDA_H
#define FORESIGHT_KERNELS_CUDA_MMA_CUDA_H

#include <cuda_runtime.h>
#include <stdint.h>

#ifdef __CUDACC__

/* Round to nearest even. */
static __device__ __forceinline__ uint16_t mma_bf16(float value)
{
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

/* The same for two, `low` into the lower half. */
static __device__ __forceinline__ uint32_t mma_bf16_pair(float low, float high)
{
    uint32_t bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

/* d += a b, bf16 products summed up in fp32. Volatile: the compiler must not move it to where some
 * lanes do not go. */
static __device__ __forceinline__ void mma_m16n8k16_bf16(float d[4], const uint32_t a[4],
                                                         const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8 x 8 matrices of bf16 in shared memory: lanes 8 i .. 8 i + 7 point at the rows of matrix i,
 * 16 bytes each, aligned to 16. to[i]: row g, columns 2t and 2t+1 of matrix i. What was written
 * there must be a barrier behind. */
static __device__ __forceinline__ void mma_load_x4(uint32_t to[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)));
}

/* The same, each matrix transposed: to[i]: rows 2t and 2t+1, column g of matrix i. */
static __device__ __forceinline__ void mma_load_x4_transposed(uint32_t to[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)));
}

/* Start copying 16 bytes from global to shared memory, both aligned to 16: the first `bytes` (0 to
 * 16) are read, the rest becomes zero. `from` must be some address of global memory even if none
 * are read. */
static __device__ __forceinline__ void copy_async16(void *to, const void *from, int bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes)
                 : "memory");
}

/* What this thread started since the last call makes up a group. */
static __device__ __forceinline__ void copy_async_commit(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Wait until all of this thread's groups have arrived but the latest `GROUPS`. Other threads'
 * copies are there after their wait and a barrier. */
template <int GROUPS> static __device__ __forceinline__ void copy_async_wait(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

#else
#include <mma_emulation.h>
#endif

/* Exact. */
static __device__ __forceinline__ float mma_float(uint16_t bits)
{
    return __uint_as_float((uint32_t)bits << 16);
}

#endif
