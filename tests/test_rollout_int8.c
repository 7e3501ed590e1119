/* The rollout engine with int8 weights: it samples what an engine on the int8 image itself does;
 * new versions are made ready beside decoding, after which the images that they were made from may
 * go; and samples of many versions come again, bit for bit, from their recorded versions. */
#include "rollout/generator.h"
#include "tests/model_fixture.h"

enum {
    VERSIONS = 12,
    PROMPTS = 3,
    SAMPLES = 4,
    COMPLETION = 40,
    PROMPT = 19,
    VOCAB = 27,
    TOKENS = SAMPLES * COMPLETION
};

struct bench {
    struct model_fixture f;
    void *images[VERSIONS];
    void *scratch; /* an image that comes and goes */
    int32_t prompts[PROMPTS][PROMPT];
};

struct samples {
    struct trajectory_group *groups[PROMPTS];
};

static void bench_create(struct bench *b)
{
    struct model_architecture arch = fixture_architecture(1);
    struct fixture_options options = {kernel_isa_best(), KERNEL_BF16, 2};
    struct rl_rng rng = rl_rng_make(3, 5);
    arch.vocab = VOCAB;
    memset(b, 0, sizeof *b);
    fixture_create(&b->f, &arch, &options);
    for (int v = 0; v < VERSIONS; v++) {
        fixture_randomise(&b->f, 18 + (uint64_t)v);
        ck_assert_int_eq(device_alloc(b->f.layout->image_bytes, "image", &b->images[v]), RL_OK);
        memcpy(b->images[v], b->f.image, b->f.layout->image_bytes);
    }
    ck_assert_int_eq(device_alloc(b->f.layout->image_bytes, "image", &b->scratch), RL_OK);
    for (int i = 0; i < PROMPTS * PROMPT; i++) {
        b->prompts[i / PROMPT][i % PROMPT] = (int32_t)rl_rng_next_below(&rng, VOCAB);
    }
}

static void bench_destroy(struct bench *b)
{
    for (int v = 0; v < VERSIONS; v++) {
        device_free(b->images[v]);
    }
    device_free(b->scratch);
    fixture_destroy(&b->f);
}

static struct device_source image_of(void *arg, uint32_t version)
{
    const struct bench *b = arg;
    return (struct device_source){.data = b->images[version]};
}

static struct rollout_generator *make_generator(struct bench *b,
                                                const struct model_context *context, bool int8)
{
    struct rollout_generator_options options = {.max_running = 7,
                                                .max_groups = PROMPTS,
                                                .max_prompt = PROMPT,
                                                .max_completion = COMPLETION,
                                                .prefill_chunk = 16,
                                                .speculation = ROLLOUT_SPECULATION_ALWAYS,
                                                .int8_weights = int8,
                                                .seed = 11,
                                                .sampling = {.temperature = 0.8F, .top_p = 1},
                                                .stop_strings = "",
                                                .stop_token_ids = ""};
    struct rollout_generator *generator = NULL;
    ck_assert_int_eq(rollout_generator_create(context, NULL, &options, &generator), RL_OK);
    rollout_generator_set_image_source(generator, image_of, b);
    return generator;
}

static void submit(struct bench *b, struct rollout_generator *generator, int prompt,
                   const struct rollout_schedule *schedule)
{
    struct rollout_request request = {.ticket = (uint64_t)prompt,
                                      .prompt_id = (uint64_t)prompt,
                                      .samples = SAMPLES,
                                      .prompt = b->prompts[prompt],
                                      .prompt_count = PROMPT,
                                      .schedule = schedule};
    ck_assert_int_eq(rollout_generator_submit(generator, &request), RL_OK);
}

static bool step(struct rollout_generator *generator, struct samples *out)
{
    struct trajectory_group *group = NULL;
    bool busy = false;
    ck_assert_int_eq(rollout_generator_tick(generator, &busy), RL_OK);
    while (rollout_generator_take(generator, &group) == RL_OK) {
        out->groups[group->prompt_id] = group;
    }
    return busy;
}

static void drain(struct rollout_generator *generator, struct samples *out)
{
    while (rollout_generator_groups(generator) > 0) {
        (void)step(generator, out);
    }
    rollout_generator_destroy(generator);
}

static void same_samples(const struct samples *a, const struct samples *b)
{
    for (int i = 0; i < PROMPTS * SAMPLES; i++) {
        const struct trajectory *x = &a->groups[i / SAMPLES]->samples[i % SAMPLES];
        const struct trajectory *y = &b->groups[i / SAMPLES]->samples[i % SAMPLES];
        size_t count = x->completion_count;
        ck_assert_uint_eq(count, y->completion_count);
        ck_assert_mem_eq(x->tokens, y->tokens, (PROMPT + count) * sizeof(int32_t));
        ck_assert_mem_eq(x->logprob, y->logprob, count * sizeof(float));
        ck_assert_mem_eq(x->version, y->version, count * sizeof(uint32_t));
    }
}

