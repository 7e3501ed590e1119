/* Names of what the time of a rank is spent on (role_times.def). */
#ifndef FORESIGHT_CORE_ROLE_TIMES_H
#define FORESIGHT_CORE_ROLE_TIMES_H

enum rl_learner_time {
#define LEARNER_TIME(id, name, help) RL_LEARNER_TIME_##id,
#define ROLLOUT_TIME(id, name, help)
#include "core/role_times.def"
    RL_LEARNER_TIMES
};

enum rl_rollout_time {
#define LEARNER_TIME(id, name, help)
#define ROLLOUT_TIME(id, name, help) RL_ROLLOUT_TIME_##id,
#include "core/role_times.def"
    RL_ROLLOUT_TIMES
};

/* Seconds of the parts that are waiting; sum of parts [count]. */
double rl_learner_idle_s(const double times[RL_LEARNER_TIMES]);
double rl_rollout_idle_s(const double times[RL_ROLLOUT_TIMES]);
double rl_times_sum(const double *times, int count);

/* Name of a part, e.g. "forward_backward"; and what it is. Static. */
const char *rl_learner_time_name(enum rl_learner_time part);
const char *rl_rollout_time_name(enum rl_rollout_time part);
const char *rl_learner_time_help(enum rl_learner_time part);
const char *rl_rollout_time_help(enum rl_rollout_time part);

#endif
