/* The ways to train: one process by turns, or ranks under mpirun. */
#ifndef FORESIGHT_APP_TRAIN_H
#define FORESIGHT_APP_TRAIN_H

#include "app/session.h"
#include "core/wait.h"
#include "transport/world.h"

/* The probe at the end of a run: its samples at least, and its tickets, told from the dispatcher's
 * by their number, and with an epoch of their own so that their random numbers are new. */
#define TRAIN_PROBE_TICKET ((uint64_t)1 << 62)
enum { TRAIN_PROBE_EPOCH = 0x3fffff, TRAIN_PROBE_SAMPLES = 64 };

/* Generate and learn by turns in this process. Compute happens on the calling thread. */
rl_status train_local(const struct rl_config *config, struct session *session,
                      const struct prompts *prompts, struct rl_waits *waits);

/* This rank's part of an asynchronous run. The main thread pumps messages until the compute thread
 * is done. Collective over the world in the sense that every rank must call one of them. */
rl_status train_learner_rank(const struct rl_config *config, struct world *world);
rl_status train_worker_rank(const struct rl_config *config, struct world *world);

/* Print the batch arithmetic and memory footprint. `ranks`: size of the world it is meant for. */
rl_status train_dry_run(const struct rl_config *config, int ranks, bool json);

#endif
