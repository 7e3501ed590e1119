/* Causal attention over paged keys and values on CUDA, forward, and the writing of pages.
 * Invariant (P1): a row's keys are taken in chunks on a grid that starts at position 0. What a
 * chunk gives (maximum, sum, weighted values) depends on the row and the chunk alone; chunks are
 * merged from the first to the last by attend_merge. Whether one block does that in registers, as
 * in training, or many leave their chunk in memory for attend_merge_rows, as in decode, changes no
 * bit; nor do the rows that share a tile: a chunk in which a row sees no key adds nothing to it,
 * exactly. Slots of a page outside a row's range do not reach its result: scores by selection,
 * values by being zero if no row of the block sees them. Values that are not finite reach all rows
 * of a block that sees them. */
#include "kernels/cuda/cuda_kernel.h"

#include "kernels/cuda/attention_tile_cuda.h"

enum {
    ATTEND_FEW_ROWS = 32,           /* of a segment: it gets blocks of one warp */
    ATTEND_ENOUGH_BLOCKS = 4,       /* of one warp, for each multiprocessor */
    ATTEND_SLICE = 4,               /* accumulators (of 8 columns) of a chunk's values at a time */
    ATTEND_PARTS_BYTES = 256 << 20, /* of scratch for chunks, more of which are merged in blocks */
    ATTEND_MERGE_ROWS = 4,          /* rows of a block that merges, a warp each */
    ATTEND_MERGE_CHUNKS = 8,        /* of a row that it loads at a time */
    KV_TOKENS = 16,
    KV_COLUMNS = 16
};

/* --- writing pages --- */

struct kv_write_shape {
    struct cuda_segments segments;
    const float *k, *v;
    void *k_pages, *v_pages;
    int kv_heads, d;
};

/* Where element (kv head, 0, slot 0) of a token's page is, and the slot. */
static __device__ int64_t kv_page_base(const struct kv_write_shape *a, int token, int kv_head,
                                       int *slot)
{
    const struct cuda_segments *g = &a->segments;
    const int s = g->segment_of_token[token];
    const int position = g->first_position[s] + token - g->segment_start[s];
    const int64_t page = g->pages[g->page_offset[s] + position / KERNEL_PAGE_TOKENS];
    *slot = position % KERNEL_PAGE_TOKENS;
    return (page * a->kv_heads + kv_head) * a->d * KERNEL_PAGE_TOKENS;
}

/* 16 tokens by 16 elements of their rows [kv_heads * D]: threads that follow one another take
 * tokens for keys, whose slots do, and elements for values. */
template <typename T> static __global__ void kv_write_tiles(struct kv_write_shape a)
{
    const int width = a.kv_heads * a.d;
    const int inner = (int)threadIdx.x % KV_COLUMNS;
    const int outer = (int)threadIdx.x / KV_COLUMNS;
    const int key_token = (int)blockIdx.x * KV_TOKENS + inner;
    const int key_element = (int)blockIdx.y * KV_COLUMNS + outer;
    int slot = 0;
    if (key_token < a.segments.tokens && key_element < width) {
        const int64_t base = kv_page_base(&a, key_token, key_element / a.d, &slot);
        tile_store((T *)a.k_pages + base + key_element % a.d * KERNEL_PAGE_TOKENS + slot,
                   a.k[(int64_t)key_token * width + key_element]);
    }
    const int token = (int)blockIdx.x * KV_TOKENS + outer;
    const int element = (int)blockIdx.y * KV_COLUMNS + inner;
    if (token < a.segments.tokens && element < width) {
        const int64_t base = kv_page_base(&a, token, element / a.d, &slot);
        tile_store((T *)a.v_pages + base + (int64_t)slot * a.d + element % a.d,
                   a.v[(int64_t)token * width + element]);
    }
}

