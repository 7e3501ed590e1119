/* Folders on disk. */
#ifndef FORESIGHT_CORE_FOLDER_MAKE_H
#define FORESIGHT_CORE_FOLDER_MAKE_H

#include "core/status.h"

/* Make a folder and its parents; one that exists is fine. Errors: RL_IO (path and reason),
 * RL_TOO_LONG. */
rl_status rl_folder_make(const char *path);

#endif
