/* Reading a run, writing the page and the picture. */
#include "trainer/report.h"

#include "core/log.h"
#include "trainer/report_assets.h"
#include "trainer/report_svg.h"
#include "transport/atomic_file.h"

#include <math.h>
#include <stdio.h>

enum {
    PAGE_MAX_BYTES = 128 << 20,
    CURVE_WIDTH = 760,
    CURVE_HEIGHT = 300,
    CURVE_HEADER = 44,
    CURVE_MAX_ROWS = 400
};

/* --- picture ---------------------------------------------------------------------------------- */

static void curve_add(struct svg_chart *chart, const struct report_table *table, const char *label,
                      const char *metric)
{
    const double *values = report_table_find(table, metric);
    double last = 0;
    if (report_values_last(values, table->row_count, &last)) {
        chart->series[chart->series_count].label = label;
        chart->series[chart->series_count++].y = values;
    }
}

/* True if two lines would hide one another. */
static bool same_values(const struct report_table *table, const char *left, const char *right)
{
    const double *a = report_table_find(table, left);
    const double *b = report_table_find(table, right);
    for (size_t i = 0; a != NULL && b != NULL && i < table->row_count; i++) {
        if (a[i] != b[i] && !(isnan(a[i]) && isnan(b[i]))) {
            return false;
        }
    }
    return a != NULL && b != NULL;
}

static rl_status append_curve_header(struct rl_text *out, const struct svg_chart *chart,
                                     const char *name)
{
    RL_TRY(rl_text_printf(out,
                          "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
                          "role=\"img\"><style>%s.head{fill:var(--ink);font:600 15px system-ui,"
                          "sans-serif}.key{fill:var(--soft);font:13px system-ui,sans-serif}"
                          "</style><rect width=\"%d\" height=\"%d\" rx=\"12\" "
                          "fill=\"var(--card)\"/><text class=\"head\" x=\"20\" y=\"28\">",
                          CURVE_WIDTH, CURVE_HEADER + CURVE_HEIGHT, report_chart_style, CURVE_WIDTH,
                          CURVE_HEADER + CURVE_HEIGHT));
    RL_TRY(svg_text_append(out, name));
    RL_TRY(rl_text_printf(out,
                          "</text><text class=\"key\" x=\"%d\" y=\"%d\" text-anchor=\"end\">"
                          "step</text>",
                          CURVE_WIDTH - 12, CURVE_HEADER + CURVE_HEIGHT - 28));
    for (size_t s = 0; s < chart->series_count; s++) {
        double x = CURVE_WIDTH - 150.0 * (double)(chart->series_count - s);
        RL_TRY(rl_text_printf(out,
                              "<circle class=\"dot s%zu\" cx=\"%.0f\" cy=\"23\" r=\"5\"/>"
                              "<text class=\"key\" x=\"%.0f\" y=\"28\">%s</text>",
                              s, x, x + 11, chart->series[s].label));
    }
    return RL_OK;
}

rl_status report_curve_svg(struct rl_text *out, const struct report_run *run)
{
    const struct report_table *table = &run->table;
    struct svg_chart chart = {.title = "Reward and accuracy over the steps",
                              .kind = SVG_LINES,
                              .x = table->steps,
                              .count = table->row_count,
                              .smooth = true,
                              .width = CURVE_WIDTH,
                              .height = CURVE_HEIGHT};
    bool same = same_values(table, "reward", "accuracy");
    curve_add(&chart, table, same ? "reward = accuracy" : "reward", "reward");
    if (!same) {
        curve_add(&chart, table, "accuracy", "accuracy");
    }
    if (chart.series_count == 0) {
        return rl_fail(RL_NOT_FOUND, "%s/metrics.jsonl has neither reward nor accuracy", run->dir);
    }
    RL_TRY(append_curve_header(out, &chart, run->name));
    RL_TRY(rl_text_printf(out, "<g transform=\"translate(0 %d)\">", CURVE_HEADER));
    RL_TRY(svg_chart_append(out, &chart));
    return rl_text_append_str(out, "</g></svg>\n");
}

/* --- files ------------------------------------------------------------------------------------ */

static rl_status write_text(const char *path, const struct rl_text *text)
{
    return atomic_file_write_all(path, text->data, text->bytes);
}

static rl_status write_page(struct report_run *run, const char *path, struct report_facts *facts)
{
    struct rl_text page;
    rl_text_init(&page, PAGE_MAX_BYTES);
    rl_status status = report_page_append(&page, run, facts);
    if (status == RL_OK) {
        facts->bytes = page.bytes;
        status = write_text(path, &page);
    }
    rl_text_fini(&page);
    return status;
}

static rl_status write_curve(struct report_run *run, const char *path)
{
    struct rl_text picture;
    rl_text_init(&picture, PAGE_MAX_BYTES);
    report_table_thin(&run->table, CURVE_MAX_ROWS);
    rl_status status = report_curve_svg(&picture, run);
    if (status == RL_OK) {
        status = write_text(path, &picture);
    }
    rl_text_fini(&picture);
    return status;
}

rl_status report_write(const char *run_dir, const char *html_path, const char *curve_path,
                       struct report_facts *facts)
{
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/report.html", run_dir);
    if (length < 0 || (size_t)length >= sizeof path) {
        return rl_fail(RL_TOO_LONG, "path %s/report.html is too long", run_dir);
    }
    struct report_run run;
    struct report_facts found = {0};
    rl_status status = report_run_load(run_dir, &run);
    if (status == RL_OK) {
        status = write_page(&run, html_path == NULL ? path : html_path, &found);
    }
    if (status == RL_OK && curve_path != NULL) {
        status = write_curve(&run, curve_path);
    }
    report_run_fini(&run);
    if (status == RL_OK && facts != NULL) {
        *facts = found;
    }
    return status;
}
