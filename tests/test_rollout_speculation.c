/* Guessed tokens: the drafter alone against a plain search of all texts, the policy alone against
 * machines of which it knows only the times, and the engine with guesses against the engine
 * without: the same samples, bit for bit. */
#include "rollout/draft_policy.h"
#include "rollout/generator.h"
#include "rollout/speculation.h"
#include "tests/model_fixture.h"

#include <math.h>

enum { PROMPTS = 5, SAMPLES = 6, COMPLETION = 60, PROMPT_MAX = 40, VOCAB = 27, TEXT_MAX = 200 };

/* --- the drafter alone --------------------------------------------------------------------------
 */

struct texts {
    struct rollout_speculation *drafter;
    int32_t prompt[TEXT_MAX];
    int32_t completion[SAMPLES][TEXT_MAX];
    int32_t count[SAMPLES], prompt_count;
    struct rollout_speculation_text storage[SAMPLES];
};

static void texts_open(struct texts *t, const int32_t *prompt, int32_t prompt_count)
{
    memcpy(t->prompt, prompt, (size_t)prompt_count * sizeof(*prompt));
    memset(t->count, 0, sizeof(t->count));
    memset(t->storage, 0, sizeof(t->storage));
    t->prompt_count = prompt_count;
    struct rollout_speculation_group group = {t->prompt, prompt_count, SAMPLES, t->storage};
    rollout_speculation_open(t->drafter, 0, &group);
    for (int32_t s = 0; s < SAMPLES; s++) {
        struct rollout_speculation_start start = {0, s, t->completion[s]};
        rollout_speculation_start(t->drafter, s, &start);
    }
}

static void texts_create(struct texts *t)
{
    struct rollout_speculation_limits limits = {SAMPLES, 1, TEXT_MAX, TEXT_MAX};
    memset(t, 0, sizeof(*t));
    ck_assert_int_eq(rollout_speculation_create(&limits, &t->drafter), RL_OK);
}

static void say(struct texts *t, int32_t sample, int32_t token)
{
    t->completion[sample][t->count[sample]++] = token;
    rollout_speculation_append(t->drafter, sample);
}

/* Guesses for a sample, which lie after its text. */
static int32_t guess(struct texts *t, int32_t sample, float *chance)
{
    return rollout_speculation_guess(t->drafter, sample, SPECULATION_GUESSES, chance);
}

START_TEST(copies_are_guessed)
{
    static const int32_t prompt[] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4};
    struct texts t;
    float chance[SPECULATION_GUESSES];
    texts_create(&t);
    texts_open(&t, prompt, 20);
    say(&t, 2, 9);
    say(&t, 2, 2); /* as the prompt goes on from 6 */
    ck_assert_int_eq(guess(&t, 2, chance), 13);
    ck_assert_mem_eq(&t.completion[2][2], &prompt[7], 13 * sizeof(int32_t));
    for (int i = 0; i < 30; i++) { /* another sample's words, finished and moved away */
        say(&t, 0, 100 + i);
    }
    int32_t moved[30];
    memcpy(moved, t.completion[0], sizeof(moved));
    rollout_speculation_finish(t.drafter, 0, moved);
    memset(t.completion[0], 0, sizeof(t.completion[0]));
    say(&t, 1, 110);
    say(&t, 1, 111);
    ck_assert_int_eq(guess(&t, 1, chance), SPECULATION_GUESSES);
    ck_assert_mem_eq(&t.completion[1][2], &moved[12], SPECULATION_GUESSES * sizeof(int32_t));
    for (int i = 0; i < 40; i++) { /* a loop goes on into its own guesses */
        say(&t, 3, 50 + i % 3);
    }
    ck_assert_int_eq(guess(&t, 3, chance), SPECULATION_GUESSES);
    for (int i = 40; i < 40 + SPECULATION_GUESSES; i++) {
        ck_assert_int_eq(t.completion[3][i], 50 + i % 3);
    }
    rollout_speculation_destroy(t.drafter);
    rollout_speculation_destroy(NULL);
}
END_TEST

