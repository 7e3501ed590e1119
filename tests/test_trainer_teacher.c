/* What a teacher makes of the loss: published vectors, gradients by finite differences with the
 * detached parts held, sequences without a teacher, hostile values. */
#include "tests/objective_cases.h"

static struct objective_options teacher_options(enum config_teacher_loss loss)
{
    struct objective_options options = case_options(CONFIG_LOSS_DAPO);
    options.delta = 0;
    options.teacher = (struct objective_teacher){
        .loss = loss, .weight = 1, .lambda = 0.5, .ratio_clip = 0.2, .gate = 5};
    return options;
}

/* --- vectors
 * ---------------------------------------------------------------------------------------- */

struct teacher_row {
    const char *name;
    enum config_teacher_loss loss;
    double is_clip;
    bool alone; /* the vector holds the teacher's loss without the policy's */
};

static void check_row(const json_t *batch, const struct teacher_row *row)
{
    const json_t *inputs = json_object_get(batch, "inputs");
    struct objective_case *c = case_common(inputs);
    float teacher[CASE_SEQUENCES][CASE_TOKENS];
    struct objective_options options = teacher_options(row->loss);
    options.teacher.is_clip = row->is_clip;
    case_copy(json_object_get(inputs, "TEA"), teacher);
    for (uint32_t i = 0; i < c->count; i++) {
        c->sequences[i].teacher = teacher[i];
        c->sequences[i].advantage = row->alone ? 0 : c->sequences[i].advantage;
    }
    double loss = case_run(c, &options);
    case_compare(c, loss, json_object_get(json_object_get(batch, "out"), row->name), row->name);
    ck_assert_double_eq(c->stats.sum.taught_sequences, c->count);
    free(c);
}

START_TEST(vectors)
{
    static const struct teacher_row rows[] = {
        {"rlsd_lam0.5_eps0.2/token-mean", CONFIG_TEACHER_RLSD, 0, false},
        {"opd_adv_coef1/token-mean", CONFIG_TEACHER_OPD, 0, false},
        {"sdpo_sampled_token", CONFIG_TEACHER_SDPO, 0, false},
        {"sdpo_sampled_is_clip2", CONFIG_TEACHER_SDPO, 2, false},
        {"sdar_beta5", CONFIG_TEACHER_SDAR, 0, true},
    };
    json_t *root = case_golden();
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        check_row(json_object_get(root, "common_batch"), &rows[i]);
    }
    json_decref(root);
}
END_TEST

/* --- gradients
 * ---------------------------------------------------------------------------------------- */

/* A random case with a teacher that is now near, now far from the student. */
static struct objective_case *taught_case(uint64_t seed, float teacher[][CASE_TOKENS])
{
    struct objective_case *c = case_random(seed, 6);
    struct rl_rng rng = rl_rng_make(seed, 9);
    for (uint32_t i = 0; i < c->count; i++) {
        for (uint32_t t = 0; t < c->sequences[i].count; t++) {
            double wild = rl_rng_next_below(&rng, 4) == 0 ? 2.0 : 0.2;
            teacher[i][t] = c->logprob[i][t] + (float)(wild * rl_rng_next_normal(&rng));
        }
        c->sequences[i].teacher = teacher[i];
    }
    return c;
}

/* The advantage as section 8 of the specification writes it. */
static double advantage_plain(const struct objective_teacher *o, double advantage, double gap)
{
    if (o->loss == CONFIG_TEACHER_OPD) {
        return advantage + o->weight * gap;
    }
    if (o->negative_only && advantage >= 0) {
        return advantage;
    }
    double sign = advantage > 0 ? 1 : -1;
    double factor = exp(sign * gap);
    double low = 1 - o->ratio_clip;
    double high = 1 + o->ratio_clip;
    double clipped = factor < low ? low : factor > high ? high : factor;
    return advantage * ((1 - o->lambda) + o->lambda * clipped);
}

/* RLSD and OPD are the objective on other advantages, whatever the objective: those gradients are
 * checked by finite differences in test_trainer_objective_properties. */
