/* A device for tests whose memory faults when the host touches it: each of its ops opens the
 * memory, runs the CPU's op, and closes it again. What it says of a program: that everything that
 * computes is an op, and everything that crosses over a read or a write. */
#ifndef FORESIGHT_TESTS_WALLED_DEVICE_H
#define FORESIGHT_TESTS_WALLED_DEVICE_H

#include "kernels/device.h"
#include "kernels/kernels.h"

/* The device, and its kernels: those of the best table of this machine. Its memory is closed to all
 * threads but while one of them is in an op or a copy. */
struct device *walled_device(void);
const struct kernel_table *walled_kernels(void);

/* Blocks of memory and streams that are held now. */
int walled_held(void);

#endif
