/* Output head: log-probability and entropy of softmax(x W^T / tau) a wave of the vocabulary at a
 * time. */
#include "kernels/cuda/head_cuda.h"

#include "kernels/cuda/float_cuda.h"
#include "kernels/cuda/head_row_cuda.h"
#include "kernels/cuda/matmul_cuda.h"

enum {
    CHUNK_THREADS = 256, /* four logits each */
    ROW_LOGITS = 4,
    ROWS_A_BLOCK = 4,
    WAVE_FLOATS = 16 * 1024 * 1024 /* logits that a wave holds, or else one chunk */
};

static_assert(CHUNK_THREADS * ROW_LOGITS == KERNEL_HEAD_CHUNK, "a block takes a chunk");
static_assert(CHUNK_THREADS / WARP == KERNEL_DECODE_PARTS, "a warp takes a part");

int64_t head_chunks(int64_t v)
{
    return (v + KERNEL_HEAD_CHUNK - 1) / KERNEL_HEAD_CHUNK;
}

/* Largest value of the warp and the lowest id that has it. */
static __device__ void warp_top(float *max, int32_t *id)
{
    for (int step = WARP / 2; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(WARP_ALL, *max, step);
        const int32_t other_id = __shfl_xor_sync(WARP_ALL, *id, step);
        if (other > *max || (other == *max && other_id < *id)) {
            *max = other;
            *id = other_id;
        }
    }
}

/* The same of the block, known to every thread. */
static __device__ void block_top(float *max, int32_t *id)
{
    __shared__ float maxima[KERNEL_DECODE_PARTS];
    __shared__ int32_t ids[KERNEL_DECODE_PARTS];
    warp_top(max, id);
    if (threadIdx.x % WARP == 0) {
        maxima[threadIdx.x / WARP] = *max;
        ids[threadIdx.x / WARP] = *id;
    }
    __syncthreads();
    *max = maxima[0];
    *id = ids[0];
    for (int i = 1; i < KERNEL_DECODE_PARTS; i++) {
        if (maxima[i] > *max) {
            *max = maxima[i];
            *id = ids[i];
        }
    }
}

/* One block a row and chunk; a warp takes one part of it. */
static __global__ void chunk_kernel(struct head_wave a)
{
    __shared__ float part_sum[KERNEL_DECODE_PARTS];
    __shared__ float part_weighted[KERNEL_DECODE_PARTS];
    const int64_t row = blockIdx.x;
    const int64_t first = (int64_t)blockIdx.y * KERNEL_HEAD_CHUNK + threadIdx.x * ROW_LOGITS;
    const int64_t slot = row * a.chunks + a.start / KERNEL_HEAD_CHUNK + blockIdx.y;
    const int warp = (int)threadIdx.x / WARP;
    const int left = first < a.count ? (int)min(a.count - first, (int64_t)ROW_LOGITS) : 0;
    float value[ROW_LOGITS];
    float max = -INFINITY;
    int32_t top = (int32_t)(a.start + first);
    if (left > 0) {
        const float4 four = *(const float4 *)(a.z + row * a.stride + first);
        value[0] = four.x;
        value[1] = four.y;
        value[2] = four.z;
        value[3] = four.w;
    }
    for (int i = 0; i < left; i++) {
        if (a.targets != NULL && a.targets[row] == a.start + first + i) {
            a.target_logit[row] = value[i];
        }
        value[i] *= a.inv_temperature;
        if (value[i] > max) {
            max = value[i];
            top = (int32_t)(a.start + first) + i;
        }
    }
    block_top(&max, &top);
    const float base = max > -INFINITY ? max : 0.0f;
    float sum = 0.0f;
    float weighted = 0.0f;
    for (int i = 0; i < left; i++) {
        const float weight = expf(value[i] - base);
        sum += weight;
        weighted += weight > 0.0f ? weight * (value[i] - base) : 0.0f; /* not 0 times -inf */
    }
    sum = warp_sum(sum);
    weighted = warp_sum(weighted);
    if (threadIdx.x % WARP == 0) {
        part_sum[warp] = sum;
        part_weighted[warp] = weighted;
        if (a.parts != NULL) {
            a.parts[slot * KERNEL_DECODE_PARTS + warp] = sum;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < KERNEL_DECODE_PARTS; i++) {
            sum += part_sum[i];
            weighted += part_weighted[i];
        }
        struct head_sum *out = &a.sums[slot];
        out->max = max;
        out->sum = sum;
        out->weighted = weighted;
        out->top = top;
    }
}

