/* Off-policy corrections: published vectors, exactness where nothing is stale, M2PO's selection
 * over ranks, what is counted, hostile values. */
#include "tests/objective_cases.h"

/* --- golden vectors -----------------------------------------------------------------------------
 */

struct correction_row {
    const char *name;
    enum config_correction correction;
    double low, high;
    bool loglinear;
};

static void check_row(const json_t *batch, const struct correction_row *row)
{
    struct objective_case *c = case_common(json_object_get(batch, "inputs"));
    struct objective_options options = case_options(CONFIG_LOSS_DAPO);
    options.delta = 3;
    options.correction = row->correction;
    options.correction_low = row->low;
    options.correction_high = row->high;
    options.loglinear = row->loglinear;
    for (uint32_t i = 0; i < c->count; i++) {
        c->sequences[i].version_now = 4; /* the step makes version 5 */
    }
    double loss = case_run(c, &options);
    case_compare(c, loss, json_object_get(json_object_get(batch, "out"), row->name), row->name);
    free(c);
}

START_TEST(vectors)
{
    static const struct correction_row rows[] = {
        {"tis_C2/token-mean", CONFIG_CORRECTION_TIS, 0, 2, false},
        {"mis[0.5,2]/token-mean", CONFIG_CORRECTION_MIS, 0.5, 2, false},
        {"icepop[0.5,5]/token-mean", CONFIG_CORRECTION_ICEPOP, 0.5, 5, false},
        {"seq_tis_C2/token-mean", CONFIG_CORRECTION_SEQ_TIS, 0, 2, false},
        {"seq_mis[0.5,2]/token-mean", CONFIG_CORRECTION_SEQ_MIS, 0.5, 2, false},
        {"geo_rs[0.7,1.3]/token-mean", CONFIG_CORRECTION_GEO_MIS, 0.7, 1.3, false},
        {"decoupled_ppo_cap5", CONFIG_CORRECTION_DECOUPLED, 0, 5, false},
        {"a3po_loglinear_cap5", CONFIG_CORRECTION_DECOUPLED, 0, 5, true},
    };
    json_t *root = case_golden();
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        check_row(json_object_get(root, "common_batch"), &rows[i]);
    }
    json_decref(root);
}
END_TEST

/* Ratios against the sampler, no clip; tokens are chosen by the step's start. */
START_TEST(m2po_vector)
{
    json_t *root = case_golden();
    const json_t *batch = json_object_get(root, "common_batch");
    struct objective_case *c = case_common(json_object_get(batch, "inputs"));
    struct objective_options options = case_options(CONFIG_LOSS_DAPO);
    options.epsilon_low = 1;
    options.epsilon_high = 1000;
    options.delta = 0;
    options.m2po_threshold = 0.04;
    for (uint32_t i = 0; i < c->count; i++) {
        memcpy(c->proximal[i], c->old[i], sizeof(c->old[i]));
        memcpy(c->old[i], c->behaviour[i], sizeof(c->old[i]));
        c->sequences[i].proximal = c->proximal[i];
    }
    double loss = case_run(c, &options);
    case_compare(c, loss, json_object_get(json_object_get(batch, "out"), "m2po_unclipped_N_orig"),
                 "m2po");
    ck_assert_double_eq(c->stats.sum.tokens_m2po, 4);
    ck_assert_double_eq(c->stats.sum.denominator, 9);
    free(c);
    json_decref(root);
}
END_TEST

START_TEST(opsm_vectors)
{
    json_t *root = case_golden();
    const json_t *batch = json_object_get(root, "common_batch");
    struct objective_case *c = case_common(json_object_get(batch, "inputs"));
    struct objective_options options = case_options(CONFIG_LOSS_DAPO);
    options.aggregation = OBJECTIVE_SEQ_MEAN_TOKEN_MEAN;
    options.delta = 0;
    options.opsm_delta = 0.1;
    double loss = case_run(c, &options);
    case_compare(c, loss,
                 json_object_get(json_object_get(batch, "out"), "opsm_0.1/seq-mean-token-mean"),
                 "opsm");
    free(c);
    json_decref(root);
    /* mean of behaviour - current is 0.8 */
    static const float behaviour[2] = {-0.8f, -1.1f};
    static const float logprob[2] = {-1.5f, -2.0f};
    for (int sign = -1; sign <= 1; sign += 2) {
        c = case_create(1);
        c->sequences[0] = (struct objective_sequence){.count = 2,
                                                      .logprob = logprob,
                                                      .old = logprob,
                                                      .behaviour = behaviour,
                                                      .advantage = 0.5 * sign};
        options.opsm_delta = 0.5;
        (void)case_run(c, &options);
        ck_assert_double_eq(c->stats.sum.tokens_opsm, sign < 0 ? 2 : 0);
        ck_assert_int_eq(c->g_logprob[0][0]<0, sign> 0);
        ck_assert_float_eq(c->g_logprob[0][1], c->g_logprob[0][0]);
        free(c);
    }
}
END_TEST

