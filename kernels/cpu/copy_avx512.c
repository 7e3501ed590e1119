/* Ops that move numbers on avx512: copy_simd.inc with the vectors of simd_avx512.h. */
#include "kernels/cpu/ops_cpu.h"

#if KERNEL_HAVE_X86
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/work_cpu.h"
#include "kernels/hash_word.h"
#include "kernels/ref/ops_ref.h"

#include <string.h>

#include "kernels/cpu/copy_simd.inc"
#endif
