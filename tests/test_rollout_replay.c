/* A sample is what its `version` array says: samples generated live, with the weights switched at
 * random passes, are generated again from their recorded versions, alone and together, bit for bit,
 * with guessed tokens or without.
 * And groups interrupted half-way go on from their finished samples. */
#include "rollout/generator.h"
#include "tests/model_fixture.h"

enum {
    VERSIONS = 6,
    PROMPTS = 7,
    SAMPLES = 5,
    COMPLETION = 28,
    PROMPT_MAX = 40,
    VOCAB = 27,
    TRIALS = 16
};

static const uint32_t prompt_lengths[PROMPTS] = {1, 7, 16, 17, 33, 40, 36};

struct bench {
    struct model_fixture f;
    void *images[VERSIONS];
    uint32_t first_here; /* lower versions are not here yet */
    int32_t prompts[PROMPTS][PROMPT_MAX];
    struct rl_rng rng;
};

struct samples {
    struct trajectory_group *groups[PROMPTS];
};

/* Schedules of one recorded group. */
struct recorded {
    struct rollout_schedule schedules[SAMPLES];
    struct rollout_switch switches[SAMPLES][COMPLETION];
    uint32_t lengths[SAMPLES];
};

static void bench_create(struct bench *b, int architecture)
{
    struct model_architecture arch = fixture_architecture(architecture);
    struct fixture_options options = {kernel_isa_best(), KERNEL_FP32, 1};
    arch.vocab = VOCAB;
    memset(b, 0, sizeof(*b));
    b->rng = rl_rng_make(3, (uint64_t)architecture);
    fixture_create(&b->f, &arch, &options);
    for (int v = 0; v < VERSIONS; v++) {
        fixture_randomise(&b->f, 18 + (uint64_t)v);
        ck_assert_int_eq(device_alloc(b->f.layout->image_bytes, "image", &b->images[v]), RL_OK);
        memcpy(b->images[v], b->f.image, b->f.layout->image_bytes);
    }
    for (int i = 0; i < PROMPTS; i++) {
        for (int j = 0; j < PROMPT_MAX; j++) {
            b->prompts[i][j] = (int32_t)rl_rng_next_below(&b->rng, VOCAB);
        }
    }
}

static void bench_destroy(struct bench *b)
{
    for (int v = 0; v < VERSIONS; v++) {
        device_free(b->images[v]);
    }
    fixture_destroy(&b->f);
}

static struct device_source image_of(void *arg, uint32_t version)
{
    const struct bench *b = arg;
    bool here = version >= b->first_here && version < VERSIONS;
    return (struct device_source){.data = here ? b->images[version] : NULL};
}

static struct rollout_generator *make_generator(struct bench *b, bool recompute, int32_t chunk)
{
    struct rollout_generator_options options = {.max_running =
                                                    (int32_t)(3 + rl_rng_next_below(&b->rng, 12)),
                                                .max_groups = PROMPTS,
                                                .max_prompt = PROMPT_MAX,
                                                .max_completion = COMPLETION,
                                                .prefill_chunk = chunk,
                                                .recompute_on_update = recompute,
                                                .speculation = rl_rng_next_below(&b->rng, 3),
                                                .seed = 11,
                                                .sampling = {.temperature = 0.8F, .top_p = 1},
                                                .stop_strings = "",
                                                .stop_token_ids = "5"};
    struct rollout_generator *generator = NULL;
    ck_assert_int_eq(rollout_generator_create(&b->f.context, NULL, &options, &generator), RL_OK);
    rollout_generator_set_image_source(generator, image_of, b);
    return generator;
}

static struct rollout_request request_of(struct bench *b, int prompt)
{
    return (struct rollout_request){.ticket = (uint64_t)prompt,
                                    .prompt_id = (uint64_t)prompt,
                                    .samples = SAMPLES,
                                    .prompt = b->prompts[prompt],
                                    .prompt_count = prompt_lengths[prompt]};
}

