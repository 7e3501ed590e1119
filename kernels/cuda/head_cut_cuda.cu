/* Top-k, top-p and min-p, and the draw from what they leave, as kernels/sampling.h says. One block
 * takes a row. The kept set is described by its least member, which is found digit by digit from
 * the top of the probabilities' bits (those of numbers that are not negative are in the numbers'
 * order); equal probabilities are told apart by their ids. Sums are double, in an order that the
 * vocabulary's size fixes. */
#include "kernels/cuda/head_draw_cuda.h"

enum {
    CUT_THREADS = 512,
    CUT_WARPS = CUT_THREADS / WARP,
    DIGIT_BITS = 3,
    DIGITS = 1 << DIGIT_BITS,
    VALUE_BITS = 30 /* of probabilities up to 1 */
};

/* One row. */
struct cut_row {
    const float *p; /* [v] in [0, 1], the largest is 1 */
    int64_t v;
};

/* Least member of a set: ids up to `id` are in it at that probability. */
struct cut {
    uint32_t bits;
    int32_t id;
};

/* A search for the largest probability at which `count` members or `mass` are reached. */
struct cut_search {
    unsigned count; /* 0: by mass */
    double mass;
    uint32_t bits; /* found so far: upper digits of the probability */
    unsigned above_count, ties;
    double above_mass;
};

/* Members and mass of the values whose upper digits are search->bits, by the next digit at `shift`;
 * known to the whole block. */
static __device__ void digit_sums(const struct cut_row *row, const struct cut_search *search,
                                  int shift, unsigned counts[DIGITS], double masses[DIGITS])
{
    __shared__ unsigned count_room[DIGITS][CUT_WARPS];
    __shared__ double mass_room[DIGITS][CUT_WARPS];
    const int warp = (int)threadIdx.x / WARP;
    for (int d = 0; d < DIGITS; d++) {
        counts[d] = 0;
        masses[d] = 0.0;
    }
    for (int64_t i = threadIdx.x; i < row->v; i += CUT_THREADS) {
        const float p = row->p[i];
        const uint32_t bits = __float_as_uint(p) >> shift;
        if (bits >> DIGIT_BITS == search->bits) {
            for (unsigned d = 0; d < DIGITS; d++) {
                const bool hit = bits % DIGITS == d;
                counts[d] += hit ? 1 : 0;
                masses[d] += hit ? (double)p : 0.0;
            }
        }
    }
    __syncthreads(); /* the last digit's rooms are free */
    for (int d = 0; d < DIGITS; d++) {
        const bool some = __any_sync(WARP_ALL, counts[d] > 0); /* few warps, after a digit or two */
        const unsigned count = some ? warp_sum(counts[d]) : 0;
        const double mass = some ? warp_sum(masses[d]) : 0.0;
        if (threadIdx.x % WARP == 0) {
            count_room[d][warp] = count;
            mass_room[d][warp] = mass;
        }
    }
    __syncthreads();
    for (int d = 0; d < DIGITS; d++) {
        counts[d] = 0;
        masses[d] = 0.0;
        for (int w = 0; w < CUT_WARPS; w++) {
            counts[d] += count_room[d][w];
            masses[d] += mass_room[d][w];
        }
    }
}

/* Choose the next digit: the largest with which the sums reach what is sought, or else (rounding)
 * the smallest that occurs. */
static __device__ void search_digit(const struct cut_row *row, struct cut_search *search, int shift)
{
    unsigned counts[DIGITS];
    double masses[DIGITS];
    unsigned chosen = 0;
    unsigned above_count = search->above_count;
    double above_mass = search->above_mass;
    bool reached = false;
    digit_sums(row, search, shift, counts, masses);
    for (int d = DIGITS - 1; d >= 0; d--) {
        if (counts[d] > 0 && !reached) {
            chosen = (unsigned)d;
            search->above_count = above_count;
            search->above_mass = above_mass;
            search->ties = counts[d];
            above_count += counts[d];
            above_mass += masses[d];
            reached = search->count > 0 ? above_count >= search->count : above_mass >= search->mass;
        }
    }
    search->bits = search->bits << DIGIT_BITS | chosen;
}

