/* Owns what the emulated machine is: how many GPUs of which kind, versions, what errors are called.
 */
#include "tests/emulation/emulation_internal.h"

#include <cstdlib>

static int devices = -1; /* nobody has asked yet */

/* How many there are: what a test has said, or FORESIGHT_EMULATED_GPUS, or 1. */
static int device_count()
{
    if (devices < 0) {
        const char *text = getenv("FORESIGHT_EMULATED_GPUS");
        devices = text != nullptr ? (int)strtol(text, nullptr, 10) : 1;
    }
    return devices;
}

size_t emulation_memory()
{
    const char *kib = getenv("FORESIGHT_EMULATED_KIB");
    return (kib != nullptr ? strtoull(kib, nullptr, 10) : (size_t)8 << 20) << 10;
}

void emulation_set_devices(int count)
{
    devices = count;
}

/* --- the runtime's functions ------------------------------------------------------------------ */

const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return "no error";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
        return "invalid device ordinal";
    case cudaErrorIllegalAddress:
        return "an illegal memory access was encountered";
    case cudaErrorStreamCaptureUnsupported:
        return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
        return "operation failed due to a previous error during capture";
    case cudaErrorNotSupported:
        return "operation not supported";
    case cudaErrorMapBufferObjectFailed:
        return "mapping of buffer object failed";
    case cudaErrorPeerAccessUnsupported:
        return "peer access is not supported between these two devices";
    default:
        return "invalid argument";
    }
}

const char *cudaGetErrorName(cudaError_t error)
{
    return error == cudaSuccess ? "cudaSuccess" : "cudaError";
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = device_count();
    return devices > 0 ? cudaSuccess : emulation_error(cudaErrorNoDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device)
{
    if (device < 0 || device >= device_count()) {
        return emulation_error(cudaErrorInvalidDevice);
    }
    *properties = cudaDeviceProp{"emulated GPU", {"emulated GPU"}, emulation_memory(), 2, 9, 0};
    properties->uuid.bytes[15] = (char)device;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device)
{
    cudaDeviceProp properties;
    cudaError_t error = cudaGetDeviceProperties(&properties, device);
    if (error != cudaSuccess) {
        return error;
    }
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
        *value = properties.multiProcessorCount;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)EMULATION_SHARED_ALL;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)emulation_shared_most();
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = properties.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = properties.minor;
        break;
    }
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = device_count() > 0 ? 13000 : 0;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}
