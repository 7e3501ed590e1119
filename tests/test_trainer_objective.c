/* Objectives against vectors that two independent programs agree on, and the rules that hold
 * whatever the numbers: masks, rejections, sums over micro-batches, options. */
#include "tests/objective_cases.h"

/* --- golden vectors -----------------------------------------------------------------------------
 */

static double input_number(const json_t *inputs, const char *key)
{
    return json_number_value(json_object_get(inputs, key));
}

static struct objective_options fipo_options(const json_t *inputs)
{
    struct objective_options options = case_options(CONFIG_LOSS_FIPO);
    options.epsilon_low = input_number(inputs, "eps_lo");
    options.epsilon_high = input_number(inputs, "eps_hi");
    options.delta = input_number(inputs, "c");
    options.fipo_decay_rate = input_number(inputs, "tau");
    options.fipo_clip_range = input_number(inputs, "f_hi") - 1;
    options.fipo_clip_high_only = input_number(inputs, "f_lo") == 1.0;
    options.fipo_safety_threshold = input_number(inputs, "safety");
    options.fipo_drop_sequences = !json_is_false(json_object_get(inputs, "drop"));
    return options;
}

static struct objective_case *fipo_case(const json_t *inputs)
{
    const json_t *lp = json_object_get(inputs, "lp");
    const json_t *mask = json_object_get(inputs, "m");
    struct objective_case *c = case_create((uint32_t)json_array_size(lp));
    case_copy(lp, c->logprob);
    case_copy(json_object_get(inputs, "old"), c->old);
    for (uint32_t i = 0; i < c->count; i++) {
        c->sequences[i].count = (uint32_t)json_array_size(json_array_get(lp, i));
        c->sequences[i].mask = c->mask[i];
        c->sequences[i].advantage =
            json_number_value(json_array_get(json_object_get(inputs, "A"), i));
        for (uint32_t t = 0; t < c->sequences[i].count; t++) {
            c->mask[i][t] = case_number(mask, i, t) > 0 ? 1 : 0;
        }
    }
    return c;
}

/* F and f of every token against the golden ones. */
static void fipo_check_weights(const struct objective_case *c,
                               const struct objective_options *options, const json_t *out)
{
    for (uint32_t i = 0; i < c->count; i++) {
        struct objective_fipo fipo;
        objective_fipo_start(options, &fipo);
        for (uint32_t t = c->sequences[i].count; t-- > 0;) {
            if (c->mask[i][t] == 0) {
                objective_fipo_masked(&fipo);
                continue;
            }
            struct objective_influence got;
            double gap = (double)c->logprob[i][t] - (double)c->old[i][t];
            objective_fipo_token(&fipo, gap, c->sequences[i].advantage, &got);
            case_check(got.future_kl, case_number(json_object_get(out, "F"), i, t), "F");
            case_check(got.weight, case_number(json_object_get(out, "f"), i, t), "f");
            double member = case_number(json_object_get(out, "M"), i, t);
            ck_assert_int_eq(got.participates, member > 0);
        }
    }
}

START_TEST(fipo_vectors)
{
    json_t *root = case_golden();
    const json_t *list = json_object_get(root, "fipo");
    ck_assert_uint_ge(json_array_size(list), 4);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *vector = json_array_get(list, i);
        const char *name = json_string_value(json_object_get(vector, "name"));
        const json_t *inputs = json_object_get(vector, "inputs");
        const json_t *out = json_object_get(vector, "out");
        struct objective_options options = fipo_options(inputs);
        struct objective_case *c = fipo_case(inputs);
        double loss = case_run(c, &options);
        case_compare(c, loss, out, name);
        case_check(objective_denominator(&options, &c->stats), input_number(out, "N"), name);
        fipo_check_weights(c, &options, out);
        free(c);
    }
    json_decref(root);
}
END_TEST

struct common_row {
    const char *name;
    enum config_loss_type type;
    enum objective_aggregation aggregation;
    double epsilon_low, epsilon_high, delta;
};