extern "C" void kv_write_cuda(const struct kernel_kv_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "kv_write");
    const int tokens = a->segments->segment_start[a->segments->count];
    const struct kv_write_shape shape = {cuda_segments(stream, a->segments),
                                         a->k,
                                         a->v,
                                         a->k_pages,
                                         a->v_pages,
                                         (int)a->kv_heads,
                                         (int)a->d};
    const int width = (int)(a->kv_heads * a->d);
    const dim3 grid((unsigned)(tokens + KV_TOKENS - 1) / KV_TOKENS,
                    (unsigned)(width + KV_COLUMNS - 1) / KV_COLUMNS);
    const dim3 block(KV_TOKENS * KV_COLUMNS);
    if (a->dtype == KERNEL_BF16) {
        CUDA_LAUNCH(kv_write_tiles<uint16_t>, grid, block, 0, stream, shape);
    } else {
        CUDA_LAUNCH(kv_write_tiles<float>, grid, block, 0, stream, shape);
    }
    cuda_op_end(stream);
}

/* --- forward --- */

struct attend_forward_shape {
    struct attend_shape shape;
    const float *q;
    float *out, *lse;
    float *parts; /* [N, heads, chunks][D + 2]: values, maximum, sum; NULL: blocks merge */
    int chunks;   /* the most that a row sees */
    int rows_low, rows_high; /* rows of the segments that this launch is for */
};

/* What a row has gathered so far is worth `old` of it beside `add` of what a chunk gave. */
struct attend_factors {
    float old, add;
};

/* Take a chunk's maximum and sum in. */
static __device__ __forceinline__ struct attend_factors
attend_merge(float *max, float *sum, float chunk_max, float chunk_sum)
{
    const float top = fmaxf(*max, chunk_max);
    const float base = top == -INFINITY ? 0.0f : top;
    const struct attend_factors f = {exp2f(*max - base), exp2f(chunk_max - base)};
    *max = top;
    *sum = __fmaf_rn(*sum, f.old, chunk_sum * f.add);
    return f;
}

static __device__ __forceinline__ float attend_merge_value(float value, float chunk_value,
                                                           struct attend_factors f)
{
    return __fmaf_rn(value, f.old, chunk_value * f.add);
}

static __device__ __forceinline__ float attend_lse(float max, float sum)
{
    return __fmaf_rn(max, ATTEND_LN2, logf(sum));
}

/* A warp's 16 rows while it goes through chunks; [2]: rows g and g + 8. */
template <int D> struct attend_state {
    float value[D / 8][4];
    float max[2], sum[2];
    int low[2], high[2]; /* keys that the row sees, high included; none for no row */
};

/* What a chunk's scores come to by row. */
struct attend_chunk {
    float max[2], sum[2];
};

/* Scores of a chunk, which starts at key `first`, become weights. `whole`: every row sees every
 * key. */
template <int N, int D>
static __device__ __forceinline__ void
attend_weights(float (&s)[N][4], const attend_state<D> &state, int first, bool whole, float scale,
               struct attend_chunk *chunk)
{
    float max[2] = {-INFINITY, -INFINITY};
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int key = first + tile_column(n, e);
            const bool seen = whole || (key >= state.low[e / 2] && key <= state.high[e / 2]);
            s[n][e] = seen ? s[n][e] * scale : -INFINITY;
            max[e / 2] = fmaxf(max[e / 2], s[n][e]);
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        max[r] = fmaxf(max[r], __shfl_xor_sync(0xffffffffU, max[r], 1));
        max[r] = fmaxf(max[r], __shfl_xor_sync(0xffffffffU, max[r], 2));
    }
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float base = max[e / 2] == -INFINITY ? 0.0f : max[e / 2];
            s[n][e] = exp2f(s[n][e] - base);
            sum[e / 2] += s[n][e];
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(0xffffffffU, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffU, sum[r], 2);
        chunk->max[r] = max[r];
        chunk->sum[r] = sum[r];
    }
}

