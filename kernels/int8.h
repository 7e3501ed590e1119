/* Numbers of 8 bits with one scale a row: x = scale q with q in -127 .. 127, rounded to nearest
 * even, the scale from the row's largest magnitude. Products of such rows are sums of integers, so
 * they are exact and the same in any order.
 *
 * A packed [N, K] weight of KERNEL_INT8 is panels of 32 outputs, each: fp32 scale[32]; int32
 * offset[32], -128 times the sum of the output's q; int8 q[ceil(K / 4)][32][4], zero where there is
 * no such input or output. */
#ifndef FORESIGHT_KERNELS_INT8_H
#define FORESIGHT_KERNELS_INT8_H

#include "kernels/kernels.h"

enum {
    KERNEL_INT8_QUAD = 4, /* neighbouring inputs that lie together */
    KERNEL_INT8_QUAD_BYTES = KERNEL_INT8_QUAD * KERNEL_PANEL,
    KERNEL_INT8_HEAD_BYTES = 8 * KERNEL_PANEL /* scales and offsets */
};

static inline int64_t kernel_int8_quads(int64_t k)
{
    return (k + KERNEL_INT8_QUAD - 1) / KERNEL_INT8_QUAD;
}

static inline int64_t kernel_int8_panel_bytes(int64_t k)
{
    return KERNEL_INT8_HEAD_BYTES + kernel_int8_quads(k) * KERNEL_INT8_QUAD_BYTES;
}

/* Where q of input k of the panel's output `lane` is. */
static inline int64_t kernel_int8_index(int64_t k, int64_t lane)
{
    return KERNEL_INT8_HEAD_BYTES + k / KERNEL_INT8_QUAD * KERNEL_INT8_QUAD_BYTES +
           lane * KERNEL_INT8_QUAD + k % KERNEL_INT8_QUAD;
}

/* What a row is divided and multiplied by. */
struct kernel_int8_scale {
    float scale, inverse;
};

/* From the row's largest magnitude. `flaw` is NaN if a number of the row is not finite, else 0; the
 * row is NaN then, as it would be in fp32. Rows too small to be divided by are zero. */
static inline struct kernel_int8_scale kernel_int8_scale_of(float largest, float flaw)
{
    if (!(largest > 1e-30F)) {
        return (struct kernel_int8_scale){.scale = flaw};
    }
    return (struct kernel_int8_scale){.scale = largest / 127.0F + flaw,
                                      .inverse = 127.0F / largest};
}

/* Weight (n, k) of a packed [N, inputs]. */
static inline float kernel_int8_weight(const void *w, int64_t inputs, int64_t n, int64_t k)
{
    const char *panel = (const char *)w + n / KERNEL_PANEL * kernel_int8_panel_bytes(inputs);
    const int64_t lane = n % KERNEL_PANEL;
    return ((const float *)(const void *)panel)[lane] *
           (float)(int8_t)panel[kernel_int8_index(k, lane)];
}

#endif
