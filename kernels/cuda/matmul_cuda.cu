/* Products: descriptors for cuBLASLt, and the plain kernel. */
#include "kernels/cuda/matmul_cuda.h"

#include "kernels/cuda/float_cuda.h"
#include "kernels/cuda/matmul_choose_cuda.h"

#include "core/log.h"

#include <stdlib.h>

enum {
    SEGMENT_DEPTH = 2560, /* what one run of dependent products on tensor cores takes 3 us for */
    SEGMENT_UNIT = 64,
    SEGMENTS_MAX = 4 /* each costs training another pass over the results */
};

static int64_t operand_width(enum kernel_dtype dtype)
{
    return dtype == KERNEL_BF16 ? (int64_t)sizeof(uint16_t) : (int64_t)sizeof(float);
}

rl_status matmul_create(struct cuda_matmul **out)
{
    struct cuda_matmul *matmul = (struct cuda_matmul *)calloc(1, sizeof *matmul);
    if (matmul == NULL) {
        return rl_fail(RL_NO_MEMORY, "cuda: %zu bytes for matrix products", sizeof *matmul);
    }
    rl_status status = cublas_lt_load(&matmul->lt);
    if (status == RL_OK) {
        const cublasStatus_t made = matmul->lt.create(&matmul->handle);
        if (made != CUBLAS_STATUS_SUCCESS) {
            status = rl_fail(RL_INTERNAL, "cuda: expected a cuBLASLt handle: %s",
                             matmul->lt.status_text(made));
        }
    }
    if (status != RL_OK) {
        free(matmul);
        return status;
    }
    *out = matmul;
    return RL_OK;
}

void matmul_destroy(struct cuda_matmul *matmul)
{
    if (matmul != NULL) {
        matmul->lt.destroy(matmul->handle);
        free(matmul);
    }
}

/* fp32 is true fp32 (pedantic: no TF32); of bf16 only the sums are fp32. */
static cublasComputeType_t matmul_compute(enum kernel_dtype dtype)
{
    return dtype == KERNEL_BF16 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_PEDANTIC;
}

static cublasStatus_t operation_set(const struct cublas_lt *lt, struct matmul_plan *plan,
                                    cublasLtMatmulDescAttributes_t attribute, int32_t value)
{
    return lt->operation_set(&plan->operation, attribute, &value, sizeof value);
}

static cublasStatus_t plan_operation(const struct cublas_lt *lt, const struct matmul_args *a,
                                     struct matmul_plan *plan)
{
    const int32_t transpose_a = a->kind == MATMUL_FORWARD ? CUBLAS_OP_T : CUBLAS_OP_N;
    const int32_t transpose_b = a->kind == MATMUL_WEIGHT ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasStatus_t status = lt->operation_init(&plan->operation, sizeof plan->operation,
                                               matmul_compute(a->dtype), CUDA_R_32F);
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = operation_set(lt, plan, CUBLASLT_MATMUL_DESC_TRANSA, transpose_a);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = operation_set(lt, plan, CUBLASLT_MATMUL_DESC_TRANSB, transpose_b);
    }
    if (status == CUBLAS_STATUS_SUCCESS && a->bias != NULL) {
        status = operation_set(lt, plan, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    }
    if (status == CUBLAS_STATUS_SUCCESS && a->bias != NULL) {
        status = lt->operation_set(&plan->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &a->bias,
                                   sizeof a->bias);
    }
    return status;
}

cublasStatus_t matmul_plan_make(const struct cublas_lt *lt, const struct matmul_args *a,
                                struct matmul_plan *plan)
{
    const cudaDataType_t type = a->dtype == KERNEL_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    const bool tall = a->kind == MATMUL_FORWARD; /* a has the depth along its columns */
    const bool wide = a->kind == MATMUL_WEIGHT;  /* b has it across them */
    const uint64_t m = (uint64_t)a->m;
    const uint64_t n = (uint64_t)a->n;
    const uint64_t depth = (uint64_t)a->depth;
    cublasStatus_t status = plan_operation(lt, a, plan);
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = lt->layout_init(&plan->a, sizeof plan->a, type, tall ? depth : m, tall ? m : depth,
                                 a->lda);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = lt->layout_init(&plan->b, sizeof plan->b, type, wide ? n : depth, wide ? depth : n,
                                 a->ldb);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = lt->layout_init(&plan->d, sizeof plan->d, CUDA_R_32F, m, n, a->ldd);
    }
    return status;
}

/* Where element (i, r) of a and (r, j) of b are. */
struct matmul_steps {
    int64_t a_row, a_depth, b_column, b_depth;
};

static __device__ float operand(const void *data, enum kernel_dtype dtype, int64_t index)
{
    return dtype == KERNEL_BF16 ? bf16_value(((const uint16_t *)data)[index])
                                : ((const float *)data)[index];
}

/* One thread an element of d, which is summed in double: for rows that are not aligned, which no
 * model of use has. */
