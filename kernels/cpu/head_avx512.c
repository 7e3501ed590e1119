/* Output head on avx512: head_simd.inc and head_decode_simd.inc with the vectors of simd_avx512.h.
 */
#include "kernels/cpu/ops_cpu.h"

#if KERNEL_HAVE_X86
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/work_cpu.h"
#include "kernels/sampling.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/math_simd.inc"

#include "kernels/cpu/head_simd.inc"

#include "kernels/cpu/head_decode_simd.inc"
#endif
