/* What must hold for any batch: order, splitting, limits of FIPO, and gradients against finite
 * differences of a second, plainly written loss whose detached parts are frozen. */
#include "tests/objective_plain.h"

enum { PROPERTY_SEEDS = 40 };

/* --- finite differences
 * --------------------------------------------------------------------------- */

static void check_differences(struct objective_case *c, const struct objective_options *options)
{
    const double h = 1e-6;
    static struct frozen frozen;
    struct nudge none = {0}; /* moves nothing */
    double loss = case_run(c, options);
    freeze(c, options, &frozen);
    double plain = loss_plain(c, options, &frozen, &none);
    ck_assert_double_eq_tol(loss, plain, 1e-9 * fmax(1, fabs(plain)));
    for (uint32_t i = 0; i < c->count; i++) {
        for (uint32_t t = 0; t < c->sequences[i].count; t++) {
            double wanted = 0;
            double bonus = 0;
            if (c->mask[i][t] != 0) {
                struct nudge up = {i, t, h, 0};
                struct nudge down = {i, t, -h, 0};
                wanted = (loss_plain(c, options, &frozen, &up) -
                          loss_plain(c, options, &frozen, &down)) /
                         (2 * h);
                struct nudge more = {i, t, 0, 1};
                bonus = loss_plain(c, options, &frozen, &more) - plain;
            }
            double got = (double)c->g_logprob[i][t];
            double rounding = 1e-9 * fabs(plain); /* of a difference of two losses */
            ck_assert_double_eq_tol(got, wanted, 2e-6 * fmax(1, fabs(wanted)) + rounding);
            ck_assert_double_eq_tol((double)c->g_entropy[i][t], bonus, 1e-7);
        }
    }
}

/* Everything but the policy loss itself, in six variants. */
static void vary(struct objective_options *options, int variant)
{
    options->beta = variant % 3 == 0 ? 0 : 0.3;
    options->kl_type = variant == 5 ? CONFIG_KL_K3_UNBIASED : (enum config_kl_type)(variant % 3);
    case_correct(options, variant % 2 == 0 ? CONFIG_CORRECTION_TIS : CONFIG_CORRECTION_NONE);
    options->entropy_coef = variant % 2 == 0 ? 0 : 0.05;
    options->delta = variant == 5 ? 0 : 4;
    options->fipo_clip_high_only = variant % 2 == 0;
    options->fipo_drop_sequences = variant != 4;
    options->fipo_decay_over_masked = variant != 3;
}

START_TEST(gradients_match_finite_differences)
{
    enum config_loss_type type = (enum config_loss_type)_i;
    for (int aggregation = 0; aggregation <= OBJECTIVE_SEQ_MEAN_TOKEN_SUM_NORM; aggregation++) {
        for (int variant = 0; variant < 6; variant++) {
            struct objective_options options = case_options(type);
            options.aggregation = (enum objective_aggregation)aggregation;
            vary(&options, variant);
            struct objective_case *c = case_random((uint64_t)(100 + variant), 6);
            check_differences(c, &options);
            free(c);
        }
    }
}
END_TEST

/* Each objective with each correction, and with what can be switched on beside them. */
START_TEST(corrected_gradients_match_finite_differences)
{
    enum config_loss_type type = (enum config_loss_type)_i;
    for (int correction = CONFIG_CORRECTION_NONE; correction < CONFIG_CORRECTION_COUNT;
         correction++) {
        for (int variant = 0; variant < 5; variant++) {
            struct objective_options options = case_options(type);
            case_correct(&options, (enum config_correction)correction);
            if (options.correction == CONFIG_CORRECTION_GEO_MIS ||
                options.correction == CONFIG_CORRECTION_GEO_TIS ||
                options.correction == CONFIG_CORRECTION_K3_MIS) {
                options.correction_high = 1.1; /* wide enough to keep some */
                options.correction_low *= 0.9;
            }
            options.veto_threshold = variant == 1 ? 0.3 : 0;
            options.opsm_delta = variant == 2 ? 0.05 : 0;
            options.m2po_threshold = variant == 3 ? 0.1 : 0;
            options.correction_normalize = variant == 3;
            options.loglinear = variant == 4;
            struct objective_case *c = case_random((uint64_t)(200 + variant), 6);
            check_differences(c, &options);
            free(c);
        }
    }
}
END_TEST

/* --- the scan
 * -------------------------------------------------------------------------------------- */

