/* MANIFEST.json of a checkpoint: the names, sizes and hashes of its files, and the hash of its own
 * text, so that no byte of a checkpoint can change unseen. */
#ifndef FORESIGHT_TRAINER_CHECKPOINT_MANIFEST_H
#define FORESIGHT_TRAINER_CHECKPOINT_MANIFEST_H

#include "core/status.h"

#include <stdint.h>

/* Write DIR/MANIFEST.json over every file in DIR. Errors: RL_IO, RL_NO_MEMORY, RL_INVALID (DIR
 * holds something that is not a plain file). */
rl_status checkpoint_manifest_write(const char *dir, uint64_t step, uint64_t version);

/* Read DIR/MANIFEST.json and check every file that it names. Errors:
 * RL_CORRUPT (file and reason), RL_IO, RL_NOT_FOUND (no manifest: never committed). */
rl_status checkpoint_manifest_verify(const char *dir, uint64_t *step);

#endif
