/* Top-k, top-p and min-p, and the draw from what they leave, as kernels/sampling.h says. The kept
 * set is described by its least member: its probability, which is found by the upper digits of the
 * probabilities' bits (those of numbers that are not negative are in the numbers' order), and how
 * many ids are in it at that probability, the lowest first.
 *
 * A row is shared out to as many blocks as fill the device. Invariant (P1): that changes no bit,
 * since masses are whole numbers, in units of 2^-MASS_BITS of the largest probability: their sums
 * are exact. */
#include "kernels/cuda/head_draw_cuda.h"

enum {
    CUT_THREADS = 256,
    CUT_WARPS = CUT_THREADS / WARP,
    CUT_LEVELS = 3,
    CUT_BINS = 2048,    /* of the first level, which has the most */
    CUT_ROW_BLOCKS = 4, /* for each multiprocessor, if there are ids for them */
    CUT_IDS = 4,        /* that a thread takes at a time */
    MASS_BITS = 42,     /* with 22 more, the sum of 4 million of the largest fits 64 */
    PIECE_BITS = 14,    /* of a mass in shared memory, which adds 32 bits at a time */
    PIECES = MASS_BITS / PIECE_BITS,
    SLICE_CHUNKS = 128, /* of a block at most: so that pieces do not overflow */
    PART_IDS = KERNEL_HEAD_CHUNK / KERNEL_DECODE_PARTS
};

static_assert((int)CUT_WARPS == (int)KERNEL_DECODE_PARTS,
              "a block measures a chunk, a warp each part");
static_assert((int)PART_IDS == (int)WARP * CUT_IDS, "in one step");
static_assert(MASS_BITS + 1 - 2 * PIECE_BITS + 17 <= 32, "SLICE_CHUNKS chunks of the largest fit");

typedef unsigned long long cut_mass;

/* What a search goes by. */
enum cut_by { CUT_NOTHING, CUT_COUNT, CUT_MASS };

/* A row's search: the set of probabilities above `bits`, and `wanted` ids of that one. */
struct cut_state {
    cut_mass all;   /* of the row */
    cut_mass total; /* of the set, when it has been found */
    cut_mass need, above;
    unsigned need_count, above_count;
    unsigned bits; /* upper digits so far */
    unsigned wanted;
};

struct cut_job {
    struct head_decode_job decode;
    struct cut_state *states; /* [m] */
    cut_mass *masses[2];      /* [m, CUT_BINS] of the first level, of the others */
    unsigned *counts[2];      /* the same */
    cut_mass *part_mass;      /* [m, chunks, PARTS] of probabilities above the cut */
    unsigned *part_ties;      /* [m, chunks, PARTS] ids at the cut */
    int64_t slice;            /* chunks of a block */
    float floor;              /* min-p */
};

/* --- numbers --- */

/* Digits of a probability's 30 bits: 11, 10 and 9 of them. */
static __host__ __device__ __forceinline__ int cut_shift(int level)
{
    return level == 0 ? 19 : level == 1 ? 9 : 0;
}

static __host__ __device__ __forceinline__ int cut_digit_bits(int level)
{
    return 11 - level;
}

static __device__ __forceinline__ float cut_probability(const struct cut_job *job, float max,
                                                        float logit)
{
    return expf(logit * job->decode.inv_temperature - max);
}

static __device__ __forceinline__ cut_mass cut_mass_of(float p)
{
    return (cut_mass)(p * (float)((cut_mass)1 << MASS_BITS));
}

/* Are ids drawn for this row at all? */
static __device__ __forceinline__ bool cut_wanted(const struct cut_job *job, int64_t row)
{
    const struct head_decode_job *d = &job->decode;
    return isfinite(d->rows[row].max) && isfinite(d->rows[row].sum) &&
           (d->forced == NULL || d->forced[row] < 0);
}

/* Sum of the values of all threads before this one; *total: of all. `room` [CUT_WARPS] is shared
 * and free after the next __syncthreads. All threads of the block. */
