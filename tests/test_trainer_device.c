/* A learner on a device whose memory the host may not touch (walled_device.h): the same updates,
 * images and masks as on the CPU, and slabs that go to the host and come from there. */
#include "tests/model_fixture.h"
#include "tests/walled_device.h"
#include "trainer/learner.h"
#include "trainer/sft.h"

#include <math.h>

enum { GROUPS = 3, SAMPLES = 4, PROMPT = 3, TOKENS = 6, STEPS = 4, POISONED = 2 };

static struct model_fixture model;

/* A learner that publishes to an arena. */
struct bench {
    struct model_layout *layout;
    struct rl_pool *pool;
    struct rl_config config;
    struct collective *collective;
    struct weight_arena *arena;
    struct weight_history *history;
    struct learner *learner;
    void *frozen; /* the host's */
    struct learner_teacher teacher;
};

/* The teacher sees the sample's own prompt twice. */
static rl_status twice(void *arg, const struct trajectory_group *group, uint32_t sample,
                       struct token_buffer *ids, bool *told)
{
    (void)arg;
    if (ids->capacity < 2 * PROMPT) {
        ids->ids = realloc(ids->ids, 2 * PROMPT * sizeof(*ids->ids));
        ids->capacity = 2 * PROMPT;
    }
    for (size_t i = 0; i < 2 * PROMPT; i++) {
        ids->ids[i] = group->samples[sample].tokens[i % PROMPT];
    }
    ids->count = 2 * PROMPT;
    *told = true;
    return RL_OK;
}

static void set_config(struct rl_config *config, const char *teacher_policy)
{
    char policy[64];
    const char *options[] = {"optimizer.learning_rate=1e-2",
                             "optimizer.max_grad_norm=0.05",
                             "optimizer.weight_decay=0.1",
                             "optimizer.updates_per_step=2",
                             "loss.beta=0.01",
                             "loss.entropy_coef=0.01",
                             "teacher.loss=rlsd",
                             policy,
                             "run.steps=20"};
    bool logits = strcmp(teacher_policy, "live") == 0;
    snprintf(policy, sizeof policy, "teacher.policy=%s", teacher_policy);
    ck_assert_int_eq(rl_config_init(config), RL_OK);
    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
        ck_assert_int_eq(rl_config_override(config, options[i]), RL_OK);
    }
    if (logits) { /* the policy teaches itself, by distributions */
        ck_assert_int_eq(rl_config_override(config, "teacher.loss=sdpo"), RL_OK);
        ck_assert_int_eq(rl_config_override(config, "teacher.logits=top_k"), RL_OK);
        ck_assert_int_eq(rl_config_override(config, "teacher.support=12"), RL_OK);
    }
}

static rl_status create(struct bench *b, const struct kernel_table *kernels)
{
    size_t bytes = (size_t)b->layout->master_count * sizeof(float);
    void *master = NULL;
    ck_assert_int_eq(device_alloc(bytes, "weights", &master), RL_OK);
    memcpy(master, model.master, bytes);
    struct learner_args args = {.config = &b->config,
                                .layout = b->layout,
                                .kernels = kernels,
                                .pool = b->pool,
                                .collective = b->collective,
                                .arena = b->arena,
                                .history = b->history,
                                .master = master,
                                .reference_image = b->frozen,
                                .teacher = &b->teacher};
    return learner_create(&args, &b->learner);
}

