/* What h5_file.c, h5_attribute.c and h5_filter.c share: the file, the turn at HDF5, the filter. */
#ifndef FORESIGHT_TRANSPORT_H5_INTERNAL_H
#define FORESIGHT_TRANSPORT_H5_INTERNAL_H

#include "transport/h5_file.h"

#include <hdf5.h>

enum { H5_FILTER_ZSTD = 32015, H5_FILTER_CHUNK_MAX = 64 * 1024 * 1024 };

struct h5_file {
    hid_t id;
    char *path;
    char *temporary; /* NULL: open for reading */
};

/* Wait for this thread's turn at HDF5 and set the library up the first time. h5_leave must follow
 * whatever is returned. Errors: RL_INTERNAL. */
rl_status h5_enter(void);
void h5_leave(void);

/* Log `what` failed on the file (and its member `name`, if not NULL) with HDF5's reason; clears
 * HDF5's error stack. Returns `status`. */
rl_status h5_fail(rl_status status, const struct h5_file *file, const char *name, const char *what);

/* Register the zstd filter and switch the search for plugins off. The caller has the turn. Errors:
 * RL_INTERNAL. */
rl_status h5_filter_register(void);

#endif