template <typename T> static __device__ T block_scan(T value, T *room, T *total)
{
    const int lane = (int)threadIdx.x % WARP;
    const int warp = (int)threadIdx.x / WARP;
    T end = value;
    for (int step = 1; step < WARP; step *= 2) {
        const T other = __shfl_up_sync(WARP_ALL, end, step);
        end += lane >= step ? other : 0;
    }
    if (lane == WARP - 1) {
        room[warp] = end;
    }
    __syncthreads();
    T before = end - value;
    *total = 0;
    for (int i = 0; i < CUT_WARPS; i++) {
        before += i < warp ? room[i] : 0;
        *total += room[i];
    }
    return before;
}

/* The logits of ids first .. first + CUT_IDS - 1; beyond the last: of no mass. */
static __device__ __forceinline__ void load_logits(const struct cut_job *job, int64_t row,
                                                   int64_t first, float value[CUT_IDS])
{
    float4 four = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    if (first < job->decode.v) {
        four = *(const float4 *)(job->decode.z + row * job->decode.stride + first);
    }
    value[0] = four.x;
    value[1] = four.y;
    value[2] = four.z;
    value[3] = four.w;
}

/* --- counting --- */

/* Members and masses by the digit of `level` of those whose upper digits have been found: grid
 * (rows, slices). */
static __global__ void __launch_bounds__(CUT_THREADS) count_kernel(struct cut_job job, int level)
{
    __shared__ unsigned counts[CUT_BINS];
    __shared__ unsigned pieces[PIECES][CUT_BINS];
    const int64_t row = blockIdx.x;
    const int bins = 1 << cut_digit_bits(level);
    const int shift = cut_shift(level);
    if (!cut_wanted(&job, row)) {
        return;
    }
    for (int i = (int)threadIdx.x; i < bins; i += CUT_THREADS) {
        counts[i] = 0;
        for (int j = 0; j < PIECES; j++) {
            pieces[j][i] = 0;
        }
    }
    const float max = job.decode.rows[row].max;
    const unsigned found = level > 0 ? job.states[row].bits : 0;
    const int64_t start = blockIdx.y * job.slice * KERNEL_HEAD_CHUNK;
    const int64_t end = min(start + job.slice * KERNEL_HEAD_CHUNK, job.decode.v);
    __syncthreads();
    for (int64_t at = start + threadIdx.x * CUT_IDS; at < end; at += CUT_THREADS * CUT_IDS) {
        float value[CUT_IDS];
        load_logits(&job, row, at, value);
        for (int i = 0; i < CUT_IDS && at + i < end; i++) {
            const float p = cut_probability(&job, max, value[i]);
            const unsigned digits = __float_as_uint(p) >> shift;
            if (digits >> cut_digit_bits(level) == found) {
                const unsigned bin = digits & (unsigned)(bins - 1);
                cut_mass mass = cut_mass_of(p);
                atomicAdd(&counts[bin], 1U);
                for (int j = 0; mass > 0; j++) { /* the last piece has one bit more */
                    const cut_mass piece =
                        j + 1 < PIECES ? (mass & ((1U << PIECE_BITS) - 1)) : mass;
                    atomicAdd(&pieces[j][bin], (unsigned)piece);
                    mass = j + 1 < PIECES ? mass >> PIECE_BITS : 0;
                }
            }
        }
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < bins; i += CUT_THREADS) {
        if (counts[i] > 0) {
            const int64_t to = row * CUT_BINS + i;
            cut_mass mass = 0;
            for (int j = PIECES - 1; j >= 0; j--) {
                mass = (mass << PIECE_BITS) + pieces[j][i];
            }
            atomicAdd(&job.counts[level > 0][to], counts[i]);
            atomicAdd(&job.masses[level > 0][to], mass);
        }
    }
}

/* --- choosing --- */

/* What a search looks for: of the row's mass, or of what the search before it has left. */
static __device__ void search_begin(const struct cut_job *job, struct cut_state *state,
                                    enum cut_by by, bool again, cut_mass all)
{
    const struct kernel_sampling *sampling = &job->decode.sampling;
    const cut_mass of = again ? state->total : all;
    const double share = ceil((double)sampling->top_p * (double)of);
    state->all = again ? state->all : all;
    state->above = 0;
    state->above_count = 0;
    state->bits = 0;
    state->wanted = 0;
    state->need_count = (unsigned)sampling->top_k;
    state->need = min(max((cut_mass)max(share, 1.0), (cut_mass)1), of);
    if (by == CUT_NOTHING) {
        state->wanted = 0xffffffffu; /* all of those that are 0, and all others lie above */
    }
}

