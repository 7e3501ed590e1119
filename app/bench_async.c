/* `foresight bench async`: what asynchrony is worth on this machine. The rungs of OLMo 3's table 23
 * (arXiv 2512.13961) on one model, with the same lengths, the same tokens and two roles of one
 * thread each; rounds over all rows, so that other load on the machine meets all of them alike;
 * medians of the rounds. Beside each row what the simulator makes of the measured costs. */
#include "app/bench_async.h"

#include "app/app.h"
#include "app/bench.h"
#include "core/log.h"
#include "kernels/device.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { BENCH_REPEATS = 3, BENCH_REPEATS_MAX = 100 };
enum { BENCH_COSTS = sizeof(struct bench_costs) / sizeof(double) };

static const struct bench_rung rungs[] = {
    {"a", "synchronous, static batches", SIMULATE_STATIC, false},
    {"b", "+ continuous batching", SIMULATE_DRAIN, false},
    {"c", "+ asynchronous, drained at updates", SIMULATE_DRAIN, true},
    {"d", "+ in flight, paused for the transfer", SIMULATE_PAUSE, true},
    {"e", "+ slots: no pause", SIMULATE_SLOTS, true},
};
enum { RUNGS = sizeof rungs / sizeof rungs[0] };

struct bench_results {
    int repeats;
    struct bench_outcome outcomes[RUNGS][BENCH_REPEATS_MAX];
    double predicted[RUNGS][BENCH_REPEATS_MAX]; /* tokens a second */
};

/* Medians over the repeats; gaps of all repeats together. */
struct bench_line {
    double tokens_per_second, ratio, predicted, predicted_ratio;
    double learner_idle, rollout_idle, learner_weight_wait, rollout_weight_wait;
    double staleness_mean, pass_us, bytes_per_update;
    double gap_p50, gap_p99, gap_max; /* us */
    size_t gaps;
    struct bench_costs costs; /* of one of the rounds */
};

/* --- running -----------------------------------------------------------------------------------
 */

/* Mean pass and learner costs of the rows of one round in which the roles take turns, or in which
 * they work beside each other. */
static struct bench_costs mean_costs(const struct bench_results *results, int round, bool ahead)
{
    double sums[BENCH_COSTS] = {0};
    struct bench_costs mean;
    int rows = 0;
    for (int i = 0; i < RUNGS; i++) {
        if (rungs[i].ahead == ahead) {
            const double *costs = (const double *)&results->outcomes[i][round].costs;
            for (size_t j = 0; j < BENCH_COSTS; j++) {
                sums[j] += costs[j];
            }
            rows++;
        }
    }
    for (size_t j = 0; j < BENCH_COSTS; j++) {
        sums[j] /= rows;
    }
    memcpy(&mean, sums, sizeof mean);
    return mean;
}

static rl_status predict_round(const struct bench_workload *workload, struct bench_results *results,
                               int round)
{
    for (int i = 0; i < RUNGS; i++) {
        struct bench_costs costs = mean_costs(results, round, rungs[i].ahead);
        costs.transfer_s = results->outcomes[i][round].costs.transfer_s;
        RL_TRY(bench_row_predict(workload, &rungs[i], &costs, &results->predicted[i][round]));
    }
    return RL_OK;
}

