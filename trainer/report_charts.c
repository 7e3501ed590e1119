/* The charts of the page: which columns go onto which chart, their legends and the numbers that the
 * tooltips show. Owns no data. */
#include "trainer/report_parts.h"
#include "trainer/report_svg.h"

#include "core/log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct panel_series {
    const char *label;
    const char *metric;
};

struct panel {
    const char *section; /* not NULL: a heading, nothing else is set */
    const char *title, *unit;
    enum svg_kind kind;
    const char *help;
    struct panel_series series[SVG_SERIES_MAX];
};

#define SECTION(title) {.section = title},
#define SERIES(label, metric)                                                                      \
    {                                                                                              \
        label, metric                                                                              \
    }
#define PANEL(title_, unit_, kind_, help_, ...)                                                    \
    {.title = title_, .unit = unit_, .kind = kind_, .help = help_, .series = {__VA_ARGS__}},
static const struct panel panels[] = {
#include "trainer/report_panels.def"
};

/* What is being drawn. */
struct drawing {
    struct rl_text *out;
    const struct report_table *table;
    bool used[REPORT_COLUMNS_MAX]; /* columns that some panel has shown */
    bool grid_open;
    const char *section; /* heading to print before the next chart, NULL if none */
    size_t charts;
};

/* --- one chart -------------------------------------------------------------------------------- */

static rl_status append_legend(struct rl_text *out, const struct svg_chart *chart, const char *unit)
{
    RL_TRY(rl_text_append_str(out, "<div class=\"legend\">"));
    for (size_t s = 0; s < chart->series_count; s++) {
        char last[24] = "";
        double value = 0;
        if (report_values_last(chart->series[s].y, chart->count, &value)) {
            svg_number(value, last);
        }
        RL_TRY(rl_text_printf(out, "<span><i class=\"s%zu\"></i>", s));
        RL_TRY(svg_text_append(out, chart->series[s].label));
        RL_TRY(rl_text_printf(out, " <b>%s</b></span>", last));
    }
    if (unit[0] != '\0') {
        RL_TRY(rl_text_append_str(out, "<span>"));
        RL_TRY(svg_text_append(out, unit));
        RL_TRY(rl_text_append_str(out, "</span>"));
    }
    return rl_text_append_str(out, "</div>");
}

/* A JSON string that is also safe inside <script>. */
static rl_status append_json_string(struct rl_text *out, const char *text)
{
    RL_TRY(rl_text_append_byte(out, '"'));
    for (const char *c = text; *c != '\0'; c++) {
        unsigned char byte = (unsigned char)*c;
        bool plain = byte >= 0x20 && byte < 0x7f && strchr("\"\\<>&", byte) == NULL;
        if (plain) {
            RL_TRY(rl_text_append_byte(out, *c));
        } else if (byte < 0x80) {
            RL_TRY(rl_text_printf(out, "\\u%04x", byte));
        } else {
            RL_TRY(rl_text_append_byte(out, '?'));
        }
    }
    return rl_text_append_byte(out, '"');
}

static rl_status append_json_values(struct rl_text *out, const double *values, size_t count,
                                    const char *format)
{
    RL_TRY(rl_text_append_byte(out, '['));
    for (size_t i = 0; i < count; i++) {
        if (i > 0) {
            RL_TRY(rl_text_append_byte(out, ','));
        }
        if (isfinite(values[i])) {
            RL_TRY(rl_text_printf(out, strcmp(format, "whole") == 0 ? "%.0f" : "%.6g", values[i]));
        } else {
            RL_TRY(rl_text_append_str(out, "null"));
        }
    }
    return rl_text_append_byte(out, ']');
}

/* The numbers behind a chart, for its tooltip. */
static rl_status append_chart_data(struct rl_text *out, const struct svg_chart *chart,
                                   const char *unit)
{
    struct svg_frame frame = svg_frame_make(chart);
    RL_TRY(rl_text_printf(out,
                          "<script type=\"application/json\">{\"w\":%.0f,\"g\":[%.1f,%.1f,%.9g,"
                          "%.9g,%.1f,%.1f],\"u\":",
                          frame.width, frame.left, frame.right, frame.x_low, frame.x_high,
                          frame.top, frame.bottom));
    RL_TRY(append_json_string(out, unit));
    RL_TRY(rl_text_append_str(out, ",\"x\":"));
    RL_TRY(append_json_values(out, chart->x, chart->count, "whole"));
    RL_TRY(rl_text_append_str(out, ",\"s\":["));
    for (size_t s = 0; s < chart->series_count; s++) {
        RL_TRY(rl_text_append_str(out, s > 0 ? ",{\"n\":" : "{\"n\":"));
        RL_TRY(append_json_string(out, chart->series[s].label));
        RL_TRY(rl_text_append_str(out, ",\"y\":"));
        RL_TRY(append_json_values(out, chart->series[s].y, chart->count, "real"));
        RL_TRY(rl_text_append_byte(out, '}'));
    }
    return rl_text_append_str(out, "]}</script>");
}

