/* `foresight bench distill`: what the ways around the engine and the learner cost. The same samples
 * are drawn by the engine alone and into a corpus, with rewards, parts and files; the same tokens
 * are trained by the trainer's learner and by fine-tuning in a run folder, with metrics and
 * checkpoints. All in one process, in rounds over the four, medians of the rounds' ratios. */
#include "app/app.h"
#include "app/bench.h"
#include "app/corpus_samples.h"
#include "app/tune.h"

#include "core/clock.h"
#include "core/folder_make.h"
#include "core/log.h"
#include "kernels/device.h"
#include "trainer/learner.h"

#include <ftw.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BENCH_DISTILL_REPEATS = 5,
    BENCH_DISTILL_REPEATS_MAX = 99,
    BENCH_DISTILL_PROMPTS = 384,
    BENCH_DISTILL_EPOCH = 0x3ffffa,
    BENCH_DISTILL_PATH = 3072,
    BENCH_DISTILL_FILES = 16 /* open at a time while the scratch folder is removed */
};

enum bench_way { WAY_ENGINE, WAY_CORPUS, WAY_LEARNER, WAY_TUNING, WAY_COUNT };

/* What one way took for its tokens. */
struct bench_time {
    double tokens, wall_s, cpu_s;
};

struct bench {
    struct rl_config config;
    struct session session;
    struct prompts *prompts;
    struct reward_set *rewards;
    struct collective *alone;
    float *master;
    void *image;
    char scratch[BENCH_DISTILL_PATH]; /* "": none yet */
    long repeats, prompt_limit;
    int folders; /* made in scratch so far */
    bool json;
    struct corpus_samples samples; /* what is trained on */
    struct sft_example *examples;
    uint64_t example_count;
    struct bench_time times[WAY_COUNT][BENCH_DISTILL_REPEATS_MAX];
};

/* --- the four ways
 * ------------------------------------------------------------------------------------- */

static void stop_clock(struct bench_time *time, double wall, double cpu)
{
    time->wall_s = rl_clock_now_s(NULL) - wall;
    time->cpu_s = rl_clock_process_cpu_s() - cpu;
}

static rl_status run_engine(struct rollout_generator *generator, const struct bench *b)
{
    uint64_t count = prompts_count(b->prompts);
    uint64_t taken = 0;
    for (uint64_t next = 0; taken < count;) {
        struct trajectory_group *group = NULL;
        rl_status status = RL_OK;
        bool busy = false;
        while (next < count && status == RL_OK) {
            const struct prompt *prompt = prompts_at(b->prompts, next);
            struct rollout_request request = {.ticket = next,
                                              .prompt_id = next,
                                              .epoch = BENCH_DISTILL_EPOCH,
                                              .samples = (uint32_t)b->config.distill.samples,
                                              .prompt = prompt->tokens,
                                              .prompt_count = prompt->token_count};
            status = rollout_generator_submit(generator, &request);
            next += status == RL_OK;
        }
        if (status != RL_OK && status != RL_AGAIN) {
            return status;
        }
        RL_TRY(rollout_generator_tick(generator, &busy));
        while (rollout_generator_take(generator, &group) == RL_OK) {
            trajectory_group_destroy(group);
            taken++;
        }
    }
    return RL_OK;
}

/* Nothing but the engine, given as many groups as it takes. */
static rl_status time_engine(struct bench *b, struct bench_time *time)
{
    struct rollout_generator *generator = NULL;
    struct rollout_generator_options options;
    session_sampling_options(&b->config, (uint32_t)b->config.distill.samples, &options);
    options.seed = (uint64_t)b->config.distill.corpus_seed;
    RL_TRY(
        rollout_generator_create(&b->session.context, b->session.tokenizer, &options, &generator));
    rollout_generator_set_weights(generator, b->image, 0);
    double wall = rl_clock_now_s(NULL);
    double cpu = rl_clock_process_cpu_s();
    rl_status status = run_engine(generator, b);
    stop_clock(time, wall, cpu);
    time->tokens = (double)rollout_generator_counters(generator)->sampled_tokens;
    rollout_generator_destroy(generator);
    return status;
}

