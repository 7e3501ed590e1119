/* Matrix products on the GPU: cuBLASLt with one fixed algorithm per kind and shape, or a plain
 * kernel where rows are not aligned.
 *
 * Invariant (P1): of MATMUL_FORWARD, which algorithm runs depends on the type and the depth alone;
 * no algorithm splits the depth; where few rows have a way of their own, it was seen to give the
 * same bits. So a column of d has the same bits whatever it is computed with. A long depth of bf16
 * is summed in segments (matmul_segment), a product each, for every number of rows. */
#ifndef FORESIGHT_KERNELS_CUDA_MATMUL_CUDA_H
#define FORESIGHT_KERNELS_CUDA_MATMUL_CUDA_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_stream;
struct cuda_matmul;

/* Which of the operands are read along the depth: both; b; none. */
enum matmul_kind { MATMUL_FORWARD, MATMUL_INPUT, MATMUL_WEIGHT };

/* d = a b (+ bias) (+ old d), column-major as BLAS has it: d (i, j) is d[i + j * ldd], i < m, j <
 * n. With r < depth: FORWARD: a (i, r) is a[i * lda + r], b (r, j) is b[j * ldb + r] INPUT:   a (i,
 * r) is a[r * lda + i], b (r, j) is b[j * ldb + r] WEIGHT:  a (i, r) is a[r * lda + i], b (r, j) is
 * b[r * ldb + j] All pointers are the device's, aligned to 16 bytes; ldb and depth are multiples of
 * 8, ldd of 4. Where lda or m is no multiple of 8, or cuBLASLt has no algorithm, the plain kernel
 * runs. */
struct matmul_args {
    enum matmul_kind kind;
    enum kernel_dtype dtype; /* of a and b; sums and d are fp32 */
    const void *a, *b;
    float *d;
    const float *bias; /* [m], of FORWARD; NULL: none */
    int64_t m, n, depth, lda, ldb, ldd;
    bool accumulate;
};

/* Load cuBLASLt and make its handle for the current device. Caller owns *out; it belongs to one
 * thread. Errors: RL_UNSUPPORTED, RL_NO_MEMORY, RL_INTERNAL. */
rl_status matmul_create(struct cuda_matmul **out);

/* Takes NULL. */
void matmul_destroy(struct cuda_matmul *matmul);

/* Enqueue one product. Errors go to the stream. */
void matmul_run(struct cuda_stream *stream, const struct matmul_args *a);

/* Segments of FORWARD's depth: what each but the last has, a multiple of 64 unless it is all. */
int64_t matmul_segment(enum kernel_dtype dtype, int64_t depth);

/* Does linear_few_cuda give the bits of matmul_run, in segments of matmul_segment? The first
 * question for a depth waits for the stream. */
bool matmul_has_few(struct cuda_stream *stream, enum kernel_dtype dtype, int64_t depth);

#ifdef __cplusplus
}
#endif

#endif
