/* What this machine can do at best, measured: the yardstick beside which kernels are timed. */
#ifndef FORESIGHT_KERNELS_PROBE_H
#define FORESIGHT_KERNELS_PROBE_H

#include "kernels/kernels.h"

/* Peak rate of fused multiply-adds of one thread with the vectors of `isa`, GFLOP/s; 0 for ref and
 * for what the machine lacks. Takes about 2 ms. */
double kernel_probe_fma(enum kernel_isa isa);

/* Rate at which one thread reads `data` [bytes] repeatedly, GB/s (the second pass on, so data that
 * fits in a cache is read from it). */
double kernel_probe_read(const void *data, size_t bytes);

#endif
