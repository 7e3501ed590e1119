/* The vector back ends: every op of ops.def as `NAME_avx2` and `NAME_avx512`. */
#ifndef FORESIGHT_KERNELS_CPU_OPS_CPU_H
#define FORESIGHT_KERNELS_CPU_OPS_CPU_H

#include "kernels/kernels.h"

#define KERNEL_HAVE_X86 0

#endif