bool head_product_round(struct cuda_stream *stream, struct head_product *product)
{
    const struct linear_round_args round = {
        product->rows, product->dtype, product->m, product->c, product->c, RUN, RUN};
    return product->x.data != NULL || linear_round(stream, &round, &product->x);
}

/* Logits of few rows, which need no rounding. False where they do. */
static bool head_wave_few(struct cuda_stream *stream, const struct head_product *product,
                          const struct head_wave *wave, const void *w)
{
    struct kernel_linear_args map = {};
    map.w = w;
    map.dtype = product->dtype;
    map.x = (float *)(uintptr_t)product->rows;
    map.y = wave->z;
    map.m = wave->m;
    map.n = wave->count;
    map.k = product->c;
    map.x_stride = product->c;
    map.y_stride = wave->stride;
    return linear_forward_few(stream, &map, 1);
}

void head_wave_run(struct cuda_stream *stream, struct head_product *product,
                   const struct head_wave *wave)
{
    const int64_t offset = wave->start * product->c * linear_width(product->dtype);
    const void *w = (const char *)product->w + offset;
    if (!head_wave_few(stream, product, wave, w) && head_product_round(stream, product)) {
        const struct matmul_args logits = {.kind = MATMUL_FORWARD,
                                           .dtype = product->dtype,
                                           .a = w,
                                           .b = product->x.data,
                                           .d = wave->z,
                                           .bias = NULL,
                                           .m = (wave->count + RUN - 1) / RUN * RUN,
                                           .n = wave->m,
                                           .depth = product->c,
                                           .lda = product->c,
                                           .ldb = product->x.ld,
                                           .ldd = wave->stride,
                                           .accumulate = false};
        matmul_run(stream, &logits);
    }
    if (wave->sums != NULL) {
        const dim3 grid((unsigned)wave->m, (unsigned)head_chunks(wave->count));
        CUDA_LAUNCH(chunk_kernel, grid, dim3(CHUNK_THREADS), 0, stream, *wave);
    }
}

/* One warp a row: the largest maximum, then the chunks' sums relative to it, lane by lane. */
static __global__ void rows_kernel(const struct head_sum *sums, int64_t m, int64_t chunks,
                                   struct head_row *rows)
{
    const int64_t row = (int64_t)blockIdx.x * ROWS_A_BLOCK + threadIdx.x / WARP;
    const int lane = (int)threadIdx.x % WARP;
    if (row >= m) {
        return;
    }
    const struct head_sum *chunk = sums + row * chunks;
    float max = -INFINITY;
    int32_t top = 0x7fffffff;
    for (int64_t c = lane; c < chunks; c += WARP) {
        if (chunk[c].max > max) {
            max = chunk[c].max;
            top = chunk[c].top;
        }
    }
    warp_top(&max, &top);
    double sum = 0.0;
    double weighted = 0.0;
    for (int64_t c = lane; c < chunks; c += WARP) {
        if (chunk[c].sum != 0.0f) { /* 0: logits of -inf alone */
            const double gap = (double)(chunk[c].max - max);
            const double shift = (double)expf(chunk[c].max - max);
            sum = fma(shift, (double)chunk[c].sum, sum);
            weighted =
                fma(shift, fma((double)chunk[c].sum, gap, (double)chunk[c].weighted), weighted);
        }
    }
    sum = warp_sum(sum);
    weighted = warp_sum(weighted);
    if (lane == 0) {
        rows[row].sum = sum;
        rows[row].weighted = weighted;
        rows[row].max = max;
        rows[row].log_sum = logf((float)sum);
        rows[row].top = top;
    }
}