static rl_status open_grid(struct drawing *drawing)
{
    if (drawing->section != NULL) {
        RL_TRY(rl_text_printf(drawing->out, "%s<h2>%s</h2><div class=\"grid2\">",
                              drawing->grid_open ? "</div>" : "", drawing->section));
        drawing->grid_open = true;
        drawing->section = NULL;
    }
    return RL_OK;
}

static rl_status append_card(struct drawing *drawing, const struct svg_chart *chart,
                             const char *unit, const char *help)
{
    struct rl_text *out = drawing->out;
    RL_TRY(open_grid(drawing));
    RL_TRY(rl_text_append_str(out, "<figure class=\"card\" style=\"margin:0\"><h3>"));
    RL_TRY(svg_text_append(out, chart->title));
    RL_TRY(rl_text_append_str(out, "</h3><p>"));
    RL_TRY(svg_text_append(out, help));
    RL_TRY(rl_text_append_str(out, "</p>"));
    RL_TRY(append_legend(out, chart, unit));
    RL_TRY(svg_chart_append(out, chart));
    RL_TRY(append_chart_data(out, chart, unit));
    drawing->charts++;
    return rl_text_append_str(out, "</figure>");
}

/* --- panels of the table ---------------------------------------------------------------------- */

static size_t find_column(const struct report_table *table, const char *name)
{
    size_t i = 0;
    while (i < table->column_count && strcmp(table->columns[i].name, name) != 0) {
        i++;
    }
    return i;
}

static struct svg_chart chart_start(const struct report_table *table, const char *title,
                                    enum svg_kind kind)
{
    struct svg_chart chart = {.title = title, .kind = kind, .smooth = true};
    chart.x = table->steps;
    chart.count = table->row_count;
    return chart;
}

static bool chart_add(struct drawing *drawing, struct svg_chart *chart, const char *label,
                      size_t column)
{
    double last = 0;
    const double *values = drawing->table->columns[column].values;
    if (chart->series_count == SVG_SERIES_MAX || !report_values_last(values, chart->count, &last)) {
        return false;
    }
    chart->series[chart->series_count].label = label;
    chart->series[chart->series_count++].y = values;
    return true;
}

static rl_status append_panel(struct drawing *drawing, const struct panel *panel)
{
    struct svg_chart chart = chart_start(drawing->table, panel->title, panel->kind);
    for (size_t s = 0; s < SVG_SERIES_MAX && panel->series[s].metric != NULL; s++) {
        size_t column = find_column(drawing->table, panel->series[s].metric);
        if (column < drawing->table->column_count) {
            drawing->used[column] = true;
            chart_add(drawing, &chart, panel->series[s].label, column);
        }
    }
    return chart.series_count == 0 ? RL_OK : append_card(drawing, &chart, panel->unit, panel->help);
}

/* --- panels whose series are found by name ---------------------------------------------------- */

static bool name_between(const char *name, const char *start, const char *end, char *middle,
                         size_t bytes)
{
    size_t length = strlen(name);
    size_t head = strlen(start);
    size_t tail = strlen(end);
    if (length <= head + tail || strncmp(name, start, head) != 0 ||
        strcmp(name + length - tail, end) != 0 || length - head - tail >= bytes) {
        return false;
    }
    memcpy(middle, name + head, length - head - tail);
    middle[length - head - tail] = '\0';
    return true;
}

static rl_status append_reward_parts(struct drawing *drawing)
{
    char labels[SVG_SERIES_MAX][160];
    struct svg_chart chart = chart_start(drawing->table, "Rewards by function", SVG_LINES);
    for (size_t i = 0; i < drawing->table->column_count; i++) {
        size_t next = chart.series_count;
        if (next < SVG_SERIES_MAX && name_between(drawing->table->columns[i].name, "rewards/",
                                                  "/mean", labels[next], sizeof labels[next])) {
            drawing->used[i] = true;
            chart_add(drawing, &chart, labels[next], i);
        }
    }
    return chart.series_count < 2
               ? RL_OK
               : append_card(drawing, &chart, "", "Mean of each reward function, before weights");
}

