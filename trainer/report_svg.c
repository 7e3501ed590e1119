/* See report_svg.h. Values may be anything a double can be; what cannot be drawn is left out. */
#include "trainer/report_svg.h"

#include "core/log.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CHART_WIDTH = 560,
    CHART_HEIGHT = 220,
    MARGIN_LEFT = 50,
    MARGIN_RIGHT = 12,
    MARGIN_TOP = 10,
    MARGIN_BOTTOM = 24,
    DOTS_MAX_ROWS = 40,  /* with so few points each one is worth a dot */
    SMOOTH_MIN_ROWS = 30 /* below, an average hides more than it shows */
};

/* --- text ------------------------------------------------------------------------------------- */

/* Length of the UTF-8 sequence at `text`, 0 if it is not one (or not a character XML allows). */
static size_t utf8_length(const unsigned char *text)
{
    static const struct {
        unsigned char mask, lead;
        size_t bytes;
        uint32_t lowest;
    } forms[] = {{0xe0, 0xc0, 2, 0x80}, {0xf0, 0xe0, 3, 0x800}, {0xf8, 0xf0, 4, 0x10000}};
    if (text[0] < 0x80) {
        return text[0] >= 0x20 || text[0] == '\n' || text[0] == '\t' || text[0] == '\r' ? 1 : 0;
    }
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        if ((text[0] & forms[i].mask) != forms[i].lead) {
            continue;
        }
        uint32_t code = (uint32_t)(text[0] & (unsigned char)~forms[i].mask);
        for (size_t k = 1; k < forms[i].bytes; k++) {
            if ((text[k] & 0xc0) != 0x80) {
                return 0;
            }
            code = code << 6 | (text[k] & 0x3f);
        }
        bool allowed = code >= forms[i].lowest && code <= 0x10ffff &&
                       (code < 0xd800 || code > 0xdfff) && code != 0xfffe && code != 0xffff;
        return allowed ? forms[i].bytes : 0;
    }
    return 0;
}

static const char *entity_of(char byte)
{
    switch (byte) {
    case '&':
        return "&amp;";
    case '<':
        return "&lt;";
    case '>':
        return "&gt;";
    case '"':
        return "&quot;";
    case '\'':
        return "&#39;";
    default:
        return NULL;
    }
}

rl_status svg_text_append(struct rl_text *out, const char *text)
{
    while (*text != '\0') {
        size_t bytes = utf8_length((const unsigned char *)text);
        const char *entity = entity_of(*text);
        if (entity != NULL) {
            RL_TRY(rl_text_append_str(out, entity));
        } else if (bytes == 0) {
            RL_TRY(rl_text_append_str(out, "\xef\xbf\xbd"));
        } else {
            RL_TRY(rl_text_append(out, text, bytes));
        }
        text += bytes == 0 ? 1 : bytes;
    }
    return RL_OK;
}

void svg_number(double value, char out[24])
{
    static const struct {
        double scale;
        const char *suffix;
    } scales[] = {{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}};
    double size = fabs(value);
    if (!isfinite(value) || (size >= 1e15)) {
        snprintf(out, 24, "%.3g", value);
        return;
    }
    for (size_t i = 0; i < sizeof scales / sizeof scales[0]; i++) {
        if (size >= scales[i].scale * (scales[i].scale == 1e3 ? 10 : 1)) {
            snprintf(out, 24, "%.3g%s", value / scales[i].scale, scales[i].suffix);
            return;
        }
    }
    if (size != 0 && size < 1e-3) {
        snprintf(out, 24, "%.1e", value);
    } else if (size >= 1000) {
        snprintf(out, 24, "%.0f", value);
    } else {
        snprintf(out, 24, "%.3g", value);
    }
}

/* Worth drawing: neither missing nor so far out that the arithmetic of the axes would overflow. */
static bool drawable(double value)
{
    return fabs(value) < 1e100; /* false for NAN */
}

/* --- frame ------------------------------------------------------------------------------------ */

/* 1, 2 or 5 times a power of ten: the step that cuts `span` into about `parts`. */
static double nice_step(double span, int parts)
{
    double raw = span / parts;
    double power = pow(10, floor(log10(raw)));
    double share = raw / power;
    double nice = 10;
    if (share <= 1.0) {
        nice = 1;
    } else if (share <= 2.0) {
        nice = 2;
    } else if (share <= 5.0) {
        nice = 5;
    }
    return nice * power;
}

static double stack_height(const struct svg_chart *chart, size_t row)
{
    double sum = 0;
    for (size_t s = 0; s < chart->series_count; s++) {
        double value = chart->series[s].y[row];
        sum += drawable(value) && value > 0 ? value : 0;
    }
    return sum;
}

static void widen(double value, double *low, double *high)
{
    if (drawable(value)) {
        value = fabs(value) < 1e-100 ? 0 : value;
        *low = fmin(*low, value);
        *high = fmax(*high, value);
    }
}

