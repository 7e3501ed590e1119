/* Which algorithm of cuBLASLt a product runs with; shared by matmul_cuda.cu and
 * matmul_choose_cuda.cu.
 *
 * Of MATMUL_FORWARD there may be three ways: the algorithm for many rows, one of its own for few
 * rows, and with bf16 the kernel of linear_few_cuda.cu. The latter two are taken only if they give
 * the very bits of the first on products of random numbers, of which an order of sums that is not
 * the same would change most. Of the algorithms that could be the first, the kernel's fellow is
 * preferred. Nothing is timed: which bits come out must not depend on how busy a machine was. */
#ifndef FORESIGHT_KERNELS_CUDA_MATMUL_CHOOSE_CUDA_H
#define FORESIGHT_KERNELS_CUDA_MATMUL_CHOOSE_CUDA_H

#include "kernels/cuda/cublas_lt.h"
#include "kernels/cuda/matmul_cuda.h"

enum {
    MATMUL_CHOICES = 64, /* that are remembered; a model needs a dozen */
    MATMUL_FEW_ROWS = 64 /* n up to which the algorithm for few rows runs */
};

/* What a choice depends on. */
struct matmul_key {
    enum matmul_kind kind;
    enum kernel_dtype dtype;
    int64_t first, second;
};

struct matmul_choice {
    struct matmul_key key;
    cublasLtMatmulAlgo_t algorithm, few_rows;
    bool kernel; /* few rows: linear_few_cuda gives the bits of `algorithm` */
    bool plain;  /* there is no algorithm: the plain kernel runs */
};

struct cuda_matmul {
    struct cublas_lt lt;
    cublasLtHandle_t handle;
    struct matmul_choice choices[MATMUL_CHOICES]; /* the oldest makes way */
    int64_t count;
};

/* Descriptors of one product. */
struct matmul_plan {
    cublasLtMatmulDescOpaque_t operation;
    cublasLtMatrixLayoutOpaque_t a, b, d;
};

/* Fill the descriptors; sizes and strides are taken from `a`. */
cublasStatus_t matmul_plan_make(const struct cublas_lt *lt, const struct matmul_args *a,
                                struct matmul_plan *plan);

/* Enqueue one product with this algorithm. */
void matmul_multiply(struct cuda_stream *stream, const struct matmul_args *a,
                     const cublasLtMatmulAlgo_t *algorithm);

/* The choice for a product, of FORWARD that of its depth; NULL if the stream has failed. The first
 * product of a kind and shape waits for the stream. */
const struct matmul_choice *matmul_choose(struct cuda_stream *stream, const struct matmul_args *a);

#endif
