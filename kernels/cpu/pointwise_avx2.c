/* Gated units, addition, sum of squares on avx2: pointwise_simd.inc with the vectors of
 * simd_avx2.h. */
#include "kernels/cpu/ops_cpu.h"

#if KERNEL_HAVE_X86
#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/work_cpu.h"

#include <math.h>

#include "kernels/cpu/math_simd.inc"

#include "kernels/cpu/pointwise_simd.inc"
#endif
