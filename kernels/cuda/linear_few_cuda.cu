/* Linear maps of few rows. What bounds them is how fast weights arrive, so a block keeps many
 * stages of them in flight: asynchronous copies into a ring in shared memory, of weights as they
 * are and of x in fp32, which each warp rounds as it reads its fragments. Weights are the left
 * operand (16 outputs a tile), rows of x the columns of the right one. Sums cannot be split over k,
 * so blocks are narrow where N is small, and the segments of a long depth are summed up side by
 * side by warps of one block. */
#include "kernels/cuda/linear_few_cuda.h"

#include "kernels/cuda/float_cuda.h"
#include "kernels/cuda/tile_cuda.h"

enum {
    STEP = 64,       /* of k: a part of a stage, 128 bytes of a weight's row */
    X_LD = STEP + 8, /* floats: eight rows' pairs lie in different banks */
    COLUMNS = 8,     /* rows of x in one product */
    WARPS_MAX = 8,   /* of a block that multiply, and as many that load */
    LOADERS_LEAST = 4,
    WIDE_LOG_MAX = 2,        /* of warps beside one another along N */
    RUN_MAX = 4,             /* parts of a segment in a stage */
    BLOCK_ROOM = 112 * 1024, /* bytes that leave room for a second block */
    BLOCKS_MAX = 8,          /* on a multiprocessor */
    BLOCK_RESERVED = 1024    /* bytes that CUDA keeps of shared memory for each block */
};

/* A warp's tile: 16 MT outputs by 8 T rows. */
template <int T, int MT> struct few_shape {
    static constexpr int stages = T == 1 ? 8 : 4;
    static constexpr int rows = T * COLUMNS;
    static constexpr int outputs = MT * TILE_ROWS;
    static constexpr int sums = MT * T * 4; /* of a lane */
};

/* How the work is laid out. An item is a tile of `wide` warps' outputs by up to `rows` rows; its
 * depth is taken in `chunks` stages, each of `run` parts from each of `segments` segments. */
struct few_job {
    struct few_args a;
    int first_tile[KERNEL_SET_MAPS]; /* of each map */
    int items, groups /* of rows */, chunks;
    int wide, wide_log, segments, run; /* wide: 1 << wide_log */
    int workers;                       /* warps that multiply: wide * segments; the others load */
    int part_bytes, stage_bytes;       /* in the ring */
};

/* What an item is about. */
struct few_place {
    struct few_map map;
    int64_t output, row; /* the first of it */
};

template <int T, int MT>
static __device__ __forceinline__ few_place place_of(const struct few_job &job, int item)
{
    using shape = few_shape<T, MT>;
    const int tile = item / job.groups;
    struct few_place place;
    int first = 0;
    place.map = job.a.maps[0];
#pragma unroll
    for (int i = 1; i < KERNEL_SET_MAPS; i++) { /* registers have no index */
        if (i < job.a.count && tile >= job.first_tile[i]) {
            place.map = job.a.maps[i];
            first = job.first_tile[i];
        }
    }
    place.output = (int64_t)(tile - first) * job.wide * shape::outputs;
    place.row = (int64_t)(item % job.groups) * shape::rows;
    return place;
}

/* Start copying k0 .. k0 + left - 1 (left <= 0: none) of an item's weights and rows to `part`; what
 * lies beyond k or the last output becomes zero. Rows beyond the last stay as they are: what is
 * made of them goes nowhere. */