/* Shared memory of a block. */
template <typename T, int D, int WARPS> struct attend_room {
    static constexpr int keys = attend_keys<T>();
    static constexpr int rows_bytes = WARPS * TILE_ROWS * D * (int)sizeof(T);
    static constexpr int stage_bytes = 2 * keys * D * (int)sizeof(T); /* keys, then values */
    static constexpr int left_bytes = WARPS * tile_left_bytes<T, keys>();

    static constexpr int bytes(int stages)
    {
        return rows_bytes + left_bytes + stages * stage_bytes;
    }
};

/* The warp's 16 queries into its part of the tile; rows that do not exist and d beyond the head's
 * are zero. Eight rows at a time are under way. */
template <int D, typename TILE>
static __device__ __forceinline__ void attend_load_queries(const TILE &to,
                                                           const struct attend_forward_shape &a,
                                                           const struct attend_rows &rows)
{
    constexpr int batch = 8;
    for (int i = tile_warp() * TILE_ROWS; i < (tile_warp() + 1) * TILE_ROWS; i += batch) {
        const float *q[batch];
#pragma unroll
        for (int j = 0; j < batch; j++) {
            const int row = min(i + j, rows.count - 1);
            q[j] = a.q + attend_row_index(&a.shape, &rows, rows.first + row) * a.shape.d;
        }
#pragma unroll
        for (int c = tile_lane(); c < D; c += TILE_WARP) {
            float got[batch];
#pragma unroll
            for (int j = 0; j < batch; j++) {
                got[j] = i + j < rows.count && c < a.shape.d ? q[j][c] : 0.0f;
            }
#pragma unroll
            for (int j = 0; j < batch; j++) {
                tile_store(tile_at(to, i + j, c), got[j]);
            }
        }
    }
}

/* Values of the chunk by the weights in `left`: taken into the state, or its only contents. */
template <int D, typename LEFT, typename VALUES>
static __device__ __forceinline__ void attend_values(attend_state<D> &state, const LEFT &left,
                                                     const VALUES &values, bool alone,
                                                     const struct attend_factors (&f)[2])
{
#pragma unroll
    for (int n = 0; n < D / 8; n += ATTEND_SLICE) {
        float slice[ATTEND_SLICE][4];
        tile_zero(slice);
        tile_multiply_rows<true>(slice, left, values, n * 8);
#pragma unroll
        for (int i = 0; i < ATTEND_SLICE; i++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float *value = &state.value[n + i][e];
                *value = alone ? slice[i][e] : attend_merge_value(*value, slice[i][e], f[e / 2]);
            }
        }
    }
}

/* A finished row of the state, half r, to out and lse. */
template <int D>
static __device__ __forceinline__ void attend_write_row(const struct attend_forward_shape &a,
                                                        const attend_state<D> &state, int64_t index,
                                                        int r)
{
    const float inverse = 1.0f / state.sum[r];
    float *out = a.out + index * a.shape.d;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; e++) {
            const int c = tile_column(n, e);
            if (c < a.shape.d) {
                out[c] = state.value[n][e] * inverse;
            }
        }
    }
    if (a.lse != NULL && tile_lane() % 4 == 0) {
        a.lse[index] = attend_lse(state.max[r], state.sum[r]);
    }
}

/* A row's chunk, half r of the state, for attend_merge_rows; `chunk` counts from the row's first.
 */
template <int D>
static __device__ __forceinline__ void attend_write_part(const struct attend_forward_shape &a,
                                                         const attend_state<D> &state,
                                                         int64_t index, int r, int chunk)
{
    float *part = a.parts + (index * a.chunks + chunk) * (a.shape.d + 2);
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; e++) {
            const int c = tile_column(n, e);
            if (c < a.shape.d) {
                part[c] = state.value[n][e];
            }
        }
    }
    if (tile_lane() % 4 == 0) {
        part[a.shape.d] = state.max[r];
        part[a.shape.d + 1] = state.sum[r];
    }
}

