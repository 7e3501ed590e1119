/* The rollout engine on a device whose memory the host may not touch (walled_device.h): the same
 * samples, and new weights that come from the host's memory while it goes on. */
#include "rollout/generator.h"
#include "tests/model_fixture.h"
#include "tests/walled_device.h"

enum { PROMPTS = 3, SAMPLES = 3, COMPLETION = 20, PROMPT = 21, VERSIONS = 3, VOCAB = 27 };

struct bench {
    struct model_fixture f;
    void *images[VERSIONS]; /* the host's */
    struct rl_pool *pool;
    struct model_layout *layout; /* behind the wall */
    struct model_context context;
};

static void bench_create(struct bench *b)
{
    struct model_architecture arch = fixture_architecture(0);
    struct fixture_options options = {kernel_isa_best(), KERNEL_BF16, 1};
    arch.vocab = VOCAB;
    fixture_create(&b->f, &arch, &options);
    for (int i = 0; i < VERSIONS; i++) {
        fixture_randomise(&b->f, 20 + (uint64_t)i);
        ck_assert_int_eq(device_alloc(b->f.layout->image_bytes, "image", &b->images[i]), RL_OK);
        memcpy(b->images[i], b->f.image, b->f.layout->image_bytes);
    }
    ck_assert_int_eq(rl_pool_create(1, &b->pool), RL_OK);
    ck_assert_int_eq(device_stream_start(walled_device(), b->pool), RL_OK);
    ck_assert_int_eq(
        model_layout_create_on(walled_device(), b->pool, &arch, KERNEL_BF16, 512, &b->layout),
        RL_OK);
    b->context =
        (struct model_context){.layout = b->layout, .kernels = walled_kernels(), .pool = b->pool};
}

static void bench_destroy(struct bench *b)
{
    model_layout_destroy(b->layout);
    device_stream_stop(b->pool);
    rl_pool_destroy(b->pool);
    for (int i = 0; i < VERSIONS; i++) {
        device_free(b->images[i]);
    }
    fixture_destroy(&b->f);
    ck_assert_int_eq(walled_held(), 0);
}

static void submit(struct rollout_generator *generator, const struct rollout_schedule *schedule)
{
    int32_t prompt[PROMPT];
    for (int i = 0; i < PROMPTS; i++) {
        for (int j = 0; j < PROMPT; j++) {
            prompt[j] = (5 * i + 3 * j) % VOCAB;
        }
        struct rollout_request request = {.ticket = (uint64_t)i,
                                          .prompt_id = (uint64_t)i,
                                          .samples = SAMPLES,
                                          .prompt = prompt,
                                          .prompt_count = (uint32_t)(PROMPT - 3 * i),
                                          .schedule = schedule};
        ck_assert_int_eq(rollout_generator_submit(generator, &request), RL_OK);
    }
}

static struct rollout_generator *make(const struct model_context *context)
{
    struct rollout_generator_options options = {.max_running = 7,
                                                .max_groups = PROMPTS,
                                                .max_prompt = PROMPT,
                                                .max_completion = COMPLETION,
                                                .prefill_chunk = 16,
                                                .seed = 11,
                                                .sampling = {.temperature = 0.8F, .top_p = 1},
                                                .stop_strings = "",
                                                .stop_token_ids = ""};
    struct rollout_generator *generator = NULL;
    ck_assert_int_eq(rollout_generator_create(context, NULL, &options, &generator), RL_OK);
    return generator;
}

static struct device_source host_image(const void *image)
{
    return (struct device_source){.data = image};
}

/* In use from the next tick on. */
static void load(struct rollout_generator *generator, const void *image, uint32_t version)
{
    rl_status status = rollout_generator_load_weights(generator, host_image(image), version);
    while (status == RL_AGAIN) {
        rollout_generator_await_weights(generator);
        status = rollout_generator_load_weights(generator, host_image(image), version);
    }
    ck_assert_int_eq(status, RL_OK);
}

/* Samples with a switch every six ticks. */
static void sample(const struct bench *b, const struct model_context *context,
                   struct trajectory_group *out[PROMPTS])
{
    struct rollout_generator *generator = make(context);
    bool busy = true;
    load(generator, b->images[0], 0);
    submit(generator, NULL);
    for (uint32_t tick = 1; busy; tick++) {
        struct trajectory_group *group = NULL;
        ck_assert_int_eq(rollout_generator_tick(generator, &busy), RL_OK);
        if (tick % 6 == 0) {
            load(generator, b->images[tick / 6 % VERSIONS], tick / 6);
        }
        while (rollout_generator_take(generator, &group) == RL_OK) {
            out[group->prompt_id] = group;
        }
    }
    rollout_generator_destroy(generator);
}

