/* summary.json as tables: before and after side by side, the other figures, sampled completions. */
#include "trainer/report_parts.h"
#include "trainer/report_svg.h"

#include "core/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FIGURES_MAX = 256,
    DEPTH_MAX = 6,
    NAME_BYTES = 160,
    SAMPLES_MAX = 12,
    SAMPLE_MAX_BYTES = 6000
};

/* A number, a short text, or an interval of two numbers, with its dotted name. */
struct figure {
    char name[NAME_BYTES];
    json_t *value; /* borrowed */
};

struct figures {
    struct figure items[FIGURES_MAX];
    size_t count;
};

static bool is_interval(json_t *value)
{
    return json_is_array(value) && json_array_size(value) == 2 &&
           json_is_number(json_array_get(value, 0)) && json_is_number(json_array_get(value, 1));
}

/* Leaves below `object`, "samples" aside. Names that are too long and leaves beyond the limit are
 * left out: this is a picture, not the record. */
static void collect(struct figures *figures, json_t *object, const char *prefix, int depth)
{
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach(object, key, value)
    {
        char name[NAME_BYTES];
        int length = snprintf(name, sizeof name, "%s%s%s", prefix, prefix[0] ? "." : "", key);
        if (length < 0 || (size_t)length >= sizeof name || strcmp(name, "samples") == 0) {
            continue;
        }
        if (json_is_object(value) && depth < DEPTH_MAX) {
            collect(figures, value, name, depth + 1);
        } else if (figures->count < FIGURES_MAX &&
                   (json_is_number(value) || json_is_string(value) || json_is_boolean(value) ||
                    is_interval(value))) {
            struct figure *figure = &figures->items[figures->count++];
            memcpy(figure->name, name, sizeof name);
            figure->value = value;
        }
    }
}

static rl_status append_value(struct rl_text *out, json_t *value)
{
    if (is_interval(value)) {
        return rl_text_printf(out, "%.3f &ndash; %.3f", json_number_value(json_array_get(value, 0)),
                              json_number_value(json_array_get(value, 1)));
    }
    if (json_is_integer(value)) {
        return rl_text_printf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    }
    if (json_is_real(value)) {
        return rl_text_printf(out, "%.4g", json_real_value(value));
    }
    if (json_is_boolean(value)) {
        return rl_text_append_str(out, json_is_true(value) ? "yes" : "no");
    }
    return svg_text_append(out, json_string_value(value));
}

static json_t *find_figure(const struct figures *figures, const char *start, const char *name,
                           const char *end)
{
    char wanted[NAME_BYTES * 2];
    snprintf(wanted, sizeof wanted, "%s%s%s", start, name, end);
    for (size_t i = 0; i < figures->count; i++) {
        if (strcmp(figures->items[i].name, wanted) == 0) {
            return figures->items[i].value;
        }
    }
    return NULL;
}

/* --- before and after ------------------------------------------------------------------------- */

/* The interval that belongs to a figure, under the usual spellings. */
static json_t *find_interval(const struct figures *figures, const char *start, const char *name)
{
    static const char *const ends[] = {"_ci95", ".ci95", "_ci", "_interval", "_confidence"};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        json_t *found = find_figure(figures, start, name, ends[i]);
        if (is_interval(found)) {
            return found;
        }
    }
    return NULL;
}

static rl_status append_side(struct rl_text *out, const struct figures *figures, const char *start,
                             const char *name)
{
    json_t *interval = find_interval(figures, start, name);
    RL_TRY(rl_text_append_str(out, "<td class=\"n\">"));
    json_t *value = find_figure(figures, start, name, "");
    if (json_is_real(value) && json_real_value(value) > -10 && json_real_value(value) < 10) {
        RL_TRY(rl_text_printf(out, "%.3f", json_real_value(value))); /* the columns line up */
    } else {
        RL_TRY(append_value(out, value));
    }
    if (interval != NULL) {
        RL_TRY(rl_text_append_str(out, " <small>"));
        RL_TRY(append_value(out, interval));
        RL_TRY(rl_text_append_str(out, "</small>"));
    }
    return rl_text_append_str(out, "</td>");
}

static rl_status append_comparison_row(struct rl_text *out, const struct figures *figures,
                                       const char *name)
{
    double before = json_number_value(find_figure(figures, "base.", name, ""));
    double after = json_number_value(find_figure(figures, "trained.", name, ""));
    const char *direction = strncmp(name, "pass@", 5) == 0 || strncmp(name, "avg@", 4) == 0
                                ? (after >= before ? " up" : " down")
                                : "";
    RL_TRY(rl_text_append_str(out, "<tr><td>"));
    RL_TRY(svg_text_append(out, name));
    RL_TRY(rl_text_append_str(out, "</td>"));
    RL_TRY(append_side(out, figures, "base.", name));
    RL_TRY(append_side(out, figures, "trained.", name));
    return rl_text_printf(out, "<td class=\"n%s\">%+.4g</td></tr>", direction, after - before);
}

