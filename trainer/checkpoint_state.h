/* state.h5 of a checkpoint: everything a learner is made of but its master weights. */
#ifndef FORESIGHT_TRAINER_CHECKPOINT_STATE_H
#define FORESIGHT_TRAINER_CHECKPOINT_STATE_H

#include "trainer/checkpoint.h"

/* Write `path` atomically. `slabs` [count]; both moments NULL: none are written. Errors: RL_IO,
 * RL_INVALID, RL_NO_MEMORY. */
rl_status checkpoint_state_write(const char *path, const struct checkpoint_state *state,
                                 const struct checkpoint_slabs *slabs, int64_t count);

/* Read it back. `adam_m` and `adam_v` [count] may be NULL to skip. Caller owns what *out holds
 * (checkpoint_state_fini). Errors: RL_CORRUPT, RL_IO, RL_INVALID (count differs), RL_NO_MEMORY. */
rl_status checkpoint_state_read(const char *path, int64_t count, float *adam_m, float *adam_v,
                                struct checkpoint_state *out);

/* Read the teacher's moving average [count] alone. Errors: RL_INVALID (there is none), RL_CORRUPT,
 * RL_IO. */
rl_status checkpoint_state_read_teacher(const char *path, int64_t count, float *teacher);

#endif
