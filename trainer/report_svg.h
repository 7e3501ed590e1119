/* Charts as SVG text: lines, or stacked bars. Pure functions from numbers to text; colours come
 * from the page's (or picture's) style sheet through the classes s0 .. s7. One thread. */
#ifndef FORESIGHT_TRAINER_REPORT_SVG_H
#define FORESIGHT_TRAINER_REPORT_SVG_H

#include "core/text.h"

#include <stdbool.h>
#include <stddef.h>

enum { SVG_SERIES_MAX = 8 };

enum svg_kind { SVG_LINES, SVG_STACK };

struct svg_series {
    const char *label; /* borrowed */
    const double *y;   /* borrowed [count]; NAN where there is no value */
};

struct svg_chart {
    const char *title; /* borrowed; for readers that cannot see */
    enum svg_kind kind;
    const double *x; /* borrowed [count], rising */
    size_t count;    /* >= 1 */
    struct svg_series series[SVG_SERIES_MAX];
    size_t series_count;
    bool smooth;          /* one series: draw a moving average over the faint raw line */
    double width, height; /* user units; 0: 560 x 220 */
};

/* Where values lie on the picture: filled by svg_frame_make. */
struct svg_frame {
    double width, height;            /* of the picture, user units */
    double left, right, top, bottom; /* edges of the plot, user units */
    double x_low, x_high;            /* data values at left and right */
    double y_low, y_high;            /* data values at bottom and top */
    double y_step;                   /* between grid lines */
};

/* Ranges and nice steps of a chart. A chart without any finite value gets [0, 1]. */
struct svg_frame svg_frame_make(const struct svg_chart *chart);

/* Append one <svg> element. Errors: RL_TOO_LONG, RL_NO_MEMORY (of `out`). */
rl_status svg_chart_append(struct rl_text *out, const struct svg_chart *chart);

/* Append text with &, <, >, " and ' escaped and bytes that XML does not know replaced: safe between
 * tags and inside quoted attributes. Errors as rl_text_append. */
rl_status svg_text_append(struct rl_text *out, const char *text);

/* A number for people: 1234567 as "1.23M", 0.00012 as "1.2e-04". `out` [24]. */
void svg_number(double value, char out[24]);

#endif
