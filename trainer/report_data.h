/* What a run folder holds for a report: metrics.jsonl as columns, config.yaml and summary.json as
 * they stand. Owns the data, knows nothing of drawing. Invariant: every column has one value for
 * each row, NAN where a line did not have it. One thread. */
#ifndef FORESIGHT_TRAINER_REPORT_DATA_H
#define FORESIGHT_TRAINER_REPORT_DATA_H

#include "core/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { REPORT_COLUMNS_MAX = 512 };

struct report_column {
    char *name;     /* owned; nested objects are joined with '/' */
    double *values; /* owned [row_capacity of the table] */
};

struct report_table {
    struct report_column columns[REPORT_COLUMNS_MAX];
    size_t column_count;
    double *steps; /* owned [row_count], strictly rising */
    size_t row_count;
    size_t row_capacity;
    size_t rows_replaced; /* rows that a resumed run wrote again; the later ones stand */
    bool torn_tail;       /* the last line was cut off and left out */
};

struct report_run {
    char *dir;       /* owned */
    char *name;      /* owned; last part of dir */
    char *config;    /* owned; text of config.yaml, NULL if there is none */
    json_t *summary; /* owned reference; NULL if there is no summary.json */
    struct report_table table;
};

/* Read the lines of a metrics file into columns. A missing file or an empty one gives no rows. A
 * last line without its end that cannot be read is left out and noted; any other line that is not
 * an object with a number "step" is an error. Release with report_table_fini (also after an error).
 * Errors: RL_IO, RL_INVALID (file and line named), RL_TOO_LONG, RL_NO_MEMORY. */
rl_status report_table_load(const char *path, struct report_table *table);

/* Free the columns. Takes a zeroed struct. */
void report_table_fini(struct report_table *table);

/* Values [row_count] of a column; NULL if there is none of that name. Borrowed. */
const double *report_table_find(const struct report_table *table, const char *name);

/* First and last value that is not NAN; false if there is none. */
bool report_values_first(const double *values, size_t count, double *out);
bool report_values_last(const double *values, size_t count, double *out);

/* Merge neighbouring rows so that at most `max_rows` are left: means, but maxima of columns whose
 * name ends in "max" and minima of those in "min". Rows per bucket is returned (1: unchanged). */
size_t report_table_thin(struct report_table *table, size_t max_rows);

/* Read DIR. The folder and at least one of its three files must exist. Release with
 * report_run_fini (also after an error). Errors: RL_IO, RL_INVALID, RL_NOT_FOUND, RL_NO_MEMORY. */
rl_status report_run_load(const char *dir, struct report_run *run);

/* Takes a zeroed struct. */
void report_run_fini(struct report_run *run);

/* Value of a dotted key of summary.json, whether it is written flat ("base.pass@1": 0.3) or nested;
 * NULL if there is none. Borrowed. `summary` may be NULL. */
json_t *report_summary_find(json_t *summary, const char *dotted);

#endif
