/* state.h5 of a checkpoint: everything a learner is made of but its master weights. */
#ifndef FORESIGHT_TRAINER_CHECKPOINT_STATE_H
#define FORESIGHT_TRAINER_CHECKPOINT_STATE_H

#include "trainer/checkpoint.h"

/* Write `path` atomically. `slabs` [count]; no moments and none to fetch: none are written. Errors:
 * RL_IO, RL_INVALID, RL_NO_MEMORY, those of fetching. */
rl_status checkpoint_state_write(const char *path, const struct checkpoint_state *state,
                                 const struct checkpoint_slabs *slabs, int64_t count);

/* Read it back. `moments` may be NULL to skip them; `count` is that of the whole slabs. Caller owns
 * what *out holds (checkpoint_state_fini). Errors: RL_CORRUPT, RL_IO, RL_INVALID (count differs),
 * RL_NO_MEMORY. */
rl_status checkpoint_state_read(const char *path, int64_t count,
                                const struct checkpoint_moments *moments,
                                struct checkpoint_state *out);

/* Read the teacher's moving average [count] alone. Errors: RL_INVALID (there is none), RL_CORRUPT,
 * RL_IO. */
rl_status checkpoint_state_read_teacher(const char *path, int64_t count, float *teacher);

#endif
