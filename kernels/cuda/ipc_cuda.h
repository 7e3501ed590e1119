/* Device memory that processes share (CUDA IPC); kernels/device.h says what each function means. */
#ifndef FORESIGHT_KERNELS_CUDA_IPC_CUDA_H
#define FORESIGHT_KERNELS_CUDA_IPC_CUDA_H

#include "kernels/device.h"

/* device_buffer_share, device_buffer_map and device_buffer_unmap of CUDA devices. */
rl_status ipc_share(struct device *device, void *data, struct device_share *out,
                    char why[DEVICE_WHY_MAX]);
rl_status ipc_map(struct device *device, const struct device_share *share,
                  struct device_source *out, char why[DEVICE_WHY_MAX]);
void ipc_unmap(struct device *device, const void *data);

#endif