START_TEST(advantages_are_all_that_changes)
{
    float teacher[CASE_SEQUENCES][CASE_TOKENS];
    float advantage[CASE_SEQUENCES][CASE_TOKENS];
    for (int variant = 0; variant < 3; variant++) {
        struct objective_options options =
            teacher_options(variant == 0 ? CONFIG_TEACHER_OPD : CONFIG_TEACHER_RLSD);
        options.loss_type = (enum config_loss_type)_i;
        options.delta = 3;
        options.teacher.weight = 0.7;
        options.teacher.negative_only = variant == 2;
        struct objective_case *taught = taught_case(40, teacher);
        struct objective_case *plain = taught_case(40, teacher);
        for (uint32_t i = 0; i < plain->count; i++) {
            for (uint32_t t = 0; t < plain->sequences[i].count; t++) {
                double gap = (double)teacher[i][t] - (double)plain->old[i][t];
                advantage[i][t] =
                    (float)advantage_plain(&options.teacher, plain->sequences[i].advantage, gap);
            }
            plain->sequences[i].teacher = NULL;
            plain->sequences[i].token_advantage = advantage[i];
        }
        double loss = case_run(taught, &options);
        options.teacher.loss = CONFIG_TEACHER_NONE;
        case_check(loss, case_run(plain, &options), "loss");
        for (uint32_t i = 0; i < plain->count; i++) {
            for (uint32_t t = 0; t < plain->sequences[i].count; t++) {
                case_check((double)taught->g_logprob[i][t], (double)plain->g_logprob[i][t], "g");
            }
        }
        free(plain);
        free(taught);
    }
}
END_TEST

/* The teacher's loss of a token in double with its weight held at where the token was. */
static double lesson_plain(const struct objective_teacher *o, double held, double logprob,
                           double old, double teacher)
{
    double gap = teacher - held;
    if (o->loss == CONFIG_TEACHER_SDAR) {
        return o->weight / (1 + exp(-o->gate * gap)) * (teacher - logprob);
    }
    double ratio = exp(fmin(fmax(held - old, -20), 20));
    return o->weight * fmin(ratio, o->is_clip) * -gap * logprob;
}

/* The advantages are 0, so that nothing but the teacher has a gradient. */
START_TEST(teacher_gradients_match_finite_differences)
{
    static const double step = 1e-5;
    float teacher[CASE_SEQUENCES][CASE_TOKENS];
    for (uint64_t seed = 0; seed < 8; seed++) {
        struct objective_options options =
            teacher_options(_i == 0 ? CONFIG_TEACHER_SDPO : CONFIG_TEACHER_SDAR);
        struct objective_teacher *o = &options.teacher;
        struct objective_case *c = taught_case(seed, teacher);
        double loss = 0;
        o->weight = 0.4;
        o->is_clip = 1.5;
        for (uint32_t i = 0; i < c->count; i++) {
            c->sequences[i].advantage = 0;
        }
        double got = case_run(c, &options);
        double n = c->stats.sum.denominator;
        for (uint32_t i = 0; i < c->count; i++) {
            for (uint32_t t = 0; t < c->sequences[i].count; t++) {
                double at = (double)c->logprob[i][t];
                double old = (double)c->old[i][t];
                double tea = (double)teacher[i][t];
                double slope = (lesson_plain(o, at, at + step, old, tea) -
                                lesson_plain(o, at, at - step, old, tea)) /
                               (2 * step);
                bool counts = c->mask[i][t] != 0;
                loss += counts ? lesson_plain(o, at, at, old, tea) : 0;
                case_check((double)c->g_logprob[i][t], counts ? slope / n : 0, "gradient");
            }
        }
        case_check(got, loss / n, "loss");
        free(c);
    }
}
END_TEST

/* --- rules
 * -------------------------------------------------------------------------------------------- */

START_TEST(sdpo_mixes_policy_and_teacher)
{
    float teacher[CASE_SEQUENCES][CASE_TOKENS];
    struct objective_case *c = taught_case(3, teacher);
    struct objective_options options = teacher_options(CONFIG_TEACHER_SDPO);
    double distilled = case_run(c, &options);
    options.teacher.weight = 0;
    double policy = case_run(c, &options);
    options.teacher.weight = 0.25;
    case_check(case_run(c, &options), 0.75 * policy + 0.25 * distilled, "mixture");
    c->sequences[0].teacher = NULL; /* keeps its share of the policy's loss and its tokens in N */
    double n = c->stats.sum.denominator;
    options.teacher.weight = 1;
    (void)case_run(c, &options);
    ck_assert_double_eq(c->stats.sum.denominator, n);
    ck_assert_double_eq(c->stats.sum.taught_sequences, c->count - 1);
    for (uint32_t t = 0; t < c->sequences[0].count; t++) {
        ck_assert_double_eq((double)c->g_logprob[0][t], 0);
    }
    free(c);
}
END_TEST

