/* Conversions between fp32 and bf16 (upper half of an fp32). Rounding is to nearest, ties to even;
 * NaN stays NaN (its quiet bit is set so that truncation cannot make an infinity of it). */
#ifndef FORESIGHT_KERNELS_BF16_H
#define FORESIGHT_KERNELS_BF16_H

#include <stdint.h>
#include <string.h>

/* Exact. */
static inline float kernel_bf16_to_float(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* Round to nearest even. */
static inline uint16_t kernel_bf16_from_float(float value)
{
    uint32_t wide;
    memcpy(&wide, &value, sizeof wide);
    if ((wide & 0x7fffffffU) > 0x7f800000U) {
        return (uint16_t)((wide >> 16) | 0x40U);
    }
    wide += 0x7fffU + ((wide >> 16) & 1U);
    return (uint16_t)(wide >> 16);
}

#endif
