/* A file that appears under its name whole or not at all: written under a temporary name beside the
 * target, hashed on the way, flushed to the disk, renamed, and the folder flushed. Owner: one
 * thread. Until commit returns RL_OK a file that already bore the name is untouched. */
#ifndef FORESIGHT_TRANSPORT_ATOMIC_FILE_H
#define FORESIGHT_TRANSPORT_ATOMIC_FILE_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

struct atomic_file;

/* Create the temporary file "PATH.tmp.PID.N"; the folder must exist. Caller owns *out until commit
 * or abort. Errors: RL_IO, RL_NO_MEMORY. */
rl_status atomic_file_open(const char *path, struct atomic_file **out);

/* Append `bytes` of `data` (buffered). Errors: RL_IO (path named; a full disk is said as such).
 * After an error only atomic_file_abort may follow. */
rl_status atomic_file_write(struct atomic_file *file, const void *data, size_t bytes);

/* xxh3 (64 bits) and length of everything written so far. */
uint64_t atomic_file_hash(const struct atomic_file *file);
uint64_t atomic_file_bytes(const struct atomic_file *file);

/* Flush, fsync, rename to the target, fsync the folder. Frees `file` whatever happens; on an error
 * the temporary file is removed and the target is as it was. Errors: RL_IO. */
rl_status atomic_file_commit(struct atomic_file *file);

/* Remove the temporary file and free. Takes NULL. */
void atomic_file_abort(struct atomic_file *file);

/* Open, write, commit. Errors: RL_IO, RL_NO_MEMORY. */
rl_status atomic_file_write_all(const char *path, const void *data, size_t bytes);

#endif
