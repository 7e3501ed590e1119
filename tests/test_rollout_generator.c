/* The rollout engine: a sample is the same whatever runs beside it; where it ends; what a weight
 * switch does to its log-probs; numbers that are not finite. */
#include "kernels/sampling.h"
#include "rollout/generator.h"
#include "tests/model_fixture.h"
#include "trainer/task_generator.h"

#include <math.h>
#include <unistd.h>

enum { PROMPTS = 6, SAMPLES = 4, COMPLETION = 24, PROMPT_MAX = 40, VOCAB = 27 };
enum { LEAST = 2 * (PROMPT_MAX + COMPLETION) / 16 }; /* KV pages without which nothing goes */

static const uint32_t prompt_lengths[PROMPTS] = {1, 7, 16, 17, 33, 40};

struct bench {
    struct model_fixture f;
    void *other; /* image of other weights */
    int32_t prompts[PROMPTS][PROMPT_MAX];
    struct tokenizer *tokenizer; /* NULL until asked for */
};

struct samples {
    struct trajectory_group *groups[PROMPTS];
};

static void bench_create(struct bench *b)
{
    struct model_architecture arch = fixture_architecture(0);
    struct fixture_options options = {KERNEL_ISA_REF, KERNEL_FP32, 1};
    struct rl_rng rng = rl_rng_make(3, 3);
    arch.vocab = VOCAB;
    memset(b, 0, sizeof(*b));
    fixture_create(&b->f, &arch, &options);
    ck_assert_int_eq(device_alloc(b->f.layout->image_bytes, "image", &b->other), RL_OK);
    fixture_randomise(&b->f, 18);
    memcpy(b->other, b->f.image, b->f.layout->image_bytes);
    fixture_randomise(&b->f, 17);
    for (int i = 0; i < PROMPTS; i++) {
        for (int j = 0; j < PROMPT_MAX; j++) {
            b->prompts[i][j] = (int32_t)rl_rng_next_below(&rng, VOCAB);
        }
    }
}

static void bench_destroy(struct bench *b)
{
    tokenizer_destroy(b->tokenizer);
    device_free(b->other);
    fixture_destroy(&b->f);
}

static struct rollout_generator_options defaults(void)
{
    return (struct rollout_generator_options){.max_running = 8,
                                              .max_groups = PROMPTS,
                                              .max_prompt = PROMPT_MAX,
                                              .max_completion = COMPLETION,
                                              .prefill_chunk = 64,
                                              .seed = 11,
                                              .sampling = {.temperature = 0.8F, .top_p = 1},
                                              .stop_strings = "",
                                              .stop_token_ids = ""};
}

static struct rollout_generator *make_generator(struct bench *b,
                                                const struct rollout_generator_options *options)
{
    struct rollout_generator *generator = NULL;
    ck_assert_int_eq(rollout_generator_create(&b->f.context, b->tokenizer, options, &generator),
                     RL_OK);
    rollout_generator_set_weights(generator, b->f.image, 0);
    return generator;
}

static rl_status submit(struct bench *b, struct rollout_generator *generator, int prompt)
{
    struct rollout_request request = {.ticket = (uint64_t)prompt,
                                      .prompt_id = (uint64_t)prompt,
                                      .samples = SAMPLES,
                                      .prompt = b->prompts[prompt],
                                      .prompt_count = prompt_lengths[prompt]};
    return rollout_generator_submit(generator, &request);
}

/* Run until everything inside is finished. */
static void drain(struct rollout_generator *generator, struct samples *out)
{
    bool busy = true;
    while (busy) {
        struct trajectory_group *group = NULL;
        ck_assert_int_eq(rollout_generator_tick(generator, &busy), RL_OK);
        while (rollout_generator_take(generator, &group) == RL_OK) {
            ck_assert_ptr_null(out->groups[group->prompt_id]);
            ck_assert_int_eq(trajectory_group_check(group), RL_OK);
            out->groups[group->prompt_id] = group;
        }
    }
    ck_assert_int_eq(rollout_generator_groups(generator), 0);
}