START_TEST(policy_vectors)
{
    static const struct common_row rows[] = {
        {"ppo_clip/token-mean", CONFIG_LOSS_DAPO, OBJECTIVE_TOKEN_MEAN, 0.2, 0.28, 0},
        {"ppo_clip/seq-mean-token-sum", CONFIG_LOSS_DAPO, OBJECTIVE_SEQ_MEAN_TOKEN_SUM, 0.2, 0.28,
         0},
        {"ppo_clip/seq-mean-token-mean", CONFIG_LOSS_DAPO, OBJECTIVE_SEQ_MEAN_TOKEN_MEAN, 0.2, 0.28,
         0},
        {"ppo_clip/seq-sum-norm", CONFIG_LOSS_DAPO, OBJECTIVE_SEQ_SUM_NORM, 0.2, 0.28, 0},
        {"ppo_clip/dr_grpo", CONFIG_LOSS_DR_GRPO, OBJECTIVE_SEQ_MEAN_TOKEN_SUM_NORM, 0.2, 0.28, 0},
        {"dual_clip_c3/token-mean", CONFIG_LOSS_DAPO, OBJECTIVE_TOKEN_MEAN, 0.2, 0.28, 3},
        {"grpo_sym0.2/seq-mean-token-mean", CONFIG_LOSS_GRPO, OBJECTIVE_SEQ_MEAN_TOKEN_MEAN, 0.2,
         0.2, 0},
        {"gspo", CONFIG_LOSS_GSPO, OBJECTIVE_SEQ_MEAN_TOKEN_MEAN, 0.2, 0.28, 0},
        {"gspo_token", CONFIG_LOSS_GSPO_TOKEN, OBJECTIVE_SEQ_MEAN_TOKEN_MEAN, 0.2, 0.28, 0},
        {"cispo/verl[0.8,1.28]", CONFIG_LOSS_CISPO, OBJECTIVE_TOKEN_MEAN, 0.2, 0.28, 0},
        {"cispo/upper_only_5", CONFIG_LOSS_CISPO, OBJECTIVE_TOKEN_MEAN, 1, 4, 0},
        {"reinforce/token-mean", CONFIG_LOSS_REINFORCE, OBJECTIVE_TOKEN_MEAN, 0, 0, 0},
        {"rloo_seq_clip0.2", CONFIG_LOSS_RLOO, OBJECTIVE_SEQ_MEAN_TOKEN_MEAN, 0.2, 0.2, 0},
        {"sapo_1.0_1.05/seq-mean-token-mean", CONFIG_LOSS_SAPO, OBJECTIVE_SEQ_MEAN_TOKEN_MEAN, 0, 0,
         0},
    };
    json_t *root = case_golden();
    const json_t *batch = json_object_get(root, "common_batch");
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct objective_case *c = case_common(json_object_get(batch, "inputs"));
        struct objective_options options = case_options(rows[i].type);
        options.aggregation = rows[i].aggregation;
        options.epsilon_low = rows[i].epsilon_low;
        options.epsilon_high = rows[i].epsilon_high;
        options.delta = rows[i].delta;
        double loss = case_run(c, &options);
        case_compare(c, loss, json_object_get(json_object_get(batch, "out"), rows[i].name),
                     rows[i].name);
        free(c);
    }
    json_decref(root);
}
END_TEST

/* DPPO's vector takes ratios against the sampler's policy. */
START_TEST(dppo_vector)
{
    json_t *root = case_golden();
    const json_t *batch = json_object_get(root, "common_batch");
    struct objective_case *c = case_common(json_object_get(batch, "inputs"));
    memcpy(c->old, c->behaviour, sizeof(c->old));
    struct objective_options options = case_options(CONFIG_LOSS_DPPO);
    double loss = case_run(c, &options);
    case_compare(c, loss, json_object_get(json_object_get(batch, "out"), "prime_rl_dppo_kl1e-3"),
                 "prime_rl_dppo_kl1e-3");
    ck_assert_double_eq(c->stats.sum.clip_low, 1);
    free(c);
    json_decref(root);
}
END_TEST

START_TEST(kl_vectors)
{
    static const char *const names[] = {"kl_k1", "kl_k2", "kl_k3", "kl_k3+(k2 grad)",
                                        "kl_k3_unbiased(DSv3.2)"};
    json_t *root = case_golden();
    const json_t *batch = json_object_get(root, "common_batch");
    for (int type = 0; type < CONFIG_KL_COUNT; type++) {
        struct objective_case *c = case_common(json_object_get(batch, "inputs"));
        for (uint32_t i = 0; i < c->count; i++) {
            c->sequences[i].advantage = 0;
            c->sequences[i].reference = c->reference[i];
        }
        struct objective_options options = case_options(CONFIG_LOSS_GRPO);
        options.beta = 1;
        options.kl_type = (enum config_kl_type)type;
        double loss = case_run(c, &options);
        case_compare(c, loss, json_object_get(json_object_get(batch, "out"), names[type]),
                     names[type]);
        free(c);
    }
    json_decref(root);
}
END_TEST

