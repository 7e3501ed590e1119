/* Element-wise sums. */
#include "kernels/cuda/cuda_kernel.h"

enum { ADD_BLOCK = 256 };

static __global__ void add_kernel(float *y, const float *x, int64_t count)
{
    int64_t i = cuda_thread();
    if (i < count) {
        y[i] += x[i];
    }
}

extern "C" void add_cuda(const struct kernel_add_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "add");
    CUDA_LAUNCH(add_kernel, cuda_blocks(a->count, ADD_BLOCK), ADD_BLOCK, 0, stream, a->y, a->x,
                a->count);
    cuda_op_end(stream);
}
