/* Learning-rate schedules. Pure. The first update never has rate 0: warm-up counts from 1. */
#include "trainer/schedule.h"

#include <math.h>

double schedule_rate(const struct schedule *schedule, int64_t update)
{
    int64_t u = update > 0 ? update : 0;
    if (u < schedule->warmup_updates) {
        return schedule->peak * (double)(u + 1) / (double)schedule->warmup_updates;
    }
    if (schedule->type == CONFIG_LR_CONSTANT) {
        return schedule->peak;
    }
    int64_t span = schedule->total_updates - schedule->warmup_updates;
    double progress = span > 0 ? (double)(u - schedule->warmup_updates) / (double)span : 1.0;
    progress = fmin(progress, 1.0);
    double left = schedule->type == CONFIG_LR_LINEAR
                      ? 1.0 - progress
                      : 0.5 * (1.0 + cos(0x1.921fb54442d18p+1 * progress));
    double floor_rate = schedule->peak * schedule->min_ratio;
    return floor_rate + (schedule->peak - floor_rate) * left;
}
