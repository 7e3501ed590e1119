/* Prints a step's figures as a JSON line, keeps metrics.jsonl, and writes the table for people.
 * Invariant: the file holds whole lines only, in order of their steps, also after a resume. */
#include "core/metrics_state.h"

#include "core/log.h"
#include "core/text.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { METRICS_LINE_BYTES = 1 << 20, METRICS_PREFIX_BYTES = 256 };

/* JSON knows no NaN; whole numbers keep all their digits. */
static rl_status metrics_print_value(struct rl_text *line, const char *name, const char *suffix,
                                     double value)
{
    RL_TRY(rl_text_printf(line, ", \"%s%s\": ", name, suffix));
    if (!isfinite(value)) {
        return rl_text_append_str(line, "null");
    }
    bool whole = value == floor(value) && fabs(value) < 0x1p53;
    return rl_text_printf(line, whole ? "%.0f" : "%.9g", value + 0.0);
}

static rl_status metrics_print_histogram(const struct rl_metrics *metrics, size_t id,
                                         struct rl_text *line)
{
    static const struct {
        const char *suffix;
        double q;
    } quantiles[] = {{"/p05", 0.05}, {"/p25", 0.25}, {"/p50", 0.5}, {"/p75", 0.75}, {"/p95", 0.95}};
    const char *name = metrics_row_of(id)->name;
    RL_TRY(metrics_print_value(line, name, "/count", metrics->cells[id].weight));
    for (size_t i = 0; i < sizeof quantiles / sizeof quantiles[0]; i++) {
        double value = metrics_quantile(metrics, id, quantiles[i].q);
        RL_TRY(metrics_print_value(line, name, quantiles[i].suffix, value));
    }
    return RL_OK;
}

static rl_status metrics_print_line(const struct rl_metrics *metrics, int64_t step,
                                    struct rl_text *line)
{
    RL_TRY(rl_text_printf(line, "{\"step\": %" PRId64, step));
    for (size_t id = 0; id < RL_METRIC_COUNT; id++) {
        double value = 0.0;
        if (!rl_metrics_get(metrics, (enum rl_metric_id)id, &value)) {
            continue;
        }
        if (metrics_row_of(id)->kind == METRICS_HISTOGRAM) {
            RL_TRY(metrics_print_histogram(metrics, id, line));
        } else {
            RL_TRY(metrics_print_value(line, metrics_row_of(id)->name, "", value));
        }
    }
    for (size_t i = 0; i < metrics->named_count; i++) {
        if (metrics->named[i].set) {
            RL_TRY(metrics_print_value(line, metrics->named[i].name, "", metrics->named[i].value));
        }
    }
    return rl_text_append_str(line, "}");
}

rl_status rl_metrics_print(const struct rl_metrics *metrics, int64_t step, FILE *out)
{
    struct rl_text line;
    rl_text_init(&line, METRICS_LINE_BYTES);
    rl_status status = metrics_print_line(metrics, step, &line);
    if (status == RL_OK && fwrite(line.data, 1, line.bytes, out) != line.bytes) {
        status = rl_fail(RL_IO, "cannot write metrics: %s", strerror(errno));
    }
    rl_text_fini(&line);
    return status;
}

/* Step at the start of a line written by us, -1 if it is none. */
static int64_t metrics_line_step(const char *line)
{
    static const char prefix[] = "{\"step\": ";
    if (strncmp(line, prefix, sizeof prefix - 1) != 0) {
        return -1;
    }
    char *end = NULL;
    errno = 0;
    long long step = strtoll(line + sizeof prefix - 1, &end, 10);
    return errno == 0 && (*end == ',' || *end == '}') && step >= 0 ? (int64_t)step : -1;
}

/* Bytes of the file's start that are whole lines with steps up to `last_step`. */
static off_t metrics_sound_bytes(FILE *file, int64_t last_step)
{
    char part[METRICS_PREFIX_BYTES];
    off_t sound = 0;
    bool at_start = true;
    while (fgets(part, sizeof part, file) != NULL) {
        int64_t step = at_start ? metrics_line_step(part) : 0;
        if (at_start && (step < 0 || step > last_step)) {
            break;
        }
        size_t length = strlen(part);
        at_start = length > 0 && part[length - 1] == '\n';
        if (at_start) {
            sound = ftello(file);
        }
    }
    return sound;
}

static rl_status metrics_cut(const char *path, int64_t last_step)
{
    FILE *file = fopen(path, "re");
    if (file == NULL && errno == ENOENT) {
        return RL_OK;
    }
    if (file == NULL) {
        return rl_fail(RL_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    off_t sound = last_step < 0 ? 0 : metrics_sound_bytes(file, last_step);
    fclose(file);
    if (truncate(path, sound) != 0) {
        return rl_fail(RL_IO, "%s: cannot cut to %jd bytes: %s", path, (intmax_t)sound,
                       strerror(errno));
    }
    return RL_OK;
}

rl_status rl_metrics_open(struct rl_metrics *metrics, const char *path, int64_t last_step)
{
    if (strlen(path) >= sizeof metrics->path) {
        return rl_fail(RL_IO, "%s: path too long", path);
    }
    RL_TRY(metrics_cut(path, last_step));
    FILE *file = fopen(path, "ae");
    if (file == NULL) {
        return rl_fail(RL_IO, "%s: cannot open for writing: %s", path, strerror(errno));
    }
    if (metrics->file != NULL) {
        fclose(metrics->file);
    }
    metrics->file = file;
    snprintf(metrics->path, sizeof metrics->path, "%s", path);
    return RL_OK;
}

rl_status rl_metrics_write(struct rl_metrics *metrics, int64_t step)
{
    rl_status status = RL_OK;
    if (metrics->file != NULL) {
        status = rl_metrics_print(metrics, step, metrics->file);
        if (status == RL_OK && (fputc('\n', metrics->file) == EOF || fflush(metrics->file) != 0)) {
            status = rl_fail(RL_IO, "%s: cannot write step %" PRId64 ": %s", metrics->path, step,
                             strerror(errno));
        }
    }
    rl_metrics_reset(metrics);
    return status;
}

void rl_metrics_markdown(FILE *out)
{
    static const char *const kinds[] = {"last value", "total of the run",
                                        "mean",       "minimum",
                                        "maximum",    "count, p05, p25, p50, p75, p95"};
    fputs("# Metrics\n\nGenerated from `core/metrics.def`. One JSON object a step in "
          "`metrics.jsonl`, first key `step`.\nA metric that got nothing in a step is left out; a "
          "value that is not finite is `null`.\nBeside these: `rewards/NAME/mean` for each reward "
          "function, and `wait/NAME/{seconds,count,max_seconds}` for each\nnamed wait, totals of "
          "the run.\n\n| name | of a step | unit | meaning |\n|---|---|---|---|\n",
          out);
    for (size_t id = 0; id < RL_METRIC_COUNT; id++) {
        const struct metrics_row *row = metrics_row_of(id);
        fprintf(out, "| `%s` | %s | %s | %s |\n", row->name, kinds[row->kind], row->unit,
                row->help);
    }
}
