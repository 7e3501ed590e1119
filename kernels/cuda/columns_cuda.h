/* Sums over the rows of a matrix: gradients of biases and of norms' weights. */
#ifndef FORESIGHT_KERNELS_CUDA_COLUMNS_CUDA_H
#define FORESIGHT_KERNELS_CUDA_COLUMNS_CUDA_H

#include "kernels/cuda/device_cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Device memory. */
struct columns_args {
    const float *y; /* [rows, stride], of which `columns` are added up */
    int64_t stride, rows, columns;
    float *sums; /* [columns] */
};

/* sums += those of the columns, in an order that `rows` alone fixes. Enqueues; takes scratch. */
void columns_add(struct cuda_stream *stream, const struct columns_args *a);

#ifdef __cplusplus
}
#endif

#endif