/* Id of the `wanted`-th (from 1) element with these bits; known to the whole block. */
static __device__ int32_t tie_id(const struct cut_row *row, uint32_t bits, unsigned wanted)
{
    __shared__ unsigned counts[CUT_WARPS];
    __shared__ int32_t found;
    const int lane = (int)threadIdx.x % WARP;
    const int warp = (int)threadIdx.x / WARP;
    const int64_t length = (row->v + CUT_THREADS - 1) / CUT_THREADS * WARP;
    const int64_t start = warp * length;
    unsigned count = 0;
    for (int64_t i = start; i < start + length; i += WARP) {
        const bool hit = i + lane < row->v && __float_as_uint(row->p[i + lane]) == bits;
        count += (unsigned)__popc(__ballot_sync(WARP_ALL, hit));
    }
    __syncthreads();
    if (lane == 0) {
        counts[warp] = count;
    }
    __syncthreads();
    unsigned before = 0;
    for (int w = 0; w < warp; w++) {
        before += counts[w];
    }
    if (before < wanted && wanted <= before + count) { /* one warp */
        for (int64_t i = start; i < start + length && before < wanted; i += WARP) {
            const bool hit = i + lane < row->v && __float_as_uint(row->p[i + lane]) == bits;
            unsigned hits = __ballot_sync(WARP_ALL, hit);
            for (; hits != 0 && before < wanted; hits &= hits - 1) {
                before++;
                if (before == wanted && lane == 0) {
                    found = (int32_t)i + __ffs((int)hits) - 1;
                }
            }
        }
    }
    __syncthreads();
    return found;
}

/* Run a search; *mass (may be NULL) is that of the set which ends there. */
static __device__ struct cut search_run(const struct cut_row *row, struct cut_search *search,
                                        double *mass)
{
    for (int shift = VALUE_BITS - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
        search_digit(row, search, shift);
    }
    const double p = (double)__uint_as_float(search->bits);
    unsigned wanted = 1;
    if (search->count > 0) {
        wanted = search->count - search->above_count;
    } else if (p > 0.0) {
        const double steps = (search->mass - search->above_mass) / p;
        wanted = steps < (double)search->ties ? (unsigned)max(steps, 1.0) : search->ties;
        while (wanted < search->ties && search->above_mass + wanted * p < search->mass) {
            wanted++;
        }
    } else {
        wanted = search->ties;
    }
    struct cut cut = {search->bits, (int32_t)row->v - 1};
    if (wanted < search->ties) {
        cut.id = tie_id(row, search->bits, wanted);
    }
    if (mass != NULL) {
        *mass = search->above_mass + wanted * p;
    }
    return cut;
}

/* Least member of top-k, then top-p within it; `all` is the row's mass. */
static __device__ struct cut find_cut(const struct cut_row *row,
                                      const struct kernel_sampling *sampling, double all)
{
    struct cut cut = {0, (int32_t)row->v - 1};
    double total = all;
    if (sampling->top_k > 0 && sampling->top_k < row->v) {
        struct cut_search search = {(unsigned)sampling->top_k, 0.0, 0, 0, 0, 0.0};
        cut = search_run(row, &search, &total);
    }
    if (sampling->top_p < 1.0f) {
        struct cut_search search = {0, (double)sampling->top_p * total, 0, 0, 0, 0.0};
        const struct cut inner = search_run(row, &search, NULL);
        if (inner.bits > cut.bits || (inner.bits == cut.bits && inner.id < cut.id)) {
            cut = inner;
        }
    }
    return cut;
}

/* What is left to draw from. */
struct cut_left {
    struct cut cut;
    float floor;
};

static __device__ double left_mass(const struct cut_row *row, const struct cut_left *left,
                                   int64_t id, int64_t end)
{
    if (id >= end) {
        return 0.0;
    }
    const float p = row->p[id];
    const uint32_t bits = __float_as_uint(p);
    const bool kept = p >= left->floor &&
                      (bits > left->cut.bits || (bits == left->cut.bits && id <= left->cut.id));
    return kept ? (double)p : 0.0;
}

