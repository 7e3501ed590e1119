/* The page of a sweep: tables of the document, charts of the cells. See study_report.h. Everything
 * that comes from files goes through svg_text_append, which escapes it. */
#include "trainer/report_assets.h"
#include "trainer/report_svg.h"
#include "trainer/study_report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char table_start[] = "<div class=\"card wrap\"><table>";
static const char table_end[] = "</table></div>";

/* --- cells of tables -------------------------------------------------------------------------- */

static double number_of(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static rl_status append_text_cell(struct rl_text *out, const char *text)
{
    RL_TRY(rl_text_append_str(out, "<td class=\"t\">"));
    RL_TRY(svg_text_append(out, text != NULL ? text : ""));
    return rl_text_append_str(out, "</td>");
}

/* "0.412 [0.38, 0.45]"; of a difference with its sign, coloured where the interval leaves out 0. */
static rl_status append_interval(struct rl_text *out, const json_t *interval, bool difference)
{
    double mean = number_of(interval, "mean");
    double low = number_of(interval, "low");
    double high = number_of(interval, "high");
    if (!isfinite(mean)) {
        return rl_text_append_str(out, "<td class=\"n\">&ndash;</td>");
    }
    const char *colour = difference && low > 0 ? " up" : difference && high < 0 ? " down" : "";
    RL_TRY(rl_text_printf(out, difference ? "<td class=\"n%s\">%+.4f" : "<td class=\"n%s\">%.4f",
                          colour, mean));
    if (isfinite(low)) {
        RL_TRY(rl_text_printf(
            out, difference ? " <small>[%+.4f, %+.4f]</small>" : " <small>[%.4f, %.4f]</small>",
            low, high));
    }
    return rl_text_append_str(out, "</td>");
}

static rl_status append_header(struct rl_text *out, const char *title, const char *help,
                               const char *columns)
{
    RL_TRY(
        rl_text_printf(out, "<h2>%s</h2><p class=\"help\">%s</p>%s<tr>", title, help, table_start));
    for (const char *at = columns; *at != '\0';) {
        int bytes = (int)strcspn(at, "|");
        RL_TRY(
            rl_text_printf(out, "<th%s>%.*s</th>", at == columns ? "" : " class=\"n\"", bytes, at));
        at += bytes + (at[bytes] == '|' ? 1 : 0);
    }
    return rl_text_append_str(out, "</tr>");
}

/* The columns that every claim has. */
static const char claim_columns[] =
    "|setting|checkpoint|T_eval|seeds|pass@1|pass@n|maj@n|against base, default decoding|"
    "against base, best T_eval|the latter over seeds";

static rl_status append_claim(struct rl_text *out, const json_t *claim)
{
    const json_t *tuned = json_object_get(claim, "against_tuned_base");
    const json_t *usual = json_object_get(claim, "against_base");
    RL_TRY(rl_text_append_str(out, "<tr>"));
    RL_TRY(append_text_cell(out, json_string_value(json_object_get(claim, "name"))));
    RL_TRY(append_text_cell(out, json_string_value(json_object_get(claim, "setting"))));
    RL_TRY(rl_text_printf(out,
                          "<td class=\"n\">%.0f</td><td class=\"n\">%g</td><td class=\"n\">%.0f"
                          "</td>",
                          number_of(claim, "step"), number_of(claim, "t_eval"),
                          number_of(claim, "seeds")));
    RL_TRY(append_interval(out, json_object_get(claim, "pass_at_1"), false));
    RL_TRY(append_interval(out, json_object_get(claim, "pass_at_k"), false));
    RL_TRY(append_interval(out, json_object_get(claim, "majority"), false));
    RL_TRY(append_interval(out, json_object_get(usual, "problems"), true));
    RL_TRY(append_interval(out, json_object_get(tuned, "problems"), true));
    RL_TRY(append_interval(out, json_object_get(tuned, "seeds"), true));
    return rl_text_append_str(out, "</tr>");
}

static rl_status append_claims(struct rl_text *out, const json_t *claims, const char *title,
                               const char *help)
{
    if (json_array_size(claims) == 0) {
        return RL_OK;
    }
    RL_TRY(append_header(out, title, help, claim_columns));
    for (size_t i = 0; i < json_array_size(claims); i++) {
        RL_TRY(append_claim(out, json_array_get(claims, i)));
    }
    return rl_text_append_str(out, table_end);
}

/* Claims by class of difficulty, or by guard: `key` names the member that tells which. */
static rl_status append_parts(struct rl_text *out, const json_t *parts, const char *key,
                              const char *title, const char *help)
{
    if (json_array_size(parts) == 0) {
        return RL_OK;
    }
    RL_TRY(append_header(out, title, help,
                         "|problems||T_eval|pass@1|pass@n|against base, default decoding|"
                         "against base, best T_eval"));
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        const json_t *cells = json_object_get(part, "cells");
        for (size_t k = 0; k < json_array_size(cells); k++) {
            const json_t *claim = json_array_get(cells, k);
            RL_TRY(rl_text_append_str(out, "<tr>"));
            RL_TRY(append_text_cell(out, json_string_value(json_object_get(part, key))));
            RL_TRY(rl_text_printf(out, "<td class=\"n\">%.0f</td>", number_of(claim, "problems")));
            RL_TRY(append_text_cell(out, json_string_value(json_object_get(claim, "name"))));
            RL_TRY(rl_text_printf(out, "<td class=\"n\">%g</td>", number_of(claim, "t_eval")));
            RL_TRY(append_interval(out, json_object_get(claim, "pass_at_1"), false));
            RL_TRY(append_interval(out, json_object_get(claim, "pass_at_k"), false));
            RL_TRY(append_interval(
                out, json_object_get(json_object_get(claim, "against_base"), "problems"), true));
            RL_TRY(append_interval(
                out, json_object_get(json_object_get(claim, "against_tuned_base"), "problems"),
                true));
            RL_TRY(rl_text_append_str(out, "</tr>"));
        }
    }
    return rl_text_append_str(out, table_end);
}

