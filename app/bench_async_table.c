/* What the rounds of `foresight bench async` showed: medians, as a table or as JSON. */
#include "app/bench_async.h"
#include "core/log.h"
#include "kernels/device.h"

#include <jansson.h>
#include <stdlib.h>

enum { RUNG_E = 4 };

/* Medians over the repeats; gaps of all repeats together. */
struct bench_line {
    double tokens_per_second, ratio, predicted, predicted_ratio;
    double learner_idle, rollout_idle, learner_weight_wait, rollout_weight_wait;
    double ratio_to_e;
    double staleness_mean, pass_us, bytes_per_update;
    double gap_p50, gap_p99, gap_max; /* us */
    size_t gaps;
    struct bench_costs costs; /* of one of the rounds */
};

/* --- medians -----------------------------------------------------------------------------------
 */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof *values, compare_doubles);
    return count % 2 == 1 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

/* Median over the repeats of the field at `offset` of a row's outcomes. */
static double median_of(const struct bench_results *results, int row, size_t offset)
{
    double values[BENCH_REPEATS_MAX];
    for (int i = 0; i < results->repeats; i++) {
        values[i] =
            *(const double *)(const void *)((const char *)&results->outcomes[row][i] + offset);
    }
    return median(values, (size_t)results->repeats);
}

static rl_status gap_line(const struct bench_results *results, int row, struct bench_line *line)
{
    size_t count = 0;
    for (int i = 0; i < results->repeats; i++) {
        count += results->outcomes[row][i].gap_count;
    }
    double *gaps = calloc(count + 1, sizeof *gaps);
    if (gaps == NULL) {
        return rl_fail(RL_NO_MEMORY, "bench: no memory for %zu gaps", count);
    }
    size_t at = 0;
    for (int i = 0; i < results->repeats; i++) {
        const struct bench_outcome *outcome = &results->outcomes[row][i];
        for (size_t j = 0; j < outcome->gap_count; j++) {
            gaps[at++] = outcome->gap_us[j];
        }
    }
    qsort(gaps, count, sizeof *gaps, compare_doubles);
    line->gaps = count;
    line->gap_p50 = gaps[count / 2];
    line->gap_p99 = gaps[count * 99 / 100];
    line->gap_max = count > 0 ? gaps[count - 1] : 0;
    free(gaps);
    return RL_OK;
}

#define MEDIAN(field) median_of(results, row, offsetof(struct bench_outcome, field))
static rl_status make_line(const struct bench_results *results, int row, struct bench_line *line)
{
    double ratios[BENCH_REPEATS_MAX];
    double predicted[BENCH_REPEATS_MAX];
    double predicted_ratios[BENCH_REPEATS_MAX];
    double ratios_to_e[BENCH_REPEATS_MAX];
    for (int i = 0; i < results->repeats; i++) {
        double rate = results->outcomes[row][i].tokens_per_second;
        ratios[i] = rate / results->outcomes[0][i].tokens_per_second;
        ratios_to_e[i] = rate / results->outcomes[RUNG_E][i].tokens_per_second;
        predicted[i] = results->predicted[row][i];
        predicted_ratios[i] = predicted[i] / rate;
    }
    size_t count = (size_t)results->repeats;
    *line = (struct bench_line){.tokens_per_second = MEDIAN(tokens_per_second),
                                .ratio = median(ratios, count),
                                .ratio_to_e = median(ratios_to_e, count),
                                .predicted = median(predicted, count),
                                .predicted_ratio = median(predicted_ratios, count),
                                .learner_idle = MEDIAN(learner_idle),
                                .rollout_idle = MEDIAN(rollout_idle),
                                .learner_weight_wait = MEDIAN(learner_weight_wait),
                                .rollout_weight_wait = MEDIAN(rollout_weight_wait),
                                .staleness_mean = MEDIAN(staleness_mean),
                                .pass_us = MEDIAN(pass_median_us),
                                .bytes_per_update = MEDIAN(bytes_per_update)};
    line->costs = results->outcomes[row][results->repeats / 2].costs;
    return gap_line(results, row, line);
}
#undef MEDIAN

/* --- printing ----------------------------------------------------------------------------------
 */

