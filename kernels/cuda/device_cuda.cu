/* CUDA devices, their memory and streams; the mapping of CUDA's errors to one line and a status.
 *
 * Invariant: the first error of a stream is kept with the op that met it, and nothing is queued
 * after it. CUDA reports faults of kernels late, so the op named may be a later one: CUDA's own
 * CUDA_LAUNCH_BLOCKING=1 finds the right one. */
#include "kernels/cuda/cuda_kernel.h"
#include "kernels/cuda/ipc_cuda.h"
#include "kernels/cuda/matmul_cuda.h"
#include "kernels/cuda/stream_cuda.h"

#include "core/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum : size_t { SLOT_LEAST = 4096 };

/* --- errors ----------------------------------------------------------------------------------- */

static void stream_fail(struct cuda_stream *stream, rl_status status, const char *what,
                        const char *text)
{
    if (stream->failure == RL_OK) {
        stream->failure = status;
        (void)snprintf(stream->text, sizeof stream->text, "%.100s, op %s: %s: %s",
                       stream->device->name, stream->op, what, text);
    }
}

bool cuda_stream_good(const struct cuda_stream *stream)
{
    return stream->failure == RL_OK;
}

bool cuda_check(struct cuda_stream *stream, cudaError_t error, const char *what)
{
    if (error != cudaSuccess) {
        stream_fail(stream, error == cudaErrorMemoryAllocation ? RL_NO_MEMORY : RL_INTERNAL, what,
                    cudaGetErrorString(error));
    }
    return error == cudaSuccess;
}

void cuda_fail(struct cuda_stream *stream, const char *what, const char *text)
{
    stream_fail(stream, RL_INTERNAL, what, text);
}

void cuda_forgive(struct cuda_stream *stream)
{
    (void)cudaGetLastError(); /* one that stays comes again */
    stream->failure = RL_OK;
    stream->reported = false;
}

/* --- the running op --------------------------------------------------------------------------- */

struct cuda_stream *cuda_op_begin(struct rl_pool *pool, const char *op)
{
    struct cuda_stream *stream = static_cast<struct cuda_stream *>(rl_pool_device(pool));
    stream->op = op;
    cuda_check(stream, cudaSetDevice(stream->device->index), "cudaSetDevice");
    return stream;
}

cudaStream_t cuda_stream_handle(const struct cuda_stream *stream)
{
    return stream->handle;
}

struct cuda_matmul *cuda_stream_matmul(const struct cuda_stream *stream)
{
    return stream->matmul;
}

int cuda_multiprocessors(const struct cuda_stream *stream)
{
    int count = 1;
    (void)cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, stream->device->index);
    return count;
}

/* --- memory ----------------------------------------------------------------------------------- */

static void no_memory_text(size_t bytes, const char *what, char text[128])
{
    size_t free_bytes = 0;
    size_t total = 0;
    (void)cudaMemGetInfo(&free_bytes, &total);
    (void)snprintf(text, 128, "%s: no room for %zu bytes (%zu of %zu free)", what, bytes,
                   free_bytes, total);
}

bool cuda_stream_malloc(struct cuda_stream *stream, size_t bytes, const char *what, char **out)
{
    void *data = nullptr;
    if (cuda_recording(stream, what) || !cuda_stream_good(stream)) {
        return false;
    }
    cudaError_t error = cudaMalloc(&data, bytes);
    if (error != cudaSuccess) {
        char text[128];
        (void)cudaGetLastError();
        no_memory_text(bytes, what, text);
        stream_fail(stream, RL_NO_MEMORY, text, cudaGetErrorString(error));
        return false;
    }
    *out = static_cast<char *>(data);
    return true;
}