static int32_t token_of(const struct texts *t, int32_t sample, int32_t position)
{
    return position < t->prompt_count ? t->prompt[position]
                                      : t->completion[sample][position - t->prompt_count];
}

/* Is there a place in any text where the sample's last two tokens are followed by the guess? */
static bool has_source(const struct texts *t, int32_t sample, int32_t first_guess)
{
    int32_t end = t->prompt_count + t->count[sample];
    for (int32_t s = 0; s < SAMPLES; s++) {
        for (int32_t p = 2; p < t->prompt_count + t->count[s]; p++) {
            if (token_of(t, s, p) == first_guess &&
                token_of(t, s, p - 1) == token_of(t, sample, end - 1) &&
                token_of(t, s, p - 2) == token_of(t, sample, end - 2)) {
                return true;
            }
        }
    }
    return false;
}

/* One token of a sample: often what was said before somewhere. */
static void say_something(struct texts *t, struct rl_rng *rng, int32_t sample)
{
    int32_t from = (int32_t)rl_rng_next_below(rng, SAMPLES);
    int32_t at = t->count[sample];
    bool repeats = at < t->count[from] && rl_rng_next_below(rng, 5) > 0;
    say(t, sample, repeats ? t->completion[from][at] : (int32_t)rl_rng_next_below(rng, VOCAB));
}

START_TEST(guesses_come_from_the_texts)
{
    struct rl_rng rng = rl_rng_make(5, 5);
    struct texts t;
    int guesses = 0;
    texts_create(&t);
    for (int program = 0; program < 40; program++) { /* tables keep what closed groups left there */
        int32_t prompt[60];
        for (int i = 0; i < 60; i++) {
            prompt[i] = (int32_t)rl_rng_next_below(&rng, VOCAB);
        }
        texts_open(&t, prompt, (int32_t)(1 + rl_rng_next_below(&rng, 60)));
        for (int step = 0; step < 400; step++) {
            int32_t sample = (int32_t)rl_rng_next_below(&rng, SAMPLES);
            float chance[SPECULATION_GUESSES] = {0};
            if (t.count[sample] > TEXT_MAX - SPECULATION_GUESSES - 1) {
                continue;
            }
            say_something(&t, &rng, sample);
            int32_t count = guess(&t, sample, chance);
            guesses += count;
            ck_assert(count == 0 || has_source(&t, sample, t.completion[sample][t.count[sample]]));
            for (int32_t i = 0; i < count; i++) {
                ck_assert(chance[i] >= 0 && chance[i] <= (i > 0 ? chance[i - 1] : 1.0F));
            }
        }
        rollout_speculation_close(t.drafter, 0);
    }
    ck_assert_int_gt(guesses, 1000);
    rollout_speculation_destroy(t.drafter);
}
END_TEST

START_TEST(chances_are_learnt)
{
    struct rl_rng rng = rl_rng_make(6, 6);
    struct texts t;
    float chance[SPECULATION_GUESSES] = {0};
    const int32_t prompt[] = {0};
    texts_create(&t);
    texts_open(&t, prompt, 1);
    for (int i = 0; i < 180; i++) {
        say(&t, 0, i % 7);
    }
    ck_assert_int_gt(guess(&t, 0, chance), 8);
    ck_assert(chance[7] > 0.8F);
    for (int s = 1; s < SAMPLES; s++) { /* two words, at random: a run tells nothing */
        for (int i = 0; i < 180; i++) {
            say(&t, s, (int32_t)rl_rng_next_below(&rng, 2));
        }
    }
    ck_assert_int_gt(guess(&t, 1, chance), 4);
    ck_assert(chance[0] < 0.75F);
    ck_assert(chance[4] < 0.25F);
    rollout_speculation_destroy(t.drafter);
}
END_TEST

/* --- the policy alone ---------------------------------------------------------------------------
 */

/* A machine: a pass takes base_s + row_s a row, now and then much longer; guesses are right with
 * `right`, while `said` is what the drafter thinks. */
struct machine {
    double base_s, row_s;
    float right, said;
    int32_t sequences;
};

