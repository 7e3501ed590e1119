/* Linear maps: x and gradients are rounded to the weights' type in scratch, whose rows are padded
 * with zeros to what cuBLASLt wants; the product itself is matmul_cuda's. Few rows with bf16
 * weights are linear_few_cuda's, which needs no scratch, where that gives the same bits. Packed
 * weights are row-major [N rounded up to 32][K], so element (n, k) is at n * K + k in both. */
#include "kernels/cuda/linear_cuda.h"

#include "kernels/cuda/columns_cuda.h"
#include "kernels/cuda/float_cuda.h"
#include "kernels/cuda/linear_few_cuda.h"
#include "kernels/cuda/matmul_choose_cuda.h"
#include "kernels/cuda/pack_cuda.h"

enum { THREADS = 128 };

int64_t linear_width(enum kernel_dtype dtype)
{
    return dtype == KERNEL_BF16 ? (int64_t)sizeof(uint16_t) : (int64_t)sizeof(float);
}

static int64_t round_up(int64_t value, int64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

static bool is_aligned(const void *data)
{
    return (uintptr_t)data % sizeof(float4) == 0;
}

/* One block a row. `wide`: its elements can be read four at a time. */
static __global__ void round_kernel(struct linear_round_args a, struct linear_operand out,
                                    bool wide)
{
    const int64_t row = blockIdx.x;
    const float *from = a.from + row * a.stride;
    for (int64_t c = (int64_t)threadIdx.x * RUN; c < out.ld; c += (int64_t)blockDim.x * RUN) {
        float value[RUN];
        if (wide && row < a.rows && c + RUN <= a.columns) {
            load_floats(from + c, value);
        } else {
            for (int i = 0; i < RUN; i++) {
                value[i] = row < a.rows && c + i < a.columns ? from[c + i] : 0.0f;
            }
        }
        if (a.dtype == KERNEL_BF16) {
            *(uint4 *)((uint16_t *)out.data + row * out.ld + c) = bf16_run(value);
        } else {
            store_floats((float *)out.data + row * out.ld + c, value);
        }
    }
}

static struct linear_operand round_shape(const struct linear_round_args *a)
{
    return {NULL, round_up(a->rows, a->row_unit), round_up(a->columns, a->unit)};
}

static void *round_room(struct cuda_stream *stream, int64_t numbers, enum kernel_dtype dtype)
{
    return cuda_scratch(stream, (size_t)numbers * (size_t)linear_width(dtype));
}

/* Into out->data, which has room. */
static void round_run(struct cuda_stream *stream, const struct linear_round_args *a,
                      const struct linear_operand *out)
{
    const bool wide = a->stride % 4 == 0 && is_aligned(a->from);
    const int threads = out->ld < THREADS * RUN ? (int)round_up(out->ld / RUN, WARP) : THREADS;
    CUDA_LAUNCH(round_kernel, dim3((unsigned)out->rows), dim3((unsigned)threads), 0, stream, *a,
                *out, wide);
}

bool linear_round(struct cuda_stream *stream, const struct linear_round_args *a,
                  struct linear_operand *out)
{
    *out = round_shape(a);
    out->data = round_room(stream, out->rows * out->ld, a->dtype);
    if (out->data == NULL) {
        return false;
    }
    round_run(stream, a, out);
    return true;
}

/* One thread RUN elements of the image. */
static __global__ void pack_kernel(struct pack_job job)
{
    const int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * RUN;
    if (at >= job.total) {
        return;
    }
    float value[RUN];
    if (at + RUN <= job.count) {
        load_floats(job.w + at, value);
    } else {
        for (int i = 0; i < RUN; i++) {
            value[i] = at + i < job.count ? job.w[at + i] : 0.0f;
        }
    }
    pack_run(&job, at, value);
}

extern "C" void linear_pack_cuda(const struct kernel_linear_pack_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "linear_pack");
    const struct pack_job job = pack_job_make(a);
    const int64_t blocks = (job.total / RUN + THREADS - 1) / THREADS;
    CUDA_LAUNCH(pack_kernel, dim3((unsigned)blocks), dim3(THREADS), 0, stream, job);
}

/* For rows of y that the product cannot be written to: what it is added to, and y = sums (+ bias).
 */
static __global__ void begin_kernel(struct kernel_linear_args a, float *sums, int64_t ld)
{
    const int64_t row = blockIdx.x;
    for (int64_t n = threadIdx.x; n < ld; n += blockDim.x) {
        sums[row * ld + n] = n < a.n ? a.y[row * a.y_stride + n] : 0.0f;
    }
}

static __global__ void finish_kernel(struct kernel_linear_args a, const float *sums, int64_t ld)
{
    const int64_t row = blockIdx.x;
    for (int64_t n = threadIdx.x; n < a.n; n += blockDim.x) {
        const float sum = sums[row * ld + n];
        a.y[row * a.y_stride + n] = a.bias != NULL ? sum + a.bias[n] : sum;
    }
}

