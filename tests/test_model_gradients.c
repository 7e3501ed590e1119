/* Gradients of whole tiny models against finite differences, tensor by tensor.
 *
 * The direction inside each tensor is the gradient itself, normalised: the derivative along it must
 * be the gradient's norm, and any wrong element lowers it or shows in the second, random direction.
 * The loss is evaluated in fp32 (summed in double) at four points; Richardson's extrapolation of
 * central differences leaves an error of order h^4, below 1e-5 here. What remains is rounding:
 * about 40 log-probs near 4 with 6e-8 relative error each, so sqrt(40) * 4 * 6e-8 / h = 1.5e-4 for
 * h = 1e-2. The limit of 2e-3 absolute + 1e-3 relative is ten times that; a term that is missing in
 * a backward pass changes gradients of norm 0.1 to 10 by far more. */
#include "model/kv_cache.h"
#include "tests/model_fixture.h"

#include <math.h>

enum { SEQUENCES = 3, ROWS = 40, ARCHITECTURES = 3 };

static const double step_size = 1e-2;
static const struct fixture_options plain = {KERNEL_ISA_REF, KERNEL_FP32, 1};

struct problem {
    struct model_fixture f;
    struct model_packing *packing;
    struct model_kv kv;
    struct model_workspace *workspace;
    int32_t rows[ROWS], targets[ROWS];
    float *logprob, *entropy, *g_logprob, *g_entropy; /* [ROWS] */
    float *grad;
};

static void problem_create(struct problem *p, int which, const struct fixture_options *options)
{
    static const int64_t lengths[SEQUENCES] = {23, 9, 34};
    struct model_architecture arch = fixture_architecture(which);
    struct rl_rng rng = rl_rng_make(11, (uint64_t)which);
    fixture_create(&p->f, &arch, options);
    fixture_randomise(&p->f, 3 + (uint64_t)which);
    ck_assert_int_eq(model_packing_create(66, SEQUENCES, &p->packing), RL_OK);
    for (int s = 0; s < SEQUENCES; s++) {
        int32_t tokens[34];
        int64_t row = 0;
        for (int64_t i = 0; i < lengths[s]; i++) {
            tokens[i] = (int32_t)rl_rng_next_below(&rng, (uint64_t)arch.vocab);
        }
        ck_assert_int_eq(model_packing_add(p->packing, tokens, lengths[s], &row), RL_OK);
    }
    ck_assert_int_eq(model_kv_create(p->f.layout, p->packing->page_count, &p->kv), RL_OK);
    ck_assert_int_eq(model_workspace_create(p->f.layout, 66, MODEL_KEEP_COSTLY, &p->workspace),
                     RL_OK);
    p->logprob = fixture_floats(ROWS);
    p->entropy = fixture_floats(ROWS);
    p->g_logprob = fixture_floats(ROWS);
    p->g_entropy = fixture_floats(ROWS);
    p->grad = fixture_floats(p->f.layout->master_count);
    for (int i = 0; i < ROWS; i++) {
        p->rows[i] = (int32_t)rl_rng_next_below(&rng, 66); /* repeated rows are allowed */
        p->targets[i] = (int32_t)rl_rng_next_below(&rng, (uint64_t)arch.vocab);
        p->g_logprob[i] = (float)rl_rng_next_normal(&rng);
        p->g_entropy[i] = (float)(0.3 * rl_rng_next_normal(&rng));
    }
}

static void problem_destroy(struct problem *p)
{
    device_free(p->grad);
    device_free(p->g_entropy);
    device_free(p->g_logprob);
    device_free(p->entropy);
    device_free(p->logprob);
    model_workspace_destroy(p->workspace);
    model_kv_fini(&p->kv);
    model_packing_destroy(p->packing);
    fixture_destroy(&p->f);
}

