/* What the h5_*.c files share: the file, the turn at HDF5, the filter, the driver. */
#ifndef FORESIGHT_TRANSPORT_H5_INTERNAL_H
#define FORESIGHT_TRANSPORT_H5_INTERNAL_H

#include "transport/h5_file.h"

#include <hdf5.h>

enum { H5_FILTER_ZSTD = 32015, H5_FILTER_CHUNK_MAX = 64 * 1024 * 1024 };

struct h5_file {
    hid_t id;
    char *path;
    char *temporary; /* NULL: open for reading */
    int fd;          /* of the temporary file; -1 */
    int error;       /* errno of the first write that failed; 0 */
};

/* Given to the driver through a file's access properties; copied, so the pointer must stay valid
 * until the file is closed. */
struct h5_driver_info {
    int fd;
    int *error;
};

/* Wait for this thread's turn at HDF5 and set the library up the first time. h5_leave must follow
 * whatever is returned. Errors: RL_INTERNAL. */
rl_status h5_enter(void);
void h5_leave(void);

/* Log `what` failed on the file (and its member `name`, if not NULL) with HDF5's reason; clears
 * HDF5's error stack. Returns `status`. */
rl_status h5_fail(rl_status status, const struct h5_file *file, const char *name, const char *what);

/* HDF5's type on the disk; the same in memory, this being a little-endian program (wire.c checks).
 */
hid_t h5_type_id(enum h5_type type);

/* Elements [first, first + count) of a dataset, and their memory [count]. */
struct h5_range {
    void *data;
    uint64_t first, count;
};

/* Read or write a range slice by slice, giving way to others in between. The caller has the turn,
 * before and after. False on any error. */
bool h5_dataset_move(hid_t dataset, enum h5_type type, const struct h5_range *range, bool write);

/* Register the zstd filter and switch the search for plugins off. The caller has the turn. Errors:
 * RL_INTERNAL. */
rl_status h5_filter_register(void);

/* Register the file driver for files being written. The caller has the turn. Errors: RL_INTERNAL.
 */
rl_status h5_driver_register(hid_t *out);

#endif
