/* What a person sees of a sweep: a table that is redrawn in place on a terminal, one plain line an
 * event elsewhere. Owns no state of the sweep. One thread. */
#ifndef FORESIGHT_APP_SWEEP_TABLE_H
#define FORESIGHT_APP_SWEEP_TABLE_H

#include "app/sweep.h"

#include <stdio.h>

struct sweep_table {
    FILE *out;
    bool terminal;
    double drawn_s;
    size_t lines; /* that stand below the cursor */
};

/* Of a trial at work. */
struct sweep_table_row {
    size_t trial;
    int64_t steps;
    double began_s; /* by rl_clock_now_s */
};

/* How the whole stands. */
struct sweep_table_totals {
    size_t trials, done, failed, stopped, running;
    double eta_s; /* NAN: not known */
};

/* Nothing is printed yet. `out` is borrowed. `launched`: by mpirun. */
struct sweep_table sweep_table_open(FILE *out, bool launched);

/* Redraw, if it is a terminal and half a second has passed since. rows [totals->running]. */
void sweep_table_draw(struct sweep_table *table, const struct sweep *sweep,
                      const struct sweep_table_row *rows, const struct sweep_table_totals *totals);

/* A line that stays; the table is redrawn below it. */
void sweep_table_say(struct sweep_table *table, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Take the table away. */
void sweep_table_close(struct sweep_table *table);

#endif
