/* summary.json of a run: final figures, machine-readable, filled by several commands (train, eval),
 * each of which merges its own part. */
#ifndef FORESIGHT_APP_SUMMARY_H
#define FORESIGHT_APP_SUMMARY_H

#include "core/status.h"

#include <jansson.h>

/* Deep-merge `part` (an object, borrowed) into the JSON object in `path`, which need not exist:
 * objects are merged key by key, anything else is replaced. Atomic.
 * Errors: RL_IO, RL_INVALID (the file is not a JSON object), RL_NO_MEMORY. */
rl_status summary_merge(const char *path, const json_t *part);

#endif
