/* `foresight bench decode` and `foresight bench prefill`: the rollout engine alone, completions of
 * forced length, beside what the machine can do at best at that moment. Decode counts the passes
 * from the moment at which every prompt is in until the first sequence ends: one token of each
 * sequence a pass, sampling and log-probs included. Prefill counts all passes of prompts with one
 * new token each. */
#include "app/app.h"
#include "app/bench.h"
#include "app/bench_device.h"
#include "app/bench_model.h"
#include "app/bench_profile.h"

#include "core/clock.h"
#include "core/log.h"
#include "kernels/device.h"
#include "rollout/generator.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DECODE_RUNS = 3, DECODE_CHUNK = 256, DECODE_BATCH_MAX = 65536, DECODE_TOKENS_MAX = 1 << 24 };

struct decode_bench {
    struct bench_machine machine;
    struct bench_model_choice choice;
    enum kernel_dtype kv_dtype;
    bool prefill;
    struct bench_list batches;
    int64_t prompt, new_tokens, group, chunk, runs;
    json_t *lines;
    /* of one line */
    struct model_layout *layout;
    void *image;
    int64_t batch;
    struct rollout_generator *generator;
    bool profiled; /* this run */
};

/* What one run showed. */
struct decode_run {
    double tokens, seconds;
    double passes;                        /* decode: from there until all is done */
    double prompt_tokens, prompt_seconds; /* decode: before the passes that count */
};

struct decode_figures {
    double median, best;  /* tokens a second */
    double prompt_median; /* the same of prompts; decode only */
    double pass_s;        /* decode: of one pass, from the median */
    double weight_bytes, kv_bytes, peak_bytes;
    double pass_bytes, pass_flop; /* a pass; prefill: all of one run */
    double profiled_passes;       /* that the profile is of; prefill: runs */
    struct bench_limits limits;
};

/* --- one run ------------------------------------------------------------------------------------
 */

static rl_status submit_groups(const struct decode_bench *b)
{
    int64_t groups = b->batch / b->group;
    int32_t *prompt = malloc((size_t)b->prompt * sizeof *prompt);
    uint32_t *lengths = malloc((size_t)b->group * sizeof *lengths);
    rl_status status = prompt != NULL && lengths != NULL ? RL_OK : RL_NO_MEMORY;
    for (int64_t i = 0; i < b->group && status == RL_OK; i++) {
        lengths[i] = (uint32_t)b->new_tokens;
    }
    for (int64_t g = 0; g < groups && status == RL_OK; g++) {
        for (int64_t i = 0; i < b->prompt; i++) {
            prompt[i] = (int32_t)((i * i * 131 + i * 7919 + g * 104729) % b->layout->arch.vocab);
        }
        struct rollout_request request = {.ticket = (uint64_t)g,
                                          .prompt_id = (uint64_t)g,
                                          .samples = (uint32_t)b->group,
                                          .prompt = prompt,
                                          .prompt_count = (uint32_t)b->prompt,
                                          .lengths = lengths};
        status = rollout_generator_submit(b->generator, &request);
    }
    free(lengths);
    free(prompt);
    return status;
}

static void take_groups(const struct decode_bench *b)
{
    struct trajectory_group *group = NULL;
    while (rollout_generator_take(b->generator, &group) == RL_OK) {
        trajectory_group_destroy(group);
    }
}

/* Tokens of prompts that the groups need, less each sample's last prompt token, which is fed as the
 * first decode step. */
static double prefix_tokens(const struct decode_bench *b)
{
    return (double)(b->batch / b->group) * (double)(b->prompt - 1);
}

/* Ticks until everything is generated; the clock is read at the two ends of what counts. */
static rl_status run_decode(const struct decode_bench *b, struct decode_run *run)
{
    const struct rollout_counters *now = rollout_generator_counters(b->generator);
    const struct rollout_counters first = *now;
    double begin = rl_clock_now_s(NULL);
    double filled = 0;
    uint64_t before = 0;
    uint64_t passes_before = 0;
    bool busy = true;
    *run = (struct decode_run){0};
    RL_TRY(submit_groups(b));
    while (busy) {
        RL_TRY(rollout_generator_tick(b->generator, &busy));
        double time = rl_clock_now_s(NULL);
        uint64_t sampled = now->sampled_tokens - first.sampled_tokens;
        double prompts = (double)(now->forwarded_tokens - first.forwarded_tokens - sampled);
        bool all_run = now->finished_samples == first.finished_samples;
        if (filled == 0 && all_run && prompts >= prefix_tokens(b)) {
            filled = time;
            before = sampled;
            passes_before = now->passes;
            run->prompt_tokens = prompts;
            run->prompt_seconds = time - begin;
            bench_profile_begin(b->profiled ? b->machine.profile : NULL);
        } else if (filled > 0 && all_run) {
            run->tokens = (double)(sampled - before);
            run->seconds = time - filled;
        }
    }
    run->passes = (double)(now->passes - passes_before);
    take_groups(b);
    if (run->tokens == 0) {
        return rl_fail(RL_INVALID,
                       "bench: the first of %lld sequences ends before the prompts of all are in: "
                       "raise --new or --chunk",
                       (long long)b->batch);
    }
    return RL_OK;
}

