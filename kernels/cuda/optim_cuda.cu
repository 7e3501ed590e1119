/* Sums of elements, sum of squares, and the AdamW step, alone or with the packing of the new
 * values. Invariant: both forms are one kernel, so they give the same bits. */
#include "kernels/cuda/float_cuda.h"
#include "kernels/cuda/pack_cuda.h"

enum {
    THREADS = 256,
    SUM_BLOCK = 65536, /* elements whose squares one block adds up: kernels.h */
    WARPS = THREADS / WARP
};

static __global__ void add_kernel(float *y, const float *x, int64_t count)
{
    int64_t i = cuda_thread();
    if (i < count) {
        y[i] += x[i];
    }
}

extern "C" void add_cuda(const struct kernel_add_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "add");
    CUDA_LAUNCH(add_kernel, cuda_blocks(a->count, THREADS), THREADS, 0, stream, a->y, a->x,
                a->count);
    cuda_op_end(stream);
}

static __global__ void squares_kernel(const float *x, int64_t count, double *sums)
{
    __shared__ double room[WARPS];
    const int64_t first = (int64_t)blockIdx.x * SUM_BLOCK;
    const int64_t end = min(first + SUM_BLOCK, count);
    double sum = 0.0;
    for (int64_t i = first + (int64_t)threadIdx.x * 4; i < end; i += THREADS * 4) {
        if (i + 4 <= end) {
            const float4 four = *(const float4 *)(x + i);
            sum = fma((double)four.x, (double)four.x, sum);
            sum = fma((double)four.y, (double)four.y, sum);
            sum = fma((double)four.z, (double)four.z, sum);
            sum = fma((double)four.w, (double)four.w, sum);
        } else {
            for (int64_t j = i; j < end; j++) {
                sum = fma((double)x[j], (double)x[j], sum);
            }
        }
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = sum;
    }
}

/* One block; one thread adds, from the first sum to the last, as the CPU does. */
static __global__ void total_kernel(const double *sums, int64_t count, double *total)
{
    __shared__ double room[THREADS];
    double sum = 0.0;
    for (int64_t first = 0; first < count; first += THREADS) {
        const int64_t left = min(count - first, (int64_t)THREADS);
        __syncthreads(); /* the last ones were added */
        if (threadIdx.x < left) {
            room[threadIdx.x] = sums[first + threadIdx.x];
        }
        __syncthreads();
        for (int64_t i = 0; threadIdx.x == 0 && i < left; i++) {
            sum += room[i];
        }
    }
    if (threadIdx.x == 0) {
        *total = sum;
    }
}

extern "C" void sum_squares_cuda(const struct kernel_sum_squares_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "sum_squares");
    const int64_t blocks = (a->count + SUM_BLOCK - 1) / SUM_BLOCK;
    double *total = (double *)cuda_scratch(stream, sizeof(double));
    if (total != NULL) {
        if (blocks > 0) {
            CUDA_LAUNCH(squares_kernel, dim3((unsigned)blocks), dim3(THREADS), 0, stream, a->x,
                        a->count, a->block_sums);
        }
        CUDA_LAUNCH(total_kernel, dim3(1), dim3(THREADS), 0, stream, a->block_sums, blocks, total);
        cuda_fetch(stream, a->sum, total, sizeof *a->sum);
        cuda_wait(stream);
    }
    cuda_op_end(stream);
}

struct adamw_job {
    struct kernel_adamw_args a; /* nonfinite is the device's */
    struct pack_job pack;       /* without packing: packed NULL, count and total the array's */
    float keep1, keep2;         /* 1 - beta */
    float root, step, decay;    /* 1 / sqrt(1 - beta2^t), rate / (1 - beta1^t), 1 - rate decay */
};

static struct adamw_job adamw_job_make(const struct kernel_adamw_args *a)
{
    const double beta1 = (double)a->beta1;
    const double beta2 = (double)a->beta2;
    const double rate = (double)a->learning_rate;
    struct adamw_job job = {};
    job.a = *a;
    job.pack.count = a->count;
    job.pack.total = a->count;
    job.keep1 = (float)(1.0 - beta1);
    job.keep2 = (float)(1.0 - beta2);
    job.root = (float)(1.0 / sqrt(1.0 - pow(beta2, (double)a->step)));
    job.step = (float)(rate / (1.0 - pow(beta1, (double)a->step)));
    job.decay = (float)(1.0 - rate * (double)a->weight_decay);
    return job;
}