struct wait_total {
    char name[160];
    size_t column;
    double seconds;
};

static int compare_waits(const void *left, const void *right)
{
    const struct wait_total *a = left;
    const struct wait_total *b = right;
    return (a->seconds < b->seconds) - (a->seconds > b->seconds);
}

/* Named waits with their totals, longest first. Returns how many. */
static size_t collect_waits(struct drawing *drawing, struct wait_total *waits, size_t max)
{
    size_t count = 0;
    for (size_t i = 0; i < drawing->table->column_count; i++) {
        const struct report_column *column = &drawing->table->columns[i];
        if (strncmp(column->name, "wait/", 5) != 0) {
            continue;
        }
        drawing->used[i] = true;
        struct wait_total *wait = &waits[count];
        if (count < max &&
            name_between(column->name, "wait/", "/seconds", wait->name, sizeof wait->name) &&
            report_values_last(column->values, drawing->table->row_count, &wait->seconds)) {
            wait->column = i;
            count++;
        }
    }
    qsort(waits, count, sizeof *waits, compare_waits);
    return count;
}

/* Totals since the start become seconds of each step; a total that fell was set anew by a resume.
 */
static void differences(const double *totals, size_t count, double *out)
{
    double before = 0;
    for (size_t i = 0; i < count; i++) {
        out[i] = NAN;
        if (isfinite(totals[i])) {
            out[i] = totals[i] >= before ? totals[i] - before : totals[i];
            before = totals[i];
        }
    }
}

static rl_status append_waits(struct drawing *drawing)
{
    enum { SHOWN = 6 };
    struct wait_total waits[64];
    size_t count = collect_waits(drawing, waits, sizeof waits / sizeof waits[0]);
    size_t rows = drawing->table->row_count;
    size_t shown = count < SHOWN ? count : SHOWN;
    if (shown == 0) {
        return RL_OK;
    }
    double *seconds = malloc(shown * rows * sizeof *seconds);
    if (seconds == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: no memory for %zu waits", shown);
    }
    struct svg_chart chart = chart_start(drawing->table, "Named waits", SVG_STACK);
    for (size_t w = 0; w < shown; w++) {
        differences(drawing->table->columns[waits[w].column].values, rows, seconds + w * rows);
        chart.series[w].label = waits[w].name;
        chart.series[w].y = seconds + w * rows;
    }
    chart.series_count = shown;
    rl_status status = append_card(drawing, &chart, "s", "Seconds of each step spent in each wait");
    free(seconds);
    return status;
}

static rl_status append_rest(struct drawing *drawing)
{
    bool opened = false;
    for (size_t i = 0; i < drawing->table->column_count; i++) {
        const struct report_column *column = &drawing->table->columns[i];
        struct svg_chart chart = chart_start(drawing->table, column->name, SVG_LINES);
        if (drawing->used[i] || strcmp(column->name, "step") == 0 ||
            !chart_add(drawing, &chart, "value", i)) {
            continue;
        }
        if (!opened) {
            RL_TRY(rl_text_append_str(drawing->out, "<details><summary>Every other number</summary>"
                                                    "<div class=\"grid2\">"));
            opened = true;
        }
        RL_TRY(append_card(drawing, &chart, "", ""));
    }
    return opened ? rl_text_append_str(drawing->out, "</div></details>") : RL_OK;
}

rl_status report_charts_append(struct rl_text *out, const struct report_run *run, size_t *charts)
{
    struct drawing drawing = {.out = out, .table = &run->table};
    for (size_t i = 0; i < sizeof panels / sizeof panels[0] && run->table.row_count > 0; i++) {
        if (panels[i].section != NULL) {
            drawing.section = panels[i].section;
            continue;
        }
        RL_TRY(append_panel(&drawing, &panels[i]));
        if (strcmp(panels[i].title, "Accuracy") == 0) {
            RL_TRY(append_reward_parts(&drawing));
        } else if (strcmp(panels[i].title, "Where a step's time goes") == 0) {
            RL_TRY(append_waits(&drawing));
        }
    }
    if (drawing.grid_open) {
        RL_TRY(rl_text_append_str(out, "</div>"));
    }
    drawing.section = NULL;
    RL_TRY(append_rest(&drawing));
    *charts = drawing.charts;
    return RL_OK;
}
