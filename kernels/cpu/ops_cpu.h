/* The vector back ends: every op of ops.def as `NAME_avx2` and `NAME_avx512`.
 *
 * How they are written: the code of an op is in NAME_simd.inc, in terms of the small vector
 * vocabulary that simd_avx512.h and simd_avx2.h both define (same names, 16 or 8 lanes). Each
 * NAME_avx512.c and NAME_avx2.c includes one of the two and then the .inc, and is compiled with
 * that instruction set. SIMD_NAME(x) gives external functions their suffix. */
#ifndef FORESIGHT_KERNELS_CPU_OPS_CPU_H
#define FORESIGHT_KERNELS_CPU_OPS_CPU_H

#include "kernels/kernels.h"

#if defined(__x86_64__)
#define KERNEL_HAVE_X86 1
#else
#define KERNEL_HAVE_X86 0
#endif

#define KERNEL_OP(name, args, tolerance)                                                           \
    void name##_avx2(const struct args *a, struct rl_pool *pool);                                  \
    void name##_avx512(const struct args *a, struct rl_pool *pool);
#include "kernels/ops.def"

#endif
