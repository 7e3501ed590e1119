/* What the output head's forward, backward and decoding share.
 * Invariant (P1): a row's logits are summed up by chunks of KERNEL_HEAD_CHUNK ids, each relative to
 * its own maximum, then over chunks by one warp in one order; training and decoding run the same
 * kernels. */
#ifndef FORESIGHT_KERNELS_CUDA_HEAD_CUDA_H
#define FORESIGHT_KERNELS_CUDA_HEAD_CUDA_H

#include "kernels/cuda/linear_cuda.h"
#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One chunk of a row: sums of e^(v - max) and e^(v - max) (v - max), v the logits by the
 * temperature; `top` is the lowest id that has the maximum. */
struct head_sum {
    float max, sum, weighted;
    int32_t top;
};

/* A whole row. */
struct head_row {
    double sum, weighted;
    float max, log_sum;
    int32_t top;
};

/* Logits of ids start .. start + count - 1 (start a multiple of KERNEL_HEAD_CHUNK) of m rows, and
 * what becomes of them. All device memory. */
struct head_wave {
    float *z; /* [m, stride], aligned to 16 bytes, stride a multiple of 8 */
    int64_t m, stride, start, count;
    int64_t chunks; /* of the whole vocabulary */
    float inv_temperature;
    const int32_t *targets; /* [m] or NULL */
    float *target_logit;    /* [m] */
    struct head_sum *sums;  /* [m, chunks] */
    float *parts;           /* [m, chunks, KERNEL_DECODE_PARTS] sums of e^(v - max), or NULL */
};

/* The head's inputs and weight. */
struct head_product {
    const float *rows; /* [m, c] */
    const void *w;
    enum kernel_dtype dtype;
    struct linear_operand x; /* rows rounded to dtype, by head_product_round; data NULL before */
    int64_t m, v, c;
};

/* Chunks of KERNEL_HEAD_CHUNK ids in a vocabulary. */
int64_t head_chunks(int64_t v);

/* Columns of a wave: all of the vocabulary if that many logits fit, else a multiple of a chunk. */
int64_t head_wave_columns(int64_t m, int64_t v);

/* Logits of a wave: the caller's scratch where it holds them. NULL when the stream has failed. */
float *head_wave_room(struct cuda_stream *stream, const struct kernel_head_args *a,
                      int64_t columns);

/* Round the head's inputs, unless they are. Enqueues; false when the stream has failed. */
bool head_product_round(struct cuda_stream *stream, struct head_product *product);

/* wave->z = logits, then their chunks' sums; rounds the inputs where it must. Enqueues. */
void head_wave_run(struct cuda_stream *stream, struct head_product *product,
                   const struct head_wave *wave);

/* rows [m] from sums [m, chunks]. Enqueues. */
void head_rows_run(struct cuda_stream *stream, const struct head_sum *sums, int64_t m,
                   int64_t chunks, struct head_row *rows);

#ifdef __cplusplus
}
#endif

#endif