static bool is_direct(const struct kernel_linear_args *a)
{
    return a->n % RUN == 0 && a->y_stride % 4 == 0 && is_aligned(a->y) && is_aligned(a->bias);
}

/* y of rows that are rounded already. */
static void linear_forward_run(struct cuda_stream *stream, const struct kernel_linear_args *a,
                               const struct linear_operand *x)
{
    struct matmul_args product = {.kind = MATMUL_FORWARD,
                                  .dtype = a->dtype,
                                  .a = a->w,
                                  .b = x->data,
                                  .d = a->y,
                                  .bias = a->bias,
                                  .m = a->n,
                                  .n = a->m,
                                  .depth = a->k,
                                  .lda = a->k,
                                  .ldb = x->ld,
                                  .ldd = a->y_stride,
                                  .accumulate = a->accumulate};
    if (is_direct(a)) {
        matmul_run(stream, &product);
        return;
    }
    product.m = round_up(a->n, RUN); /* the image's rows beyond N are there, and zero */
    product.ldd = product.m;
    product.d = (float *)cuda_scratch(stream, (size_t)(a->m * product.m) * sizeof(float));
    product.bias = NULL;
    if (product.d != NULL) {
        if (a->accumulate) {
            CUDA_LAUNCH(begin_kernel, dim3((unsigned)a->m), dim3(THREADS), 0, stream, *a, product.d,
                        product.ldd);
        }
        matmul_run(stream, &product);
        CUDA_LAUNCH(finish_kernel, dim3((unsigned)a->m), dim3(THREADS), 0, stream, *a, product.d,
                    product.ldd);
    }
}

bool linear_forward_few(struct cuda_stream *stream, const struct kernel_linear_args *maps,
                        int count)
{
    const struct kernel_linear_args *a = &maps[0];
    if (a->m > MATMUL_FEW_ROWS || a->dtype != KERNEL_BF16 || a->x_stride % 4 != 0 ||
        !is_aligned(a->x) || !matmul_has_few(stream, a->dtype, a->k)) {
        return false;
    }
    struct few_args few = {a->x,  a->m, a->k, a->x_stride, matmul_segment(a->dtype, a->k),
                           count, {}};
    for (int i = 0; i < count; i++) {
        few.maps[i] = {maps[i].w, maps[i].bias,     maps[i].y,
                       maps[i].n, maps[i].y_stride, maps[i].accumulate};
    }
    return few_run(stream, &few);
}

static void linear_forward_maps(struct cuda_stream *stream, const struct kernel_linear_args *maps,
                                int count)
{
    const struct kernel_linear_args *a = &maps[0];
    const struct linear_round_args round = {a->x, a->dtype, a->m, a->k, a->x_stride, RUN, 1};
    struct linear_operand x;
    if (a->m == 0 || linear_forward_few(stream, maps, count) || !linear_round(stream, &round, &x)) {
        return;
    }
    for (int i = 0; i < count; i++) {
        linear_forward_run(stream, &maps[i], &x);
    }
}

extern "C" void linear_forward_cuda(const struct kernel_linear_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "linear_forward");
    linear_forward_maps(stream, a, 1);
    cuda_op_end(stream);
}

extern "C" void linear_forward_set_cuda(const struct kernel_linear_set_args *a,
                                        struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "linear_forward_set");
    linear_forward_maps(stream, a->maps, a->count);
    cuda_op_end(stream);
}

/* x (+)= sums, the same for gradients of inputs. */
static __global__ void add_rows_kernel(float *to, int64_t stride, const float *from, int64_t ld,
                                       int64_t columns, bool accumulate)
{
    const int64_t row = blockIdx.x;
    for (int64_t c = threadIdx.x; c < columns; c += blockDim.x) {
        float *x = &to[row * stride + c];
        *x = accumulate ? *x + from[row * ld + c] : from[row * ld + c];
    }
}

void linear_input_run(struct cuda_stream *stream, const struct kernel_linear_args *a,
                      const struct linear_operand *dy)
{
    struct matmul_args product = {.kind = MATMUL_INPUT,
                                  .dtype = a->dtype,
                                  .a = a->w,
                                  .b = dy->data,
                                  .d = a->x,
                                  .bias = NULL,
                                  .m = a->k,
                                  .n = a->m,
                                  .depth = round_up(a->n, KERNEL_PANEL),
                                  .lda = a->k,
                                  .ldb = dy->ld,
                                  .ldd = a->x_stride,
                                  .accumulate = a->accumulate};
    if (a->x_stride % 4 == 0 && is_aligned(a->x)) {
        matmul_run(stream, &product);
        return;
    }
    product.ldd = round_up(a->k, 4);
    product.d = (float *)cuda_scratch(stream, (size_t)(a->m * product.ldd) * sizeof(float));
    product.accumulate = false;
    if (product.d != NULL) {
        matmul_run(stream, &product);
        CUDA_LAUNCH(add_rows_kernel, dim3((unsigned)a->m), dim3(THREADS), 0, stream, a->x,
                    a->x_stride, product.d, product.ldd, a->k, a->accumulate);
    }
}

