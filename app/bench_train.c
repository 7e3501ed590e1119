/* `foresight bench train`: the learner alone. One step is what a run's learner does with admitted
 * groups: packed forward, objective, backward, clipping, AdamW and the publish cast, over sequences
 * of which every token but the first is a target. Beside it what the machine can do at best at that
 * moment, and the memory that the footprint promises. */
#include "app/app.h"
#include "app/bench.h"
#include "app/bench_device.h"
#include "app/bench_model.h"
#include "app/bench_profile.h"

#include "core/clock.h"
#include "core/config.h"
#include "core/log.h"
#include "kernels/device.h"
#include "model/forward.h"
#include "trainer/learner.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TRAIN_RUNS = 5, TRAIN_TOKENS_MAX = 1 << 26, TRAIN_GROUP = 2 };

struct train_bench {
    struct bench_machine machine;
    struct bench_model_choice choice;
    struct rl_config config;
    struct collective *alone;
    enum kernel_dtype kv_dtype;
    int64_t tokens, sequence, microbatch, runs;
    json_t *lines;
    /* of one line */
    struct model_layout *layout;
    struct learner *learner;
    struct trajectory_group **groups; /* [group_count] */
    uint32_t group_count;
};

struct train_figures {
    double median, best;                 /* tokens a second */
    double gflops;                       /* from the median */
    double forward_backward_s, update_s; /* medians */
    double footprint_bytes, peak_bytes;
    struct bench_limits limits;
};

/* --- what is trained on -------------------------------------------------------------------------
 */

/* A prompt of one token, then as many completion tokens as are fed. */
static rl_status fill_sample(const struct train_bench *b, struct trajectory *sample, int64_t number)
{
    uint32_t count = (uint32_t)b->sequence;
    int32_t *tokens = malloc(((size_t)count + 1) * sizeof *tokens);
    float *logprob = malloc((size_t)count * sizeof *logprob);
    uint32_t *version = calloc(count, sizeof *version);
    rl_status status = tokens && logprob && version ? RL_OK : RL_NO_MEMORY;
    for (int64_t i = 0; i <= count && status == RL_OK; i++) {
        tokens[i] = (int32_t)((i * i * 131 + i * 7919 + number * 104729) % b->layout->arch.vocab);
    }
    for (uint32_t i = 0; i < count && status == RL_OK; i++) {
        logprob[i] = -logf((float)b->layout->arch.vocab);
    }
    if (status == RL_OK) {
        status = trajectory_set_tokens(sample, tokens, logprob, version, 1, count);
    }
    free(version);
    free(logprob);
    free(tokens);
    sample->sample_index = (uint32_t)(number % TRAIN_GROUP);
    sample->finish = RL_FINISH_STOP;
    sample->reward_valid = true;
    sample->reward = (float)(number % TRAIN_GROUP);
    return status;
}

static rl_status make_groups(struct train_bench *b)
{
    b->group_count = (uint32_t)(b->tokens / b->sequence / TRAIN_GROUP);
    b->groups = calloc(b->group_count, sizeof(*b->groups));
    if (b->groups == NULL) {
        return rl_fail(RL_NO_MEMORY, "bench: out of memory");
    }
    for (uint32_t g = 0; g < b->group_count; g++) {
        RL_TRY(trajectory_group_create(TRAIN_GROUP, &b->groups[g]));
        b->groups[g]->ticket = b->groups[g]->prompt_id = g;
        for (uint32_t i = 0; i < TRAIN_GROUP; i++) {
            RL_TRY(fill_sample(b, &b->groups[g]->samples[i], g * TRAIN_GROUP + i));
        }
    }
    return RL_OK;
}

static void free_groups(struct train_bench *b)
{
    for (uint32_t g = 0; b->groups != NULL && g < b->group_count; g++) {
        trajectory_group_destroy(b->groups[g]);
    }
    free(b->groups);
    b->groups = NULL;
}

/* --- the learner --------------------------------------------------------------------------------
 */

