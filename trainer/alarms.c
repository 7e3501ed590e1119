/* See alarms.h. */
#include "trainer/alarms.h"

#include "core/log.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

enum alarm_look { ALARM_AT_ONCE, ALARM_SMOOTH, ALARM_CHANGE };
enum alarm_side { ALARM_ABOVE, ALARM_BELOW };

/* Means forget over about ten and a hundred steps; before that many values they say nothing. */
static const double fast_keep = 0.9, slow_keep = 0.99;
static const double smooth_least = 10, change_least = 50;
static const double first_pause = 25; /* steps without a second warning */

struct alarm_row {
    const char *name;
    enum rl_metric_id metric;
    enum alarm_look look;
    enum alarm_side side;
    double watch, act;
    const char *advice;
};

#define ALARM(id, metric, look, side, watch, act, advice)                                          \
    {#id, RL_METRIC_##metric, ALARM_##look, ALARM_##side, watch, act, advice},
static const struct alarm_row rows[ALARM_COUNT] = {
#include "trainer/alarms.def"
};

static double blend(double mean, double value, double keep, double seen)
{
    double weight = fmax(1 - keep, 1 / (seen + 1)); /* the plain mean until there are enough */
    return mean + weight * (value - mean);
}

static void remember(struct alarm_memory *memory, double value)
{
    memory->fast = blend(memory->fast, value, fast_keep, memory->seen);
    memory->slow = blend(memory->slow, value, slow_keep, memory->seen);
    memory->seen++;
}

/* What is compared with the bounds; false while there is too little to say. */
static bool level(const struct alarm_row *row, const struct alarm_memory *memory, double value,
                  double *out)
{
    switch (row->look) {
    case ALARM_AT_ONCE:
        *out = value;
        return true;
    case ALARM_SMOOTH:
        *out = memory->fast;
        return memory->seen >= smooth_least;
    case ALARM_CHANGE:
        *out = memory->fast / memory->slow;
        return memory->seen >= change_least && memory->slow > 0;
    }
    return false;
}

static bool is_beyond(const struct alarm_row *row, double value, double bound)
{
    return row->side == ALARM_ABOVE ? value > bound : value < bound;
}

static void warn(const struct alarm_row *row, struct alarm_memory *memory, uint64_t step,
                 double value)
{
    if ((double)step < memory->quiet_until) {
        return;
    }
    bool must_act = is_beyond(row, value, row->act);
    memory->pause = memory->pause > 0 ? 2 * memory->pause : first_pause;
    memory->quiet_until = (double)step + memory->pause;
    rl_log(RL_LOG_WARN, "step %" PRIu64 ": %s%s is %.3g, %s %g%s: %s", step,
           rl_metrics_name(row->metric), row->look == ALARM_CHANGE ? " over its longer mean" : "",
           value, row->side == ALARM_ABOVE ? "above" : "below", must_act ? row->act : row->watch,
           must_act ? ", where it must not stay" : "", row->advice);
}

uint32_t alarms_look(struct alarm_state *state, struct rl_metrics *metrics, uint64_t step)
{
    uint32_t count = 0;
    for (int i = 0; i < ALARM_COUNT; i++) {
        const struct alarm_row *row = &rows[i];
        struct alarm_memory *memory = &state->memory[i];
        double value = 0;
        double seen = 0;
        if (rl_metrics_get(metrics, row->metric, &value) && isfinite(value)) {
            remember(memory, value);
            if (level(row, memory, value, &seen) && is_beyond(row, seen, row->watch)) {
                memory->beyond++;
                count++;
                warn(row, memory, step, seen);
            }
        }
        if (memory->beyond > 0) {
            char name[RL_METRIC_NAME_BYTES];
            snprintf(name, sizeof(name), "alarms/%s", row->name);
            rl_metrics_set_named(metrics, name, memory->beyond);
        }
    }
    return count;
}