/* All prompts, forwards or backwards, as soon as there is room. */
static void sample_all(struct bench *b, const struct rollout_generator_options *options,
                       bool backwards, struct samples *out)
{
    struct rollout_generator *generator = make_generator(b, options);
    memset(out, 0, sizeof(*out));
    for (int i = 0; i < PROMPTS; i++) {
        while (submit(b, generator, backwards ? PROMPTS - 1 - i : i) == RL_AGAIN) {
            drain(generator, out);
        }
    }
    drain(generator, out);
    rollout_generator_destroy(generator);
}

static void free_samples(struct samples *samples)
{
    for (int i = 0; i < PROMPTS; i++) {
        trajectory_group_destroy(samples->groups[i]);
        samples->groups[i] = NULL;
    }
}

/* The first `count` completion tokens of both are the same, bit for bit. */
static void same_start(const struct trajectory *a, const struct trajectory *b, uint32_t count)
{
    ck_assert_uint_eq(a->prompt_count, b->prompt_count);
    ck_assert_mem_eq(a->tokens, b->tokens, (a->prompt_count + count) * sizeof(int32_t));
    ck_assert_mem_eq(a->logprob, b->logprob, count * sizeof(float));
}

static void same_samples(const struct samples *a, const struct samples *b)
{
    for (int i = 0; i < PROMPTS; i++) {
        for (int s = 0; s < SAMPLES; s++) {
            const struct trajectory *x = &a->groups[i]->samples[s];
            const struct trajectory *y = &b->groups[i]->samples[s];
            ck_assert_uint_eq(x->completion_count, y->completion_count);
            ck_assert_int_eq(x->finish, y->finish);
            same_start(x, y, x->completion_count);
        }
    }
}

START_TEST(samples_do_not_depend_on_company)
{
    static const struct {
        int32_t running, groups, chunk, pages;
        bool backwards;
    } ways[] = {{1, 1, 64, 0, false},
                {3, 2, 5, 0, true},
                {32, PROMPTS, 1, 0, false},
                {8, PROMPTS, 16, 0, true},
                {5, 3, 64, 0, true},
                {24, PROMPTS, 64, 0, false},
                {24, PROMPTS, 64, LEAST, true},
                {8, PROMPTS, 16, LEAST + 5, false}};
    struct bench b;
    struct samples base;
    struct rollout_generator_options options = defaults();
    bench_create(&b);
    sample_all(&b, &options, false, &base);
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        struct samples other;
        options.max_running = ways[i].running;
        options.max_groups = ways[i].groups;
        options.prefill_chunk = ways[i].chunk;
        options.max_pages = ways[i].pages;
        sample_all(&b, &options, ways[i].backwards, &other);
        same_samples(&base, &other);
        free_samples(&other);
    }
    options.max_pages = 0;
    options.seed++;
    struct samples other;
    sample_all(&b, &options, false, &other);
    ck_assert(memcmp(base.groups[1]->samples[0].tokens, other.groups[1]->samples[0].tokens,
                     (7 + COMPLETION) * sizeof(int32_t)) != 0);
    free_samples(&other);
    free_samples(&base);
    bench_destroy(&b);
}
END_TEST

START_TEST(without_stop_rules_the_limit_ends_a_sample)
{
    struct bench b;
    struct samples all;
    struct rollout_generator_options options = defaults();
    bench_create(&b);
    sample_all(&b, &options, false, &all);
    for (int i = 0; i < PROMPTS; i++) {
        for (int s = 0; s < SAMPLES; s++) {
            ck_assert_uint_eq(all.groups[i]->samples[s].completion_count, COMPLETION);
            ck_assert_int_eq(all.groups[i]->samples[s].finish, RL_FINISH_LENGTH);
        }
        ck_assert(all.groups[i]->started_s > 0);
    }
    free_samples(&all);
    bench_destroy(&b);
}
END_TEST

/* A stopped sample is the unstopped one up to and including what stops it. */
static int count_stopped(const struct samples *base, const struct samples *stopped,
                         uint32_t (*stops_at)(const struct trajectory *sample, void *arg),
                         void *arg)
{
    int count = 0;
    for (int i = 0; i < PROMPTS; i++) {
        for (int s = 0; s < SAMPLES; s++) {
            const struct trajectory *x = &base->groups[i]->samples[s];
            const struct trajectory *y = &stopped->groups[i]->samples[s];
            uint32_t at = stops_at(x, arg); /* tokens kept; 0: never */
            ck_assert_uint_eq(y->completion_count, at > 0 ? at : COMPLETION);
            ck_assert_int_eq(y->finish, at > 0 ? RL_FINISH_STOP : RL_FINISH_LENGTH);
            same_start(x, y, y->completion_count);
            count += at > 0;
        }
    }
    return count;
}

