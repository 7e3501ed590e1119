/* Owns the emulated GPU's memory and streams.
 *
 * All state lies behind one recursive lock. Device memory is mapped without access and made
 * accessible between emulation_enter and emulation_leave alone. A stream is a queue of functions
 * that run when somebody waits for them, in order. */
#include "tests/emulation/emulation_internal.h"

#include <cstdlib>
#include <map>
#include <sys/mman.h>
#include <unistd.h>

using work = std::function<void()>;

namespace
{
enum : size_t { BUFFER_ALIGN = 256 };
enum { STEP_PAUSE_US = 100 };

using buffer = emulation_buffer;

std::recursive_mutex lock;
std::map<const char *, buffer> buffers; /* by data */
std::map<const char *, size_t> pinned;
std::map<const void *, size_t> shared_limits;
size_t shared_most = EMULATION_SHARED_LIMIT;
std::vector<emulation_stream *> streams;
emulation_stream legacy; /* the stream named NULL */
cudaError_t last_error = cudaSuccess;
cudaError_t broken = cudaSuccess; /* sticky */
bool break_next;
int depth, memory_countdown = -1, current_device;
size_t held;

using guard = std::lock_guard<std::recursive_mutex>;

cudaError_t fail(cudaError_t error)
{
    if (error != cudaSuccess) {
        last_error = error;
    }
    return error;
}

void protect(int access)
{
    for (const auto &entry : buffers) {
        mprotect(entry.second.map, entry.second.mapped, access);
    }
}

void execute(const work &item)
{
    if (broken != cudaSuccess) {
        return;
    }
    emulation_enter();
    item();
    emulation_leave();
}

/* One step of a stream; false: what is first in its queue has to wait. */
bool advance(emulation_stream *stream)
{
    if (broken == cudaSuccess && !stream->queue.front()()) {
        return false;
    }
    stream->queue.pop_front();
    stream->executed++;
    return true;
}

void run_all(emulation_stream *stream)
{
    emulation_run_until(stream, stream->queued);
}

/* Queue or record; an error that is CUDA's for calls beside a recording. */
cudaError_t push(cudaStream_t handle, work item)
{
    if (handle == nullptr && emulation_recording()) {
        return fail(emulation_spoil());
    }
    emulation_stream *stream = emulation_named(handle);
    if (stream->capture != nullptr) {
        return fail(emulation_record(stream, std::move(item), nullptr));
    }
    emulation_push(stream, std::move(item));
    return broken;
}

/* The buffer that holds data .. data + bytes, or nullptr. */
const buffer *find_buffer(const void *data, size_t bytes)
{
    const char *first = static_cast<const char *>(data);
    auto after = buffers.upper_bound(first);
    if (after == buffers.begin()) {
        return nullptr;
    }
    const buffer &b = std::prev(after)->second;
    if (first >= b.data + b.bytes) {
        return nullptr;
    }
    if (first + bytes > b.data + b.bytes) {
        emulation_fail("%zu bytes from offset %zu of a device buffer of %zu", bytes,
                       (size_t)(first - b.data), b.bytes);
    }
    return &b;
}

bool is_pinned(const void *data)
{
    const char *first = static_cast<const char *>(data);
    auto after = pinned.upper_bound(first);
    return after != pinned.begin() && first < std::prev(after)->first + std::prev(after)->second;
}

void check_side(const void *data, size_t bytes, bool device, const char *what)
{
    if ((find_buffer(data, bytes) != nullptr) != device) {
        emulation_fail("a copy's %s was said to be on the %s and is not", what,
                       device ? "device" : "host");
    }
}

cudaError_t make_buffer(size_t bytes, void **out)
{
    size_t room = (bytes + BUFFER_ALIGN - 1) / BUFFER_ALIGN * BUFFER_ALIGN;
    size_t mapped = (room + EMULATION_PAGE - 1) / EMULATION_PAGE * EMULATION_PAGE;
    void *map =
        mmap(nullptr, mapped + 2 * EMULATION_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) {
        return cudaErrorMemoryAllocation;
    }
    char *first = static_cast<char *>(map) + EMULATION_PAGE;
    buffer b = {first, first + mapped - room, mapped, bytes, current_device, -1, false};
    mprotect(b.map, mapped, PROT_READ | PROT_WRITE);
    memset(b.map, 0xff, mapped);
    if (depth == 0) {
        mprotect(b.map, mapped, PROT_NONE);
    }
    emulation_buffer_add(b);
    held += bytes;
    *out = b.data;
    return cudaSuccess;
}

void check_gaps(const buffer &b)
{
    emulation_enter();
    for (const char *p = b.map; p < b.map + b.mapped; p++) {
        if ((p < b.data || p >= b.data + b.bytes) && *p != (char)0xff) {
            emulation_fail("byte %td beside a device buffer of %zu bytes was written", p - b.data,
                           b.bytes);
        }
    }
    emulation_leave();
}
} // namespace

