/* Pictures of a sweep's cells, from split A: what the choice saw. See study_report.h. */
#include "trainer/report_svg.h"
#include "trainer/study_report.h"

#include "core/log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    HEAT_LABEL = 96,
    HEAT_CELL_W = 58,
    HEAT_CELL_H = 28,
    HEAT_TOP = 24,
    PLOT_W = 560,
    PLOT_H = 260,
    PLOT_LEFT = 50,
    PLOT_RIGHT = 14,
    PLOT_TOP = 12,
    PLOT_BOTTOM = 40,
    CURVE_POINTS = 60
};

/* What all charts of a page share. */
struct charts {
    struct rl_text *out;
    const struct study_cells *cells;
    const struct study_half_a *half;
    const struct study_choice *choice;
    const struct count_table *table;
    double low, high; /* scores of all cells: one scale of colours for the page */
};

/* --- heat maps -------------------------------------------------------------------------------- */

/* Dark blue over teal to yellow; *dark: the colour wants light text. */
static void heat_colour(double share, int out[3], bool *dark)
{
    static const double stops[4][3] = {
        {54, 45, 110}, {38, 110, 142}, {60, 175, 130}, {245, 222, 80}};
    double place = fmin(fmax(share, 0), 1) * 3;
    int stop = place >= 3 ? 2 : (int)place;
    for (int i = 0; i < 3; i++) {
        double from = stops[stop][i];
        out[i] = (int)lround(from + (stops[stop + 1][i] - from) * (place - stop));
    }
    *dark = place < 1.8;
}

static rl_status heat_cell(const struct charts *c, int32_t cell, uint32_t row, uint32_t column)
{
    int colour[3];
    bool dark = false;
    double x = HEAT_LABEL + (double)column * HEAT_CELL_W;
    double y = HEAT_TOP + (double)row * HEAT_CELL_H;
    if (cell < 0) {
        return RL_OK;
    }
    double score = c->half->score[cell];
    heat_colour((score - c->low) / (c->high - c->low), colour, &dark);
    uint32_t base = study_cell_base(c->cells, (uint32_t)cell);
    const char *edge = cell == c->choice->winner || cell == c->choice->base_tuned[base]
                           ? " stroke=\"var(--ink)\" stroke-width=\"2.5\""
                           : "";
    return rl_text_printf(c->out,
                          "<rect x=\"%.0f\" y=\"%.0f\" width=\"%d\" height=\"%d\" rx=\"3\" "
                          "fill=\"rgb(%d,%d,%d)\"%s/><text class=\"heat\" x=\"%.0f\" y=\"%.0f\" "
                          "text-anchor=\"middle\" fill=\"%s\">%.3f</text>",
                          x + 1, y + 1, HEAT_CELL_W - 2, HEAT_CELL_H - 2, colour[0], colour[1],
                          colour[2], edge, x + HEAT_CELL_W / 2.0, y + HEAT_CELL_H / 2.0 + 4,
                          dark ? "#fff" : "#111", score);
}

static rl_status heat_open(const struct charts *c, const char *title, const char *help,
                           uint32_t rows)
{
    double width = HEAT_LABEL + (double)c->table->temperature_count * HEAT_CELL_W;
    double height = HEAT_TOP + (double)rows * HEAT_CELL_H + 4;
    RL_TRY(rl_text_append_str(c->out, "<figure class=\"card\" style=\"margin:0\"><h3>"));
    RL_TRY(svg_text_append(c->out, title));
    RL_TRY(
        rl_text_printf(c->out,
                       "</h3><p>%s</p><svg xmlns=\"http://www.w3.org/2000/svg\" "
                       "viewBox=\"0 0 %.0f %.0f\" style=\"max-width:%.0fpx\" role=\"img\"><title>",
                       help, width, height, 1.4 * width));
    RL_TRY(svg_text_append(c->out, title));
    RL_TRY(rl_text_append_str(c->out, "</title>"));
    for (uint32_t t = 0; t < c->table->temperature_count; t++) {
        RL_TRY(rl_text_printf(c->out,
                              "<text class=\"axis\" x=\"%.0f\" y=\"15\" text-anchor=\"middle\">%g"
                              "</text>",
                              HEAT_LABEL + (t + 0.5) * HEAT_CELL_W, c->table->temperatures[t]));
    }
    return RL_OK;
}

