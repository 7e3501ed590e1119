/* What attention's forward and backward share on CUDA: which rows a block has, which keys these
 * see, and how their pages come into shared memory. Query rows of one kv head are (token, query
 * head) pairs, token by token: row r of a segment is its token r / group and head r % group of the
 * kv head's, so that a token's few heads fill a tile in decode. */
#ifndef FORESIGHT_KERNELS_CUDA_ATTENTION_TILE_CUDA_H
#define FORESIGHT_KERNELS_CUDA_ATTENTION_TILE_CUDA_H

#include "kernels/cuda/tile_cuda.h"
#include "kernels/kernels.h"

#include <type_traits>

/* Scores are kept times log2 e, so that weights are powers of two. */
#define ATTEND_LOG2E 1.44269504088896341f
#define ATTEND_LN2 0.69314718055994531f

/* What every attention kernel is told. */
struct attend_shape {
    struct cuda_segments segments;
    const void *k_pages, *v_pages;
    int heads, kv_heads, group, d, window;
    float scale;
};

static inline struct attend_shape attend_shape_of(const struct kernel_attention_args *a,
                                                  const struct cuda_segments *segments)
{
    return (struct attend_shape){*segments,     a->k_pages,       a->v_pages,
                                 (int)a->heads, (int)a->kv_heads, (int)(a->heads / a->kv_heads),
                                 (int)a->d,     (int)a->window,   a->scale};
}

/* Keys of a chunk: those whose scores have one maximum and one sum. Chunks begin at multiples of
 * it, and a row's are merged from the first to the last. */
template <typename T> __host__ __device__ constexpr int attend_keys(void)
{
    return 128 / (int)sizeof(T);
}

/* Warps of a block that takes as many rows as it can; its tiles fit into 160 KiB. */
template <typename T, int D> __host__ __device__ constexpr int attend_warps(void)
{
    return sizeof(T) == sizeof(float) && D == 256 ? 2 : 4;
}

/* How often the tiles of what comes from memory exist: 2 to load one while the other is used. */
template <typename T, int D> __host__ __device__ constexpr int attend_stages(void)
{
    return sizeof(T) == sizeof(float) || D == 256 ? 1 : 2;
}

/* First key that a row at `position` sees. */
static __device__ __forceinline__ int attend_first_key(int window, int position)
{
    return window > 0 && position >= window ? position - window + 1 : 0;
}

/* --- rows --- */

/* Some rows of a segment, at most a block's. */
struct attend_rows {
    int segment;
    int token;    /* the segment's first */
    int position; /* of that token */
    int first;    /* row of the segment */
    int count;    /* rows from there to the segment's end, or a block's */
    int total;    /* of the segment */
    int kv_head;
};

/* Number of the first of the blocks that segment s, which begins at row `start`, may have: enough
 * for its rows, and each segment's own. */
static __host__ __device__ __forceinline__ int attend_first_block(int start, int s, int rows)
{
    return start / rows + s;
}

/* Rows of block (block, blockIdx.y), `rows` at most, where a token has `width` of them for each kv
 * head; false if it has none. All threads of the block. */
static __device__ __forceinline__ bool attend_rows_find(const struct cuda_segments *g, int block,
                                                        int width, int rows,
                                                        struct attend_rows *out)
{
    int low = 0;
    int high = g->count - 1;
    while (low < high) { /* a warp looks at 32 places at a time: what counts is the latency */
        const int step = (high - low + TILE_WARP - 1) / TILE_WARP;
        const int place = low + (tile_lane() + 1) * step;
        const bool before = place <= high && attend_first_block(g->segment_start[place] * width,
                                                                place, rows) <= block;
        low += __popc(__ballot_sync(0xffffffffU, before)) * step;
        high = min(high, low + step - 1);
    }
    out->segment = low;
    out->token = g->segment_start[low];
    out->position = g->first_position[low];
    out->first = (block - attend_first_block(out->token * width, low, rows)) * rows;
    out->total = (g->segment_start[low + 1] - out->token) * width;
    out->kv_head = (int)blockIdx.y;
    out->count = min(out->total - out->first, rows);
    return out->count > 0;
}

/* Blocks that attend_rows_find shares all rows out to. */
static inline unsigned attend_block_count(const struct kernel_segments *g, int64_t width, int rows)
{
    return (unsigned)attend_first_block((int)(g->segment_start[g->count] * width), (int)g->count,
                                        rows);
}

/* Index of row r of the segment among all [N, heads]. */
static __device__ __forceinline__ int64_t attend_row_index(const struct attend_shape *a,
                                                           const struct attend_rows *rows, int r)
{
    return (int64_t)(rows->token + r / a->group) * a->heads + rows->kv_head * a->group +
           r % a->group;
}

/* --- keys and values --- */

/* Pages of one kv head of one segment, and which of its positions are wanted. */
template <typename T> struct attend_pages {
    const int32_t *table;
    const T *k, *v;
    int kv_heads, kv_head, d;
    int low, high; /* positions low .. high-1 */
};

template <typename T>
__device__ __forceinline__ attend_pages<T>
attend_pages_of(const struct attend_shape *a, int segment, int kv_head, int low, int high)
{
    return {a->segments.pages + a->segments.page_offset[segment],
            (const T *)a->k_pages,
            (const T *)a->v_pages,
            a->kv_heads,
            kv_head,
            a->d,
            low,
            high};
}

