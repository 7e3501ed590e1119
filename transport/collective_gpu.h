/* How learners' GPUs come together: where every learner has one of its own and NCCL is installed,
 * it sums and gathers what lies in their memory; else that goes by way of the host's memory, as
 * collective_device.c does it, and rank 0 says why. */
#ifndef FORESIGHT_TRANSPORT_COLLECTIVE_GPU_H
#define FORESIGHT_TRANSPORT_COLLECTIVE_GPU_H

#include "transport/collective.h"

#include <stddef.h>

struct device;

/* Set up the way for `c`, from collective_mpi_create or _local_create, once, before its first
 * operation on a device. device: NULL on a learner that computes on the CPU; `pool` has its stream.
 * Both are borrowed until collective_gpu_stop. Collective; compute thread, pumped. Errors: of `c`,
 * RL_NO_MEMORY. */
rl_status collective_gpu_start(struct collective *c, struct device *device, struct rl_pool *pool,
                               double timeout_s);

/* The most that operations on an array of so many bytes, or on smaller ones, take of a GPU's memory
 * besides: what goes between that many learners. NCCL's own memory is not in it. */
size_t collective_gpu_bytes(int learners, size_t bytes);

/* Before the device's stream is stopped; takes NULL, and what was never started. Compute thread. */
void collective_gpu_stop(struct collective *c);

#endif
