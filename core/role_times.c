/* See role_times.h. */
#include "core/role_times.h"

struct part {
    const char *name, *help;
};

static const struct part learner_parts[RL_LEARNER_TIMES] = {
#define LEARNER_TIME(id, name, help) {#name, help},
#define ROLLOUT_TIME(id, name, help)
#include "core/role_times.def"
};

static const struct part rollout_parts[RL_ROLLOUT_TIMES] = {
#define LEARNER_TIME(id, name, help)
#define ROLLOUT_TIME(id, name, help) {#name, help},
#include "core/role_times.def"
};

double rl_times_sum(const double *times, int count)
{
    double sum = 0;
    for (int i = 0; i < count; i++) {
        sum += times[i];
    }
    return sum;
}

double rl_learner_idle_s(const double times[RL_LEARNER_TIMES])
{
    return times[RL_LEARNER_TIME_WAIT_FOR_BATCH] + times[RL_LEARNER_TIME_WEIGHT_SLOT];
}

double rl_rollout_idle_s(const double times[RL_ROLLOUT_TIMES])
{
    return times[RL_ROLLOUT_TIME_REWARD_WAIT] + times[RL_ROLLOUT_TIME_CHANNEL_FULL] +
           times[RL_ROLLOUT_TIME_WEIGHT_WAIT] + times[RL_ROLLOUT_TIME_TICKET_WAIT];
}

const char *rl_learner_time_name(enum rl_learner_time part)
{
    return learner_parts[part].name;
}

const char *rl_rollout_time_name(enum rl_rollout_time part)
{
    return rollout_parts[part].name;
}

const char *rl_learner_time_help(enum rl_learner_time part)
{
    return learner_parts[part].help;
}

const char *rl_rollout_time_help(enum rl_rollout_time part)
{
    return rollout_parts[part].help;
}
