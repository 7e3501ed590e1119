/* What linear maps and the head share: operands rounded to the weights' type, rows made whole. */
#ifndef FORESIGHT_KERNELS_CUDA_LINEAR_CUDA_H
#define FORESIGHT_KERNELS_CUDA_LINEAR_CUDA_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_stream;

/* A matrix in scratch: [rows, ld] of dtype, zero beyond the columns and rows that it was made of.
 */
struct linear_operand {
    void *data;
    int64_t rows, ld;
};

/* What a matrix of fp32 [rows, columns] with `stride` floats between rows becomes: ld is `columns`
 * rounded up to `unit` (a multiple of 8), rows are rounded up to `row_unit`. */
struct linear_round_args {
    const float *from;
    enum kernel_dtype dtype;
    int64_t rows, columns, stride, unit, row_unit;
};

/* Round x to dtype (to nearest even), into scratch of the stream. Enqueues; false when the stream
 * has failed. */
bool linear_round(struct cuda_stream *stream, const struct linear_round_args *a,
                  struct linear_operand *out);

/* Forward of maps that read the same few rows, as they are. Enqueues; false, with nothing queued,
 * where the rows must be rounded first. */
bool linear_forward_few(struct cuda_stream *stream, const struct kernel_linear_args *maps,
                        int count);

/* x (+)= dy W, and dw += dy^T x, of operands that are rounded already: dy has ld >= N rounded up to
 * 32 (zeros beyond N) for the first, and rows a multiple of 8 for the second. Enqueue. */
void linear_input_run(struct cuda_stream *stream, const struct kernel_linear_args *a,
                      const struct linear_operand *dy);
void linear_weight_run(struct cuda_stream *stream, const struct kernel_linear_args *a,
                       const struct linear_operand *x, const struct linear_operand *dy);

/* Bytes of an element. */
int64_t linear_width(enum kernel_dtype dtype);

#ifdef __cplusplus
}
#endif

#endif
