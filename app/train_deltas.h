/* RUN/deltas.bin (async.record: deltas): what each version of the weights changed, so that any of
 * them can be made again from the model or a checkpoint without training. Compute thread of rank 0.
 */
#ifndef FORESIGHT_APP_TRAIN_DELTAS_H
#define FORESIGHT_APP_TRAIN_DELTAS_H

#include "app/train_run.h"

/* Begin the file, or go on behind the checkpoint that the run was resumed from; nothing if the
 * option says so. The first weights must be published, events.bin be open. Errors: RL_IO,
 * RL_NO_MEMORY. */
rl_status train_deltas_open(struct train_run *run);

/* After a step's weights were published: record what they changed, if there is a new version.
 * Errors: RL_IO, RL_NO_MEMORY, RL_TOO_LONG (more than 1 GiB). */
rl_status train_deltas_step(struct train_run *run);

/* The state of this moment goes into a checkpoint. Errors: RL_IO. */
rl_status train_deltas_checkpoint(struct train_run *run);

/* Takes NULL. */
void train_deltas_close(struct delta_record *deltas);

#endif
