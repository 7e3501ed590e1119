/* One sampling step on the output head. The logits of the whole vocabulary are made at once, by the
 * products and sums of head_forward; each row's id is then chosen by one warp, or where top-k,
 * top-p or min-p cut, by head_cut_cuda. */
#include "kernels/cuda/float_cuda.h"
#include "kernels/cuda/head_cuda.h"
#include "kernels/cuda/head_draw_cuda.h"
#include "kernels/cuda/head_row_cuda.h"
#include "kernels/sampling.h"

enum { PART_IDS = KERNEL_HEAD_CHUNK / KERNEL_DECODE_PARTS, PICK_WARPS = 4 };

/* The id in one part of the vocabulary at which the mass passes `target`; `before` lies below. */
static __device__ int32_t draw_in_part(const struct head_decode_job *job, int64_t row, int64_t part,
                                       double before, double target)
{
    const struct head_sum *sum = &job->sums[row * job->chunks + part / KERNEL_DECODE_PARTS];
    const double share = (double)expf(sum->max - job->rows[row].max);
    const int64_t start = part * PART_IDS;
    struct draw_walk walk = draw_walk_make(before);
    for (int64_t first = start; first < start + PART_IDS && !walk.done; first += WARP) {
        const int64_t id = first + threadIdx.x % WARP;
        double mass = 0.0;
        if (id < job->v) {
            const float value = job->z[row * job->stride + id] * job->inv_temperature;
            mass = share * (double)expf(value - sum->max);
        }
        draw_walk_step(&walk, first, mass, target);
    }
    return walk.found < 0 ? (int32_t)start : (int32_t)walk.found;
}

/* Mass of a chunk relative to the row's maximum; 0 beyond the last. */
static __device__ double chunk_mass(const struct head_decode_job *job, int64_t row, int64_t chunk)
{
    if (chunk >= job->chunks) {
        return 0.0;
    }
    const struct head_sum *sum = &job->sums[row * job->chunks + chunk];
    const double share = (double)expf(sum->max - job->rows[row].max);
    return sum->sum > 0.0f ? share * (double)sum->sum : 0.0;
}

/* Inverse CDF in id order over the whole vocabulary: chunk, part, id. */
static __device__ int32_t draw_id(const struct head_decode_job *job, int64_t row)
{
    const int lane = (int)threadIdx.x % WARP;
    struct draw_walk walk = draw_walk_make(0.0);
    for (int64_t first = 0; first < job->chunks; first += WARP) { /* the total, by the same sums */
        draw_walk_step(&walk, first, chunk_mass(job, row, first + lane), INFINITY);
    }
    const double target = draw_uniform(job->keys[row], job->counters[row]) * walk.sum;
    walk = draw_walk_make(0.0);
    for (int64_t first = 0; first < job->chunks && !walk.done; first += WARP) {
        draw_walk_step(&walk, first, chunk_mass(job, row, first + lane), target);
    }
    const int64_t chunk = walk.found < 0 ? 0 : walk.found;
    const int64_t slot = row * job->chunks + chunk;
    const double share = (double)expf(job->sums[slot].max - job->rows[row].max);
    const double mass =
        lane < KERNEL_DECODE_PARTS
            ? share * (double)job->parts[slot * KERNEL_DECODE_PARTS + lane % KERNEL_DECODE_PARTS]
            : 0.0;
    walk = draw_walk_make(walk.before);
    draw_walk_step(&walk, chunk * KERNEL_DECODE_PARTS, mass, target);
    const int64_t part = walk.found < 0 ? chunk * KERNEL_DECODE_PARTS : walk.found;
    return draw_in_part(job, row, part, walk.before, target);
}

/* One warp a row. */
static __global__ void pick_kernel(struct head_decode_job job)
{
    const int64_t row = (int64_t)blockIdx.x * PICK_WARPS + threadIdx.x / WARP;
    if (row >= job.m) {
        return;
    }
    const struct head_row sums = job.rows[row];
    const bool finite = isfinite(sums.max) && isfinite(sums.sum);
    const int32_t forced = job.forced != NULL ? job.forced[row] : -1;
    int32_t id = forced >= 0 ? forced : 0;
    if (finite && forced < 0) {
        if (job.greedy) {
            id = sums.top;
        } else if (job.truncates) {
            id = job.ids[row];
        } else {
            id = draw_id(&job, row);
        }
    }
    if (threadIdx.x % WARP == 0) {
        const bool cut = finite && forced < 0 && job.truncates && !job.greedy;
        job.kept[row] = cut ? job.kept[row] : 1.0f;
        job.logprob[row] =
            finite ? head_row_logprob(&sums, job.z[row * job.stride + id], job.inv_temperature)
                   : NAN;
        job.ids[row] = id;
    }
}

