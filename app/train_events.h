/* What a run writes into its events.bin (transport/event_record.h) so that it can be replayed: each
 * start, each group that comes in, each step, each checkpoint, the end. Calls need the run's mutex
 * where they say so. */
#ifndef FORESIGHT_APP_TRAIN_EVENTS_H
#define FORESIGHT_APP_TRAIN_EVENTS_H

#include "app/train_run.h"

/* Begin the file, or go on behind the checkpoint that the run was resumed from; records the start.
 * The first weights must be published. Errors: RL_IO, RL_NO_MEMORY. */
rl_status train_events_open(struct train_run *run);

/* Offer a group to admission and record what became of it. Takes the group. The mutex must be held.
 * Errors: those of admission_offer; RL_IO. */
rl_status train_events_offer(struct train_run *run, struct trajectory_group *group);

/* Record step run->step + 1, made on `batch`. The mutex must be held. Errors: RL_IO, RL_NO_MEMORY.
 */
rl_status train_events_step(struct train_run *run, const struct admission_batch *batch,
                            const struct learner_report *report, uint64_t master_hash);

/* The step being made went back to the weights of step `to_step`. Takes the mutex. Errors: RL_IO.
 */
rl_status train_events_rollback(struct train_run *run, uint64_t to_step);

/* The state of this moment goes into a checkpoint: resuming from it goes on from here. The mutex
 * must be held. Errors: RL_IO. */
rl_status train_events_checkpoint(struct train_run *run);

/* The run leaves in order. Errors: RL_IO. */
rl_status train_events_end(struct train_run *run);

#endif