static void bench_open(struct bench *b, bool walled, const char *teacher_policy)
{
    struct device *device = walled ? walled_device() : NULL;
    *b = (struct bench){0};
    ck_assert_int_eq(rl_pool_create(2, &b->pool), RL_OK);
    ck_assert_int_eq(device_stream_start(device, b->pool), RL_OK);
    ck_assert_int_eq(model_layout_create_on(device, b->pool, &model.layout->arch,
                                            model.layout->dtype, 512, &b->layout),
                     RL_OK);
    struct weight_arena_options arena = {
        .slots = 2, .slot_bytes = b->layout->image_bytes, .readers = 1};
    size_t mask = b->layout->image_bytes / model_image_element_bytes(b->layout) / 8;
    ck_assert_int_eq(weight_arena_create(&arena, &b->arena), RL_OK);
    ck_assert_int_eq(weight_history_create(mask, STEPS + 1, &b->history), RL_OK);
    ck_assert_int_eq(collective_local_create(&b->collective), RL_OK);
    ck_assert_int_eq(device_alloc(b->layout->image_bytes, "image", &b->frozen), RL_OK);
    memcpy(b->frozen, model.image, b->layout->image_bytes);
    set_config(&b->config, teacher_policy);
    b->teacher = (struct learner_teacher){.prompt = twice, .image = b->frozen};
    ck_assert_int_eq(create(b, walled ? walled_kernels() : model.kernels), RL_OK);
}

static void bench_close(struct bench *b)
{
    learner_destroy(b->learner);
    collective_destroy(b->collective);
    weight_history_destroy(b->history);
    weight_arena_close(b->arena);
    rl_config_fini(&b->config);
    device_free(b->frozen);
    model_layout_destroy(b->layout);
    device_stream_stop(b->pool);
    rl_pool_destroy(b->pool);
}

static struct trajectory_group *group_make(uint64_t step, uint32_t g, uint32_t version)
{
    struct trajectory_group *group = NULL;
    ck_assert_int_eq(trajectory_group_create(SAMPLES, &group), RL_OK);
    for (uint32_t s = 0; s < SAMPLES; s++) {
        struct trajectory *sample = &group->samples[s];
        int32_t tokens[PROMPT + TOKENS];
        float logprob[TOKENS];
        uint32_t versions[TOKENS];
        for (uint32_t i = 0; i < PROMPT + TOKENS; i++) {
            uint32_t own = i < PROMPT ? 0 : 5 * s; /* the prompt is the group's */
            tokens[i] = (int32_t)((71 * g + 31 * step + own + 37 * i) % 90);
        }
        for (uint32_t i = 0; i < TOKENS; i++) {
            logprob[i] = step == POISONED && s == 2 ? NAN : -4.5F;
            versions[i] = version;
        }
        ck_assert_int_eq(trajectory_set_tokens(sample, tokens, logprob, versions, PROMPT, TOKENS),
                         RL_OK);
        sample->sample_index = s;
        sample->finish = RL_FINISH_STOP;
        sample->reward_valid = true;
        sample->reward = sample->accuracy = (float)((s + g) % 2);
    }
    return group;
}

static struct learner_report step(struct bench *b, uint64_t number)
{
    struct trajectory_group *groups[GROUPS];
    struct learner_report report;
    for (uint32_t g = 0; g < GROUPS; g++) {
        groups[g] = group_make(number, g, learner_version(b->learner));
    }
    ck_assert_int_eq(learner_step(b->learner, groups, GROUPS, number, &report), RL_OK);
    ck_assert_int_eq(learner_publish(b->learner, &report), RL_OK);
    for (uint32_t g = 0; g < GROUPS; g++) {
        trajectory_group_destroy(groups[g]);
    }
    return report;
}

static void assert_slabs(struct bench *here, struct bench *there)
{
    size_t bytes = (size_t)here->layout->master_count * sizeof(float);
    const struct optimizer_state *x = learner_optimizer(here->learner);
    const struct optimizer_state *y = learner_optimizer(there->learner);
    const float *average = learner_teacher_average(here->learner);
    ck_assert_int_eq(learner_pull(here->learner), RL_OK);
    ck_assert_int_eq(learner_pull(there->learner), RL_OK);
    ck_assert_mem_eq(learner_master(here->learner), learner_master(there->learner), bytes);
    ck_assert_mem_eq(x->m, y->m, bytes);
    ck_assert_mem_eq(x->v, y->v, bytes);
    if (average != NULL) {
        ck_assert_mem_eq(average, learner_teacher_average(there->learner), bytes);
    }
}

