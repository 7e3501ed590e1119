/* Gradients of attention on CUDA: for queries by blocks of rows that go through the keys, for keys
 * and values by blocks of keys that go through the rows. Every number has one writer and is a sum
 * in one order, so two runs give the same bits. Keys of a prefix get what their own segment's rows
 * give, then what each segment that shares them gives, in order: blocks of each lay theirs down in
 * scratch, and one kernel adds them up.
 * Weights are taken from the saved lse: p = exp(s - lse), ds = p (dp - delta), delta = dout . out.
 */
#include "kernels/cuda/cuda_kernel.h"

#include "kernels/cuda/attention_tile_cuda.h"

enum {
    ATTEND_PREPARE_ROWS = 4, /* of a block, a warp each */
    ATTEND_QUERIES = 32,     /* rows at a time for a block of keys */
    ATTEND_ADD_THREADS = 256,
    ATTEND_SHARES_BYTES = 256 << 20 /* of scratch for what sharers give, if one needs less */
};

struct attend_backward_shape {
    struct attend_shape shape;
    const float *q, *out, *lse, *dout;
    float *dq, *dk, *dv;
    float *delta;       /* [N, heads] */
    void *q_t, *dout_t; /* [N, heads][D of the kernel] of the pages' type */
    float *shares;      /* [sharers][2][N, kv_heads, D]: dk and dv of a prefix's tokens */
    int share_first;    /* number, among those of its prefix, of the first sharer of the launch */
};

/* --- what both need --- */

/* A warp for each row: delta, and q and dout rounded and padded with zeros. */
template <typename T, int D>
static __global__ void attend_prepare_rows(struct attend_backward_shape a, int64_t rows)
{
    const int64_t row = (int64_t)blockIdx.x * ATTEND_PREPARE_ROWS + tile_warp();
    if (row >= rows) {
        return;
    }
    float sum = 0.0f;
    for (int c = tile_lane(); c < D; c += TILE_WARP) {
        const bool inside = c < a.shape.d;
        const int64_t from = row * a.shape.d + c;
        T *dout = (T *)a.dout_t + row * D + c;
        tile_store((T *)a.q_t + row * D + c, inside ? a.q[from] : 0.0f);
        tile_store(dout, inside ? a.dout[from] : 0.0f);
        /* of what dp is made of, so that a row of one key gets exactly 0 */
        sum = __fmaf_rn(tile_float(*dout), inside ? a.out[from] : 0.0f, sum);
    }
    for (int step = TILE_WARP / 2; step > 0; step /= 2) {
        sum += __shfl_xor_sync(0xffffffffU, sum, step);
    }
    if (tile_lane() == 0) {
        a.delta[row] = sum;
    }
}

/* Rows first .. first+ROWS-1 of the segment from a padded array; those from `end` on are zero. */
template <int ROWS, int THREADS, typename TILE>
static __device__ __forceinline__ void
attend_load_rows(const TILE &to, const void *from, const struct attend_shape *a,
                 const struct attend_rows *rows, int first, int end)
{
    using T = typename TILE::number;
    constexpr int D = TILE::width;
    constexpr int unit = tile_unit<T>();
    constexpr int units = D / unit;
#pragma unroll 4
    for (int i = (int)threadIdx.x; i < ROWS * units; i += THREADS) {
        const int row = i / units;
        const int column = i % units * unit;
        const bool exists = first + row < end;
        const int64_t index = exists ? attend_row_index(a, rows, first + row) : 0;
        copy_async16(tile_at(to, row, column), (const T *)from + index * D + column,
                     exists ? TILE_UNIT_BYTES : 0);
    }
}

/* --- queries --- */

