/* `foresight bench speculation`: the rollout engine without and with guessed tokens, by turns in
 * the same process, on the same prompts; every sample must be the same, bit for bit. How much the
 * text repeats itself follows from the temperature: with random weights the likeliest token soon
 * comes again and again, while samples at temperature 1 are close to noise. Prompts are part of the
 * time.
 */
#include "app/app.h"
#include "app/bench.h"
#include "app/bench_model.h"

#include "core/clock.h"
#include "core/log.h"
#include "kernels/device.h"
#include "rollout/generator.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SPECULATION_RUNS = 5,
    SPECULATION_BATCH_MAX = 4096,
    SPECULATION_TOKENS_MAX = 1 << 20,
    SPECULATION_CHUNK = 256,
    PLAIN = 0,
    GUESSING = 1
};

struct speculation_bench {
    struct bench_machine machine;
    struct bench_model_choice choice;
    struct bench_list batches;
    int64_t prompt, new_tokens, group, runs;
    double temperatures[BENCH_LIST_MAX];
    int temperature_count;
    enum rollout_speculation_mode mode; /* of the guessing side */
    json_t *lines;
    /* of one line */
    struct model_layout *layout;
    void *image;
    int64_t batch;
    double temperature;
};

/* One of the two engines. */
struct speculation_side {
    struct rollout_generator *generator;
    double seconds[BENCH_RUNS_MAX];
    struct trajectory_group **groups; /* of the last run, by ticket */
};

struct speculation_figures {
    double tokens_per_second[2]; /* medians */
    double speedup;              /* median of the runs' ratios */
    double guesses_per_token, acceptance;
    double tokens_per_pass; /* of one sequence */
};

/* --- one run ------------------------------------------------------------------------------------
 */

static rl_status submit_groups(const struct speculation_bench *b, struct rollout_generator *g)
{
    int32_t *prompt = malloc((size_t)b->prompt * sizeof *prompt);
    rl_status status = prompt != NULL ? RL_OK : RL_NO_MEMORY;
    for (int64_t group = 0; group < b->batch / b->group && status == RL_OK; group++) {
        for (int64_t i = 0; i < b->prompt; i++) {
            prompt[i] =
                (int32_t)((i * i * 131 + i * 7919 + group * 104729) % b->layout->arch.vocab);
        }
        struct rollout_request request = {.ticket = (uint64_t)group,
                                          .prompt_id = (uint64_t)group,
                                          .samples = (uint32_t)b->group,
                                          .prompt = prompt,
                                          .prompt_count = (uint32_t)b->prompt};
        status = rollout_generator_submit(g, &request);
    }
    free(prompt);
    return status;
}

static rl_status run_side(const struct speculation_bench *b, struct speculation_side *side,
                          double *seconds)
{
    double begin = rl_clock_now_s(NULL);
    bool busy = true;
    RL_TRY(submit_groups(b, side->generator));
    while (busy) {
        struct trajectory_group *group = NULL;
        RL_TRY(rollout_generator_tick(side->generator, &busy));
        while (rollout_generator_take(side->generator, &group) == RL_OK) {
            trajectory_group_destroy(side->groups[group->ticket]);
            side->groups[group->ticket] = group;
        }
    }
    *seconds = rl_clock_now_s(NULL) - begin;
    return RL_OK;
}

static bool same_sample(const struct trajectory *a, const struct trajectory *b)
{
    size_t count = a->completion_count;
    return count == b->completion_count && a->finish == b->finish &&
           memcmp(a->tokens, b->tokens, (a->prompt_count + count) * sizeof *a->tokens) == 0 &&
           memcmp(a->logprob, b->logprob, count * sizeof *a->logprob) == 0;
}