/* --- KL -----------------------------------------------------------------------------------------
 */

START_TEST(kl_is_clamped_and_exact_near_zero)
{
    double derivative = 0;
    double tiny = objective_kl(CONFIG_KL_K3, 1e-9, 0, &derivative);
    ck_assert_double_ge(tiny, 0);
    ck_assert_double_le(tiny, 1e-17);
    ck_assert_double_eq_tol(derivative, 1e-9, 1e-15);
    ck_assert_double_eq(objective_kl(CONFIG_KL_K3, -30, 0, &derivative), 10);
    ck_assert_double_eq(derivative, 0);
    double far = objective_kl(CONFIG_KL_K3, 30, 0, &derivative); /* clamped value is above 10 */
    ck_assert_double_eq(far, 10);
    ck_assert_double_eq(derivative, 0);
}
END_TEST

START_TEST(kl_penalty_sums_unmasked_tokens)
{
    float logprob[3] = {-1.0f, NAN, -2.0f};
    float reference[3] = {-1.5f, -1.0f, -1.0f};
    uint8_t mask[3] = {1, 0, 1};
    ck_assert_double_eq_tol(objective_kl_penalty(0.1, logprob, reference, mask, 3), -0.05, 1e-12);
    ck_assert(isnan(objective_kl_penalty(0.1, logprob, reference, NULL, 3)));
    ck_assert_double_eq(objective_kl_penalty(0.1, logprob, reference, NULL, 0), 0);
}
END_TEST

/* --- what must not matter, and what must be refused
 * ----------------------------------------------- */

START_TEST(garbage_under_the_mask_does_not_matter)
{
    static const float garbage[] = {NAN, INFINITY, -INFINITY, 3e38f, 0.0f};
    struct objective_options options = case_options(CONFIG_LOSS_FIPO);
    options.beta = 0.1;
    options.kl_type = CONFIG_KL_K3;
    options.entropy_coef = 0.01;
    case_correct(&options, CONFIG_CORRECTION_TIS);
    struct objective_case *clean = case_random(5, CASE_SEQUENCES);
    struct objective_case *dirty = case_random(5, CASE_SEQUENCES);
    for (uint32_t i = 0; i < dirty->count; i++) {
        for (uint32_t t = 0; t < CASE_TOKENS; t++) {
            if (dirty->mask[i][t] == 0) {
                float value = garbage[(i + t) % 5];
                dirty->logprob[i][t] = dirty->old[i][t] = dirty->behaviour[i][t] = value;
                dirty->reference[i][t] = dirty->entropy[i][t] = value;
            }
        }
    }
    double loss = case_run(clean, &options);
    ck_assert(isfinite(loss) && loss != 0);
    ck_assert_double_eq(case_run(dirty, &options), loss);
    ck_assert_mem_eq(clean->g_logprob, dirty->g_logprob, sizeof(clean->g_logprob));
    ck_assert_mem_eq(clean->g_entropy, dirty->g_entropy, sizeof(clean->g_entropy));
    ck_assert_mem_eq(&clean->stats, &dirty->stats, sizeof(clean->stats));
    free(dirty);
    free(clean);
}
END_TEST

START_TEST(nonfinite_values_reject_their_sequence_only)
{
    struct objective_options options = case_options(CONFIG_LOSS_FIPO);
    for (int what = 0; what < 4; what++) {
        struct objective_case *good = case_random(9, 4);
        struct objective_case *bad = case_random(9, 4);
        for (uint32_t i = 0; i < 4; i++) {
            good->mask[i][0] = bad->mask[i][0] = 1;
        }
        float(*array)[CASE_TOKENS] = what == 0   ? bad->logprob
                                     : what == 1 ? bad->old
                                     : what == 2 ? bad->behaviour
                                                 : bad->reference;
        array[2][0] = what % 2 == 0 ? NAN : -INFINITY;
        good->sequences[2] = good->sequences[3];
        good->count = 3;
        double loss = case_run(good, &options);
        ck_assert_double_eq(case_run(bad, &options), loss);
        ck_assert_double_eq(bad->stats.sum.sequences_rejected, 1);
        ck_assert_double_eq(bad->stats.sum.denominator, good->stats.sum.denominator);
        for (uint32_t t = 0; t < CASE_TOKENS; t++) {
            ck_assert_float_eq(bad->g_logprob[2][t], 0.0f);
            ck_assert_float_eq(bad->g_logprob[3][t], good->g_logprob[2][t]);
        }
        free(bad);
        free(good);
    }
}
END_TEST

