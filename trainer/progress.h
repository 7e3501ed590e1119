/* What a person sees while the program works: one fixed-width line a step, and a bar for phases
 * that take longer than two seconds. Formatting is pure and apart from printing. A terminal gets a
 * bar that is redrawn in place; anything else gets few plain lines. One thread per object. */
#ifndef FORESIGHT_TRAINER_PROGRESS_H
#define FORESIGHT_TRAINER_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { PROGRESS_LINE_BYTES = 256 };

/* Figures of one step; NAN where there is none (printed as "-"). */
struct progress_step {
    int64_t step, steps; /* 1-based; of so many */
    double reward, accuracy;
    double length;                        /* mean completion, tokens */
    double entropy;                       /* nats */
    double staleness_mean, staleness_max; /* versions */
    double rollout_rate, learner_rate;    /* tokens/s */
    double step_s;                        /* wall time of the step */
    double eta_s;                         /* wall time still to go */
};

/* The column heads that stand above the lines of progress_step_format. `out`
 * [PROGRESS_LINE_BYTES]; no newline. */
void progress_head_format(char *out);

/* One line for a step, columns under progress_head_format's. `out` [PROGRESS_LINE_BYTES]. */
void progress_step_format(const struct progress_step *step, char *out);

/* A duration in at most 6 characters: "0.4s", "12s", "3m20s", "1h05m", "3d04h"; "-" for NAN. */
void progress_duration_format(double seconds, char out[16]);

/* Seconds to go if the rest takes as long per unit as what is done; NAN if nothing is done. */
double progress_eta(double done, double total, double elapsed_s);

/* A bar and its figures in at most `width` columns (>= 40): label, bar, share, done/total unit,
 * time gone and to go, note. `out` [PROGRESS_LINE_BYTES]. */
struct progress_bar_view {
    const char *label, *unit, *note; /* note may be "" */
    double done, total;
    double elapsed_s;
};
void progress_bar_format(const struct progress_bar_view *view, int width, char *out);

/* A long phase. Plain data; nothing to release. */
struct progress_bar {
    FILE *out;
    struct progress_bar_view view; /* label and unit borrowed until progress_bar_finish */
    double started_s, drawn_s;
    bool terminal, shown;
};

/* Begin a phase of `total` units (> 0). Prints nothing yet. `out` is usually stderr. */
struct progress_bar progress_bar_start(FILE *out, const char *label, const char *unit,
                                       double total);

/* So many units are done. `note` (may be NULL) is shown behind the figures, borrowed for the call.
 * Prints at most ten times a second on a terminal, else every ten seconds; nothing in the first
 * two seconds. */
void progress_bar_update(struct progress_bar *bar, double done, const char *note);

/* End of the phase: a last line if anything was shown. */
void progress_bar_finish(struct progress_bar *bar);

#endif
