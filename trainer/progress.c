/* See progress.h: formatting first, output below it. */
#include "trainer/progress.h"

#include "core/clock.h"

#include <math.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { CELL_BYTES = 24, DEFAULT_COLUMNS = 80, BAR_CELLS = 24, COLUMNS_MIN = 40 };

#define SILENT_S 2.0          /* shorter phases show nothing */
#define TERMINAL_PERIOD_S 0.1 /* redraw in place */
#define PLAIN_PERIOD_S 10.0   /* a new line each time, so rarely */

/* --- formatting ------------------------------------------------------------------------------- */

static const char *cell(double value, int decimals, char out[CELL_BYTES])
{
    if (!isfinite(value)) {
        return "-";
    }
    snprintf(out, CELL_BYTES, "%.*f", decimals, value);
    return out;
}

/* Rates need no more than three digits. */
static const char *rate_cell(double value, char out[CELL_BYTES])
{
    if (isfinite(value) && fabs(value) >= 1e6) {
        snprintf(out, CELL_BYTES, "%.2fM", value / 1e6);
        return out;
    }
    if (isfinite(value) && fabs(value) >= 1e4) {
        snprintf(out, CELL_BYTES, "%.1fk", value / 1e3);
        return out;
    }
    return cell(value, 0, out);
}

void progress_duration_format(double seconds, char out[16])
{
    if (!isfinite(seconds) || seconds < 0) {
        snprintf(out, 16, "-");
    } else if (seconds < 9.95) {
        snprintf(out, 16, "%.1fs", seconds);
    } else if (seconds < 59.5) {
        snprintf(out, 16, "%.0fs", seconds);
    } else if (seconds < 3599.5) {
        unsigned whole = (unsigned)lround(seconds);
        snprintf(out, 16, "%um%02us", whole / 60, whole % 60);
    } else if (seconds < 100 * 3600.0) {
        unsigned minutes = (unsigned)lround(seconds / 60);
        snprintf(out, 16, "%uh%02um", minutes / 60, minutes % 60);
    } else {
        double hours = fmin(round(seconds / 3600), 24 * 9999.0);
        snprintf(out, 16, "%.0fd%02.0fh", floor(hours / 24), fmod(hours, 24));
    }
}

double progress_eta(double done, double total, double elapsed_s)
{
    if (!(done > 0) || !(elapsed_s >= 0)) {
        return (double)NAN;
    }
    return done >= total ? 0 : elapsed_s / done * (total - done);
}

#define STEP_FORMAT "%11s  %7s %6s %7s %7s %11s %8s %9s %7s %7s"

void progress_head_format(char *out)
{
    snprintf(out, PROGRESS_LINE_BYTES, STEP_FORMAT, "step", "reward", "acc", "length", "entropy",
             "stale", "gen t/s", "learn t/s", "time", "eta");
}

static void stale_cell(const struct progress_step *step, char out[CELL_BYTES * 2 + 4])
{
    char mean[CELL_BYTES];
    char max[CELL_BYTES];
    snprintf(out, CELL_BYTES * 2 + 4, "%s/%s", cell(step->staleness_mean, 2, mean),
             cell(step->staleness_max, 0, max));
}

void progress_step_format(const struct progress_step *step, char *out)
{
    char number[48];
    char stale[CELL_BYTES * 2 + 4];
    char cells[6][CELL_BYTES];
    char times[2][16];
    snprintf(number, sizeof number, "%lld/%lld", (long long)step->step, (long long)step->steps);
    stale_cell(step, stale);
    progress_duration_format(step->step_s, times[0]);
    progress_duration_format(step->eta_s, times[1]);
    snprintf(out, PROGRESS_LINE_BYTES, STEP_FORMAT, number, cell(step->reward, 3, cells[0]),
             cell(step->accuracy, 3, cells[1]), cell(step->length, 1, cells[2]),
             cell(step->entropy, 3, cells[3]), stale, rate_cell(step->rollout_rate, cells[4]),
             rate_cell(step->learner_rate, cells[5]), times[0], times[1]);
}

static void fill_bar(double share, char out[BAR_CELLS + 1])
{
    int full = (int)floor(fmin(fmax(share, 0), 1) * BAR_CELLS);
    for (int i = 0; i < BAR_CELLS; i++) {
        out[i] = i < full ? '#' : '.';
    }
    out[BAR_CELLS] = '\0';
}

/* Cut to `width` columns, never inside a character. */
static void cut_line(char *line, int width)
{
    int columns = 0;
    for (char *c = line; *c != '\0'; c++) {
        bool starts = ((unsigned char)*c & 0xc0) != 0x80;
        if (starts && columns == width) {
            *c = '\0';
            return;
        }
        columns += starts ? 1 : 0;
    }
}

void progress_bar_format(const struct progress_bar_view *view, int width, char *out)
{
    double share = view->total > 0 ? view->done / view->total : 0;
    char bar[BAR_CELLS + 1];
    char gone[16];
    char left[16];
    fill_bar(share, bar);
    progress_duration_format(view->elapsed_s, gone);
    progress_duration_format(progress_eta(view->done, view->total, view->elapsed_s), left);
    snprintf(out, PROGRESS_LINE_BYTES, "%s [%s] %3.0f%% %.0f/%.0f %s  %s, %s to go%s%s",
             view->label, bar, floor(100 * fmin(fmax(share, 0), 1)), view->done, view->total,
             view->unit, gone, left, view->note[0] != '\0' ? "  " : "", view->note);
    cut_line(out, width < COLUMNS_MIN ? COLUMNS_MIN : width);
}

/* --- output ----------------------------------------------------------------------------------- */

static int terminal_columns(FILE *out)
{
    struct winsize size = {0};
    if (ioctl(fileno(out), TIOCGWINSZ, &size) != 0 || size.ws_col == 0) {
        return DEFAULT_COLUMNS;
    }
    return size.ws_col;
}

struct progress_bar progress_bar_start(FILE *out, const char *label, const char *unit, double total)
{
    struct progress_bar bar = {.out = out, .terminal = isatty(fileno(out)) == 1};
    bar.view = (struct progress_bar_view){.label = label, .unit = unit, .note = "", .total = total};
    bar.started_s = rl_clock_now_s(NULL);
    bar.drawn_s = bar.started_s;
    return bar;
}

static void draw(struct progress_bar *bar)
{
    char line[PROGRESS_LINE_BYTES];
    int width = bar->terminal ? terminal_columns(bar->out) - 1 : PROGRESS_LINE_BYTES - 1;
    progress_bar_format(&bar->view, width, line);
    fprintf(bar->out, bar->terminal ? "\r%s\x1b[K" : "%s\n", line);
    fflush(bar->out);
    bar->shown = true;
}

void progress_bar_update(struct progress_bar *bar, double done, const char *note)
{
    double now_s = rl_clock_now_s(NULL);
    bar->view.done = done;
    bar->view.elapsed_s = now_s - bar->started_s;
    double period_s = bar->terminal ? TERMINAL_PERIOD_S : PLAIN_PERIOD_S;
    if (bar->view.elapsed_s < SILENT_S || (bar->shown && now_s - bar->drawn_s < period_s)) {
        return;
    }
    bar->view.note = note == NULL ? "" : note;
    bar->drawn_s = now_s;
    draw(bar);
    bar->view.note = "";
}

void progress_bar_finish(struct progress_bar *bar)
{
    if (!bar->shown) {
        return;
    }
    bar->view.elapsed_s = rl_clock_now_s(NULL) - bar->started_s;
    draw(bar);
    if (bar->terminal) {
        fputc('\n', bar->out);
        fflush(bar->out);
    }
}
