/* What a test may say to the emulated GPU, and what that GPU checks by itself:
 *
 * - device memory is out of the host's reach (SIGSEGV) except while device code runs; each buffer
 *   ends at the end of a page, its bytes are NaN at first, and the gaps beside it are checked when
 *   it is freed;
 * - shared memory is NaN before every block; dynamic shared memory ends at the end of a page;
 * - threads that wait for one another for ever, lanes that meet in different places, threads that
 *   return while others wait at __syncthreads: a message and abort();
 * - the order of threads and blocks is the test's choice: a missing barrier shows as other bits;
 * - cudaFree while another process has the buffer open, and opening one twice or in the process
 *   that shared it: a message and abort(). FORESIGHT_EMULATED_IPC of the environment is `unshared`
 * or `unopened` where sharing and opening are refused, FORESIGHT_EMULATED_PEERS is 0 where devices
 * cannot reach one another;
 * - streams are lazy: a result read without waiting is not there yet, and a pinned buffer written
 *   again too early spoils the copy that was still to be made. */
#ifndef FORESIGHT_TESTS_EMULATION_EMULATION_H
#define FORESIGHT_TESTS_EMULATION_EMULATION_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { EMULATION_SLOT = 64 }; /* bytes that a lane can hand to its warp at once */

/* Order in which threads and blocks take turns: 0 as numbered, 1 backwards, else shuffled anew for
 * each block. */
void emulation_set_order(uint64_t seed);

/* Devices that cudaGetDeviceCount finds; at first 1, or as many as FORESIGHT_EMULATED_GPUS says.
 * Processes that use a device of the same number share one GPU, as far as its identity goes. */
void emulation_set_devices(int count);

/* Shared memory that a block may ask for, in bytes; 0: as an A100 has it. */
void emulation_set_shared_most(size_t bytes);

/* Let allocations of device memory fail after `count` more have succeeded; -1: never. */
void emulation_fail_memory_after(int count);

/* Let the next kernel that runs fail as an illegal access does: every later call fails too, until
 * emulation_heal. */
void emulation_break(void);
void emulation_heal(void);

/* Buffers of device memory that exist. */
size_t emulation_buffers(void);

/* Kernels that were run. */
uint64_t emulation_kernels(void);

/* Graphs that exist, ready to be launched; launches of graphs so far. */
size_t emulation_graphs(void);
uint64_t emulation_graph_launches(void);

/* Let graphs be refused, with a code for want of memory, until called with 0. */
void emulation_fail_graphs(int fail);

/* Between these, the calling thread may touch device memory. They nest. */
void emulation_enter(void);
void emulation_leave(void);

#ifdef __cplusplus
}
#endif

#endif
