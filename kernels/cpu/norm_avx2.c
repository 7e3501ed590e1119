/* RMSNorm and rotary embedding on avx2: norm_simd.inc with the vectors of simd_avx2.h. */
#include "kernels/cpu/ops_cpu.h"

#if KERNEL_HAVE_X86
#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/work_cpu.h"

#include <math.h>

#include "kernels/cpu/norm_simd.inc"
#endif
