/* One sequence's loss and gradient. Three passes: look (are all values finite, how many tokens
 * carry loss, is the sequence dropped), measure and differentiate from the last token to the first
 * (FIPO's sum runs that way), count the sequence. The invariant: what is masked, rejected or
 * dropped has gradient 0 and no part in the denominator, and no masked value is ever read. */
#include "trainer/objective.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define LOG_RATIO_MAX 20.0 /* bound of a log-ratio before exp */
#define RAW_INFLUENCE_MAX 20.0
#define AT_BOUND 1e-7 /* a weight so near its bound counts as clipped */

/* What the first pass found out about a sequence. */
struct objective_look {
    uint32_t tokens; /* unmasked */
    uint32_t dual;   /* tokens of negative advantage beyond the dual clip */
    bool finite;
};

/* One token on its way through the loss. */
struct objective_token {
    double log_ratio; /* clamped */
    double ratio;
    bool inside; /* log-ratio not clamped */
    double advantage;
    double tis;
    double weight; /* FIPO's f, else 1 */
};

/* What does not change along a sequence. */
struct objective_pass {
    const struct objective_options *options;
    const struct objective_sequence *sequence;
    struct objective_stats *stats;
    float *g_logprob, *g_entropy;
    struct objective_fipo fipo;
    double token_weight; /* aggregation: 1 or 1/n_i; 0 for a dropped sequence */
};

static double objective_clamp(double x, double low, double high)
{
    return fmin(fmax(x, low), high);
}

static bool objective_masked(const struct objective_sequence *sequence, uint32_t t)
{
    return sequence->mask != NULL && sequence->mask[t] == 0;
}

static double objective_advantage(const struct objective_sequence *sequence, uint32_t t)
{
    return sequence->token_advantage != NULL ? (double)sequence->token_advantage[t]
                                             : sequence->advantage;
}

static bool objective_finite(const float *values, uint32_t t)
{
    return values == NULL || isfinite(values[t]);
}

static bool objective_token_finite(const struct objective_sequence *sequence, uint32_t t)
{
    return isfinite(sequence->logprob[t]) && isfinite(sequence->old[t]) &&
           objective_finite(sequence->behaviour, t) && objective_finite(sequence->reference, t) &&
           objective_finite(sequence->entropy, t) && isfinite(objective_advantage(sequence, t));
}

static struct objective_look objective_examine(const struct objective_options *options,
                                               const struct objective_sequence *sequence)
{
    struct objective_look look = {.finite = true};
    double log_delta = options->delta > 0 ? log(options->delta) : INFINITY;
    for (uint32_t t = 0; t < sequence->count; t++) {
        if (objective_masked(sequence, t)) {
            continue;
        }
        if (!objective_token_finite(sequence, t)) {
            look.finite = false;
            return look;
        }
        double log_ratio = (double)sequence->logprob[t] - (double)sequence->old[t];
        look.tokens++;
        look.dual += objective_advantage(sequence, t) < 0 && log_ratio > log_delta ? 1 : 0;
    }
    return look;
}

static struct objective_token objective_token_at(const struct objective_pass *pass, uint32_t t)
{
    const struct objective_sequence *sequence = pass->sequence;
    double gap = (double)sequence->logprob[t] - (double)sequence->old[t];
    struct objective_token token = {
        .log_ratio = objective_clamp(gap, -LOG_RATIO_MAX, LOG_RATIO_MAX),
        .inside = fabs(gap) <= LOG_RATIO_MAX,
        .advantage = objective_advantage(sequence, t),
        .tis = 1,
        .weight = 1,
    };
    token.ratio = exp(token.log_ratio);
    return token;
}

/* Truncated importance weight from the sampler's policy to `old`, detached. */
static void objective_correct(struct objective_pass *pass, uint32_t t,
                              struct objective_token *token)
{
    struct objective_sums *sum = &pass->stats->sum;
    const struct objective_sequence *sequence = pass->sequence;
    if (sequence->behaviour == NULL) {
        return;
    }
    double gap = (double)sequence->old[t] - (double)sequence->behaviour[t];
    double bounded = objective_clamp(gap, -LOG_RATIO_MAX, LOG_RATIO_MAX);
    sum->behaviour_kl -= gap;
    sum->behaviour_kl3 += expm1(bounded) - bounded;
    if (pass->options->tis_cap > 0) {
        double weight = exp(bounded);
        token->tis = fmin(weight, pass->options->tis_cap);
        sum->tis_weight += token->tis;
        sum->tis_weight_squared += token->tis * token->tis;
        sum->tis_clipped += weight > pass->options->tis_cap ? 1 : 0;
        pass->stats->max.tis_weight_max = fmax(pass->stats->max.tis_weight_max, token->tis);
    }
}