void head_rows_run(struct cuda_stream *stream, const struct head_sum *sums, int64_t m,
                   int64_t chunks, struct head_row *rows)
{
    const dim3 grid((unsigned)((m + ROWS_A_BLOCK - 1) / ROWS_A_BLOCK));
    CUDA_LAUNCH(rows_kernel, grid, dim3(ROWS_A_BLOCK * WARP), 0, stream, sums, m, chunks, rows);
}

int64_t head_wave_columns(int64_t m, int64_t v)
{
    const int64_t fit = WAVE_FLOATS / m / KERNEL_HEAD_CHUNK * KERNEL_HEAD_CHUNK;
    const int64_t columns = fit > KERNEL_HEAD_CHUNK ? fit : (int64_t)KERNEL_HEAD_CHUNK;
    const int64_t padded = (v + KERNEL_PANEL - 1) / KERNEL_PANEL * KERNEL_PANEL;
    return columns < padded ? columns : padded;
}

float *head_wave_room(struct cuda_stream *stream, const struct kernel_head_args *a, int64_t columns)
{
    return columns <= KERNEL_HEAD_CHUNK
               ? a->scratch
               : (float *)cuda_scratch(stream, (size_t)(a->m * columns) * sizeof(float));
}

static __global__ void head_finish_kernel(struct kernel_head_args a, const struct head_row *rows,
                                          const float *target_logit)
{
    const int64_t m = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (m >= a.m) {
        return;
    }
    const struct head_row row = rows[m];
    a.logprob[m] = head_row_logprob(&row, target_logit[m], a.inv_temperature);
    a.lse[m] = row.max + row.log_sum;
    if (a.entropy != NULL) {
        a.entropy[m] = row.log_sum - (float)(row.weighted / row.sum);
    }
}

extern "C" void head_forward_cuda(const struct kernel_head_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "head_forward");
    const size_t rows = (size_t)a->m;
    const int64_t columns = a->m > 0 ? head_wave_columns(a->m, a->v) : 0;
    struct head_product product = {a->x, a->w, a->dtype, {NULL, 0, 0}, a->m, a->v, a->c};
    struct head_wave wave = {};
    wave.m = a->m;
    wave.stride = columns;
    wave.chunks = head_chunks(a->v);
    wave.inv_temperature = a->inv_temperature;
    if (a->m == 0) {
        cuda_op_end(stream);
        return;
    }
    wave.z = head_wave_room(stream, a, columns);
    wave.targets = (const int32_t *)cuda_mirror(stream, a->targets, rows * sizeof(int32_t));
    wave.target_logit = (float *)cuda_scratch(stream, rows * sizeof(float));
    wave.sums =
        (struct head_sum *)cuda_scratch(stream, rows * (size_t)wave.chunks * sizeof *wave.sums);
    struct head_row *sums = (struct head_row *)cuda_scratch(stream, rows * sizeof *sums);
    if (wave.z != NULL && wave.targets != NULL && wave.target_logit != NULL && wave.sums != NULL &&
        sums != NULL) {
        for (wave.start = 0; wave.start < a->v; wave.start += columns) {
            wave.count = a->v - wave.start < columns ? a->v - wave.start : columns;
            head_wave_run(stream, &product, &wave);
        }
        head_rows_run(stream, wave.sums, a->m, wave.chunks, sums);
        CUDA_LAUNCH(head_finish_kernel,
                    dim3((unsigned)((a->m + CHUNK_THREADS - 1) / CHUNK_THREADS)),
                    dim3(CHUNK_THREADS), 0, stream, *a, sums, wave.target_logit);
    }
    cuda_op_end(stream);
}