static rl_status heat_label(const struct charts *c, uint32_t row, const char *text)
{
    return rl_text_printf(c->out,
                          "<text class=\"axis\" x=\"%d\" y=\"%.0f\" text-anchor=\"end\">%s</text>",
                          HEAT_LABEL - 8, HEAT_TOP + (row + 0.5) * HEAT_CELL_H + 4, text);
}

static rl_status heat_close(const struct charts *c)
{
    return rl_text_append_str(c->out, "</svg></figure>");
}

static rl_status heat_row(const struct charts *c, int32_t setting, const char *label, uint32_t row)
{
    RL_TRY(heat_label(c, row, label));
    for (uint32_t t = 0; t < c->table->temperature_count; t++) {
        RL_TRY(heat_cell(c, study_last_cell(c->cells, setting, t), row, t));
    }
    return RL_OK;
}

/* Settings of a group that were evaluated, by rising sampling temperature, into order; how many. */
static uint32_t group_settings(const struct charts *c, uint32_t group, uint32_t *order)
{
    const struct study *study = c->cells->study;
    uint32_t count = 0;
    for (uint32_t s = 0; s < study->setting_count; s++) {
        if (study->settings[s].group != group || study_last_cell(c->cells, (int32_t)s, 0) < 0) {
            continue;
        }
        uint32_t at = count++;
        while (at > 0 && study->settings[order[at - 1]].train_temperature >
                             study->settings[s].train_temperature) {
            order[at] = order[at - 1];
            at--;
        }
        order[at] = s;
    }
    return count;
}

static rl_status group_heat(const struct charts *c, uint32_t group, uint32_t *order)
{
    uint32_t count = group_settings(c, group, order);
    if (count == 0) {
        return RL_OK;
    }
    int32_t control = STUDY_BASE - (int32_t)c->cells->study->settings[order[0]].base;
    bool base = study_last_cell(c->cells, control, 0) >= 0;
    RL_TRY(heat_open(c, c->cells->study->groups[group].label,
                     "pass@1 on split A, last checkpoints, mean over seeds. Rows: temperature of "
                     "sampling; columns: temperature of evaluation",
                     count + (base ? 1 : 0)));
    for (uint32_t i = 0; i < count; i++) {
        char label[64];
        snprintf(label, sizeof label, "T_train %g",
                 c->cells->study->settings[order[i]].train_temperature);
        RL_TRY(heat_row(c, (int32_t)order[i], label, i));
    }
    if (base) {
        RL_TRY(heat_row(c, control, "base", count));
    }
    return heat_close(c);
}

/* --- score against the effective temperature -------------------------------------------------- */

struct plot {
    double x_low, x_high, y_low, y_high;
};

static double plot_x(const struct plot *p, double x)
{
    return PLOT_LEFT + (x - p->x_low) / (p->x_high - p->x_low) * (PLOT_W - PLOT_LEFT - PLOT_RIGHT);
}

static double plot_y(const struct plot *p, double y)
{
    return PLOT_H - PLOT_BOTTOM -
           (y - p->y_low) / (p->y_high - p->y_low) * (PLOT_H - PLOT_TOP - PLOT_BOTTOM);
}

static rl_status plot_axes(const struct charts *c, const struct plot *p)
{
    for (int i = 0; i <= 5; i++) {
        double y = p->y_low + (p->y_high - p->y_low) * i / 5;
        double x = p->x_low + (p->x_high - p->x_low) * i / 5;
        RL_TRY(rl_text_printf(c->out,
                              "<path class=\"grid\" d=\"M%d %.1fH%d\"/><text class=\"tick\" "
                              "x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.3f</text><text "
                              "class=\"tick\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.2f"
                              "</text>",
                              PLOT_LEFT, plot_y(p, y), PLOT_W - PLOT_RIGHT, PLOT_LEFT - 6,
                              plot_y(p, y) + 3.5, y, plot_x(p, x), PLOT_H - PLOT_BOTTOM + 16, x));
    }
    return rl_text_printf(c->out,
                          "<text class=\"axis\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">"
                          "T_eff = T_train x T_eval</text>",
                          PLOT_W / 2, PLOT_H - 6);
}