START_TEST(scan_equals_the_sum_as_written)
{
    for (uint64_t seed = 0; seed < PROPERTY_SEEDS; seed++) {
        struct objective_options options = case_options(CONFIG_LOSS_FIPO);
        options.fipo_decay_rate = 0.5 + (double)seed;
        options.fipo_decay_over_masked = seed % 2 == 0;
        options.delta = seed % 3 == 0 ? 0 : 3;
        struct objective_case *c = case_random(seed, 4);
        for (uint32_t i = 0; i < c->count; i++) {
            struct objective_fipo fipo;
            objective_fipo_start(&options, &fipo);
            for (uint32_t t = c->sequences[i].count; t-- > 0;) {
                if (c->mask[i][t] == 0) {
                    objective_fipo_masked(&fipo);
                    continue;
                }
                struct objective_influence got;
                objective_fipo_token(&fipo, gap_at(c, &options, i, t), c->sequences[i].advantage,
                                     &got);
                ck_assert_double_eq_tol(got.future_kl, future_plain(c, &options, i, t), 1e-12);
                ck_assert_double_eq_tol(got.weight, weight_plain(c, &options, i, t), 1e-12);
            }
        }
        free(c);
    }
}
END_TEST

/* With a half-life near 0 a token's weight depends on its own log-ratio alone. */
START_TEST(short_half_life_leaves_the_token_itself)
{
    struct objective_options options = case_options(CONFIG_LOSS_FIPO);
    options.fipo_decay_rate = 0.001;
    options.fipo_safety_threshold = 0;
    options.delta = 0;
    struct objective_fipo fipo;
    objective_fipo_start(&options, &fipo);
    static const double ratios[] = {0.1, -0.05, 5.0, -0.15, 0.0};
    for (int t = 0; t < 5; t++) {
        struct objective_influence got;
        objective_fipo_token(&fipo, ratios[t], 1, &got);
        ck_assert_double_eq_tol(got.weight, fmax(0.8, fmin(1.2, exp(ratios[t]))), 1e-12);
    }
}
END_TEST

/* A range near 0 pins every weight to 1, and what is left is DAPO (with the same dual clip). */
START_TEST(small_range_is_dapo)
{
    for (uint64_t seed = 0; seed < PROPERTY_SEEDS; seed++) {
        struct objective_options fipo = case_options(CONFIG_LOSS_FIPO);
        fipo.fipo_clip_range = 1e-13;
        fipo.fipo_drop_sequences = false;
        struct objective_options dapo = case_options(CONFIG_LOSS_DAPO);
        struct objective_case *a = case_random(seed, 5);
        struct objective_case *b = case_random(seed, 5);
        ck_assert_double_eq_tol(case_run(a, &fipo), case_run(b, &dapo), 1e-9);
        for (uint32_t i = 0; i < a->count; i++) {
            for (uint32_t t = 0; t < CASE_TOKENS; t++) {
                ck_assert_float_eq_tol(a->g_logprob[i][t], b->g_logprob[i][t], 1e-6f);
            }
        }
        free(b);
        free(a);
    }
}
END_TEST

/* On policy the weights are exactly 1 and FIPO is DAPO, bit for bit. */
START_TEST(on_policy_fipo_is_dapo_exactly)
{
    struct objective_options fipo = case_options(CONFIG_LOSS_FIPO);
    struct objective_options dapo = case_options(CONFIG_LOSS_DAPO);
    struct objective_case *a = case_random(4, CASE_SEQUENCES);
    struct objective_case *b = case_random(4, CASE_SEQUENCES);
    memcpy(a->logprob, a->old, sizeof(a->old));
    memcpy(b->logprob, b->old, sizeof(b->old));
    ck_assert_double_eq(case_run(a, &fipo), case_run(b, &dapo));
    ck_assert_mem_eq(a->g_logprob, b->g_logprob, sizeof(a->g_logprob));
    ck_assert_double_eq(a->stats.max.influence_max, 1);
    ck_assert_double_eq(a->stats.min.influence_min, 1);
    ck_assert_double_eq(a->stats.max.ratio_max, 1);
    free(b);
    free(a);
}
END_TEST

/* --- order, padding, nothing to learn
 * -------------------------------------------------------------- */

