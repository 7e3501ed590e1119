/* The folder of a run, RUN = run.dir/run.name, as every command that trains has it: log/,
 * config.yaml and the checkpoint that run.resume allows to go on from. One thread. */
#ifndef FORESIGHT_APP_RUN_FOLDER_H
#define FORESIGHT_APP_RUN_FOLDER_H

#include "core/config.h"
#include "trainer/checkpoint.h"

/* Make RUN and RUN/log, and let this process log to RUN/log/rank_RANK.log as well (until
 * rl_log_close_file). `dir` becomes RUN, with room for names inside it up to CHECKPOINT_PATH_MAX.
 * Errors: RL_TOO_LONG, RL_IO. */
rl_status run_folder_open(const struct rl_config *config, int rank, char dir[CHECKPOINT_PATH_MAX]);

/* Write every option, as run, to DIR/config.yaml, atomically. Errors: RL_IO, RL_NO_MEMORY. */
rl_status run_folder_write_config(const struct rl_config *config, const char *dir);

/* The newest sound checkpoint in DIR; "" if there is none. Errors: RL_NOT_FOUND (none, and
 * run.resume is `must`), RL_INVALID (one, and run.resume is `never`), those of
 * checkpoint_find_newest. */
rl_status run_folder_checkpoint(const struct rl_config *config, const char *dir,
                                char path[CHECKPOINT_PATH_MAX]);

#endif
