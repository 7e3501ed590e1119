/* See run_folder.h. */
#include "app/run_folder.h"

#include "core/folder_make.h"
#include "core/log.h"
#include "transport/atomic_file.h"

#include <stdio.h>
#include <stdlib.h>

enum { ROOM_FOR_NAMES = 64 };

rl_status run_folder_open(const struct rl_config *config, int rank, char dir[CHECKPOINT_PATH_MAX])
{
    char log_path[CHECKPOINT_PATH_MAX + 32];
    int length = snprintf(dir, CHECKPOINT_PATH_MAX, "%s/%s", config->run.dir, config->run.name);
    if (length < 0 || length >= CHECKPOINT_PATH_MAX - ROOM_FOR_NAMES) {
        return rl_fail(RL_TOO_LONG, "run.dir and run.name are too long");
    }
    snprintf(log_path, sizeof(log_path), "%s/log", dir);
    RL_TRY(rl_folder_make(log_path));
    snprintf(log_path, sizeof(log_path), "%s/log/rank_%d.log", dir, rank);
    return rl_log_open_file(log_path);
}

rl_status run_folder_write_config(const struct rl_config *config, const char *dir)
{
    char path[CHECKPOINT_PATH_MAX + 32];
    char *text = NULL;
    size_t bytes = 0;
    FILE *memory = open_memstream(&text, &bytes);
    if (memory == NULL) {
        return rl_fail(RL_NO_MEMORY, "config.yaml: out of memory");
    }
    rl_status status = rl_config_dump(config, memory);
    if (fclose(memory) != 0 && status == RL_OK) {
        status = rl_fail(RL_NO_MEMORY, "config.yaml: out of memory");
    }
    snprintf(path, sizeof(path), "%s/config.yaml", dir);
    if (status == RL_OK) {
        status = atomic_file_write_all(path, text, bytes);
    }
    free(text);
    return status;
}

rl_status run_folder_checkpoint(const struct rl_config *config, const char *dir,
                                char path[CHECKPOINT_PATH_MAX])
{
    rl_status status = checkpoint_find_newest(dir, path);
    if (status == RL_NOT_FOUND) {
        path[0] = '\0';
        return config->run.resume != CONFIG_RESUME_MUST
                   ? RL_OK
                   : rl_fail(RL_NOT_FOUND,
                             "%s: run.resume is `must`, but there is no sound checkpoint", dir);
    }
    if (status == RL_OK && config->run.resume == CONFIG_RESUME_NEVER) {
        return rl_fail(RL_INVALID,
                       "%s has checkpoints and run.resume is `never`: choose another run.name, "
                       "or resume",
                       dir);
    }
    return status;
}