static rl_status run_prefill(const struct decode_bench *b, struct decode_run *run)
{
    bool busy = true;
    double begin = rl_clock_now_s(NULL);
    bench_profile_begin(b->profiled ? b->machine.profile : NULL);
    RL_TRY(submit_groups(b));
    while (busy) {
        RL_TRY(rollout_generator_tick(b->generator, &busy));
    }
    *run = (struct decode_run){.tokens = (double)(b->batch / b->group * b->prompt),
                               .seconds = rl_clock_now_s(NULL) - begin};
    take_groups(b);
    return RL_OK;
}

/* --- one line -----------------------------------------------------------------------------------
 */

/* Pages of the sequences once they are whole; a group's prompt is shared but for its last page. */
static double kv_bytes(const struct decode_bench *b)
{
    int64_t shared = (b->prompt - 1) / KERNEL_PAGE_TOKENS;
    int64_t all = (b->prompt + b->new_tokens + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
    int64_t pages = b->batch / b->group * shared + b->batch * (all - shared);
    return (double)pages * (double)model_kv_page_bytes(b->layout);
}

static void decode_cost(const struct decode_bench *b, struct decode_figures *f)
{
    double keys = (double)b->prompt + 0.5 * (double)b->new_tokens;
    double token_bytes = (double)model_kv_page_bytes(b->layout) / KERNEL_PAGE_TOKENS;
    double batch = (double)b->batch;
    f->pass_bytes = bench_model_pass_bytes(b->layout) + batch * keys * token_bytes;
    f->pass_flop =
        batch * (2 * bench_model_active(b->layout) + bench_model_attention_flop(b->layout, keys));
}

/* The head is needed for the last token of each sequence only. */
static void prefill_cost(const struct decode_bench *b, struct decode_figures *f)
{
    const struct model_architecture *arch = &b->layout->arch;
    double head = (double)arch->vocab * (double)arch->width;
    double tokens = (double)(b->batch / b->group) * (double)b->prompt;
    double body = 2 * (bench_model_active(b->layout) - head);
    f->pass_bytes = bench_model_pass_bytes(b->layout);
    f->pass_flop =
        tokens * (body + bench_model_attention_flop(b->layout, 0.5 * (double)b->prompt)) +
        (double)b->batch * 2 * head;
}

static void options_of(const struct decode_bench *b, struct rollout_generator_options *options)
{
    *options = (struct rollout_generator_options){.max_running = (int32_t)b->batch,
                                                  .max_groups = (int32_t)(b->batch / b->group),
                                                  .max_prompt = (int32_t)b->prompt,
                                                  .max_completion = (int32_t)b->new_tokens,
                                                  .prefill_chunk = (int32_t)b->chunk,
                                                  .seed = BENCH_WEIGHT_SEED,
                                                  .sampling = {.temperature = 1, .top_p = 1},
                                                  .stop_strings = "",
                                                  .stop_token_ids = ""};
}

/* The first run only warms up. */
static rl_status run_all(struct decode_bench *b, struct decode_figures *f)
{
    double rates[BENCH_RUNS_MAX];
    double prompt_rates[BENCH_RUNS_MAX];
    struct bench_limits after;
    struct decode_run run = {0};
    for (int64_t i = -1; i < b->runs; i++) {
        if (i == 0) {
            RL_TRY(bench_limits_measure(&b->machine, b->image, b->layout->image_bytes, &f->limits));
        }
        RL_TRY(b->prefill ? run_prefill(b, &run) : run_decode(b, &run));
        if (i >= 0) {
            rates[i] = run.tokens / run.seconds;
            prompt_rates[i] = b->prefill ? 0 : run.prompt_tokens / run.prompt_seconds;
        }
    }
    RL_TRY(bench_limits_measure(&b->machine, b->image, b->layout->image_bytes, &after));
    f->limits = bench_limits_max(&f->limits, &after);
    f->median = bench_median(rates, (size_t)b->runs);
    f->best = rates[b->runs - 1]; /* sorted by now */
    f->prompt_median = bench_median(prompt_rates, (size_t)b->runs);
    f->pass_s = (b->prefill ? run.tokens : (double)b->batch) / f->median;
    b->profiled = b->machine.profile != NULL;
    if (b->profiled) {
        RL_TRY(b->prefill ? run_prefill(b, &run) : run_decode(b, &run));
        f->profiled_passes = b->prefill ? 1 : run.passes;
    }
    b->profiled = false;
    return RL_OK;
}

static rl_status measure(struct decode_bench *b, struct decode_figures *f)
{
    struct model_context context = {
        .layout = b->layout, .kernels = b->machine.table, .pool = b->machine.pool};
    struct rollout_generator_options options;
    options_of(b, &options);
    bench_memory_reset_peak();
    RL_TRY(rollout_generator_create(&context, NULL, &options, &b->generator));
    rollout_generator_set_weights(b->generator, b->image, 0);
    rl_status status = run_all(b, f);
    f->peak_bytes = bench_memory_peak(&b->machine);
    rollout_generator_destroy(b->generator);
    f->weight_bytes = (double)b->layout->image_bytes;
    f->kv_bytes = kv_bytes(b);
    if (b->prefill) {
        prefill_cost(b, f);
    } else {
        decode_cost(b, f);
    }
    return status;
}

/* --- results ------------------------------------------------------------------------------------
 */

static double share(double part, double rate, double seconds)
{
    return rate > 0 ? part / (rate * 1e9) / seconds : 0;
}

static json_t *line_json(const struct decode_bench *b, const struct decode_figures *f)
{
    json_t *line = json_pack(
        "{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f}", "model", b->choice.name,
        "dtype", bench_dtype_name(b->layout->dtype), "kv_dtype", bench_dtype_name(b->kv_dtype),
        "batch", (json_int_t)b->batch, "group", (json_int_t)b->group, "prompt",
        (json_int_t)b->prompt, "new", (json_int_t)b->new_tokens, "chunk", (json_int_t)b->chunk,
        "runs", (json_int_t)b->runs, "tokens_per_second", f->median, "best_tokens_per_second",
        f->best, "prompt_tokens_per_second", b->prefill ? f->median : f->prompt_median);
    json_t *limits = json_pack(
        "{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "pass_microseconds", f->pass_s * 1e6,
        "peak_gflops", f->limits.fma_gflops, "read_gbytes_per_second", f->limits.read_gb_per_s,
        "fma_share", share(f->pass_flop, f->limits.fma_gflops, f->pass_s), "read_share",
        share(f->pass_bytes, f->limits.read_gb_per_s, f->pass_s), "weight_bytes", f->weight_bytes,
        "kv_bytes", f->kv_bytes, "peak_bytes", f->peak_bytes, "memory_ratio",
        f->peak_bytes / (f->weight_bytes + f->kv_bytes));
    if (line == NULL || limits == NULL || json_object_update(line, limits) != 0) {
        json_decref(line);
        line = NULL;
    }
    json_decref(limits);
    return line;
}

static void print_head(const struct decode_bench *b)
{
    const char *what = b->prefill ? "prompts of" : "decode after prompts of";
    printf("%s, %s, %d thread(s), %s, %s %lld tokens, %lld new; keys and values in %s; medians of "
           "%lld runs\n"
           "%-5s %-5s %5s %11s %11s %10s  %-22s  %-22s  %s\n",
           bench_machine_name(&b->machine), b->machine.table->name, b->machine.threads,
           b->choice.name, what, (long long)b->prompt, (long long)b->new_tokens,
           bench_dtype_name(b->kv_dtype), (long long)b->runs, "model", "dtype", "batch", "tokens/s",
           "best", "pass", bench_peak_name(&b->machine), bench_read_name(&b->machine),
           "memory / (weights + KV)");
}

static void print_line(const struct decode_bench *b, const struct decode_figures *f)
{
    double read = share(f->pass_bytes, f->limits.read_gb_per_s, f->pass_s);
    double fma = share(f->pass_flop, f->limits.fma_gflops, f->pass_s);
    printf("%-5s %-5s %5lld %11.1f %11.1f %7.0f us  %4.0f %% of %6.1f GFLOP/s  ", b->choice.name,
           bench_dtype_name(b->layout->dtype), (long long)b->batch, f->median, f->best,
           f->pass_s * 1e6, 100 * fma, f->limits.fma_gflops);
    if (b->prefill) {
        printf("%-22s", "-");
    } else {
        printf("%4.0f %% of %6.1f GB/s    ", 100 * read, f->limits.read_gb_per_s);
    }
    printf("  %.2f (%.1f MB)\n", f->peak_bytes / (f->weight_bytes + f->kv_bytes),
           f->peak_bytes * 1e-6);
    fflush(stdout);
}

static rl_status run_line(struct decode_bench *b)
{
    struct decode_figures figures = {0};
    RL_TRY(measure(b, &figures));
    if (!b->machine.json) {
        print_line(b, &figures);
    }
    json_t *line = line_json(b, &figures);
    bool kept = line != NULL && json_array_append_new(b->lines, line) == 0;
    if (kept) {
        RL_TRY(bench_profile_end(&b->machine, &figures.limits, figures.profiled_passes, line));
    }
    return kept ? RL_OK : rl_fail(RL_NO_MEMORY, "bench: out of memory for the results");
}

/* --- all lines ----------------------------------------------------------------------------------
 */

/* Before anything large is allocated. */
static rl_status check_memory(struct decode_bench *b)
{
    struct rollout_generator_options options;
    double most = 0;
    for (int i = 0; i < b->batches.count; i++) {
        b->batch = b->batches.values[i];
        options_of(b, &options);
        most = fmax(most, (double)rollout_generator_bytes(b->layout, &options).all);
    }
    /* int8 weights are made from an image in fp32 */
    double making = (b->layout->dtype == KERNEL_INT8 ? 8.0 : 4.0) * (double)b->layout->master_count;
    return bench_memory_check(&b->machine, (double)b->layout->image_bytes + fmax(making, most),
                              "this model at the largest batch");
}

static rl_status run_dtype(struct decode_bench *b, enum kernel_dtype dtype)
{
    rl_status status = RL_OK;
    int64_t length = b->prompt + b->new_tokens;
    RL_TRY(bench_model_layout(&b->choice, &b->machine, dtype, length, &b->layout));
    b->layout->kv_dtype = b->kv_dtype;
    RL_TRY_GOTO(check_memory(b), status, out);
    RL_TRY_GOTO(bench_model_image(&b->choice, b->layout, &b->machine, &b->image), status, out);
    for (int i = 0; i < b->batches.count && status == RL_OK; i++) {
        b->batch = b->batches.values[i];
        status = run_line(b);
    }
    bench_model_image_free(b->layout, b->image);
out:
    model_layout_destroy(b->layout);
    return status;
}

static rl_status read_options(struct decode_bench *b, int *argc, char **argv)
{
    RL_TRY(bench_take_device(argc, argv, &b->machine));
    RL_TRY(bench_take_profile(argc, argv, &b->machine));
    RL_TRY(bench_model_choose(argc, argv, &b->choice));
    RL_TRY(bench_take_kv(argc, argv, &b->kv_dtype));
    RL_TRY(bench_take_list(argc, argv, "--batch", DECODE_BATCH_MAX, &b->batches));
    RL_TRY(bench_take_count(argc, argv, "--prompt", DECODE_TOKENS_MAX, &b->prompt));
    if (!b->prefill) {
        RL_TRY(bench_take_count(argc, argv, "--new", DECODE_TOKENS_MAX, &b->new_tokens));
    }
    RL_TRY(bench_take_count(argc, argv, "--group", DECODE_BATCH_MAX, &b->group));
    RL_TRY(bench_take_count(argc, argv, "--chunk", DECODE_TOKENS_MAX, &b->chunk));
    RL_TRY(bench_take_count(argc, argv, "--runs", BENCH_RUNS_MAX, &b->runs));
    RL_TRY(bench_check_groups(&b->batches, b->group));
    return bench_take_end(*argc, argv);
}

static int run_bench(struct decode_bench *b, int argc, char **argv)
{
    const char *name = argv[0];
    int exit_code = APP_USAGE;
    rl_status status = RL_OK;
    RL_TRY_GOTO(bench_machine_open(&argc, argv, &b->machine), status, out);
    RL_TRY_GOTO(read_options(b, &argc, argv), status, out);
    exit_code = APP_FAILED;
    b->lines = json_array();
    if (!b->machine.json) {
        print_head(b);
    }
    for (int i = 0; i < b->choice.dtype_count; i++) {
        RL_TRY_GOTO(run_dtype(b, b->choice.dtypes[i]), status, out);
    }
    if (b->machine.json) {
        RL_TRY_GOTO(bench_json_print(&b->machine, name, json_incref(b->lines)), status, out);
    }
    exit_code = APP_OK;
out:
    json_decref(b->lines);
    bench_machine_close(&b->machine);
    return exit_code;
}

int bench_decode(int argc, char **argv)
{
    struct decode_bench bench = {.batches = {{1, 8, 32, 64}, 4},
                                 .prompt = 64,
                                 .new_tokens = 128,
                                 .group = 1,
                                 .chunk = DECODE_CHUNK,
                                 .runs = DECODE_RUNS};
    return run_bench(&bench, argc, argv);
}

int bench_prefill(int argc, char **argv)
{
    struct decode_bench bench = {.prefill = true,
                                 .batches = {{1, 8}, 2},
                                 .prompt = 512,
                                 .new_tokens = 1,
                                 .group = 1,
                                 .chunk = DECODE_CHUNK,
                                 .runs = DECODE_RUNS};
    return run_bench(&bench, argc, argv);
}