static void value_range(const struct svg_chart *chart, double *low, double *high)
{
    for (size_t row = 0; row < chart->count; row++) {
        if (chart->kind == SVG_STACK) {
            widen(0, low, high);
            widen(stack_height(chart, row), low, high);
            continue;
        }
        for (size_t s = 0; s < chart->series_count; s++) {
            widen(chart->series[s].y[row], low, high);
        }
    }
}

/* Round outwards to grid lines. Values near 0 compared with their spread start the axis at 0. */
static void frame_values(const struct svg_chart *chart, struct svg_frame *frame)
{
    double low = INFINITY;
    double high = -INFINITY;
    value_range(chart, &low, &high);
    if (low > high) {
        low = 0;
        high = 1;
    }
    if (low > 0 && low < 0.6 * high) {
        low = 0;
    }
    double smallest = fmax(fabs(low), fabs(high)) * 1e-6;
    if (high - low <= smallest) {
        double pad = high == 0 ? 1 : fabs(high) * 0.1;
        low = high == 0 ? 0 : low - pad;
        high += pad;
    }
    frame->y_step = nice_step(high - low, 5);
    frame->y_low = floor(low / frame->y_step + 1e-9) * frame->y_step;
    frame->y_high = ceil(high / frame->y_step - 1e-9) * frame->y_step;
}

struct svg_frame svg_frame_make(const struct svg_chart *chart)
{
    double width = chart->width > 0 ? chart->width : CHART_WIDTH;
    double height = chart->height > 0 ? chart->height : CHART_HEIGHT;
    struct svg_frame frame = {
        .width = width,
        .height = height,
        .left = MARGIN_LEFT,
        .right = width - MARGIN_RIGHT,
        .top = MARGIN_TOP,
        .bottom = height - MARGIN_BOTTOM,
        .x_low = chart->count > 0 ? chart->x[0] : 0,
        .x_high = chart->count > 0 ? chart->x[chart->count - 1] : 1,
    };
    if (chart->kind == SVG_STACK || frame.x_high <= frame.x_low) {
        double half =
            chart->count > 1 ? (frame.x_high - frame.x_low) / (double)(chart->count - 1) / 2 : 0.5;
        frame.x_low -= half;
        frame.x_high += half;
    }
    frame_values(chart, &frame);
    return frame;
}

static double place_x(const struct svg_frame *frame, double x)
{
    return frame->left +
           (x - frame->x_low) / (frame->x_high - frame->x_low) * (frame->right - frame->left);
}

static double place_y(const struct svg_frame *frame, double y)
{
    return frame->bottom -
           (y - frame->y_low) / (frame->y_high - frame->y_low) * (frame->bottom - frame->top);
}

/* --- axes ------------------------------------------------------------------------------------- */

static rl_status append_y_axis(struct rl_text *out, const struct svg_frame *frame)
{
    int lines = (int)fmin(20, round((frame->y_high - frame->y_low) / frame->y_step));
    for (int i = 0; i <= lines; i++) {
        double value = frame->y_low + i * frame->y_step;
        if (fabs(value) < frame->y_step * 1e-6) {
            value = 0;
        }
        double y = place_y(frame, value);
        char label[24];
        svg_number(value, label);
        RL_TRY(rl_text_printf(out,
                              "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>"
                              "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s"
                              "</text>",
                              frame->left, y, frame->right, frame->left - 6, y + 3.5, label));
    }
    return RL_OK;
}

static rl_status append_x_axis(struct rl_text *out, const struct svg_frame *frame)
{
    double step = fmax(1, nice_step(frame->x_high - frame->x_low, 6));
    for (double value = ceil(frame->x_low / step) * step; value <= frame->x_high; value += step) {
        char label[24];
        svg_number(value, label);
        RL_TRY(rl_text_printf(out,
                              "<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s"
                              "</text>",
                              place_x(frame, value), frame->bottom + 16, label));
    }
    return RL_OK;
}

/* --- marks ------------------------------------------------------------------------------------ */

/* One series as a path; missing values interrupt it. */
static rl_status append_line(struct rl_text *out, const struct svg_chart *chart,
                             const struct svg_frame *frame, const double *y, const char *classes)
{
    RL_TRY(rl_text_printf(out, "<path class=\"%s\" d=\"", classes));
    bool pen_down = false;
    for (size_t i = 0; i < chart->count; i++) {
        if (!drawable(y[i])) {
            pen_down = false;
            continue;
        }
        RL_TRY(rl_text_printf(out, "%c%.1f %.1f", pen_down ? 'L' : 'M', place_x(frame, chart->x[i]),
                              place_y(frame, y[i])));
        pen_down = true;
    }
    return rl_text_append_str(out, "\"/>");
}

/* The surface between a line without holes and 0; none where the axis does not reach 0. */
static rl_status append_area(struct rl_text *out, const struct svg_chart *chart,
                             const struct svg_frame *frame, const double *y)
{
    bool whole = frame->y_low <= 0 && frame->y_high >= 0;
    for (size_t i = 0; i < chart->count; i++) {
        whole = whole && drawable(y[i]);
    }
    if (!whole) {
        return RL_OK;
    }
    double zero = place_y(frame, 0);
    RL_TRY(rl_text_printf(out, "<path class=\"area s0\" d=\"M%.1f %.1f",
                          place_x(frame, chart->x[0]), zero));
    for (size_t i = 0; i < chart->count; i++) {
        RL_TRY(
            rl_text_printf(out, "L%.1f %.1f", place_x(frame, chart->x[i]), place_y(frame, y[i])));
    }
    return rl_text_printf(out, "V%.1fZ\"/>", zero);
}

