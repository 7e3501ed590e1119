/* How tensor cores add up, as far as it is known from measurements of A100 and H100 (NVIDIA
 * documents none of it): products are exact; they and the sum so far are brought to the largest
 * exponent among them, where bits beyond TENSOR_BITS are cut off; their sum is cut off again to
 * fp32, not rounded. Real ones keep as many bits or more and take as many products at a time or
 * more, so that what holds here should hold there. */
#ifndef FORESIGHT_TESTS_EMULATION_TENSOR_EMULATION_H
#define FORESIGHT_TESTS_EMULATION_TENSOR_EMULATION_H

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { TENSOR_PRODUCTS = 8 /* at a time */, TENSOR_BITS = 24 /* behind the largest one's first */ };

/* Exponent of a number that is not 0; its bits need no rounding, so it is normal as a double. */
static inline int tensor_exponent(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (int)(bits >> 52 & 0x7ff) - 1023;
}

static inline double tensor_power(int exponent)
{
    const uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The next fp32 number towards 0, if `value` is none. */
static inline float tensor_cut(double value)
{
    const float near = (float)value;
    return fabs((double)near) > fabs(value) ? nextafterf(near, 0.0f) : near;
}

/* sum + x[0] y[0] + ..., `count` of them, at most TENSOR_PRODUCTS. */
static inline float tensor_sum(float sum, const float *x, const float *y, int count)
{
    double part[TENSOR_PRODUCTS + 1];
    double largest = fabs((double)sum);
    for (int i = 0; i < count; i++) {
        part[i] = (double)x[i] * (double)y[i];
        largest = fmax(largest, fabs(part[i]));
    }
    part[count] = (double)sum;
    double total = 0.0;
    for (int i = 0; i <= count; i++) {
        total += part[i];
    }
    if (largest == 0.0 || !isfinite(total)) { /* nothing to cut; NaN and infinity as usual */
        return (float)total;
    }
    const int last = tensor_exponent(largest) - TENSOR_BITS;
    const double up = tensor_power(-last);
    int64_t units = 0;
    for (int i = 0; i <= count; i++) {
        units += (int64_t)(part[i] * up);
    }
    return tensor_cut((double)units * tensor_power(last));
}

#endif
