/* CUDA's programming model on the CPU, for tests: stands in for the toolkit's <cuda_runtime.h> when
 * the sources of kernels/cuda are compiled as C++. Only what those sources may use is here.
 *
 * A block's threads are fibers of one OS thread, blocks run one after the other; emulation.h says
 * what is checked on the way. Streams are lazy: their work runs when somebody waits for it. */
#ifndef FORESIGHT_TESTS_EMULATION_CUDA_RUNTIME_H
#define FORESIGHT_TESTS_EMULATION_CUDA_RUNTIME_H

#define CUDA_EMULATION 1

#include "tests/emulation/emulation.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
/* Blocks run one at a time, so a static variable is one block's; emulation_fiber.cpp finds these by
 * their symbols and fills them with NaN before each block. */
#define __shared__ static

/* --- vector types ----------------------------------------------------------------------------- */

struct int2 {
    int x, y;
} __align__(8);
struct int4 {
    int x, y, z, w;
} __align__(16);
struct uint2 {
    unsigned x, y;
} __align__(8);
struct uint3 {
    unsigned x, y, z;
};
struct uint4 {
    unsigned x, y, z, w;
} __align__(16);
struct float2 {
    float x, y;
} __align__(8);
struct float4 {
    float x, y, z, w;
} __align__(16);
struct double2 {
    double x, y;
} __align__(16);
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned vx = 1, unsigned vy = 1, unsigned vz = 1) : x(vx), y(vy), z(vz)
    {
    }
};

static inline int2 make_int2(int x, int y)
{
    return {x, y};
}
static inline int4 make_int4(int x, int y, int z, int w)
{
    return {x, y, z, w};
}
static inline uint2 make_uint2(unsigned x, unsigned y)
{
    return {x, y};
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}
static inline float2 make_float2(float x, float y)
{
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}
static inline double2 make_double2(double x, double y)
{
    return {x, y};
}

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
static constexpr int warpSize = 32;

/* --- meetings of threads ---------------------------------------------------------------------- */

#define __syncthreads() emulation_sync_block(__FILE__, __LINE__)
#define __syncthreads_or(x) emulation_sync_block_or(x, __FILE__, __LINE__)
#define __syncwarp(...) emulation_sync_warp(__FILE__, __LINE__, ##__VA_ARGS__)

/* Everything that the lanes of `mask` handed in at this meeting, by lane, EMULATION_SLOT apart. */
const char *emulation_warp_gather(unsigned mask, const char *what, const void *mine, size_t bytes);
void emulation_sync_block(const char *file, int line);
int emulation_sync_block_or(int value, const char *file, int line);
void emulation_sync_warp(const char *file, int line, unsigned mask = 0xffffffffu);
/* Number of the calling thread within its warp. */
unsigned emulation_lane();
[[noreturn]] void emulation_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

template <typename T> T emulation_shuffle(unsigned mask, T value, int source, const char *what)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    const char *slots = emulation_warp_gather(mask, what, &value, sizeof value);
    if ((mask >> source & 1) == 0) {
        emulation_fail("%s: lane %u reads lane %d, which is not in the mask %08x", what,
                       emulation_lane(), source, mask);
    }
    T result;
    memcpy(&result, slots + (size_t)source * EMULATION_SLOT, sizeof result);
    return result;
}

template <typename T> T __shfl_sync(unsigned mask, T value, int source, int width = 32)
{
    int base = (int)emulation_lane() / width * width;
    return emulation_shuffle(mask, value, base + (source & (width - 1)), "__shfl_sync");
}

template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32)
{
    int lane = (int)emulation_lane();
    int source = lane - (int)delta;
    source = source < lane / width * width ? lane : source;
    return emulation_shuffle(mask, value, source, "__shfl_up_sync");
}

template <typename T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32)
{
    int lane = (int)emulation_lane();
    int source = lane + (int)delta;
    source = source >= lane / width * width + width ? lane : source;
    return emulation_shuffle(mask, value, source, "__shfl_down_sync");
}

template <typename T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32)
{
    int lane = (int)emulation_lane();
    int source = lane ^ bits;
    source = source >= lane / width * width + width ? lane : source;
    return emulation_shuffle(mask, value, source, "__shfl_xor_sync");
}

unsigned __ballot_sync(unsigned mask, int predicate);
int __any_sync(unsigned mask, int predicate);
int __all_sync(unsigned mask, int predicate);

/* --- arithmetic ------------------------------------------------------------------------------- */

using std::max;
using std::min;