template <typename T, int D, int WARPS> struct attend_query_room {
    static constexpr int keys = attend_keys<T>();
    static constexpr int rows_bytes = WARPS * TILE_ROWS * D * (int)sizeof(T); /* of q or dout */
    static constexpr int left_bytes = WARPS * tile_left_bytes<T, keys>();
    static constexpr int stage_bytes = 2 * keys * D * (int)sizeof(T);
    static constexpr int bytes = 2 * rows_bytes + left_bytes + attend_stages<T, D>() * stage_bytes;
};

/* A row of a lane's accumulators: what it sees, and what its weights are made of. */
struct attend_query {
    int64_t index; /* -1: no such row */
    int low, high;
    float lse, delta; /* lse times log2 e */
};

static __device__ __forceinline__ struct attend_query
attend_query_of(const struct attend_backward_shape &a, const struct attend_rows &rows, int row)
{
    if (row >= rows.count) {
        return {-1, 1, 0, 0.0f, 0.0f};
    }
    const int64_t index = attend_row_index(&a.shape, &rows, rows.first + row);
    const int position = rows.position + (rows.first + row) / a.shape.group;
    return {index, attend_first_key(a.shape.window, position), position,
            a.lse[index] * ATTEND_LOG2E, a.delta[index]};
}

/* s, the scores of a chunk from key `first` on, become ds. */
template <int N>
static __device__ __forceinline__ void attend_query_slopes(float (&s)[N][4], float (&dp)[N][4],
                                                           const struct attend_query (&query)[2],
                                                           int first, float scale)
{
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const struct attend_query *row = &query[e / 2];
            const int key = first + tile_column(n, e);
            const bool seen = key >= row->low && key <= row->high;
            const float weight = exp2f(__fmaf_rn(s[n][e], scale, -row->lse));
            s[n][e] = seen ? weight * (dp[n][e] - row->delta) : 0.0f;
        }
    }
}

/* dq of a block's rows: grid (blocks of rows, kv heads). */
template <typename T, int D, int WARPS>
static __global__ void __launch_bounds__(WARPS *TILE_WARP)
    attend_backward_queries(struct attend_backward_shape a)
{
    constexpr int keys = attend_keys<T>();
    constexpr int threads = WARPS * TILE_WARP;
    constexpr int stages = attend_stages<T, D>();
    using room = attend_query_room<T, D, WARPS>;
    CUDA_SHARED(char, shared);
    struct attend_rows rows;
    if (!attend_rows_find(&a.shape.segments, (int)(gridDim.x - 1 - blockIdx.x), a.shape.group,
                          WARPS * TILE_ROWS, &rows)) {
        return;
    }
    const int last = rows.position + (rows.first + rows.count - 1) / a.shape.group;
    const int low = attend_first_key(a.shape.window, rows.position + rows.first / a.shape.group);
    const attend_pages<T> pages =
        attend_pages_of<T>(&a.shape, rows.segment, rows.kv_head, low, last + 1);
    const tile<T, D> q = {(T *)shared};
    const tile<T, D> dout = {(T *)(shared + room::rows_bytes)};
    char *stage_room = shared + 2 * room::rows_bytes + room::left_bytes;
    tile_left<T, keys> left;
    tile_left_init<keys>(&left, shared + 2 * room::rows_bytes);
    const int begin = low / keys;
    const int end = last / keys + 1;
    const int row = tile_warp() * TILE_ROWS;
    attend_load_rows<WARPS * TILE_ROWS, threads>(q, a.q_t, &a.shape, &rows, rows.first, rows.total);
    attend_load_rows<WARPS * TILE_ROWS, threads>(dout, a.dout_t, &a.shape, &rows, rows.first,
                                                 rows.total);
    attend_load_chunk<T, D, keys, threads>(stage_room, pages, begin);
    const struct attend_query query[2] = {attend_query_of(a, rows, row + tile_row(0)),
                                          attend_query_of(a, rows, row + tile_row(2))};
    float dq[D / 8][4];
    tile_zero(dq);
    for (int chunk = begin; chunk < end; chunk++) {
        char *stage =
            attend_enter_chunk<T, D, threads, stages>(stage_room, pages, begin, chunk, end);
        const tile<T, keys> k = {(T *)stage};
        const tile<T, D> v = {(T *)(stage + room::stage_bytes / 2)};
        float s[keys / 8][4];
        float dp[keys / 8][4];
        tile_zero(s);
        tile_zero(dp);
        tile_multiply<D, false, true>(s, q, row, k, 0);
        tile_multiply<D, false, false>(dp, dout, row, v, 0);
        attend_query_slopes(s, dp, query, chunk * keys, a.shape.scale * ATTEND_LOG2E);
        tile_left_set<keys>(&left, s);
        tile_multiply_rows<false>(dq, left, k, 0);
        attend_leave_chunk<T, D, threads, stages>(stage_room, pages, chunk, end);
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int c = tile_column(n, e);
            if (query[e / 2].index >= 0 && c < a.shape.d) {
                a.dq[query[e / 2].index * a.shape.d + c] = dq[n][e] * a.shape.scale;
            }
        }
    }
}