START_TEST(nothing_left_gives_zero_not_nan)
{
    for (int aggregation = 0; aggregation <= OBJECTIVE_SEQ_MEAN_TOKEN_SUM_NORM; aggregation++) {
        struct objective_case *c = case_random(3, 3);
        struct objective_options options = case_options(CONFIG_LOSS_FIPO);
        options.aggregation = (enum objective_aggregation)aggregation;
        memset(c->mask, 0, sizeof(c->mask));
        ck_assert_double_eq(case_run(c, &options), 0);
        ck_assert_double_eq(objective_denominator(&options, &c->stats), 0);
        ck_assert_double_eq(c->stats.sum.sequences_empty, 3);
        for (uint32_t t = 0; t < CASE_TOKENS; t++) {
            ck_assert_float_eq(c->g_logprob[0][t], 0.0f);
        }
        free(c);
    }
}
END_TEST

/* Log-ratios beyond +-20 are clamped and carry no gradient. */
START_TEST(log_ratio_is_clamped)
{
    struct objective_case *c = case_create(1);
    c->sequences[0].count = 2;
    c->sequences[0].advantage = -1;
    c->old[0][0] = -100;
    c->logprob[0][0] = -1;
    c->old[0][1] = -1;
    c->logprob[0][1] = -1;
    struct objective_options options = case_options(CONFIG_LOSS_GRPO);
    options.delta = 0;
    double loss = case_run(c, &options);
    ck_assert_double_eq_tol(loss, (exp(20) + 1) / 2, 1e-3);
    ck_assert_float_eq(c->g_logprob[0][0], 0.0f);
    ck_assert_float_eq(c->g_logprob[0][1], 0.5f);
    free(c);
}
END_TEST

START_TEST(staleness_and_mismatch_are_measured)
{
    static const uint32_t version[4] = {7, 7, 5, 6};
    struct objective_case *c = case_create(1);
    struct objective_sequence *sequence = &c->sequences[0];
    sequence->count = 4;
    sequence->behaviour = c->behaviour[0];
    sequence->version = version;
    sequence->version_now = 7;
    sequence->on_version = true;
    c->behaviour[0][1] = -0.25f;
    c->behaviour[0][2] = -9.0f; /* of another version: no mismatch */
    struct objective_options options = case_options(CONFIG_LOSS_DAPO);
    case_run(c, &options);
    ck_assert_double_eq(c->stats.sum.staleness, 3);
    ck_assert_double_eq(c->stats.max.staleness_max, 2);
    ck_assert_double_eq(c->stats.sum.staleness_0, 2);
    ck_assert_double_eq(c->stats.sum.staleness_1, 1);
    ck_assert_double_eq(c->stats.sum.staleness_2, 1);
    ck_assert_ptr_eq(objective_stats_staleness(&c->stats), &c->stats.sum.staleness_0);
    ck_assert_double_eq(c->stats.sum.mismatch_tokens, 2);
    ck_assert_double_eq(c->stats.max.mismatch_max, 0.25);
    sequence->on_version = false;
    case_run(c, &options);
    ck_assert_double_eq(c->stats.sum.mismatch_tokens, 0);
    ck_assert_double_eq(c->stats.sum.staleness_tokens, 4);
    ck_assert(isinf(c->stats.max.mismatch_max));
    sequence->version_now = 1000;
    case_run(c, &options);
    ck_assert_double_eq(c->stats.sum.staleness_15, 4);
    free(c);
}
END_TEST

/* --- sums over micro-batches and ranks
 * ------------------------------------------------------------ */

START_TEST(stats_of_parts_add_up_to_the_whole)
{
    for (int aggregation = 0; aggregation <= OBJECTIVE_SEQ_MEAN_TOKEN_SUM_NORM; aggregation++) {
        struct objective_options options = case_options(CONFIG_LOSS_FIPO);
        options.aggregation = (enum objective_aggregation)aggregation;
        struct objective_case *whole = case_random(21, CASE_SEQUENCES);
        struct objective_case *parts = case_random(21, CASE_SEQUENCES);
        double loss = case_run(whole, &options);
        struct objective_stats total;
        objective_stats_init(&total);
        for (uint32_t first = 0; first < parts->count; first += 5) {
            struct objective_stats part;
            objective_stats_init(&part);
            for (uint32_t i = first; i < parts->count && i < first + 5; i++) {
                objective_sequence(&options, &parts->sequences[i], parts->g_logprob[i],
                                   parts->g_entropy[i], &part);
            }
            objective_stats_merge(&total, &part);
        }
        ck_assert_double_eq_tol(objective_loss(&options, &total), loss, 1e-12);
        double inverse = 1.0 / objective_denominator(&options, &total);
        for (uint32_t i = 0; i < parts->count; i++) {
            for (uint32_t t = 0; t < parts->sequences[i].count; t++) {
                float got = (float)((double)parts->g_logprob[i][t] * inverse);
                ck_assert_float_eq(got, whole->g_logprob[i][t]);
            }
        }
        ck_assert_double_eq(objective_stats_sums(&total)[0], total.sum.policy_loss);
        ck_assert_double_eq(total.max.ratio_max, whole->stats.max.ratio_max);
        ck_assert_double_eq(total.min.ratio_min, whole->stats.min.ratio_min);
        ck_assert_double_gt(total.sum.sequences_dropped, 0);
        free(parts);
        free(whole);
    }
}
END_TEST

