/* Decoding asks for no memory: once its sequences run, the engine's passes allocate nothing. */
#include "rollout/generator.h"
#include "tests/model_fixture.h"

#include <stdatomic.h>

enum { SEQUENCES = 6, PROMPT = 9, COMPLETION = 40, WARM_PASSES = 4, PASSES = 25 };

static atomic_int allocations;

/* Sanitizers bring an allocator of their own, which must stay. */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *data, size_t bytes);

void *malloc(size_t bytes)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_calloc(count, bytes);
}

void *realloc(void *data, size_t bytes)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_realloc(data, bytes);
}
#endif

static void submit_all(struct rollout_generator *generator)
{
    static const int32_t prompt[PROMPT] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    for (uint64_t i = 0; i < SEQUENCES / 2; i++) {
        struct rollout_request request = {
            .ticket = i, .prompt_id = i, .samples = 2, .prompt = prompt, .prompt_count = PROMPT};
        ck_assert_int_eq(rollout_generator_submit(generator, &request), RL_OK);
    }
}

/* Passes that did not run. The test library allocates: nothing of it in here. */
static int run_passes(struct rollout_generator *generator, int count)
{
    int missed = 0;
    for (int i = 0; i < count; i++) {
        bool busy = false;
        missed += rollout_generator_tick(generator, &busy) != RL_OK || !busy;
    }
    return missed;
}

START_TEST(passes_allocate_nothing)
{
    struct model_fixture f;
    struct rollout_generator *generator = NULL;
    struct model_architecture arch = fixture_architecture(0);
    struct fixture_options options = {kernel_isa_best(), KERNEL_FP32, 2};
    struct rollout_generator_options engine = {.max_running = SEQUENCES,
                                               .max_groups = SEQUENCES,
                                               .max_prompt = PROMPT,
                                               .max_completion = COMPLETION,
                                               .prefill_chunk = 64,
                                               .sampling = {.temperature = 1, .top_p = 0.9F},
                                               .stop_strings = "",
                                               .stop_token_ids = ""};
    fixture_create(&f, &arch, &options);
    fixture_randomise(&f, 3);
    f.context.split = _i == 0 ? MODEL_SPLIT_OUTPUTS : MODEL_SPLIT_SEQUENCES;
    ck_assert_int_eq(rollout_generator_create(&f.context, NULL, &engine, &generator), RL_OK);
    rollout_generator_set_weights(generator, f.image, 1);
    submit_all(generator);
    ck_assert_int_eq(run_passes(generator, WARM_PASSES), 0);
    ck_assert_int_eq(rollout_generator_running(generator), SEQUENCES);
    int before = atomic_load(&allocations);
    int missed = run_passes(generator, PASSES);
    int after = atomic_load(&allocations);
    ck_assert_int_eq(missed, 0);
    ck_assert_int_eq(after, before);
    ck_assert_uint_ge(rollout_generator_counters(generator)->sampled_tokens, PASSES * SEQUENCES);
    rollout_generator_destroy(generator);
    fixture_destroy(&f);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("steady");
    tcase_add_loop_test(tcase, passes_allocate_nothing, 0, 2);
    Suite *suite = suite_create("rollout steady");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