static void free_samples(struct samples *samples)
{
    for (int i = 0; i < PROMPTS; i++) {
        trajectory_group_destroy(samples->groups[i]);
    }
}

static void sample_all(struct bench *b, struct rollout_generator *generator, const void *image,
                       struct samples *out)
{
    rollout_generator_set_weights(generator, image, 0);
    for (int i = 0; i < PROMPTS; i++) {
        submit(b, generator, i, NULL);
    }
    drain(generator, out);
}

START_TEST(samples_are_those_of_the_int8_image)
{
    struct bench b;
    struct samples made = {0};
    struct samples given = {0};
    struct samples full = {0};
    struct model_layout *narrow = NULL;
    bench_create(&b);
    struct model_context context = b.f.context;
    struct model_quantize_args to = {.kernels = b.f.kernels};
    ck_assert_int_eq(model_layout_create(&b.f.layout->arch, KERNEL_INT8, 512, &narrow), RL_OK);
    to.layout = narrow;
    context.layout = narrow;
    ck_assert_int_eq(device_alloc(narrow->image_bytes, "image", &to.image), RL_OK);
    model_image_quantize(b.f.layout, b.images[0], &to, NULL);
    sample_all(&b, make_generator(&b, &b.f.context, true), b.images[0], &made);
    sample_all(&b, make_generator(&b, &context, false), to.image, &given);
    sample_all(&b, make_generator(&b, &b.f.context, false), b.images[0], &full);
    same_samples(&made, &given);
    ck_assert_mem_ne(made.groups[0]->samples[0].logprob, full.groups[0]->samples[0].logprob,
                     4 * sizeof(float));
    free_samples(&made);
    free_samples(&given);
    free_samples(&full);
    device_free(to.image);
    model_layout_destroy(narrow);
    bench_destroy(&b);
}
END_TEST

/* A new version every few passes, from an image that is gone once the next one is prepared. */
static void sample_live(struct bench *b, struct samples *out)
{
    struct rollout_generator *generator = make_generator(b, &b->f.context, true);
    const size_t bytes = b->f.layout->image_bytes;
    uint32_t next = 0;
    bool coming = false;
    for (int pass = 0; next == 0 || rollout_generator_groups(generator) > 0; pass++) {
        if (!coming && next < VERSIONS && pass % 9 == 0) {
            memcpy(b->scratch, b->images[next], bytes);
            coming = true;
        }
        if (coming) {
            const struct device_source image = {.data = b->scratch};
            rl_status status = rollout_generator_load_weights(generator, image, next);
            while (status == RL_AGAIN && (pass % 9 == 8 || next == 0)) { /* long enough */
                rollout_generator_await_weights(generator);
                status = rollout_generator_load_weights(generator, image, next);
            }
            ck_assert(status == RL_OK || status == RL_AGAIN);
            if (status == RL_OK) {
                next++;
                memset(b->scratch, 0xff, bytes);
                coming = false;
            }
        }
        for (int i = 0; pass == 0 && i < PROMPTS; i++) {
            submit(b, generator, i, NULL);
        }
        if (next > 0) {
            (void)step(generator, out);
        }
    }
    ck_assert_uint_gt(next, 2);
    rollout_generator_destroy(generator);
}

/* What a group's samples were sampled by, as schedules. */
static void replay(struct bench *b, const struct samples *live, struct samples *out)
{
    struct rollout_generator *generator = make_generator(b, &b->f.context, true);
    for (int i = 0; i < PROMPTS; i++) {
        struct rollout_schedule schedules[SAMPLES];
        struct rollout_switch switches[TOKENS];
        uint32_t used = 0;
        for (int s = 0; s < SAMPLES; s++) {
            const struct trajectory *sample = &live->groups[i]->samples[s];
            schedules[s] = (struct rollout_schedule){0, &switches[used]};
            for (uint32_t t = 0; t < sample->completion_count; t++) {
                if (t == 0 || sample->version[t] != sample->version[t - 1]) {
                    switches[used++] = (struct rollout_switch){t, sample->version[t]};
                    schedules[s].count++;
                }
            }
        }
        submit(b, generator, i, schedules);
    }
    drain(generator, out);
}

START_TEST(versions_are_made_ready_beside_decoding)
{
    struct bench b;
    struct samples live = {0};
    struct samples again = {0};
    bench_create(&b);
    sample_live(&b, &live);
    replay(&b, &live, &again);
    same_samples(&live, &again);
    free_samples(&live);
    free_samples(&again);
    bench_destroy(&b);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rollout_int8");
    TCase *tests = tcase_create("int8");
    tcase_add_test(tests, samples_are_those_of_the_int8_image);
    tcase_add_test(tests, versions_are_made_ready_beside_decoding);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
