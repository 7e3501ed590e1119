/* Included first by every source of kernels/cuda. The sources are compiled twice: by nvcc, and for
 * tests as C++ against tests/emulation, so they keep to what both know: launches through
 * CUDA_LAUNCH, dynamic shared memory through CUDA_SHARED, tensor cores and asynchronous copies
 * through mma_cuda.h, fmaf where a fused multiply-add is meant (nvcc does not contract here). */
#ifndef FORESIGHT_KERNELS_CUDA_CUDA_KERNEL_H
#define FORESIGHT_KERNELS_CUDA_CUDA_KERNEL_H

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/device_cuda.h"
#include "kernels/cuda/ops_cuda.h"
#include "kernels/kernels.h"

#if defined(CUDA_EMULATION)
#define CUDA_SHARED(type, name) type *name = reinterpret_cast<type *>(emulation_shared())
#define CUDA_CALL(kernel, name, grid, block, shared_bytes, handle, ...)                            \
    emulation_launch_with({nullptr, name, grid, block, shared_bytes, nullptr}, handle, kernel,     \
                          __VA_ARGS__)
#else
#define CUDA_SHARED(type, name)                                                                    \
    extern __shared__ __align__(16) unsigned char cuda_shared_bytes[];                             \
    type *name = reinterpret_cast<type *>(cuda_shared_bytes)
#define CUDA_CALL(kernel, name, grid, block, shared_bytes, handle, ...)                            \
    kernel<<<grid, block, shared_bytes, handle>>>(__VA_ARGS__)
#endif

/* Queue kernel(...) with the error kept in the stream; does nothing after an error or for an empty
 * grid. A template's name with a comma in it needs brackets around it. */
#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                \
    do {                                                                                           \
        auto cuda_kernel_ = kernel;                                                                \
        const dim3 cuda_grid_ = grid;                                                              \
        const dim3 cuda_block_ = block;                                                            \
        const size_t cuda_bytes_ = shared_bytes;                                                   \
        if (cuda_launch_ready(cuda_kernel_, cuda_grid_, cuda_bytes_, stream)) {                    \
            CUDA_CALL(cuda_kernel_, #kernel, cuda_grid_, cuda_block_, cuda_bytes_,                 \
                      cuda_stream_handle(stream), __VA_ARGS__);                                    \
            cuda_check(stream, cudaGetLastError(), #kernel);                                       \
        }                                                                                          \
    } while (0)

/* Whether a launch is to be made; asks for more shared memory than 48 KiB where that may be needed:
 * the kernel's static arrays count too. */
template <typename Kernel>
inline bool cuda_launch_ready(Kernel kernel, dim3 grid, size_t shared_bytes,
                              struct cuda_stream *stream)
{
    if (!cuda_stream_good(stream) || grid.x == 0 || grid.y == 0 || grid.z == 0) {
        return false;
    }
    return shared_bytes <= 40 * 1024 ||
           cuda_check(stream,
                      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           (int)shared_bytes),
                      "dynamic shared memory");
}

/* Blocks for `count` items, `each` a block. */
static inline dim3 cuda_blocks(int64_t count, int64_t each)
{
    return dim3((unsigned)((count + each - 1) / each));
}

/* Number of the calling thread in a grid of one dimension. */
static __device__ __forceinline__ int64_t cuda_thread()
{
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

#endif
