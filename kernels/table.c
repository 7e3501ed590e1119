/* Dispatch: one constant table per instruction set, complete by construction from ops.def. Owns the
 * decision which of them this machine may run; knows nothing of what the ops do. */
#include "kernels/cpu/ops_cpu.h"
#if FORESIGHT_HAVE_CUDA
#include "kernels/cuda/ops_cuda.h"
#endif
#include "kernels/ref/ops_ref.h"

#include "core/log.h"

static const struct kernel_table table_ref = {
    .name = "ref",
    .isa = KERNEL_ISA_REF,
#define KERNEL_OP(op, args, tolerance) .op = op##_ref,
#include "kernels/ops.def"
};

#if KERNEL_HAVE_X86
static const struct kernel_table table_avx2 = {
    .name = "avx2",
    .isa = KERNEL_ISA_AVX2,
#define KERNEL_OP(op, args, tolerance) .op = op##_avx2,
#include "kernels/ops.def"
};

static const struct kernel_table table_avx512 = {
    .name = "avx512",
    .isa = KERNEL_ISA_AVX512,
#define KERNEL_OP(op, args, tolerance) .op = op##_avx512,
#include "kernels/ops.def"
};
#endif

#if FORESIGHT_HAVE_CUDA
static const struct kernel_table table_cuda = {
    .name = "cuda",
    .isa = KERNEL_ISA_CUDA,
#define KERNEL_OP(op, args, tolerance) .op = op##_cuda,
#include "kernels/ops.def"
};
#endif

static bool machine_has(enum kernel_isa isa)
{
    switch (isa) {
    case KERNEL_ISA_REF:
        return true;
#if KERNEL_HAVE_X86
    case KERNEL_ISA_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case KERNEL_ISA_AVX512:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
#if FORESIGHT_HAVE_CUDA
    case KERNEL_ISA_CUDA:
        return true; /* whether there is a GPU is found out when it is opened */
#endif
    default:
        return false;
    }
}

rl_status kernel_table_get(enum kernel_isa isa, const struct kernel_table **out)
{
    if (!machine_has(isa)) {
        return rl_fail(RL_UNSUPPORTED,
                       "kernels: this machine cannot run instruction set %d (0 ref, "
                       "1 avx2, 2 avx512, 3 cuda)",
                       (int)isa);
    }
    *out = &table_ref;
#if KERNEL_HAVE_X86
    if (isa == KERNEL_ISA_AVX2) {
        *out = &table_avx2;
    }
    if (isa == KERNEL_ISA_AVX512) {
        *out = &table_avx512;
    }
#endif
#if FORESIGHT_HAVE_CUDA
    if (isa == KERNEL_ISA_CUDA) {
        *out = &table_cuda;
    }
#endif
    return RL_OK;
}

enum kernel_isa kernel_isa_best(void)
{
    if (machine_has(KERNEL_ISA_AVX512)) {
        return KERNEL_ISA_AVX512;
    }
    return machine_has(KERNEL_ISA_AVX2) ? KERNEL_ISA_AVX2 : KERNEL_ISA_REF;
}