static rl_status buffer_alloc(struct device *device, size_t bytes, const char *what, void **out)
{
    void *data = nullptr;
    cudaError_t error = cudaSetDevice(device->index);
    if (error == cudaSuccess) {
        error = cudaMalloc(&data, bytes > 0 ? bytes : 1);
    }
    if (error != cudaSuccess) {
        char text[128];
        (void)cudaGetLastError();
        no_memory_text(bytes, what, text);
        return rl_fail(RL_NO_MEMORY, "%s: %s: %s", device->name, text, cudaGetErrorString(error));
    }
    error = cudaMemsetAsync(data, 0, bytes, nullptr);
    if (error == cudaSuccess) {
        error = cudaStreamSynchronize(nullptr);
    }
    if (error != cudaSuccess) {
        (void)cudaFree(data);
        return rl_fail(RL_INTERNAL, "%s: clearing %s: %s", device->name, what,
                       cudaGetErrorString(error));
    }
    *out = data;
    return RL_OK;
}

static void buffer_free(struct device *device, void *data)
{
    __atomic_add_fetch(&device->freed, 1, __ATOMIC_RELEASE);
    (void)cudaSetDevice(device->index);
    (void)cudaFree(data); /* an error here is an earlier op's, and its stream says so */
}

static void memory_info(const struct device *device, size_t *free_bytes, size_t *total_bytes)
{
    *free_bytes = *total_bytes = 0;
    (void)cudaSetDevice(device->index);
    (void)cudaMemGetInfo(free_bytes, total_bytes);
}

/* --- pinned memory ---------------------------------------------------------------------------- */

bool cuda_slot_take(struct cuda_stream *stream, struct cuda_slot *slot, size_t bytes)
{
    if (cuda_recording(stream, "staging")) {
        return false;
    }
    if (slot->used && !cuda_check(stream, cudaEventSynchronize(slot->copied), "staging")) {
        return false;
    }
    if (bytes <= slot->bytes) {
        return cuda_stream_good(stream);
    }
    cuda_slot_free(slot);
    void *data = nullptr;
    size_t room = 2 * bytes > SLOT_LEAST ? 2 * bytes : SLOT_LEAST;
    if (!cuda_check(stream, cudaMallocHost(&data, room), "pinned host memory")) {
        return false;
    }
    slot->data = static_cast<char *>(data);
    slot->bytes = room;
    return cuda_check(stream, cudaEventCreateWithFlags(&slot->copied, cudaEventDisableTiming),
                      "staging");
}

void cuda_slot_send(struct cuda_stream *stream, struct cuda_slot *slot, void *to, size_t bytes)
{
    if (bytes > 0 &&
        cuda_check(stream,
                   cudaMemcpyAsync(to, slot->data, bytes, cudaMemcpyHostToDevice, stream->handle),
                   "upload")) {
        slot->used = cuda_check(stream, cudaEventRecord(slot->copied, stream->handle), "upload");
    }
}

void cuda_slot_free(struct cuda_slot *slot)
{
    if (slot->data != nullptr) {
        (void)cudaFreeHost(slot->data);
        (void)cudaEventDestroy(slot->copied);
    }
    *slot = {};
}

/* --- results ---------------------------------------------------------------------------------- */

bool cuda_landing_take(struct cuda_stream *stream, size_t bytes)
{
    const char *before = stream->landing.data;
    const bool taken = cuda_slot_take(stream, &stream->landing, bytes);
    stream->moved += stream->landing.data != before ? 1 : 0;
    return taken;
}

void cuda_fetch(struct cuda_stream *stream, void *host, const void *device, size_t bytes)
{
    size_t offset = (stream->landed + 15) / 16 * 16;
    if (stream->fetch_count == CUDA_FETCHES || offset + bytes > stream->landing.bytes) {
        cuda_wait(stream); /* what was under way lands first: the buffer may move */
        offset = 0;
        if (!cuda_landing_take(stream, bytes)) {
            return;
        }
    }
    char *landing = stream->landing.data + offset;
    if (cuda_stream_good(stream) &&
        cuda_check(stream,
                   cudaMemcpyAsync(landing, device, bytes, cudaMemcpyDeviceToHost, stream->handle),
                   "download")) {
        stream->fetches[stream->fetch_count++] = {host, offset, bytes};
        stream->landed = offset + bytes;
    }
}

