/* The page around the charts: headline figures, before/after, samples, configuration. Everything
 * that comes from files goes through svg_text_append, which escapes it. */
#include "trainer/report.h"
#include "trainer/report_assets.h"
#include "trainer/report_parts.h"
#include "trainer/report_svg.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { PAGE_MAX_ROWS = 400 };

/* --- figures ---------------------------------------------------------------------------------- */

static size_t edge_rows(size_t count)
{
    size_t rows = count / 10;
    return rows < 1 ? 1 : (rows > 10 ? 10 : rows);
}

static bool mean_of_edge(const double *values, size_t count, bool late, double *out)
{
    size_t wanted = edge_rows(count);
    double sum = 0;
    size_t seen = 0;
    for (size_t i = 0; values != NULL && i < count && seen < wanted; i++) {
        double value = values[late ? count - 1 - i : i];
        if (isfinite(value)) {
            sum += value;
            seen++;
        }
    }
    if (seen == 0) {
        return false;
    }
    *out = sum / (double)seen;
    return true;
}

bool report_values_early(const double *values, size_t count, double *out)
{
    return mean_of_edge(values, count, false, out);
}

bool report_values_late(const double *values, size_t count, double *out)
{
    return mean_of_edge(values, count, true, out);
}

static bool summary_number(json_t *summary, const char *key, double *out)
{
    json_t *value = report_summary_find(summary, key);
    if (!json_is_number(value)) {
        return false;
    }
    *out = json_number_value(value);
    return true;
}

static rl_status append_tile(struct rl_text *out, const char *title, const char *from,
                             const char *value, const char *unit)
{
    RL_TRY(rl_text_append_str(out, "<div class=\"tile\"><div class=\"k\">"));
    RL_TRY(svg_text_append(out, title));
    RL_TRY(rl_text_append_str(out, "</div><div class=\"v\">"));
    if (from[0] != '\0') {
        RL_TRY(rl_text_printf(out, "<span class=\"from\">%s &rarr;</span> ", from));
    }
    RL_TRY(rl_text_printf(out, "%s", value));
    if (unit[0] != '\0') {
        RL_TRY(rl_text_printf(out, " <small>%s</small>", unit));
    }
    return rl_text_append_str(out, "</div></div>");
}

/* A tile "early -> late" of a column, if it has values. */
static rl_status append_change_tile(struct rl_text *out, const struct report_table *table,
                                    const char *title, const char *metric, const char *unit)
{
    const double *values = report_table_find(table, metric);
    double early = 0;
    double late = 0;
    if (!report_values_early(values, table->row_count, &early) ||
        !report_values_late(values, table->row_count, &late)) {
        return RL_OK;
    }
    char from[24];
    char to[24];
    svg_number(early, from);
    svg_number(late, to);
    return append_tile(out, title, table->row_count > 1 ? from : "", to, unit);
}

static rl_status append_accuracy_tile(struct rl_text *out, const struct report_run *run)
{
    double base = 0;
    double trained = 0;
    if (!summary_number(run->summary, "base.pass@1", &base) ||
        !summary_number(run->summary, "trained.pass@1", &trained)) {
        return append_change_tile(out, &run->table, "Accuracy, first and last steps", "accuracy",
                                  "");
    }
    char from[24];
    char to[24];
    snprintf(from, sizeof from, "%.3f", base);
    snprintf(to, sizeof to, "%.3f", trained);
    return append_tile(out, "Held-out pass@1, before and after", from, to, "");
}

/* Mean over all rows of a column, or the summary's figure where it has one. */
static rl_status append_mean_tile(struct rl_text *out, const struct report_run *run,
                                  const char *title, const char *key, const char *metric)
{
    double value = 0;
    const double *values = report_table_find(&run->table, metric);
    if (!summary_number(run->summary, key, &value)) {
        size_t seen = 0;
        for (size_t i = 0; values != NULL && i < run->table.row_count; i++) {
            if (isfinite(values[i])) {
                value += values[i];
                seen++;
            }
        }
        if (seen == 0) {
            return RL_OK;
        }
        value /= (double)seen;
    }
    char text[24];
    svg_number(value, text);
    return append_tile(out, title, "", text, "tokens/s");
}

static rl_status append_extreme_tile(struct rl_text *out, const struct report_run *run,
                                     const char *title, const char *key, const char *unit)
{
    double value = 0;
    char metric[64];
    snprintf(metric, sizeof metric, "%.*s/max", (int)strcspn(key, "."), key);
    const double *values = report_table_find(&run->table, metric);
    if (!summary_number(run->summary, key, &value)) {
        bool any = false;
        for (size_t i = 0; values != NULL && i < run->table.row_count; i++) {
            if (isfinite(values[i])) {
                value = any ? fmax(value, values[i]) : values[i];
                any = true;
            }
        }
        if (!any) {
            return RL_OK;
        }
    }
    char text[24];
    svg_number(value, text);
    return append_tile(out, title, "", text, unit);
}