static rl_status set_option(struct bench *b, const char *name, const char *value)
{
    char text[BENCH_DISTILL_PATH + 128];
    snprintf(text, sizeof(text), "%s=%s", name, value);
    return rl_config_override(&b->config, text);
}

static rl_status bench_image(void *arg, const void **image)
{
    *image = ((struct bench *)arg)->image;
    return RL_OK;
}

/* As `foresight distill` samples, into a corpus of which nothing is there. */
static rl_status sample_corpus(struct bench *b, struct corpus_samples *samples,
                               struct corpus_work *work)
{
    char folder[BENCH_DISTILL_PATH + 32];
    snprintf(folder, sizeof(folder), "%s/corpora_%d", b->scratch, b->folders++);
    RL_TRY(set_option(b, "distill.corpora", folder));
    struct corpus_request request = {.session = &b->session,
                                     .prompts = b->prompts,
                                     .rewards = b->rewards,
                                     .epoch = BENCH_DISTILL_EPOCH,
                                     .run = "bench",
                                     .ranks = 1,
                                     .image = bench_image,
                                     .image_arg = b};
    return corpus_samples_get(&request, samples, work);
}

static rl_status time_corpus(struct bench *b, struct bench_time *time)
{
    struct corpus_samples samples;
    struct corpus_work work = {0};
    RL_TRY(sample_corpus(b, &samples, &work));
    *time = (struct bench_time){(double)work.tokens, work.wall_s, work.cpu_s};
    corpus_samples_fini(&samples);
    return RL_OK;
}

static rl_status copy_master(const struct bench *b, float **out)
{
    size_t bytes = (size_t)b->session.layout->master_count * sizeof(float);
    void *copy = NULL;
    RL_TRY(device_alloc(bytes, "master weights", &copy));
    memcpy(copy, b->master, bytes);
    *out = copy;
    return RL_OK;
}

static uint64_t fed_tokens(const struct trajectory_group *group)
{
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < group->sample_count; i++) {
        tokens += group->samples[i].prompt_count + group->samples[i].completion_count - 1;
    }
    return tokens;
}

/* Steps over the groups in order, each with as many tokens as an update of fine-tuning has. */
static rl_status run_learner(struct learner *learner, const struct bench *b, double *tokens)
{
    uint64_t first = 0;
    RL_TRY(learner_publish_first(learner, 0));
    for (uint64_t step = 1; first < b->samples.count; step++) {
        struct learner_report report;
        uint64_t fed = 0;
        uint64_t end = first;
        while (end < b->samples.count && fed < (uint64_t)b->config.sft.batch_tokens) {
            fed += fed_tokens(b->samples.groups[end++]);
        }
        RL_TRY(learner_step(learner, b->samples.groups + first, (uint32_t)(end - first), step,
                            &report));
        RL_TRY(learner_publish(learner, &report));
        *tokens += (double)report.tokens;
        first = end;
    }
    return RL_OK;
}

static rl_status time_learner(struct bench *b, struct bench_time *time)
{
    struct learner *learner = NULL;
    struct learner_args args = {.config = &b->config,
                                .layout = b->session.layout,
                                .kernels = b->session.kernels,
                                .pool = b->session.pool,
                                .collective = b->alone};
    time->tokens = 0;
    RL_TRY(copy_master(b, &args.master));
    RL_TRY(learner_create(&args, &learner));
    double wall = rl_clock_now_s(NULL);
    double cpu = rl_clock_process_cpu_s();
    rl_status status = run_learner(learner, b, &time->tokens);
    stop_clock(time, wall, cpu);
    learner_destroy(learner);
    return status;
}