START_TEST(a_teacher_like_the_student_changes_nothing)
{
    static const enum config_teacher_loss losses[] = {CONFIG_TEACHER_RLSD, CONFIG_TEACHER_OPD};
    for (size_t l = 0; l < sizeof(losses) / sizeof(losses[0]); l++) {
        struct objective_case *c = case_random(5, 6);
        struct objective_options options = teacher_options(CONFIG_TEACHER_NONE);
        double loss = case_run(c, &options);
        options = teacher_options(losses[l]);
        for (uint32_t i = 0; i < c->count; i++) {
            c->sequences[i].teacher = c->old[i];
        }
        case_check(case_run(c, &options), loss, "loss");
        free(c);
    }
}
END_TEST

START_TEST(hostile_teachers)
{
    float teacher[CASE_SEQUENCES][CASE_TOKENS];
    struct objective_options options = teacher_options((enum config_teacher_loss)_i);
    options.teacher.is_clip = 2;
    for (int variant = 0; variant < 3; variant++) {
        struct objective_case *c = taught_case(8, teacher);
        uint32_t t = 0;
        while (c->mask[1][t] == 0) {
            t++;
        }
        teacher[1][t] = variant == 0 ? NAN : variant == 1 ? -INFINITY : -300.0F;
        for (uint32_t j = 0; j < c->sequences[0].count; j++) {
            teacher[0][j] = c->mask[0][j] == 0 ? NAN : teacher[0][j];
        }
        ck_assert(isfinite(case_run(c, &options)));
        ck_assert_double_eq(c->stats.sum.sequences_rejected, variant < 2 ? 1 : 0);
        for (uint32_t i = 0; i < c->count; i++) {
            for (uint32_t j = 0; j < c->sequences[i].count; j++) {
                ck_assert(isfinite(c->g_logprob[i][j]));
            }
        }
        free(c);
    }
}
END_TEST

START_TEST(by_logits_tokens_get_weights)
{
    float teacher[CASE_SEQUENCES][CASE_TOKENS];
    float weight[CASE_SEQUENCES][CASE_TOKENS];
    struct objective_case *c = taught_case(12, teacher);
    struct objective_options options = teacher_options(CONFIG_TEACHER_SDPO);
    options.aggregation = OBJECTIVE_SEQ_MEAN_TOKEN_MEAN;
    options.teacher.by_logits = true;
    options.teacher.weight = 0.5;
    options.teacher.is_clip = 1.2;
    for (uint32_t i = 0; i < c->count; i++) {
        c->sequences[i].g_divergence = weight[i];
    }
    (void)case_run(c, &options);
    ck_assert_double_eq(c->stats.sum.distill_loss, 0);
    for (uint32_t i = 0; i < c->count; i++) {
        uint32_t tokens = 0;
        for (uint32_t t = 0; t < c->sequences[i].count; t++) {
            tokens += c->mask[i][t];
        }
        for (uint32_t t = 0; t < c->sequences[i].count; t++) {
            double ratio = exp((double)c->logprob[i][t] - (double)c->old[i][t]);
            double wanted = c->mask[i][t] != 0 ? 0.5 * fmin(ratio, 1.2) / tokens : 0;
            case_check((double)weight[i][t], wanted, "weight");
        }
    }
    free(c);
}
END_TEST

static Suite *teacher_suite(void)
{
    Suite *suite = suite_create("test_trainer_teacher");
    TCase *all = tcase_create("teacher");
    tcase_add_test(all, vectors);
    tcase_add_loop_test(all, advantages_are_all_that_changes, 0, CONFIG_LOSS_COUNT);
    tcase_add_loop_test(all, teacher_gradients_match_finite_differences, 0, 2);
    tcase_add_test(all, sdpo_mixes_policy_and_teacher);
    tcase_add_test(all, a_teacher_like_the_student_changes_nothing);
    tcase_add_loop_test(all, hostile_teachers, CONFIG_TEACHER_RLSD, CONFIG_TEACHER_SDAR + 1);
    tcase_add_test(all, by_logits_tokens_get_weights);
    suite_add_tcase(suite, all);
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(teacher_suite());
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