/* The ids at the probability that has been found, which is the last one of the set. */
static __device__ void search_end(struct cut_state *state, enum cut_by by)
{
    const cut_mass each = cut_mass_of(__uint_as_float(state->bits));
    state->wanted = state->need_count - state->above_count;
    if (by == CUT_MASS) {
        state->wanted = (unsigned)((state->need - state->above + each - 1) / each);
    }
    state->total = state->above + state->wanted * each;
}

/* The next digit of a row's search, a block each: the largest with which what is sought is reached.
 * `again`: a search was made before. Bins of other levels than the first are empty afterwards. */
static __global__ void __launch_bounds__(CUT_THREADS)
    choose_kernel(struct cut_job job, int level, enum cut_by by, bool again)
{
    __shared__ cut_mass mass_room[CUT_WARPS];
    __shared__ unsigned count_room[CUT_WARPS];
    __shared__ struct cut_state state;
    const int64_t row = blockIdx.x;
    const int each = (1 << cut_digit_bits(level)) / CUT_THREADS;
    const int top = ((int)CUT_THREADS - (int)threadIdx.x) * each - 1; /* this thread's, downwards */
    cut_mass *masses = job.masses[level > 0] + row * CUT_BINS;
    unsigned *counts = job.counts[level > 0] + row * CUT_BINS;
    if (!cut_wanted(&job, row)) {
        return;
    }
    cut_mass mass = 0;
    unsigned count = 0;
    for (int bin = top; bin > top - each; bin--) {
        mass += masses[bin];
        count += counts[bin];
    }
    cut_mass all;
    unsigned members;
    cut_mass above = block_scan(mass, mass_room, &all);
    unsigned above_count = block_scan(count, count_room, &members);
    if (threadIdx.x == 0) {
        state = job.states[row];
        if (level == 0) {
            search_begin(&job, &state, by, again, all);
        }
    }
    __syncthreads();
    above += state.above;
    above_count += state.above_count;
    const bool here =
        by == CUT_MASS ? above < state.need && state.need <= above + mass
                       : above_count < state.need_count && state.need_count <= above_count + count;
    __syncthreads();                 /* all have read the state */
    if (by != CUT_NOTHING && here) { /* one thread */
        int bin = top;
        while (by == CUT_MASS ? above + masses[bin] < state.need
                              : above_count + counts[bin] < state.need_count) {
            above += masses[bin];
            above_count += counts[bin];
            bin--;
        }
        state.above = above;
        state.above_count = above_count;
        state.bits = state.bits << cut_digit_bits(level) | (unsigned)bin;
        if (level == CUT_LEVELS - 1) {
            search_end(&state, by);
        }
    }
    for (int bin = top; level > 0 && bin > top - each; bin--) {
        masses[bin] = 0;
        counts[bin] = 0;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        job.states[row] = state;
    }
}

/* --- drawing --- */

/* Mass above the cut, and ids at it, of each part: grid (rows, chunks), a warp for each part. */
static __global__ void __launch_bounds__(CUT_THREADS) measure_kernel(struct cut_job job)
{
    const int64_t row = blockIdx.x;
    if (!cut_wanted(&job, row)) {
        return;
    }
    const float max = job.decode.rows[row].max;
    const unsigned cut = job.states[row].bits;
    const int64_t first = (int64_t)blockIdx.y * KERNEL_HEAD_CHUNK + threadIdx.x * CUT_IDS;
    float value[CUT_IDS];
    cut_mass mass = 0;
    unsigned ties = 0;
    load_logits(&job, row, first, value);
    for (int i = 0; i < CUT_IDS && first + i < job.decode.v; i++) {
        const float p = cut_probability(&job, max, value[i]);
        mass += __float_as_uint(p) > cut && p >= job.floor ? cut_mass_of(p) : 0;
        ties += __float_as_uint(p) == cut;
    }
    mass = warp_sum(mass);
    ties = warp_sum(ties);
    if (threadIdx.x % WARP == 0) {
        const int64_t part =
            (row * job.decode.chunks + blockIdx.y) * KERNEL_DECODE_PARTS + threadIdx.x / WARP;
        job.part_mass[part] = mass;
        job.part_ties[part] = ties;
    }
}