/* The ratio is never clipped: every token is back-propagated. */
static rl_status set_options(struct train_bench *b)
{
    char microbatch[64];
    const char *const fixed[] = {"loss.loss_type=grpo",
                                 "loss.epsilon_low=1000",
                                 "loss.epsilon_high=1000",
                                 "loss.beta=0",
                                 "optimizer.learning_rate=1e-6",
                                 "optimizer.updates_per_step=1",
                                 microbatch};
    RL_TRY(rl_config_init(&b->config));
    snprintf(microbatch, sizeof microbatch, "optimizer.max_tokens_per_microbatch=%lld",
             (long long)b->microbatch);
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        RL_TRY(rl_config_override(&b->config, fixed[i]));
    }
    return RL_OK;
}

/* Masters, gradients, moments and the image: what grows with the vocabulary as it must. */
static double weight_bytes(const struct train_bench *b)
{
    return (double)learner_bytes(b->layout, &b->config, 1).all + (double)b->layout->image_bytes;
}

/* What `train --dry-run` prints for a learner, its image and one micro-batch's caches. */
static double footprint(const struct train_bench *b)
{
    int64_t packed = b->tokens < b->microbatch ? b->tokens : b->microbatch;
    packed = packed / b->sequence * b->sequence;
    int32_t pages = model_packing_pages(packed, packed / b->sequence);
    return weight_bytes(b) +
           (double)model_workspace_bytes(b->layout, packed, optimizer_keep(&b->config)) +
           (double)pages * (double)model_kv_page_bytes(b->layout);
}

static rl_status open_learner(struct train_bench *b)
{
    struct learner_args args = {.config = &b->config,
                                .layout = b->layout,
                                .kernels = b->machine.table,
                                .pool = b->machine.pool,
                                .collective = b->alone};
    RL_TRY(bench_model_master(&b->choice, b->layout, &b->machine, &args.master));
    RL_TRY(learner_create(&args, &b->learner));
    return learner_publish_first(b->learner, 0);
}

/* One more step for the profile, if there is one. */
static rl_status profile_step(struct train_bench *b)
{
    struct learner_report report;
    if (b->machine.profile == NULL) {
        return RL_OK;
    }
    bench_profile_begin(b->machine.profile);
    RL_TRY(learner_step(b->learner, b->groups, b->group_count, (uint64_t)(b->runs + 2), &report));
    return learner_publish(b->learner, &report);
}

/* The first step only warms up. */
static rl_status run_steps(struct train_bench *b, struct train_figures *f)
{
    double rates[BENCH_RUNS_MAX];
    double passes[BENCH_RUNS_MAX];
    double updates[BENCH_RUNS_MAX];
    struct learner_report report;
    struct bench_limits after;
    for (int64_t i = -1; i < b->runs; i++) {
        if (i == 0) {
            RL_TRY(bench_limits_measure(&b->machine, learner_image(b->learner),
                                        b->layout->image_bytes, &f->limits));
        }
        double begin = rl_clock_now_s(NULL);
        RL_TRY(learner_step(b->learner, b->groups, b->group_count, (uint64_t)(i + 2), &report));
        RL_TRY(learner_publish(b->learner, &report));
        double seconds = rl_clock_now_s(NULL) - begin;
        if (report.updates != 1) {
            return rl_fail(RL_NONFINITE, "bench: the learner made no update");
        }
        if (i >= 0) {
            rates[i] = (double)report.tokens / seconds;
            passes[i] = report.forward_backward_s;
            updates[i] = report.update_s + report.publish_s;
        }
    }
    RL_TRY(bench_limits_measure(&b->machine, learner_image(b->learner), b->layout->image_bytes,
                                &after));
    f->limits = bench_limits_max(&f->limits, &after);
    f->median = bench_median(rates, (size_t)b->runs);
    f->best = rates[b->runs - 1]; /* sorted by now */
    f->peak_bytes = bench_memory_peak(&b->machine);
    f->forward_backward_s = bench_median(passes, (size_t)b->runs);
    f->update_s = bench_median(updates, (size_t)b->runs);
    return profile_step(b);
}