static uint32_t first_5_or_9(const struct trajectory *sample, void *arg)
{
    (void)arg;
    for (uint32_t i = 0; i < sample->completion_count; i++) {
        int32_t id = sample->tokens[sample->prompt_count + i];
        if (id == 5 || id == 9) {
            return i + 1;
        }
    }
    return 0;
}

START_TEST(stop_ids_end_a_sample)
{
    struct bench b;
    struct samples base;
    struct samples stopped;
    struct rollout_generator_options options = defaults();
    struct rollout_generator *generator = NULL;
    bench_create(&b);
    sample_all(&b, &options, false, &base);
    options.stop_token_ids = "5,9";
    sample_all(&b, &options, false, &stopped);
    ck_assert_int_gt(count_stopped(&base, &stopped, first_5_or_9, NULL), 3);
    options.stop_token_ids = "5,x";
    ck_assert_int_eq(rollout_generator_create(&b.f.context, NULL, &options, &generator),
                     RL_INVALID);
    free_samples(&stopped);
    free_samples(&base);
    bench_destroy(&b);
}
END_TEST

/* A tokenizer of single characters, as the task generator writes them. */
static void load_tokenizer(struct bench *b)
{
    static const char *const files[] = {"train.jsonl", "eval.jsonl", "sft.jsonl", "tokenizer.json",
                                        "tokenizer_config.json"};
    char dir[] = "/tmp/test_generator_XXXXXX";
    char path[128];
    struct task_options task;
    ck_assert_ptr_nonnull(mkdtemp(dir));
    ck_assert_int_eq(task_options_default("chain", &task), RL_OK);
    task.train_count = task.eval_count = task.sft_count = 2;
    ck_assert_int_eq(task_generate(&task, dir, NULL), RL_OK);
    ck_assert_int_eq(tokenizer_load(dir, &b->tokenizer), RL_OK);
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, files[i]);
        ck_assert_int_eq(unlink(path), 0);
    }
    ck_assert_int_eq(rmdir(dir), 0);
}

static uint32_t first_digit_pair(const struct trajectory *sample, void *arg)
{
    const struct bench *b = arg;
    for (uint32_t count = 1; count <= sample->completion_count; count++) {
        char *text = NULL;
        size_t bytes = 0;
        ck_assert_int_eq(tokenizer_decode(b->tokenizer, sample->tokens + sample->prompt_count,
                                          count, false, &text, &bytes),
                         RL_OK);
        bool stop =
            sample->tokens[sample->prompt_count + count - 1] == tokenizer_eos_id(b->tokenizer) ||
            memmem(text, bytes, "7", 1) != NULL || memmem(text, bytes, "12", 2) != NULL;
        free(text);
        if (stop) {
            return count;
        }
    }
    return 0;
}

START_TEST(stop_strings_end_a_sample)
{
    struct bench b;
    struct samples base;
    struct samples stopped;
    struct rollout_generator_options options = defaults();
    bench_create(&b);
    sample_all(&b, &options, false, &base); /* no tokenizer yet: no eos either */
    load_tokenizer(&b);
    options.stop_strings = "12,7";
    sample_all(&b, &options, false, &stopped);
    ck_assert_int_gt(count_stopped(&base, &stopped, first_digit_pair, &b), 3);
    free_samples(&stopped);
    free_samples(&base);
    bench_destroy(&b);
}
END_TEST