static rl_status compare_sides(const struct speculation_bench *b,
                               const struct speculation_side sides[2])
{
    for (int64_t g = 0; g < b->batch / b->group; g++) {
        for (int64_t s = 0; s < b->group; s++) {
            if (!same_sample(&sides[PLAIN].groups[g]->samples[s],
                             &sides[GUESSING].groups[g]->samples[s])) {
                return rl_fail(RL_INTERNAL, "bench: group %lld sample %lld differs with guesses",
                               (long long)g, (long long)s);
            }
        }
    }
    return RL_OK;
}

/* --- one line -----------------------------------------------------------------------------------
 */

static struct rollout_generator_options options_of(const struct speculation_bench *b, int side)
{
    return (struct rollout_generator_options){
        .max_running = (int32_t)b->batch,
        .max_groups = (int32_t)(b->batch / b->group),
        .max_prompt = (int32_t)b->prompt,
        .max_completion = (int32_t)b->new_tokens,
        .prefill_chunk = SPECULATION_CHUNK,
        .speculation = side == GUESSING ? b->mode : ROLLOUT_SPECULATION_OFF,
        .seed = BENCH_WEIGHT_SEED,
        .sampling = {.temperature = (float)b->temperature, .top_p = 1},
        .stop_strings = "",
        .stop_token_ids = ""};
}

static rl_status open_side(const struct speculation_bench *b, int which,
                           struct speculation_side *side)
{
    struct model_context context = {
        .layout = b->layout, .kernels = b->machine.table, .pool = b->machine.pool};
    struct rollout_generator_options options = options_of(b, which);
    side->groups = calloc((size_t)(b->batch / b->group), sizeof(struct trajectory_group *));
    if (side->groups == NULL) {
        return rl_fail(RL_NO_MEMORY, "bench: out of memory");
    }
    RL_TRY(rollout_generator_create(&context, NULL, &options, &side->generator));
    rollout_generator_set_weights(side->generator, b->image, 0);
    return RL_OK;
}

static void close_side(const struct speculation_bench *b, struct speculation_side *side)
{
    for (int64_t g = 0; side->groups != NULL && g < b->batch / b->group; g++) {
        trajectory_group_destroy(side->groups[g]);
    }
    free(side->groups);
    rollout_generator_destroy(side->generator);
}

/* Which of the two goes first changes from run to run; the first run only warms up. */
static rl_status run_sides(const struct speculation_bench *b, struct speculation_side sides[2])
{
    for (int64_t run = -1; run < b->runs; run++) {
        for (int turn = 0; turn < 2; turn++) {
            struct speculation_side *side = &sides[(turn + run + 1) % 2];
            double seconds = 0;
            RL_TRY(run_side(b, side, &seconds));
            side->seconds[run < 0 ? 0 : run] = seconds;
        }
        RL_TRY(compare_sides(b, sides));
    }
    return RL_OK;
}

static void summarise(const struct speculation_bench *b, struct speculation_side sides[2],
                      struct speculation_figures *f)
{
    const struct rollout_counters *counters = rollout_generator_counters(sides[GUESSING].generator);
    const struct rl_pass_times *times = &counters->times;
    double ratios[BENCH_RUNS_MAX];
    double tokens = (double)(b->batch * b->new_tokens);
    double guessed = (double)times->guessed_tokens;
    double sampled = (double)counters->sampled_tokens;
    for (int64_t i = 0; i < b->runs; i++) {
        ratios[i] = sides[PLAIN].seconds[i] / sides[GUESSING].seconds[i];
    }
    f->speedup = bench_median(ratios, (size_t)b->runs);
    for (int i = 0; i < 2; i++) {
        f->tokens_per_second[i] = tokens / bench_median(sides[i].seconds, (size_t)b->runs);
    }
    f->guesses_per_token = guessed / sampled;
    f->acceptance = guessed > 0 ? (double)times->right_guesses / guessed : 0;
    f->tokens_per_pass = sampled / (sampled - (double)times->right_guesses);
}

/* --- results ------------------------------------------------------------------------------------
 */