rl_status report_tiles_append(struct rl_text *out, const struct report_run *run)
{
    char steps[24] = "0";
    if (run->table.row_count > 0) {
        snprintf(steps, sizeof steps, "%.0f", run->table.steps[run->table.row_count - 1]);
    }
    RL_TRY(rl_text_append_str(out, "<div class=\"tiles\">"));
    RL_TRY(append_accuracy_tile(out, run));
    RL_TRY(append_change_tile(out, &run->table, "Reward, first and last steps", "reward", ""));
    RL_TRY(append_change_tile(out, &run->table, "Completion length", "completions/mean_length",
                              "tokens"));
    RL_TRY(append_tile(out, "Last step", "", steps, ""));
    RL_TRY(append_mean_tile(out, run, "Generation", "rollout_tokens_per_second",
                            "rollout/tokens_per_second"));
    RL_TRY(append_mean_tile(out, run, "Learning", "learner_tokens_per_second",
                            "learner/tokens_per_second"));
    RL_TRY(append_extreme_tile(out, run, "Staleness, largest", "staleness.max", "versions"));
    RL_TRY(append_extreme_tile(out, run, "Log-prob mismatch, largest", "logprob_mismatch.max",
                               "nats"));
    RL_TRY(append_extreme_tile(out, run, "Gap of int8 weights, largest", "logprob_quantization.max",
                               "nats"));
    return rl_text_append_str(out, "</div>");
}

/* --- page ------------------------------------------------------------------------------------- */

static rl_status append_head(struct rl_text *out, const struct report_run *run)
{
    RL_TRY(rl_text_append_str(out, "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">"
                                   "<meta name=\"viewport\" content=\"width=device-width,"
                                   "initial-scale=1\"><meta name=\"color-scheme\" "
                                   "content=\"light dark\"><title>"));
    RL_TRY(svg_text_append(out, run->name));
    RL_TRY(rl_text_printf(out, " &middot; Foresight</title><style>%s%s</style></head><body><main>",
                          report_chart_style, report_page_style));
    RL_TRY(rl_text_append_str(out, "<header><h1>"));
    RL_TRY(svg_text_append(out, run->name));
    return rl_text_append_str(out, "</h1><span class=\"brand\">FORESIGHT RUN</span></header>");
}

static rl_status append_notes(struct rl_text *out, const struct report_run *run, size_t bucket)
{
    const struct report_table *table = &run->table;
    if (table->row_count == 0) {
        RL_TRY(rl_text_append_str(out, "<p class=\"note\">No finished step yet.</p>"));
    }
    if (table->torn_tail) {
        RL_TRY(rl_text_append_str(out, "<p class=\"note\">The last line of metrics.jsonl was cut "
                                       "off while being written; it is left out.</p>"));
    }
    if (table->rows_replaced > 0) {
        RL_TRY(rl_text_printf(out,
                              "<p class=\"note\">%zu lines were written again after a resume; the "
                              "later ones are shown.</p>",
                              table->rows_replaced));
    }
    if (bucket > 1) {
        RL_TRY(rl_text_printf(out,
                              "<p class=\"note\">Each point stands for %zu steps (means; extremes "
                              "stay extremes).</p>",
                              bucket));
    }
    return RL_OK;
}

static rl_status append_config(struct rl_text *out, const struct report_run *run)
{
    if (run->config == NULL) {
        return RL_OK;
    }
    RL_TRY(rl_text_append_str(out, "<details><summary>Configuration</summary>"
                                   "<div class=\"card\"><pre>"));
    RL_TRY(svg_text_append(out, run->config));
    return rl_text_append_str(out, "</pre></div></details>");
}

rl_status report_page_append(struct rl_text *out, struct report_run *run,
                             struct report_facts *facts)
{
    size_t steps = run->table.row_count;
    size_t charts = 0;
    RL_TRY(append_head(out, run));
    RL_TRY(report_tiles_append(out, run)); /* from all rows, before they are merged */
    size_t bucket = report_table_thin(&run->table, PAGE_MAX_ROWS);
    RL_TRY(rl_text_append_str(out, "<div style=\"height:16px\"></div>"));
    RL_TRY(append_notes(out, run, bucket));
    RL_TRY(report_summary_append(out, run->summary));
    RL_TRY(report_charts_append(out, run, &charts));
    RL_TRY(report_samples_append(out, run->summary));
    RL_TRY(append_config(out, run));
    RL_TRY(rl_text_printf(out,
                          "<footer>foresight report, %zu steps. This page loads nothing from "
                          "anywhere.</footer></main><script>%s</script></body></html>\n",
                          steps, report_page_script));
    if (facts != NULL) {
        *facts = (struct report_facts){.steps = steps,
                                       .charts = charts,
                                       .rows_replaced = run->table.rows_replaced,
                                       .torn_tail = run->table.torn_tail,
                                       .has_summary = run->summary != NULL};
    }
    return RL_OK;
}
