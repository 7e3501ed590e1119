/* Divergences of next-token distributions: published vectors, gradients of rows in double, and of
 * whole tiny models through head and body by finite differences. */
#include "model/divergence.h"
#include "tests/model_fixture.h"

#include <math.h>

/* The first WHOLE take all of a small vocabulary. Where the support is chosen, values jump when a
 * step along a model's weights exchanges two tokens: those are checked row by row. */
static const struct model_divergence kinds[] = {
    {1, 0, false}, {0, 0, false}, {0.5, 0, false}, {0.2, 0, false}, {0.5, 500, true}, {1, 5, true},
    {1, 5, false}, {0, 5, true},  {0, 5, false},   {0.5, 5, true},  {0.5, 5, false},
};
enum { KINDS = sizeof(kinds) / sizeof(kinds[0]), WHOLE = 5 };

/* --- rows
 * ------------------------------------------------------------------------------------------------
 */

static void check_vector(const struct model_divergence *kind, double value, const double *gradient)
{
    float z[4] = {1, .2F, -.5F, .3F};
    const float teacher[4] = {.4F, .9F, -.2F, -1};
    int32_t chosen[8];
    ck_assert_double_eq_tol(model_divergence_row(kind, z, teacher, 4, chosen), value, 1e-7);
    for (int i = 0; gradient != NULL && i < 4; i++) {
        ck_assert_double_eq_tol((double)z[i], gradient[i], 1e-7);
    }
}

START_TEST(vectors)
{
    static const double reverse[] = {0.092955999, -0.227534016, -0.071841945, 0.206419962};
    static const double forward[] = {0.170683414, -0.271549472, -0.056476705, 0.157342764};
    static const double between[] = {0.033034427, -0.058568342, -0.015633878, 0.041167792};
    check_vector(&(struct model_divergence){1, 0, false}, 0.260758888, reverse);
    check_vector(&(struct model_divergence){0, 0, false}, 0.253224396, forward);
    check_vector(&(struct model_divergence){0.5, 0, false}, 0.062127554, between);
    check_vector(&(struct model_divergence){1, 2, true}, 0.255527465, NULL);
    check_vector(&(struct model_divergence){1, 2, false}, 0.049499921, NULL);
}
END_TEST

/* Floats carry about seven digits, so steps are large and the quotient is Richardson's. */
static double row_value(const struct model_divergence *kind, const float *z, const float *teacher,
                        int64_t v, int64_t at, double by)
{
    float moved[64];
    int32_t chosen[1024];
    memcpy(moved, z, (size_t)v * sizeof(float));
    moved[at] = (float)((double)moved[at] + by);
    return model_divergence_row(kind, moved, teacher, v, chosen);
}

START_TEST(rows_match_finite_differences)
{
    enum { V = 23 };
    static const double h = 1.0 / 64; /* exact in floats of this size */
    const struct model_divergence *kind = &kinds[_i];
    struct rl_rng rng = rl_rng_make(21, (uint64_t)_i);
    for (int round = 0; round < 20; round++) {
        float z[V];
        float teacher[V];
        float gradient[V];
        int32_t chosen[1024];
        for (int i = 0; i < V; i++) {
            /* far enough apart that no step changes the order */
            z[i] = (float)((double)((i * 7) % V) / 4 +
                           (double)rl_rng_next_below(&rng, 4096) / 4096 / 8);
            teacher[i] = z[i] + (float)(0.7 * rl_rng_next_normal(&rng));
        }
        memcpy(gradient, z, sizeof(z));
        double value = model_divergence_row(kind, gradient, teacher, V, chosen);
        ck_assert_double_ge(value, -1e-9);
        for (int i = 0; i < V; i++) {
            double coarse = (row_value(kind, z, teacher, V, i, 2 * h) -
                             row_value(kind, z, teacher, V, i, -2 * h)) /
                            (4 * h);
            double fine =
                (row_value(kind, z, teacher, V, i, h) - row_value(kind, z, teacher, V, i, -h)) /
                (2 * h);
            ck_assert_double_eq_tol((double)gradient[i], (4 * fine - coarse) / 3, 2e-6);
        }
    }
}
END_TEST

START_TEST(equal_rows_have_neither_divergence_nor_gradient)
{
    float z[40];
    float teacher[40];
    int32_t chosen[1024];
    for (int i = 0; i < 40; i++) {
        z[i] = teacher[i] = (float)(i % 9) - 300.0F * (float)(i == 3);
    }
    ck_assert_double_le(fabs(model_divergence_row(&kinds[_i], z, teacher, 40, chosen)), 1e-12);
    for (int i = 0; i < 40; i++) {
        ck_assert_double_le(fabs((double)z[i]), 1e-12);
    }
}
END_TEST

