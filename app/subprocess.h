/* Running another program with a deadline and a bound on its output. Used by checks only. */
#ifndef FORESIGHT_APP_SUBPROCESS_H
#define FORESIGHT_APP_SUBPROCESS_H

#include "core/text.h"

/* Run argv[0] (found through PATH; argv ends with NULL) without input, collect what it prints on
 * both streams in `output` (the rest is thrown away once its limit is reached), wait for its end.
 * After `timeout_s` it and its children are killed. *exit_code: as a shell gives it, 128 + signal;
 * 127 if the program cannot be started. Errors: RL_TIMEOUT, RL_IO (pipe, fork). */
rl_status subprocess_run(char *const argv[], double timeout_s, struct rl_text *output,
                         int *exit_code);

#endif