extern "C" void linear_backward_input_cuda(const struct kernel_linear_args *a, struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "linear_backward_input");
    const struct linear_round_args round = {a->y,        a->dtype,     a->m, a->n,
                                            a->y_stride, KERNEL_PANEL, 1};
    struct linear_operand dy;
    if (a->m > 0 && linear_round(stream, &round, &dy)) {
        linear_input_run(stream, a, &dy);
    }
    cuda_op_end(stream);
}

void linear_weight_run(struct cuda_stream *stream, const struct kernel_linear_args *a,
                       const struct linear_operand *x, const struct linear_operand *dy)
{
    struct matmul_args product = {.kind = MATMUL_WEIGHT,
                                  .dtype = a->dtype,
                                  .a = x->data,
                                  .b = dy->data,
                                  .d = a->dw,
                                  .bias = NULL,
                                  .m = a->k,
                                  .n = round_up(a->n, RUN),
                                  .depth = x->rows,
                                  .lda = x->ld,
                                  .ldb = dy->ld,
                                  .ldd = a->k,
                                  .accumulate = true};
    if (a->n % RUN == 0 && a->k % 4 == 0 && is_aligned(a->dw)) {
        matmul_run(stream, &product);
        return;
    }
    product.ldd = round_up(a->k, 4);
    product.d = (float *)cuda_scratch(stream, (size_t)(product.n * product.ldd) * sizeof(float));
    product.accumulate = false;
    if (product.d != NULL) {
        matmul_run(stream, &product);
        CUDA_LAUNCH(add_rows_kernel, dim3((unsigned)a->n), dim3(THREADS), 0, stream, a->dw, a->k,
                    product.d, product.ldd, a->k, true);
    }
}

static void weight_backward(struct cuda_stream *stream, const struct kernel_linear_args *a,
                            const struct linear_operand *x, const struct linear_operand *dy)
{
    linear_weight_run(stream, a, x, dy);
    if (a->dbias != NULL) {
        const struct columns_args bias = {a->y, a->y_stride, a->m, a->n, a->dbias};
        columns_add(stream, &bias);
    }
}

extern "C" void linear_backward_weight_cuda(const struct kernel_linear_args *a,
                                            struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "linear_backward_weight");
    const struct linear_round_args round_x = {a->x, a->dtype, a->m, a->k, a->x_stride, RUN, RUN};
    const struct linear_round_args round_y = {a->y, a->dtype, a->m, a->n, a->y_stride, RUN, RUN};
    struct linear_operand x;
    struct linear_operand dy;
    if (a->m > 0 && linear_round(stream, &round_x, &x) && linear_round(stream, &round_y, &dy)) {
        weight_backward(stream, a, &x, &dy);
    }
    cuda_op_end(stream);
}

/* How dy is rounded for both products of backward. */
static struct linear_round_args round_of_dy(const struct kernel_linear_args *a)
{
    return {a->y, a->dtype, a->m, a->n, a->y_stride, KERNEL_PANEL, RUN};
}

/* Room for any of the maps' dy. */
static void *dy_room(struct cuda_stream *stream, const struct kernel_linear_set_args *a)
{
    int64_t most = 0;
    for (int i = 0; i < a->count; i++) {
        const struct linear_round_args round = round_of_dy(&a->maps[i]);
        const struct linear_operand shape = round_shape(&round);
        most = max(most, shape.rows * shape.ld);
    }
    return round_room(stream, most, a->maps[0].dtype);
}

/* x is rounded once, each dy once for both of its products. */
extern "C" void linear_backward_set_cuda(const struct kernel_linear_set_args *a,
                                         struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "linear_backward_set");
    const struct kernel_linear_args *first = &a->maps[0];
    const struct linear_round_args round_x = {first->x,        first->dtype, first->m, first->k,
                                              first->x_stride, RUN,          RUN};
    struct linear_operand x;
    void *room = NULL;
    if (first->m > 0 && linear_round(stream, &round_x, &x)) {
        room = dy_room(stream, a);
    }
    for (int i = 0; i < a->count && room != NULL; i++) {
        struct kernel_linear_args map = a->maps[i];
        const struct linear_round_args round_y = round_of_dy(&map);
        struct linear_operand dy = round_shape(&round_y);
        dy.data = room;
        round_run(stream, &round_y, &dy);
        weight_backward(stream, &map, &x, &dy);
        if (a->dx != NULL) {
            map.x = a->dx;
            linear_input_run(stream, &map, &dy);
        }
    }
    cuda_op_end(stream);
}

/* int8 weights are the CPU's: the stream says so where somebody asks for them. */
extern "C" void linear_quantize_cuda(const struct kernel_linear_quantize_args *,
                                     struct rl_pool *pool)
{
    struct cuda_stream *stream = cuda_op_begin(pool, "linear_quantize");
    cuda_fail(stream, "int8 weights", "not supported on GPUs");
    cuda_op_end(stream);
}
