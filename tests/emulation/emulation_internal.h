/* Between the parts of the emulated GPU: emulation_fiber.cpp (blocks and threads),
 * emulation_device.cpp (memory, streams), emulation_event.cpp, emulation_graph.cpp (recordings),
 * emulation_machine.cpp (how many), emulation_ipc.cpp (memory that processes share). */
#ifndef FORESIGHT_TESTS_EMULATION_EMULATION_INTERNAL_H
#define FORESIGHT_TESTS_EMULATION_EMULATION_INTERNAL_H

#include <cuda_runtime.h>

#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

enum : size_t {
    EMULATION_PAGE = 4096,
    /* dynamic shared memory that needs no attribute: 48 KiB less what static arrays may take */
    EMULATION_SHARED_DEFAULT = 40 * 1024,
    EMULATION_SHARED_LIMIT = 163 * 1024, /* of sm_80; sm_90 has 227 KiB */
    EMULATION_SHARED_ALL = 164 * 1024,   /* of a multiprocessor */
};

/* A buffer of device memory; a page without access lies on either side of the mapping. */
struct emulation_buffer {
    char *map, *data;
    size_t mapped, bytes;
    int device;
    int file;     /* behind the mapping once other processes may reach it; -1: this one's alone */
    bool foreign; /* another process's */
};

/* Held while it lives. */
struct emulation_guard {
    emulation_guard();
    ~emulation_guard();
    emulation_guard(const emulation_guard &) = delete;
};

/* The buffer that starts at `data`, or nullptr; enter one, forget one. With the lock held. */
emulation_buffer *emulation_buffer_at(const void *data);
void emulation_buffer_add(const emulation_buffer &buffer);
void emulation_buffer_forget(const emulation_buffer &buffer);

/* A buffer is about to be freed: aborts if that is not this process's to do, or too early. */
void emulation_ipc_free(const emulation_buffer &buffer);

/* Bytes of a GPU's memory: 8 GiB, or what FORESIGHT_EMULATED_KIB says. */
size_t emulation_memory();

/* Dynamic shared memory that a block can have at most. */
size_t emulation_shared_most();

/* Keep the error for cudaGetLastError and give it back. */
cudaError_t emulation_error(cudaError_t error);

/* A stream's work while it is recorded: kernels with their arguments by value, copies and fills
 * with their addresses. */
struct emulation_node {
    std::function<void()> work;
    cudaEvent_t event; /* that the host may ask about; NULL */
};
struct emulation_graph {
    std::vector<emulation_node> nodes;
    std::thread::id owner; /* who records */
    bool spoilt = false;   /* by a call that is not allowed meanwhile */
};

struct emulation_stream {
    std::deque<std::function<bool()>> queue; /* each called until it is true, then over */
    uint64_t queued = 0, executed = 0;
    std::unique_ptr<emulation_graph> capture;
};

struct emulation_event {
    emulation_stream *stream = nullptr;
    uint64_t upto = 0;              /* of the stream's work */
    bool recorded = false;          /* in a recording, which the host cannot wait for */
    std::shared_ptr<double> time_s; /* when the stream came by; NULL without timing */
};

/* The same, but where there is no error: what is broken for good. */
cudaError_t emulation_result(cudaError_t error);

/* The stream of a handle, which may be NULL. */
emulation_stream *emulation_named(cudaStream_t stream);

/* Run the stream's work up to number `upto`. */
void emulation_run_until(emulation_stream *stream, uint64_t upto);

/* Append to a stream that is not being recorded. */
void emulation_push(emulation_stream *stream, std::function<void()> item);

/* Does the calling thread record? Then calls that wait, allocate or free are errors. */
bool emulation_recording();

/* Such a call was made: the thread's recordings are of no use any more. */
cudaError_t emulation_spoil();

/* Append to the recording of a stream; `event` as in emulation_node. */
cudaError_t emulation_record(emulation_stream *stream, std::function<void()> item,
                             cudaEvent_t event);

/* What writes the time of an event with timing. */
std::function<void()> emulation_stamp(cudaEvent_t event);

/* Run all blocks of a kernel to their end. The caller holds the device's lock. */
void emulation_run_grid(const emulation_kernel &kernel);

#endif