/* --- whole models
 * ---------------------------------------------------------------------------------------- */

enum { TOKENS = 40, ROWS = 33 };

struct problem {
    struct model_fixture student, teacher;
    struct model_packing *packing;
    struct model_kv kv;
    struct model_workspace *workspace;
    int32_t rows[ROWS], targets[ROWS];
    float logprob[ROWS], g_logprob[ROWS], weight[ROWS], value[ROWS];
    float *teacher_hidden, *g_hidden, *grad;
    void *scratch;
    struct model_divergence kind;
};

static void score_teacher(struct problem *p)
{
    const float *hidden = NULL;
    int64_t width = p->student.layout->arch.width;
    model_forward(&p->teacher.context, p->teacher.image, &p->kv, &p->packing->batch, p->workspace,
                  &hidden);
    for (int i = 0; i < ROWS; i++) {
        memcpy(p->teacher_hidden + i * width, hidden + p->rows[i] * width,
               (size_t)width * sizeof(float));
    }
}

static void problem_create(struct problem *p, int architecture, const struct model_divergence *kind)
{
    struct model_architecture arch = fixture_architecture(architecture);
    struct fixture_options options = {kernel_isa_best(), KERNEL_FP32, 2};
    struct rl_rng rng = rl_rng_make(31, (uint64_t)architecture);
    int32_t tokens[TOKENS];
    int64_t first = 0;
    memset(p, 0, sizeof(*p));
    p->kind = *kind;
    fixture_create(&p->student, &arch, &options);
    fixture_create(&p->teacher, &arch, &options);
    fixture_randomise(&p->student, 1);
    fixture_randomise(&p->teacher, 2);
    ck_assert_int_eq(model_packing_create(TOKENS, 2, &p->packing), RL_OK);
    ck_assert_int_eq(model_kv_create(p->student.layout, model_packing_pages(TOKENS, 2), &p->kv),
                     RL_OK);
    ck_assert_int_eq(
        model_workspace_create(p->student.layout, TOKENS, MODEL_KEEP_COSTLY, &p->workspace), RL_OK);
    for (int i = 0; i < TOKENS; i++) {
        tokens[i] = (int32_t)rl_rng_next_below(&rng, (uint64_t)arch.vocab);
    }
    ck_assert_int_eq(model_packing_add(p->packing, tokens, 25, &first), RL_OK);
    ck_assert_int_eq(model_packing_add(p->packing, tokens + 25, TOKENS - 25, &first), RL_OK);
    for (int i = 0; i < ROWS; i++) {
        p->rows[i] = i + 5;
        p->targets[i] = tokens[i];
        p->g_logprob[i] = (float)(0.1 * rl_rng_next_normal(&rng));
        p->weight[i] = i % 5 == 0 ? 0 : (float)rl_rng_next_uniform(&rng);
    }
    p->teacher_hidden = fixture_floats((int64_t)ROWS * arch.width);
    p->g_hidden = fixture_floats((int64_t)ROWS * arch.width);
    p->grad = fixture_floats(p->student.layout->master_count);
    ck_assert_int_eq(
        device_alloc(model_divergence_bytes(p->student.layout, kind), "scratch", &p->scratch),
        RL_OK);
    score_teacher(p);
}

static void problem_destroy(struct problem *p)
{
    device_free(p->scratch);
    device_free(p->grad);
    device_free(p->g_hidden);
    device_free(p->teacher_hidden);
    model_workspace_destroy(p->workspace);
    model_kv_fini(&p->kv);
    model_packing_destroy(p->packing);
    fixture_destroy(&p->teacher);
    fixture_destroy(&p->student);
}

/* Weighted log-probs and divergences. */
static double problem_loss(struct problem *p)
{
    const float *hidden = NULL;
    double loss = 0;
    fixture_publish(&p->student);
    model_forward(&p->student.context, p->student.image, &p->kv, &p->packing->batch, p->workspace,
                  &hidden);
    model_head_forward(
        &p->student.context, p->student.image, p->workspace,
        &(struct model_head_args){p->rows, p->targets, ROWS, 0.8F, p->logprob, NULL});
    model_head_divergence(&p->student.context, p->student.image, p->workspace,
                          &(struct model_divergence_args){.kind = p->kind,
                                                          .teacher_image = p->teacher.image,
                                                          .teacher_hidden = p->teacher_hidden,
                                                          .weight = p->weight,
                                                          .value = p->value,
                                                          .g_hidden = p->g_hidden,
                                                          .grad = p->grad,
                                                          .scratch = p->scratch,
                                                          .host_scratch = p->scratch});
    for (int i = 0; i < ROWS; i++) {
        ck_assert(p->weight[i] != 0 || p->value[i] == 0);
        loss += (double)p->g_logprob[i] * (double)p->logprob[i];
        loss += (double)p->weight[i] * (double)p->value[i];
    }
    return loss;
}