template <int T, int MT>
static __device__ __forceinline__ void part_load(const struct few_job &job,
                                                 const struct few_place &place, int64_t k0,
                                                 int left, char *part)
{
    using shape = few_shape<T, MT>;
    constexpr unsigned units = STEP * sizeof(uint16_t) / TILE_UNIT_BYTES;
    const unsigned threads = blockDim.x - (unsigned)(job.workers * TILE_WARP);
    const unsigned thread = threadIdx.x - (unsigned)(job.workers * TILE_WARP);
    const unsigned outputs = (unsigned)(job.wide * shape::outputs);
    const unsigned real = (unsigned)min((int64_t)outputs, place.map.n - place.output);
    const uint32_t ld = (uint32_t)job.a.k;
    const uint32_t x_ld = (uint32_t)job.a.x_stride;
    const uint16_t *w = (const uint16_t *)place.map.w + place.output * job.a.k + k0;
    const tile<uint16_t, STEP> to = {(uint16_t *)part};
#pragma unroll 4
    for (unsigned u = thread; u < outputs * units; u += threads) {
        const unsigned row = u / units;
        const unsigned k = u % units * RUN;
        const bool there = row < real && (int)k < left;
        copy_async16(tile_at(to, (int)row, (int)k),
                     there ? w + (uint64_t)row * ld + k : (const uint16_t *)place.map.w,
                     there ? TILE_UNIT_BYTES : 0);
    }
    float *x_to = (float *)(part + outputs * STEP * sizeof(uint16_t));
    const float *x = job.a.x + place.row * job.a.x_stride + k0;
    const unsigned rows = (unsigned)min((int64_t)shape::rows, job.a.m - place.row);
#pragma unroll 4
    for (unsigned u = thread; u < rows * (2 * units); u += threads) {
        const unsigned row = u / (2 * units);
        const unsigned k = u % (2 * units) * 4;
        const bool there = (int)k < left;
        copy_async16(x_to + row * X_LD + k, there ? x + (uint64_t)row * x_ld + k : job.a.x,
                     there ? TILE_UNIT_BYTES : 0);
    }
}

/* All parts of one stage. */
template <int T, int MT>
static __device__ __forceinline__ void
stage_load(const struct few_job &job, const struct few_place &place, int chunk, char *stage)
{
    for (int s = 0; s < job.segments; s++) {
        for (int c = 0; c < job.run; c++) {
            const int64_t within = (int64_t)(chunk * job.run + c) * STEP;
            const int64_t k0 = s * job.a.segment + within;
            const int64_t left = min(job.a.segment - within, job.a.k - k0);
            part_load<T, MT>(job, place, k0, (int)min(left, (int64_t)STEP), stage);
            stage += job.part_bytes;
        }
    }
}

/* One part: acc += weights times rows. */
template <int T, int MT>
static __device__ __forceinline__ void part_multiply(float (&acc)[MT][T][4], char *part, int wide,
                                                     int warp)
{
    using shape = few_shape<T, MT>;
    const int lane = tile_lane();
    const tile<uint16_t, STEP> w = {(uint16_t *)part};
    const float *x = (const float *)(part + wide * shape::outputs * STEP * (int)sizeof(uint16_t)) +
                     lane / 4 * X_LD + lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < STEP; k += 16) {
        uint32_t left[MT][4];
#pragma unroll
        for (int i = 0; i < MT; i++) {
            tile_load_left<false>(left[i], w, warp * shape::outputs + i * TILE_ROWS, k);
        }
#pragma unroll
        for (int t = 0; t < T; t++) {
            const float2 low = *(const float2 *)(x + t * COLUMNS * X_LD + k);
            const float2 high = *(const float2 *)(x + t * COLUMNS * X_LD + k + 8);
            const uint32_t right[2] = {mma_bf16_pair(low.x, low.y), mma_bf16_pair(high.x, high.y)};
#pragma unroll
            for (int i = 0; i < MT; i++) {
                mma_m16n8k16_bf16(acc[i][t], left[i], right);
            }
        }
    }
}

/* A lane's sums of all segments but the first, handed over in shared memory: room [segment - 1]
 * [wide][sums][lane]. */
template <int T, int MT>
static __device__ __forceinline__ float *others_of(float *room, const struct few_job &job,
                                                   int segment, int warp)
{
    return room + ((segment - 1) * job.wide + warp) * few_shape<T, MT>::sums * TILE_WARP +
           tile_lane();
}

/* Write an item's y: by the first segment's warps, with what the others hand over. All threads of
 * the block. */
