/* Where the time of a GPU goes: a table of kernels whose ops wait until they are done and note how
 * long that took, one line for each op and size. What it measures is slower than the same without
 * it by a wait for each op, which has a line of its own. */
#ifndef FORESIGHT_APP_BENCH_PROFILE_H
#define FORESIGHT_APP_BENCH_PROFILE_H

#include "app/bench_machine.h"

struct bench_profile;

/* Take --profile out of argv, after bench_take_device: the machine gets a profile, and kernels that
 * fill it while it is switched on. One at a time in a process. Errors: RL_INVALID (no GPU),
 * RL_NO_MEMORY. */
rl_status bench_take_profile(int *argc, char **argv, struct bench_machine *machine);

/* Takes NULL. */
void bench_profile_destroy(struct bench_profile *profile);

/* Forget what was noted, and note from now on. Nothing happens where profile is NULL. */
void bench_profile_begin(struct bench_profile *profile);

/* Stop, and print what was noted in the `steps` steps since, the longest first, beside `limits`; as
 * JSON it becomes "ops" of `line`. Errors: RL_NO_MEMORY. */
rl_status bench_profile_end(const struct bench_machine *machine, const struct bench_limits *limits,
                            double steps, json_t *line);

#endif