/* --- keys and values --- */

template <typename T, int D, int WARPS> struct attend_key_room {
    static constexpr int keys = WARPS * TILE_ROWS;
    static constexpr int pages_bytes = keys * D * (int)sizeof(T); /* of k or v */
    static constexpr int left_bytes = WARPS * tile_left_bytes<T, ATTEND_QUERIES>();
    static constexpr int rows_bytes = ATTEND_QUERIES * D * (int)sizeof(T); /* of q or dout */
    static constexpr int facts_bytes = 4 * ATTEND_QUERIES * (int)sizeof(int);
    static constexpr int stage_bytes = 2 * rows_bytes + facts_bytes;
    static constexpr int bytes = 2 * pages_bytes + left_bytes + attend_stages<T, D>() * stage_bytes;
};

/* A stage's rows: q, dout, and for each lse times log2 e, delta and position (-1: no such row). */
template <typename T, int D> struct attend_queries {
    tile<T, D> q, dout;
    float *lse, *delta;
    int *position;
};

template <typename T, int D>
static __device__ __forceinline__ attend_queries<T, D> attend_queries_at(char *stage)
{
    float *facts = (float *)(stage + 2 * ATTEND_QUERIES * D * (int)sizeof(T));
    return {{(T *)stage},
            {(T *)stage + ATTEND_QUERIES * D},
            facts,
            facts + ATTEND_QUERIES,
            (int *)(facts + 2 * ATTEND_QUERIES)};
}

/* Start loading rows first, +1, ... below `end` of a segment. */
template <typename T, int D, int THREADS>
static __device__ __forceinline__ void
attend_load_stage(char *stage, const struct attend_backward_shape &a,
                  const struct attend_rows &rows, int first, int end)
{
    const attend_queries<T, D> to = attend_queries_at<T, D>(stage);
    attend_load_rows<ATTEND_QUERIES, THREADS>(to.q, a.q_t, &a.shape, &rows, first, end);
    attend_load_rows<ATTEND_QUERIES, THREADS>(to.dout, a.dout_t, &a.shape, &rows, first, end);
    copy_async_commit();
    if (threadIdx.x < ATTEND_QUERIES) {
        const int row = first + (int)threadIdx.x;
        const bool exists = row < end;
        const int64_t index = exists ? attend_row_index(&a.shape, &rows, row) : 0;
        to.lse[threadIdx.x] = exists ? a.lse[index] * ATTEND_LOG2E : 0.0f;
        to.delta[threadIdx.x] = exists ? a.delta[index] : 0.0f;
        to.position[threadIdx.x] = exists ? rows.position + row / a.shape.group : -1;
    }
}