/* Rows of a block: grid (blocks of rows, kv heads, chunks if they are not merged here). */
template <typename T, int D, int WARPS>
static __global__ void __launch_bounds__(WARPS *TILE_WARP)
    attend_forward_tiles(struct attend_forward_shape a)
{
    constexpr int keys = attend_keys<T>();
    constexpr int threads = WARPS * TILE_WARP;
    constexpr int stages = WARPS == 1 ? 2 : attend_stages<T, D>();
    using room = attend_room<T, D, WARPS>;
    CUDA_SHARED(char, shared);
    struct attend_rows rows;
    /* late rows see most keys: they go first */
    if (!attend_rows_find(&a.shape.segments, (int)(gridDim.x - 1 - blockIdx.x), a.shape.group,
                          WARPS * TILE_ROWS, &rows) ||
        rows.total < a.rows_low || rows.total > a.rows_high) {
        return;
    }
    const int first_position = rows.position + rows.first / a.shape.group;
    const int last_position = rows.position + (rows.first + rows.count - 1) / a.shape.group;
    const int low = attend_first_key(a.shape.window, first_position);
    const int low_last = attend_first_key(a.shape.window, last_position);
    const bool alone = a.parts != NULL;
    const int begin = low / keys + (alone ? (int)blockIdx.z : 0);
    const int end = alone ? min(begin + 1, last_position / keys + 1) : last_position / keys + 1;
    if (begin >= end) {
        return;
    }
    const attend_pages<T> pages =
        attend_pages_of<T>(&a.shape, rows.segment, rows.kv_head, low, last_position + 1);
    const tile<T, D> queries = {(T *)shared};
    char *stage_room = shared + room::rows_bytes + room::left_bytes;
    tile_left<T, keys> left;
    tile_left_init<keys>(&left, shared + room::rows_bytes);
    attend_state<D> state;
    tile_zero(state.value);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = tile_warp() * TILE_ROWS + tile_row(2 * r);
        const int position = rows.position + (rows.first + row) / a.shape.group;
        state.max[r] = -INFINITY;
        state.sum[r] = 0.0f;
        state.low[r] = row < rows.count ? attend_first_key(a.shape.window, position) : 1;
        state.high[r] = row < rows.count ? position : 0;
    }
    attend_load_chunk<T, D, keys, threads>(stage_room, pages, begin);
    attend_load_queries<D>(queries, a, rows);
    for (int chunk = begin; chunk < end; chunk++) {
        char *stage =
            attend_enter_chunk<T, D, threads, stages>(stage_room, pages, begin, chunk, end);
        float s[keys / 8][4];
        tile_zero(s);
        tile_multiply<D, false, true>(s, queries, tile_warp() * TILE_ROWS,
                                      tile<T, keys>{(T *)stage}, 0);
        const bool whole = chunk * keys >= low_last && chunk * keys + keys - 1 <= first_position;
        struct attend_chunk got;
        attend_weights(s, state, chunk * keys, whole, a.shape.scale * ATTEND_LOG2E, &got);
        tile_left_set<keys>(&left, s);
        struct attend_factors f[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            f[r] = attend_merge(&state.max[r], &state.sum[r], got.max[r], got.sum[r]);
        }
        attend_values(state, left, tile<T, D>{(T *)(stage + room::stage_bytes / 2)}, alone, f);
        attend_leave_chunk<T, D, threads, stages>(stage_room, pages, chunk, end);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = tile_warp() * TILE_ROWS + tile_row(2 * r);
        const int64_t index =
            row < rows.count ? attend_row_index(&a.shape, &rows, rows.first + row) : -1;
        if (index >= 0 && !alone) {
            attend_write_row(a, state, index, r);
        } else if (index >= 0 && state.low[r] / keys <= begin && begin <= state.high[r] / keys) {
            attend_write_part(a, state, index, r, begin - state.low[r] / keys);
        }
    }
}

