/* See folder.h. */
#include "core/folder_make.h"

#include "core/log.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

enum { FOLDER_PATH_MAX = 4096 };

rl_status rl_folder_make(const char *path)
{
    char partial[FOLDER_PATH_MAX];
    size_t bytes = strlen(path);
    struct stat info;
    if (bytes >= sizeof(partial)) {
        return rl_fail(RL_TOO_LONG, "folder name of %zu bytes", bytes);
    }
    for (size_t i = 1; i <= bytes; i++) {
        if (path[i] != '/' && path[i] != '\0') {
            continue;
        }
        memcpy(partial, path, i);
        partial[i] = '\0';
        if (mkdir(partial, 0777) != 0 && errno != EEXIST) {
            return rl_fail(RL_IO, "%s: cannot make the folder: %s", partial, strerror(errno));
        }
    }
    if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode)) {
        return rl_fail(RL_IO, "%s: exists and is no folder", path);
    }
    return RL_OK;
}
