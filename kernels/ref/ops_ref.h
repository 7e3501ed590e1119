/* The reference back end: every op of ops.def in plain C, as `NAME_ref`. It states what an op means
 * and is what the others are tested against; sums are kept in double. It ignores `pool`. */
#ifndef FORESIGHT_KERNELS_REF_OPS_REF_H
#define FORESIGHT_KERNELS_REF_OPS_REF_H

#include "kernels/kernels.h"

#define KERNEL_OP(name, args, tolerance)                                                           \
    void name##_ref(const struct args *a, struct rl_pool *pool);
#include "kernels/ops.def"

/* Element `index` of an fp32 or bf16 array. */
float weight_at_ref(const void *w, enum kernel_dtype dtype, int64_t index);

/* One row of x times a packed [n, k] weight: y[n] in fp32 from a double sum, k ascending. */
struct linear_row_ref {
    const void *w;
    enum kernel_dtype dtype;
    int64_t n, k;
};
void linear_row_ref(const struct linear_row_ref *linear, const float *x, float *y);

/* linear_forward and linear_row_ref with weights of KERNEL_INT8. */
void linear_int8_ref(const struct kernel_linear_args *a, struct rl_pool *pool);
void linear_int8_row_ref(const struct linear_row_ref *linear, const float *x, float *y);

#endif