cudaError_t emulation_result(cudaError_t error)
{
    return error != cudaSuccess ? fail(error) : broken;
}

emulation_stream *emulation_named(cudaStream_t stream)
{
    return stream != nullptr ? stream : &legacy;
}

void emulation_push(emulation_stream *stream, work item)
{
    stream->queue.push_back([item] {
        execute(item);
        return true;
    });
    stream->queued++;
}

void emulation_run_until(emulation_stream *stream, uint64_t upto)
{
    while (stream->executed < upto) {
        if (!advance(stream)) {
            usleep(STEP_PAUSE_US);
        }
    }
}

void emulation_enter(void)
{
    lock.lock();
    if (depth++ == 0) {
        protect(PROT_READ | PROT_WRITE);
    }
}

void emulation_leave(void)
{
    if (--depth == 0) {
        protect(PROT_NONE);
    }
    lock.unlock();
}

emulation_guard::emulation_guard()
{
    lock.lock();
}

emulation_guard::~emulation_guard()
{
    lock.unlock();
}

emulation_buffer *emulation_buffer_at(const void *data)
{
    auto found = buffers.find(static_cast<const char *>(data));
    return found != buffers.end() ? &found->second : nullptr;
}

void emulation_buffer_add(const emulation_buffer &buffer)
{
    buffers[buffer.data] = buffer;
}

void emulation_buffer_forget(const emulation_buffer &buffer)
{
    munmap(buffer.map - EMULATION_PAGE, buffer.mapped + 2 * EMULATION_PAGE);
    buffers.erase(buffer.data);
}

cudaError_t emulation_error(cudaError_t error)
{
    return fail(error);
}

void emulation_fail_memory_after(int count)
{
    memory_countdown = count;
}

void emulation_break(void)
{
    break_next = true;
}

void emulation_heal(void)
{
    broken = last_error = cudaSuccess;
    break_next = false;
}

size_t emulation_buffers(void)
{
    return buffers.size();
}

void emulation_enqueue(cudaStream_t stream, work item)
{
    guard hold(lock);
    (void)push(stream, std::move(item));
}

void emulation_enqueue_steps(cudaStream_t handle, std::function<bool()> item)
{
    guard hold(lock);
    emulation_stream *stream = emulation_named(handle);
    if (stream->capture != nullptr) {
        emulation_fail("work that waits for other processes cannot be captured");
    }
    stream->queue.push_back(std::move(item));
    stream->queued++;
}

void emulation_launch(const emulation_kernel &kernel, cudaStream_t stream)
{
    guard hold(lock);
    const dim3 &g = kernel.grid;
    const dim3 &b = kernel.block;
    size_t limit = EMULATION_SHARED_DEFAULT;
    if (shared_limits.count(kernel.entry) > 0) {
        limit = std::max(limit, shared_limits[kernel.entry]);
    }
    if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7fffffff || g.y > 65535 || g.z > 65535 ||
        b.x == 0 || b.y == 0 || b.z == 0 || b.z > 64 || (size_t)b.x * b.y * b.z > 1024) {
        fail(cudaErrorInvalidConfiguration);
        return;
    }
    if (kernel.shared_bytes > limit) {
        fail(cudaErrorInvalidValue);
        return;
    }
    (void)push(stream, [kernel] {
        if (break_next) {
            break_next = false;
            broken = cudaErrorIllegalAddress;
            return;
        }
        emulation_run_grid(kernel);
    });
}

size_t emulation_shared_most()
{
    return shared_most;
}

void emulation_set_shared_most(size_t bytes)
{
    guard hold(lock);
    shared_most = bytes > 0 ? bytes : (size_t)EMULATION_SHARED_LIMIT;
}

cudaError_t emulation_set_shared_limit(const void *kernel, size_t bytes)
{
    guard hold(lock);
    if (bytes > shared_most) {
        return fail(cudaErrorInvalidValue);
    }
    shared_limits[kernel] = bytes;
    return cudaSuccess;
}