static rl_status run_rounds(const struct bench_workload *workload, bool quiet,
                            struct bench_results *results)
{
    for (int round = 0; round < results->repeats; round++) {
        for (int i = 0; i < RUNGS; i++) {
            RL_TRY(bench_row_run(workload, &rungs[i], &results->outcomes[i][round]));
            if (!quiet) {
                fprintf(stderr, "round %d of %d, row %s: %.0f tokens/s\n", round + 1,
                        results->repeats, rungs[i].row,
                        results->outcomes[i][round].tokens_per_second);
            }
        }
        RL_TRY(predict_round(workload, results, round));
    }
    return RL_OK;
}

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
    for (int i = 0; i < results->repeats; i++) {
        double rate = results->outcomes[row][i].tokens_per_second;
        ratios[i] = rate / results->outcomes[0][i].tokens_per_second;
        predicted[i] = results->predicted[row][i];
        predicted_ratios[i] = predicted[i] / rate;
    }
    size_t count = (size_t)results->repeats;
    *line = (struct bench_line){.tokens_per_second = MEDIAN(tokens_per_second),
                                .ratio = median(ratios, count),
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
    printf("%s, %s; %.1f M parameters, image %.1f MB; %g x %g samples a step, lengths log-normal\n"
           "with median %g and p99 %g x as long, capped at %g; %g sequences decoded together,\n"
           "eta %g; %g steps after %g to warm up; medians of %d rounds\n\n",
           device_cpu_name(), w->kernels->name, (double)w->layout->param_count * 1e-6,
           (double)w->layout->image_bytes * 1e-6, s->prompts_per_step, s->samples_per_prompt,
           s->length_median, s->length_ratio, s->length_max, s->max_running, s->max_staleness,
           s->steps, s->warmup_steps, repeats);
    printf("%-40s %9s %6s %8s %8s %24s %8s %9s %6s %10s %6s\n", "", "tokens/s", "x (a)", "learner",
           "rollout", "switch gap us", "pass us", "bytes per", "stale", "predicted", "ratio");
    printf("%-40s %9s %6s %8s %8s %24s %8s %9s\n", "", "", "", "idle", "idle", "p50 / p99 / max",
           "median", "update");
}

static void print_line(const struct bench_rung *rung, const struct bench_line *l)
{
    char gap[64] = "-";
    if (l->gaps > 0) {
        snprintf(gap, sizeof gap, "%.0f / %.0f / %.0f", l->gap_p50, l->gap_p99, l->gap_max);
    }
    printf("(%s) %-36s %9.0f %6.2f %6.1f %% %6.1f %% %24s %8.0f %9.0f %6.2f %10.0f %6.2f\n",
           rung->row, rung->title, l->tokens_per_second, l->ratio, 100 * l->learner_idle,
           100 * l->rollout_idle, gap, l->pass_us, l->bytes_per_update, l->staleness_mean,
           l->predicted, l->predicted_ratio);
}

static json_t *json_line(const struct bench_rung *rung, const struct bench_line *l)
{
    const struct bench_costs *c = &l->costs;
    json_t *gap = json_pack("{s:f, s:f, s:f, s:I}", "p50", l->gap_p50, "p99", l->gap_p99, "max",
                            l->gap_max, "count", (json_int_t)l->gaps);
    json_t *costs = json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "pass_s", c->pass_s,
                              "sequence_s", c->sequence_s, "context_token_s", c->context_token_s,
                              "prefill_token_s", c->prefill_token_s, "train_s", c->train_s,
                              "train_token_s", c->train_token_s, "transfer_s", c->transfer_s);
    return json_pack("{s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:o, s:f, s:f, s:o}",
                     "row", rung->row, "title", rung->title, "tokens_per_second",
                     l->tokens_per_second, "ratio", l->ratio, "learner_idle", l->learner_idle,
                     "rollout_idle", l->rollout_idle, "learner_weight_wait", l->learner_weight_wait,
                     "rollout_weight_wait", l->rollout_weight_wait, "staleness_mean",
                     l->staleness_mean, "pass_us", l->pass_us, "bytes_per_update",
                     l->bytes_per_update, "switch_gap_us", gap, "predicted_tokens_per_second",
                     l->predicted, "predicted_ratio", l->predicted_ratio, "costs", costs);
}