/* Time of plain passes for the same tokens over the time taken. */
static double speedup(const struct machine *m, int passes)
{
    struct rollout_draft_policy policy;
    struct rl_rng rng = rl_rng_make(9, 9);
    double taken_s = 0;
    double tokens = 0;
    rollout_draft_policy_init(&policy);
    for (int pass = 0; pass < passes; pass++) {
        rollout_draft_policy_clear(&policy);
        for (int32_t s = 0; s < m->sequences; s++) {
            float chance = 1;
            for (int i = 0; i < SPECULATION_GUESSES; i++) {
                chance *= m->said;
                rollout_draft_policy_offer(&policy, chance);
            }
        }
        struct draft_choice choice = rollout_draft_policy_choose(&policy, m->sequences);
        struct draft_pass done = {m->sequences, choice.rows, m->sequences, 0};
        for (int32_t i = 0; i < choice.rows;) { /* each sequence takes as many as it may */
            double all = 1;
            for (int k = 0; k < SPECULATION_GUESSES && i < choice.rows; k++, i++) {
                all *= rl_rng_next_uniform(&rng) < (double)m->right;
                done.tokens += all > 0;
            }
        }
        done.seconds = m->base_s + m->row_s * (m->sequences + choice.rows);
        taken_s += done.seconds;
        tokens += (double)done.tokens / m->sequences;
        done.seconds *= rl_rng_next_below(&rng, 20) == 0 ? 5 : 1; /* somebody else's work */
        rollout_draft_policy_learn(&policy, &done);
    }
    return tokens * (m->base_s + m->row_s * m->sequences) / taken_s;
}

START_TEST(guesses_are_made_where_they_pay)
{
    const struct machine memory_bound = {1e-3, 5e-5, 0.9F, 0.9F, 1};
    const struct machine batch = {8e-3, 5e-4, 0.9F, 0.9F, 4};
    ck_assert(speedup(&memory_bound, 4000) > 3);
    ck_assert(speedup(&batch, 4000) > 1.5);
}
END_TEST

START_TEST(guesses_that_do_not_pay_cost_next_to_nothing)
{
    const struct machine machines[] = {
        {1e-3, 5e-5, 0.0F, 0.95F, 1},  /* the drafter is wrong about itself */
        {1e-5, 1e-3, 0.5F, 0.5F, 1},   /* compute-bound: a row costs what it gives */
        {1e-4, 1e-4, 0.9F, 0.9F, 64},  /* the same, and most guesses are right */
        {1e-3, 1e-3, 0.1F, 0.1F, 8},   /* few are right */
        {1e-5, 5e-3, 0.99F, 0.99F, 1}, /* all are right, and it does not help */
    };
    for (size_t i = 0; i < sizeof(machines) / sizeof(machines[0]); i++) {
        ck_assert_msg(speedup(&machines[i], 2000) > 0.975, "machine %zu: %g", i,
                      speedup(&machines[i], 2000));
    }
}
END_TEST

/* --- the engine ---------------------------------------------------------------------------------
 */

struct bench {
    struct model_fixture f;
    int32_t prompts[PROMPTS][PROMPT_MAX];
    uint32_t prompt_count[PROMPTS];
    void *other; /* image of another version */
};

struct samples {
    struct trajectory_group *groups[PROMPTS];
    uint64_t guessed, right;
};

static void bench_create(struct bench *b, int architecture, int threads)
{
    struct model_architecture arch = fixture_architecture(architecture);
    struct fixture_options options = {kernel_isa_best(), KERNEL_FP32, threads};
    struct rl_rng rng = rl_rng_make(3, 3);
    arch.vocab = VOCAB;
    memset(b, 0, sizeof(*b));
    fixture_create(&b->f, &arch, &options);
    ck_assert_int_eq(device_alloc(b->f.layout->image_bytes, "image", &b->other), RL_OK);
    fixture_randomise(&b->f, 18);
    memcpy(b->other, b->f.image, b->f.layout->image_bytes);
    fixture_randomise(&b->f, 17);
    for (int i = 0; i < PROMPTS; i++) {
        b->prompt_count[i] = (uint32_t)(1 + i * (PROMPT_MAX - 1) / (PROMPTS - 1));
        for (int j = 0; j < PROMPT_MAX; j++) {
            b->prompts[i][j] = (int32_t)rl_rng_next_below(&rng, 3); /* full of repetition */
        }
    }
}