/* Rows whose chunks lie in memory: a warp each, with the loads of several chunks under way. */
template <typename T, int D>
static __global__ void __launch_bounds__(ATTEND_MERGE_ROWS *TILE_WARP)
    attend_merge_rows(struct attend_forward_shape a)
{
    constexpr int most = D / TILE_WARP;
    constexpr int keys = attend_keys<T>();
    const struct cuda_segments *g = &a.shape.segments;
    const int row = (int)blockIdx.x * ATTEND_MERGE_ROWS + tile_warp();
    if (row >= g->tokens * a.shape.heads) {
        return;
    }
    const int token = row / a.shape.heads;
    const int s = g->segment_of_token[token];
    const int total = (g->segment_start[s + 1] - g->segment_start[s]) * a.shape.group;
    if (total < a.rows_low || total > a.rows_high) {
        return;
    }
    const int position = g->first_position[s] + token - g->segment_start[s];
    const int chunks = position / keys - attend_first_key(a.shape.window, position) / keys + 1;
    const float *part = a.parts + (int64_t)row * a.chunks * (a.shape.d + 2);
    float value[most] = {0.0f};
    float max = -INFINITY;
    float sum = 0.0f;
    for (int chunk = 0; chunk < chunks; chunk += ATTEND_MERGE_CHUNKS) {
        float got[ATTEND_MERGE_CHUNKS][most];
        float got_max[ATTEND_MERGE_CHUNKS];
        float got_sum[ATTEND_MERGE_CHUNKS];
#pragma unroll
        for (int j = 0; j < ATTEND_MERGE_CHUNKS; j++, part += a.shape.d + 2) {
            const bool exists = chunk + j < chunks;
            got_max[j] = exists ? part[a.shape.d] : -INFINITY;
            got_sum[j] = exists ? part[a.shape.d + 1] : 0.0f;
#pragma unroll
            for (int i = 0; i < most; i++) {
                const int c = i * TILE_WARP + tile_lane();
                got[j][i] = exists && c < a.shape.d ? part[c] : 0.0f;
            }
        }
#pragma unroll
        for (int j = 0; j < ATTEND_MERGE_CHUNKS; j++) {
            if (chunk + j < chunks) {
                const struct attend_factors f = attend_merge(&max, &sum, got_max[j], got_sum[j]);
#pragma unroll
                for (int i = 0; i < most; i++) {
                    value[i] = attend_merge_value(value[i], got[j][i], f);
                }
            }
        }
    }
    const float inverse = 1.0f / sum;
#pragma unroll
    for (int i = 0; i < most; i++) {
        const int c = i * TILE_WARP + tile_lane();
        if (c < a.shape.d) {
            a.out[(int64_t)row * a.shape.d + c] = value[i] * inverse;
        }
    }
    if (a.lse != NULL && tile_lane() == 0) {
        a.lse[row] = attend_lse(max, sum);
    }
}

/* --- launching --- */

/* Segments with few rows, as in decode, and with many, as in prefill and training. */
struct attend_load {
    int64_t blocks_few; /* of one warp, for each kv head */
    bool many;
    int chunks; /* no row of a segment with few sees more: those of its context's bucket */
};

static struct attend_load attend_load_of(const struct kernel_attention_args *a, int keys)
{
    const struct kernel_segments *g = a->segments;
    struct attend_load load = {0, false, 0};
    for (int64_t s = 0; s < g->count; s++) {
        const int64_t tokens = g->segment_start[s + 1] - g->segment_start[s];
        const int64_t rows = tokens * (a->heads / a->kv_heads);
        const int64_t seen = kernel_context_bucket(g->first_position[s] + tokens);
        int64_t chunks = (seen + keys - 1) / keys;
        if (a->window > 0 && (a->window + keys - 2) / keys + 1 < chunks) {
            chunks = (a->window + keys - 2) / keys + 1; /* wherever it begins within a chunk */
        }
        if (rows > ATTEND_FEW_ROWS) {
            load.many = true;
        } else if (rows > 0) {
            load.blocks_few += (rows + TILE_ROWS - 1) / TILE_ROWS;
            load.chunks = chunks > load.chunks ? (int)chunks : load.chunks;
        }
    }
    return load;
}

