/* Names inside a model folder. */
#ifndef FORESIGHT_MODEL_FOLDER_H
#define FORESIGHT_MODEL_FOLDER_H

#include "core/status.h"

#include <stdbool.h>

enum { MODEL_PATH_BYTES = 4096 };

/* out = DIR/NAME. Errors: RL_TOO_LONG. */
rl_status model_folder_path(const char *dir, const char *name, char out[MODEL_PATH_BYTES]);

/* True if DIR/NAME exists (whatever it is). */
bool model_folder_has(const char *dir, const char *name);

#endif