/* Log-probs of a sample's completion by one fresh forward pass under `image`. */
static void fresh_logprobs(struct bench *b, const void *image, const struct trajectory *sample,
                           float *logprob)
{
    enum { TOKENS = PROMPT_MAX + COMPLETION };
    struct kernel_sampling sampling = {.temperature = 0.8F};
    struct model_packing *packing = NULL;
    struct model_workspace *workspace = NULL;
    struct model_kv kv = {0};
    const float *hidden = NULL;
    int32_t rows[COMPLETION];
    int64_t first = 0;
    uint32_t total = sample->prompt_count + sample->completion_count;
    ck_assert_int_eq(model_packing_create(TOKENS, 1, &packing), RL_OK);
    ck_assert_int_eq(model_workspace_create(b->f.layout, TOKENS, MODEL_KEEP_NOTHING, &workspace),
                     RL_OK);
    ck_assert_int_eq(model_kv_create(b->f.layout, model_packing_pages(TOKENS, 1), &kv), RL_OK);
    ck_assert_int_eq(model_packing_add(packing, sample->tokens, total, &first), RL_OK);
    for (uint32_t i = 0; i < sample->completion_count; i++) {
        rows[i] = (int32_t)(sample->prompt_count + i - 1);
    }
    struct model_head_args head = {.hidden_rows = rows,
                                   .targets = sample->tokens + sample->prompt_count,
                                   .m = sample->completion_count,
                                   .inv_temperature =
                                       kernel_sampling_inverse_temperature(&sampling),
                                   .logprob = logprob};
    model_forward(&b->f.context, image, &kv, &packing->batch, workspace, &hidden);
    model_head_forward(&b->f.context, image, workspace, &head);
    model_kv_fini(&kv);
    model_workspace_destroy(workspace);
    model_packing_destroy(packing);
}

struct switch_counts {
    int old_tokens, new_tokens, off; /* off: of another than the fresh log-prob */
    int whole, whole_off;            /* samples begun after the switch, and tokens off in them */
};

static void count_sample(struct bench *b, const struct trajectory *sample,
                         struct switch_counts *counts)
{
    float before[COMPLETION];
    float after[COMPLETION];
    fresh_logprobs(b, b->f.image, sample, before);
    fresh_logprobs(b, b->other, sample, after);
    counts->whole += sample->version[0] == 1;
    for (uint32_t i = 0; i < sample->completion_count; i++) {
        if (sample->version[i] == 0) {
            ck_assert_mem_eq(&sample->logprob[i], &before[i], sizeof(float));
            counts->old_tokens++;
            continue;
        }
        bool off = memcmp(&sample->logprob[i], &after[i], sizeof(float)) != 0;
        counts->new_tokens++;
        counts->off += off;
        counts->whole_off += off && sample->version[0] == 1;
    }
}

/* Every pass was timed, and the one pause between two versions. */
static void count_pauses(const struct rollout_counters *counters)
{
    uint64_t passes = 0;
    uint64_t gaps = 0;
    for (int i = 0; i < RL_HISTOGRAM_BUCKETS; i++) {
        passes += counters->times.pass_us[i];
        gaps += counters->times.switch_gap_us[i];
    }
    ck_assert_uint_eq(passes, counters->passes);
    ck_assert_uint_eq(gaps, 1);
    ck_assert(counters->times.switch_gap_max_s > 0);
}

static struct switch_counts switch_midway(bool recompute)
{
    struct bench b;
    struct samples all = {0};
    struct switch_counts counts = {0};
    struct rollout_generator_options options = defaults();
    bool busy = false;
    options.recompute_on_update = recompute;
    options.prefill_chunk = 10;
    bench_create(&b);
    struct rollout_generator *generator = make_generator(&b, &options);
    for (int i = 0; i < PROMPTS; i++) {
        ck_assert_int_eq(submit(&b, generator, i), RL_OK);
    }
    for (int i = 0; i < 40; i++) {
        ck_assert_int_eq(rollout_generator_tick(generator, &busy), RL_OK);
    }
    rollout_generator_set_weights(generator, b.other, 1);
    drain(generator, &all);
    ck_assert_uint_eq(rollout_generator_counters(generator)->switches, 1);
    count_pauses(rollout_generator_counters(generator));
    for (int i = 0; i < PROMPTS; i++) {
        for (int s = 0; s < SAMPLES; s++) {
            count_sample(&b, &all.groups[i]->samples[s], &counts);
        }
    }
    rollout_generator_destroy(generator);
    free_samples(&all);
    bench_destroy(&b);
    ck_assert_int_gt(counts.old_tokens, 0);
    ck_assert_int_gt(counts.new_tokens, 0);
    ck_assert_int_gt(counts.whole, 0);
    return counts;
}