/* CUT_WARPS stretches of `length` ids from `start` on, none beyond `end`. */
struct cut_stretches {
    int64_t start, length, end;
};

static __device__ struct cut_stretches stretches_make(int64_t start, int64_t end)
{
    struct cut_stretches stretches = {start, (end - start + CUT_WARPS - 1) / CUT_WARPS, end};
    return stretches;
}

/* What is left in stretch `lane`, in every warp. */
static __device__ double stretch_mass(const struct cut_row *row, const struct cut_left *left,
                                      const struct cut_stretches *stretches)
{
    __shared__ double room[CUT_WARPS];
    const int lane = (int)threadIdx.x % WARP;
    const int warp = (int)threadIdx.x / WARP;
    const int64_t first = stretches->start + warp * stretches->length;
    const int64_t end = min(first + stretches->length, stretches->end);
    double mass = 0.0;
    for (int64_t i = first + lane; i < end; i += WARP) {
        mass += left_mass(row, left, i, end);
    }
    mass = warp_sum(mass);
    __syncthreads(); /* the last use of room is over */
    if (lane == 0) {
        room[warp] = mass;
    }
    __syncthreads();
    return lane < CUT_WARPS ? room[lane % CUT_WARPS] : 0.0;
}

static __device__ struct draw_walk walk_lanes(double before, double mass, double target)
{
    struct draw_walk walk = draw_walk_make(before);
    draw_walk_step(&walk, 0, mass, target);
    return walk;
}

/* Inverse CDF in id order over what is left: stretches, stretches of one of these, ids. *total is
 * the mass that is left. */
static __device__ int32_t draw_left(const struct cut_row *row, const struct cut_left *left,
                                    double u, double *total)
{
    struct cut_stretches stretches = stretches_make(0, row->v);
    double mass = stretch_mass(row, left, &stretches);
    *total = walk_lanes(0.0, mass, INFINITY).sum;
    const double target = u * *total;
    struct draw_walk walk = walk_lanes(0.0, mass, target);
    for (int level = 0; level < 2; level++) {
        const int64_t start = stretches.start + max(walk.found, (int64_t)0) * stretches.length;
        stretches = stretches_make(start, min(start + stretches.length, stretches.end));
        if (level == 0) {
            mass = stretch_mass(row, left, &stretches);
            walk = walk_lanes(walk.before, mass, target);
        }
    }
    walk = draw_walk_make(walk.before);
    for (int64_t first = stretches.start; first < stretches.end && !walk.done; first += WARP) {
        const int64_t id = first + threadIdx.x % WARP;
        draw_walk_step(&walk, first, left_mass(row, left, id, stretches.end), target);
    }
    return walk.found < 0 ? 0 : (int32_t)walk.found;
}

static __global__ void cut_kernel(struct head_decode_job job)
{
    __shared__ double room[CUT_WARPS];
    const int64_t m = blockIdx.x;
    const struct head_row sums = job.rows[m];
    if (!isfinite(sums.max) || !isfinite(sums.sum) || (job.forced != NULL && job.forced[m] >= 0)) {
        return;
    }
    const float *z = job.z + m * job.stride;
    float *p = job.p + m * job.stride;
    double all = 0.0;
    for (int64_t i = threadIdx.x; i < job.v; i += CUT_THREADS) {
        const float value = z[i] * job.inv_temperature;
        p[i] = expf(value - sums.max);
        all += (double)p[i];
    }
    all = block_sum(all, room); /* which also ends the writing */
    const struct cut_row row = {p, job.v};
    struct cut_left left;
    left.cut = find_cut(&row, &job.sampling, all);
    left.floor = min(max(job.sampling.min_p, 0.0f), 1.0f);
    double total;
    const int32_t id = draw_left(&row, &left, draw_uniform(job.keys[m], job.counters[m]), &total);
    if (threadIdx.x == 0) {
        job.ids[m] = id;
        job.kept[m] = (float)(total / all);
    }
}

void head_cut_run(struct cuda_stream *stream, const struct head_decode_job *job)
{
    CUDA_LAUNCH(cut_kernel, dim3((unsigned)job->m), dim3(CUT_THREADS), 0, stream, *job);
}
