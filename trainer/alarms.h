/* Watches the figures of each step against the bounds of alarms.def: warns, but not at every step,
 * and counts. It changes nothing; what keeps bad numbers out of the weights is guard.h. */
#ifndef FORESIGHT_TRAINER_ALARMS_H
#define FORESIGHT_TRAINER_ALARMS_H

#include "core/metrics.h"

#include <stdbool.h>
#include <stdint.h>

enum alarm_id {
#define ALARM(id, metric, look, side, watch, act, advice) ALARM_##id,
#include "trainer/alarms.def"
    ALARM_COUNT
};

/* One alarm's memory. */
struct alarm_memory {
    double fast, slow;  /* running means */
    double seen;        /* values */
    double beyond;      /* steps beyond the watch bound */
    double quiet_until; /* step before which it does not warn again */
    double pause;       /* steps between its warnings; doubles */
};

/* Plain data, doubles only; travels in checkpoints as it stands. Zeroed at the beginning. */
struct alarm_state {
    struct alarm_memory memory[ALARM_COUNT];
};

/* Look at what `metrics` holds of step `step`: log warnings, set alarms/ID of alarms that were ever
 * beyond their bound. Returns how many are beyond their watch bound now. */
uint32_t alarms_look(struct alarm_state *state, struct rl_metrics *metrics, uint64_t step);

#endif
