/* The objectives written a second time, plainly and slowly, with their detached parts frozen: what
 * finite differences are taken of. Header only, because each test is one program. */
#ifndef FORESIGHT_TESTS_OBJECTIVE_PLAIN_H
#define FORESIGHT_TESTS_OBJECTIVE_PLAIN_H

#include "tests/objective_cases.h"

/* Detached parts of one batch, taken at the point where the derivative is. */
struct frozen {
    double weight[CASE_SEQUENCES][CASE_TOKENS];     /* FIPO's f */
    double correction[CASE_SEQUENCES][CASE_TOKENS]; /* weight of the token's loss */
    double old[CASE_SEQUENCES][CASE_TOKENS];
    double cispo[CASE_SEQUENCES][CASE_TOKENS]; /* clipped ratio */
    bool dppo[CASE_SEQUENCES][CASE_TOKENS];    /* kept */
    bool kept[CASE_SEQUENCES];
};

static inline double old_plain(const struct objective_case *c,
                               const struct objective_options *options, uint32_t i, uint32_t t)
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

static inline double gap_at(const struct objective_case *c, const struct objective_options *options,
                            uint32_t i, uint32_t t)
{
    return (double)c->logprob[i][t] - old_plain(c, options, i, t);
}

/* Sum over the future as it is written in the paper: O(T^2), with distances counted in positions or
 * in unmasked tokens. */
static inline double future_plain(const struct objective_case *c,
                                  const struct objective_options *options, uint32_t i, uint32_t t)
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

static inline double weight_plain(const struct objective_case *c,
                                  const struct objective_options *options, uint32_t i, uint32_t t)
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
static inline double correction_plain(const struct objective_options *options, const double *gap,
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

static inline void freeze_corrections(const struct objective_case *c,
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

static inline void freeze_token(const struct objective_case *c,
                                const struct objective_options *options, uint32_t i, uint32_t t,
                                struct frozen *out)
{
    double lp = (double)c->logprob[i][t];
    double a = c->sequences[i].advantage;
    double ratio = exp(fmax(-20, fmin(20, lp - out->old[i][t])));
    double moved = exp(lp) - exp(out->old[i][t]);
    out->cispo[i][t] = fmax(1 - options->epsilon_low, fmin(1 + options->epsilon_high, ratio));
    out->dppo[i][t] = a > 0 ? !(moved > options->dppo_high) : !(moved < -options->dppo_low);
}

static inline void freeze(const struct objective_case *c, const struct objective_options *options,
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

static inline double nudged(const struct objective_case *c, uint32_t i, uint32_t t,
                            const struct nudge *nudge)
{
    bool here = nudge->sequence == i && nudge->token == t;
    return (double)c->logprob[i][t] + (here ? nudge->logprob : 0);
}

/* Ratio of a whole sequence: exp of the mean or of the sum of its log-ratios. */
static inline double sequence_ratio_plain(const struct objective_case *c,
                                          const struct frozen *frozen, uint32_t i,
                                          const struct nudge *nudge, bool mean)
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

static inline double clip_plain(const struct objective_options *options, double a, double ratio)
{
    double clipped = fmax(1 - options->epsilon_low, fmin(1 + options->epsilon_high, ratio));
    double loss = fmax(-a * ratio, -a * clipped);
    return options->delta > 0 && a < 0 ? fmin(loss, -a * options->delta) : loss;
}

static inline double mean_correction(const struct objective_case *c, const struct frozen *frozen,
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
static inline double gspo_token_plain(const struct objective_case *c, const struct frozen *frozen,
                                      uint32_t i, uint32_t t, const struct nudge *nudge)
{
    static const struct nudge none = {0}; /* moves nothing */
    double moved = nudged(c, i, t, nudge) - (double)c->logprob[i][t];
    return sequence_ratio_plain(c, frozen, i, &none, true) * exp(moved);
}

static inline double vespo_plain(const struct objective_options *options, double a, double w)
{
    return a > 0
               ? pow(w, options->vespo_k_positive) * exp(options->vespo_lambda_positive * (1 - w))
               : pow(w, options->vespo_k_negative) * exp(options->vespo_lambda_negative * (1 - w));
}

static inline double policy_plain(const struct objective_case *c,
                                  const struct objective_options *options,
                                  const struct frozen *frozen, uint32_t i, uint32_t t,
                                  const struct nudge *nudge)
{
    double lp = nudged(c, i, t, nudge);
    double a = c->sequences[i].advantage;
    double gap = fmax(-20, fmin(20, lp - frozen->old[i][t]));
    double k = a > 0 ? options->sapo_positive : options->sapo_negative;
    static const struct nudge unmoved = {0};
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
    case CONFIG_LOSS_VESPO:
        return -vespo_plain(options, a, sequence_ratio_plain(c, frozen, i, &unmoved, false)) * a *
               lp;
    case CONFIG_LOSS_SAPO:
        return -a * 4 / k / (1 + exp(-k * (exp(gap) - 1)));
    case CONFIG_LOSS_DPPO:
        return (frozen->dppo[i][t] ? -a * exp(gap) : 0) + options->dppo_kl * gap * gap;
    default:
        return clip_plain(options, a * frozen->weight[i][t], exp(gap));
    }
}

static inline double token_plain(const struct objective_case *c,
                                 const struct objective_options *options,
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

static inline double loss_plain(const struct objective_case *c,
                                const struct objective_options *options,
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

#endif
