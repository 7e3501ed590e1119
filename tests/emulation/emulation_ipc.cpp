/* Owns device memory that processes share. A buffer that is shared moves into a file in memory, at
 * the address where it was; its handle says where other processes find that file, which lives on
 * while anybody has it mapped, as a GPU's memory does. The page behind the buffer lists who has it
 * open. */
#include "tests/emulation/emulation_internal.h"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace
{
enum : size_t { OPENERS = 64 };

struct listing {
    uint64_t number; /* of the handle, so that another file in its place is noticed */
    pid_t openers[OPENERS];
};

struct handle {
    uint64_t number, mapped, offset, bytes;
    pid_t pid;
    int file, device;
};
static_assert(sizeof(handle) <= sizeof(cudaIpcMemHandle_t), "64 bytes");

bool environment_is(const char *name, const char *value)
{
    const char *text = getenv(name);
    return text != nullptr && strcmp(text, value) == 0;
}

/* The page behind the buffer; closed by munmap. */
listing *list_of(int file, size_t mapped)
{
    void *page = mmap(nullptr, EMULATION_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file,
                      static_cast<off_t>(mapped));
    if (page == MAP_FAILED) {
        emulation_fail("the list of openers of a shared buffer cannot be mapped");
    }
    return static_cast<listing *>(page);
}

/* Replace a process in the list by another, 0: nobody; false if it is not there. */
bool replace_opener(const emulation_buffer &b, pid_t from, pid_t to)
{
    listing *list = list_of(b.file, b.mapped);
    bool found = false;
    for (size_t i = 0; i < OPENERS && !found; i++) {
        pid_t expected = from;
        found = __atomic_compare_exchange_n(&list->openers[i], &expected, to, false,
                                            __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    munmap(list, EMULATION_PAGE);
    return found;
}

bool has_opener(const emulation_buffer &b, pid_t pid)
{
    return replace_opener(b, pid, pid);
}

uint64_t next_number()
{
    static uint64_t count;
    return static_cast<uint64_t>(getpid()) << 32 | ++count;
}

void move_into_file(emulation_buffer *b)
{
    b->file = memfd_create("emulated GPU memory", MFD_CLOEXEC);
    emulation_enter();
    bool written =
        b->file >= 0 && ftruncate(b->file, static_cast<off_t>(b->mapped + EMULATION_PAGE)) == 0 &&
        pwrite(b->file, b->map, b->mapped, 0) == static_cast<ssize_t>(b->mapped) &&
        mmap(b->map, b->mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, b->file, 0) !=
            MAP_FAILED;
    emulation_leave();
    if (!written) {
        emulation_fail("a buffer of %zu bytes cannot be moved into a file", b->bytes);
    }
    listing *list = list_of(b->file, b->mapped);
    list->number = next_number();
    munmap(list, EMULATION_PAGE);
}

/* Map what the handle names; false if it is gone. */
bool map_foreign(const handle &from, int device, emulation_buffer *out)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", from.pid, from.file);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) {
        return false;
    }
    listing *list = list_of(file, from.mapped);
    bool same = list->number == from.number;
    munmap(list, EMULATION_PAGE);
    void *room = mmap(nullptr, from.mapped + 2 * EMULATION_PAGE, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!same || room == MAP_FAILED) {
        close(file);
        return false;
    }
    char *first = static_cast<char *>(room) + EMULATION_PAGE;
    if (mmap(first, from.mapped, PROT_NONE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) {
        emulation_fail("a shared buffer cannot be mapped");
    }
    *out = {first, first + from.offset, from.mapped, from.bytes, device, file, true};
    return true;
}
} // namespace

void emulation_ipc_free(const emulation_buffer &buffer)
{
    if (buffer.foreign) {
        emulation_fail("cudaFree of %p, which is another process's", (void *)buffer.data);
    }
    if (buffer.file < 0) {
        return;
    }
    listing *list = list_of(buffer.file, buffer.mapped);
    for (pid_t opener : list->openers) {
        if (opener != 0 && (kill(opener, 0) == 0 || errno == EPERM)) {
            emulation_fail("cudaFree of a buffer that process %d has open", opener);
        }
    }
    munmap(list, EMULATION_PAGE);
    close(buffer.file);
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer)
{
    *can = device != peer && !environment_is("FORESIGHT_EMULATED_PEERS", "0");
    return cudaSuccess;
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *out, void *data)
{
    emulation_guard hold;
    emulation_buffer *b = emulation_buffer_at(data);
    if (b == nullptr || b->foreign) {
        emulation_fail("cudaIpcGetMemHandle of %p, which is no start of a buffer made here", data);
    }
    if (environment_is("FORESIGHT_EMULATED_IPC", "unshared")) {
        return emulation_error(cudaErrorNotSupported);
    }
    if (b->file < 0) {
        move_into_file(b);
    }
    listing *list = list_of(b->file, b->mapped);
    handle made = {list->number, b->mapped, static_cast<uint64_t>(b->data - b->map),
                   b->bytes,     getpid(),  b->file,
                   b->device};
    munmap(list, EMULATION_PAGE);
    *out = {};
    memcpy(out->reserved, &made, sizeof made);
    return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void **out, cudaIpcMemHandle_t given, unsigned flags)
{
    emulation_guard hold;
    handle from;
    emulation_buffer b;
    int device = 0;
    memcpy(&from, given.reserved, sizeof from);
    (void)cudaGetDevice(&device);
    if (from.pid == getpid()) {
        emulation_fail("cudaIpcOpenMemHandle in the process that shared the buffer");
    }
    if (environment_is("FORESIGHT_EMULATED_IPC", "unopened")) {
        return emulation_error(cudaErrorMapBufferObjectFailed);
    }
    if (from.device != device && (flags != cudaIpcMemLazyEnablePeerAccess ||
                                  environment_is("FORESIGHT_EMULATED_PEERS", "0"))) {
        return emulation_error(cudaErrorPeerAccessUnsupported);
    }
    if (!map_foreign(from, device, &b)) {
        return emulation_error(cudaErrorMapBufferObjectFailed);
    }
    if (has_opener(b, getpid())) {
        emulation_fail("cudaIpcOpenMemHandle of a buffer that this process has open");
    }
    if (!replace_opener(b, 0, getpid())) {
        emulation_fail("more than %zu processes open a buffer", (size_t)OPENERS);
    }
    emulation_buffer_add(b);
    *out = b.data;
    return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void *data)
{
    emulation_guard hold;
    emulation_buffer *found = emulation_buffer_at(data);
    if (found == nullptr || !found->foreign) {
        emulation_fail("cudaIpcCloseMemHandle of %p, which was not opened", data);
    }
    (void)cudaDeviceSynchronize();
    emulation_buffer b = *found;
    (void)replace_opener(b, getpid(), 0);
    emulation_buffer_forget(b);
    close(b.file);
    return cudaSuccess;
}