/* Along the gradient itself, tensor by tensor. */
static void check_tensor(struct problem *p, const struct model_tensor *tensor, const float *grad)
{
    static const double steps[2] = {0.02, 0.01};
    int64_t count = tensor->rows * tensor->cols;
    float *values = p->student.master + tensor->offset;
    float *saved = fixture_floats(count);
    double square = 0;
    double quotient[2];
    memcpy(saved, values, (size_t)count * sizeof(float));
    for (int64_t i = 0; i < count; i++) {
        square += (double)grad[tensor->offset + i] * (double)grad[tensor->offset + i];
    }
    double length = sqrt(square);
    ck_assert_msg(length > 0, "%s: no gradient", tensor->name);
    for (int s = 0; s < 2; s++) {
        double losses[2];
        for (int side = 0; side < 2; side++) {
            double by = (side == 0 ? -steps[s] : steps[s]) / length;
            for (int64_t i = 0; i < count; i++) {
                values[i] = (float)((double)saved[i] + by * (double)grad[tensor->offset + i]);
            }
            losses[side] = problem_loss(p);
        }
        quotient[s] = (losses[1] - losses[0]) / (2 * steps[s]);
    }
    memcpy(values, saved, (size_t)count * sizeof(float));
    device_free(saved);
    double numeric = (4 * quotient[1] - quotient[0]) / 3;
    ck_assert_msg(fabs(length - numeric) <= 2e-3 + 3e-3 * length, "%s: %.7g, by differences %.7g",
                  tensor->name, length, numeric);
}

START_TEST(models_match_finite_differences)
{
    struct problem p;
    problem_create(&p, _i % 3, &kinds[_i]);
    problem_loss(&p);
    model_backward(&p.student.context, p.student.image, &p.kv, &p.packing->batch, p.workspace,
                   &(struct model_backward_args){p.g_logprob, NULL, p.grad});
    int64_t count = p.student.layout->master_count;
    float *grad = fixture_floats(count);
    memcpy(grad, p.grad, (size_t)count * sizeof(float));
    static const char *const names[] = {"model.embed_tokens.weight", "model.norm.weight",
                                        "model.layers.1.self_attn.v_proj.weight",
                                        "model.layers.0.mlp.up_proj.weight", "lm_head.weight"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        int32_t index = model_layout_find(p.student.layout, names[i]);
        if (index >= 0) {
            check_tensor(&p, &p.student.layout->tensors[index], grad);
        }
    }
    device_free(grad);
    problem_destroy(&p);
}
END_TEST

/* The same bits with any number of threads, and a vocabulary of several chunks. */
START_TEST(threads_change_no_bit)
{
    struct problem p;
    problem_create(&p, 3, &(struct model_divergence){0.5, 100, true});
    int64_t count = p.student.layout->master_count;
    double loss = problem_loss(&p);
    float *first = fixture_floats(count);
    memcpy(first, p.grad, (size_t)count * sizeof(float));
    memset(p.grad, 0, (size_t)count * sizeof(float));
    p.student.context.pool = NULL;
    ck_assert(problem_loss(&p) == loss);
    ck_assert_int_eq(memcmp(first, p.grad, (size_t)count * sizeof(float)), 0);
    device_free(first);
    problem_destroy(&p);
}
END_TEST

static Suite *divergence_suite(void)
{
    Suite *suite = suite_create("test_model_divergence");
    TCase *all = tcase_create("divergence");
    tcase_add_test(all, vectors);
    tcase_add_loop_test(all, rows_match_finite_differences, 0, KINDS);
    tcase_add_loop_test(all, equal_rows_have_neither_divergence_nor_gradient, 0, KINDS);
    tcase_add_loop_test(all, models_match_finite_differences, 0, WHOLE);
    tcase_add_test(all, threads_change_no_bit);
    suite_add_tcase(suite, all);
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(divergence_suite());
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
