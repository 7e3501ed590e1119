/* Backward of the output head: the logits of a wave of the vocabulary again, their gradients, and
 * two products of these. Rows without gradient are zeros in both, whatever they hold. */
#include "kernels/cuda/float_cuda.h"
#include "kernels/cuda/head_cuda.h"

enum { THREADS = 128 };

/* What becomes of a wave's logits: dz [rows, ld] of dtype, ld floats between rows of z as well. */
struct head_gradient {
    struct kernel_head_args a; /* targets are the device's */
    const float *z;
    struct linear_operand dz;
    int64_t start, count;
};

/* dL/dz = inv_t (g (1[target] - p) - h p (log p + entropy)) of one logit. */
static __device__ float logit_gradient(const struct kernel_head_args *a, int64_t m, float logit,
                                       bool hit)
{
    const float g = a->g_logprob[m];
    const float h = a->g_entropy != NULL ? a->g_entropy[m] : 0.0f;
    const float entropy = h != 0.0f ? a->entropy[m] : 0.0f;
    const float log_p = fmaf(logit, a->inv_temperature, -a->lse[m]);
    const float p = expf(log_p);
    const float pull = p > 0.0f ? h * p * (log_p + entropy) : 0.0f; /* not 0 times -inf */
    return a->inv_temperature * (g * ((hit ? 1.0f : 0.0f) - p) - pull);
}

/* One block a row and THREADS * RUN columns. */
static __global__ void gradient_kernel(struct head_gradient job)
{
    const int64_t m = blockIdx.x;
    const int64_t first = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * RUN;
    if (first >= job.dz.ld) {
        return;
    }
    const struct kernel_head_args *a = &job.a;
    const bool active =
        m < a->m && (a->g_logprob[m] != 0.0f || (a->g_entropy != NULL && a->g_entropy[m] != 0.0f));
    float value[RUN] = {0};
    if (active && first < job.count) {
        load_floats(job.z + m * job.dz.ld + first, value);
    }
    for (int i = 0; i < RUN; i++) {
        value[i] = active && first + i < job.count
                       ? logit_gradient(a, m, value[i], a->targets[m] == job.start + first + i)
                       : 0.0f;
    }
    if (a->dtype == KERNEL_BF16) {
        *(uint4 *)((uint16_t *)job.dz.data + m * job.dz.ld + first) = bf16_run(value);
    } else {
        store_floats((float *)job.dz.data + m * job.dz.ld + first, value);
    }
}

/* Gradients of a wave into dx and dw; the first wave overwrites dx. */
static void head_wave_backward(struct cuda_stream *stream, const struct head_product *product,
                               const struct head_gradient *job)
{
    const struct kernel_head_args *a = &job->a;
    const int64_t offset = job->start * a->c * linear_width(a->dtype);
    const struct kernel_linear_args linear = {.w = (const char *)a->w + offset,
                                              .dtype = a->dtype,
                                              .bias = NULL,
                                              .x = a->dx,
                                              .y = NULL,
                                              .dw = a->dw + job->start * a->c,
                                              .dbias = NULL,
                                              .m = a->m,
                                              .n = job->count,
                                              .k = a->c,
                                              .x_stride = a->c,
                                              .y_stride = job->dz.ld,
                                              .accumulate = job->start > 0};
    const int64_t columns = (int64_t)THREADS * RUN;
    const dim3 grid((unsigned)job->dz.rows, (unsigned)((job->dz.ld + columns - 1) / columns));
    CUDA_LAUNCH(gradient_kernel, grid, dim3(THREADS), 0, stream, *job);
    linear_weight_run(stream, &linear, &product->x, &job->dz);
    linear_input_run(stream, &linear, &job->dz);
}

extern "C" void head_backward_cuda(const struct kernel_head_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "head_backward");
    const int64_t columns = a->m > 0 ? head_wave_columns(a->m, a->v) : 0;
    struct head_product product = {a->x, a->w, a->dtype, {NULL, 0, 0}, a->m, a->v, a->c};
    if (a->m == 0 || !head_product_round(stream, &product)) {
        cuda_op_end(stream);
        return;
    }
    struct head_wave wave = {};
    wave.z = head_wave_room(stream, a, columns);
    wave.m = a->m;
    wave.stride = columns;
    struct head_gradient job = {*a, wave.z, {NULL, product.x.rows, columns}, 0, 0};
    job.a.targets =
        (const int32_t *)cuda_mirror(stream, a->targets, (size_t)a->m * sizeof(int32_t));
    job.dz.data = cuda_scratch(stream, (size_t)(job.dz.rows * columns * linear_width(a->dtype)));
    if (wave.z != NULL && job.a.targets != NULL && job.dz.data != NULL) {
        for (wave.start = 0; wave.start < a->v; wave.start += columns) {
            wave.count = a->v - wave.start < columns ? a->v - wave.start : columns;
            job.start = wave.start;
            job.count = wave.count;
            head_wave_run(stream, &product, &wave);
            head_wave_backward(stream, &product, &job);
        }
    }
    cuda_op_end(stream);
}
