/* AdamW on a slab of two tensors against ten steps of torch.optim.AdamW, the guards, the schedule.
 */
#include "trainer/optimizer.h"

#include "tests/model_fixture.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MATRIX = 6, VECTOR = 3, VECTOR_AT = 16, SLAB = 32, VECTOR_IMAGE = 32 * 3 * 4 };

static struct model_tensor tensors[2] = {
    {.name = "w", .rows = 2, .cols = 3, .matrix = true, .offset = 0},
    {.name = "b",
     .rows = 1,
     .cols = 3,
     .matrix = false,
     .offset = VECTOR_AT,
     .image_offset = VECTOR_IMAGE},
};
static const struct model_layout layout = {.tensor_count = 2,
                                           .tensors = tensors,
                                           .master_count = SLAB,
                                           .param_count = MATRIX + VECTOR,
                                           .image_bytes = VECTOR_IMAGE + 64};

static struct optimizer_options options_make(void)
{
    return (struct optimizer_options){
        .schedule = {.type = CONFIG_LR_CONSTANT, .peak = 1e-2, .total_updates = 10},
        .beta1 = 0.9,
        .beta2 = 0.95,
        .epsilon = 1e-8,
        .weight_decay = 0.1,
        .max_grad_norm = 1.0,
    };
}

/* Slabs as the learner has them: aligned, padding 0. */
struct bench {
    struct optimizer *optimizer;
    float *master, *grad;
    void *image;
};

static struct bench bench_make(struct optimizer_options options, enum kernel_isa isa)
{
    static const float start[MATRIX] = {0.5f, -0.25f, 1.0f, 0.125f, -0.75f, 0.3f};
    static const float bias[VECTOR] = {0.1f, -0.2f, 0.4f};
    struct bench b = {0};
    const struct kernel_table *kernels = NULL;
    void *data = NULL;
    ck_assert_int_eq(kernel_table_get(isa, &kernels), RL_OK);
    ck_assert_int_eq(optimizer_create(&options, &layout, kernels, &b.optimizer), RL_OK);
    ck_assert_int_eq(device_alloc(SLAB * sizeof(float), "master", &data), RL_OK);
    b.master = data;
    ck_assert_int_eq(device_alloc(SLAB * sizeof(float), "gradient", &data), RL_OK);
    b.grad = data;
    ck_assert_int_eq(device_alloc(layout.image_bytes, "image", &b.image), RL_OK);
    memcpy(b.master, start, sizeof(start));
    memcpy(b.master + VECTOR_AT, bias, sizeof(bias));
    return b;
}

static void bench_step(struct bench *b, double inverse, struct optimizer_report *report)
{
    struct optimizer_weights weights = {.master = b->master, .grad = b->grad, .image = b->image};
    ck_assert_int_eq(optimizer_step(b->optimizer, &weights, inverse, NULL, report), RL_OK);
}

static void bench_free(struct bench *b)
{
    device_free(b->image);
    device_free(b->grad);
    device_free(b->master);
    optimizer_destroy(b->optimizer);
}

/* Gradient of step s, times `scale`. */
static void gradient_fill(float *grad, int s, float scale)
{
    for (int i = 0; i < MATRIX + VECTOR; i++) {
        int at = i < MATRIX ? i : VECTOR_AT + i - MATRIX;
        grad[at] = scale * (float)((i + s) % 5 - 2) * 0.3f;
    }
}

