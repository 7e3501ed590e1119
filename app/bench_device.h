/* What benchmarks need of a GPU: opening it, and what it can do at best, measured with large work
 * and the clock around it. */
#ifndef FORESIGHT_APP_BENCH_DEVICE_H
#define FORESIGHT_APP_BENCH_DEVICE_H

#include "app/bench_machine.h"

/* Take --device cpu|cuda (cpu) out of argv, after bench_machine_open. With cuda the machine gets
 * the first GPU, its kernels, and a stream for its pool. Errors: RL_INVALID, RL_UNSUPPORTED (no
 * GPU), the device's. */
rl_status bench_take_device(int *argc, char **argv, struct bench_machine *machine);

/* Copy bandwidth (bytes read and written) and the rate of a product of bf16 weights with as many
 * rows, both as large as it takes for a millisecond or so; memory and stream are given back.
 * Errors: RL_NO_MEMORY, the device's. */
rl_status bench_device_limits(struct device *device, struct bench_limits *out);

/* Peak of dense bf16 products by the data sheet, GFLOP/s, 0: the name is not in
 * bench_gpus.def. */
double bench_device_sheet_gflops(const struct device *device);

/* Bytes of the GPU's memory that are in use. */
size_t bench_device_used(const struct device *device);

#endif
