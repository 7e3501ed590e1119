/* Figures of one step: collected while it runs, written as one JSON object a line, then emptied.
 * The names come from metrics.def; a few that depend on the configuration (one per reward function,
 * one per named wait) are given at run time. One owner thread; other threads and ranks send what
 * they collected as plain numbers (pack, merge), so that means are means of samples, never of
 * means. */
#ifndef FORESIGHT_CORE_METRICS_H
#define FORESIGHT_CORE_METRICS_H

#include "core/status.h"
#include "core/wait.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum rl_metric_id {
#define METRIC(id, name, kind, unit, help) RL_METRIC_##id,
#include "core/metrics.def"
    RL_METRIC_COUNT
};

enum { RL_METRIC_NAMED_MAX = 96, RL_METRIC_NAME_BYTES = 80 };

/* Doubles that rl_metrics_pack writes: four per metric. */
enum { RL_METRICS_PACKED = 4 * RL_METRIC_COUNT };

struct rl_metrics;

/* Empty. Caller owns *out. Errors: RL_NO_MEMORY. */
rl_status rl_metrics_create(struct rl_metrics **out);

/* Close the file, free. Takes NULL. */
void rl_metrics_destroy(struct rl_metrics *metrics);

/* Set a gauge, add to a counter, observe one value of a mean, extreme or histogram, as the metric's
 * kind says. `metrics` may be NULL: then nothing is kept (so callers need no branch). */
void rl_metrics_add(struct rl_metrics *metrics, enum rl_metric_id id, double value);

/* Observe `weight` values at once whose sum is `sum` (e.g. over tokens): means only; for other
 * kinds the same as adding sum. Weight 0 is ignored. */
void rl_metrics_add_sum(struct rl_metrics *metrics, enum rl_metric_id id, double sum,
                        double weight);

/* Set a gauge with a name of its own, e.g. "rewards/numeric/mean"; kept until the step is written.
 * Names longer than RL_METRIC_NAME_BYTES - 1 are cut; beyond RL_METRIC_NAMED_MAX names the value is
 * dropped, with one warning. */
void rl_metrics_set_named(struct rl_metrics *metrics, const char *name, double value);

/* Set wait/NAME/{seconds,count,max_seconds} from the table, totals since the start of the run;
 * spaces and other odd bytes of NAME become '_'. */
void rl_metrics_set_waits(struct rl_metrics *metrics, struct rl_waits *waits);

/* Value so far in this step (histograms: the mean; counters: the total). False and *value unchanged
 * if there is none. */
bool rl_metrics_get(const struct rl_metrics *metrics, enum rl_metric_id id, double *value);

/* Set the total of a counter, when a run is resumed. */
void rl_metrics_restore_counter(struct rl_metrics *metrics, enum rl_metric_id id, double total);

/* Write what this step collected as plain numbers, counters as the increase since the last
 * rl_metrics_reset. Histograms' distributions and named gauges do not travel. */
void rl_metrics_pack(const struct rl_metrics *metrics, double out[RL_METRICS_PACKED]);

/* Add what another object packed. */
void rl_metrics_merge(struct rl_metrics *metrics, const double packed[RL_METRICS_PACKED]);

/* Forget the step's values; totals of counters stay. */
void rl_metrics_reset(struct rl_metrics *metrics);

/* Append to the file `path`. Lines there whose step is above `last_step`, and a torn last line, are
 * cut off first (`last_step` < 0: start an empty file). Errors: RL_IO. */
rl_status rl_metrics_open(struct rl_metrics *metrics, const char *path, int64_t last_step);

/* Write {"step": step, ...} as one line to the open file (none open: nothing is written), flush it,
 * and reset. Errors: RL_IO, RL_NO_MEMORY. */
rl_status rl_metrics_write(struct rl_metrics *metrics, int64_t step);

/* Print the line that rl_metrics_write would write, without the newline. Errors: RL_IO,
 * RL_NO_MEMORY. */
rl_status rl_metrics_print(const struct rl_metrics *metrics, int64_t step, FILE *out);

/* Name of a metric as written in the file; borrowed, static. */
const char *rl_metrics_name(enum rl_metric_id id);

/* The table as Markdown (docs/metrics.md). */
void rl_metrics_markdown(FILE *out);

#endif