static void objective_influence(struct objective_pass *pass, struct objective_token *token)
{
    if (pass->options->loss_type != CONFIG_LOSS_FIPO) {
        return;
    }
    struct objective_influence influence;
    objective_fipo_token(&pass->fipo, token->log_ratio, token->advantage, &influence);
    token->weight = influence.weight;
    struct objective_sums *sum = &pass->stats->sum;
    sum->future_kl += influence.future_kl;
    sum->influence += influence.weight;
    sum->influence_raw += exp(fmin(influence.future_kl, RAW_INFLUENCE_MAX));
    sum->influence_upper += influence.weight >= pass->fipo.influence_high - AT_BOUND ? 1 : 0;
    sum->influence_lower += influence.weight <= pass->fipo.influence_low + AT_BOUND ? 1 : 0;
    sum->influence_safety += influence.safety ? 1 : 0;
    sum->influence_filtered += influence.participates ? 0 : 1;
    pass->stats->max.influence_max = fmax(pass->stats->max.influence_max, influence.weight);
    pass->stats->min.influence_min = fmin(pass->stats->min.influence_min, influence.weight);
}

/* PPO's clipped surrogate with dual clip; branches as a table so that each has its own gradient:
 * at a bound itself the gradient still flows. */
static double objective_clip(struct objective_pass *pass, const struct objective_token *token,
                             double *gradient)
{
    const struct objective_options *options = pass->options;
    struct objective_sums *sum = &pass->stats->sum;
    double advantage = token->advantage * token->weight;
    double high = 1 + options->epsilon_high;
    double low = 1 - options->epsilon_low;
    *gradient = 0;
    if (advantage >= 0 && token->ratio > high) {
        sum->clip_high += advantage > 0 ? 1 : 0;
        return -advantage * high;
    }
    if (advantage < 0 && token->ratio < low) {
        sum->clip_low++;
        return -advantage * low;
    }
    if (advantage < 0 && options->delta > 0 && token->ratio > options->delta) {
        sum->clip_dual++;
        return -advantage * options->delta;
    }
    *gradient = token->inside && advantage != 0 ? -advantage * token->ratio : 0;
    return -advantage * token->ratio;
}

static double objective_reference(struct objective_pass *pass, uint32_t t)
{
    const struct objective_sequence *sequence = pass->sequence;
    if (sequence->reference == NULL) {
        return 0;
    }
    double gap = (double)sequence->logprob[t] - (double)sequence->reference[t];
    double derivative = 0;
    double value = objective_kl(pass->options->kl_type, gap, &derivative);
    pass->stats->sum.reference_kl += value;
    pass->stats->sum.kl_loss += pass->token_weight * pass->options->beta * value;
    return pass->options->beta * derivative;
}

static void objective_bonus(struct objective_pass *pass, uint32_t t)
{
    double coefficient = pass->options->entropy_coef;
    if (pass->sequence->entropy != NULL) {
        double value = (double)pass->sequence->entropy[t];
        pass->stats->sum.entropy += value;
        pass->stats->sum.entropy_loss -= pass->token_weight * coefficient * value;
    }
    if (pass->g_entropy != NULL && coefficient != 0) {
        pass->g_entropy[t] = (float)(-coefficient * pass->token_weight);
    }
}

/* Which policy sampled the token, and whether the learner agrees about its log-prob. */
static void objective_trace(struct objective_pass *pass, uint32_t t)
{
    const struct objective_sequence *sequence = pass->sequence;
    if (sequence->version == NULL) {
        return;
    }
    uint32_t now = sequence->version_now;
    double age = now > sequence->version[t] ? (double)(now - sequence->version[t]) : 0;
    pass->stats->sum.staleness += age;
    pass->stats->sum.staleness_tokens++;
    pass->stats->max.staleness_max = fmax(pass->stats->max.staleness_max, age);
    if (sequence->on_version && sequence->version[t] == now && sequence->behaviour != NULL) {
        double gap = fabs((double)sequence->logprob[t] - (double)sequence->behaviour[t]);
        pass->stats->sum.mismatch += gap;
        pass->stats->sum.mismatch_tokens++;
        pass->stats->max.mismatch_max = fmax(pass->stats->max.mismatch_max, gap);
    }
}

