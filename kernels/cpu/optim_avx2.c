/* Packing and the optimizer on avx2: pack_simd.inc and optim_simd.inc with the vectors of
 * simd_avx2.h. */
#include "kernels/cpu/ops_cpu.h"

#if KERNEL_HAVE_X86
#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/work_cpu.h"

#include <math.h>

#include "kernels/cpu/pack_simd.inc"

#include "kernels/cpu/optim_simd.inc"
#endif
