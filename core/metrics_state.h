/* Inside of struct rl_metrics, shared by the files that collect, print and store it; nobody else
 * includes this. */
#ifndef FORESIGHT_CORE_METRICS_STATE_H
#define FORESIGHT_CORE_METRICS_STATE_H

#include "core/metrics.h"

enum metrics_kind {
    METRICS_GAUGE,
    METRICS_COUNTER,
    METRICS_MEAN,
    METRICS_MIN,
    METRICS_MAX,
    METRICS_HISTOGRAM
};

/* Buckets by sign, exponent and 6 bits of the fraction of a float: 1.6 % wide, integers up to 128
 * have one each. */
enum { METRICS_BUCKET_SHIFT = 17, METRICS_BUCKETS = 1 << (32 - METRICS_BUCKET_SHIFT) };

struct metrics_row {
    const char *name;
    const char *unit;
    const char *help;
    enum metrics_kind kind;
};

/* What a step collected. A value that is not finite shows in `sum` and makes the result null. */
struct metrics_cell {
    double sum;    /* gauges: the value; counters: the increase since the last reset */
    double weight; /* values observed; 0: none */
    double min;
    double max;
    double total; /* counters only */
    bool seen;    /* counters only: ever added to */
};

struct metrics_named {
    char name[RL_METRIC_NAME_BYTES];
    double value;
    bool set;
};

struct rl_metrics {
    struct metrics_cell cells[RL_METRIC_COUNT];
    uint32_t *buckets[RL_METRIC_COUNT]; /* [METRICS_BUCKETS], histograms only */
    struct metrics_named named[RL_METRIC_NAMED_MAX];
    size_t named_count;
    bool named_overflow; /* the warning was given */
    FILE *file;          /* NULL: none open */
    char path[4096];     /* of `file`, for errors */
};

/* Row of a metric; static. */
const struct metrics_row *metrics_row_of(size_t id);

/* Value in [0, 1] quantile `q` of a histogram that has observed something; within a bucket's width.
 */
double metrics_quantile(const struct rl_metrics *metrics, size_t id, double q);

#endif
