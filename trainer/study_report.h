/* `foresight report SWEEP`: report.html, cells.csv and cells.json from a sweep's folder. The JSON
 * is the one source of what the page and the tables say. Identical folders give identical bytes. */
#ifndef FORESIGHT_TRAINER_STUDY_REPORT_H
#define FORESIGHT_TRAINER_STUDY_REPORT_H

#include "core/text.h"
#include "trainer/study_cells.h"

/* What was drawn, for the command's last line. */
struct study_facts {
    uint32_t trials, done, failed, cells;
    size_t bytes; /* of the page */
};

/* Read SWEEP; write the page to `html_path` (NULL: SWEEP/report.html) and SWEEP/cells.csv and
 * SWEEP/cells.json, atomically each. Without `timings` the page says nothing that depends on time.
 * `facts` may be NULL. Errors: those of study_load, RL_TOO_LONG. */
rl_status study_report_write(const char *dir, const char *html_path, bool timings,
                             struct study_facts *facts);

/* --- the parts, for study_*.c and tests --------------------------------------------------------
 */

/* All that the page and the tables say, selection on A and figures on B; see docs/evaluation.md.
 * Caller frees with json_decref. Errors: RL_INVALID, RL_NO_MEMORY. */
rl_status study_document_make(const struct study_cells *cells, json_t **out);

/* Rows of every trial, checkpoint, temperature and problem set: a new array; NULL: no memory. */
json_t *study_rows_make(const struct study_cells *cells);

/* What was spent, which trials failed, the settings of a sweep beside each other. */
json_t *study_spent_make(const struct study *study);
json_t *study_failures_make(const struct study *study);
rl_status study_settings_make(const struct study_cells *cells, json_t **out);

/* Numbers for the document: null where a value is not finite. */
json_t *study_number(double value);
json_t *study_interval(const struct eval_interval *interval);

/* The rows as CSV. Errors: RL_TOO_LONG, RL_NO_MEMORY. */
rl_status study_csv_append(struct rl_text *out, const json_t *rows);

/* The page of a document. `cells` for the charts. Errors as above. */
rl_status study_page_append(struct rl_text *out, const struct study_cells *cells,
                            const json_t *document, bool timings);

/* Heat maps, the scatter against the effective temperature, the ridge. Errors as above. */
rl_status study_charts_append(struct rl_text *out, const struct study_cells *cells,
                              const struct study_half_a *half, const struct study_choice *choice);

/* Temperature of sampling times temperature of evaluation against the score, last checkpoints of
 * one group: into x and y [cells]; how many. */
uint32_t study_effective_points(const struct study_cells *cells, const struct study_half_a *half,
                                uint32_t group, double *x, double *y);

/* What truncation left of the tokens' probability when the group's trials sampled: smallest and
 * largest mean of a trial. False, and NaN, if none did. */
bool study_group_kept_mass(const struct study *study, uint32_t group, double *low, double *high);

#endif
