/* Device memory that processes share, by CUDA's handles. Whatever CUDA refuses is an answer here
 * and no error: there is always the way by the host's memory.
 *
 * A handle is of a whole allocation of cudaMalloc, it is opened once a process and by another
 * process than the one that made it, and memory is closed by all before it is freed. Nothing orders
 * what two processes do with it: whoever writes waits for its stream before it says so. */
#include "kernels/cuda/cuda_kernel.h"
#include "kernels/cuda/ipc_cuda.h"
#include "kernels/device_ops.h"

#include <cstdio>
#include <cstring>

static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(device_share::handle), "as device.h says");
static_assert(sizeof(cudaUUID_t) == sizeof(device_share::gpu), "as device.h says");

/* The answer no; CUDA shall not report the error again with the next call. */
static rl_status refuse(const struct device *device, const char *what, const char *text,
                        char why[DEVICE_WHY_MAX])
{
    (void)cudaGetLastError();
    (void)snprintf(why, DEVICE_WHY_MAX, "%.60s: %s: %.60s", device->name, what, text);
    return RL_UNSUPPORTED;
}

static cudaError_t gpu_of(int index, unsigned char gpu[DEVICE_UUID_BYTES])
{
    struct cudaDeviceProp properties;
    const cudaError_t error = cudaGetDeviceProperties(&properties, index);
    if (error == cudaSuccess) {
        memcpy(gpu, &properties.uuid, sizeof properties.uuid);
    }
    return error;
}

rl_status ipc_share(struct device *device, void *data, struct device_share *out,
                    char why[DEVICE_WHY_MAX])
{
    struct device_share share;
    cudaIpcMemHandle_t handle;
    cudaError_t error = cudaSetDevice(device->index);
    if (error == cudaSuccess) {
        error = gpu_of(device->index, share.gpu);
    }
    if (error == cudaSuccess) {
        error = cudaIpcGetMemHandle(&handle, data);
    }
    if (error != cudaSuccess) {
        return refuse(device, "cudaIpcGetMemHandle", cudaGetErrorString(error), why);
    }
    memcpy(share.handle, &handle, sizeof handle);
    *out = share;
    return RL_OK;
}

/* Number of the GPU among those that this process sees, -1 if it does not see it. */
static int find_gpu(const unsigned char gpu[DEVICE_UUID_BYTES])
{
    unsigned char own[DEVICE_UUID_BYTES];
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        return -1;
    }
    for (int i = 0; i < count; i++) {
        if (gpu_of(i, own) == cudaSuccess && memcmp(own, gpu, sizeof own) == 0) {
            return i;
        }
    }
    return -1;
}

/* A GPU that is hidden from this process may be a peer all the same: opening will tell. */
static bool may_reach(const struct device *device, int other)
{
    int can = 0;
    if (other < 0 || other == device->index) {
        return true;
    }
    return cudaDeviceCanAccessPeer(&can, device->index, other) == cudaSuccess && can != 0;
}

rl_status ipc_map(struct device *device, const struct device_share *share,
                  struct device_source *out, char why[DEVICE_WHY_MAX])
{
    void *data = nullptr;
    cudaIpcMemHandle_t handle;
    const int other = find_gpu(share->gpu);
    memcpy(&handle, share->handle, sizeof handle);
    if (!may_reach(device, other)) {
        return refuse(device, "cudaDeviceCanAccessPeer", "the two GPUs are no peers", why);
    }
    cudaError_t error = cudaSetDevice(device->index);
    if (error == cudaSuccess) {
        error = cudaIpcOpenMemHandle(&data, handle, cudaIpcMemLazyEnablePeerAccess);
    }
    if (error != cudaSuccess) {
        return refuse(device, "cudaIpcOpenMemHandle", cudaGetErrorString(error), why);
    }
    out->data = data;
    out->place = other == device->index ? DEVICE_PLACE_HERE : DEVICE_PLACE_PEER;
    return RL_OK;
}

void ipc_unmap(struct device *device, const void *data)
{
    __atomic_add_fetch(&device->freed, 1, __ATOMIC_RELEASE);
    (void)cudaSetDevice(device->index);
    (void)cudaIpcCloseMemHandle(const_cast<void *>(data)); /* an error is an earlier op's */
}
