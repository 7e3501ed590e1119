/* `foresight bench async`: what asynchrony is worth on this machine. The rungs of OLMo 3's table 23
 * (arXiv 2512.13961) on one model, with the same lengths, the same tokens and two roles of one
 * thread each; rounds over all rows, so that other load on the machine meets all of them alike;
 * medians of the rounds. Beside each row what the simulator makes of the measured costs. */
#include "app/bench_async.h"

#include "app/app.h"
#include "app/bench.h"
#include "core/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { BENCH_REPEATS = 3 };
enum { BENCH_COSTS = sizeof(struct bench_costs) / sizeof(double) };

const struct bench_rung bench_rungs[BENCH_RUNGS] = {
    {.row = "a", .title = "synchronous, static batches", .mode = SIMULATE_STATIC},
    {.row = "b", .title = "+ continuous batching", .mode = SIMULATE_DRAIN},
    {.row = "c",
     .title = "+ asynchronous, drained at updates",
     .mode = SIMULATE_DRAIN,
     .ahead = true},
    {.row = "d",
     .title = "+ in flight, paused for the transfer",
     .mode = SIMULATE_PAUSE,
     .ahead = true},
    {.row = "e", .title = "+ slots: no pause", .mode = SIMULATE_SLOTS, .ahead = true},
    {.row = "f",
     .title = "(e) with deltas over the remote path",
     .mode = SIMULATE_SLOTS,
     .ahead = true,
     .remote = true,
     .own_costs = true},
    {.row = "fixed_lag",
     .title = "(e) in the order fixed_lag",
     .mode = SIMULATE_SLOTS,
     .ahead = true,
     .fixed_lag = true,
     .own_costs = true},
};

/* --- running -----------------------------------------------------------------------------------
 */

/* Mean pass and learner costs of the rows of one round in which the roles take turns, or in which
 * they work beside each other, but for those that stand for themselves. */
static struct bench_costs mean_costs(const struct bench_results *results, int round, bool ahead)
{
    double sums[BENCH_COSTS] = {0};
    struct bench_costs mean;
    int rows = 0;
    for (int i = 0; i < BENCH_RUNGS; i++) {
        if (bench_rungs[i].ahead == ahead && !bench_rungs[i].own_costs) {
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
    for (int i = 0; i < BENCH_RUNGS; i++) {
        const struct bench_costs *own = &results->outcomes[i][round].costs;
        struct bench_costs costs =
            bench_rungs[i].own_costs ? *own : mean_costs(results, round, bench_rungs[i].ahead);
        costs.transfer_s = own->transfer_s;
        RL_TRY(bench_row_predict(workload, &bench_rungs[i], &costs, &results->predicted[i][round]));
    }
    return RL_OK;
}

static rl_status run_rounds(const struct bench_workload *workload, bool quiet,
                            struct bench_results *results)
{
    for (int round = 0; round < results->repeats; round++) {
        for (int n = 0; n < BENCH_RUNGS; n++) {
            int i = round % 2 == 0 ? n : BENCH_RUNGS - 1 - n; /* so that a drift meets all alike */
            RL_TRY(bench_row_run(workload, &bench_rungs[i], &results->outcomes[i][round]));
            if (!quiet) {
                fprintf(stderr, "round %d of %d, row %s: %.0f tokens/s\n", round + 1,
                        results->repeats, bench_rungs[i].row,
                        results->outcomes[i][round].tokens_per_second);
            }
        }
        RL_TRY(predict_round(workload, results, round));
    }
    return RL_OK;
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
        &workload->shape, "prompts_per_step=2 samples_per_prompt=2 max_running=8 max_staleness=8 "
                          "active_sampling=1 right_share=0.12 length_median=8 length_ratio=10 "
                          "length_max=80 prompt_tokens=4 prefill_chunk=256 steps=50 "
                          "warmup_steps=8"));
    if (quick) {
        RL_TRY(
            simulate_options_set_all(&workload->shape, "steps=6 warmup_steps=2"));
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
        status = bench_results_print(workload, results, json);
    }
    for (int i = 0; i < BENCH_RUNGS; i++) {
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