static void bench_destroy(struct bench *b)
{
    device_free(b->other);
    fixture_destroy(&b->f);
}

/* A token that the model cannot read: whatever follows it is not a number. */
static void poison_token(struct bench *b, int32_t token)
{
    const struct model_tensor *t = model_layout_tensor(b->f.layout, MODEL_PARAM_EMBEDDING, -1);
    for (int64_t i = 0; i < t->cols; i++) {
        b->f.master[t->offset + token * t->cols + i] = NAN;
    }
    fixture_publish(&b->f);
}

static struct device_source image_of(void *arg, uint32_t version)
{
    const struct bench *b = arg;
    return (struct device_source){.data = version == 0 ? b->f.image : b->other};
}

/* One way to sample all prompts. */
struct way {
    enum rollout_speculation_mode mode;
    int32_t running;
    float temperature;
    bool forced;    /* lengths given */
    bool scheduled; /* versions given */
    bool recompute;
};

static void submit(struct bench *b, struct rollout_generator *generator, const struct way *way,
                   int prompt)
{
    const struct rollout_switch switches[] = {{0, 0}, {4, 1}, {5, 0}, {23, 1}};
    struct rollout_schedule schedules[SAMPLES];
    uint32_t lengths[SAMPLES];
    for (uint32_t s = 0; s < SAMPLES; s++) {
        schedules[s] = (struct rollout_schedule){1 + s % 4, switches};
        lengths[s] = 1 + (uint32_t)prompt + s * (COMPLETION - 6) / SAMPLES;
    }
    struct rollout_request request = {.ticket = (uint64_t)prompt,
                                      .prompt_id = (uint64_t)prompt,
                                      .samples = SAMPLES,
                                      .prompt = b->prompts[prompt],
                                      .prompt_count = b->prompt_count[prompt],
                                      .schedule = way->scheduled ? schedules : NULL,
                                      .lengths = way->forced ? lengths : NULL};
    ck_assert_int_eq(rollout_generator_submit(generator, &request), RL_OK);
}

static void sample_all(struct bench *b, const struct way *way, struct samples *out)
{
    struct rollout_generator_options options = {
        .max_running = way->running,
        .max_groups = PROMPTS,
        .max_prompt = PROMPT_MAX,
        .max_completion = COMPLETION,
        .prefill_chunk = 16,
        .recompute_on_update = way->recompute,
        .speculation = way->mode,
        .seed = 11,
        .sampling = {.temperature = way->temperature, .top_p = 1},
        .stop_strings = "",
        .stop_token_ids = "9"};
    struct rollout_generator *generator = NULL;
    bool busy = true;
    memset(out, 0, sizeof(*out));
    ck_assert_int_eq(rollout_generator_create(&b->f.context, NULL, &options, &generator), RL_OK);
    rollout_generator_set_image_source(generator, image_of, b);
    rollout_generator_set_weights(generator, b->f.image, 0);
    for (int i = 0; i < PROMPTS; i++) {
        submit(b, generator, way, i);
    }
    while (busy) {
        struct trajectory_group *group = NULL;
        ck_assert_int_eq(rollout_generator_tick(generator, &busy), RL_OK);
        while (rollout_generator_take(generator, &group) == RL_OK) {
            out->groups[group->prompt_id] = group;
        }
    }
    const struct rollout_counters *counters = rollout_generator_counters(generator);
    out->guessed = counters->times.guessed_tokens;
    out->right = counters->times.right_guesses;
    rollout_generator_destroy(generator);
}

static void free_samples(struct samples *samples)
{
    for (int i = 0; i < PROMPTS; i++) {
        trajectory_group_destroy(samples->groups[i]);
    }
}