/* Element i of a stretch. */
struct adamw_run {
    float param[RUN], m[RUN], v[RUN], grad[RUN];
};

static __device__ void adamw_element(const struct adamw_job *job, struct adamw_run *run, int i)
{
    const float g = run->grad[i] * job->a.grad_scale;
    const float m = fmaf(g - run->m[i], job->keep1, run->m[i]);
    const float v = fmaf(g * g, job->keep2, run->v[i] * job->a.beta2);
    const float root = fmaf(sqrtf(v), job->root, job->a.epsilon);
    const float move = m * job->step / root;
    run->m[i] = m;
    run->v[i] = v;
    run->param[i] = fmaf(run->param[i], job->decay, -move);
}

/* One thread RUN elements, which it loads and stores in fours where `wide` and all there. */
static __global__ void adamw_kernel(struct adamw_job job, bool wide)
{
    const struct kernel_adamw_args *a = &job.a;
    const int64_t at = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * RUN;
    if (at >= job.pack.total) {
        return;
    }
    const int left = (int)max(min(a->count - at, (int64_t)RUN), (int64_t)0);
    struct adamw_run run = {};
    if (wide && left == RUN) {
        load_floats(a->param + at, run.param);
        load_floats(a->m + at, run.m);
        load_floats(a->v + at, run.v);
        load_floats(a->grad + at, run.grad);
    } else {
        for (int i = 0; i < left; i++) {
            run.param[i] = a->param[at + i];
            run.m[i] = a->m[at + i];
            run.v[i] = a->v[at + i];
            run.grad[i] = a->grad[at + i];
        }
    }
    bool finite = true;
    for (int i = 0; i < left; i++) {
        adamw_element(&job, &run, i);
        finite = finite && isfinite(run.param[i]);
    }
    if (wide && left == RUN) {
        store_floats(a->param + at, run.param);
        store_floats(a->m + at, run.m);
        store_floats(a->v + at, run.v);
    } else {
        for (int i = 0; i < left; i++) {
            a->param[at + i] = run.param[i];
            a->m[at + i] = run.m[i];
            a->v[at + i] = run.v[i];
        }
    }
    if (!finite && a->nonfinite != NULL) {
        *a->nonfinite = 1;
    }
    if (job.pack.packed != NULL) {
        pack_run(&job.pack, at, run.param);
    }
}

static bool is_wide(const struct kernel_adamw_args *a)
{
    const uintptr_t all =
        (uintptr_t)a->param | (uintptr_t)a->m | (uintptr_t)a->v | (uintptr_t)a->grad;
    return all % sizeof(float4) == 0;
}

/* Launch, and pass on whether a parameter stopped being finite, if that is asked. */
static void adamw_run_job(struct cuda_stream *stream, struct adamw_job *job)
{
    int32_t *const host = job->a.nonfinite;
    int32_t flag = 0;
    if (host != NULL) {
        job->a.nonfinite = (int32_t *)cuda_scratch(stream, sizeof(int32_t));
        if (job->a.nonfinite == NULL) {
            return;
        }
        cuda_check(
            stream,
            cudaMemsetAsync(job->a.nonfinite, 0, sizeof(int32_t), cuda_stream_handle(stream)),
            "nonfinite");
    }
    const int64_t blocks = (job->pack.total + THREADS * RUN - 1) / (THREADS * RUN);
    if (blocks > 0) {
        CUDA_LAUNCH(adamw_kernel, dim3((unsigned)blocks), dim3(THREADS), 0, stream, *job,
                    is_wide(&job->a));
    }
    if (host != NULL) {
        cuda_fetch(stream, &flag, job->a.nonfinite, sizeof flag);
        cuda_wait(stream);
        *host = flag != 0 ? 1 : *host;
    }
    cuda_op_end(stream);
}

extern "C" void adamw_cuda(const struct kernel_adamw_args *a, struct rl_pool *pool)
{
    struct adamw_job job = adamw_job_make(a);
    adamw_run_job(cuda_op_begin(pool, "adamw"), &job);
}

extern "C" void adamw_pack_cuda(const struct kernel_adamw_pack_args *a, struct rl_pool *pool)
{
    struct adamw_job job = adamw_job_make(&a->adamw);
    job.pack = pack_job_make(&a->pack);
    adamw_run_job(cuda_op_begin(pool, "adamw_pack"), &job);
}
