/* Parts of the report page, each appending HTML to the text. Internal to trainer/report_*.c. */
#ifndef FORESIGHT_TRAINER_REPORT_PARTS_H
#define FORESIGHT_TRAINER_REPORT_PARTS_H

#include "core/text.h"
#include "trainer/report_data.h"

/* All charts: the panels of report_panels.def, one for the rewards by function, one for the waits,
 * and, folded away, one for every other number. *charts: how many were drawn.
 * Errors of this and the following: RL_TOO_LONG, RL_NO_MEMORY. */
rl_status report_charts_append(struct rl_text *out, const struct report_run *run, size_t *charts);

/* Headline figures from summary.json and, where that has none, from the metrics. */
rl_status report_tiles_append(struct rl_text *out, const struct report_run *run);

/* Before/after table of summary.json's base.* and trained.*, and the rest of its figures. */
rl_status report_summary_append(struct rl_text *out, json_t *summary);

/* summary.json's "samples": prompt, completion, reward. */
rl_status report_samples_append(struct rl_text *out, json_t *summary);

/* Mean of the first (or last) tenth of a column's values, at most ten, at least one; false if the
 * column is NULL or has no value. */
bool report_values_early(const double *values, size_t count, double *out);
bool report_values_late(const double *values, size_t count, double *out);

#endif