static rl_status measure(struct train_bench *b, struct train_figures *f)
{
    rl_status status = RL_OK;
    f->footprint_bytes = footprint(b);
    RL_TRY(bench_memory_check(&b->machine, f->footprint_bytes, "training this model"));
    bench_memory_reset_peak();
    RL_TRY_GOTO(make_groups(b), status, out);
    RL_TRY_GOTO(open_learner(b), status, out);
    RL_TRY_GOTO(run_steps(b, f), status, out);
    double keys = 0.5 * (double)b->sequence;
    double flop =
        6 * bench_model_active(b->layout) + 3 * bench_model_attention_flop(b->layout, keys);
    f->gflops = f->median * flop * 1e-9;
out:
    learner_destroy(b->learner);
    b->learner = NULL;
    free_groups(b);
    return status;
}

/* --- results ------------------------------------------------------------------------------------
 */

/* Of the GPU's data sheet; 0 where it is not known. */
static double sheet_share(const struct train_bench *b, const struct train_figures *f)
{
    double sheet = b->machine.device != NULL ? bench_device_sheet_gflops(b->machine.device) : 0;
    return sheet > 0 ? f->gflops / sheet : 0;
}

static double fma_share(const struct train_figures *f)
{
    return f->limits.fma_gflops > 0 ? f->gflops / f->limits.fma_gflops : 0;
}

static json_t *line_json(const struct train_bench *b, const struct train_figures *f)
{
    json_t *line = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:f, s:f, s:f}", "model",
                             b->choice.name, "dtype", bench_dtype_name(b->layout->dtype), "tokens",
                             (json_int_t)b->group_count * TRAIN_GROUP * b->sequence, "sequence",
                             (json_int_t)b->sequence, "microbatch", (json_int_t)b->microbatch,
                             "runs", (json_int_t)b->runs, "tokens_per_second", f->median,
                             "best_tokens_per_second", f->best, "gflops", f->gflops);
    json_t *rest = json_pack(
        "{s:i, s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "vocab",
        b->layout->arch.vocab, "kv_dtype", bench_dtype_name(b->kv_dtype), "peak_gflops",
        f->limits.fma_gflops, "read_gbytes_per_second", f->limits.read_gb_per_s, "fma_share",
        fma_share(f), "sheet_share", sheet_share(b, f), "forward_backward_seconds",
        f->forward_backward_s, "update_seconds", f->update_s, "footprint_bytes", f->footprint_bytes,
        "peak_bytes", f->peak_bytes, "beside_weights_bytes", f->peak_bytes - weight_bytes(b),
        "memory_ratio", f->peak_bytes / f->footprint_bytes);
    if (line == NULL || rest == NULL || json_object_update(line, rest) != 0) {
        json_decref(line);
        line = NULL;
    }
    json_decref(rest);
    return line;
}

static void print_head(const struct train_bench *b)
{
    printf("%s, %s, %d thread(s): %lld tokens a step in sequences of %lld, medians of %lld steps\n"
           "%-5s %-5s %10s %10s %9s  %-24s %9s %9s  %s\n",
           bench_machine_name(&b->machine), b->machine.table->name, b->machine.threads,
           (long long)b->tokens, (long long)b->sequence, (long long)b->runs, "model", "dtype",
           "tokens/s", "best", "GFLOP/s", bench_peak_name(&b->machine), "fwd+bwd", "update",
           "memory / footprint");
}

static void print_line(const struct train_bench *b, const struct train_figures *f)
{
    printf("%-5s %-5s %10.1f %10.1f %9.1f  %4.0f %% of %6.1f GFLOP/s   %6.0f ms %6.1f ms  %.2f "
           "(%.1f MB of %.1f, %.1f beside weights)",
           b->choice.name, bench_dtype_name(b->layout->dtype), f->median, f->best, f->gflops,
           100 * fma_share(f), f->limits.fma_gflops, f->forward_backward_s * 1e3, f->update_s * 1e3,
           f->peak_bytes / f->footprint_bytes, f->peak_bytes * 1e-6, f->footprint_bytes * 1e-6,
           (f->peak_bytes - weight_bytes(b)) * 1e-6);
    if (sheet_share(b, f) > 0) {
        printf("; %.1f %% of the data sheet's peak", 100 * sheet_share(b, f));
    }
    putchar('\n');
    fflush(stdout);
}