static void assert_same(struct trajectory_group *a[PROMPTS], struct trajectory_group *b[PROMPTS])
{
    for (int i = 0; i < PROMPTS; i++) {
        for (int s = 0; s < SAMPLES; s++) {
            const struct trajectory *x = &a[i]->samples[s];
            const struct trajectory *y = &b[i]->samples[s];
            uint32_t count = x->completion_count;
            ck_assert_uint_eq(count, y->completion_count);
            ck_assert_mem_eq(x->tokens, y->tokens, (x->prompt_count + count) * sizeof(int32_t));
            ck_assert_mem_eq(x->logprob, y->logprob, count * sizeof(float));
            ck_assert_mem_eq(x->version, y->version, count * sizeof(uint32_t));
        }
        trajectory_group_destroy(a[i]);
        trajectory_group_destroy(b[i]);
    }
}

START_TEST(samples_are_the_same)
{
    struct bench b;
    struct trajectory_group *here[PROMPTS] = {0};
    struct trajectory_group *there[PROMPTS] = {0};
    bench_create(&b);
    sample(&b, &b.f.context, here);
    sample(&b, &b.context, there);
    ck_assert_uint_gt(here[PROMPTS - 1]->samples[0].version[COMPLETION - 1], 2);
    assert_same(here, there);
    bench_destroy(&b);
}
END_TEST

/* The engine goes on with what it has until the copy is made. */
START_TEST(loading_stops_nothing)
{
    struct bench b;
    bool busy = false;
    bench_create(&b);
    struct rollout_generator *generator = make(&b.context);
    load(generator, b.images[0], 4);
    submit(generator, NULL);
    ck_assert_int_eq(rollout_generator_tick(generator, &busy), RL_OK);
    uint32_t version = 5;
    for (; version < 9; version++) {
        ck_assert_int_eq(
            rollout_generator_load_weights(generator, host_image(b.images[1]), version), RL_AGAIN);
        ck_assert_int_eq(rollout_generator_tick(generator, &busy), RL_OK);
        ck_assert(busy);
        load(generator, b.images[1], version);
    }
    ck_assert_uint_eq(rollout_generator_counters(generator)->switches, 4);
    ck_assert_int_eq(rollout_generator_load_weights(generator, host_image(b.images[2]), version),
                     RL_AGAIN);
    rollout_generator_destroy(generator); /* with a copy under way, and groups inside */
    bench_destroy(&b);
}
END_TEST

static struct device_source image_of(void *arg, uint32_t version)
{
    const struct bench *b = arg;
    return host_image(version < VERSIONS ? b->images[version] : NULL);
}

static void sample_scheduled(struct bench *b, const struct model_context *context,
                             struct trajectory_group *out[PROMPTS])
{
    struct rollout_switch switches[] = {{0, 1}, {9, 2}};
    struct rollout_schedule schedule[SAMPLES];
    struct rollout_generator *generator = make(context);
    struct trajectory_group *group = NULL;
    int taken = 0;
    for (int i = 0; i < SAMPLES; i++) {
        schedule[i] = (struct rollout_schedule){.count = 1 + i % 2, .switches = switches};
    }
    rollout_generator_set_image_source(generator, image_of, b);
    load(generator, b->images[0], 0);
    submit(generator, schedule);
    while (taken < PROMPTS) {
        bool busy = false;
        ck_assert_int_eq(rollout_generator_tick(generator, &busy), RL_OK);
        if (!busy) {
            rollout_generator_await_weights(generator);
        }
        while (rollout_generator_take(generator, &group) == RL_OK) {
            out[group->prompt_id] = group;
            taken++;
        }
    }
    rollout_generator_destroy(generator);
}

START_TEST(scheduled_versions_come_from_the_host)
{
    struct bench b;
    struct trajectory_group *here[PROMPTS] = {0};
    struct trajectory_group *there[PROMPTS] = {0};
    bench_create(&b);
    sample_scheduled(&b, &b.f.context, here);
    sample_scheduled(&b, &b.context, there);
    ck_assert_uint_eq(here[0]->samples[1].version[COMPLETION - 1], 2);
    assert_same(here, there);
    bench_destroy(&b);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rollout_device");
    TCase *all = tcase_create("device");
    tcase_add_test(all, samples_are_the_same);
    tcase_add_test(all, loading_stops_nothing);
    tcase_add_test(all, scheduled_versions_come_from_the_host);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