/* Effective sample size of the truncated weights and of the raw ones; k1 and k3 of the gap between
 * sampler and old policy. */
START_TEST(mismatch_figures)
{
    json_t *root = case_golden();
    struct objective_case *c =
        case_common(json_object_get(json_object_get(root, "common_batch"), "inputs"));
    struct objective_options options = case_options(CONFIG_LOSS_DAPO);
    case_correct(&options, CONFIG_CORRECTION_TIS);
    case_run(c, &options);
    const struct objective_sums *sum = &c->stats.sum;
    case_check(sum->weight * sum->weight / sum->weight_squared, 7.340621408, "ESS of weights");
    case_check(sum->rho * sum->rho / sum->rho_squared, 7.151424758, "ESS of rho");
    case_check(sum->behaviour_kl / sum->tokens, 0.042222222, "k1");
    case_check(sum->behaviour_kl3 / sum->tokens, 0.140862753, "k3");
    case_check(sum->sequence_rho, 1.733253018 + 0.173773943 + 2.270499838, "products");
    case_check(sum->weight_clipped, 1, "clipped");
    case_check(sum->clip_low, 2, "clip low");
    case_check(sum->clip_high, 1, "clip high");
    case_check(c->stats.max.rho_max, 2.225540928, "largest rho");
    case_check(c->stats.max.weight_max, 2, "largest weight");
    free(c);
    json_decref(root);
}
END_TEST

/* --- exactness ----------------------------------------------------------------------------------
 */

static void everything_on(struct objective_options *options)
{
    options->veto_threshold = 1e-4;
    options->opsm_delta = 1e-4;
    options->m2po_threshold = 1e-9;
    options->correction_normalize = options->correction != CONFIG_CORRECTION_NONE;
}

static void make_fresh(struct objective_case *c)
{
    memcpy(c->old, c->behaviour, sizeof(c->old));
    memcpy(c->logprob, c->behaviour, sizeof(c->old));
    for (uint32_t i = 0; i < c->count; i++) {
        c->sequences[i].version_now = 0; /* all tokens are of this version or newer */
    }
}

/* Sampler, step's start and current policy agree: every correction leaves every bit. */
START_TEST(without_staleness_nothing_changes)
{
    for (int type = 0; type < CONFIG_LOSS_COUNT; type++) {
        for (int correction = CONFIG_CORRECTION_NONE; correction < CONFIG_CORRECTION_COUNT;
             correction++) {
            struct objective_options plain = case_options((enum config_loss_type)type);
            struct objective_options options = plain;
            case_correct(&options, (enum config_correction)correction);
            everything_on(&options);
            struct objective_case *a = case_random(31, CASE_SEQUENCES);
            struct objective_case *b = case_random(31, CASE_SEQUENCES);
            make_fresh(a);
            make_fresh(b);
            ck_assert_double_eq(case_run(a, &plain), case_run(b, &options));
            ck_assert_mem_eq(a->g_logprob, b->g_logprob, sizeof(a->g_logprob));
            ck_assert_double_eq(b->minibatch.weight_scale, 1);
            ck_assert_double_eq(b->stats.max.weight_max, 1);
            ck_assert_double_eq(b->stats.min.weight_min, 1);
            free(b);
            free(a);
        }
    }
}
END_TEST

/* A token of the version to compare with has its sampler's log-prob as the old one, exactly, though
 * the current policy has moved on. */