void cuda_wait(struct cuda_stream *stream)
{
    if (cuda_recording(stream, "waiting")) {
        return;
    }
    cuda_check(stream, cudaStreamSynchronize(stream->handle), "waiting");
    for (int i = 0; i < stream->fetch_count && cuda_stream_good(stream); i++) {
        const struct cuda_fetched *f = &stream->fetches[i];
        memcpy(f->host, stream->landing.data + f->offset, f->bytes);
    }
    stream->fetch_count = 0;
    stream->landed = 0;
}

void cuda_deliver(struct cuda_stream *stream)
{
    if (!stream->replay.deferring) {
        cuda_wait(stream);
    }
}

/* --- streams as device.h sees them ------------------------------------------------------------ */

static struct cuda_stream *named(struct device_stream *base, const char *op)
{
    struct cuda_stream *stream = reinterpret_cast<struct cuda_stream *>(base);
    stream->op = op;
    cuda_check(stream, cudaSetDevice(stream->device->index), "cudaSetDevice");
    return stream;
}

static rl_status stream_report(struct cuda_stream *stream)
{
    if (stream->failure != RL_OK && !stream->reported) {
        stream->reported = true;
        return rl_fail(stream->failure, "%s", stream->text);
    }
    return stream->failure;
}

static rl_status stream_wait(struct device_stream *base)
{
    struct cuda_stream *stream = reinterpret_cast<struct cuda_stream *>(base);
    cuda_check(stream, cudaSetDevice(stream->device->index), "cudaSetDevice");
    cuda_wait(stream);
    return stream_report(stream);
}

/* The fetches of what is done land with the next wait. */
static rl_status stream_poll(struct device_stream *base, bool *done)
{
    struct cuda_stream *stream = reinterpret_cast<struct cuda_stream *>(base);
    cuda_check(stream, cudaSetDevice(stream->device->index), "cudaSetDevice");
    const cudaError_t error = cudaStreamQuery(stream->handle);
    if (error == cudaErrorNotReady) {
        (void)cudaGetLastError(); /* it counts as one otherwise */
    } else {
        cuda_check(stream, error, "waiting");
    }
    *done = error != cudaErrorNotReady;
    return stream_report(stream);
}

static void *stream_native(struct device_stream *base)
{
    struct cuda_stream *stream = reinterpret_cast<struct cuda_stream *>(base);
    cuda_check(stream, cudaSetDevice(stream->device->index), "cudaSetDevice");
    return stream->handle;
}

static void stream_write(struct device_stream *base, void *to, const void *host, size_t bytes)
{
    struct cuda_stream *stream = named(base, "write");
    if (!cuda_recording(stream, "upload") && cuda_stream_good(stream) &&
        bytes > 0) { /* CUDA stages ordinary memory before it returns */
        cuda_check(stream, cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, stream->handle),
                   "upload");
    }
}

static void stream_read(struct device_stream *base, void *host, const void *from, size_t bytes)
{
    struct cuda_stream *stream = named(base, "read");
    if (!cuda_recording(stream, "download") && cuda_stream_good(stream) && bytes > 0) {
        cuda_check(stream,
                   cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, stream->handle),
                   "download");
    }
}

static void stream_clear(struct device_stream *base, void *to, size_t bytes)
{
    struct cuda_stream *stream = named(base, "clear");
    if (cuda_stream_good(stream) && bytes > 0) {
        cuda_check(stream, cudaMemsetAsync(to, 0, bytes, stream->handle), "clear");
    }
}

static void stream_copy(struct device_stream *base, void *to, const void *from, size_t bytes)
{
    struct cuda_stream *stream = named(base, "copy");
    if (cuda_stream_good(stream) && bytes > 0) {
        cuda_check(stream,
                   cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream->handle),
                   "copy");
    }
}

static void stream_close(struct device_stream *base)
{
    struct cuda_stream *stream = named(base, "close");
    (void)cudaStreamSynchronize(stream->handle);
    cuda_replay_fini(stream);
    cuda_scratch_fini(stream);
    cuda_pass_fini(stream);
    matmul_destroy(stream->matmul);
    (void)cudaStreamDestroy(stream->handle);
    free(stream);
}

/* --- devices ---------------------------------------------------------------------------------- */

