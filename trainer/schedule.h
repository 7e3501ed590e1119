/* Learning rate as a function of the update's number. Pure. */
#ifndef FORESIGHT_TRAINER_SCHEDULE_H
#define FORESIGHT_TRAINER_SCHEDULE_H

#include "core/config.h"

struct schedule {
    enum config_lr_schedule type;
    double peak;
    double min_ratio;       /* linear and cosine end at peak * min_ratio */
    int64_t warmup_updates; /* update u < warmup has peak * (u + 1) / warmup */
    int64_t total_updates;  /* linear and cosine reach their end here and stay */
};

/* Rate of update `update` (0-based: number of updates made before it; negative is taken as 0). */
double schedule_rate(const struct schedule *schedule, int64_t update);

#endif