static rl_status append_nulls(struct rl_text *out, const json_t *nulls)
{
    if (json_array_size(nulls) == 0) {
        return RL_OK;
    }
    RL_TRY(append_header(out, "Null cell",
                         "Samples at T = 1 without truncation are the model's own distribution: "
                         "training on them changes nothing in expectation. Split B, each against "
                         "the base at the same T_eval.",
                         "T_eval|base|trained on its own samples|difference|over seeds"));
    for (size_t i = 0; i < json_array_size(nulls); i++) {
        const json_t *row = json_array_get(nulls, i);
        const json_t *difference = json_object_get(row, "against_base");
        RL_TRY(rl_text_printf(out, "<tr><td>%g</td>", number_of(row, "t_eval")));
        RL_TRY(append_interval(out, json_object_get(row, "base"), false));
        RL_TRY(append_interval(out, json_object_get(row, "pass_at_1"), false));
        RL_TRY(append_interval(out, json_object_get(difference, "problems"), true));
        RL_TRY(append_interval(out, json_object_get(difference, "seeds"), true));
        RL_TRY(rl_text_append_str(out, "</tr>"));
    }
    return rl_text_append_str(out, table_end);
}

/* --- settings --------------------------------------------------------------------------------- */

static rl_status append_setting(struct rl_text *out, const json_t *setting)
{
    const json_t *difference = json_object_get(setting, "difference");
    const json_t *seeds = json_object_get(setting, "over_seeds");
    RL_TRY(rl_text_append_str(out, "<tr>"));
    RL_TRY(append_text_cell(out, json_string_value(json_object_get(setting, "setting"))));
    RL_TRY(append_interval(out, json_object_get(setting, "pass_at_1"), false));
    RL_TRY(rl_text_append_str(out, "<td class=\"n\">"));
    for (size_t i = 0; i < json_array_size(seeds); i++) {
        RL_TRY(rl_text_printf(out, "%s%.3f", i > 0 ? ", " : "",
                              json_number_value(json_array_get(seeds, i))));
    }
    RL_TRY(rl_text_append_str(out, "</td>"));
    RL_TRY(append_interval(out, json_object_get(difference, "seeds"), true));
    RL_TRY(append_interval(out, json_object_get(difference, "problems"), true));
    return rl_text_append_str(out, "</tr>");
}

static rl_status append_figures(struct rl_text *out, const json_t *settings)
{
    bool any = false;
    for (size_t i = 0; i < json_array_size(settings); i++) {
        const char *name = NULL;
        json_t *value = NULL;
        const json_t *setting = json_array_get(settings, i);
        json_object_foreach(json_object_get(setting, "figures"), name, value)
        {
            if (!any) {
                RL_TRY(rl_text_printf(out,
                                      "<details><summary>Figures of the trials, mean over seeds"
                                      "</summary>%s<tr><th>setting</th><th>figure</th>"
                                      "<th class=\"n\">mean [95 %%, Student's t over seeds]</th>"
                                      "</tr>",
                                      table_start));
            }
            any = true;
            RL_TRY(rl_text_append_str(out, "<tr>"));
            RL_TRY(append_text_cell(out, json_string_value(json_object_get(setting, "setting"))));
            RL_TRY(append_text_cell(out, name));
            RL_TRY(append_interval(out, value, false));
            RL_TRY(rl_text_append_str(out, "</tr>"));
        }
    }
    return any ? rl_text_printf(out, "%s</details>", table_end) : RL_OK;
}