/* s and dp, keys by rows, become weights and ds; `first` is the key of the warp's row 0. */
template <int N, typename QUERIES>
static __device__ __forceinline__ void attend_key_slopes(float (&s)[N][4], float (&dp)[N][4],
                                                         const QUERIES &queries, int first,
                                                         int window, float scale)
{
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int key = first + tile_row(e);
            const int column = tile_column(n, e);
            const int position = queries.position[column];
            const bool seen = key <= position && key >= attend_first_key(window, position);
            const float weight = exp2f(__fmaf_rn(s[n][e], scale, -queries.lse[column]));
            s[n][e] = seen ? weight : 0.0f;
            dp[n][e] = seen ? weight * (dp[n][e] - queries.delta[column]) : 0.0f;
        }
    }
}

/* dk and dv of the block's keys from the rows of `rows`' segment, which may be theirs or a
 * sharer's. Accumulators are in and out. */
template <typename T, int D, int WARPS>
static __device__ __forceinline__ void
attend_keys_from_rows(const struct attend_backward_shape &a, const struct attend_rows &rows,
                      int first_key, char *shared, float (&dk)[D / 8][4], float (&dv)[D / 8][4])
{
    constexpr int threads = WARPS * TILE_WARP;
    constexpr int stages = attend_stages<T, D>();
    using room = attend_key_room<T, D, WARPS>;
    const tile<T, room::keys> k = {(T *)shared};
    const tile<T, D> v = {(T *)(shared + room::pages_bytes)};
    tile_left<T, ATTEND_QUERIES> left;
    tile_left_init<ATTEND_QUERIES>(&left, shared + 2 * room::pages_bytes);
    char *stage_room = shared + 2 * room::pages_bytes + room::left_bytes;
    const int group = a.shape.group;
    const int begin = max(first_key - rows.position, 0) * group;
    const int seen_last = first_key + room::keys - 1 + a.shape.window - 1 - rows.position;
    const int end =
        a.shape.window > 0 ? min((max(seen_last, -1) + 1) * group, rows.total) : rows.total;
    const int warp_row = tile_warp() * TILE_ROWS;
    if (begin < end) {
        attend_load_stage<T, D, threads>(stage_room, a, rows, begin, end);
    }
    for (int first = begin; first < end; first += ATTEND_QUERIES) {
        const int step = (first - begin) / ATTEND_QUERIES;
        char *stage = stage_room + step % stages * room::stage_bytes;
        const int next = first + ATTEND_QUERIES;
        if (stages > 1 && next < end) {
            attend_load_stage<T, D, threads>(stage_room + (step + 1) % stages * room::stage_bytes,
                                             a, rows, next, end);
            copy_async_wait<1>();
        } else {
            copy_async_wait<0>();
        }
        __syncthreads();
        const attend_queries<T, D> queries = attend_queries_at<T, D>(stage);
        float s[ATTEND_QUERIES / 8][4];
        float dp[ATTEND_QUERIES / 8][4];
        tile_zero(s);
        tile_zero(dp);
        tile_multiply<D, true, false>(s, k, warp_row, queries.q, 0);
        tile_multiply<D, false, false>(dp, v, warp_row, queries.dout, 0);
        attend_key_slopes(s, dp, queries, first_key + warp_row, a.shape.window,
                          a.shape.scale * ATTEND_LOG2E);
        tile_left_set<ATTEND_QUERIES>(&left, s);
        tile_multiply_rows<true>(dv, left, queries.dout, 0);
        tile_left_set<ATTEND_QUERIES>(&left, dp);
        tile_multiply_rows<true>(dk, left, queries.q, 0);
        __syncthreads(); /* the stage is free */
        if (stages == 1 && next < end) {
            attend_load_stage<T, D, threads>(stage_room, a, rows, next, end);
        }
    }
}

/* A block's keys, grid (blocks of keys, kv heads, sharers). Without `shares`: their own segment's
 * rows, to dk and dv; with it: the rows of that sharer of theirs, if there is one, to its share. */