static void print_head(const struct speculation_bench *b)
{
    printf("%s, %s, %d thread(s), %s, prompts of %lld tokens, %lld new, groups of %lld; medians of "
           "%lld runs by turns\n%-5s %-5s %5s %11s  %11s %11s %8s  %10s %10s %11s\n",
           device_cpu_name(), b->machine.table->name, b->machine.threads, b->choice.name,
           (long long)b->prompt, (long long)b->new_tokens, (long long)b->group, (long long)b->runs,
           "model", "dtype", "batch", "temperature", "tokens/s", "guessing", "speed-up", "guesses",
           "right", "tokens/pass");
}

static rl_status keep_line(const struct speculation_bench *b, const struct speculation_figures *f)
{
    const char *dtype = bench_dtype_name(b->layout->dtype);
    if (!b->machine.json) {
        printf("%-5s %-5s %5lld %11g  %11.1f %11.1f %8.3f  %10.3f %8.1f %% %11.2f\n",
               b->choice.name, dtype, (long long)b->batch, b->temperature, f->tokens_per_second[0],
               f->tokens_per_second[1], f->speedup, f->guesses_per_token, 100 * f->acceptance,
               f->tokens_per_pass);
        fflush(stdout);
    }
    json_t *line = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f}",
                             "model", b->choice.name, "dtype", dtype, "batch", (json_int_t)b->batch,
                             "group", (json_int_t)b->group, "prompt", (json_int_t)b->prompt, "new",
                             (json_int_t)b->new_tokens, "temperature", b->temperature,
                             "plain_tokens_per_second", f->tokens_per_second[PLAIN],
                             "tokens_per_second", f->tokens_per_second[GUESSING], "speedup",
                             f->speedup, "guesses_per_token", f->guesses_per_token, "acceptance",
                             f->acceptance, "tokens_per_pass", f->tokens_per_pass);
    bool kept = line != NULL && json_array_append_new(b->lines, line) == 0;
    return kept ? RL_OK : rl_fail(RL_NO_MEMORY, "bench: out of memory for the results");
}

static rl_status run_line(struct speculation_bench *b)
{
    struct speculation_side sides[2] = {{0}, {0}};
    struct speculation_figures figures = {0};
    rl_status status = open_side(b, PLAIN, &sides[PLAIN]);
    if (status == RL_OK) {
        status = open_side(b, GUESSING, &sides[GUESSING]);
    }
    if (status == RL_OK) {
        status = run_sides(b, sides);
    }
    if (status == RL_OK) {
        summarise(b, sides, &figures);
        status = keep_line(b, &figures);
    }
    close_side(b, &sides[PLAIN]);
    close_side(b, &sides[GUESSING]);
    return status;
}

/* --- all lines ----------------------------------------------------------------------------------
 */

/* Before anything large is allocated. */
static rl_status check_memory(struct speculation_bench *b)
{
    double most = 0;
    for (int i = 0; i < b->batches.count; i++) {
        b->batch = b->batches.values[i];
        struct rollout_generator_options options = options_of(b, GUESSING);
        most = fmax(most, 2 * (double)rollout_generator_bytes(b->layout, &options).all);
    }
    double master = 4.0 * (double)b->layout->master_count;
    return bench_memory_check(&b->machine, (double)b->layout->image_bytes + fmax(master, most),
                              "this model at the largest batch, twice");
}

static rl_status run_lines(struct speculation_bench *b)
{
    for (int i = 0; i < b->batches.count; i++) {
        for (int t = 0; t < b->temperature_count; t++) {
            b->batch = b->batches.values[i];
            b->temperature = b->temperatures[t];
            RL_TRY(run_line(b));
        }
    }
    return RL_OK;
}

