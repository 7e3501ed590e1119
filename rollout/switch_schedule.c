/* See switch_schedule.h. */
#include "rollout/switch_schedule.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

rl_status rollout_schedule_check(const struct rollout_schedule *schedule)
{
    if (schedule->count == 0 || schedule->switches[0].position != 0) {
        return rl_fail(RL_INVALID, "schedule of %u switches: the first must be at position 0",
                       schedule->count);
    }
    for (uint32_t i = 1; i < schedule->count; i++) {
        if (schedule->switches[i].position <= schedule->switches[i - 1].position) {
            return rl_fail(RL_INVALID, "schedule: switch %u is at position %u, after one at %u", i,
                           schedule->switches[i].position, schedule->switches[i - 1].position);
        }
    }
    return RL_OK;
}

rl_status rollout_schedules_copy(const struct rollout_schedule *schedules, const bool *skip,
                                 uint32_t samples, struct rollout_schedule **out)
{
    size_t switches = 0;
    for (uint32_t i = 0; i < samples; i++) {
        if (!skip[i]) {
            RL_TRY(rollout_schedule_check(&schedules[i]));
            switches += schedules[i].count;
        }
    }
    struct rollout_schedule *copy =
        calloc(1, samples * sizeof(*copy) + switches * sizeof(struct rollout_switch));
    if (copy == NULL) {
        return rl_fail(RL_NO_MEMORY, "rollout: out of memory for %zu switches", switches);
    }
    struct rollout_switch *next = (struct rollout_switch *)(void *)(copy + samples);
    for (uint32_t i = 0; i < samples; i++) {
        if (!skip[i]) {
            copy[i] = (struct rollout_schedule){schedules[i].count, next};
            memcpy(next, schedules[i].switches, schedules[i].count * sizeof(*next));
            next += schedules[i].count;
        }
    }
    *out = copy;
    return RL_OK;
}
