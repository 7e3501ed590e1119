/* Which weights sample which token of a completion: runs of positions by version. A recorded
 * trajectory's `version` array, written as runs, is the schedule that samples it again. Pure. */
#ifndef FORESIGHT_ROLLOUT_SWITCH_SCHEDULE_H
#define FORESIGHT_ROLLOUT_SWITCH_SCHEDULE_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

/* From this completion token on, tokens are sampled by `version`. */
struct rollout_switch {
    uint32_t position; /* 0: the first token of the completion */
    uint32_t version;
};

/* Switches by ascending position, the first at position 0; `switches` is borrowed. */
struct rollout_schedule {
    uint32_t count;
    const struct rollout_switch *switches; /* [count] */
};

/* Errors: RL_INVALID (none, the first not at 0, positions that do not ascend). */
rl_status rollout_schedule_check(const struct rollout_schedule *schedule);

/* Copy the schedules of `samples` samples into one block; where `skip` [samples] says so, a sample
 * gets an empty one. Caller frees *out. Errors: RL_INVALID, RL_NO_MEMORY. */
rl_status rollout_schedules_copy(const struct rollout_schedule *schedules, const bool *skip,
                                 uint32_t samples, struct rollout_schedule **out);

#endif