template <typename T, int D, int WARPS>
static void attend_launch_tiles(const struct attend_forward_shape *shape,
                                const struct kernel_segments *segments, int chunks,
                                struct cuda_stream *stream)
{
    const int stages = WARPS == 1 ? (chunks > 1 ? 1 : 2) : attend_stages<T, D>();
    const dim3 grid(attend_block_count(segments, shape->shape.group, WARPS * TILE_ROWS),
                    (unsigned)shape->shape.kv_heads, (unsigned)chunks);
    auto kernel = attend_forward_tiles<T, D, WARPS>;
    CUDA_LAUNCH(kernel, grid, dim3(WARPS * TILE_WARP), (attend_room<T, D, WARPS>::bytes(stages)),
                stream, *shape);
}

/* Segments with few rows: enough blocks for the machine, if need be one for each chunk. */
template <typename T, int D>
static void attend_launch_few(struct attend_forward_shape shape,
                              const struct kernel_segments *segments,
                              const struct attend_load *load, struct cuda_stream *stream)
{
    shape.rows_low = 1;
    shape.rows_high = ATTEND_FEW_ROWS;
    const int64_t enough = (int64_t)cuda_multiprocessors(stream) * ATTEND_ENOUGH_BLOCKS;
    const int64_t rows = (int64_t)segments->segment_start[segments->count] * shape.shape.heads;
    const int64_t parts_bytes = rows * load->chunks * (shape.shape.d + 2) * (int64_t)sizeof(float);
    if (load->chunks == 1 || load->blocks_few * shape.shape.kv_heads >= enough ||
        parts_bytes > ATTEND_PARTS_BYTES) {
        attend_launch_tiles<T, D, 1>(&shape, segments, 1, stream);
        return;
    }
    shape.chunks = load->chunks;
    shape.parts = (float *)cuda_scratch(stream, (size_t)parts_bytes);
    attend_launch_tiles<T, D, 1>(&shape, segments, shape.chunks, stream);
    auto merge = attend_merge_rows<T, D>;
    CUDA_LAUNCH(merge, cuda_blocks(rows, ATTEND_MERGE_ROWS), dim3(ATTEND_MERGE_ROWS * TILE_WARP), 0,
                stream, shape);
}

template <typename T>
static void attend_forward(const struct kernel_attention_args *a, struct cuda_stream *stream)
{
    const struct cuda_segments segments = cuda_segments(stream, a->segments);
    const struct attend_forward_shape shape = {
        attend_shape_of(a, &segments), a->q, a->out, a->lse, NULL, 0, 0, 0};
    const struct attend_load load = attend_load_of(a, attend_keys<T>());
    attend_for_width(a->d, [&](auto width) {
        constexpr int d = decltype(width)::value;
        if (load.blocks_few > 0) {
            attend_launch_few<T, d>(shape, a->segments, &load, stream);
        }
        if (load.many) {
            struct attend_forward_shape many = shape;
            many.rows_low = ATTEND_FEW_ROWS + 1;
            many.rows_high = INT32_MAX;
            attend_launch_tiles<T, d, attend_warps<T, d>()>(&many, a->segments, 1, stream);
        }
    });
}

extern "C" void attention_forward_cuda(const struct kernel_attention_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "attention_forward");
    if (a->dtype == KERNEL_BF16) {
        attend_forward<uint16_t>(a, stream);
    } else {
        attend_forward<float>(a, stream);
    }
    cuda_op_end(stream);
}