static double problem_loss(struct problem *p)
{
    const float *hidden = NULL;
    double loss = 0.0;
    fixture_publish(&p->f);
    model_forward(&p->f.context, p->f.image, &p->kv, &p->packing->batch, p->workspace, &hidden);
    model_head_forward(
        &p->f.context, p->f.image, p->workspace,
        &(struct model_head_args){p->rows, p->targets, ROWS, 0.8F, p->logprob, p->entropy});
    for (int i = 0; i < ROWS; i++) {
        loss += (double)p->g_logprob[i] * (double)p->logprob[i];
        loss += (double)p->g_entropy[i] * (double)p->entropy[i];
    }
    return loss;
}

static double loss_moved(struct problem *p, const struct model_tensor *tensor,
                         const float *direction, double by)
{
    int64_t count = tensor->rows * tensor->cols;
    float *values = p->f.master + tensor->offset;
    float *saved = malloc((size_t)count * sizeof(float));
    memcpy(saved, values, (size_t)count * sizeof(float));
    for (int64_t i = 0; i < count; i++) {
        values[i] = (float)((double)values[i] + by * (double)direction[i]);
    }
    double loss = problem_loss(p);
    memcpy(values, saved, (size_t)count * sizeof(float));
    free(saved);
    return loss;
}

static double quotient(struct problem *p, const struct model_tensor *tensor, const float *direction,
                       double h)
{
    return (loss_moved(p, tensor, direction, h) - loss_moved(p, tensor, direction, -h)) / (2.0 * h);
}

static double dot(const float *a, const float *b, int64_t count)
{
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++) {
        sum += (double)a[i] * (double)b[i];
    }
    return sum;
}

static void check_direction(struct problem *p, const struct model_tensor *tensor, float *direction)
{
    int64_t count = tensor->rows * tensor->cols;
    double length = sqrt(dot(direction, direction, count));
    ck_assert_msg(length > 0.0, "%s: no gradient at all", tensor->name);
    for (int64_t i = 0; i < count; i++) {
        direction[i] = (float)((double)direction[i] / length);
    }
    double analytic = dot(direction, p->grad + tensor->offset, count);
    double coarse = quotient(p, tensor, direction, 2.0 * step_size);
    double fine = quotient(p, tensor, direction, step_size);
    double numeric = (4.0 * fine - coarse) / 3.0;
    ck_assert_msg(fabs(analytic - numeric) <= 2e-3 + 1e-3 * fabs(numeric),
                  "%s %s: derivative %.7g, finite difference %.7g", p->f.layout->arch.name,
                  tensor->name, analytic, numeric);
}

START_TEST(gradients_match_finite_differences)
{
    struct problem p;
    memset(&p, 0, sizeof p);
    problem_create(&p, _i, &plain);
    problem_loss(&p);
    model_backward(&p.f.context, p.f.image, &p.kv, &p.packing->batch, p.workspace,
                   &(struct model_backward_args){p.g_logprob, p.g_entropy, p.grad});
    struct rl_rng rng = rl_rng_make(5, 5);
    for (int32_t i = 0; i < p.f.layout->tensor_count; i++) {
        const struct model_tensor *tensor = &p.f.layout->tensors[i];
        int64_t count = tensor->rows * tensor->cols;
        float *direction = fixture_floats(count);
        memcpy(direction, p.grad + tensor->offset, (size_t)count * sizeof(float));
        check_direction(&p, tensor, direction);
        for (int64_t j = 0; j < count; j++) {
            direction[j] = (float)rl_rng_next_normal(&rng);
        }
        check_direction(&p, tensor, direction);
        device_free(direction);
    }
    problem_destroy(&p);
}
END_TEST