static rl_status append_settings(struct rl_text *out, const json_t *settings)
{
    RL_TRY(append_header(out, "Settings",
                         "Last checkpoint at the default temperature, all problems: nothing was "
                         "chosen by this table. Differences are from the first setting; over seeds "
                         "(Student's t) and over problems (paired bootstrap).",
                         "|pass@1|seeds|difference, over seeds|difference, over problems"));
    for (size_t i = 0; i < json_array_size(settings); i++) {
        RL_TRY(append_setting(out, json_array_get(settings, i)));
    }
    RL_TRY(rl_text_append_str(out, table_end));
    return append_figures(out, settings);
}

/* --- spent, failed, timings ------------------------------------------------------------------- */

static rl_status append_tile(struct rl_text *out, const char *title, const char *value,
                             const char *unit)
{
    RL_TRY(rl_text_printf(out, "<div class=\"tile\"><div class=\"k\">%s</div><div class=\"v\">%s",
                          title, value));
    return rl_text_printf(out, " <small>%s</small></div></div>", unit);
}

static rl_status append_count(struct rl_text *out, const json_t *spent, const char *title,
                              const char *name, const char *unit)
{
    char value[24];
    svg_number(number_of(spent, name), value);
    return append_tile(out, title, value, unit);
}

static rl_status append_spent(struct rl_text *out, const json_t *spent)
{
    double share = number_of(spent, "served_share");
    RL_TRY(rl_text_append_str(out, "<h2>What was spent</h2><div class=\"tiles\">"));
    RL_TRY(append_count(out, spent, "Trials", "trials", ""));
    RL_TRY(append_count(out, spent, "Done", "done", ""));
    RL_TRY(append_count(out, spent, "Failed", "failed", ""));
    if (number_of(spent, "stopped_early") > 0) {
        RL_TRY(append_count(out, spent, "Stopped early", "stopped_early", ""));
    }
    if (number_of(spent, "not_ended") > 0) {
        RL_TRY(append_count(out, spent, "Not ended", "not_ended", ""));
    }
    if (isfinite(share)) {
        char text[24];
        RL_TRY(append_count(out, spent, "Samples that trials drew on", "training_samples", ""));
        RL_TRY(append_count(out, spent, "Generated for it", "generated_samples", "samples"));
        snprintf(text, sizeof text, "%.1f %%", 100 * share);
        RL_TRY(append_tile(out, "Served from shared corpora", text, ""));
    }
    RL_TRY(append_count(out, spent, "Evaluation", "evaluation_samples", "samples"));
    RL_TRY(append_count(out, spent, "Evaluation", "evaluation_tokens", "tokens"));
    return rl_text_append_str(out, "</div>");
}

static rl_status append_failures(struct rl_text *out, const json_t *failed)
{
    if (json_array_size(failed) == 0) {
        return RL_OK;
    }
    RL_TRY(rl_text_printf(out, "<h2>Failed trials</h2>%s<tr><th>trial</th><th>reason</th></tr>",
                          table_start));
    for (size_t i = 0; i < json_array_size(failed); i++) {
        const json_t *row = json_array_get(failed, i);
        RL_TRY(rl_text_append_str(out, "<tr>"));
        RL_TRY(append_text_cell(out, json_string_value(json_object_get(row, "trial"))));
        RL_TRY(append_text_cell(out, json_string_value(json_object_get(row, "reason"))));
        RL_TRY(rl_text_append_str(out, "</tr>"));
    }
    return rl_text_append_str(out, table_end);
}

static rl_status append_timings(struct rl_text *out, const struct study *study)
{
    double total = 0;
    RL_TRY(rl_text_printf(out,
                          "<!-- timings: what may differ between two runs of one sweep -->"
                          "<details id=\"timings\"><summary>Timings</summary>%s<tr><th>trial</th>"
                          "<th>host</th><th class=\"n\">attempts</th><th class=\"n\">training, s"
                          "</th><th class=\"n\">evaluation, s</th></tr>",
                          table_start));
    for (uint32_t i = 0; i < study->trial_count; i++) {
        const struct study_trial *trial = &study->trials[i];
        double seconds = number_of(trial->timing, "seconds");
        total += isfinite(seconds) ? seconds : 0;
        RL_TRY(rl_text_append_str(out, "<tr>"));
        RL_TRY(append_text_cell(out, trial->name));
        RL_TRY(append_text_cell(out, json_string_value(json_object_get(trial->timing, "host"))));
        RL_TRY(rl_text_printf(out,
                              "<td class=\"n\">%.0f</td><td class=\"n\">%.1f</td>"
                              "<td class=\"n\">%.1f</td></tr>",
                              fmax(0, number_of(trial->result, "attempts")),
                              fmax(0, number_of(trial->timing, "train_seconds")),
                              fmax(0, number_of(trial->timing, "eval_seconds"))));
    }
    return rl_text_printf(out, "%s<p>%.1f s of trials in all.</p></details><!-- /timings -->",
                          table_end, total);
}

