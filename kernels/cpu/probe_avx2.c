/* Peak of fused multiply-adds on avx2: probe_simd.inc with the vectors of simd_avx2.h. */
#include "kernels/cpu/ops_cpu.h"

#if KERNEL_HAVE_X86
#include "kernels/cpu/probe_cpu.h"
#include "kernels/cpu/simd_avx2.h"

#include "kernels/cpu/probe_simd.inc"
#endif