template <int T, int MT>
static __device__ __forceinline__ void item_finish(const struct few_job &job,
                                                   const struct few_place &place,
                                                   const float (&acc)[MT][T][4], float *room)
{
    using shape = few_shape<T, MT>;
    const int warp = tile_warp() & (job.wide - 1);
    const int segment = tile_warp() >> job.wide_log;
    if (job.segments > 1) {
        if (segment > 0 && segment < job.segments) {
            float *mine = others_of<T, MT>(room, job, segment, warp);
#pragma unroll
            for (int i = 0; i < shape::sums; i++) {
                mine[i * TILE_WARP] = acc[i / (T * 4)][i / 4 % T][i % 4];
            }
        }
        __syncthreads(); /* they are read before the next stage's barrier, and written after it */
    }
    if (segment > 0) {
        return;
    }
#pragma unroll
    for (int i = 0; i < shape::sums; i++) {
        const int tile = i / (T * 4);
        const int64_t output =
            place.output + warp * shape::outputs + tile * TILE_ROWS + tile_row(i % 4);
        const int64_t row = place.row + tile_column(i / 4 % T, i % 4);
        if (output < place.map.n && row < job.a.m) {
            float *y = &place.map.y[row * place.map.y_stride + output];
            float sum = acc[tile][i / 4 % T][i % 4];
            sum += place.map.accumulate ? *y : 0.0f;
#pragma unroll 1
            for (int s = 1; s < job.segments; s++) {
                sum += others_of<T, MT>(room, job, s, warp)[i * TILE_WARP];
            }
            *y = place.map.bias != NULL ? sum + place.map.bias[output] : sum;
        }
    }
}

/* What the loading warps do for stage i of the block: chunk i % chunks of item number i / chunks.
 */
template <int T, int MT> struct few_loader {
    struct few_place place;
    int item, chunk;

    __device__ __forceinline__ void step(const struct few_job &job, char *stage)
    {
        if (chunk == 0) {
            place = place_of<T, MT>(job, item);
        }
        stage_load<T, MT>(job, place, chunk, stage);
        if (++chunk == job.chunks) {
            chunk = 0;
            item += (int)gridDim.x;
        }
    }
};

/* A worker's share of a stage: the parts of its segment, for its outputs. */
template <int T, int MT>
static __device__ __forceinline__ void stage_multiply(const struct few_job &job,
                                                      float (&acc)[MT][T][4], char *stage)
{
    char *part = stage + (tile_warp() >> job.wide_log) * job.run * job.part_bytes;
    for (int c = 0; c < job.run; c++) {
        part_multiply<T, MT>(acc, part, job.wide, tile_warp() & (job.wide - 1));
        part += job.part_bytes;
    }
}

/* Items blockIdx.x, blockIdx.x + gridDim.x, ... one after the other, without a gap in the stream of
 * weights: the loading warps are all stages of the ring but one ahead of the others. */
template <int T, int MT>
static __global__ void __launch_bounds__(2 * WARPS_MAX * TILE_WARP) few_kernel(struct few_job job)
{
    constexpr int count = few_shape<T, MT>::stages;
    CUDA_SHARED(char, ring);
    const int bytes = job.stage_bytes;
    const int stages = ((job.items - 1 - (int)blockIdx.x) / (int)gridDim.x + 1) * job.chunks;
    const bool loads = tile_warp() >= job.workers;
    few_loader<T, MT> loader;
    loader.item = (int)blockIdx.x;
    loader.chunk = 0;
    int item = (int)blockIdx.x;
    int chunk = 0;
    float acc[MT][T][4] = {};
    for (int now = 1 - count; now < stages; now++) {
        const int next = now + count - 1;
        if (now >= 0) {
            copy_async_wait<count - 2>();
            __syncthreads(); /* stage `now` is there, and all have read the one before it */
        }
        if (loads && next < stages) {
            loader.step(job, ring + next % count * bytes);
        }
        copy_async_commit();
        if (!loads && now >= 0) {
            stage_multiply<T, MT>(job, acc, ring + now % count * bytes);
        }
        if (now >= 0 && ++chunk == job.chunks) {
            item_finish<T, MT>(job, place_of<T, MT>(job, item), acc,
                               (float *)(ring + count * bytes));
            chunk = 0;
            item += (int)gridDim.x;
#pragma unroll
            for (int i = 0; i < few_shape<T, MT>::sums; i++) {
                acc[i / (T * 4)][i / 4 % T][i % 4] = 0.0f;
            }
        }
    }
}

/* What this device has for a block and a multiprocessor. */
struct few_room {
    int processors, block_bytes, processor_bytes;
};