static void check_against_torch(enum kernel_isa isa)
{
    /* torch 2, float64: clip_grad_norm_(1.0), AdamW(lr 1e-2, betas 0.9, 0.95), decay 0.1 on w only
     */
    static const double w[MATRIX] = {0.531991977256, -0.234461526895, 0.969645644359,
                                     0.098179542263, -0.747985015424, 0.333983001215};
    static const double b[VECTOR] = {0.113172620537, -0.220529675252, 0.374232056116};
    static const double norms[5] = {1.2, 1.2, 1.307669683062, 1.341640786500, 1.307669683062};
    struct bench bench = bench_make(options_make(), isa);
    for (int s = 0; s < 10; s++) {
        struct optimizer_report report;
        gradient_fill(bench.grad, s, 4.0f);
        bench_step(&bench, 0.25, &report);
        ck_assert_int_eq(report.outcome, OPTIMIZER_UPDATED);
        ck_assert_double_eq_tol(report.grad_norm, norms[s % 5], 1e-6);
        ck_assert_double_eq_tol(report.clip_scale, 1 / (norms[s % 5] + 1e-6), 1e-6);
        ck_assert_double_eq(report.learning_rate, 1e-2);
    }
    for (int i = 0; i < MATRIX; i++) {
        ck_assert_double_eq_tol((double)bench.master[i], w[i], 2e-6);
    }
    for (int i = 0; i < VECTOR; i++) {
        ck_assert_double_eq_tol((double)bench.master[VECTOR_AT + i], b[i], 2e-6);
    }
    for (int i = MATRIX; i < VECTOR_AT; i++) {
        ck_assert_float_eq(bench.master[i], 0.0f); /* padding is left alone */
    }
    ck_assert_int_eq(optimizer_state(bench.optimizer)->step, 10);
    bench_free(&bench);
}

START_TEST(ten_steps_of_torch)
{
    check_against_torch(KERNEL_ISA_REF);
    check_against_torch(kernel_isa_best());
}
END_TEST

START_TEST(bad_gradients_change_nothing)
{
    static const float bad[3] = {NAN, INFINITY, -INFINITY};
    struct bench bench = bench_make(options_make(), KERNEL_ISA_REF);
    struct optimizer_state *state = optimizer_state(bench.optimizer);
    struct optimizer_report report;
    gradient_fill(bench.grad, 1, 1.0f);
    bench_step(&bench, 1, &report);
    float master[SLAB];
    float moments[2][SLAB];
    memcpy(master, bench.master, sizeof(master));
    memcpy(moments[0], state->m, sizeof(master));
    memcpy(moments[1], state->v, sizeof(master));
    for (int i = 0; i < 5; i++) {
        double inverse = i == 3 ? (double)NAN : i == 4 ? 0 : 1;
        gradient_fill(bench.grad, i, 1.0f);
        bench.grad[4] = i < 3 ? bad[i] : 1.0f;
        bench_step(&bench, inverse, &report);
        ck_assert_int_eq(report.outcome,
                         i == 4 ? OPTIMIZER_SKIPPED_EMPTY : OPTIMIZER_SKIPPED_NONFINITE);
        ck_assert_mem_eq(master, bench.master, sizeof(master));
        ck_assert_mem_eq(moments[0], state->m, sizeof(master));
        ck_assert_mem_eq(moments[1], state->v, sizeof(master));
    }
    ck_assert_int_eq(state->step, 1);
    ck_assert_int_eq(state->skipped, 4);
    ck_assert_int_eq(state->skipped_run, 4);
    gradient_fill(bench.grad, 2, 1.0f);
    bench_step(&bench, 1, &report);
    ck_assert_int_eq(state->skipped_run, 0);
    ck_assert_int_eq(state->step, 2);
    bench_free(&bench);
}
END_TEST

START_TEST(no_clipping_when_off_or_small)
{
    struct optimizer_options options = options_make();
    struct optimizer_report report;
    options.max_grad_norm = 0;
    struct bench bench = bench_make(options, KERNEL_ISA_REF);
    gradient_fill(bench.grad, 0, 1000.0f);
    bench_step(&bench, 1, &report);
    ck_assert_double_eq(report.clip_scale, 1);
    bench_free(&bench);
    options.max_grad_norm = 5;
    bench = bench_make(options, KERNEL_ISA_REF);
    gradient_fill(bench.grad, 0, 1.0f);
    bench_step(&bench, 1, &report);
    ck_assert_double_eq(report.clip_scale, 1);
    bench_free(&bench);
}
END_TEST

