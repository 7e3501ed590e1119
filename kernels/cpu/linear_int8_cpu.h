/* Linear maps on int8 weights: linear_forward_set's part for KERNEL_INT8. */
#ifndef FORESIGHT_KERNELS_CPU_LINEAR_INT8_CPU_H
#define FORESIGHT_KERNELS_CPU_LINEAR_INT8_CPU_H

#include "kernels/kernels.h"

/* linear_forward_set of maps [count] with weights of KERNEL_INT8; both give the same bits. The
 * second needs a machine with AVX-512 VNNI. */
void linear_int8_avx2(const struct kernel_linear_args *maps, int count, struct rl_pool *pool);
void linear_int8_avx512(const struct kernel_linear_args *maps, int count, struct rl_pool *pool);

#endif