static rl_status append_dots(struct rl_text *out, const struct svg_chart *chart,
                             const struct svg_frame *frame, size_t series)
{
    const double *y = chart->series[series].y;
    for (size_t i = 0; i < chart->count; i++) {
        bool lonely =
            (i == 0 || !drawable(y[i - 1])) && (i + 1 == chart->count || !drawable(y[i + 1]));
        if (drawable(y[i]) && (lonely || chart->count <= DOTS_MAX_ROWS)) {
            RL_TRY(rl_text_printf(out,
                                  "<circle class=\"dot s%zu\" cx=\"%.1f\" cy=\"%.1f\" r=\"%s\"/>",
                                  series, place_x(frame, chart->x[i]), place_y(frame, y[i]),
                                  chart->count <= DOTS_MAX_ROWS ? "2.2" : "1.6"));
        }
    }
    return RL_OK;
}

/* Centred moving average over what is there. */
static void smooth_values(const double *y, size_t count, double *out)
{
    size_t half = count / 30 > 2 ? count / 30 : 2;
    for (size_t i = 0; i < count; i++) {
        size_t from = i > half ? i - half : 0;
        size_t to = i + half < count ? i + half : count - 1;
        double sum = 0;
        size_t seen = 0;
        for (size_t k = from; k <= to; k++) {
            if (drawable(y[k])) {
                sum += y[k];
                seen++;
            }
        }
        out[i] = seen > 0 ? sum / (double)seen : NAN;
    }
}

static rl_status append_smooth(struct rl_text *out, const struct svg_chart *chart,
                               const struct svg_frame *frame)
{
    double *average = malloc(chart->count * sizeof *average);
    if (average == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: no memory for %zu points", chart->count);
    }
    smooth_values(chart->series[0].y, chart->count, average);
    rl_status status = append_line(out, chart, frame, chart->series[0].y, "line s0 faint");
    if (status == RL_OK) {
        status = append_area(out, chart, frame, average);
    }
    if (status == RL_OK) {
        status = append_line(out, chart, frame, average, "line s0");
    }
    free(average);
    return status;
}

static rl_status append_lines(struct rl_text *out, const struct svg_chart *chart,
                              const struct svg_frame *frame)
{
    if (chart->series_count == 1 && chart->smooth && chart->count >= SMOOTH_MIN_ROWS) {
        return append_smooth(out, chart, frame);
    }
    if (chart->series_count == 1) {
        RL_TRY(append_area(out, chart, frame, chart->series[0].y));
    }
    for (size_t s = chart->series_count; s > 0; s--) { /* the first one lies on top */
        char classes[40];
        snprintf(classes, sizeof classes, "line s%zu", s - 1);
        RL_TRY(append_line(out, chart, frame, chart->series[s - 1].y, classes));
        RL_TRY(append_dots(out, chart, frame, s - 1));
    }
    return RL_OK;
}

static rl_status append_stack(struct rl_text *out, const struct svg_chart *chart,
                              const struct svg_frame *frame)
{
    double slot = (frame->right - frame->left) / (double)chart->count;
    double width = slot > 4 ? fmin(slot * 0.82, 28) : slot * 1.02;
    for (size_t i = 0; i < chart->count; i++) {
        double base = 0;
        double center = frame->left + slot * ((double)i + 0.5);
        for (size_t s = 0; s < chart->series_count; s++) {
            double value = chart->series[s].y[i];
            if (!drawable(value) || value <= 0) {
                continue;
            }
            double top = place_y(frame, base + value);
            RL_TRY(rl_text_printf(out,
                                  "<rect class=\"bar s%zu\" x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" "
                                  "height=\"%.1f\"/>",
                                  s, center - width / 2, top, width, place_y(frame, base) - top));
            base += value;
        }
    }
    return RL_OK;
}

rl_status svg_chart_append(struct rl_text *out, const struct svg_chart *chart)
{
    struct svg_frame frame = svg_frame_make(chart);
    RL_TRY(rl_text_printf(out,
                          "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
                          "width=\"%.0f\" height=\"%.0f\" role=\"img\"><title>",
                          frame.width, frame.height, frame.width, frame.height));
    RL_TRY(svg_text_append(out, chart->title));
    RL_TRY(rl_text_append_str(out, "</title>"));
    RL_TRY(append_y_axis(out, &frame));
    RL_TRY(append_x_axis(out, &frame));
    if (chart->count > 0) {
        RL_TRY(chart->kind == SVG_STACK ? append_stack(out, chart, &frame)
                                        : append_lines(out, chart, &frame));
    }
    return rl_text_append_str(out, "</svg>");
}
