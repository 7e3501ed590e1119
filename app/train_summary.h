/* What a training run leaves in summary.json: its totals, by part. */
#ifndef FORESIGHT_APP_TRAIN_SUMMARY_H
#define FORESIGHT_APP_TRAIN_SUMMARY_H

#include "app/train_run.h"

/* Merge the run's part into DIR/summary.json. `tickets`: the dispatcher's counters at the end.
 * Errors: those of summary_merge, RL_NO_MEMORY. */
rl_status train_summary_write(const struct train_run *run, bool completed,
                              const struct dispatcher_counters *tickets);

#endif