static rl_status run_dtype(struct train_bench *b, enum kernel_dtype dtype)
{
    struct train_figures figures = {0};
    RL_TRY(bench_model_layout(&b->choice, &b->machine, dtype, b->sequence + 1, &b->layout));
    b->layout->kv_dtype = b->kv_dtype;
    rl_status status = measure(b, &figures);
    json_t *line = status == RL_OK ? line_json(b, &figures) : NULL;
    if (status == RL_OK && !b->machine.json) {
        print_line(b, &figures);
    }
    if (status == RL_OK && (line == NULL || json_array_append_new(b->lines, line) != 0)) {
        status = rl_fail(RL_NO_MEMORY, "bench: out of memory for the results");
    }
    if (status == RL_OK) {
        status = bench_profile_end(&b->machine, &figures.limits, 1, line);
    }
    model_layout_destroy(b->layout);
    return status;
}

/* --- options ------------------------------------------------------------------------------------
 */

static rl_status read_options(struct train_bench *b, int *argc, char **argv)
{
    RL_TRY(bench_take_device(argc, argv, &b->machine));
    RL_TRY(bench_take_profile(argc, argv, &b->machine));
    RL_TRY(bench_model_choose(argc, argv, &b->choice));
    RL_TRY(bench_take_kv(argc, argv, &b->kv_dtype));
    for (int i = 0; i < b->choice.dtype_count; i++) {
        if (b->choice.dtypes[i] == KERNEL_INT8) {
            return rl_fail(RL_INVALID, "bench: --dtype int8: weights of generation, no training");
        }
    }
    RL_TRY(bench_take_count(argc, argv, "--tokens", TRAIN_TOKENS_MAX, &b->tokens));
    RL_TRY(bench_take_count(argc, argv, "--sequence", TRAIN_TOKENS_MAX, &b->sequence));
    b->microbatch = b->tokens;
    RL_TRY(bench_take_count(argc, argv, "--microbatch", TRAIN_TOKENS_MAX, &b->microbatch));
    RL_TRY(bench_take_count(argc, argv, "--runs", BENCH_RUNS_MAX, &b->runs));
    if (b->tokens < TRAIN_GROUP * b->sequence || b->microbatch < b->sequence) {
        return rl_fail(RL_INVALID,
                       "bench: --tokens must hold at least %d sequences of --sequence, "
                       "--microbatch one",
                       TRAIN_GROUP);
    }
    return bench_take_end(*argc, argv);
}

int bench_train(int argc, char **argv)
{
    struct train_bench b = {.tokens = 4096, .sequence = 256, .runs = TRAIN_RUNS};
    int exit_code = APP_USAGE;
    rl_status status = RL_OK;
    RL_TRY_GOTO(bench_machine_open(&argc, argv, &b.machine), status, out);
    RL_TRY_GOTO(read_options(&b, &argc, argv), status, out);
    exit_code = APP_FAILED;
    b.lines = json_array();
    RL_TRY_GOTO(set_options(&b), status, out);
    RL_TRY_GOTO(collective_local_create(&b.alone), status, out);
    if (!b.machine.json) {
        print_head(&b);
    }
    for (int i = 0; i < b.choice.dtype_count; i++) {
        RL_TRY_GOTO(run_dtype(&b, b.choice.dtypes[i]), status, out);
    }
    if (b.machine.json) {
        RL_TRY_GOTO(bench_json_print(&b.machine, "train", json_incref(b.lines)), status, out);
    }
    exit_code = APP_OK;
out:
    json_decref(b.lines);
    collective_destroy(b.alone);
    rl_config_fini(&b.config);
    bench_machine_close(&b.machine);
    return exit_code;
}
