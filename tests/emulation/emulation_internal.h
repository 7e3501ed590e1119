/* Between the two halves of the emulated GPU: emulation_fiber.cpp (blocks and threads) and
 * emulation_device.cpp (memory, streams). */
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

/* Run all blocks of a kernel to their end. The caller holds the device's lock. */
void emulation_run_grid(const emulation_kernel &kernel);

#endif