/* Two passes add up, and a pass without rows adds nothing. */
START_TEST(gradients_accumulate)
{
    struct problem p;
    memset(&p, 0, sizeof p);
    problem_create(&p, _i, &plain);
    int64_t count = p.f.layout->master_count;
    float *twice = fixture_floats(count);
    problem_loss(&p);
    model_backward(&p.f.context, p.f.image, &p.kv, &p.packing->batch, p.workspace,
                   &(struct model_backward_args){p.g_logprob, p.g_entropy, p.grad});
    for (int pass = 0; pass < 2; pass++) {
        problem_loss(&p);
        model_backward(&p.f.context, p.f.image, &p.kv, &p.packing->batch, p.workspace,
                       &(struct model_backward_args){p.g_logprob, p.g_entropy, twice});
    }
    model_head_forward(&p.f.context, p.f.image, p.workspace,
                       &(struct model_head_args){p.rows, p.targets, 0, 1.0F, p.logprob, NULL});
    model_backward(&p.f.context, p.f.image, &p.kv, &p.packing->batch, p.workspace,
                   &(struct model_backward_args){p.g_logprob, NULL, twice});
    for (int64_t i = 0; i < count; i++) {
        double expected = 2.0 * (double)p.grad[i];
        ck_assert_double_le(fabs((double)twice[i] - expected), 1e-6 + 1e-5 * fabs(expected));
    }
    device_free(twice);
    problem_destroy(&p);
}
END_TEST

/* What forward keeps changes the memory, and not a bit of the gradients. */
START_TEST(recomputing_changes_no_bit)
{
    struct fixture_options options = {kernel_isa_best(), _i % 2 == 0 ? KERNEL_FP32 : KERNEL_BF16,
                                      2};
    struct problem p;
    memset(&p, 0, sizeof p);
    problem_create(&p, _i, &options);
    size_t bytes = (size_t)p.f.layout->master_count * sizeof(float);
    float *first = fixture_floats(p.f.layout->master_count);
    for (int keep = MODEL_KEEP_COSTLY; keep <= MODEL_KEEP_ALL; keep++) {
        model_workspace_destroy(p.workspace);
        ck_assert_int_eq(
            model_workspace_create(p.f.layout, 66, (enum model_keep)keep, &p.workspace), RL_OK);
        memset(p.grad, 0, bytes);
        problem_loss(&p);
        model_backward(&p.f.context, p.f.image, &p.kv, &p.packing->batch, p.workspace,
                       &(struct model_backward_args){p.g_logprob, p.g_entropy, p.grad});
        if (keep == MODEL_KEEP_COSTLY) {
            memcpy(first, p.grad, bytes);
        }
        ck_assert_mem_eq(first, p.grad, bytes);
    }
    device_free(first);
    problem_destroy(&p);
}
END_TEST

START_TEST(less_kept_is_less_memory)
{
    struct model_architecture arch = fixture_architecture(_i);
    struct model_layout *layout = NULL;
    arch.layers = 5;
    ck_assert_int_eq(model_layout_create(&arch, KERNEL_FP32, 64, &layout), RL_OK);
    size_t nothing = model_workspace_bytes(layout, 64, MODEL_KEEP_NOTHING);
    size_t inputs = model_workspace_bytes(layout, 64, MODEL_KEEP_INPUTS);
    size_t costly = model_workspace_bytes(layout, 64, MODEL_KEEP_COSTLY);
    size_t all = model_workspace_bytes(layout, 64, MODEL_KEEP_ALL);
    ck_assert_uint_lt(nothing, inputs);
    ck_assert_uint_lt(inputs, costly);
    ck_assert_uint_lt(costly, all);
    model_layout_destroy(layout);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("model_gradients");
    TCase *tcase = tcase_create("whole tiny models");
    tcase_add_loop_test(tcase, gradients_match_finite_differences, 0, ARCHITECTURES);
    tcase_add_loop_test(tcase, gradients_accumulate, 0, ARCHITECTURES);
    tcase_add_loop_test(tcase, recomputing_changes_no_bit, 0, ARCHITECTURES);
    tcase_add_loop_test(tcase, less_kept_is_less_memory, 0, ARCHITECTURES);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
