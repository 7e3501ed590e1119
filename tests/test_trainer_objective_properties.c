/* What must hold for any batch: order, splitting, limits of FIPO, and gradients against finite
 * differences of a second, plainly written loss whose detached parts are frozen. */
#include "tests/objective_cases.h"

enum { PROPERTY_SEEDS = 40 };

/* --- a plain second implementation
 * ---------------------------------------------------------------- */

/* Detached parts of one batch, taken at the point where the derivative is. */
struct frozen {
    double weight[CASE_SEQUENCES][CASE_TOKENS];     /* FIPO's f */
    double correction[CASE_SEQUENCES][CASE_TOKENS]; /* weight of the token's loss */
    double old[CASE_SEQUENCES][CASE_TOKENS];
    double cispo[CASE_SEQUENCES][CASE_TOKENS]; /* clipped ratio */
    bool dppo[CASE_SEQUENCES][CASE_TOKENS];    /* kept */
    bool kept[CASE_SEQUENCES];
};

static double old_plain(const struct objective_case *c, const struct objective_options *options,
                        uint32_t i, uint32_t t)
{
    double behaviour = (double)c->behaviour[i][t];
    if (!options->loglinear) {
        return (double)c->old[i][t];
    }
    double now = c->sequences[i].version_now;
    double v = c->version[i][t];
    double alpha = v >= now ? 0 : (now - v) / (now + 1 - v);
    return behaviour + alpha * ((double)c->logprob[i][t] - behaviour);
}

static double gap_at(const struct objective_case *c, const struct objective_options *options,
                     uint32_t i, uint32_t t)
{
    return (double)c->logprob[i][t] - old_plain(c, options, i, t);
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
        double d = fmax(-20, fmin(20, gap_at(c, options, i, k)));
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
                exp(gap_at(c, options, i, t)) > options->fipo_safety_threshold;
    return safe ? fmax(0.8, fmin(1.0, f)) : f;
}

/* Weights of corrections, written down one by one. `gap` [n] holds old - behaviour of the unmasked
 * tokens. */
static double correction_plain(const struct objective_options *options, const double *gap,
                               uint32_t n, double own)
{
    double sum = 0;
    double k3 = 0;
    for (uint32_t k = 0; k < n; k++) {
        sum += gap[k];
        k3 += exp(gap[k]) - gap[k] - 1;
    }
    double low = options->correction_low;
    double high = options->correction_high;
    double rho = exp(own);
    double product = exp(fmax(-20, fmin(20, sum)));
    double mean = exp(sum / n);
    switch (options->correction) {
    case CONFIG_CORRECTION_TIS:
        return fmin(rho, high);
    case CONFIG_CORRECTION_MIS:
    case CONFIG_CORRECTION_ICEPOP:
    case CONFIG_CORRECTION_DECOUPLED:
        return rho >= low && rho <= high ? rho : 0;
    case CONFIG_CORRECTION_SEQ_TIS:
        return fmin(product, high);
    case CONFIG_CORRECTION_SEQ_MIS:
        return product <= high ? product : 0;
    case CONFIG_CORRECTION_GEO_MIS:
        return mean >= low && mean <= high ? 1 : 0;
    case CONFIG_CORRECTION_GEO_TIS:
        return mean >= low && mean <= high ? rho : 0;
    case CONFIG_CORRECTION_K3_MIS:
        return k3 / n <= high ? 1 : 0;
    default:
        return 1;
    }
}

static void freeze_corrections(const struct objective_case *c,
                               const struct objective_options *options, uint32_t i,
                               struct frozen *out)
{
    double gap[CASE_TOKENS];
    uint32_t n = 0;
    double drift = 0;
    double lowest = INFINITY;
    for (uint32_t t = 0; t < c->sequences[i].count; t++) {
        if (c->mask[i][t] != 0) {
            gap[n] = out->old[i][t] - (double)c->behaviour[i][t];
            lowest = fmin(lowest, gap[n++]);
            drift += (double)c->behaviour[i][t] - (double)c->logprob[i][t];
        }
    }
    bool veto = options->veto_threshold > 0 && exp(lowest) < options->veto_threshold;
    bool opsm =
        options->opsm_delta > 0 && c->sequences[i].advantage < 0 && drift / n > options->opsm_delta;
    for (uint32_t t = 0; t < c->sequences[i].count; t++) {
        double own = out->old[i][t] - (double)c->behaviour[i][t];
        bool cut = own * own > (double)c->minibatch.gap_limit;
        out->correction[i][t] = veto || opsm || cut ? 0
                                                    : correction_plain(options, gap, n, own) *
                                                          c->minibatch.weight_scale;
    }
}

static void freeze_token(const struct objective_case *c, const struct objective_options *options,
                         uint32_t i, uint32_t t, struct frozen *out)
{
    double lp = (double)c->logprob[i][t];
    double a = c->sequences[i].advantage;
    double ratio = exp(fmax(-20, fmin(20, lp - out->old[i][t])));
    double moved = exp(lp) - exp(out->old[i][t]);
    out->cispo[i][t] = fmax(1 - options->epsilon_low, fmin(1 + options->epsilon_high, ratio));
    out->dppo[i][t] = a > 0 ? !(moved > options->dppo_high) : !(moved < -options->dppo_low);
}

