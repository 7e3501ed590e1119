/* See sweep_table.h. Between two drawings the cursor stands above the table, so that a line of the
 * log overwrites it rather than be lost in it. */
#include "app/sweep_table.h"

#include "app/run_tail.h"
#include "core/clock.h"
#include "trainer/progress.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TABLE_ROWS_MOST = 24 };
static const double table_every_s = 0.5;

/* mpirun gives its ranks a terminal of its own, whatever it writes to itself. */
static bool launcher_is_on_terminal(void)
{
    char path[64];
    char target[256] = "";
    snprintf(path, sizeof path, "/proc/%lld/fd/1", (long long)getppid());
    return readlink(path, target, sizeof target - 1) > 0 &&
           (strncmp(target, "/dev/pts/", 9) == 0 || strncmp(target, "/dev/tty", 8) == 0);
}

struct sweep_table sweep_table_open(FILE *out, bool launched)
{
    const char *kind = getenv("TERM");
    bool terminal = isatty(fileno(out)) && kind != NULL && strcmp(kind, "dumb") != 0 &&
                    (!launched || launcher_is_on_terminal());
    return (struct sweep_table){.out = out, .terminal = terminal};
}

/* A figure in 8 columns, "-" where there is none. */
static void figure_text(const json_t *line, const char *name, char out[16])
{
    const json_t *value = json_object_get(line, name);
    if (json_is_number(value)) {
        snprintf(out, 16, "%8.4f", json_number_value(value));
    } else {
        snprintf(out, 16, "%8s", "-");
    }
}

/* Whether a trial without a known number of steps is still at its training. */
static bool wants_training(const struct sweep *sweep, size_t trial)
{
    return trial < sweep->plan->trial_count &&
           sweep->plan->settings.sweep.command == CONFIG_SWEEP_DISTILL &&
           !sweep_is_trained(sweep, trial, 0);
}

static void draw_row(struct sweep_table *table, const struct sweep *sweep,
                     const struct sweep_table_row *row)
{
    char path[SWEEP_PATH_BYTES];
    char reward[16];
    char loss[16];
    char eta[16];
    json_t *line = NULL;
    if (sweep_path(sweep, row->trial, "metrics.jsonl", path) == RL_OK) {
        line = run_tail(path);
    }
    int64_t step = json_integer_value(json_object_get(line, "step"));
    bool trains = row->steps > 0 ? step < row->steps : wants_training(sweep, row->trial);
    double left_s =
        progress_eta((double)step, (double)row->steps, rl_clock_now_s(NULL) - row->began_s);
    figure_text(line, "reward", reward);
    figure_text(line, "loss", loss);
    progress_duration_format(trains && row->steps > 0 ? left_s : NAN, eta);
    fprintf(table->out, "  %-44.44s %-5s %5" PRId64 "/%-5" PRId64 " %s %s %7s\n",
            sweep_trial_name(sweep, row->trial), trains ? "train" : "eval", step, row->steps,
            reward, loss, eta);
    json_decref(line);
}

static void erase(struct sweep_table *table)
{
    if (table->lines > 0) {
        fputs("\r\033[J", table->out);
        table->lines = 0;
    }
}

void sweep_table_draw(struct sweep_table *table, const struct sweep *sweep,
                      const struct sweep_table_row *rows, const struct sweep_table_totals *totals)
{
    char eta[16];
    double now_s = rl_clock_now_s(NULL);
    if (!table->terminal || now_s - table->drawn_s < table_every_s) {
        return;
    }
    size_t shown = totals->running < TABLE_ROWS_MOST ? totals->running : TABLE_ROWS_MOST;
    table->drawn_s = now_s;
    erase(table);
    progress_duration_format(totals->eta_s, eta);
    fprintf(table->out, "%s: %zu of %zu done, %zu failed, %zu stopped early, %zu at work, eta %s\n",
            sweep->plan->name, totals->done, totals->trials, totals->failed, totals->stopped,
            totals->running, eta);
    fprintf(table->out, "  %-44s %-5s %11s %8s %8s %7s\n", "trial", "state", "step", "reward",
            "loss", "eta");
    for (size_t i = 0; i < shown; i++) {
        draw_row(table, sweep, &rows[i]);
    }
    table->lines = shown + 2;
    fprintf(table->out, "\033[%zuA\r", table->lines);
    fflush(table->out);
}

void sweep_table_say(struct sweep_table *table, const char *format, ...)
{
    va_list args;
    erase(table);
    va_start(args, format);
    vfprintf(table->out, format, args);
    va_end(args);
    fputc('\n', table->out);
    fflush(table->out);
    table->drawn_s = 0;
}

void sweep_table_close(struct sweep_table *table)
{
    erase(table);
    fflush(table->out);
}