/* --- options ------------------------------------------------------------------------------------
 */

START_TEST(loss_types_bring_their_settings)
{
    struct rl_config config;
    ck_assert_int_eq(rl_config_init(&config), RL_OK);
    struct objective_options options;
    ck_assert_int_eq(objective_options_from_config(&config, &options), RL_OK);
    ck_assert_int_eq(options.aggregation, OBJECTIVE_TOKEN_MEAN);
    ck_assert_double_eq(options.epsilon_high, 0.28);
    ck_assert_int_eq(options.correction,
                     CONFIG_CORRECTION_NONE); /* behaviour: nothing to correct */
    ck_assert_int_eq(rl_config_override(&config, "loss.loss_type=grpo"), RL_OK);
    ck_assert_int_eq(objective_options_from_config(&config, &options), RL_OK);
    ck_assert_int_eq(options.aggregation, OBJECTIVE_SEQ_MEAN_TOKEN_MEAN);
    ck_assert_double_eq(options.epsilon_high, options.epsilon_low);
    ck_assert_double_eq(options.delta, 0);
    ck_assert_int_eq(rl_config_override(&config, "loss.epsilon_high=0.3"), RL_OK);
    ck_assert_int_eq(rl_config_override(&config, "loss.delta=4"), RL_OK);
    ck_assert_int_eq(rl_config_override(&config, "loss.old_logprob=recompute"), RL_OK);
    ck_assert_int_eq(objective_options_from_config(&config, &options), RL_OK);
    ck_assert_double_eq(options.epsilon_high, 0.3);
    ck_assert_double_eq(options.delta, 4);
    ck_assert_int_eq(options.correction, CONFIG_CORRECTION_TIS);
    ck_assert_double_eq(options.correction_high, 2);
    ck_assert_int_eq(rl_config_override(&config, "loss.loss_type=dr_grpo"), RL_OK);
    ck_assert_int_eq(rl_config_override(&config, "loss.beta=0.1"), RL_OK);
    ck_assert_int_eq(rl_config_override(&config, "loss.kl_in=reward"), RL_OK);
    ck_assert_int_eq(objective_options_from_config(&config, &options), RL_OK);
    ck_assert_int_eq(options.aggregation, OBJECTIVE_SEQ_MEAN_TOKEN_SUM_NORM);
    ck_assert_double_eq(options.loss_scale, (double)config.rollout.max_completion_length);
    ck_assert_double_eq(options.beta, 0);
    ck_assert(objective_needs_reference(&config));
    ck_assert_int_eq(rl_config_override(&config, "loss.delta=0.5"), RL_OK);
    ck_assert_int_eq(objective_options_from_config(&config, &options), RL_INVALID);
    rl_config_fini(&config);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("objective");
    TCase *tests = tcase_create("all");
    tcase_add_test(tests, fipo_vectors);
    tcase_add_test(tests, policy_vectors);
    tcase_add_test(tests, kl_vectors);
    tcase_add_test(tests, dppo_vector);
    tcase_add_test(tests, kl_is_clamped_and_exact_near_zero);
    tcase_add_test(tests, kl_penalty_sums_unmasked_tokens);
    tcase_add_test(tests, garbage_under_the_mask_does_not_matter);
    tcase_add_test(tests, nonfinite_values_reject_their_sequence_only);
    tcase_add_test(tests, nothing_left_gives_zero_not_nan);
    tcase_add_test(tests, log_ratio_is_clamped);
    tcase_add_test(tests, staleness_and_mismatch_are_measured);
    tcase_add_test(tests, stats_of_parts_add_up_to_the_whole);
    tcase_add_test(tests, loss_types_bring_their_settings);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
