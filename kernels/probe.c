/* Times the probe loops. Takes the best of several short runs, since a machine may be shared. */
#include "kernels/probe.h"

#include "kernels/cpu/ops_cpu.h"
#include "kernels/cpu/probe_cpu.h"

#include <time.h>

enum { PROBE_RUNS = 7, PROBE_ROUNDS = 100000, PROBE_STREAMS = 8 };

static double probe_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#if KERNEL_HAVE_X86
static double probe_loop(void (*loop)(int64_t rounds, float *sink), double flops)
{
    float sink[2] = {0.5f, 0.25f};
    double best = 0.0;
    for (int run = 0; run < PROBE_RUNS; run++) {
        double start = probe_now();
        loop(PROBE_ROUNDS, sink);
        double rate = (double)PROBE_ROUNDS * flops / (probe_now() - start) * 1e-9;
        best = rate > best ? rate : best;
    }
    return best;
}
#endif

double kernel_probe_fma(enum kernel_isa isa)
{
#if KERNEL_HAVE_X86
    if (isa == KERNEL_ISA_AVX512 && kernel_isa_best() >= KERNEL_ISA_AVX512) {
        return probe_loop(probe_fma_avx512, (double)PROBE_AVX512_FLOPS);
    }
    if (isa == KERNEL_ISA_AVX2 && kernel_isa_best() >= KERNEL_ISA_AVX2) {
        return probe_loop(probe_fma_avx2, (double)PROBE_AVX2_FLOPS);
    }
#endif
    (void)isa;
    return 0.0;
}

double kernel_probe_read(const void *data, size_t bytes)
{
    const uint64_t *words = data;
    const size_t count = bytes / sizeof *words / PROBE_STREAMS * PROBE_STREAMS;
    double best = 0.0;
    volatile uint64_t keep = 0;
    for (int run = 0; run < PROBE_RUNS && count > 0; run++) {
        uint64_t sum[PROBE_STREAMS] = {0};
        double start = probe_now();
        for (size_t i = 0; i < count; i += PROBE_STREAMS) {
            for (size_t j = 0; j < PROBE_STREAMS; j++) {
                sum[j] += words[i + j];
            }
        }
        keep += sum[0] + sum[PROBE_STREAMS - 1];
        for (size_t j = 1; j + 1 < PROBE_STREAMS; j++) {
            keep += sum[j];
        }
        double rate = (double)(count * sizeof *words) / (probe_now() - start) * 1e-9;
        best = run > 0 && rate > best ? rate : best;
    }
    return best;
}