static rl_status run_tuning(struct tune *tune, struct bench *b, struct bench_time *time)
{
    double loss = 0;
    struct tune_job job = {.label = "train",
                           .examples = b->examples,
                           .example_count = b->example_count,
                           .inv_temperature = 1};
    RL_TRY(copy_master(b, &job.master));
    double wall = rl_clock_now_s(NULL);
    double cpu = rl_clock_process_cpu_s();
    rl_status status = tune_job(tune, &job, &loss);
    stop_clock(time, wall, cpu);
    time->tokens = (double)tune->busy_tokens;
    device_free(job.master);
    return status;
}

/* As `foresight distill` trains, in a run folder of its own. */
static rl_status time_tuning(struct bench *b, struct bench_time *time)
{
    char name[32];
    struct tune tune;
    struct rank_team team = {.collective = b->alone};
    snprintf(name, sizeof(name), "tuning_%d", b->folders++);
    RL_TRY(set_option(b, "run.name", name));
    rl_status status = tune_open(&b->config, &b->session, &team, &tune);
    if (status == RL_OK) {
        status = run_tuning(&tune, b, time);
    }
    tune_close(&tune);
    return status;
}

/* --- set-up
 * --------------------------------------------------------------------------------------------- */

/* What the comparison needs, whatever the file says: groups with an advantage, and a learner that
 * makes one forward pass, one backward pass and one update a step. */
static rl_status set_options(struct bench *b)
{
    static const char *const fixed[] = {"run.resume=auto",
                                        "distill.corpus_samples=0",
                                        "sft.epochs=1",
                                        "loss.loss_type=grpo",
                                        "loss.beta=0",
                                        "loss.old_logprob=behaviour",
                                        "loss.mask_truncated_completions=false",
                                        "optimizer.updates_per_step=1",
                                        "teacher.loss=none"};
    for (size_t i = 0; i < sizeof(fixed) / sizeof(fixed[0]); i++) {
        RL_TRY(rl_config_override(&b->config, fixed[i]));
    }
    return b->config.distill.samples >= 2 ? RL_OK : set_option(b, "distill.samples", "2");
}

/* A folder beside the runs, so that files go to the disk that they would go to. */
static rl_status make_scratch(struct bench *b)
{
    char path[BENCH_DISTILL_PATH];
    int length = snprintf(path, sizeof(path), "%s/bench_distill.XXXXXX", b->config.run.dir);
    if (length < 0 || (size_t)length >= sizeof(path)) {
        return rl_fail(RL_TOO_LONG, "bench: run.dir is too long");
    }
    RL_TRY(rl_folder_make(b->config.run.dir));
    if (mkdtemp(path) == NULL) {
        return rl_fail(RL_IO, "%s: cannot make it", path);
    }
    memcpy(b->scratch, path, sizeof(path));
    return set_option(b, "run.dir", b->scratch);
}

static int remove_entry(const char *path, const struct stat *stat, int type, struct FTW *ftw)
{
    (void)stat;
    (void)type;
    (void)ftw;
    return remove(path);
}

/* The first prompts of the data as a file of their own. */
static rl_status write_prompts(struct bench *b, const struct prompts *all, const char *path)
{
    uint64_t count = prompts_count(all);
    count = count < (uint64_t)b->prompt_limit ? count : (uint64_t)b->prompt_limit;
    FILE *file = fopen(path, "we");
    bool written = file != NULL;
    for (uint64_t i = 0; i < count && written; i++) {
        written = fprintf(file, "%s\n", prompts_at(all, i)->row_json) > 0;
    }
    if (file != NULL && fclose(file) != 0) {
        written = false;
    }
    return written ? RL_OK : rl_fail(RL_IO, "%s: cannot be written", path);
}