START_TEST(loglinear_of_fresh_tokens_is_behaviour)
{
    struct objective_options plain = case_options(CONFIG_LOSS_FIPO);
    struct objective_options options = plain;
    case_correct(&options, CONFIG_CORRECTION_DECOUPLED);
    options.loglinear = true;
    struct objective_case *a = case_random(32, CASE_SEQUENCES);
    struct objective_case *b = case_random(32, CASE_SEQUENCES);
    for (uint32_t i = 0; i < a->count; i++) {
        a->sequences[i].old = a->behaviour[i];
        b->sequences[i].old = NULL;
        b->sequences[i].version_now = 0;
    }
    ck_assert_double_eq(case_run(a, &plain), case_run(b, &options));
    ck_assert_mem_eq(a->g_logprob, b->g_logprob, sizeof(a->g_logprob));
    ck_assert_double_eq(b->stats.max.weight_max, 1);
    free(b);
    free(a);
}
END_TEST

/* Ratios against the sampler itself: no correction is measured at all. */
START_TEST(behaviour_as_old_has_no_weights)
{
    struct objective_options options = case_options(CONFIG_LOSS_FIPO);
    struct objective_case *c = case_random(33, CASE_SEQUENCES);
    for (uint32_t i = 0; i < c->count; i++) {
        c->sequences[i].old = c->sequences[i].behaviour;
    }
    case_run(c, &options);
    ck_assert_double_eq(c->stats.sum.rho_tokens, 0);
    ck_assert_double_eq(c->stats.sum.rho_sequences, 0);
    ck_assert(isinf(c->stats.max.weight_max));
    free(c);
}
END_TEST

/* --- M2PO and normalisation over ranks
 * ---------------------------------------------------------------------------- */

enum { RANKS = 3 };

/* Ranks as parts of one batch, in one thread: each call of a round sums over the others' parts by
 * asking them for theirs. Here that is done by running each rank's whole search against a list of
 * the answers that a single rank with all sequences gave. */
struct replay {
    double sums[128], maxima[8];
    int sum_count, max_count;
    int sum_next, max_next;
    bool record;
};

static rl_status replay_sum(void *arg, double *values, int64_t count)
{
    struct replay *replay = arg;
    for (int64_t i = 0; i < count; i++) {
        if (replay->record) {
            replay->sums[replay->sum_count++] = values[i];
        } else {
            ck_assert_double_le(values[i], replay->sums[replay->sum_next] * (1 + 1e-12));
            values[i] = replay->sums[replay->sum_next++];
        }
    }
    return RL_OK;
}

static rl_status replay_max(void *arg, double *values, int64_t count)
{
    struct replay *replay = arg;
    for (int64_t i = 0; i < count; i++) {
        if (replay->record) {
            replay->maxima[replay->max_count++] = values[i];
        } else {
            ck_assert_double_le(values[i], replay->maxima[replay->max_next]);
            values[i] = replay->maxima[replay->max_next++];
        }
    }
    return RL_OK;
}

START_TEST(ranks_take_the_same_decisions)
{
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct objective_options options = case_options(CONFIG_LOSS_FIPO);
        case_correct(&options, CONFIG_CORRECTION_TIS);
        options.m2po_threshold = 0.01 * (double)(1 + seed);
        options.correction_normalize = seed % 2 == 0;
        struct objective_case *c = case_random(seed, CASE_SEQUENCES);
        struct replay replay = {.record = true};
        struct objective_reduce reduce = {replay_sum, replay_max, &replay};
        struct objective_minibatch whole;
        struct objective_minibatch part;
        ck_assert_int_eq(
            objective_minibatch_measure(&options, c->sequences, c->count, &reduce, &whole), RL_OK);
        replay.record = false;
        for (uint32_t rank = 0; rank < RANKS; rank++) {
            uint32_t share = rank == 0 ? 0 : c->count / 2; /* the first has nothing */
            replay.sum_next = replay.max_next = 0;
            ck_assert_int_eq(objective_minibatch_measure(&options,
                                                         c->sequences + (rank == 2) * share, share,
                                                         &reduce, &part),
                             RL_OK);
            ck_assert_int_eq(replay.sum_next, replay.sum_count);
            ck_assert_float_eq(part.gap_limit, whole.gap_limit);
            ck_assert_double_eq(part.weight_scale, whole.weight_scale);
        }
        free(c);
    }
}
END_TEST

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a;
    float y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The definition: take away the largest until the mean of the rest is below the threshold. */