/* Moments and step put into a fresh optimizer go on with the same bits. */
START_TEST(state_resumes_bit_for_bit)
{
    struct bench whole = bench_make(options_make(), KERNEL_ISA_REF);
    struct bench first = bench_make(options_make(), KERNEL_ISA_REF);
    struct bench second = bench_make(options_make(), KERNEL_ISA_REF);
    struct optimizer_report report;
    for (int s = 0; s < 6; s++) {
        struct bench *part = s < 3 ? &first : &second;
        if (s == 3) {
            const struct optimizer_state *from = optimizer_state(first.optimizer);
            struct optimizer_state *to = optimizer_state(second.optimizer);
            memcpy(to->m, from->m, SLAB * sizeof(float));
            memcpy(to->v, from->v, SLAB * sizeof(float));
            memcpy(second.master, first.master, SLAB * sizeof(float));
            to->step = from->step;
        }
        gradient_fill(whole.grad, s, 1.0f);
        gradient_fill(part->grad, s, 1.0f);
        bench_step(&whole, 1, &report);
        bench_step(part, 1, &report);
    }
    ck_assert_mem_eq(whole.master, second.master, SLAB * sizeof(float));
    bench_free(&second);
    bench_free(&first);
    bench_free(&whole);
}
END_TEST

START_TEST(bad_options_are_refused)
{
    const struct kernel_table *kernels = NULL;
    struct optimizer *optimizer = NULL;
    ck_assert_int_eq(kernel_table_get(KERNEL_ISA_REF, &kernels), RL_OK);
    struct optimizer_options options = options_make();
    options.epsilon = 0;
    ck_assert_int_eq(optimizer_create(&options, &layout, kernels, &optimizer), RL_INVALID);
    options = options_make();
    options.beta2 = 1;
    ck_assert_int_eq(optimizer_create(&options, &layout, kernels, &optimizer), RL_INVALID);
    options = options_make();
    options.schedule.peak = (double)NAN;
    ck_assert_int_eq(optimizer_create(&options, &layout, kernels, &optimizer), RL_INVALID);
    ck_assert_ptr_null(optimizer);
    optimizer_destroy(NULL);
}
END_TEST

/* --- update and image in one pass
 * ------------------------------------------------------------------- */

static const struct model_architecture arch = {.name = "Qwen2ForCausalLM",
                                               .layers = 2,
                                               .width = 72, /* no multiple of a vector or panel */
                                               .heads = 3,
                                               .kv_heads = 1,
                                               .head_dim = 24,
                                               .ffn = 300,
                                               .vocab = 101,
                                               .max_position = 64,
                                               .tied = true,
                                               .qkv_bias = true,
                                               .norm_epsilon = 1e-6f,
                                               .rope_theta = 10000};

/* What an update leaves behind. */
struct outcome {
    struct model_fixture f;
    struct optimizer *optimizer;
    float *grad;
    uint8_t *previous, *changed;
};

static void outcome_open(struct outcome *o, const struct fixture_options *options)
{
    struct optimizer_options adam = options_make();
    struct rl_rng rng = rl_rng_make(3, 1);
    void *data = NULL;
    fixture_create(&o->f, &arch, options);
    fixture_randomise(&o->f, 5);
    const struct model_layout *l = o->f.layout;
    ck_assert_int_eq(device_alloc((size_t)l->master_count * sizeof(float), "g", &data), RL_OK);
    o->grad = data;
    for (int32_t t = 0; t < l->tensor_count; t++) {
        for (int64_t i = 0; i < l->tensors[t].rows * l->tensors[t].cols; i++) {
            /* many zeros, so that at a small rate some bf16 weights stay and others move */
            double value = rl_rng_next_normal(&rng);
            o->grad[l->tensors[t].offset + i] = value > 0 ? (float)value : 0.0f;
        }
    }
    adam.schedule.peak = 1e-4;
    adam.weight_decay = 0;
    ck_assert_int_eq(optimizer_create(&adam, l, o->f.kernels, &o->optimizer), RL_OK);
    o->previous = malloc(l->image_bytes);
    memcpy(o->previous, o->f.image, l->image_bytes);
    o->changed = malloc(l->image_bytes);
    memset(o->changed, 0x55, l->image_bytes);
}