static rl_status load_prompts(struct bench *b)
{
    char path[BENCH_DISTILL_PATH + 32];
    struct prompts *all = NULL;
    snprintf(path, sizeof(path), "%s/prompts.jsonl", b->scratch);
    if (b->config.data.train[0] == '\0') {
        return rl_fail(RL_INVALID, "data.train is not set: the prompts to sample");
    }
    RL_TRY(prompts_load(b->config.data.train, &b->config, b->session.tokenizer, b->session.chat,
                        &all));
    rl_status status = write_prompts(b, all, path);
    prompts_destroy(all);
    RL_TRY(status);
    return prompts_load(path, &b->config, b->session.tokenizer, b->session.chat, &b->prompts);
}

/* Every sample an example of weight 1; rewards that give every group an advantage. */
static rl_status make_examples(struct bench *b)
{
    uint64_t samples = b->samples.count * (uint64_t)b->config.distill.samples;
    b->examples = calloc(samples + 1, sizeof(*b->examples));
    if (b->examples == NULL) {
        return rl_fail(RL_NO_MEMORY, "bench: out of memory");
    }
    for (uint64_t g = 0; g < b->samples.count; g++) {
        for (uint32_t i = 0; i < b->samples.groups[g]->sample_count; i++) {
            struct trajectory *sample = &b->samples.groups[g]->samples[i];
            sample->reward_valid = true;
            sample->reward = (float)(i % 2);
            b->examples[b->example_count++] =
                (struct sft_example){.tokens = sample->tokens,
                                     .count = sample->prompt_count + sample->completion_count,
                                     .prompt_count = sample->prompt_count,
                                     .weight = 1};
        }
    }
    return RL_OK;
}

static rl_status open_bench(struct bench *b)
{
    struct corpus_work work = {0};
    RL_TRY(set_options(b));
    RL_TRY(make_scratch(b));
    RL_TRY(collective_local_create(&b->alone));
    RL_TRY(session_open(&b->config, session_max_length(&b->config), 0, &b->session));
    RL_TRY(load_prompts(b));
    RL_TRY(reward_set_create(&b->config, &b->rewards));
    RL_TRY(session_load_master(&b->session, b->config.model.path, &b->master));
    RL_TRY(session_make_image(&b->session, b->master, &b->image));
    RL_TRY(sample_corpus(b, &b->samples, &work)); /* also warms up */
    return make_examples(b);
}

static void close_bench(struct bench *b)
{
    free(b->examples);
    corpus_samples_fini(&b->samples);
    device_free(b->image);
    device_free(b->master);
    reward_set_destroy(b->rewards);
    prompts_destroy(b->prompts);
    session_close(&b->session);
    collective_destroy(b->alone);
    if (b->scratch[0] != '\0' &&
        nftw(b->scratch, remove_entry, BENCH_DISTILL_FILES, FTW_DEPTH | FTW_PHYS) != 0) {
        rl_log(RL_LOG_WARN, "%s: cannot remove it", b->scratch);
    }
    rl_config_fini(&b->config);
}

/* --- rounds and results
 * --------------------------------------------------------------------------------- */

