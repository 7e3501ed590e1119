/* HDF5 files of flat arrays and small attributes, the one place that sees hdf5.h. Written with
 * checksummed metadata (latest format), and datasets chunked, shuffled, zstd-compressed (registered
 * filter 32015, built in: no plugin is ever loaded) and fletcher32-checked; readable by h5py with
 * hdf5plugin. A file appears under its name only when committed. Readers check type, rank and size
 * before they allocate or read. Names may hold '/': groups are made as needed. HDF5 keeps global
 * state, so all calls are serialised by one process-wide lock; a file belongs to one thread. */
#ifndef FORESIGHT_TRANSPORT_H5_FILE_H
#define FORESIGHT_TRANSPORT_H5_FILE_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum h5_type { H5_I32, H5_U32, H5_I64, H5_U64, H5_F32, H5_F64, H5_U8 };

struct h5_file;

/* Bytes of one element. */
size_t h5_type_bytes(enum h5_type type);

/* Start writing "PATH.tmp.PID.N". Caller owns *out until commit or abort. Errors: RL_IO. */
rl_status h5_file_create(const char *path, struct h5_file **out);

/* Write a new dataset [count] (count 0 is allowed). `level` is zstd's, 0: not compressed.
 * Errors: RL_IO (path and name named; after it only abort may follow). */
rl_status h5_file_write(struct h5_file *file, const char *name, enum h5_type type, const void *data,
                        uint64_t count, int level);

/* An array that is not in one place. */
struct h5_source {
    enum h5_type type;
    uint64_t count;
    /* Put elements [first, first + count) into `data`; called from the first to the last. */
    rl_status (*read)(void *arg, uint64_t first, uint64_t count, void *data);
    void *arg;
};

/* The same dataset from a source, with room for a slice of it (8 MiB). Errors: those of
 * h5_file_write and of the source, RL_NO_MEMORY. */
rl_status h5_file_write_from(struct h5_file *file, const char *name, const struct h5_source *source,
                             int level);

/* Attributes of the file's root. Errors: RL_IO. */
rl_status h5_file_write_u64(struct h5_file *file, const char *name, uint64_t value);
rl_status h5_file_write_f64(struct h5_file *file, const char *name, double value);
rl_status h5_file_write_text(struct h5_file *file, const char *name, const char *text);

/* Close, fsync, rename, fsync the folder. Frees `file` whatever happens; on an error the temporary
 * file is gone and the target as it was. Errors: RL_IO. */
rl_status h5_file_commit(struct h5_file *file);

/* Remove the temporary file and free. Takes NULL. */
void h5_file_abort(struct h5_file *file);

/* Open for reading. Caller owns *out. Errors: RL_IO (missing), RL_CORRUPT (not HDF5, truncated). */
rl_status h5_file_open(const char *path, struct h5_file **out);

/* Close a file opened for reading. Takes NULL. */
void h5_file_close(struct h5_file *file);

/* True if there is an object of that name, by hard links only. */
bool h5_file_has(struct h5_file *file, const char *name);

/* Elements of dataset `name`, which must be one-dimensional and of `type`.
 * Errors: RL_NOT_FOUND, RL_CORRUPT (other type or rank). */
rl_status h5_file_count(struct h5_file *file, const char *name, enum h5_type type, uint64_t *count);

/* Read a dataset that must have exactly `count` elements. Errors: as above; a failed checksum or
 * another length is RL_CORRUPT. `data` may be partly written on an error. */
rl_status h5_file_read(struct h5_file *file, const char *name, enum h5_type type, void *data,
                       uint64_t count);

/* Read elements [first, first + count) of a dataset, as above; RL_CORRUPT where it has fewer. */
rl_status h5_file_read_part(struct h5_file *file, const char *name, enum h5_type type, void *data,
                            uint64_t first, uint64_t count);

/* Read a dataset of at most `max_count` elements into new memory (never NULL). Caller frees *data.
 * Errors: as above, RL_TOO_LONG, RL_NO_MEMORY. */
rl_status h5_file_read_new(struct h5_file *file, const char *name, enum h5_type type,
                           uint64_t max_count, void **data, uint64_t *count);

/* Attributes of the root. Text is at most `max_bytes` long; caller frees *text.
 * Errors: RL_NOT_FOUND, RL_CORRUPT, RL_TOO_LONG, RL_NO_MEMORY. */
rl_status h5_file_read_u64(struct h5_file *file, const char *name, uint64_t *value);
rl_status h5_file_read_f64(struct h5_file *file, const char *name, double *value);
rl_status h5_file_read_text(struct h5_file *file, const char *name, size_t max_bytes, char **text);

#endif