static void objective_one_token(struct objective_pass *pass, uint32_t t)
{
    struct objective_token token = objective_token_at(pass, t);
    objective_correct(pass, t, &token);
    objective_influence(pass, &token);
    objective_trace(pass, t);

    double gradient = 0;
    double loss = objective_clip(pass, &token, &gradient);
    double total = token.tis * gradient + objective_reference(pass, t);
    objective_bonus(pass, t);
    total *= pass->token_weight;
    pass->g_logprob[t] = total != 0 ? (float)total : 0.0f;

    struct objective_stats *stats = pass->stats;
    stats->sum.policy_loss += pass->token_weight * token.tis * loss;
    stats->sum.policy_kl -= (double)pass->sequence->logprob[t] - (double)pass->sequence->old[t];
    stats->sum.advantage += token.advantage;
    stats->sum.ratio += token.ratio;
    stats->sum.ratio_squared += token.ratio * token.ratio;
    stats->sum.tokens_with_gradient += total != 0 ? 1 : 0;
    stats->max.ratio_max = fmax(stats->max.ratio_max, token.ratio);
    stats->min.ratio_min = fmin(stats->min.ratio_min, token.ratio);
    stats->max.gradient_max = fmax(stats->max.gradient_max, fabs(total));
}

static void objective_count(const struct objective_options *options,
                            const struct objective_look *look, bool dropped,
                            struct objective_sums *sum)
{
    sum->tokens += look->tokens;
    if (dropped) {
        sum->sequences_dropped++;
        return;
    }
    sum->sequences_kept++;
    sum->tokens_kept += look->tokens;
    sum->denominator += options->aggregation == OBJECTIVE_TOKEN_MEAN ? (double)look->tokens : 1.0;
}

/* FIPO's authors leave out a sequence with more than one dual-clipped token. */
static bool objective_drops(const struct objective_options *options,
                            const struct objective_look *look)
{
    return options->loss_type == CONFIG_LOSS_FIPO && options->fipo_drop_sequences && look->dual > 1;
}

void objective_sequence(const struct objective_options *options,
                        const struct objective_sequence *sequence, float *g_logprob,
                        float *g_entropy, struct objective_stats *stats)
{
    assert(options->entropy_coef == 0 || g_entropy != NULL);
    assert(options->beta == 0 || sequence->reference != NULL);
    assert(options->tis_cap == 0 || sequence->behaviour != NULL);
    memset(g_logprob, 0, sequence->count * sizeof(*g_logprob));
    if (g_entropy != NULL) {
        memset(g_entropy, 0, sequence->count * sizeof(*g_entropy));
    }
    struct objective_look look = objective_examine(options, sequence);
    stats->sum.sequences++;
    if (!look.finite) {
        stats->sum.sequences_rejected++;
        return;
    }
    stats->sum.tokens_masked += sequence->count - look.tokens;
    if (look.tokens == 0) {
        stats->sum.sequences_empty++;
        return;
    }
    bool dropped = objective_drops(options, &look);
    bool by_length = options->aggregation == OBJECTIVE_SEQ_MEAN_TOKEN_MEAN;
    struct objective_pass pass = {
        .options = options,
        .sequence = sequence,
        .stats = stats,
        .g_logprob = g_logprob,
        .g_entropy = g_entropy,
        .token_weight = dropped     ? 0
                        : by_length ? 1.0 / look.tokens
                                    : 1.0,
    };
    objective_fipo_start(options, &pass.fipo);
    for (uint32_t t = sequence->count; t-- > 0;) {
        if (objective_masked(sequence, t)) {
            objective_fipo_masked(&pass.fipo);
            continue;
        }
        objective_one_token(&pass, t);
    }
    objective_count(options, &look, dropped, &stats->sum);
}

double objective_batch(const struct objective_options *options,
                       const struct objective_sequence *sequences, uint32_t count,
                       float *const *g_logprob, float *const *g_entropy,
                       struct objective_stats *stats)
{
    for (uint32_t i = 0; i < count; i++) {
        float *entropy = g_entropy != NULL ? g_entropy[i] : NULL;
        objective_sequence(options, &sequences[i], g_logprob[i], entropy, stats);
    }
    double divisor = objective_denominator(options, stats);
    double inverse = divisor > 0 ? 1.0 / divisor : 0;
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t t = 0; t < sequences[i].count; t++) {
            g_logprob[i][t] = (float)((double)g_logprob[i][t] * inverse);
            if (g_entropy != NULL) {
                g_entropy[i][t] = (float)((double)g_entropy[i][t] * inverse);
            }
        }
    }
    return objective_loss(options, stats);
}