/* --- the runtime's functions ------------------------------------------------------------------ */

cudaError_t cudaGetLastError()
{
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return broken != cudaSuccess ? broken : error;
}

cudaError_t cudaSetDevice(int device)
{
    int count = 0;
    (void)cudaGetDeviceCount(&count);
    if (device < 0 || device >= count) {
        return fail(cudaErrorInvalidDevice);
    }
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    *total_bytes = emulation_memory();
    *free_bytes = emulation_memory() - held;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    guard hold(lock);
    if (emulation_recording()) {
        return fail(emulation_spoil());
    }
    if (memory_countdown == 0 || bytes > emulation_memory() - held) {
        return fail(cudaErrorMemoryAllocation);
    }
    memory_countdown -= memory_countdown > 0;
    return fail(make_buffer(bytes, out));
}

cudaError_t cudaFree(void *data)
{
    guard hold(lock);
    if (data == nullptr) {
        return cudaSuccess;
    }
    if (emulation_recording()) {
        return fail(emulation_spoil());
    }
    cudaDeviceSynchronize();
    auto found = buffers.find(static_cast<char *>(data));
    if (found == buffers.end()) {
        emulation_fail("cudaFree of %p, which is no device buffer", data);
    }
    buffer b = found->second;
    emulation_ipc_free(b);
    check_gaps(b);
    held -= b.bytes;
    emulation_buffer_forget(b);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **out, size_t bytes)
{
    guard hold(lock);
    if (emulation_recording()) {
        return fail(emulation_spoil());
    }
    char *data = static_cast<char *>(aligned_alloc(64, (bytes + 64) / 64 * 64));
    if (data == nullptr) {
        return fail(cudaErrorMemoryAllocation);
    }
    memset(data, 0xff, bytes);
    pinned[data] = bytes;
    *out = data;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *data)
{
    guard hold(lock);
    if (emulation_recording()) {
        return fail(emulation_spoil());
    }
    cudaDeviceSynchronize();
    if (data != nullptr && pinned.erase(static_cast<char *>(data)) == 0) {
        emulation_fail("cudaFreeHost of %p, which is not pinned memory", data);
    }
    free(data);
    return cudaSuccess;
}

/* Ordinary host memory is read at once and written after a wait, pinned memory when the stream
 * comes to it. */
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    guard hold(lock);
    bool device_to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool device_from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    check_side(to, bytes, device_to, "target");
    check_side(from, bytes, device_from, "source");
    const bool pageable = (!device_from && !is_pinned(from)) || (!device_to && !is_pinned(to));
    if (pageable && emulation_recording()) {
        return fail(emulation_spoil());
    }
    if (!device_from && pageable) {
        const char *first = static_cast<const char *>(from);
        auto kept = std::make_shared<std::vector<char>>(first, first + bytes);
        return push(stream, [=] { memcpy(to, kept->data(), bytes); });
    }
    const cudaError_t error = push(stream, [=] { memcpy(to, from, bytes); });
    if (!device_to && pageable) {
        run_all(emulation_named(stream));
        return broken;
    }
    return error;
}

cudaError_t cudaMemsetAsync(void *data, int value, size_t bytes, cudaStream_t stream)
{
    guard hold(lock);
    check_side(data, bytes, true, "target");
    return push(stream, [=] { memset(data, value, bytes); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned)
{
    guard hold(lock);
    *out = new emulation_stream();
    streams.push_back(*out);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    guard hold(lock);
    run_all(stream);
    for (size_t i = 0; i < streams.size(); i++) {
        if (streams[i] == stream) {
            streams.erase(streams.begin() + (ptrdiff_t)i);
            delete stream;
            return cudaSuccess;
        }
    }
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    guard hold(lock);
    if (emulation_recording() || emulation_named(stream)->capture != nullptr) {
        return fail(emulation_spoil());
    }
    run_all(emulation_named(stream));
    return broken;
}

/* Time passes: what can be done is done. */
cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    guard hold(lock);
    emulation_stream *stream = emulation_named(handle);
    while (stream->executed < stream->queued && advance(stream)) {
    }
    bool done = stream->executed == stream->queued;
    return broken != cudaSuccess ? broken : fail(done ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaDeviceSynchronize()
{
    guard hold(lock);
    if (emulation_recording()) {
        return fail(emulation_spoil());
    }
    run_all(&legacy);
    for (size_t i = 0; i < streams.size(); i++) {
        run_all(streams[i]);
    }
    return broken;
}