static rl_status run_dtype(struct speculation_bench *b, enum kernel_dtype dtype)
{
    rl_status status = RL_OK;
    int32_t length = (int32_t)(b->prompt + b->new_tokens);
    RL_TRY(model_layout_create(&b->choice.arch, dtype, length, &b->layout));
    RL_TRY_GOTO(check_memory(b), status, out);
    RL_TRY_GOTO(bench_model_image(&b->choice, b->layout, &b->machine, &b->image), status, out);
    status = run_lines(b);
    bench_model_image_free(b->layout, b->image);
out:
    model_layout_destroy(b->layout);
    return status;
}

static rl_status read_temperatures(struct speculation_bench *b, const char *text)
{
    for (b->temperature_count = 0; text != NULL; b->temperature_count++) {
        char *end = NULL;
        errno = 0;
        double value = strtod(text, &end);
        bool ends = *end == '\0' || *end == ',';
        if (errno != 0 || end == text || !ends || !(value >= 0 && value <= 100) ||
            b->temperature_count == BENCH_LIST_MAX) {
            return rl_fail(RL_INVALID,
                           "bench: --temperature %s: expected up to %d values, 0 to 100", text,
                           BENCH_LIST_MAX);
        }
        b->temperatures[b->temperature_count] = value;
        text = *end == ',' ? end + 1 : NULL;
    }
    return RL_OK;
}

static rl_status read_mode(struct speculation_bench *b, const char *text)
{
    bool always = strcmp(text, "always") == 0;
    if (!always && strcmp(text, "auto") != 0) {
        return rl_fail(RL_INVALID, "bench: --speculation %s: expected auto or always", text);
    }
    b->mode = always ? ROLLOUT_SPECULATION_ALWAYS : ROLLOUT_SPECULATION_AUTO;
    return RL_OK;
}

static rl_status read_options(struct speculation_bench *b, int *argc, char **argv)
{
    const char *temperatures = "0,0.2,1";
    const char *mode = "auto";
    RL_TRY(bench_model_choose(argc, argv, &b->choice));
    RL_TRY(bench_take_list(argc, argv, "--batch", SPECULATION_BATCH_MAX, &b->batches));
    RL_TRY(bench_take_count(argc, argv, "--prompt", SPECULATION_TOKENS_MAX, &b->prompt));
    RL_TRY(bench_take_count(argc, argv, "--new", SPECULATION_TOKENS_MAX, &b->new_tokens));
    RL_TRY(bench_take_count(argc, argv, "--group", SPECULATION_BATCH_MAX, &b->group));
    RL_TRY(bench_take_count(argc, argv, "--runs", BENCH_RUNS_MAX, &b->runs));
    RL_TRY(app_take_value(argc, argv, "--temperature", &temperatures));
    RL_TRY(read_temperatures(b, temperatures));
    RL_TRY(app_take_value(argc, argv, "--speculation", &mode));
    RL_TRY(read_mode(b, mode));
    RL_TRY(bench_check_groups(&b->batches, b->group));
    return bench_take_end(*argc, argv);
}

int bench_speculation(int argc, char **argv)
{
    struct speculation_bench b = {.batches = {{1, 8, 64}, 3},
                                  .prompt = 64,
                                  .new_tokens = 256,
                                  .group = 1,
                                  .runs = SPECULATION_RUNS};
    int exit_code = APP_USAGE;
    rl_status status = RL_OK;
    RL_TRY_GOTO(bench_machine_open(&argc, argv, &b.machine), status, out);
    RL_TRY_GOTO(read_options(&b, &argc, argv), status, out);
    exit_code = APP_FAILED;
    b.lines = json_array();
    if (!b.machine.json) {
        print_head(&b);
    }
    for (int i = 0; i < b.choice.dtype_count; i++) {
        RL_TRY_GOTO(run_dtype(&b, b.choice.dtypes[i]), status, out);
    }
    if (b.machine.json) {
        RL_TRY_GOTO(bench_json_print(&b.machine, "speculation", json_incref(b.lines)), status, out);
    }
    exit_code = APP_OK;
out:
    json_decref(b.lines);
    bench_machine_close(&b.machine);
    return exit_code;
}