START_TEST(m2po_equals_removal_one_by_one)
{
    for (uint64_t seed = 0; seed < 40; seed++) {
        struct objective_options options = case_options(CONFIG_LOSS_DAPO);
        options.m2po_threshold = pow(10, -4 + 0.1 * (double)seed);
        struct objective_case *c = case_random(seed, CASE_SEQUENCES);
        float squares[CASE_SEQUENCES * CASE_TOKENS];
        size_t n = 0;
        double sum = 0;
        for (uint32_t i = 0; i < c->count; i++) {
            for (uint32_t t = 0; t < c->sequences[i].count; t++) {
                if (c->mask[i][t] != 0) {
                    double gap = (double)c->old[i][t] - (double)c->behaviour[i][t];
                    squares[n++] = (float)(gap * gap);
                    sum += (double)squares[n - 1];
                }
            }
        }
        size_t all = n;
        qsort(squares, n, sizeof(*squares), compare_floats);
        while (n > 1 && !(sum / (double)n < options.m2po_threshold)) {
            sum -= (double)squares[--n];
        }
        case_run(c, &options);
        ck_assert_double_eq(c->stats.sum.tokens_m2po, (double)(all - n));
        ck_assert_double_eq(c->stats.sum.denominator, (double)all);
        free(c);
    }
}
END_TEST

START_TEST(empty_ranks_and_batches_are_fine)
{
    struct objective_options options = case_options(CONFIG_LOSS_DAPO);
    case_correct(&options, CONFIG_CORRECTION_SEQ_TIS);
    options.m2po_threshold = 0.04;
    options.correction_normalize = true;
    struct objective_minibatch out;
    ck_assert_int_eq(objective_minibatch_measure(&options, NULL, 0, NULL, &out), RL_OK);
    ck_assert(isinf(out.gap_limit));
    ck_assert_double_eq(out.weight_scale, 1);
    struct objective_case *c = case_random(3, 3);
    memset(c->mask, 0, sizeof(c->mask));
    ck_assert_double_eq(case_run(c, &options), 0);
    free(c);
}
END_TEST

/* Normalised weights have mean 1. */
START_TEST(normalised_weights_average_to_one)
{
    for (int correction = CONFIG_CORRECTION_TIS; correction < CONFIG_CORRECTION_COUNT;
         correction++) {
        struct objective_options options = case_options(CONFIG_LOSS_DAPO);
        case_correct(&options, (enum config_correction)correction);
        options.correction_high = fmax(1.5, options.correction_high);
        options.correction_low = fmin(0.5, options.correction_low);
        options.correction_normalize = true;
        struct objective_case *c = case_random(40, CASE_SEQUENCES);
        case_run(c, &options);
        ck_assert_double_eq_tol(c->stats.sum.weight / c->stats.sum.rho_tokens, 1, 1e-12);
        free(c);
    }
}
END_TEST

/* --- what is counted, what is refused -----------------------------------------------------------
 */

START_TEST(veto_takes_whole_sequences)
{
    struct objective_options options = case_options(CONFIG_LOSS_FIPO);
    case_correct(&options, CONFIG_CORRECTION_TIS);
    options.veto_threshold = 1e-4;
    struct objective_case *c = case_random(50, 3);
    c->mask[1][0] = 1;
    c->old[1][0] = c->behaviour[1][0] - 9.3f; /* below 1e-4 */
    c->logprob[1][0] = c->old[1][0];
    case_run(c, &options);
    ck_assert_double_eq(c->stats.sum.sequences_vetoed, 1);
    double tokens = 0;
    for (uint32_t t = 0; t < c->sequences[1].count; t++) {
        tokens += c->mask[1][t];
        ck_assert_float_eq(c->g_logprob[1][t], 0.0f);
    }
    ck_assert_double_eq(c->stats.sum.tokens_vetoed, tokens);
    ck_assert_double_eq(c->stats.sum.denominator, c->stats.sum.tokens);
    free(c);
}
END_TEST