static bool few_room_of(struct cuda_stream *stream, struct few_room *out)
{
    int device = 0;
    out->processors = cuda_multiprocessors(stream);
    return cuda_check(stream, cudaGetDevice(&device), "device") &&
           cuda_check(stream,
                      cudaDeviceGetAttribute(&out->block_bytes,
                                             cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
                      "shared memory of a block") &&
           cuda_check(stream,
                      cudaDeviceGetAttribute(&out->processor_bytes,
                                             cudaDevAttrMaxSharedMemoryPerMultiprocessor, device),
                      "shared memory of a multiprocessor");
}

/* Items if 1 << wide_log warps stand beside one another; fills the tiles. */
static int few_items(struct few_job *job, int outputs)
{
    int64_t tiles = 0;
    job->wide = 1 << job->wide_log;
    const int64_t tile = (int64_t)outputs * job->wide;
    for (int i = 0; i < job->a.count; i++) {
        job->first_tile[i] = (int)tiles;
        tiles += (job->a.maps[i].n + tile - 1) / tile;
    }
    return (int)(tiles * job->groups);
}

/* Bytes of shared memory; fills those of parts and stages. */
template <int T, int MT> static size_t few_bytes(struct few_job *job)
{
    using shape = few_shape<T, MT>;
    job->part_bytes = job->wide * shape::outputs * STEP * (int)sizeof(uint16_t) +
                      shape::rows * X_LD * (int)sizeof(float);
    job->stage_bytes = job->part_bytes * job->segments * job->run;
    const int sums = (job->segments - 1) * job->wide * shape::sums * TILE_WARP;
    return (size_t)(shape::stages * job->stage_bytes) + (size_t)sums * sizeof(float);
}

/* As wide as leaves an item for each multiprocessor; as many parts in a stage as leave room for a
 * second block. */
template <int T, int MT>
static size_t few_plan(const struct few_args *args, int processors, struct few_job *job)
{
    using shape = few_shape<T, MT>;
    job->a = *args;
    job->groups = (int)((args->m + shape::rows - 1) / shape::rows);
    job->segments = (int)((args->k + args->segment - 1) / args->segment);
    job->wide_log = WIDE_LOG_MAX;
    while (job->wide_log > 0 && (job->segments << job->wide_log > WARPS_MAX ||
                                 few_items(job, shape::outputs) < processors)) {
        job->wide_log--;
    }
    job->items = few_items(job, shape::outputs);
    job->workers = job->wide * job->segments;
    const int64_t depth = min(args->k, args->segment);
    job->run = RUN_MAX;
    while (job->run > 1 && (job->run * STEP > depth || few_bytes<T, MT>(job) > BLOCK_ROOM)) {
        job->run /= 2;
    }
    job->chunks = (int)((depth + job->run * STEP - 1) / (job->run * STEP));
    return few_bytes<T, MT>(job);
}

template <int T, int MT>
static bool few_launch(struct cuda_stream *stream, const struct few_args *args)
{
    struct few_room room;
    struct few_job job = {};
    if (!few_room_of(stream, &room)) {
        return false;
    }
    const size_t bytes = few_plan<T, MT>(args, room.processors, &job);
    if (bytes > (size_t)room.block_bytes) {
        return false;
    }
    const int fit = (int)((size_t)room.processor_bytes / (bytes + BLOCK_RESERVED));
    const int most = room.processors * max(1, min(fit, (int)BLOCKS_MAX));
    const int rounds = (job.items + most - 1) / most;
    const int blocks = rounds > 0 ? (job.items + rounds - 1) / rounds : 0;
    const int warps = job.workers + max(job.workers, (int)LOADERS_LEAST);
    CUDA_LAUNCH((few_kernel<T, MT>), dim3((unsigned)blocks), dim3((unsigned)(warps * TILE_WARP)),
                bytes, stream, job);
    return true;
}

bool few_run(struct cuda_stream *stream, const struct few_args *args)
{
    if (args->m <= COLUMNS) {
        return few_launch<1, 1>(stream, args);
    }
    return args->m <= 2 * COLUMNS ? few_launch<2, 1>(stream, args) : few_launch<4, 2>(stream, args);
}
