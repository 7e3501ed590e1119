/* Writes checkpoints beside training: submit copies the state (the snapshot) and returns, a thread
 * writes it. At most one is being written; where memory does not allow a copy the caller writes it
 * itself, and waits. */
#ifndef FORESIGHT_TRAINER_CHECKPOINT_WRITER_H
#define FORESIGHT_TRAINER_CHECKPOINT_WRITER_H

#include "trainer/checkpoint.h"

struct checkpoint_writer;

/* Half of the machine's memory, bytes: a copy must leave so much of it free. A model that needs
 * most of it is written in place instead. */
size_t checkpoint_writer_reserve(void);

/* Start the thread. `target` is borrowed until stop. `reserve_bytes`: memory that must stay
 * available for a copy to be made. Caller owns *out. Errors: RL_NO_MEMORY, RL_INTERNAL. */
rl_status checkpoint_writer_start(const struct checkpoint_target *target, size_t reserve_bytes,
                                  struct checkpoint_writer **out);

/* Save `state` and `slabs`: waits for a save still running (its error is returned here and nothing
 * new is begun), copies, hands over. Compute thread. Errors: those of checkpoint_save. */
rl_status checkpoint_writer_submit(struct checkpoint_writer *writer,
                                   const struct checkpoint_state *state,
                                   const struct checkpoint_slabs *slabs);

/* Wait until nothing is being written; the last error since the previous submit or wait.
 * `timeout_s` <= 0: no limit. Errors: RL_TIMEOUT, those of checkpoint_save. */
rl_status checkpoint_writer_wait(struct checkpoint_writer *writer, double timeout_s);

/* Time that the last submit kept the learner, and the last save took, in seconds. */
void checkpoint_writer_times(struct checkpoint_writer *writer, double *stall_s, double *save_s);

/* Finish a running save, join, free. Takes NULL. */
void checkpoint_writer_stop(struct checkpoint_writer *writer);

#endif
