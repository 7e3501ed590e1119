/* The last steps of a row's log-probability, the same in head_forward and head_decode. */
#ifndef FORESIGHT_KERNELS_CUDA_HEAD_ROW_CUDA_H
#define FORESIGHT_KERNELS_CUDA_HEAD_ROW_CUDA_H

#include "kernels/cuda/cuda_kernel.h"
#include "kernels/cuda/head_cuda.h"

static inline __device__ float head_row_logprob(const struct head_row *row, float logit,
                                                float inv_temperature)
{
    return logit * inv_temperature - row->max - row->log_sum;
}

#endif