template <typename T, int D, int WARPS>
static __global__ void __launch_bounds__(WARPS *TILE_WARP)
    attend_backward_keys(struct attend_backward_shape a)
{
    constexpr int threads = WARPS * TILE_WARP;
    using room = attend_key_room<T, D, WARPS>;
    CUDA_SHARED(char, shared);
    const struct cuda_segments *g = &a.shape.segments;
    struct attend_rows own; /* keys: a row each */
    if (!attend_rows_find(g, (int)blockIdx.x, 1, room::keys, &own)) {
        return;
    }
    const bool shared_out = a.shares != NULL;
    const int from = shared_out ? own.segment + 1 + a.share_first + (int)blockIdx.z : own.segment;
    if (shared_out && (from >= g->count || g->prefix[from] != own.segment)) {
        return;
    }
    struct attend_rows rows = own;
    rows.segment = from;
    rows.token = g->segment_start[from];
    rows.position = g->first_position[from];
    rows.total = (g->segment_start[from + 1] - rows.token) * a.shape.group;
    const int first_key = own.position + own.first;
    const attend_pages<T> pages =
        attend_pages_of<T>(&a.shape, own.segment, own.kv_head, first_key, first_key + own.count);
    attend_load_keys<T, D, room::keys, threads>({(T *)shared}, pages, first_key);
    attend_load_values<T, D, room::keys, threads>({(T *)(shared + room::pages_bytes)}, pages,
                                                  first_key);
    copy_async_commit();
    float dk[D / 8][4];
    float dv[D / 8][4];
    tile_zero(dk);
    tile_zero(dv);
    attend_keys_from_rows<T, D, WARPS>(a, rows, first_key, shared, dk, dv);
    copy_async_wait<0>();
    const int64_t width = (int64_t)a.shape.kv_heads * a.shape.d;
    const int64_t numbers = g->tokens * width;
    float *to_k = shared_out ? a.shares + (int64_t)blockIdx.z * 2 * numbers : a.dk;
    float *to_v = shared_out ? to_k + numbers : a.dv;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int key = tile_warp() * TILE_ROWS + tile_row(e);
            const int c = tile_column(n, e);
            if (key < own.count && c < a.shape.d) {
                const int64_t to =
                    (own.token + own.first + key) * width + own.kv_head * a.shape.d + c;
                to_k[to] = dk[n][e] * a.shape.scale;
                to_v[to] = dv[n][e];
            }
        }
    }
}

/* A thread for each number of dk and dv: what `count` sharers of its prefix gave, in order. */
static __global__ void attend_add_shares(struct attend_backward_shape a, int count)
{
    const struct cuda_segments *g = &a.shape.segments;
    const int64_t width = (int64_t)a.shape.kv_heads * a.shape.d;
    const int64_t numbers = g->tokens * width;
    const int64_t i = cuda_thread();
    if (i >= numbers) {
        return;
    }
    const int segment = g->segment_of_token[i / width];
    float dk = a.dk[i];
    float dv = a.dv[i];
    for (int j = 0; j < count; j++) {
        const int sharer = segment + 1 + a.share_first + j;
        if (sharer >= g->count || g->prefix[sharer] != segment) {
            break;
        }
        dk += a.shares[2 * j * numbers + i];
        dv += a.shares[(2 * j + 1) * numbers + i];
    }
    a.dk[i] = dk;
    a.dv[i] = dv;
}

/* --- launching --- */

/* The most segments that share one prefix. */
static int attend_sharers(const struct kernel_segments *g)
{
    int most = 0;
    int run = 0;
    for (int64_t s = 0; g->prefix != NULL && s < g->count; s++) {
        run = g->prefix[s] >= 0 ? run + 1 : 0;
        most = run > most ? run : most;
    }
    return most;
}