/* Where the head's part of the page of `position` begins. */
template <typename T>
__device__ __forceinline__ int64_t attend_page_base(const attend_pages<T> &p, int position)
{
    const int64_t page = p.table[position / KERNEL_PAGE_TOKENS];
    return (page * p.kv_heads + p.kv_head) * p.d * KERNEL_PAGE_TOKENS;
}

/* Keys first .. first+KEYS-1, `first` a multiple of 16, as they lie in pages: by d. Positions that
 * are not wanted are zero at the end, and anything of the sequence's before `low`; so is d beyond
 * the head's. */
template <typename T, int D, int KEYS, int THREADS>
__device__ __forceinline__ void attend_load_keys(const tile<T, KEYS> &to, const attend_pages<T> &p,
                                                 int first)
{
    constexpr int unit = tile_unit<T>();
    constexpr int units = KEYS / unit;
    const int column = (int)threadIdx.x % units * unit;
    const int key = first + column;
    const bool wanted = key < p.high && (key | (KERNEL_PAGE_TOKENS - 1)) >= p.low;
    const int bytes = wanted ? min(p.high - key, unit) * (int)sizeof(T) : 0;
    const T *from = wanted ? p.k + attend_page_base(p, key) + key % KERNEL_PAGE_TOKENS : p.k;
#pragma unroll 8
    for (int row = (int)threadIdx.x / units; row < D; row += THREADS / units) {
        const bool inside = row < p.d && wanted;
        copy_async16(tile_at(to, row, column), inside ? from + row * KERNEL_PAGE_TOKENS : p.k,
                     inside ? bytes : 0);
    }
}

/* Values of the same positions, by position; what is not wanted is zero. */
template <typename T, int D, int KEYS, int THREADS>
__device__ __forceinline__ void attend_load_values(const tile<T, D> &to, const attend_pages<T> &p,
                                                   int first)
{
    constexpr int unit = tile_unit<T>();
    constexpr int units = D / unit;
    const bool whole = p.d % unit == 0; /* else rows are not aligned */
#pragma unroll 4
    for (int i = (int)threadIdx.x; i < KEYS * units; i += THREADS) {
        const int row = i / units;
        const int column = i % units * unit;
        const int key = first + row;
        const bool wanted = key >= p.low && key < p.high && column < p.d;
        const T *from = wanted ? p.v + attend_page_base(p, key) + column +
                                     (int64_t)(key % KERNEL_PAGE_TOKENS) * p.d
                               : p.v;
        T *into = tile_at(to, row, column);
        if (whole) {
            copy_async16(into, from, wanted ? TILE_UNIT_BYTES : 0);
            continue;
        }
        for (int e = 0; e < unit; e++) {
            into[e] = wanted && column + e < p.d ? from[e] : (T)0;
        }
    }
}

/* Start loading chunk number `chunk` into a stage: keys, then values; a group of copies. */
template <typename T, int D, int KEYS, int THREADS>
__device__ __forceinline__ void attend_load_chunk(char *stage, const attend_pages<T> &p, int chunk)
{
    attend_load_keys<T, D, KEYS, THREADS>(tile<T, KEYS>{(T *)stage}, p, chunk * KEYS);
    attend_load_values<T, D, KEYS, THREADS>(tile<T, D>{(T *)stage + KEYS * D}, p, chunk * KEYS);
    copy_async_commit();
}

/* Chunks begin .. end-1 go through the stages of `room` one by one; the first was asked for before.
 * The stage of `chunk`, loaded, and the next one asked for where there is a second stage. All
 * threads of the block; the stage may be read till attend_leave_chunk. */
template <typename T, int D, int THREADS, int STAGES>
__device__ __forceinline__ char *attend_enter_chunk(char *room, const attend_pages<T> &p, int begin,
                                                    int chunk, int end)
{
    constexpr int keys = attend_keys<T>();
    constexpr int bytes = 2 * keys * D * (int)sizeof(T);
    if (STAGES > 1 && chunk + 1 < end) {
        attend_load_chunk<T, D, keys, THREADS>(room + (chunk + 1 - begin) % STAGES * bytes, p,
                                               chunk + 1);
        copy_async_wait<1>();
    } else {
        copy_async_wait<0>();
    }
    __syncthreads();
    return room + (chunk - begin) % STAGES * bytes;
}

/* The stage is free; with one alone the next chunk is asked for now. */
template <typename T, int D, int THREADS, int STAGES>
__device__ __forceinline__ void attend_leave_chunk(char *room, const attend_pages<T> &p, int chunk,
                                                   int end)
{
    __syncthreads();
    if (STAGES == 1 && chunk + 1 < end) {
        attend_load_chunk<T, D, attend_keys<T>(), THREADS>(room, p, chunk + 1);
    }
}

/* --- launching --- */

/* Head dims for which the kernels exist; others run in the next larger one. */
template <typename CALL> static inline void attend_for_width(int64_t d, const CALL &call)
{
    if (d <= 64) {
        call(std::integral_constant<int, 64>());
    } else if (d <= 128) {
        call(std::integral_constant<int, 128>());
    } else {
        call(std::integral_constant<int, KERNEL_HEAD_DIM_MAX>());
    }
}

#endif
