/* Attention on avx512: the attention_*_simd.inc and kv_simd.inc with the vectors of simd_avx512.h.
 */
#include "kernels/cpu/ops_cpu.h"

#if KERNEL_HAVE_X86
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/work_cpu.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/math_simd.inc"
#include "kernels/cpu/tile_simd.inc"

#include "kernels/cpu/attention_tile_simd.inc"

#include "kernels/cpu/attention_simd.inc"

#include "kernels/cpu/attention_backward_simd.inc"

#include "kernels/cpu/kv_simd.inc"
#endif