static __global__ void matmul_plain(struct matmul_args a, struct matmul_steps steps)
{
    const int64_t i = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
    const int64_t j = blockIdx.x;
    if (i >= a.m) {
        return;
    }
    double sum = 0.0;
    for (int64_t r = 0; r < a.depth; r++) {
        const float x = operand(a.a, a.dtype, i * steps.a_row + r * steps.a_depth);
        const float y = operand(a.b, a.dtype, j * steps.b_column + r * steps.b_depth);
        sum += (double)x * (double)y;
    }
    float *d = &a.d[i + j * a.ldd];
    sum += a.accumulate ? (double)*d : 0.0;
    sum += a.bias != NULL ? (double)a.bias[i] : 0.0;
    *d = (float)sum;
}

static void matmul_run_plain(struct cuda_stream *stream, const struct matmul_args *a)
{
    const int threads = 64;
    struct matmul_steps steps = {1, a->lda, a->ldb, 1};
    if (a->kind == MATMUL_FORWARD) {
        steps.a_row = a->lda;
        steps.a_depth = 1;
    } else if (a->kind == MATMUL_WEIGHT) {
        steps.b_column = 1;
        steps.b_depth = a->ldb;
    }
    const dim3 grid((unsigned)a->n, (unsigned)((a->m + threads - 1) / threads));
    CUDA_LAUNCH(matmul_plain, grid, dim3(threads), 0, stream, *a, steps);
}

void matmul_multiply(struct cuda_stream *stream, const struct matmul_args *a,
                     const cublasLtMatmulAlgo_t *algorithm)
{
    const struct cuda_matmul *matmul = cuda_stream_matmul(stream);
    const float alpha = 1.0f;
    const float beta = a->accumulate ? 1.0f : 0.0f;
    struct matmul_plan plan;
    cublasStatus_t status = matmul_plan_make(&matmul->lt, a, &plan);
    if (status == CUBLAS_STATUS_SUCCESS && cuda_stream_good(stream)) {
        status = matmul->lt.multiply(matmul->handle, &plan.operation, &alpha, a->a, &plan.a, a->b,
                                     &plan.b, &beta, a->d, &plan.d, a->d, &plan.d, algorithm, NULL,
                                     0, cuda_stream_handle(stream));
    }
    if (status != CUBLAS_STATUS_SUCCESS) {
        cuda_fail(stream, "cuBLASLt", matmul->lt.status_text(status));
    }
}

/* One algorithm's product. */
static void matmul_run_one(struct cuda_stream *stream, const struct matmul_args *a)
{
    const struct matmul_choice *choice = matmul_choose(stream, a);
    if (choice != NULL && choice->plain) {
        matmul_run_plain(stream, a);
    } else if (choice != NULL) {
        const bool few = a->kind == MATMUL_FORWARD && a->n <= MATMUL_FEW_ROWS;
        matmul_multiply(stream, a, few ? &choice->few_rows : &choice->algorithm);
    }
}

int64_t matmul_segment(enum kernel_dtype dtype, int64_t depth)
{
    const int64_t wanted = (depth + SEGMENT_DEPTH - 1) / SEGMENT_DEPTH;
    const int64_t count = wanted < SEGMENTS_MAX ? wanted : (int64_t)SEGMENTS_MAX;
    if (dtype != KERNEL_BF16 || count <= 1) {
        return depth;
    }
    return ((depth + count - 1) / count + SEGMENT_UNIT - 1) / SEGMENT_UNIT * SEGMENT_UNIT;
}

void matmul_run(struct cuda_stream *stream, const struct matmul_args *a)
{
    if (a->lda % RUN != 0 || a->m % RUN != 0) {
        matmul_run_plain(stream, a);
        return;
    }
    if (a->kind != MATMUL_FORWARD) {
        matmul_run_one(stream, a);
        return;
    }
    const int64_t segment = matmul_segment(a->dtype, a->depth);
    for (int64_t start = 0; start < a->depth; start += segment) {
        struct matmul_args part = *a;
        part.a = (const char *)a->a + start * operand_width(a->dtype);
        part.b = (const char *)a->b + start * operand_width(a->dtype);
        part.depth = a->depth - start < segment ? a->depth - start : segment;
        part.bias = start + segment < a->depth ? NULL : a->bias;
        part.accumulate = start > 0 || a->accumulate;
        matmul_run_one(stream, &part);
    }
}

bool matmul_has_few(struct cuda_stream *stream, enum kernel_dtype dtype, int64_t depth)
{
    const int64_t segment = matmul_segment(dtype, depth);
    if (dtype != KERNEL_BF16 || depth % RUN != 0) {
        return false;
    }
    for (int64_t start = 0; start < depth; start += segment) {
        struct matmul_args part = {};
        part.kind = MATMUL_FORWARD;
        part.dtype = dtype;
        part.depth = depth - start < segment ? depth - start : segment;
        const struct matmul_choice *choice = matmul_choose(stream, &part);
        if (choice == NULL || !choice->kernel) {
            return false;
        }
    }
    return true;
}