START_TEST(order_of_sequences_does_not_matter)
{
    for (uint64_t seed = 0; seed < PROPERTY_SEEDS; seed++) {
        struct objective_options options =
            case_options((enum config_loss_type)(seed % CONFIG_LOSS_COUNT));
        options.aggregation = (enum objective_aggregation)(seed % 5);
        case_correct(&options, (enum config_correction)(seed % CONFIG_CORRECTION_COUNT));
        options.m2po_threshold = seed % 2 == 0 ? 0.1 : 0;
        options.opsm_delta = 0.1;
        struct objective_case *a = case_random(seed, CASE_SEQUENCES);
        struct objective_case *b = case_random(seed, CASE_SEQUENCES);
        uint64_t order[CASE_SEQUENCES];
        rl_rng_permutation(rl_rng_key_make(seed, 1, 2), CASE_SEQUENCES, order);
        for (uint32_t i = 0; i < CASE_SEQUENCES; i++) {
            b->sequences[i] = a->sequences[order[i]];
        }
        ck_assert_double_eq_tol(case_run(a, &options), case_run(b, &options), 1e-12);
        for (uint32_t i = 0; i < CASE_SEQUENCES; i++) {
            ck_assert_mem_eq(a->g_logprob[order[i]], b->g_logprob[i],
                             a->sequences[order[i]].count * sizeof(float));
        }
        free(b);
        free(a);
    }
}
END_TEST

START_TEST(padding_does_not_matter)
{
    struct objective_options options = case_options(CONFIG_LOSS_FIPO);
    struct objective_case *a = case_random(8, CASE_SEQUENCES);
    struct objective_case *b = case_random(8, CASE_SEQUENCES);
    for (uint32_t i = 0; i < b->count; i++) {
        b->sequences[i].count = CASE_TOKENS; /* the tail's mask is 0 */
    }
    ck_assert_double_eq(case_run(a, &options), case_run(b, &options));
    ck_assert_mem_eq(a->g_logprob, b->g_logprob, sizeof(a->g_logprob));
    free(b);
    free(a);
}
END_TEST

START_TEST(no_advantage_no_gradient)
{
    for (int type = 0; type < CONFIG_LOSS_COUNT; type++) {
        struct objective_options options = case_options((enum config_loss_type)type);
        case_correct(&options, CONFIG_CORRECTION_TIS);
        options.dppo_kl = 0; /* pulls back whatever the advantage is */
        struct objective_case *c = case_random(6, CASE_SEQUENCES);
        for (uint32_t i = 0; i < c->count; i++) {
            c->sequences[i].advantage = 0;
        }
        ck_assert_double_eq(case_run(c, &options), 0);
        static const float zeros[CASE_SEQUENCES][CASE_TOKENS];
        ck_assert_mem_eq(c->g_logprob, zeros, sizeof(zeros));
        ck_assert_double_eq(c->stats.sum.tokens_with_gradient, 0);
        free(c);
    }
}
END_TEST

/* One advantage for each token, all the same, is the sequence's advantage. */
START_TEST(token_advantages_override)
{
    struct objective_options options = case_options(CONFIG_LOSS_FIPO);
    struct objective_case *a = case_random(2, CASE_SEQUENCES);
    struct objective_case *b = case_random(2, CASE_SEQUENCES);
    static float advantage[CASE_SEQUENCES][CASE_TOKENS];
    for (uint32_t i = 0; i < CASE_SEQUENCES; i++) {
        a->sequences[i].advantage = (double)(float)a->sequences[i].advantage;
        for (uint32_t t = 0; t < CASE_TOKENS; t++) {
            advantage[i][t] = (float)a->sequences[i].advantage;
        }
        b->sequences[i].token_advantage = advantage[i];
        b->sequences[i].advantage = NAN;
    }
    ck_assert_double_eq(case_run(a, &options), case_run(b, &options));
    ck_assert_mem_eq(a->g_logprob, b->g_logprob, sizeof(a->g_logprob));
    free(b);
    free(a);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("objective properties");
    TCase *tests = tcase_create("all");
    tcase_add_loop_test(tests, gradients_match_finite_differences, 0, CONFIG_LOSS_COUNT);
    tcase_add_loop_test(tests, corrected_gradients_match_finite_differences, 0, CONFIG_LOSS_COUNT);
    tcase_add_test(tests, scan_equals_the_sum_as_written);
    tcase_add_test(tests, short_half_life_leaves_the_token_itself);
    tcase_add_test(tests, small_range_is_dapo);
    tcase_add_test(tests, on_policy_fipo_is_dapo_exactly);
    tcase_add_test(tests, order_of_sequences_does_not_matter);
    tcase_add_test(tests, padding_does_not_matter);
    tcase_add_test(tests, no_advantage_no_gradient);
    tcase_add_test(tests, token_advantages_override);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