static rl_status plot_fit(const struct charts *c, const struct plot *p,
                          const struct eval_parabola *fit)
{
    bool pen = false;
    RL_TRY(rl_text_append_str(c->out, "<path class=\"line s1\" d=\""));
    for (int i = 0; i <= CURVE_POINTS; i++) {
        double x = p->x_low + (p->x_high - p->x_low) * i / CURVE_POINTS;
        double y = fit->c[0] + fit->c[1] * x + fit->c[2] * x * x;
        if (y < p->y_low || y > p->y_high) {
            pen = false;
            continue;
        }
        RL_TRY(rl_text_printf(c->out, "%c%.1f %.1f", pen ? 'L' : 'M', plot_x(p, x), plot_y(p, y)));
        pen = true;
    }
    return rl_text_append_str(c->out, "\"/>");
}

static struct plot plot_around(const struct charts *c, const double *x, uint32_t count)
{
    struct plot p = {INFINITY, -INFINITY, c->low, c->high};
    for (uint32_t i = 0; i < count; i++) {
        p.x_low = fmin(p.x_low, x[i]);
        p.x_high = fmax(p.x_high, x[i]);
    }
    double pad = (p.x_high - p.x_low) * 0.04;
    p.x_low -= pad;
    p.x_high += pad;
    return p;
}

static rl_status scatter(const struct charts *c, uint32_t group, const double *x, const double *y,
                         uint32_t count)
{
    struct eval_parabola fit;
    double low;
    double high;
    if (!eval_parabola_fit(x, y, count, &fit)) {
        return RL_OK;
    }
    struct plot p = plot_around(c, x, count);
    RL_TRY(rl_text_append_str(c->out, "<figure class=\"card\" style=\"margin:0\"><h3>"));
    RL_TRY(svg_text_append(c->out, c->cells->study->groups[group].label));
    RL_TRY(rl_text_printf(c->out, "</h3><p>Quadratic fit: R&sup2; %.3f", fit.r2));
    if (isfinite(fit.peak)) {
        RL_TRY(rl_text_printf(c->out, ", peak at %.2f", fit.peak));
    }
    if (study_group_kept_mass(c->cells->study, group, &low, &high)) {
        RL_TRY(rl_text_printf(c->out, "; mass kept when sampling %.4f to %.4f", low, high));
    }
    RL_TRY(rl_text_printf(c->out,
                          "</p><svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
                          "width=\"%d\" height=\"%d\" role=\"img\"><title>Score against effective "
                          "temperature</title>",
                          PLOT_W, PLOT_H, PLOT_W, PLOT_H));
    RL_TRY(plot_axes(c, &p));
    RL_TRY(plot_fit(c, &p, &fit));
    for (uint32_t i = 0; i < count; i++) {
        RL_TRY(rl_text_printf(c->out, "<circle class=\"dot s0\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"/>",
                              plot_x(&p, x[i]), plot_y(&p, y[i])));
    }
    return heat_close(c);
}

/* --- ridge ------------------------------------------------------------------------------------ */