/* --- page ------------------------------------------------------------------------------------- */

static rl_status append_head(struct rl_text *out, const struct study *study)
{
    RL_TRY(rl_text_append_str(out, "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">"
                                   "<meta name=\"viewport\" content=\"width=device-width,"
                                   "initial-scale=1\"><meta name=\"color-scheme\" "
                                   "content=\"light dark\"><title>"));
    RL_TRY(svg_text_append(out, study->name));
    RL_TRY(rl_text_printf(
        out,
        " &middot; Foresight</title><style>%s%s.help{color:var(--soft);"
        "font-size:13.5px;margin:-8px 0 10px;max-width:90ch}td.t{"
        "min-width:130px;overflow-wrap:break-word}td.n small{display:block}.heat{font:600 11px "
        "system-ui,sans-serif}.axis{fill:var(--soft);font:11px system-ui,"
        "sans-serif}</style></head><body><main><header><h1>",
        report_chart_style, report_page_style));
    RL_TRY(svg_text_append(out, study->name));
    return rl_text_append_str(out, "</h1><span class=\"brand\">FORESIGHT SWEEP</span></header>");
}

static rl_status append_charts(struct rl_text *out, const struct study_cells *cells)
{
    struct study_half_a half;
    struct study_choice choice;
    RL_TRY(study_half_a_make(cells, &half));
    rl_status status = study_choose(&half, &choice);
    if (status == RL_OK) {
        status = study_charts_append(out, cells, &half, &choice);
        study_choice_fini(&choice);
    }
    study_half_a_fini(&half);
    return status;
}

static rl_status append_measured(struct rl_text *out, const struct study_cells *cells,
                                 const json_t *document)
{
    RL_TRY(
        append_claims(out, json_object_get(document, "claims"), "What wins",
                      "Chosen on split A (setting, checkpoint and T_eval, of the base its T_eval "
                      "too), measured on split B. Intervals are 95 %, over problems; differences "
                      "are paired by problem."));
    RL_TRY(append_claims(out, json_object_get(document, "groups"), "Best of each group",
                         "The same for every group of settings: its best cell on split A, measured "
                         "on split B."));
    RL_TRY(append_nulls(out, json_object_get(document, "null_cells")));
    RL_TRY(append_charts(out, cells));
    RL_TRY(append_parts(out, json_object_get(document, "difficulty"), "class", "By difficulty",
                        cells->classes_measured
                            ? "Split B. Classes are terciles of the pass rate over the base and "
                              "all trials together."
                            : "Split B. Classes are the problems' own."));
    return append_parts(out, json_object_get(document, "guards"), "guard", "Other tasks",
                        "What the training must not spoil. Nothing was chosen by these problems, "
                        "so all of them count.");
}

rl_status study_page_append(struct rl_text *out, const struct study_cells *cells,
                            const json_t *document, bool timings)
{
    double missing = number_of(json_object_get(document, "spent"), "not_ended");
    RL_TRY(append_head(out, cells->study));
    if (missing > 0) {
        RL_TRY(rl_text_printf(out,
                              "<p class=\"note\">The sweep has not ended: %.0f of %u trials have "
                              "no result yet.</p>",
                              missing, cells->study->trial_count));
    }
    if (cells->count > 0) {
        RL_TRY(append_measured(out, cells, document));
    } else {
        RL_TRY(rl_text_append_str(out, "<p class=\"note\">No trial was evaluated.</p>"));
    }
    RL_TRY(append_settings(out, json_object_get(document, "settings")));
    RL_TRY(append_spent(out, json_object_get(document, "spent")));
    RL_TRY(append_failures(out, json_object_get(document, "failed")));
    if (timings) {
        RL_TRY(append_timings(out, cells->study));
    }
    return rl_text_append_str(out, "<footer>foresight report; every cell is in cells.csv and "
                                   "cells.json. This page loads nothing from anywhere.</footer>"
                                   "</main></body></html>\n");
}