/* Where in a row a draw has come to. */
struct cut_place {
    cut_mass before; /* of the ids below */
    unsigned ties;   /* of them at the cut */
    int64_t part;
};

/* What the ids at the cut are worth in a part, `ties` of which come before it. */
static __device__ __forceinline__ cut_mass ties_mass(const struct cut_state *state, cut_mass each,
                                                     unsigned before, unsigned ties)
{
    const unsigned left = state->wanted > before ? state->wanted - before : 0;
    return (left < ties ? left : ties) * each;
}

/* The id within a part at which the mass passes `target`; by a whole warp. */
static __device__ int32_t draw_within(const struct cut_job *job, int64_t row,
                                      const struct cut_state *state, struct cut_place place,
                                      cut_mass target)
{
    const int lane = (int)threadIdx.x % WARP;
    const float max = job->decode.rows[row].max;
    const float *z = job->decode.z + row * job->decode.stride;
    const int64_t start = place.part * PART_IDS;
    for (int64_t first = start; first < start + PART_IDS; first += WARP) {
        const int64_t id = first + lane;
        const bool exists = id < job->decode.v;
        const float p = exists ? cut_probability(job, max, z[id]) : 0.0f;
        const bool tie = exists && __float_as_uint(p) == state->bits;
        const unsigned ties = __ballot_sync(WARP_ALL, tie);
        const unsigned rank = place.ties + (unsigned)__popc(ties & ((1U << lane) - 1));
        const bool kept = p >= job->floor &&
                          (tie ? rank < state->wanted : exists && __float_as_uint(p) > state->bits);
        const cut_mass mass = kept ? cut_mass_of(p) : 0;
        cut_mass end = mass;
        for (int step = 1; step < WARP; step *= 2) {
            const cut_mass other = __shfl_up_sync(WARP_ALL, end, step);
            end += lane >= step ? other : 0;
        }
        end += place.before;
        const unsigned past = __ballot_sync(WARP_ALL, mass > 0 && end > target);
        if (past != 0) {
            return (int32_t)(first + __ffs((int)past) - 1);
        }
        place.before = __shfl_sync(WARP_ALL, end, WARP - 1);
        place.ties += (unsigned)__popc(ties);
    }
    return (int32_t)start;
}

/* Inverse CDF in id order over what is left of a row, a block each: its part, then the id. */
static __global__ void __launch_bounds__(CUT_THREADS) draw_kernel(struct cut_job job)
{
    __shared__ cut_mass mass_room[CUT_WARPS];
    __shared__ unsigned tie_room[CUT_WARPS];
    __shared__ struct cut_place found;
    const int64_t row = blockIdx.x;
    if (!cut_wanted(&job, row)) {
        return;
    }
    const struct cut_state state = job.states[row];
    const float p = __uint_as_float(state.bits);
    const cut_mass each = p >= job.floor ? cut_mass_of(p) : 0;
    const int64_t parts = job.decode.chunks * KERNEL_DECODE_PARTS;
    const cut_mass *part_mass = job.part_mass + row * parts;
    const unsigned *part_ties = job.part_ties + row * parts;
    const int64_t length = (parts + CUT_THREADS - 1) / CUT_THREADS;
    const int64_t start = threadIdx.x * length;
    const int64_t end = min(start + length, parts);
    unsigned ties = 0;
    for (int64_t i = start; i < end; i++) {
        ties += part_ties[i];
    }
    unsigned all_ties;
    struct cut_place place = {0, block_scan(ties, tie_room, &all_ties), start};
    cut_mass mass = 0;
    ties = place.ties;
    for (int64_t i = start; i < end; i++) {
        mass += part_mass[i] + ties_mass(&state, each, ties, part_ties[i]);
        ties += part_ties[i];
    }
    cut_mass total;
    place.before = block_scan(mass, mass_room, &total);
    const double u = draw_uniform(job.decode.keys[row], job.decode.counters[row]);
    const cut_mass target = min((cut_mass)(u * (double)total), total - 1);
    if (place.before <= target && target < place.before + mass) { /* one thread */
        for (; place.part < end; place.part++) {
            const unsigned here = part_ties[place.part];
            mass = part_mass[place.part] + ties_mass(&state, each, place.ties, here);
            if (target < place.before + mass) {
                break;
            }
            place.before += mass;
            place.ties += here;
        }
        found = place;
    }
    __syncthreads();
    if (threadIdx.x < WARP) {
        const int32_t id = draw_within(&job, row, &state, found, target);
        if (threadIdx.x == 0) {
            job.decode.ids[row] = id;
            job.decode.kept[row] = (float)((double)total / (double)state.all);
        }
    }
}

