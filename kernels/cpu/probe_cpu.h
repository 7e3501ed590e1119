/* The measured loops of probe.c, one a instruction set. Each does `rounds` x PROBE_*_FLOPS
 * floating-point operations; sink [2] holds two factors below 1 and keeps the result alive. */
#ifndef FORESIGHT_KERNELS_CPU_PROBE_CPU_H
#define FORESIGHT_KERNELS_CPU_PROBE_CPU_H

#include <stdint.h>

enum { PROBE_AVX2_FLOPS = 12 * 8 * 2, PROBE_AVX512_FLOPS = 16 * 16 * 2 };

void probe_fma_avx2(int64_t rounds, float *sink);
void probe_fma_avx512(int64_t rounds, float *sink);

#endif
