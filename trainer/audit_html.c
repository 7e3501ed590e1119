/* See audit.h: the audit as a self-contained page. What comes from files is escaped. */
#include "trainer/audit.h"
#include "trainer/report_assets.h"
#include "trainer/report_svg.h"

#include <math.h>
#include <stdio.h>

enum { PAGE_ROWS = 400 };

static rl_status append_head(struct rl_text *out, const struct audit *a)
{
    char bottleneck[256];
    char change[256];
    audit_say_bottleneck(a, bottleneck, sizeof(bottleneck));
    audit_say_change(a, change, sizeof(change));
    RL_TRY(rl_text_append_str(out, "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">"
                                   "<meta name=\"viewport\" content=\"width=device-width,"
                                   "initial-scale=1\"><meta name=\"color-scheme\" "
                                   "content=\"light dark\"><title>"));
    RL_TRY(svg_text_append(out, a->name));
    RL_TRY(rl_text_printf(out,
                          " &middot; audit</title><style>%s%s.meter{height:10px;border-radius:3px;"
                          "background:var(--c)}</style></head><body><main><header><h1>",
                          report_chart_style, report_page_style));
    RL_TRY(svg_text_append(out, a->name));
    RL_TRY(rl_text_printf(out,
                          "</h1><span class=\"brand\">FORESIGHT AUDIT</span></header>"
                          "<div class=\"tiles\"><div class=\"tile\"><div class=\"k\">Steps</div>"
                          "<div class=\"v\">%zu</div></div><div class=\"tile\"><div class=\"k\">"
                          "Throughput</div><div class=\"v\">%.0f <small>tokens/s</small></div>"
                          "</div><div class=\"tile\"><div class=\"k\">Learner idle</div><div "
                          "class=\"v\">%.1f %%</div></div><div class=\"tile\"><div class=\"k\">"
                          "Rollout ranks idle</div><div class=\"v\">%.1f %%</div></div></div>",
                          a->steps, a->wall_s > 0 ? a->tokens / a->wall_s : 0,
                          100 * a->learner_idle, 100 * a->rollout_idle));
    return rl_text_printf(out, "<h2>Bottleneck</h2><p>%s.</p><h2>What would help</h2><p>%s.</p>",
                          bottleneck, change);
}

/* One row of a table with a bar. */
static rl_status append_row(struct rl_text *out, const char *label, const char *value, double part,
                            int colour)
{
    return rl_text_printf(out,
                          "<tr><td>%s</td><td>%s</td><td>%.2f %%</td><td style=\"width:45%%\"><div "
                          "class=\"meter s%d\" style=\"width:%.2f%%\"></div></td></tr>",
                          label, value, 100 * part, colour, 100 * fmin(1, part));
}

static rl_status append_times(struct rl_text *out, const char *title, const double *times,
                              int count, const char *(*help)(int))
{
    double whole = rl_times_sum(times, count);
    RL_TRY(rl_text_printf(out, "<h2>%s</h2><div class=\"card\"><table>", title));
    for (int i = 0; i < count; i++) {
        char value[32];
        snprintf(value, sizeof(value), "%.2f s", times[i]);
        RL_TRY(append_row(out, help(i), value, whole > 0 ? times[i] / whole : 0, i % 8));
    }
    return rl_text_append_str(out, "</table></div>");
}

static const char *learner_help(int i)
{
    return rl_learner_time_help((enum rl_learner_time)i);
}

static const char *rollout_help(int i)
{
    return rl_rollout_time_help((enum rl_rollout_time)i);
}

static rl_status append_shares(struct rl_text *out, const char *title, const double *shares,
                               int count, bool powers)
{
    RL_TRY(rl_text_printf(out, "<h2>%s</h2><div class=\"card\"><table>", title));
    for (int i = 0; i < count; i++) {
        char label[32];
        snprintf(label, sizeof(label), powers ? "up to %.0f" : "%.0f", powers ? ldexp(1, i) : i);
        if (shares[i] > 0.00005) {
            RL_TRY(append_row(out, label, "", shares[i], 0));
        }
    }
    return rl_text_append_str(out, "</table></div>");
}

/* Idle shares step by step. */
static rl_status append_chart(struct rl_text *out, struct report_run *run)
{
    report_table_thin(&run->table, PAGE_ROWS);
    const struct report_table *table = &run->table;
    const double *learner = report_table_find(table, "learner/idle");
    const double *rollout = report_table_find(table, "rollout/idle");
    struct svg_chart chart = {.title = "Idle shares over the steps",
                              .kind = SVG_LINES,
                              .x = table->steps,
                              .count = table->row_count,
                              .width = 1100,
                              .height = 260};
    if (learner == NULL || rollout == NULL) {
        return RL_OK;
    }
    chart.series[0] = (struct svg_series){"learner", learner};
    chart.series[1] = (struct svg_series){"rollout ranks", rollout};
    chart.series_count = 2;
    RL_TRY(rl_text_append_str(out, "<h2>Idle, step by step</h2><div class=\"card\"><div "
                                   "class=\"legend\"><span><i class=\"s0\"></i>learner</span><span>"
                                   "<i class=\"s1\"></i>rollout ranks</span></div>"));
    RL_TRY(svg_chart_append(out, &chart));
    return rl_text_append_str(out, "</div>");
}

rl_status audit_page_append(struct rl_text *out, const struct audit *a, struct report_run *run)
{
    RL_TRY(append_head(out, a));
    RL_TRY(append_times(out, "The learner's time", a->learner_s, RL_LEARNER_TIMES, learner_help));
    RL_TRY(
        append_times(out, "The rollout ranks' time", a->rollout_s, RL_ROLLOUT_TIMES, rollout_help));
    RL_TRY(append_chart(out, run));
    RL_TRY(append_shares(out, "Staleness of tokens, versions", a->ages, AUDIT_AGES, false));
    RL_TRY(append_shares(out, "Length of completions, tokens", a->lengths, AUDIT_LENGTHS, true));
    return rl_text_append_str(out, "<footer>foresight audit. This page loads nothing from anywhere."
                                   "</footer></main></body></html>\n");
}
