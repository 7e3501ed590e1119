/* What must hold for any batch: order, splitting, limits of FIPO, and gradients against finite
 * differences of a second, plainly written loss whose detached parts are frozen. */
#include "tests/objective_cases.h"

enum { PROPERTY_SEEDS = 40 };

/* --- a plain second implementation
 * ---------------------------------------------------------------- */

/* Detached parts of one batch, taken at the point where the derivative is. */
struct frozen {
    double weight[CASE_SEQUENCES][CASE_TOKENS];
    bool kept[CASE_SEQUENCES];
};

static double gap_at(const struct objective_case *c, uint32_t i, uint32_t t)
{
    return (double)c->logprob[i][t] - (double)c->old[i][t];
}

/* Sum over the future as it is written in the paper: O(T^2), with distances counted in positions or
 * in unmasked tokens. */
static double future_plain(const struct objective_case *c, const struct objective_options *options,
                           uint32_t i, uint32_t t)
{
    double gamma = pow(2.0, -1.0 / options->fipo_decay_rate);
    double sum = 0;
    uint32_t unmasked = 0;
    for (uint32_t k = t; k < c->sequences[i].count; k++) {
        if (c->mask[i][k] == 0) {
            continue;
        }
        uint32_t distance = options->fipo_decay_over_masked ? k - t : unmasked;
        unmasked++;
        double d = fmax(-20, fmin(20, gap_at(c, i, k)));
        bool member = options->delta <= 0 || !(d > log(options->delta));
        sum += member ? pow(gamma, (double)distance) * d : 0;
    }
    return sum;
}

static double weight_plain(const struct objective_case *c, const struct objective_options *options,
                           uint32_t i, uint32_t t)
{
    if (options->loss_type != CONFIG_LOSS_FIPO) {
        return 1;
    }
    double e = options->fipo_clip_range;
    double low = options->fipo_clip_high_only ? 1.0 : 1.0 - e;
    double f = fmax(low, fmin(1.0 + e, exp(future_plain(c, options, i, t))));
    bool safe = options->fipo_safety_threshold > 0 && c->sequences[i].advantage < 0 &&
                exp(gap_at(c, i, t)) > options->fipo_safety_threshold;
    return safe ? fmax(0.8, fmin(1.0, f)) : f;
}

static void freeze(const struct objective_case *c, const struct objective_options *options,
                   struct frozen *out)
{
    for (uint32_t i = 0; i < c->count; i++) {
        uint32_t dual = 0;
        for (uint32_t t = 0; t < c->sequences[i].count; t++) {
            if (c->mask[i][t] != 0) {
                out->weight[i][t] = weight_plain(c, options, i, t);
                dual += options->delta > 0 && c->sequences[i].advantage < 0 &&
                                exp(gap_at(c, i, t)) > options->delta
                            ? 1
                            : 0;
            }
        }
        bool drops = options->loss_type == CONFIG_LOSS_FIPO && options->fipo_drop_sequences;
        out->kept[i] = !(drops && dual > 1);
    }
}

/* A nudge of one token's log-prob or entropy, in double: floats are too coarse for differences. */
struct nudge {
    uint32_t sequence, token;
    double logprob, entropy;
};

static double token_plain(const struct objective_case *c, const struct objective_options *options,
                          const struct frozen *frozen, uint32_t i, uint32_t t,
                          const struct nudge *nudge)
{
    bool here = nudge->sequence == i && nudge->token == t;
    double lp = (double)c->logprob[i][t] + (here ? nudge->logprob : 0);
    double h = (double)c->entropy[i][t] + (here ? nudge->entropy : 0);
    double ratio = exp(fmax(-20, fmin(20, lp - (double)c->old[i][t])));
    double a = c->sequences[i].advantage * frozen->weight[i][t];
    double clipped = fmax(1 - options->epsilon_low, fmin(1 + options->epsilon_high, ratio));
    double loss = fmax(-a * ratio, -a * clipped);
    if (options->delta > 0 && a < 0) {
        loss = fmin(loss, -a * options->delta);
    }
    if (options->tis_cap > 0) {
        loss *= fmin(options->tis_cap, exp((double)c->old[i][t] - (double)c->behaviour[i][t]));
    }
    double gap = lp - (double)c->reference[i][t];
    double kl = options->kl_type == CONFIG_KL_K1   ? gap
                : options->kl_type == CONFIG_KL_K2 ? gap * gap / 2
                                                   : fmin(10, exp(-gap) - 1 + gap);
    return loss + options->beta * kl - options->entropy_coef * h;
}

