/* What a run does when its guard (trainer/guard.h) or an alarm speaks: keeps the batch, goes back
 * to sound weights, stops. */
#ifndef FORESIGHT_APP_TRAIN_GUARD_H
#define FORESIGHT_APP_TRAIN_GUARD_H

#include "app/train_run.h"

/* After learner_step on rank 0, before its weights are published: dump the batch of a skipped
 * update, roll all learners back, or stop. Collective among the learners if report->action is not
 * GUARD_GO_ON. Errors: RL_NONFINITE (the run must stop; said why), those of reading a checkpoint.
 */
rl_status train_guard_act(struct train_run *run, const struct admission_batch *batch,
                          struct learner_report *report);

/* Once the step's figures are in run->metrics: look for alarms. Errors: RL_NONFINITE (a mismatch,
 * with alarms.on_mismatch stop). */
rl_status train_guard_alarms(struct train_run *run);

/* One learner back to the weights and moments of `checkpoint` (a folder; "": the model that the run
 * began with, moments zero); its step is put in *step. Any learner rank. Errors: as
 * learner_roll_back and checkpoint_load. */
rl_status train_guard_roll_back(const struct session *session, const struct rl_config *config,
                                struct learner *learner, const char *checkpoint,
                                struct learner_report *report, uint64_t *step);

#endif