/* Of the CPU's masters, as a device does it. */
static uint64_t hash_here(const struct bench *b)
{
    uint64_t hash = 0;
    struct kernel_hash_args args = {.words = (const void *)learner_master(b->learner),
                                    .count = b->layout->master_count,
                                    .sum = &hash};
    model.kernels->hash_words(&args, NULL);
    return hash;
}

static void assert_steps(struct bench *here, struct bench *there, uint64_t first)
{
    for (uint64_t i = first; i < first + STEPS; i++) {
        struct learner_report x = step(here, i);
        struct learner_report y = step(there, i);
        ck_assert_uint_eq(x.updates, y.updates);
        ck_assert_uint_eq(x.updates == 0, i == POISONED);
        ck_assert_uint_eq(x.version, y.version);
        ck_assert_uint_eq(x.hash, y.hash);
        ck_assert(x.loss == y.loss && x.grad_norm == y.grad_norm);
        ck_assert(x.objective.sum.entropy == y.objective.sum.entropy);
        ck_assert(x.changed_fraction == y.changed_fraction);
        ck_assert_uint_eq(learner_image_hash(here->learner), learner_image_hash(there->learner));
        ck_assert_uint_eq(hash_here(here), learner_master_hash(there->learner));
    }
}

/* What readers of the arena see. */
static void assert_published(struct bench *b, uint32_t version)
{
    struct weight_view view;
    ck_assert_int_eq(weight_arena_acquire(b->arena, 0, &view), RL_OK);
    ck_assert_uint_eq(view.version, version);
    ck_assert_uint_eq(model_image_hash(b->layout, view.image), view.hash);
    ck_assert_ptr_eq(learner_image(b->learner), view.image);
    weight_arena_release(b->arena, 0);
}

static void assert_masks(struct bench *here, struct bench *there, uint32_t version)
{
    size_t bytes = here->layout->image_bytes / model_image_element_bytes(here->layout) / 8;
    uint8_t *x = malloc(bytes);
    uint8_t *y = malloc(bytes);
    ck_assert_int_eq(weight_history_union(here->history, 0, version, x), RL_OK);
    ck_assert_int_eq(weight_history_union(there->history, 0, version, y), RL_OK);
    ck_assert_mem_eq(x, y, bytes);
    free(x);
    free(y);
}

START_TEST(updates_are_the_same)
{
    static const char *const policies[] = {"ema", "initial", "live"};
    struct bench here;
    struct bench there;
    bench_open(&here, false, policies[_i]);
    bench_open(&there, true, policies[_i]);
    ck_assert_int_eq(learner_publish_first(here.learner, 0), RL_OK);
    ck_assert_int_eq(learner_publish_first(there.learner, 0), RL_OK);
    assert_steps(&here, &there, 1);
    assert_slabs(&here, &there);
    assert_published(&there, STEPS - 1);
    assert_masks(&here, &there, STEPS - 1);
    bench_close(&here);
    bench_close(&there);
    ck_assert_int_eq(walled_held(), 0);
}
END_TEST

/* Weights and moments of a checkpoint: read into the host's slabs, in use from then on. */
START_TEST(slabs_come_from_the_host)
{
    struct bench here;
    struct bench there;
    struct learner_report report = {0};
    bench_open(&here, false, "ema");
    bench_open(&there, true, "ema");
    size_t bytes = (size_t)here.layout->master_count * sizeof(float);
    ck_assert_int_eq(learner_publish_first(here.learner, 0), RL_OK);
    ck_assert_uint_gt(step(&here, 7).updates, 0);
    struct optimizer_state *x = learner_optimizer(here.learner);
    struct optimizer_state *y = learner_optimizer(there.learner);
    memcpy(learner_master(there.learner), learner_master(here.learner), bytes);
    memcpy(learner_teacher_average(there.learner), learner_teacher_average(here.learner), bytes);
    memcpy(y->m, x->m, bytes);
    memcpy(y->v, x->v, bytes);
    y->step = x->step;
    ck_assert_int_eq(learner_publish_first(there.learner, 1), RL_OK);
    assert_steps(&here, &there, 8);
    assert_slabs(&here, &there);
    /* back, as the guard asks for it */
    memcpy(learner_master(there.learner), model.master, bytes);
    memset(y->m, 0, bytes);
    memset(y->v, 0, bytes);
    ck_assert_int_eq(learner_roll_back(there.learner, 0, &report), RL_OK);
    ck_assert_int_eq(learner_publish(there.learner, &report), RL_OK);
    ck_assert_uint_eq(learner_image_hash(there.learner),
                      model_image_hash(model.layout, model.image));
    bench_close(&here);
    bench_close(&there);
}
END_TEST