static void print_heading(const struct bench_workload *w, int repeats)
{
    const struct simulate_options *s = &w->shape;
    printf(
        "%s, %s, %s clock; %.1f M parameters, image %.1f MB; %g x %g samples a step, lengths\n"
        "log-normal with median %g and p99 %g x as long, capped at %g; %g %% of samples right%s;\n"
        "%g sequences decoded together, eta %g; %g steps after %g to warm up; medians of %d "
        "rounds\n\n",
        device_cpu_name(), w->kernels->name, w->cpu_clock ? "cpu" : "wall",
        (double)w->layout->param_count * 1e-6, (double)w->layout->image_bytes * 1e-6,
        s->prompts_per_step, s->samples_per_prompt, s->length_median, s->length_ratio,
        s->length_max, 100 * s->right_share, s->active_sampling > 0 ? ", active sampling" : "",
        s->max_running, s->max_staleness, s->steps, s->warmup_steps, repeats);
    printf("%-41s %8s %5s %5s %7s %7s %14s %20s %7s %9s %5s %9s %5s\n", "", "tokens/s", "x (a)",
           "x (e)", "learner", "rollout", "weight wait %", "switch gap us", "pass us", "bytes per",
           "stale", "predicted", "ratio");
    printf("%-41s %8s %5s %5s %7s %7s %14s %20s %7s %9s\n", "", "", "", "", "idle", "idle",
           "learn / roll", "p50 / p99 / max", "median", "update");
}

static void print_line(const struct bench_rung *rung, const struct bench_line *l)
{
    char gap[64] = "-";
    char wait[64];
    char title[64];
    snprintf(title, sizeof title, "(%s) %s", rung->row, rung->title);
    snprintf(wait, sizeof wait, "%.2f / %.2f", 100 * l->learner_weight_wait,
             100 * l->rollout_weight_wait);
    if (l->gaps > 0) {
        snprintf(gap, sizeof gap, "%.0f / %.0f / %.0f", l->gap_p50, l->gap_p99, l->gap_max);
    }
    printf("%-41s %8.0f %5.2f %5.2f %5.1f %% %5.1f %% %14s %20s %7.0f %9.0f %5.2f %9.0f %5.2f\n",
           title, l->tokens_per_second, l->ratio, l->ratio_to_e, 100 * l->learner_idle,
           100 * l->rollout_idle, wait, gap, l->pass_us, l->bytes_per_update, l->staleness_mean,
           l->predicted, l->predicted_ratio);
}

static json_t *json_line(const struct bench_rung *rung, const struct bench_line *l)
{
    const struct bench_costs *c = &l->costs;
    json_t *gap = json_pack("{s:f, s:f, s:f, s:I}", "p50", l->gap_p50, "p99", l->gap_p99, "max",
                            l->gap_max, "count", (json_int_t)l->gaps);
    json_t *costs =
        json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "pass_s", c->pass_s, "sequence_s",
                  c->sequence_s, "context_token_s", c->context_token_s, "prefill_token_s",
                  c->prefill_token_s, "train_s", c->train_s, "train_token_s", c->train_token_s,
                  "publish_s", c->publish_s, "transfer_s", c->transfer_s);
    return json_pack(
        "{s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:o, s:f, s:f, s:o}", "row",
        rung->row, "title", rung->title, "tokens_per_second", l->tokens_per_second, "ratio",
        l->ratio, "ratio_to_e", l->ratio_to_e, "learner_idle", l->learner_idle, "rollout_idle",
        l->rollout_idle, "learner_weight_wait", l->learner_weight_wait, "rollout_weight_wait",
        l->rollout_weight_wait, "staleness_mean", l->staleness_mean, "pass_us", l->pass_us,
        "bytes_per_update", l->bytes_per_update, "switch_gap_us", gap,
        "predicted_tokens_per_second", l->predicted, "predicted_ratio", l->predicted_ratio, "costs",
        costs);
}

rl_status bench_results_print(const struct bench_workload *workload,
                              const struct bench_results *results, bool json)
{
    json_t *rows = json_array();
    rl_status status = RL_OK;
    if (!json) {
        print_heading(workload, results->repeats);
    }
    for (int i = 0; i < BENCH_RUNGS; i++) {
        struct bench_line line;
        RL_TRY_GOTO(make_line(results, i, &line), status, done);
        if (!json) {
            print_line(&bench_rungs[i], &line);
        } else if (json_array_append_new(rows, json_line(&bench_rungs[i], &line)) != 0) {
            status = rl_fail(RL_NO_MEMORY, "bench: no memory for the results");
            goto done;
        }
    }
    if (json) {
        json_t *out =
            json_pack("{s:s, s:s, s:s, s:i, s:O}", "cpu", device_cpu_name(), "isa",
                      workload->kernels->name, "clock", workload->cpu_clock ? "cpu" : "wall",
                      "repeats", results->repeats, "rows", rows);
        if (out == NULL || json_dumpf(out, stdout, JSON_COMPACT) != 0) {
            status = rl_fail(RL_IO, "bench: cannot write the results");
        }
        json_decref(out);
        putchar('\n');
    }
done:
    json_decref(rows);
    return status;
}
