/* Linear maps and embedding on avx512: linear_simd.inc with the vectors of simd_avx512.h. */
#include "kernels/cpu/ops_cpu.h"

#if KERNEL_HAVE_X86
#include "kernels/bf16.h"
#include "kernels/cpu/linear_int8_cpu.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/work_cpu.h"
#include "kernels/int8.h"

static void linear_int8(const struct kernel_linear_args *maps, int count, struct rl_pool *pool)
{
    if (__builtin_cpu_supports("avx512vnni")) {
        linear_int8_avx512(maps, count, pool);
    } else {
        linear_int8_avx2(maps, count, pool);
    }
}

#include "kernels/cpu/tile_simd.inc"

#include "kernels/cpu/linear_simd.inc"

#include "kernels/cpu/linear_backward_simd.inc"
#endif
