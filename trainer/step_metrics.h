/* Figures of one learner step from its groups and its report, under the names of metrics.def. Pure
 * but for the metrics object it writes to. */
#ifndef FORESIGHT_TRAINER_STEP_METRICS_H
#define FORESIGHT_TRAINER_STEP_METRICS_H

#include "core/metrics.h"
#include "trainer/dispatcher.h"
#include "trainer/learner.h"
#include "trainer/progress.h"
#include "transport/weight_sender.h"

/* Rewards, lengths, accuracy of the groups. `reward_names` [reward_count] name the parts. */
void step_metrics_groups(struct rl_metrics *metrics, struct trajectory_group *const *groups,
                         uint32_t count, const char *const *reward_names, uint32_t reward_count);

/* Objective, optimizer and times of the step. */
void step_metrics_report(struct rl_metrics *metrics, const struct rl_config *config,
                         const struct learner_report *report);

/* On-policy distillation; nothing without teacher.loss. */
void step_metrics_teacher(struct rl_metrics *metrics, const struct rl_config *config,
                          struct trajectory_group *const *groups, uint32_t count,
                          const struct learner_report *report);

/* Ticket counters. */
void step_metrics_tickets(struct rl_metrics *metrics, const struct dispatcher_counters *counters);

/* What the live line shows of a step; eta_s and steps are the caller's. */
void step_metrics_progress(const struct rl_metrics *metrics, int64_t step,
                           struct progress_step *out);

/* What was sent to other nodes since the step before; nothing is recorded without any. */
void step_metrics_weights(struct rl_metrics *metrics, const struct weight_sender_counters *sent,
                          size_t image_bytes);

#endif