static void freeze(const struct objective_case *c, const struct objective_options *options,
                   struct frozen *out)
{
    for (uint32_t i = 0; i < c->count; i++) {
        for (uint32_t t = 0; t < c->sequences[i].count; t++) {
            out->old[i][t] = old_plain(c, options, i, t);
            freeze_token(c, options, i, t, out);
        }
        freeze_corrections(c, options, i, out);
    }
    for (uint32_t i = 0; i < c->count; i++) {
        uint32_t dual = 0;
        for (uint32_t t = 0; t < c->sequences[i].count; t++) {
            if (c->mask[i][t] != 0) {
                out->weight[i][t] = weight_plain(c, options, i, t);
                dual += options->delta > 0 && c->sequences[i].advantage < 0 &&
                                exp(gap_at(c, options, i, t)) > options->delta
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

static double nudged(const struct objective_case *c, uint32_t i, uint32_t t,
                     const struct nudge *nudge)
{
    bool here = nudge->sequence == i && nudge->token == t;
    return (double)c->logprob[i][t] + (here ? nudge->logprob : 0);
}

/* Ratio of a whole sequence: exp of the mean or of the sum of its log-ratios. */
static double sequence_ratio_plain(const struct objective_case *c, const struct frozen *frozen,
                                   uint32_t i, const struct nudge *nudge, bool mean)
{
    double sum = 0;
    double n = 0;
    for (uint32_t t = 0; t < c->sequences[i].count; t++) {
        if (c->mask[i][t] != 0) {
            sum += nudged(c, i, t, nudge) - frozen->old[i][t];
            n++;
        }
    }
    return exp(fmax(-20, fmin(20, mean ? sum / n : sum)));
}

static double clip_plain(const struct objective_options *options, double a, double ratio)
{
    double clipped = fmax(1 - options->epsilon_low, fmin(1 + options->epsilon_high, ratio));
    double loss = fmax(-a * ratio, -a * clipped);
    return options->delta > 0 && a < 0 ? fmin(loss, -a * options->delta) : loss;
}

static double mean_correction(const struct objective_case *c, const struct frozen *frozen,
                              uint32_t i)
{
    double sum = 0;
    double n = 0;
    for (uint32_t t = 0; t < c->sequences[i].count; t++) {
        sum += c->mask[i][t] != 0 ? frozen->correction[i][t] : 0;
        n += c->mask[i][t] != 0 ? 1 : 0;
    }
    return sum / n;
}

/* GSPO-token takes pi/sg[pi] times the detached sequence ratio: at the point itself a token's own
 * ratio is the sequence's, and only its own log-prob moves it. */
static double gspo_token_plain(const struct objective_case *c, const struct frozen *frozen,
                               uint32_t i, uint32_t t, const struct nudge *nudge)
{
    static const struct nudge none = {.sequence = UINT32_MAX};
    double moved = nudged(c, i, t, nudge) - (double)c->logprob[i][t];
    return sequence_ratio_plain(c, frozen, i, &none, true) * exp(moved);
}

static double policy_plain(const struct objective_case *c, const struct objective_options *options,
                           const struct frozen *frozen, uint32_t i, uint32_t t,
                           const struct nudge *nudge)
{
    double lp = nudged(c, i, t, nudge);
    double a = c->sequences[i].advantage;
    double gap = fmax(-20, fmin(20, lp - frozen->old[i][t]));
    double k = a > 0 ? options->sapo_positive : options->sapo_negative;
    switch (options->loss_type) {
    case CONFIG_LOSS_GSPO:
        return clip_plain(options, a, sequence_ratio_plain(c, frozen, i, nudge, true));
    case CONFIG_LOSS_RLOO:
        return clip_plain(options, a, sequence_ratio_plain(c, frozen, i, nudge, false));
    case CONFIG_LOSS_GSPO_TOKEN:
        return clip_plain(options, a, gspo_token_plain(c, frozen, i, t, nudge));
    case CONFIG_LOSS_CISPO:
        return -frozen->cispo[i][t] * a * lp;
    case CONFIG_LOSS_REINFORCE:
        return -a * lp;
    case CONFIG_LOSS_SAPO:
        return -a * 4 / k / (1 + exp(-k * (exp(gap) - 1)));
    case CONFIG_LOSS_DPPO:
        return (frozen->dppo[i][t] ? -a * exp(gap) : 0) + options->dppo_kl * gap * gap;
    default:
        return clip_plain(options, a * frozen->weight[i][t], exp(gap));
    }
}

static double token_plain(const struct objective_case *c, const struct objective_options *options,
                          const struct frozen *frozen, uint32_t i, uint32_t t,
                          const struct nudge *nudge)
{
    bool here = nudge->sequence == i && nudge->token == t;
    bool whole = options->loss_type == CONFIG_LOSS_GSPO || options->loss_type == CONFIG_LOSS_RLOO;
    double lp = nudged(c, i, t, nudge);
    double h = (double)c->entropy[i][t] + (here ? nudge->entropy : 0);
    double correction = whole ? mean_correction(c, frozen, i) : frozen->correction[i][t];
    double loss = correction * policy_plain(c, options, frozen, i, t, nudge);
    double gap = lp - (double)c->reference[i][t];
    double k3 = fmin(10, exp(-gap) - 1 + gap);
    double ratio = exp(fmax(-20, fmin(20, lp - frozen->old[i][t])));
    double kl = options->kl_type == CONFIG_KL_K1   ? gap
                : options->kl_type == CONFIG_KL_K2 ? gap * gap / 2
                : options->kl_type == CONFIG_KL_K3 ? k3
                                                   : k3 * ratio;
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
    static struct frozen frozen;
    struct nudge none = {.sequence = UINT32_MAX};
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