static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}
static inline float __fmul_rn(float a, float b)
{
    return a * b;
}
static inline float __fsqrt_rn(float a)
{
    return sqrtf(a);
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float rsqrtf(float a)
{
    return 1.0f / sqrtf(a);
}

template <typename To, typename From> To emulation_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

static inline unsigned __float_as_uint(float x)
{
    return emulation_bits<unsigned>(x);
}
static inline int __float_as_int(float x)
{
    return emulation_bits<int>(x);
}
static inline float __uint_as_float(unsigned x)
{
    return emulation_bits<float>(x);
}
static inline float __int_as_float(int x)
{
    return emulation_bits<float>(x);
}
static inline long long __double_as_longlong(double x)
{
    return emulation_bits<long long>(x);
}
static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)((uint64_t)a * b >> 32);
}
static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
static inline int __clz(int x)
{
    return x == 0 ? 32 : __builtin_clz((unsigned)x);
}
template <typename T> T __ldg(const T *p)
{
    return *p;
}

static inline int atomicAdd(int *p, int value)
{
    int old = *p;
    *p += value;
    return old;
}
static inline unsigned atomicAdd(unsigned *p, unsigned value)
{
    unsigned old = *p;
    *p += value;
    return old;
}
static inline unsigned long long atomicAdd(unsigned long long *p, unsigned long long value)
{
    unsigned long long old = *p;
    *p += value;
    return old;
}
static inline int atomicOr(int *p, int value)
{
    int old = *p;
    *p |= value;
    return old;
}
static inline unsigned atomicOr(unsigned *p, unsigned value)
{
    unsigned old = *p;
    *p |= value;
    return old;
}
static inline int atomicMax(int *p, int value)
{
    int old = *p;
    *p = value > old ? value : old;
    return old;
}
static inline void __threadfence()
{
}

/* --- the runtime's functions ------------------------------------------------------------------ */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorMapBufferObjectFailed = 205,
    cudaErrorPeerAccessUnsupported = 217,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorNotSupported = 801,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum {
    cudaStreamNonBlocking = 1,
    cudaEventDefault = 0,
    cudaEventDisableTiming = 2,
    cudaEventRecordDefault = 0,
    cudaEventRecordExternal = 1,
    cudaIpcMemLazyEnablePeerAccess = 1
};

typedef struct emulation_stream *cudaStream_t;
typedef struct emulation_event *cudaEvent_t;
typedef struct emulation_graph *cudaGraph_t;
typedef struct emulation_graph *cudaGraphExec_t;

struct cudaUUID_t {
    char bytes[16];
};
struct cudaIpcMemHandle_t {
    char reserved[64];
};
struct cudaDeviceProp {
    char name[256];
    cudaUUID_t uuid;
    size_t totalGlobalMem;
    int multiProcessorCount, major, minor;
};

const char *cudaGetErrorString(cudaError_t error);
const char *cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);
cudaError_t cudaMalloc(void **out, size_t bytes);
cudaError_t cudaFree(void *data);
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer);
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *out, void *data);
cudaError_t cudaIpcOpenMemHandle(void **out, cudaIpcMemHandle_t handle, unsigned flags);
cudaError_t cudaIpcCloseMemHandle(void *data);
cudaError_t cudaMallocHost(void **out, size_t bytes);
cudaError_t cudaFreeHost(void *data);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *data, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph);
cudaError_t emulation_set_shared_limit(const void *kernel, size_t bytes);

template <typename... P>
cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute, int value)
{
    return emulation_set_shared_limit((const void *)kernel, (size_t)value);
}

/* --- launches --------------------------------------------------------------------------------- */

struct emulation_kernel {
    const void *entry;
    const char *name;
    dim3 grid, block;
    size_t shared_bytes;
    std::function<void()> thread; /* what one thread does */
};

/* Queue a kernel; errors of the configuration go to cudaGetLastError as CUDA's do. */
void emulation_launch(const emulation_kernel &kernel, cudaStream_t stream);

/* Queue anything that may touch device memory (a library's function). */
void emulation_enqueue(cudaStream_t stream, std::function<void()> work);

/* Queue what takes time: `step` is called again and again until it is true. It runs as host code
 * does, and may enter by itself. */
void emulation_enqueue_steps(cudaStream_t stream, std::function<bool()> step);

/* The running block's dynamic shared memory. */
char *emulation_shared();

template <typename... P, typename... A>
void emulation_launch_with(emulation_kernel kernel, cudaStream_t stream, void (*entry)(P...),
                           A... args)
{
    std::tuple<P...> values(static_cast<P>(args)...);
    kernel.entry = (const void *)entry;
    kernel.thread = [entry, values] { std::apply(entry, values); };
    emulation_launch(kernel, stream);
}

#endif