static rl_status print_results(const struct bench_workload *workload,
                               const struct bench_results *results, bool json)
{
    json_t *rows = json_array();
    rl_status status = RL_OK;
    if (!json) {
        print_heading(workload, results->repeats);
    }
    for (int i = 0; i < RUNGS; i++) {
        struct bench_line line;
        RL_TRY_GOTO(make_line(results, i, &line), status, done);
        if (!json) {
            print_line(&rungs[i], &line);
        } else if (json_array_append_new(rows, json_line(&rungs[i], &line)) != 0) {
            status = rl_fail(RL_NO_MEMORY, "bench: no memory for the results");
            goto done;
        }
    }
    if (json) {
        json_t *out = json_pack("{s:s, s:s, s:i, s:O}", "cpu", device_cpu_name(), "isa",
                                workload->kernels->name, "repeats", results->repeats, "rows", rows);
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

/* --- the command -------------------------------------------------------------------------------
 */

static rl_status parse_repeats(const char *text, int *out)
{
    char *end = NULL;
    errno = 0;
    long count = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || count < 1 || count > BENCH_REPEATS_MAX) {
        return rl_fail(RL_INVALID, "bench: --repeats %s: expected 1 to %d", text,
                       BENCH_REPEATS_MAX);
    }
    *out = (int)count;
    return RL_OK;
}

static rl_status set_shape(struct bench_workload *workload, bool quick, int argc, char **argv)
{
    RL_TRY(simulate_options_set_all(
        &workload->shape, "prompts_per_step=2 samples_per_prompt=6 max_running=6 max_staleness=2 "
                          "length_median=40 length_ratio=10 length_max=400 prompt_tokens=4 "
                          "prefill_chunk=256 steps=10 warmup_steps=2"));
    if (quick) {
        RL_TRY(simulate_options_set_all(&workload->shape,
                                        "steps=4 warmup_steps=1 length_median=10 length_max=100"));
    }
    for (int i = 1; i < argc; i++) {
        RL_TRY(simulate_options_set(&workload->shape, argv[i]));
    }
    return RL_OK;
}

static rl_status run(struct bench_workload *workload, struct bench_results *results, bool json)
{
    rl_status status = run_rounds(workload, json, results);
    if (status == RL_OK) {
        status = print_results(workload, results, json);
    }
    for (int i = 0; i < RUNGS; i++) {
        for (int j = 0; j < results->repeats; j++) {
            bench_outcome_fini(&results->outcomes[i][j]);
        }
    }
    return status;
}

int bench_async(int argc, char **argv)
{
    const char *repeats = NULL;
    const char *clock = "wall";
    bool json = app_take_flag(&argc, argv, "--json");
    bool quick = app_take_flag(&argc, argv, "--quick");
    struct bench_workload workload = {0};
    struct bench_results *results = calloc(1, sizeof *results);
    rl_status status = RL_OK;
    int exit_code = APP_FAILED;
    if (results == NULL) {
        return APP_FAILED;
    }
    results->repeats = quick ? 1 : BENCH_REPEATS;
    status = app_take_value(&argc, argv, "--repeats", &repeats);
    if (status == RL_OK) {
        status = app_take_value(&argc, argv, "--clock", &clock);
    }
    bool cpu_clock = strcmp(clock, "cpu") == 0;
    if (status == RL_OK && !cpu_clock && strcmp(clock, "wall") != 0) {
        status = rl_fail(RL_INVALID, "bench: --clock %s: expected wall or cpu", clock);
    }
    if (status == RL_OK && repeats != NULL) {
        status = parse_repeats(repeats, &results->repeats);
    }
    if (status != RL_OK) {
        free(results);
        return APP_USAGE;
    }
    RL_TRY_GOTO(bench_workload_init(&workload), status, done);
    workload.cpu_clock = cpu_clock;
    status = set_shape(&workload, quick, argc, argv);
    if (status != RL_OK) {
        exit_code = APP_USAGE;
        goto done;
    }
    exit_code = run(&workload, results, json) == RL_OK ? APP_OK : APP_FAILED;
done:
    bench_workload_fini(&workload);
    free(results);
    return exit_code;
}
