/* Embedding. Its gradients are added in the order of the tokens, as everywhere: the tokens of an id
 * are chained, and one block walks each chain. */
#include "kernels/cuda/float_cuda.h"

enum { THREADS = 128, LINK_WARPS = 4, CHAIN_END = -1 };

static __global__ void gather_kernel(struct kernel_embedding_args a)
{
    const int64_t row = blockIdx.x;
    const int64_t base = (int64_t)a.ids[row] * a.c;
    float *y = a.y + row * a.c;
    if (a.c % RUN == 0) {
        for (int64_t c = (int64_t)threadIdx.x * 4; c < a.c; c += (int64_t)blockDim.x * 4) {
            float4 value;
            if (a.dtype == KERNEL_BF16) {
                const uint2 bits = *(const uint2 *)((const uint16_t *)a.w + base + c);
                value.x = bf16_value(bits.x & 0xffffu);
                value.y = bf16_value(bits.x >> 16);
                value.z = bf16_value(bits.y & 0xffffu);
                value.w = bf16_value(bits.y >> 16);
            } else {
                value = *(const float4 *)((const float *)a.w + base + c);
            }
            *(float4 *)(y + c) = value;
        }
        return;
    }
    for (int64_t c = threadIdx.x; c < a.c; c += blockDim.x) {
        y[c] = a.dtype == KERNEL_BF16 ? bf16_value(((const uint16_t *)a.w)[base + c])
                                      : ((const float *)a.w)[base + c];
    }
}

extern "C" void embedding_forward_cuda(const struct kernel_embedding_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "embedding_forward");
    struct kernel_embedding_args args = *a;
    args.ids = (const int32_t *)cuda_mirror(stream, a->ids, (size_t)a->m * sizeof *a->ids);
    if (a->m > 0 && args.ids != NULL) {
        CUDA_LAUNCH(gather_kernel, dim3((unsigned)a->m), dim3(THREADS), 0, stream, args);
    }
    cuda_op_end(stream);
}

/* Nearest token of the same id as token i in the direction of `step`, or -1; by a whole warp. */
static __device__ int32_t same_id(const int32_t *ids, int64_t m, int64_t i, int step)
{
    const int lane = (int)threadIdx.x % WARP;
    for (int64_t from = i + step; from >= 0 && from < m; from += (int64_t)step * WARP) {
        const int64_t j = from + (int64_t)step * lane;
        const unsigned hits = __ballot_sync(WARP_ALL, j >= 0 && j < m && ids[j] == ids[i]);
        if (hits != 0) {
            return (int32_t)(from + (int64_t)step * (__ffs((int)hits) - 1));
        }
    }
    return CHAIN_END;
}

/* next[i]: the next token of the same id, or CHAIN_END. first[i]: is there none before? One warp a
 * token. */
static __global__ void link_kernel(const int32_t *ids, int64_t m, int32_t *next, int32_t *first)
{
    const int64_t i = (int64_t)blockIdx.x * LINK_WARPS + threadIdx.x / WARP;
    if (i >= m) {
        return;
    }
    const int32_t after = same_id(ids, m, i, 1);
    const int32_t before = same_id(ids, m, i, -1);
    if (threadIdx.x % WARP == 0) {
        next[i] = after;
        first[i] = before == CHAIN_END;
    }
}

/* One block a token, of which those that begin a chain walk it; a thread adds up one column. */
static __global__ void scatter_kernel(struct kernel_embedding_args a, const int32_t *next,
                                      const int32_t *first)
{
    const int64_t begin = blockIdx.x;
    const int64_t c = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    if (first[begin] == 0 || c >= a.c) {
        return;
    }
    float *place = &a.dw[(int64_t)a.ids[begin] * a.c + c];
    float sum = *place;
    for (int64_t i = begin; i != CHAIN_END; i = next[i]) {
        sum += a.y[i * a.c + c];
    }
    *place = sum;
}

extern "C" void embedding_backward_cuda(const struct kernel_embedding_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "embedding_backward");
    struct kernel_embedding_args args = *a;
    const size_t bytes = (size_t)a->m * sizeof(int32_t);
    args.ids = (const int32_t *)cuda_mirror(stream, a->ids, bytes);
    int32_t *next = (int32_t *)cuda_scratch(stream, bytes);
    int32_t *first = (int32_t *)cuda_scratch(stream, bytes);
    if (a->m > 0 && args.ids != NULL && next != NULL && first != NULL) {
        const dim3 links((unsigned)((a->m + LINK_WARPS - 1) / LINK_WARPS));
        const dim3 grid((unsigned)a->m, (unsigned)((a->c + THREADS - 1) / THREADS));
        CUDA_LAUNCH(link_kernel, links, dim3(LINK_WARPS * WARP), 0, stream, args.ids, a->m, next,
                    first);
        CUDA_LAUNCH(scatter_kernel, grid, dim3(THREADS), 0, stream, args, next, first);
    }
    cuda_op_end(stream);
}