static void submit(struct rollout_generator *generator, const struct rollout_request *request)
{
    ck_assert_int_eq(rollout_generator_submit(generator, request), RL_OK);
}

static void free_samples(struct samples *samples)
{
    for (int i = 0; i < PROMPTS; i++) {
        trajectory_group_destroy(samples->groups[i]);
        samples->groups[i] = NULL;
    }
}

static bool step(struct rollout_generator *generator, struct samples *out)
{
    struct trajectory_group *group = NULL;
    bool busy = false;
    ck_assert_int_eq(rollout_generator_tick(generator, &busy), RL_OK);
    while (rollout_generator_take(generator, &group) == RL_OK) {
        ck_assert_ptr_null(out->groups[group->prompt_id]);
        out->groups[group->prompt_id] = group;
    }
    return busy;
}

static void drain(struct rollout_generator *generator, struct samples *out)
{
    while (step(generator, out)) {
    }
    ck_assert_int_eq(rollout_generator_groups(generator), 0);
}

/* All prompts, entering and switching at random passes. */
static void sample_live(struct bench *b, bool recompute, int32_t chunk, struct samples *out)
{
    struct rollout_generator *generator = make_generator(b, recompute, chunk);
    uint32_t version = 0;
    int entered = 0;
    *out = (struct samples){0};
    rollout_generator_set_weights(generator, b->images[0], 0);
    while (entered < PROMPTS || rollout_generator_groups(generator) > 0) {
        if (entered < PROMPTS && rl_rng_next_below(&b->rng, 3) == 0) {
            struct rollout_request request = request_of(b, entered++);
            submit(generator, &request);
        }
        if (version + 1 < VERSIONS && rl_rng_next_below(&b->rng, 14) == 0) {
            version++;
            rollout_generator_set_weights(generator, b->images[version], version);
        }
        (void)step(generator, out);
    }
    rollout_generator_destroy(generator);
}

static void record(const struct trajectory_group *group, struct recorded *r)
{
    for (int s = 0; s < SAMPLES; s++) {
        const struct trajectory *sample = &group->samples[s];
        uint32_t count = 0;
        for (uint32_t t = 0; t < sample->completion_count; t++) {
            if (t == 0 || sample->version[t] != sample->version[t - 1]) {
                r->switches[s][count++] = (struct rollout_switch){t, sample->version[t]};
            }
        }
        r->schedules[s] = (struct rollout_schedule){count, r->switches[s]};
        r->lengths[s] = sample->completion_count;
    }
}

static void same_sample(const struct trajectory *a, const struct trajectory *b)
{
    size_t count = a->completion_count;
    ck_assert_uint_eq(a->completion_count, b->completion_count);
    ck_assert_uint_eq(a->prompt_count, b->prompt_count);
    ck_assert_int_eq(a->finish, b->finish);
    ck_assert_mem_eq(a->tokens, b->tokens, (a->prompt_count + count) * sizeof(int32_t));
    ck_assert_mem_eq(a->logprob, b->logprob, count * sizeof(float));
    ck_assert_mem_eq(a->version, b->version, count * sizeof(uint32_t));
}

static void same_samples(const struct samples *a, const struct samples *b)
{
    for (int i = 0; i < PROMPTS; i++) {
        ck_assert_ptr_nonnull(b->groups[i]);
        for (int s = 0; s < SAMPLES; s++) {
            same_sample(&a->groups[i]->samples[s], &b->groups[i]->samples[s]);
        }
    }
}