static void same_samples(const struct samples *a, const struct samples *b)
{
    for (int i = 0; i < PROMPTS; i++) {
        for (int s = 0; s < SAMPLES; s++) {
            const struct trajectory *x = &a->groups[i]->samples[s];
            const struct trajectory *y = &b->groups[i]->samples[s];
            size_t count = x->completion_count;
            ck_assert_uint_eq(x->completion_count, y->completion_count);
            ck_assert_int_eq(x->finish, y->finish);
            ck_assert_mem_eq(x->tokens, y->tokens, (x->prompt_count + count) * sizeof(int32_t));
            ck_assert_mem_eq(x->logprob, y->logprob, count * sizeof(float));
            ck_assert_mem_eq(x->version, y->version, count * sizeof(uint32_t));
        }
    }
}

/* Without guesses one sequence at a time, then with guesses in every way. */
static void compare(struct bench *plain, struct bench *threaded, struct way way, uint64_t *right,
                    uint64_t *wrong)
{
    static const int32_t running[] = {1, 7, 64};
    struct samples base;
    struct samples other;
    way.mode = ROLLOUT_SPECULATION_OFF;
    way.running = 1;
    sample_all(plain, &way, &base);
    ck_assert_uint_eq(base.guessed, 0);
    for (int i = 0; i < 3; i++) {
        way.mode = i == 1 ? ROLLOUT_SPECULATION_AUTO : ROLLOUT_SPECULATION_ALWAYS;
        way.running = running[i];
        sample_all(i == 2 ? threaded : plain, &way, &other);
        same_samples(&base, &other);
        *right += other.right;
        *wrong += other.guessed - other.right;
        free_samples(&other);
    }
    free_samples(&base);
}

START_TEST(samples_are_the_same_with_guesses)
{
    static const float temperatures[] = {0, 0.3F, 1};
    for (int architecture = 0; architecture < 3; architecture++) {
        struct bench plain;
        struct bench threaded;
        uint64_t right = 0;
        uint64_t wrong = 0;
        bench_create(&plain, architecture, 1);
        bench_create(&threaded, architecture, 2);
        for (int i = 0; i < 12; i++) {
            struct way way = {.temperature = temperatures[i % 3],
                              .forced = i >= 6,
                              .scheduled = i / 3 % 2 == 1,
                              .recompute = i % 2 == 1};
            compare(&plain, &threaded, way, &right, &wrong);
        }
        ck_assert_uint_gt(right, 1000); /* else nothing was tested */
        ck_assert_uint_gt(wrong, 1000);
        bench_destroy(&threaded);
        bench_destroy(&plain);
    }
}
END_TEST

START_TEST(wrong_guesses_that_are_not_numbers_leave_no_trace)
{
    struct bench b;
    uint64_t right = 0;
    uint64_t wrong = 0;
    struct way way = {.temperature = 1};
    struct samples poisoned;
    int aborted = 0;
    bench_create(&b, 2, 1);
    poison_token(&b, 4);
    for (int i = 0; i < PROMPTS; i++) {
        for (int j = 0; j < PROMPT_MAX; j++) { /* 1 is often followed by 4, but not in the end */
            b.prompts[i][j] = j % 2 == 0 ? 1 : 2;
        }
    }
    compare(&b, &b, way, &right, &wrong);
    ck_assert_uint_gt(right, 0);
    way.mode = ROLLOUT_SPECULATION_ALWAYS;
    way.running = 16;
    sample_all(&b, &way, &poisoned);
    for (int i = 0; i < PROMPTS; i++) {
        for (int s = 0; s < SAMPLES; s++) {
            aborted += poisoned.groups[i]->samples[s].finish == RL_FINISH_ABORTED;
        }
    }
    ck_assert_int_gt(aborted, 0);
    free_samples(&poisoned);
    bench_destroy(&b);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rollout_speculation");
    TCase *tests = tcase_create("speculation");
    tcase_add_test(tests, copies_are_guessed);
    tcase_add_test(tests, guesses_come_from_the_texts);
    tcase_add_test(tests, chances_are_learnt);
    tcase_add_test(tests, guesses_are_made_where_they_pay);
    tcase_add_test(tests, guesses_that_do_not_pay_cost_next_to_nothing);
    tcase_add_test(tests, samples_are_the_same_with_guesses);
    tcase_add_test(tests, wrong_guesses_that_are_not_numbers_leave_no_trace);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
