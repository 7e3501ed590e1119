/* The hash of a whole file as it lies on the disk, for manifests. */
#ifndef FORESIGHT_TRANSPORT_FILE_HASH_H
#define FORESIGHT_TRANSPORT_FILE_HASH_H

#include "core/status.h"

#include <stdint.h>

/* Length and xxh3 (as rl_hash gives for the content) of a regular file. Errors: RL_IO (missing,
 * unreadable, not a regular file), RL_NO_MEMORY. */
rl_status file_hash(const char *path, uint64_t *bytes, uint64_t *hash);

#endif
