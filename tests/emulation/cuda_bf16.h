/* The part of the toolkit's <cuda_bf16.h> that kernels/cuda may use, on the CPU. */
#ifndef FORESIGHT_TESTS_EMULATION_CUDA_BF16_H
#define FORESIGHT_TESTS_EMULATION_CUDA_BF16_H

#include <cuda_runtime.h>

struct __nv_bfloat16 {
    unsigned short bits;
};

struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
} __align__(4);

/* To nearest even; every NaN becomes 0x7fff, as on the device. */
static inline __nv_bfloat16 __float2bfloat16_rn(float value)
{
    unsigned wide = __float_as_uint(value);
    if ((wide & 0x7fffffffU) > 0x7f800000U) {
        return {0x7fff};
    }
    return {(unsigned short)((wide + 0x7fffU + (wide >> 16 & 1U)) >> 16)};
}
static inline __nv_bfloat16 __float2bfloat16(float value)
{
    return __float2bfloat16_rn(value);
}
static inline float __bfloat162float(__nv_bfloat16 value)
{
    return __uint_as_float((unsigned)value.bits << 16);
}
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value)
{
    return value.bits;
}
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits)
{
    return {bits};
}
static inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high)
{
    return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
}
static inline __nv_bfloat162 __float22bfloat162_rn(float2 value)
{
    return __floats2bfloat162_rn(value.x, value.y);
}
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 low, __nv_bfloat16 high)
{
    return {low, high};
}
static inline float2 __bfloat1622float2(__nv_bfloat162 value)
{
    return {__bfloat162float(value.x), __bfloat162float(value.y)};
}
static inline float __low2float(__nv_bfloat162 value)
{
    return __bfloat162float(value.x);
}
static inline float __high2float(__nv_bfloat162 value)
{
    return __bfloat162float(value.y);
}

#endif
