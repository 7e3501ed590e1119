/* Between the parts of the emulated GPU: emulation_fiber.cpp (blocks and threads),
 * emulation_device.cpp (memory, streams), emulation_machine.cpp (how many), emulation_ipc.cpp
 * (memory that processes share). */
#ifndef FORESIGHT_TESTS_EMULATION_EMULATION_INTERNAL_H
#define FORESIGHT_TESTS_EMULATION_EMULATION_INTERNAL_H

#include <cuda_runtime.h>

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

/* Run all blocks of a kernel to their end. The caller holds the device's lock. */
void emulation_run_grid(const emulation_kernel &kernel);

#endif