static void device_end(struct device *device)
{
    free(device);
}

static void device_uuid(const struct device *device, unsigned char out[DEVICE_UUID_BYTES])
{
    struct cudaDeviceProp properties = {};
    (void)cudaGetDeviceProperties(&properties, device->index);
    static_assert(sizeof properties.uuid == DEVICE_UUID_BYTES, "CUDA's are as long");
    memcpy(out, &properties.uuid, DEVICE_UUID_BYTES);
}

static rl_status stream_open(struct device *device, struct device_stream **out);

static const struct device_ops cuda_ops = {
    device_end,        memory_info,      buffer_alloc,
    buffer_free,       ipc_share,        ipc_map,
    ipc_unmap,         stream_open,      stream_close,
    stream_wait,       stream_write,     stream_read,
    stream_clear,      stream_copy,      device_uuid,
    stream_poll,       stream_native,    cuda_replay_run,
    cuda_replay_allow, cuda_replay_mark, cuda_replay_marked_s,
};

static rl_status stream_open(struct device *device, struct device_stream **out)
{
    struct cuda_stream *stream = static_cast<struct cuda_stream *>(calloc(1, sizeof *stream));
    if (stream == nullptr) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for a stream", device->name);
    }
    stream->base.ops = &cuda_ops;
    stream->device = device;
    stream->op = "none";
    cudaError_t error = cudaSetDevice(device->index);
    if (error == cudaSuccess) {
        error = cudaStreamCreateWithFlags(&stream->handle, cudaStreamNonBlocking);
    }
    if (error != cudaSuccess) {
        free(stream);
        return rl_fail(RL_INTERNAL, "%s: creating a stream: %s", device->name,
                       cudaGetErrorString(error));
    }
    const rl_status status = matmul_create(&stream->matmul);
    if (status != RL_OK) {
        (void)cudaStreamDestroy(stream->handle);
        free(stream);
        return status;
    }
    cuda_replay_init(stream);
    *out = &stream->base;
    return RL_OK;
}

static void survey_first(struct device_survey *out)
{
    struct cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, 0) == cudaSuccess) {
        (void)snprintf(out->name, sizeof out->name, "%.100s, compute %d.%d", properties.name,
                       properties.major, properties.minor);
    }
}

void cuda_device_survey(struct device_survey *out)
{
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    (void)cudaDriverGetVersion(&out->driver);
    (void)cudaRuntimeGetVersion(&out->runtime);
    if (error != cudaSuccess || count == 0) {
        const char *why = error != cudaSuccess ? cudaGetErrorString(error) : "no GPU is visible";
        (void)cudaGetLastError();
        (void)snprintf(out->problem, sizeof out->problem, "%s",
                       out->driver == 0 ? "no NVIDIA driver answers on this machine" : why);
        return;
    }
    out->count = count;
    survey_first(out);
}

rl_status cuda_device_open(int index, struct device **out)
{
    struct device_survey survey = {};
    cuda_device_survey(&survey);
    if (survey.count == 0) {
        return rl_fail(RL_UNSUPPORTED, "GPU %d: %s", index, survey.problem);
    }
    if (index < 0 || index >= survey.count) {
        return rl_fail(RL_UNSUPPORTED, "GPU %d: this machine has %d", index, survey.count);
    }
    struct cudaDeviceProp properties;
    cudaError_t error = cudaGetDeviceProperties(&properties, index);
    if (error != cudaSuccess || properties.major < 8) {
        return rl_fail(RL_UNSUPPORTED, "GPU %d: %s", index,
                       error != cudaSuccess ? cudaGetErrorString(error)
                                            : "older than compute capability 8.0 (Ampere)");
    }
    struct device *device = static_cast<struct device *>(calloc(1, sizeof *device));
    if (device == nullptr) {
        return rl_fail(RL_NO_MEMORY, "no memory for GPU %d", index);
    }
    device->ops = &cuda_ops;
    device->index = index;
    (void)snprintf(device->name, sizeof device->name, "GPU %d (%.100s)", index, properties.name);
    *out = device;
    return RL_OK;
}