START_TEST(recompute_gives_the_new_weights_log_probs)
{
    ck_assert_int_eq(switch_midway(true).off, 0);
}
END_TEST

START_TEST(keep_mixes_only_samples_that_were_running)
{
    struct switch_counts counts = switch_midway(false);
    ck_assert_int_gt(counts.off, 0); /* else the switch was not noticed at all */
    ck_assert_int_eq(counts.whole_off, 0);
}
END_TEST

START_TEST(numbers_that_are_not_finite_end_samples)
{
    struct bench b;
    struct samples all = {0};
    struct rollout_generator_options options = defaults();
    bool busy = false;
    bench_create(&b);
    for (int64_t i = 0; i < b.f.layout->master_count; i++) {
        b.f.master[i] = NAN;
    }
    struct rollout_generator *generator = make_generator(&b, &options);
    model_params_publish(b.f.layout, b.f.kernels, b.f.master, b.other, NULL);
    ck_assert_int_eq(submit(&b, generator, 1), RL_OK);
    for (int i = 0; i < 6; i++) {
        ck_assert_int_eq(rollout_generator_tick(generator, &busy), RL_OK);
    }
    rollout_generator_set_weights(generator, b.other, 1);
    ck_assert_int_eq(submit(&b, generator, 2), RL_OK);
    drain(generator, &all);
    ck_assert_uint_eq(rollout_generator_counters(generator)->nonfinite, 2 * SAMPLES);
    for (int s = 0; s < SAMPLES; s++) {
        ck_assert_int_eq(all.groups[1]->samples[s].finish, RL_FINISH_ABORTED);
        ck_assert_uint_eq(all.groups[1]->samples[s].completion_count, 5);
        ck_assert_int_eq(all.groups[2]->samples[s].finish, RL_FINISH_ABORTED);
        ck_assert_uint_eq(all.groups[2]->samples[s].completion_count, 0);
    }
    rollout_generator_destroy(generator);
    free_samples(&all);
    bench_destroy(&b);
}
END_TEST

START_TEST(bad_requests_are_refused)
{
    struct bench b;
    struct rollout_generator_options options = defaults();
    int32_t prompt[PROMPT_MAX + 1] = {0};
    struct rollout_request request = {
        .samples = 1, .prompt = prompt, .prompt_count = PROMPT_MAX + 1};
    bench_create(&b);
    struct rollout_generator *generator = make_generator(&b, &options);
    ck_assert_int_eq(rollout_generator_submit(generator, &request), RL_TOO_LONG);
    request.prompt_count = 0;
    ck_assert_int_eq(rollout_generator_submit(generator, &request), RL_TOO_LONG);
    request.prompt_count = 3;
    prompt[1] = VOCAB;
    ck_assert_int_eq(rollout_generator_submit(generator, &request), RL_INVALID);
    prompt[1] = -1;
    ck_assert_int_eq(rollout_generator_submit(generator, &request), RL_INVALID);
    prompt[1] = 0;
    for (int i = 0; i < PROMPTS; i++) {
        ck_assert_int_eq(rollout_generator_submit(generator, &request), RL_OK);
    }
    ck_assert_int_eq(rollout_generator_submit(generator, &request), RL_AGAIN);
    rollout_generator_destroy(generator); /* with groups inside */
    rollout_generator_destroy(NULL);
    options.max_completion = 1000;
    ck_assert_int_eq(rollout_generator_create(&b.f.context, NULL, &options, &generator),
                     RL_INVALID);
    bench_destroy(&b);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rollout_generator");
    TCase *tests = tcase_create("generator");
    tcase_add_test(tests, samples_do_not_depend_on_company);
    tcase_add_test(tests, without_stop_rules_the_limit_ends_a_sample);
    tcase_add_test(tests, stop_ids_end_a_sample);
    tcase_add_test(tests, stop_strings_end_a_sample);
    tcase_add_test(tests, recompute_gives_the_new_weights_log_probs);
    tcase_add_test(tests, keep_mixes_only_samples_that_were_running);
    tcase_add_test(tests, numbers_that_are_not_finite_end_samples);
    tcase_add_test(tests, bad_requests_are_refused);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
