/* Ops that move numbers and hardly compute. */
#include "kernels/cuda/float_cuda.h"
#include "kernels/cuda/pack_cuda.h"

enum { THREADS = 256, COPY_BYTES = 16, VECTOR_ALIGN = 64, HASH_BLOCKS = 2048 };

extern "C" void zero_cuda(const struct kernel_zero_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "zero");
    if (cuda_stream_good(stream) && a->bytes > 0) {
        cuda_check(stream, cudaMemsetAsync(a->data, 0, a->bytes, cuda_stream_handle(stream)),
                   "zero");
    }
    cuda_op_end(stream);
}

/* One block a row and THREADS * COPY_BYTES bytes of it; `wide`: everything is aligned. */
static __global__ void copy_kernel(struct kernel_copy_args a, bool wide)
{
    const size_t row = blockIdx.x * a.stride;
    const size_t at = ((size_t)blockIdx.y * THREADS + threadIdx.x) * COPY_BYTES;
    char *to = (char *)a.to + row + at;
    const char *from = (const char *)a.from + row + at;
    if (wide && at + COPY_BYTES <= a.bytes) {
        *(uint4 *)to = *(const uint4 *)from;
        return;
    }
    for (size_t i = 0; i < COPY_BYTES && at + i < a.bytes; i++) {
        to[i] = from[i];
    }
}

extern "C" void copy_rows_cuda(const struct kernel_copy_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "copy_rows");
    const size_t all = (size_t)(uintptr_t)a->to | (size_t)(uintptr_t)a->from | a->stride;
    const dim3 grid((unsigned)a->rows, cuda_blocks((int64_t)a->bytes, THREADS * COPY_BYTES).x);
    CUDA_LAUNCH(copy_kernel, grid, THREADS, 0, stream, *a, all % COPY_BYTES == 0);
    cuda_op_end(stream);
}

/* One block a row. */
static __global__ void gather_rows_kernel(struct kernel_gather_args a)
{
    const float *from = a.x + (int64_t)a.rows[blockIdx.x] * a.c;
    float *to = a.y + (int64_t)blockIdx.x * a.c;
    for (int64_t c = threadIdx.x; c < a.c; c += THREADS) {
        to[c] = from[c];
    }
}

extern "C" void gather_rows_cuda(const struct kernel_gather_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "gather_rows");
    struct kernel_gather_args args = *a;
    args.rows = (const int32_t *)cuda_mirror(stream, a->rows, (size_t)a->m * sizeof *a->rows);
    CUDA_LAUNCH(gather_rows_kernel, dim3((unsigned)a->m), THREADS, 0, stream, args);
    cuda_op_end(stream);
}

static __global__ void blend_kernel(struct kernel_blend_args a)
{
    const int64_t i = cuda_thread();
    if (i < a.count) {
        a.y[i] = fmaf(a.rate, a.x[i] - a.y[i], a.y[i]);
    }
}

extern "C" void blend_cuda(const struct kernel_blend_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "blend");
    CUDA_LAUNCH(blend_kernel, cuda_blocks(a->count, THREADS), THREADS, 0, stream, *a);
    cuda_op_end(stream);
}

static __device__ uint64_t hash_word(uint64_t place, uint32_t word)
{
    uint64_t x = ((place << 32 | place >> 32) ^ word) + 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

/* sums[block] = of the words that the block's threads take in turn. */
static __global__ void hash_kernel(const uint32_t *words, int64_t count, uint64_t *sums)
{
    __shared__ uint64_t room[THREADS / WARP];
    const int64_t stride = (int64_t)gridDim.x * THREADS;
    uint64_t sum = 0;
    for (int64_t i = cuda_thread(); i < count; i += stride) {
        sum += hash_word((uint64_t)i, words[i]);
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = sum;
    }
}

/* One block. */
static __global__ void hash_total_kernel(const uint64_t *sums, int64_t count, uint64_t *total)
{
    __shared__ uint64_t room[THREADS / WARP];
    uint64_t sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += THREADS) {
        sum += sums[i];
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) {
        *total = sum;
    }
}

extern "C" void hash_words_cuda(const struct kernel_hash_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "hash_words");
    const int64_t most = (a->count + THREADS - 1) / THREADS;
    const int64_t blocks = most < HASH_BLOCKS ? most : (int64_t)HASH_BLOCKS;
    uint64_t *sums = (uint64_t *)cuda_scratch(stream, (size_t)(blocks + 1) * sizeof *sums);
    if (sums != NULL) {
        if (blocks > 0) {
            CUDA_LAUNCH(hash_kernel, dim3((unsigned)blocks), dim3(THREADS), 0, stream, a->words,
                        a->count, sums);
        }
        CUDA_LAUNCH(hash_total_kernel, dim3(1), dim3(THREADS), 0, stream, sums, blocks,
                    sums + blocks);
        cuda_fetch(stream, a->sum, sums + blocks, sizeof *a->sum);
        cuda_wait(stream);
    }
    cuda_op_end(stream);
}

/* Four words of the vector, with zeros behind it. */
static __device__ uint4 vector_words(const struct kernel_vector_pack_args *a, int64_t at)
{
    uint32_t word[4];
    for (int i = 0; i < 4; i++) {
        word[i] = at + i < a->count ? __float_as_uint(a->w[at + i]) : 0;
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

/* One thread RUN elements of dtype, which have one byte of the map: 4 words or 8. */
static __global__ void vector_pack_kernel(struct kernel_vector_pack_args a, int64_t words)
{
    const int64_t run = a.dtype == KERNEL_BF16 ? RUN / 2 : RUN;
    const int64_t first = cuda_thread() * run;
    uint32_t map = 0;
    if (first >= words) {
        return;
    }
    for (int64_t i = 0; i < run; i += 4) {
        const uint4 now = vector_words(&a, first + i);
        if (a.changed != NULL) {
            const uint4 old = *(const uint4 *)((const uint32_t *)a.previous + first + i);
            map |= a.dtype == KERNEL_BF16 ? run_differs(now, old) : words_differ(now, old) << i;
        }
        *(uint4 *)((uint32_t *)a.packed + first + i) = now;
    }
    if (a.changed != NULL) {
        a.changed[first / run] = (uint8_t)map;
    }
}

extern "C" void vector_pack_cuda(const struct kernel_vector_pack_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "vector_pack");
    const int64_t align = VECTOR_ALIGN / (int64_t)sizeof(float);
    const int64_t words = (a->count + align - 1) / align * align;
    const int64_t run = a->dtype == KERNEL_BF16 ? RUN / 2 : RUN;
    CUDA_LAUNCH(vector_pack_kernel, cuda_blocks(words, run * THREADS), THREADS, 0, stream, *a,
                words);
    cuda_op_end(stream);
}