static void outcome_close(struct outcome *o)
{
    free(o->changed);
    free(o->previous);
    device_free(o->grad);
    optimizer_destroy(o->optimizer);
    fixture_destroy(&o->f);
}

/* Op after op, as the update's meaning is stated. */
static void update_in_parts(struct outcome *o)
{
    const struct model_layout *l = o->f.layout;
    struct optimizer_state *state = optimizer_state(o->optimizer);
    struct optimizer_report would;
    struct model_image_diff diff = {o->previous, o->changed};
    ck_assert_int_eq(optimizer_measure(o->optimizer, o->grad, 0.25, NULL, &would), RL_OK);
    for (int32_t t = 0; t < l->tensor_count; t++) {
        int64_t at = l->tensors[t].offset;
        struct kernel_adamw_args args = {.param = o->f.master + at,
                                         .m = state->m + at,
                                         .v = state->v + at,
                                         .grad = o->grad + at,
                                         .count = l->tensors[t].rows * l->tensors[t].cols,
                                         .step = 1,
                                         .grad_scale = (float)would.grad_scale,
                                         .learning_rate = (float)would.learning_rate,
                                         .beta1 = 0.9f,
                                         .beta2 = 0.95f,
                                         .epsilon = 1e-8f};
        o->f.kernels->adamw(&args, NULL);
    }
    model_params_publish_diff(l, o->f.kernels, o->f.master, o->f.image, &diff, NULL);
}

static void update_at_once(struct outcome *o)
{
    struct optimizer_report report;
    struct model_image_diff diff = {o->previous, o->changed};
    struct optimizer_weights weights = {o->f.master, o->grad, o->f.image, &diff};
    ck_assert_int_eq(optimizer_step(o->optimizer, &weights, 0.25, o->f.pool, &report), RL_OK);
    ck_assert_int_eq(report.outcome, OPTIMIZER_UPDATED);
}

START_TEST(one_pass_gives_the_bits_of_separate_ops)
{
    struct fixture_options options = {.isa = (enum kernel_isa)(_i / 2),
                                      .dtype = _i % 2 == 0 ? KERNEL_FP32 : KERNEL_BF16,
                                      .threads = 1};
    struct outcome parts;
    if (!fixture_has_isa(options.isa)) {
        return;
    }
    outcome_open(&parts, &options);
    update_in_parts(&parts);
    const struct model_layout *l = parts.f.layout;
    size_t slab = (size_t)l->master_count * sizeof(float);
    size_t mask = l->image_bytes / model_image_element_bytes(l) / 8;
    for (options.threads = 1; options.threads <= 3; options.threads++) {
        struct outcome once;
        outcome_open(&once, &options);
        update_at_once(&once);
        ck_assert_mem_eq(once.f.master, parts.f.master, slab);
        ck_assert_mem_eq(once.f.image, parts.f.image, l->image_bytes);
        ck_assert_mem_eq(once.changed, parts.changed, mask);
        ck_assert_mem_eq(optimizer_state(once.optimizer)->m, optimizer_state(parts.optimizer)->m,
                         slab);
        ck_assert_mem_eq(optimizer_state(once.optimizer)->v, optimizer_state(parts.optimizer)->v,
                         slab);
        outcome_close(&once);
    }
    outcome_close(&parts);
}
END_TEST

