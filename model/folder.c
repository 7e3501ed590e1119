/* Paths inside a model folder. Owns nothing; the bound on a path's length is checked here, once. */
#include "model/folder.h"

#include "core/log.h"

#include <stdio.h>
#include <unistd.h>

rl_status model_folder_path(const char *dir, const char *name, char out[MODEL_PATH_BYTES])
{
    int length = snprintf(out, MODEL_PATH_BYTES, "%s/%s", dir, name);
    if (length < 0 || length >= MODEL_PATH_BYTES) {
        return rl_fail(RL_TOO_LONG, "%.100s.../%.100s: path longer than %d bytes", dir, name,
                       MODEL_PATH_BYTES - 1);
    }
    return RL_OK;
}

bool model_folder_has(const char *dir, const char *name)
{
    char path[MODEL_PATH_BYTES];
    int length = snprintf(path, sizeof path, "%s/%s", dir, name);
    return length > 0 && length < MODEL_PATH_BYTES && access(path, F_OK) == 0;
}