START_TEST(masked_sequences_keep_the_denominator)
{
    struct objective_options options = case_options(CONFIG_LOSS_GRPO);
    options.aggregation = OBJECTIVE_SEQ_MEAN_TOKEN_MEAN;
    case_correct(&options, CONFIG_CORRECTION_GEO_MIS);
    struct objective_case *c = case_random(51, CASE_SEQUENCES);
    ck_assert_double_eq(case_run(c, &options), 0); /* bounds this tight keep nothing here */
    ck_assert_double_eq(c->stats.sum.sequences_masked, CASE_SEQUENCES);
    ck_assert_double_eq(c->stats.sum.weight_masked, c->stats.sum.tokens);
    ck_assert_double_eq(c->stats.sum.denominator, CASE_SEQUENCES);
    free(c);
}
END_TEST

static const float garbage[] = {NAN, INFINITY, -INFINITY, 3e38f, 0.0f};

START_TEST(garbage_under_the_mask_does_not_matter)
{
    for (int correction = CONFIG_CORRECTION_NONE; correction < CONFIG_CORRECTION_COUNT;
         correction++) {
        struct objective_options options = case_options(CONFIG_LOSS_GSPO);
        case_correct(&options, (enum config_correction)correction);
        everything_on(&options);
        struct objective_case *clean = case_random(5, CASE_SEQUENCES);
        struct objective_case *dirty = case_random(5, CASE_SEQUENCES);
        for (uint32_t i = 0; i < dirty->count; i++) {
            clean->sequences[i].proximal = clean->proximal[i];
            dirty->sequences[i].proximal = dirty->proximal[i];
            for (uint32_t t = 0; t < CASE_TOKENS; t++) {
                if (dirty->mask[i][t] == 0) {
                    dirty->logprob[i][t] = dirty->old[i][t] = garbage[(i + t) % 5];
                    dirty->behaviour[i][t] = dirty->proximal[i][t] = garbage[(i + t + 1) % 5];
                }
            }
        }
        double loss = case_run(clean, &options);
        ck_assert(isfinite(loss));
        ck_assert_double_eq(case_run(dirty, &options), loss);
        ck_assert_mem_eq(clean->g_logprob, dirty->g_logprob, sizeof(clean->g_logprob));
        ck_assert_mem_eq(&clean->stats, &dirty->stats, sizeof(clean->stats));
        free(dirty);
        free(clean);
    }
}
END_TEST

/* A sampler's -inf, and log-probs as far apart as floats can be: rejected, or bounded. */
START_TEST(hostile_log_probs)
{
    for (int type = 0; type < CONFIG_LOSS_COUNT; type++) {
        for (int correction = CONFIG_CORRECTION_NONE; correction < CONFIG_CORRECTION_COUNT;
             correction++) {
            struct objective_options options = case_options((enum config_loss_type)type);
            case_correct(&options, (enum config_correction)correction);
            everything_on(&options);
            struct objective_case *c = case_random(6, 4);
            c->mask[0][0] = c->mask[1][0] = 1;
            c->behaviour[0][0] = -INFINITY;
            c->behaviour[1][0] = -1e9f;
            c->old[2][0] = -1e9f;
            c->logprob[3][0] = -1e9f;
            ck_assert(isfinite(case_run(c, &options)));
            ck_assert_double_eq(c->stats.sum.sequences_rejected, 1);
            for (uint32_t i = 0; i < c->count; i++) {
                for (uint32_t t = 0; t < c->sequences[i].count; t++) {
                    ck_assert(isfinite(c->g_logprob[i][t]));
                }
            }
            free(c);
        }
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("corrections");
    TCase *tests = tcase_create("all");
    tcase_add_test(tests, vectors);
    tcase_add_test(tests, m2po_vector);
    tcase_add_test(tests, opsm_vectors);
    tcase_add_test(tests, mismatch_figures);
    tcase_add_test(tests, without_staleness_nothing_changes);
    tcase_add_test(tests, loglinear_of_fresh_tokens_is_behaviour);
    tcase_add_test(tests, behaviour_as_old_has_no_weights);
    tcase_add_test(tests, ranks_take_the_same_decisions);
    tcase_add_test(tests, m2po_equals_removal_one_by_one);
    tcase_add_test(tests, empty_ranks_and_batches_are_fine);
    tcase_add_test(tests, normalised_weights_average_to_one);
    tcase_add_test(tests, veto_takes_whole_sequences);
    tcase_add_test(tests, masked_sequences_keep_the_denominator);
    tcase_add_test(tests, garbage_under_the_mask_does_not_matter);
    tcase_add_test(tests, hostile_log_probs);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