/* The winner's setting: a row for each of its checkpoints. */
static rl_status ridge(const struct charts *c)
{
    if (c->choice->winner < 0) {
        return RL_OK;
    }
    const struct study_cells *cells = c->cells;
    int32_t setting = cells->items[c->choice->winner].setting;
    uint32_t rows = 0;
    for (uint32_t i = 0; i < cells->count; i++) {
        rows += cells->items[i].setting == setting && cells->items[i].temperature == 0 ? 1 : 0;
    }
    if (rows < 2) {
        return RL_OK;
    }
    RL_TRY(rl_text_append_str(c->out, "<h2>Checkpoint against T_eval</h2><div class=\"grid2\">"));
    RL_TRY(heat_open(c, cells->study->settings[setting].label,
                     "The winner's setting: pass@1 on split A, mean over seeds. Rows: checkpoint; "
                     "columns: temperature of evaluation",
                     rows));
    uint32_t row = 0;
    for (uint32_t i = 0; i < cells->count; i++) {
        const struct study_cell *cell = &cells->items[i];
        if (cell->setting != setting) {
            continue;
        }
        if (cell->temperature == 0) {
            char label[32];
            snprintf(label, sizeof label, "step %lld", (long long)study_cell_step(cells, i));
            RL_TRY(heat_label(c, row, label));
        }
        RL_TRY(heat_cell(c, (int32_t)i, row, cell->temperature));
        row += cell->temperature + 1 == c->table->temperature_count ? 1 : 0;
    }
    RL_TRY(heat_close(c));
    return rl_text_append_str(c->out, "</div>");
}

/* --- all -------------------------------------------------------------------------------------- */

static rl_status append_heats(const struct charts *c)
{
    const struct study *study = c->cells->study;
    uint32_t *order = calloc((size_t)study->setting_count + 1, sizeof *order);
    rl_status status = order != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "report: out of memory");
    if (status == RL_OK) {
        status =
            rl_text_append_str(c->out, "<h2>T_train against T_eval</h2><p class=\"help\">Split "
                                       "A: what the choice saw. The largest figures here are "
                                       "too large, which is why the tables above are from "
                                       "split B. Framed: the winner and the best-tuned base."
                                       "</p><div class=\"grid2\">");
    }
    for (uint32_t g = 0; g < study->group_count && status == RL_OK; g++) {
        status = group_heat(c, g, order);
    }
    free(order);
    return status == RL_OK ? rl_text_append_str(c->out, "</div>") : status;
}

/* Do settings of one group differ in their sampling temperature? */
static bool has_temperature_axis(const struct study *study)
{
    for (uint32_t a = 0; a < study->setting_count; a++) {
        for (uint32_t b = 0; b < a; b++) {
            if (study->settings[a].group == study->settings[b].group) {
                return true;
            }
        }
    }
    return false;
}

static rl_status append_scatters(const struct charts *c)
{
    double *x = calloc((size_t)c->cells->count * 2 + 1, sizeof *x);
    double *y = x != NULL ? x + c->cells->count : NULL;
    rl_status status = x != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "report: out of memory");
    if (status == RL_OK) {
        status = rl_text_append_str(
            c->out, "<h2>Score against effective temperature</h2><p class=\"help\">Without "
                    "truncation training at T_train and decoding at T_eval act like one "
                    "temperature, their product, as far as the model fits its samples. Split A, "
                    "last checkpoints.</p><div class=\"grid2\">");
    }
    for (uint32_t g = 0; g < c->cells->study->group_count && status == RL_OK; g++) {
        uint32_t count = study_effective_points(c->cells, c->half, g, x, y);
        status = scatter(c, g, x, y, count);
    }
    free(x);
    return status == RL_OK ? rl_text_append_str(c->out, "</div>") : status;
}

rl_status study_charts_append(struct rl_text *out, const struct study_cells *cells,
                              const struct study_half_a *half, const struct study_choice *choice)
{
    struct charts c = {.out = out,
                       .cells = cells,
                       .half = half,
                       .choice = choice,
                       .table = study_counts(cells->study),
                       .low = INFINITY,
                       .high = -INFINITY};
    for (uint32_t i = 0; i < half->count; i++) {
        c.low = fmin(c.low, half->score[i]);
        c.high = fmax(c.high, half->score[i]);
    }
    c.high = c.high > c.low ? c.high : c.low + 1;
    bool temperatures = has_temperature_axis(cells->study);
    if (temperatures || c.table->temperature_count > 1) {
        RL_TRY(append_heats(&c));
    }
    if (temperatures) {
        RL_TRY(append_scatters(&c));
    }
    return ridge(&c);
}