static bool is_compared(const struct figures *figures, const struct figure *figure)
{
    return strncmp(figure->name, "base.", 5) == 0 && json_is_number(figure->value) &&
           json_is_number(find_figure(figures, "trained.", figure->name + 5, ""));
}

static rl_status append_comparison(struct rl_text *out, const struct figures *figures)
{
    bool opened = false;
    for (size_t i = 0; i < figures->count; i++) {
        if (!is_compared(figures, &figures->items[i])) {
            continue;
        }
        if (!opened) {
            RL_TRY(rl_text_append_str(out, "<h2>Before and after</h2><div class=\"card wrap\">"
                                           "<table><tr><th></th><th class=\"n\">base</th>"
                                           "<th class=\"n\">trained</th>"
                                           "<th class=\"n\">change</th></tr>"));
            opened = true;
        }
        RL_TRY(append_comparison_row(out, figures, figures->items[i].name + 5));
    }
    return opened ? rl_text_append_str(out, "</table></div>") : RL_OK;
}

static rl_status append_others(struct rl_text *out, const struct figures *figures)
{
    bool opened = false;
    for (size_t i = 0; i < figures->count; i++) {
        const struct figure *figure = &figures->items[i];
        if (strncmp(figure->name, "base.", 5) == 0 || strncmp(figure->name, "trained.", 8) == 0) {
            continue;
        }
        if (!opened) {
            RL_TRY(rl_text_append_str(out, "<details><summary>Figures of summary.json</summary>"
                                           "<div class=\"card wrap\"><table>"));
            opened = true;
        }
        RL_TRY(rl_text_append_str(out, "<tr><td>"));
        RL_TRY(svg_text_append(out, figure->name));
        RL_TRY(rl_text_append_str(out, "</td><td class=\"n\">"));
        RL_TRY(append_value(out, figure->value));
        RL_TRY(rl_text_append_str(out, "</td></tr>"));
    }
    return opened ? rl_text_append_str(out, "</table></div></details>") : RL_OK;
}

rl_status report_summary_append(struct rl_text *out, json_t *summary)
{
    if (summary == NULL) {
        return RL_OK;
    }
    struct figures *figures = calloc(1, sizeof *figures);
    if (figures == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: no memory for the summary");
    }
    collect(figures, summary, "", 0);
    rl_status status = append_comparison(out, figures);
    if (status == RL_OK) {
        status = append_others(out, figures);
    }
    free(figures);
    return status;
}

/* --- samples ---------------------------------------------------------------------------------- */

/* Text of a sample, cut at a limit (at the start of a character). */
static rl_status append_cut(struct rl_text *out, json_t *value)
{
    const char *text = json_is_string(value) ? json_string_value(value) : "";
    size_t bytes = strlen(text);
    if (bytes <= SAMPLE_MAX_BYTES) {
        return svg_text_append(out, text);
    }
    size_t keep = SAMPLE_MAX_BYTES;
    while (keep > 0 && ((unsigned char)text[keep] & 0xc0) == 0x80) {
        keep--;
    }
    char *cut = strndup(text, keep);
    if (cut == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: no memory for a sample");
    }
    rl_status status = svg_text_append(out, cut);
    free(cut);
    RL_TRY(status);
    return rl_text_printf(out, "&hellip; (%zu bytes more)", bytes - keep);
}

static rl_status append_sample(struct rl_text *out, json_t *sample)
{
    json_t *reward = json_object_get(sample, "reward");
    RL_TRY(rl_text_append_str(out, "<div class=\"card sample\"><div class=\"who\"><span>prompt"
                                   "</span></div><pre>"));
    RL_TRY(append_cut(out, json_object_get(sample, "prompt")));
    RL_TRY(rl_text_append_str(out, "</pre><div class=\"who\"><span>completion</span>"));
    if (json_is_number(reward)) {
        double value = json_number_value(reward);
        RL_TRY(rl_text_printf(out, "<span class=\"badge %s\">reward %.3g</span>",
                              value > 0 ? "up" : "down", value));
    }
    RL_TRY(rl_text_append_str(out, "</div><pre>"));
    RL_TRY(append_cut(out, json_object_get(sample, "completion")));
    return rl_text_append_str(out, "</pre></div>");
}

rl_status report_samples_append(struct rl_text *out, json_t *summary)
{
    json_t *samples = summary == NULL ? NULL : json_object_get(summary, "samples");
    size_t count = json_array_size(samples);
    if (count == 0) {
        return RL_OK;
    }
    RL_TRY(rl_text_append_str(out, "<h2>Sampled completions</h2>"));
    for (size_t i = 0; i < count && i < SAMPLES_MAX; i++) {
        RL_TRY(append_sample(out, json_array_get(samples, i)));
    }
    return RL_OK;
}
