/* What the machine computes on. Only the CPU for now; large aligned buffers come from here so that
 * a GPU can own them later. */
#ifndef FORESIGHT_KERNELS_DEVICE_H
#define FORESIGHT_KERNELS_DEVICE_H

#include "core/status.h"

#include <stddef.h>

/* Zeroed buffer aligned to 64 bytes (2 MiB, huge pages advised, when large). Caller frees with
 * device_free. `what` names it in the error. Any thread. Errors: RL_NO_MEMORY. */
rl_status device_alloc(size_t bytes, const char *what, void **out);

/* Give back a buffer of device_alloc. Takes NULL. Any thread. */
void device_free(void *data);

/* Bytes held by device_alloc now and at the peak, for the footprint line. Counters are process-wide
 * atomics. */
void device_memory(size_t *now_bytes, size_t *peak_bytes);

/* Model name of the CPU, for `doctor` and reports; borrowed, valid for the calling thread's life.
 */
const char *device_cpu_name(void);

/* Bytes of the last-level cache, or a guess where the system does not say. */
size_t device_cache_bytes(void);

/* Logical processors online, at least 1. */
int device_cpu_count(void);

#endif