/* Every sample in an engine of its own, the others left out. */
static void replay_alone(struct bench *b, bool recompute, const struct samples *live)
{
    for (int i = 0; i < PROMPTS; i++) {
        struct recorded recorded;
        record(live->groups[i], &recorded);
        for (int s = 0; s < SAMPLES; s++) {
            struct samples again = {0};
            uint32_t lengths[SAMPLES] = {0};
            struct rollout_request request = request_of(b, i);
            struct rollout_generator *generator = make_generator(b, recompute, 64);
            lengths[s] = recorded.lengths[s];
            request.schedule = recorded.schedules;
            request.lengths = lengths;
            submit(generator, &request);
            drain(generator, &again);
            same_sample(&live->groups[i]->samples[s], &again.groups[i]->samples[s]);
            ck_assert_uint_eq(again.groups[i]->samples[(s + 1) % SAMPLES].completion_count, 0);
            rollout_generator_destroy(generator);
            free_samples(&again);
        }
    }
}

/* All samples in one engine; the first versions come late, and sequences wait for them. */
static void replay_together(struct bench *b, bool recompute, const struct samples *live)
{
    struct samples again = {0};
    struct rollout_generator *generator = make_generator(b, recompute, 10);
    b->first_here = 3;
    for (int i = 0; i < PROMPTS; i++) {
        struct recorded recorded;
        struct rollout_request request = request_of(b, i);
        record(live->groups[i], &recorded);
        request.schedule = recorded.schedules;
        submit(generator, &request); /* the stop rules give the lengths */
    }
    while (step(generator, &again)) {
    }
    ck_assert_int_gt(rollout_generator_groups(generator), 0);
    b->first_here = 0;
    drain(generator, &again);
    same_samples(live, &again);
    rollout_generator_destroy(generator);
    free_samples(&again);
}

/* Tokens sampled after a switch inside a sample, and samples of one group begun by different
 * versions: without them the test would prove nothing. */
static void count_mixed(const struct samples *live, int *mixed, int *staggered)
{
    for (int i = 0; i < PROMPTS; i++) {
        const struct trajectory *samples = live->groups[i]->samples;
        for (int s = 0; s < SAMPLES; s++) {
            *mixed += samples[s].version[0] != samples[s].version[samples[s].completion_count - 1];
            *staggered += samples[s].version[0] != samples[0].version[0];
        }
    }
}

static void live_and_again(bool recompute)
{
    int mixed = 0;
    int staggered = 0;
    for (int trial = 0; trial < TRIALS; trial++) {
        struct bench b;
        struct samples live;
        bench_create(&b, trial % 2);
        b.rng = rl_rng_make(100, (uint64_t)trial);
        sample_live(&b, recompute, (int32_t)(1 + rl_rng_next_below(&b.rng, 24)), &live);
        count_mixed(&live, &mixed, &staggered);
        replay_alone(&b, recompute, &live);
        replay_together(&b, recompute, &live);
        free_samples(&live);
        bench_destroy(&b);
    }
    ck_assert_int_gt(mixed, 5 * TRIALS);
    ck_assert_int_gt(staggered, TRIALS);
}

START_TEST(kept_caches_replay_from_versions)
{
    live_and_again(false);
}
END_TEST

START_TEST(recomputed_caches_replay_from_versions)
{
    live_and_again(true);
}
END_TEST

static void submit_all(struct bench *b, struct rollout_generator *generator,
                       struct trajectory_group **done)
{
    for (int i = 0; i < PROMPTS; i++) {
        struct rollout_request request = request_of(b, i);
        request.done = done != NULL ? done[i] : NULL;
        submit(generator, &request);
    }
}

/* Run `passes`, then let another engine go on: finished groups from `before`, others from partials.
 * Returns how many samples it was spared. */