static rl_status run_rounds(struct bench *b)
{
    static rl_status (*const ways[WAY_COUNT])(struct bench *, struct bench_time *) = {
        time_engine, time_corpus, time_learner, time_tuning};
    for (long round = 0; round < b->repeats; round++) {
        for (int n = 0; n < WAY_COUNT; n++) {
            int way = round % 2 == 0 ? n : WAY_COUNT - 1 - n; /* a drift meets all alike */
            RL_TRY(ways[way](b, &b->times[way][round]));
        }
    }
    return RL_OK;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double rate(const struct bench_time *time, bool cpu)
{
    double seconds = cpu ? time->cpu_s : time->wall_s;
    return seconds > 0 ? time->tokens / seconds : 0;
}

/* Median over the rounds of `way`'s tokens a second, over `base`'s if that is another. */
static double median(const struct bench *b, enum bench_way way, enum bench_way base, bool cpu)
{
    double values[BENCH_DISTILL_REPEATS_MAX];
    size_t count = (size_t)b->repeats;
    for (size_t i = 0; i < count; i++) {
        double own = rate(&b->times[way][i], cpu);
        double other = rate(&b->times[base][i], cpu);
        values[i] = way == base ? own : (other > 0 ? own / other : 0);
    }
    qsort(values, count, sizeof(*values), compare_doubles);
    return 0.5 * (values[(count - 1) / 2] + values[count / 2]);
}

static json_t *pair_json(const struct bench *b, enum bench_way base, enum bench_way way)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "tokens", b->times[way][0].tokens,
                     "base_tokens", b->times[base][0].tokens, "base_tokens_per_second",
                     median(b, base, base, false), "tokens_per_second", median(b, way, way, false),
                     "ratio", median(b, way, base, false), "cpu_ratio", median(b, way, base, true));
}

static void print_pair(const char *name, const char *base_name, const json_t *pair)
{
    printf("%-9s %8.0f tokens/s, %s alone %8.0f: %5.1f %%   (by CPU time %5.1f %%)\n", name,
           json_number_value(json_object_get(pair, "tokens_per_second")), base_name,
           json_number_value(json_object_get(pair, "base_tokens_per_second")),
           100 * json_number_value(json_object_get(pair, "ratio")),
           100 * json_number_value(json_object_get(pair, "cpu_ratio")));
}

static rl_status print_results(const struct bench *b)
{
    json_t *sampling = pair_json(b, WAY_ENGINE, WAY_CORPUS);
    json_t *training = pair_json(b, WAY_LEARNER, WAY_TUNING);
    json_t *all = json_pack("{s:I, s:o, s:o}", "repeats", (json_int_t)b->repeats, "sampling",
                            sampling, "training", training);
    if (all == NULL) {
        return rl_fail(RL_NO_MEMORY, "bench: out of memory");
    }
    if (b->json) {
        json_dumpf(all, stdout, JSON_COMPACT);
        putchar('\n');
    } else {
        print_pair("sampling", "engine", sampling);
        print_pair("training", "learner", training);
    }
    json_decref(all);
    return RL_OK;
}

/* --- the command
 * ------------------------------------------------------------------------------- */

static rl_status take_count(int *argc, char **argv, const char *flag, long max, long *count)
{
    const char *text = NULL;
    char *end = NULL;
    RL_TRY(app_take_value(argc, argv, flag, &text));
    if (text == NULL) {
        return RL_OK;
    }
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < 1 || value > max) {
        return rl_fail(RL_INVALID, "bench: %s %s: expected 1 to %ld", flag, text, max);
    }
    *count = value;
    return RL_OK;
}

int bench_distill(int argc, char **argv)
{
    struct bench *b = calloc(1, sizeof(*b));
    if (b == NULL) {
        return APP_FAILED;
    }
    b->repeats = BENCH_DISTILL_REPEATS;
    b->prompt_limit = BENCH_DISTILL_PROMPTS;
    b->json = app_take_flag(&argc, argv, "--json");
    int exit_code = APP_USAGE;
    rl_status status = RL_OK;
    RL_TRY_GOTO(take_count(&argc, argv, "--repeats", BENCH_DISTILL_REPEATS_MAX, &b->repeats),
                status, done);
    RL_TRY_GOTO(take_count(&argc, argv, "--prompts", INT32_MAX, &b->prompt_limit), status, done);
    exit_code = APP_FAILED;
    RL_TRY_GOTO(app_config_from_args(&argc, argv, &b->config), status, done);
    RL_TRY_GOTO(open_bench(b), status, done);
    RL_TRY_GOTO(run_rounds(b), status, done);
    RL_TRY_GOTO(print_results(b), status, done);
    exit_code = APP_OK;
done:
    close_bench(b);
    free(b);
    return exit_code;
}