/* --- launching --- */

static void cut_search(struct cuda_stream *stream, const struct cut_job *job, dim3 grid,
                       enum cut_by by, bool again)
{
    const dim3 rows((unsigned)job->decode.m);
    for (int level = 0; level < (by == CUT_NOTHING ? 1 : CUT_LEVELS); level++) {
        if (level > 0 || !again) {
            CUDA_LAUNCH(count_kernel, grid, dim3(CUT_THREADS), 0, stream, *job, level);
        }
        CUDA_LAUNCH(choose_kernel, rows, dim3(CUT_THREADS), 0, stream, *job, level, by, again);
    }
}

/* Scratch of the search, its bins empty. False when the stream has failed. */
static bool cut_job_make(struct cuda_stream *stream, const struct head_decode_job *decode,
                         struct cut_job *job)
{
    const size_t m = (size_t)decode->m;
    const size_t parts = m * (size_t)decode->chunks * KERNEL_DECODE_PARTS;
    const size_t bins = 2 * m * CUT_BINS;
    job->decode = *decode;
    job->floor = decode->sampling.min_p > 0.0f ? decode->sampling.min_p : 0.0f;
    job->floor = job->floor < 1.0f ? job->floor : 1.0f;
    job->states = (struct cut_state *)cuda_scratch(stream, m * sizeof *job->states);
    job->part_mass = (cut_mass *)cuda_scratch(stream, parts * sizeof *job->part_mass);
    job->part_ties = (unsigned *)cuda_scratch(stream, parts * sizeof *job->part_ties);
    job->masses[0] = (cut_mass *)cuda_scratch(stream, bins * sizeof **job->masses);
    job->counts[0] = (unsigned *)cuda_scratch(stream, bins * sizeof **job->counts);
    if (!cuda_stream_good(stream)) {
        return false;
    }
    job->masses[1] = job->masses[0] + bins / 2;
    job->counts[1] = job->counts[0] + bins / 2;
    const cudaStream_t handle = cuda_stream_handle(stream);
    return cuda_check(stream,
                      cudaMemsetAsync(job->masses[0], 0, bins * sizeof **job->masses, handle),
                      "bins") &&
           cuda_check(stream,
                      cudaMemsetAsync(job->counts[0], 0, bins * sizeof **job->counts, handle),
                      "bins");
}

void head_cut_run(struct cuda_stream *stream, const struct head_decode_job *decode)
{
    const struct kernel_sampling *sampling = &decode->sampling;
    const int64_t room = (int64_t)cuda_multiprocessors(stream) * CUT_ROW_BLOCKS;
    const bool by_count = sampling->top_k > 0 && sampling->top_k < decode->v;
    const bool by_mass = sampling->top_p < 1.0f;
    struct cut_job job = {};
    if (!cut_job_make(stream, decode, &job)) {
        return;
    }
    job.slice = (decode->chunks * decode->m + room - 1) / room;
    job.slice = job.slice < SLICE_CHUNKS ? job.slice : (int64_t)SLICE_CHUNKS;
    const dim3 grid((unsigned)decode->m, (unsigned)((decode->chunks + job.slice - 1) / job.slice));
    if (by_count || !by_mass) {
        cut_search(stream, &job, grid, by_count ? CUT_COUNT : CUT_NOTHING, false);
    }
    if (by_mass) {
        cut_search(stream, &job, grid, CUT_MASS, by_count);
    }
    CUDA_LAUNCH(measure_kernel, dim3((unsigned)decode->m, (unsigned)decode->chunks),
                dim3(CUT_THREADS), 0, stream, job);
    CUDA_LAUNCH(draw_kernel, dim3((unsigned)decode->m), dim3(CUT_THREADS), 0, stream, job);
}