/* What sharers give to their prefixes, as many sharers at a time as scratch has room for. */
template <typename T, int D>
static void attend_launch_shares(struct attend_backward_shape shape,
                                 const struct kernel_segments *segments, dim3 grid,
                                 struct cuda_stream *stream)
{
    constexpr int warps = attend_warps<T, D>();
    const int sharers = attend_sharers(segments);
    const int64_t numbers =
        (int64_t)segments->segment_start[segments->count] * shape.shape.kv_heads * shape.shape.d;
    if (sharers == 0 || numbers == 0) {
        return;
    }
    const int64_t share_bytes = 2 * numbers * (int64_t)sizeof(float);
    const int64_t room = max(ATTEND_SHARES_BYTES / share_bytes, (int64_t)1);
    const int at_once = (int)min(room, (int64_t)sharers);
    shape.shares = (float *)cuda_scratch(stream, (size_t)(at_once * share_bytes));
    for (int first = 0; first < sharers; first += at_once) {
        const int count = sharers - first < at_once ? sharers - first : at_once;
        auto kernel = attend_backward_keys<T, D, warps>;
        shape.share_first = first;
        grid.z = (unsigned)count;
        CUDA_LAUNCH(kernel, grid, dim3(warps * TILE_WARP), (attend_key_room<T, D, warps>::bytes),
                    stream, shape);
        CUDA_LAUNCH(attend_add_shares, cuda_blocks(numbers, ATTEND_ADD_THREADS),
                    dim3(ATTEND_ADD_THREADS), 0, stream, shape, count);
    }
}

template <typename T, int D>
static void attend_launch_backward(struct attend_backward_shape shape,
                                   const struct kernel_segments *segments,
                                   struct cuda_stream *stream)
{
    constexpr int warps = attend_warps<T, D>();
    const unsigned kv_heads = (unsigned)shape.shape.kv_heads;
    const int64_t rows = (int64_t)segments->segment_start[segments->count] * shape.shape.heads;
    shape.delta = (float *)cuda_scratch(stream, (size_t)rows * sizeof(float));
    shape.q_t = cuda_scratch(stream, (size_t)rows * D * sizeof(T));
    shape.dout_t = cuda_scratch(stream, (size_t)rows * D * sizeof(T));
    auto prepare = attend_prepare_rows<T, D>;
    CUDA_LAUNCH(prepare, cuda_blocks(rows, ATTEND_PREPARE_ROWS),
                dim3(ATTEND_PREPARE_ROWS * TILE_WARP), 0, stream, shape, rows);
    const unsigned row_blocks = attend_block_count(segments, shape.shape.group, warps * TILE_ROWS);
    auto queries = attend_backward_queries<T, D, warps>;
    CUDA_LAUNCH(queries, dim3(row_blocks, kv_heads), dim3(warps * TILE_WARP),
                (attend_query_room<T, D, warps>::bytes), stream, shape);
    const dim3 key_blocks(attend_block_count(segments, 1, attend_key_room<T, D, warps>::keys),
                          kv_heads);
    auto keys = attend_backward_keys<T, D, warps>;
    CUDA_LAUNCH(keys, key_blocks, dim3(warps * TILE_WARP), (attend_key_room<T, D, warps>::bytes),
                stream, shape);
    attend_launch_shares<T, D>(shape, segments, key_blocks, stream);
}

extern "C" void attention_backward_cuda(const struct kernel_attention_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "attention_backward");
    const struct cuda_segments segments = cuda_segments(stream, a->segments);
    const struct attend_backward_shape shape = {attend_shape_of(a, &segments),
                                                a->q,
                                                a->out,
                                                a->lse,
                                                a->dout,
                                                a->dq,
                                                a->dk,
                                                a->dv,
                                                NULL,
                                                NULL,
                                                NULL,
                                                NULL,
                                                0};
    attend_for_width(a->d, [&](auto width) {
        constexpr int d = decltype(width)::value;
        if (a->dtype == KERNEL_BF16) {
            attend_launch_backward<uint16_t, d>(shape, a->segments, stream);
        } else {
            attend_launch_backward<float, d>(shape, a->segments, stream);
        }
    });
    cuda_op_end(stream);
}