/* Memory of a step, and what the host holds of its inputs. False when the stream has failed. */
static bool decode_job_make(struct cuda_stream *stream, const struct kernel_decode_args *a,
                            struct head_wave *wave, struct head_row **rows,
                            struct head_decode_job *job)
{
    const size_t m = (size_t)a->m;
    const size_t chunks = m * (size_t)wave->chunks;
    wave->z = (float *)cuda_scratch(stream, m * (size_t)wave->stride * sizeof(float));
    wave->sums = (struct head_sum *)cuda_scratch(stream, chunks * sizeof *wave->sums);
    wave->parts = (float *)cuda_scratch(stream, chunks * KERNEL_DECODE_PARTS * sizeof *wave->parts);
    *rows = (struct head_row *)cuda_scratch(stream, m * sizeof **rows);
    job->ids = (int32_t *)cuda_scratch(stream, m * sizeof *job->ids);
    job->logprob = (float *)cuda_scratch(stream, m * sizeof *job->logprob);
    job->kept = (float *)cuda_scratch(stream, m * sizeof *job->kept);
    job->keys = (const struct rl_rng_key *)cuda_mirror(stream, a->keys, m * sizeof *a->keys);
    job->counters = (const uint64_t *)cuda_mirror(stream, a->counters, m * sizeof *a->counters);
    job->forced = NULL;
    if (a->forced != NULL) {
        job->forced = (const int32_t *)cuda_mirror(stream, a->forced, m * sizeof *a->forced);
    }
    job->z = wave->z;
    job->sums = wave->sums;
    job->rows = *rows;
    job->parts = wave->parts;
    return cuda_stream_good(stream);
}

/* The ids into the caller's memory, which is the host's. */
static void decode_fetch(struct cuda_stream *stream, const struct kernel_decode_args *a,
                         const struct head_decode_job *job)
{
    const size_t m = (size_t)a->m;
    cuda_fetch(stream, a->ids, job->ids, m * sizeof *a->ids);
    cuda_fetch(stream, a->logprob, job->logprob, m * sizeof *a->logprob);
    if (a->kept != NULL) {
        cuda_fetch(stream, a->kept, job->kept, m * sizeof *a->kept);
    }
    cuda_deliver(stream);
}

extern "C" void head_decode_cuda(const struct kernel_decode_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "head_decode");
    struct head_product product = {a->x, a->w, a->dtype, {NULL, 0, 0}, a->m, a->v, a->c};
    struct head_wave wave = {};
    struct head_decode_job job = {};
    struct head_row *rows = NULL;
    wave.m = a->m;
    wave.stride = (a->v + KERNEL_PANEL - 1) / KERNEL_PANEL * KERNEL_PANEL;
    wave.count = a->v;
    wave.chunks = head_chunks(a->v);
    wave.inv_temperature = kernel_sampling_inverse_temperature(a->sampling);
    job.sampling = *a->sampling;
    job.m = a->m;
    job.v = a->v;
    job.stride = wave.stride;
    job.chunks = wave.chunks;
    job.inv_temperature = wave.inv_temperature;
    job.greedy = kernel_sampling_is_greedy(a->sampling);
    job.truncates = kernel_sampling_truncates(a->sampling);
    if (a->m > 0 && decode_job_make(stream, a, &wave, &rows, &job)) {
        head_wave_run(stream, &product, &wave);
        head_rows_run(stream, wave.sums, a->m, wave.chunks, rows);
        if (job.truncates && !job.greedy) {
            head_cut_run(stream, &job);
        }
        CUDA_LAUNCH(pick_kernel, dim3((unsigned)((a->m + PICK_WARPS - 1) / PICK_WARPS)),
                    dim3(PICK_WARPS * WARP), 0, stream, job);
        decode_fetch(stream, a, &job);
    }
    cuda_op_end(stream);
}