/* --- supervised
 * ------------------------------------------------------------------------------------- */

struct tuned {
    float *master, *m; /* the host's: at the end; first moments when it was last saved */
    struct sft_state state;
};

static rl_status keep_point(void *arg, const struct sft_point *point)
{
    struct tuned *tuned = arg;
    size_t bytes = (size_t)model.layout->master_count * sizeof(float);
    memcpy(tuned->master, point->master, bytes);
    memcpy(tuned->m, point->adam_m, bytes);
    tuned->state = point->state;
    return RL_OK;
}

static void tune(struct bench *b, const struct kernel_table *kernels, struct tuned *out)
{
    enum { EXAMPLES = 5, LENGTH = 14 };
    size_t bytes = (size_t)b->layout->master_count * sizeof(float);
    int32_t tokens[EXAMPLES][LENGTH];
    struct sft_example examples[EXAMPLES];
    float *master = malloc(bytes);
    double loss = 0;
    out->master = malloc(bytes);
    out->m = malloc(bytes);
    memcpy(master, model.master, bytes);
    for (int i = 0; i < EXAMPLES; i++) {
        for (int t = 0; t < LENGTH; t++) {
            tokens[i][t] = (13 * i + 7 * t) % 90;
        }
        examples[i] = (struct sft_example){
            .tokens = tokens[i], .count = LENGTH, .prompt_count = 2, .weight = 1};
    }
    struct sft_args args = {.config = &b->config,
                            .layout = b->layout,
                            .kernels = kernels,
                            .pool = b->pool,
                            .examples = examples,
                            .example_count = EXAMPLES,
                            .master = master,
                            .save = keep_point,
                            .save_arg = out};
    ck_assert_int_eq(rl_config_override(&b->config, "sft.batch_tokens=20"), RL_OK);
    ck_assert_int_eq(sft_run(&args, &loss), RL_OK);
    ck_assert_mem_eq(master, out->master, bytes); /* updated in place, wherever it was done */
    free(master);
}

START_TEST(supervised_updates_are_the_same)
{
    struct bench here;
    struct bench there;
    struct tuned x;
    struct tuned y;
    bench_open(&here, false, "ema");
    bench_open(&there, true, "ema");
    size_t bytes = (size_t)here.layout->master_count * sizeof(float);
    tune(&here, model.kernels, &x);
    tune(&there, walled_kernels(), &y);
    ck_assert_mem_eq(x.master, y.master, bytes);
    ck_assert_mem_eq(x.m, y.m, bytes);
    ck_assert(memcmp(x.master, model.master, bytes) != 0);
    ck_assert_int_eq(x.state.update, y.state.update);
    free(x.master);
    free(x.m);
    free(y.master);
    free(y.m);
    bench_close(&here);
    bench_close(&there);
    ck_assert_int_eq(walled_held(), 0);
}
END_TEST

static void model_open(void)
{
    struct model_architecture arch = fixture_architecture(0);
    struct fixture_options options = {.isa = kernel_isa_best(), .dtype = KERNEL_BF16, .threads = 1};
    fixture_create(&model, &arch, &options);
    fixture_randomise(&model, 11);
}

static void model_close(void)
{
    fixture_destroy(&model);
}

int main(void)
{
    Suite *suite = suite_create("trainer_device");
    TCase *all = tcase_create("device");
    tcase_add_unchecked_fixture(all, model_open, model_close);
    tcase_add_loop_test(all, updates_are_the_same, 0, 3);
    tcase_add_test(all, slabs_come_from_the_host);
    tcase_add_test(all, supervised_updates_are_the_same);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