static int interrupt(struct bench *b, int passes, struct samples *out)
{
    struct samples done = {0};
    struct trajectory_group **partials = NULL;
    int32_t count = 0;
    int spared = 0;
    struct rollout_generator *generator = make_generator(b, false, 16);
    rollout_generator_set_weights(generator, b->images[0], 0);
    submit_all(b, generator, NULL);
    for (int i = 0; i < passes; i++) {
        (void)step(generator, &done);
    }
    ck_assert_int_eq(rollout_generator_partials(generator, &partials, &count), RL_OK);
    rollout_generator_destroy(generator);
    for (int32_t i = 0; i < count; i++) {
        ck_assert_ptr_null(done.groups[partials[i]->prompt_id]);
        ck_assert_int_eq(trajectory_group_check(partials[i]), RL_OK);
        done.groups[partials[i]->prompt_id] = partials[i];
        for (int s = 0; s < SAMPLES; s++) {
            spared += partials[i]->samples[s].completion_count > 0;
        }
    }
    free(partials);
    generator = make_generator(b, false, 16);
    rollout_generator_set_weights(generator, b->images[0], 0);
    submit_all(b, generator, done.groups);
    drain(generator, out);
    rollout_generator_destroy(generator);
    free_samples(&done);
    return spared;
}

START_TEST(interrupted_groups_go_on_from_finished_samples)
{
    struct bench b;
    struct samples undisturbed = {0};
    int spared = 0;
    bench_create(&b, 0);
    struct rollout_generator *generator = make_generator(&b, false, 16);
    rollout_generator_set_weights(generator, b.images[0], 0);
    submit_all(&b, generator, NULL);
    drain(generator, &undisturbed);
    rollout_generator_destroy(generator);
    for (int trial = 0; trial < 12; trial++) {
        struct samples again = {0};
        spared += interrupt(&b, (int)rl_rng_next_below(&b.rng, 120), &again);
        same_samples(&undisturbed, &again);
        free_samples(&again);
    }
    ck_assert_int_gt(spared, 12);
    free_samples(&undisturbed);
    bench_destroy(&b);
}
END_TEST

START_TEST(bad_schedules_and_partials_are_refused)
{
    struct bench b;
    struct trajectory_group *done = NULL;
    struct rollout_switch switches[] = {{1, 0}, {0, 0}, {4, 1}, {4, 2}};
    struct rollout_schedule late[SAMPLES] = {{1, &switches[0]}};
    struct rollout_schedule twice[SAMPLES] = {{3, &switches[1]}};
    uint32_t lengths[SAMPLES] = {COMPLETION + 1};
    float logprob = -1;
    uint32_t version = 0;
    int32_t tokens[PROMPT_MAX + 1];
    bench_create(&b, 0);
    struct rollout_generator *generator = make_generator(&b, false, 16);
    struct rollout_request request = request_of(&b, 1);
    memcpy(tokens, b.prompts[1], prompt_lengths[1] * sizeof(int32_t));
    tokens[0] = (tokens[0] + 1) % VOCAB; /* another prompt */
    tokens[prompt_lengths[1]] = 3;
    ck_assert_int_eq(trajectory_group_create(SAMPLES, &done), RL_OK);
    ck_assert_int_eq(
        trajectory_set_tokens(&done->samples[2], tokens, &logprob, &version, prompt_lengths[1], 1),
        RL_OK);
    request.schedule = late;
    ck_assert_int_eq(rollout_generator_submit(generator, &request), RL_INVALID);
    request.schedule = twice;
    ck_assert_int_eq(rollout_generator_submit(generator, &request), RL_INVALID);
    request.schedule = NULL;
    request.lengths = lengths;
    ck_assert_int_eq(rollout_generator_submit(generator, &request), RL_TOO_LONG);
    request.lengths = NULL;
    request.done = done;
    ck_assert_int_eq(rollout_generator_submit(generator, &request), RL_INVALID);
    request.samples = 1;
    ck_assert_int_eq(rollout_generator_submit(generator, &request), RL_INVALID);
    ck_assert_int_eq(rollout_generator_groups(generator), 0);
    trajectory_group_destroy(done);
    rollout_generator_destroy(generator);
    bench_destroy(&b);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rollout_replay");
    TCase *tests = tcase_create("replay");
    tcase_add_test(tests, kept_caches_replay_from_versions);
    tcase_add_test(tests, recomputed_caches_replay_from_versions);
    tcase_add_test(tests, interrupted_groups_go_on_from_finished_samples);
    tcase_add_test(tests, bad_schedules_and_partials_are_refused);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