static double loss_plain(const struct objective_case *c, const struct objective_options *options,
                         const struct frozen *frozen, const struct nudge *nudge)
{
    double total = 0;
    double tokens = 0;
    double sequences = 0;
    for (uint32_t i = 0; i < c->count; i++) {
        double sum = 0;
        double n = 0;
        for (uint32_t t = 0; t < c->sequences[i].count; t++) {
            if (c->mask[i][t] != 0) {
                sum += token_plain(c, options, frozen, i, t, nudge);
                n++;
            }
        }
        if (n > 0 && frozen->kept[i]) {
            bool mean = options->aggregation == OBJECTIVE_SEQ_MEAN_TOKEN_MEAN;
            total += mean ? sum / n : sum;
            tokens += n;
            sequences++;
        }
    }
    switch (options->aggregation) {
    case OBJECTIVE_TOKEN_MEAN:
        return total / tokens;
    case OBJECTIVE_SEQ_SUM_NORM:
        return total / options->loss_scale;
    case OBJECTIVE_SEQ_MEAN_TOKEN_SUM_NORM:
        return total / (sequences * options->loss_scale);
    default:
        return total / sequences;
    }
}

/* --- finite differences
 * --------------------------------------------------------------------------- */

static void check_differences(struct objective_case *c, const struct objective_options *options)
{
    const double h = 1e-6;
    struct frozen frozen = {0};
    freeze(c, options, &frozen);
    struct nudge none = {.sequence = UINT32_MAX};
    double loss = case_run(c, options);
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
            ck_assert_double_eq_tol(got, wanted, 2e-6 * fmax(1, fabs(wanted)));
            ck_assert_double_eq_tol((double)c->g_entropy[i][t], bonus, 1e-7);
        }
    }
}

START_TEST(gradients_match_finite_differences)
{
    for (int type = 0; type <= CONFIG_LOSS_DR_GRPO; type++) {
        for (int aggregation = 0; aggregation <= OBJECTIVE_SEQ_MEAN_TOKEN_SUM_NORM; aggregation++) {
            for (int variant = 0; variant < 6; variant++) {
                struct objective_options options = case_options((enum config_loss_type)type);
                options.aggregation = (enum objective_aggregation)aggregation;
                options.beta = variant % 3 == 0 ? 0 : 0.3;
                options.kl_type = (enum config_kl_type)(variant % 3);
                options.tis_cap = variant % 2 == 0 ? 2 : 0;
                options.entropy_coef = variant % 2 == 0 ? 0 : 0.05;
                options.delta = variant == 5 ? 0 : 4;
                options.fipo_clip_high_only = variant % 2 == 0;
                options.fipo_drop_sequences = variant != 4;
                options.fipo_decay_over_masked = variant != 3;
                struct objective_case *c = case_random((uint64_t)(100 + variant), 6);
                check_differences(c, &options);
                free(c);
            }
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
                objective_fipo_token(&fipo, gap_at(c, i, t), c->sequences[i].advantage, &got);
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
        struct objective_options options = case_options(CONFIG_LOSS_FIPO);
        options.aggregation = (enum objective_aggregation)(seed % 5);
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
    for (int type = 0; type <= CONFIG_LOSS_DR_GRPO; type++) {
        struct objective_options options = case_options((enum config_loss_type)type);
        options.tis_cap = 2;
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
    tcase_add_test(tests, gradients_match_finite_differences);
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