/* A rate that no weight survives is seen wherever it happens. */
START_TEST(weights_that_overflow_are_seen)
{
    for (int which = 0; which < 2; which++) {
        struct optimizer_options options = options_make();
        struct optimizer_report report;
        options.weight_decay = 0;
        struct bench b = bench_make(options, kernel_isa_best());
        struct optimizer_weights weights = {.master = b.master, .grad = b.grad, .image = b.image};
        gradient_fill(b.grad, 1, 1.0f);
        ck_assert_int_eq(optimizer_measure(b.optimizer, b.grad, 1, NULL, &report), RL_OK);
        bool finite = false;
        ck_assert_int_eq(optimizer_apply(b.optimizer, &weights, &report, NULL, &finite), RL_OK);
        ck_assert(finite);
        b.master[which == 0 ? MATRIX - 1 : VECTOR_AT] = INFINITY;
        ck_assert_int_eq(optimizer_apply(b.optimizer, &weights, &report, NULL, &finite), RL_OK);
        ck_assert(!finite);
        bench_free(&b);
    }
}
END_TEST

/* --- schedule
 * --------------------------------------------------------------------------------------- */

START_TEST(schedules)
{
    struct schedule s = {.peak = 2, .min_ratio = 0.1, .warmup_updates = 4, .total_updates = 104};
    for (int type = 0; type < 3; type++) {
        s.type = (enum config_lr_schedule)type;
        ck_assert_double_eq(schedule_rate(&s, -5), 0.5);
        ck_assert_double_eq(schedule_rate(&s, 0), 0.5);
        ck_assert_double_eq(schedule_rate(&s, 3), 2);
        ck_assert_double_eq(schedule_rate(&s, 4), 2);
        double end = type == CONFIG_LR_CONSTANT ? 2 : 0.2;
        double half = type == CONFIG_LR_CONSTANT ? 2 : 1.1;
        ck_assert_double_eq_tol(schedule_rate(&s, 54), half, 1e-12);
        ck_assert_double_eq_tol(schedule_rate(&s, 104), end, 1e-12);
        ck_assert_double_eq_tol(schedule_rate(&s, 1000000), end, 1e-12);
        for (int64_t u = 4; u < 104; u++) {
            ck_assert_double_ge(schedule_rate(&s, u), schedule_rate(&s, u + 1));
        }
    }
    s.type = CONFIG_LR_COSINE;
    ck_assert_double_eq_tol(schedule_rate(&s, 29), 0.2 + 1.8 * 0.5 * (1 + sqrt(0.5)), 1e-12);
    s.total_updates = 2; /* the run ends within the warm-up */
    ck_assert_double_eq(schedule_rate(&s, 1), 1);
    ck_assert_double_eq_tol(schedule_rate(&s, 5), 0.2, 1e-12);
}
END_TEST

START_TEST(options_come_from_the_config)
{
    struct rl_config config;
    struct optimizer_options options;
    ck_assert_int_eq(rl_config_init(&config), RL_OK);
    ck_assert_int_eq(rl_config_override(&config, "optimizer.lr_scheduler_type=cosine"), RL_OK);
    ck_assert_int_eq(rl_config_override(&config, "optimizer.warmup_steps=7"), RL_OK);
    optimizer_options_from_config(&config, 50, NULL, &options);
    ck_assert_int_eq(options.schedule.type, CONFIG_LR_COSINE);
    ck_assert_int_eq(options.schedule.warmup_updates, 7);
    ck_assert_int_eq(options.schedule.total_updates, 50);
    ck_assert_double_eq(options.beta2, config.optimizer.adam_beta2);
    rl_config_fini(&config);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("optimizer");
    TCase *tests = tcase_create("all");
    tcase_add_test(tests, ten_steps_of_torch);
    tcase_add_test(tests, bad_gradients_change_nothing);
    tcase_add_test(tests, no_clipping_when_off_or_small);
    tcase_add_test(tests, state_resumes_bit_for_bit);
    tcase_add_test(tests, bad_options_are_refused);
    tcase_add_loop_test(tests, one_pass_gives_the_bits_of_separate_ops, 0, 6);
    tcase_add_test(tests, weights_that_overflow_are_seen);
    tcase_add_test(tests, schedules);
    tcase_add_test(tests, options_come_from_the_config);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
