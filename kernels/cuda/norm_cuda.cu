/* RMSNorm. A row is summed up by as many threads as its width asks for, each in steps of their
 * number, then by warps and blocks in order: the row's number and neighbours play no part. */
#include "kernels/cuda/columns_cuda.h"
#include "kernels/cuda/float_cuda.h"

enum {
    NARROW = 256,       /* rows up to this width take one warp */
    WIDE_THREADS = 256, /* threads of wider ones */
    WARPS_MAX = 8,      /* of WIDE_THREADS */
    PARTS = 1024        /* blocks that backward splits the rows into */
};

static int row_threads(int64_t c)
{
    return c <= NARROW ? (int)WARP : (int)WIDE_THREADS;
}

/* One block a row. */
static __global__ void norm_kernel(struct kernel_rmsnorm_args a)
{
    __shared__ float room[WARPS_MAX];
    const int64_t row = blockIdx.x;
    const float *x = a.x + row * a.c;
    float *y = a.y + row * a.c;
    float sum = 0.0f;
    for (int64_t c = threadIdx.x; c < a.c; c += blockDim.x) {
        sum = fmaf(x[c], x[c], sum);
    }
    sum = block_sum(sum, room);
    const float inv = 1.0f / sqrtf(sum / (float)a.c + a.epsilon);
    for (int64_t c = threadIdx.x; c < a.c; c += blockDim.x) {
        y[c] = x[c] * inv * a.weight[c];
    }
    if (threadIdx.x == 0 && a.inv_rms != NULL) {
        a.inv_rms[row] = inv;
    }
}

/* The same with four elements a thread and step, for widths that are multiples of 4. */
static __global__ void norm_wide_kernel(struct kernel_rmsnorm_args a)
{
    __shared__ float room[WARPS_MAX];
    const int64_t row = blockIdx.x;
    const float4 *x = (const float4 *)(a.x + row * a.c);
    const float4 *weight = (const float4 *)a.weight;
    float4 *y = (float4 *)(a.y + row * a.c);
    float sum = 0.0f;
    for (int64_t c = threadIdx.x; c < a.c / 4; c += blockDim.x) {
        const float4 v = x[c];
        sum = fmaf(v.x, v.x, sum);
        sum = fmaf(v.y, v.y, sum);
        sum = fmaf(v.z, v.z, sum);
        sum = fmaf(v.w, v.w, sum);
    }
    sum = block_sum(sum, room);
    const float inv = 1.0f / sqrtf(sum / (float)a.c + a.epsilon);
    for (int64_t c = threadIdx.x; c < a.c / 4; c += blockDim.x) {
        const float4 w = weight[c];
        float4 v = x[c];
        v.x = v.x * inv * w.x;
        v.y = v.y * inv * w.y;
        v.z = v.z * inv * w.z;
        v.w = v.w * inv * w.w;
        y[c] = v;
    }
    if (threadIdx.x == 0 && a.inv_rms != NULL) {
        a.inv_rms[row] = inv;
    }
}

extern "C" void rmsnorm_forward_cuda(const struct kernel_rmsnorm_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "rmsnorm_forward");
    const dim3 threads((unsigned)row_threads(a->c));
    if (a->m == 0) {
        return;
    }
    if (a->c % 4 == 0) {
        CUDA_LAUNCH(norm_wide_kernel, dim3((unsigned)a->m), threads, 0, stream, *a);
    } else {
        CUDA_LAUNCH(norm_kernel, dim3((unsigned)a->m), threads, 0, stream, *a);
    }
}

/* One block a part of the rows: dx of each, and the part's sum of dy xhat, columns of which belong
 * to one thread each. */
static __global__ void norm_backward_kernel(struct kernel_rmsnorm_args a, int64_t rows,
                                            float *partial)
{
    __shared__ float room[WARPS_MAX];
    CUDA_SHARED(float, dweight);
    const int64_t first = (int64_t)blockIdx.x * rows;
    const int64_t end = first + rows < a.m ? first + rows : a.m;
    for (int64_t c = threadIdx.x; c < a.c; c += blockDim.x) {
        dweight[c] = 0.0f;
    }
    for (int64_t row = first; row < end; row++) {
        const float *x = a.x + row * a.c;
        const float *dy = a.dy + row * a.c;
        float *dx = a.dx + row * a.c;
        const float inv = a.inv_rms[row];
        float dot = 0.0f;
        for (int64_t c = threadIdx.x; c < a.c; c += blockDim.x) {
            dot = fmaf(dy[c] * a.weight[c], x[c] * inv, dot);
        }
        dot = block_sum(dot, room) / (float)a.c;
        for (int64_t c = threadIdx.x; c < a.c; c += blockDim.x) {
            const float xhat = x[c] * inv;
            const float slope = dy[c];
            const float value = inv * fmaf(slope, a.weight[c], -(xhat * dot));
            dweight[c] = fmaf(slope, xhat, dweight[c]);
            dx[c] = a.accumulate ? dx[c] + value : value;
        }
        __syncthreads(); /* room */
    }
    for (int64_t c = threadIdx.x; c < a.c; c += blockDim.x) {
        partial[blockIdx.x * a.c + c] = dweight[c];
    }
}

extern "C" void rmsnorm_backward_cuda(const struct kernel_rmsnorm_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "rmsnorm_backward");
    if (a->m == 0) {
        return;
    }
    const int64_t rows = (a->m + PARTS - 1) / PARTS;
    const int64_t parts = (a->m + rows - 1) / rows;
    float *partial = (float *)cuda_scratch(stream, (size_t)(parts * a->c) * sizeof(float));
    if (partial != NULL) {
        const struct columns_args weight = {partial, a->c, parts, a->c, a->dweight};
        CUDA_LAUNCH(norm_backward_kernel, dim3((unsigned)parts), dim3((unsigned)row_threads(a->c)),
                    (size_t)a->c * sizeof(float), stream, *a, rows, partial);
        columns_add(stream, &weight);
    }
    cuda_op_end(stream);
}
