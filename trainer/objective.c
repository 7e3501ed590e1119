/* One sequence's loss and gradient. Three passes: look (are all values finite, how many tokens
 * carry loss, is the sequence dropped), measure and differentiate from the last token to the first
 * (FIPO's sum runs that way), count the sequence. The invariant: what is masked, rejected or
 * dropped has gradient 0 and no part in the denominator, and no masked value is ever read. */
#include "trainer/objective_internal.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define RAW_INFLUENCE_MAX 20.0
#define AT_BOUND 1e-7 /* a weight so near its bound counts as clipped */

/* What does not change along a sequence. */
struct objective_pass {
    const struct objective_options *options;
    const struct objective_sequence *sequence;
    struct objective_stats *stats;
    float *g_logprob, *g_entropy;
    struct objective_fipo fipo;
    struct objective_verdict verdict;
    enum objective_ratio ratio_kind;
    double sequence_ratio, sequence_advantage, sequence_weight; /* of objectives by sequence */
    bool sequence_inside;
    double chain;        /* derivative of the log of the ratio by a token's log-prob, times n */
    double token_weight; /* aggregation: 1 or 1/n_i; 0 for a dropped sequence */
};

bool objective_masked(const struct objective_sequence *sequence, uint32_t t)
{
    return sequence->mask != NULL && sequence->mask[t] == 0;
}

static double objective_advantage(const struct objective_options *options,
                                  const struct objective_sequence *sequence, uint32_t t)
{
    double own = sequence->token_advantage != NULL ? (double)sequence->token_advantage[t]
                                                   : sequence->advantage;
    return objective_taught_advantage(options, sequence, t, own);
}

static bool objective_finite(const float *values, uint32_t t)
{
    return values == NULL || isfinite(values[t]);
}

static bool objective_token_finite(const struct objective_options *options,
                                   const struct objective_sequence *sequence, uint32_t t)
{
    return isfinite(sequence->logprob[t]) && (options->loglinear || isfinite(sequence->old[t])) &&
           objective_finite(sequence->behaviour, t) && objective_finite(sequence->proximal, t) &&
           objective_finite(sequence->reference, t) && objective_finite(sequence->entropy, t) &&
           objective_finite(sequence->teacher, t) &&
           isfinite(objective_advantage(options, sequence, t));
}

static struct objective_look objective_examine(const struct objective_options *options,
                                               const struct objective_sequence *sequence)
{
    struct objective_look look = {.finite = true, .lowest_log_rho = INFINITY};
    double log_delta = options->delta > 0 ? log(options->delta) : INFINITY;
    for (uint32_t t = 0; t < sequence->count; t++) {
        if (objective_masked(sequence, t)) {
            continue;
        }
        if (!objective_token_finite(options, sequence, t)) {
            look.finite = false;
            return look;
        }
        double logprob = (double)sequence->logprob[t];
        double log_ratio = logprob - objective_old_at(options, sequence, t);
        double advantage = objective_advantage(options, sequence, t);
        look.tokens++;
        look.dual += advantage < 0 && log_ratio > log_delta ? 1 : 0;
        look.log_ratio += log_ratio;
        look.advantage += advantage;
        if (sequence->behaviour != NULL) {
            look.drift += (double)sequence->behaviour[t] - logprob;
            objective_look_gap(&look, objective_gap_at(options, sequence, t));
        }
    }
    return look;
}

static struct objective_token objective_token_at(const struct objective_pass *pass, uint32_t t)
{
    const struct objective_sequence *sequence = pass->sequence;
    double logprob = (double)sequence->logprob[t];
    double old = objective_old_at(pass->options, sequence, t);
    double gap = logprob - old;
    struct objective_token token = {
        .logprob = logprob,
        .old = old,
        .log_ratio = objective_bounded(gap),
        .inside = fabs(gap) <= OBJECTIVE_LOG_RATIO_MAX,
        .advantage = objective_advantage(pass->options, sequence, t),
        .influence = 1,
    };
    token.correction = objective_weight_at(pass->options, sequence, &pass->verdict, t, pass->stats);
    if (pass->ratio_kind == OBJECTIVE_RATIO_TOKEN) {
        token.ratio = exp(token.log_ratio);
        return token;
    }
    token.ratio = pass->sequence_ratio;
    token.inside = pass->sequence_inside;
    if (pass->ratio_kind == OBJECTIVE_RATIO_MEAN || pass->ratio_kind == OBJECTIVE_RATIO_SUM) {
        token.advantage = pass->sequence_advantage;
        token.correction = pass->sequence_weight;
    }
    return token;
}

static void objective_influence(struct objective_pass *pass, struct objective_token *token)
{
    if (pass->options->loss_type != CONFIG_LOSS_FIPO) {
        return;
    }
    struct objective_influence influence;
    objective_fipo_token(&pass->fipo, token->log_ratio, token->advantage, &influence);
    token->influence = influence.weight;
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

static double objective_reference(struct objective_pass *pass, const struct objective_token *token,
                                  uint32_t t)
{
    const struct objective_sequence *sequence = pass->sequence;
    if (sequence->reference == NULL) {
        return 0;
    }
    double gap = token->logprob - (double)sequence->reference[t];
    double derivative = 0;
    double value = objective_kl(pass->options->kl_type, gap, token->log_ratio, &derivative);
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

/* The teacher's part of the gradient. */
static double objective_lesson(struct objective_pass *pass, const struct objective_token *token,
                               uint32_t t)
{
    const struct objective_sequence *sequence = pass->sequence;
    if (sequence->teacher == NULL) {
        return 0;
    }
    struct objective_lesson lesson = objective_teach(
        &pass->options->teacher, token, (double)sequence->teacher[t], &pass->stats->sum);
    pass->stats->sum.distill_loss += pass->token_weight * lesson.loss;
    if (pass->options->teacher.by_logits) {
        sequence->g_divergence[t] = (float)(pass->token_weight * lesson.divergence);
    }
    return lesson.gradient;
}

/* Place of the token's bucket among the sums. */
static size_t objective_staleness_index(double age)
{
    size_t first = offsetof(struct objective_sums, staleness_0) / sizeof(double);
    return first + (size_t)fmin(age, OBJECTIVE_STALENESS_BUCKETS - 1);
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
    objective_stats_sums(pass->stats)[objective_staleness_index(age)]++;
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
    objective_influence(pass, &token);
    objective_trace(pass, t);

    struct objective_stats *stats = pass->stats;
    double gradient = 0;
    double loss = objective_policy_loss(pass->options, &token, &gradient, &stats->sum);
    double weight = token.correction * objective_policy_share(pass->options);
    double total = weight * gradient * pass->chain + objective_reference(pass, &token, t) +
                   objective_lesson(pass, &token, t);
    objective_bonus(pass, t);
    total *= pass->token_weight;
    pass->g_logprob[t] = total != 0 ? (float)total : 0.0f;

    stats->sum.policy_loss += pass->token_weight * weight * loss;
    stats->sum.policy_kl -= token.logprob - token.old;
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

/* Ratio, advantage and weight that all tokens share where the objective takes whole sequences. The
 * weight is the mean of the tokens' weights: so the value and each gradient are those of one loss.
 */
static void objective_share(struct objective_pass *pass, const struct objective_look *look)
{
    const struct objective_sequence *sequence = pass->sequence;
    bool sum =
        pass->ratio_kind == OBJECTIVE_RATIO_SUM || pass->ratio_kind == OBJECTIVE_RATIO_SUM_TOKEN;
    double log_ratio = sum ? look->log_ratio : look->log_ratio / look->tokens;
    pass->chain = pass->ratio_kind == OBJECTIVE_RATIO_SUM ? look->tokens : 1;
    pass->sequence_ratio = exp(objective_bounded(log_ratio));
    pass->sequence_inside = fabs(log_ratio) <= OBJECTIVE_LOG_RATIO_MAX;
    pass->sequence_advantage = sequence->token_advantage != NULL || sequence->teacher != NULL
                                   ? look->advantage / look->tokens
                                   : sequence->advantage;
    double weights = 0;
    for (uint32_t t = 0; t < sequence->count; t++) {
        if (!objective_masked(sequence, t)) {
            weights += objective_weight_at(pass->options, sequence, &pass->verdict, t, NULL);
        }
    }
    pass->sequence_weight = weights / look->tokens;
}

static void objective_walk(struct objective_pass *pass, const struct objective_look *look)
{
    const struct objective_sequence *sequence = pass->sequence;
    pass->chain = 1;
    pass->ratio_kind = objective_ratio_of(pass->options->loss_type);
    objective_judge(pass->options, look, &pass->verdict);
    objective_fipo_start(pass->options, &pass->fipo);
    if (pass->ratio_kind != OBJECTIVE_RATIO_TOKEN) {
        objective_share(pass, look);
    }
    for (uint32_t t = sequence->count; t-- > 0;) {
        if (objective_masked(sequence, t)) {
            objective_fipo_masked(&pass->fipo);
            continue;
        }
        objective_one_token(pass, t);
    }
}

static void objective_count_verdict(const struct objective_options *options,
                                    const struct objective_sequence *sequence,
                                    const struct objective_look *look,
                                    const struct objective_verdict *verdict,
                                    struct objective_sums *sum)
{
    if (!objective_corrects(options, sequence)) {
        return;
    }
    double rho = exp(objective_bounded(look->log_rho));
    sum->rho_sequences++;
    sum->sequence_rho += rho;
    sum->sequence_rho_squared += rho * rho;
    sum->sequences_masked += verdict->masked ? 1 : 0;
    sum->sequences_vetoed += verdict->vetoed ? 1 : 0;
}

static void objective_check(const struct objective_options *options,
                            const struct objective_sequence *sequence, const float *g_entropy)
{
    assert(options->entropy_coef == 0 || g_entropy != NULL);
    assert(options->beta == 0 || sequence->reference != NULL);
    assert(options->correction == CONFIG_CORRECTION_NONE || sequence->behaviour != NULL);
    assert(!options->loglinear || (sequence->behaviour != NULL && sequence->version != NULL));
    (void)options;
    (void)sequence;
    (void)g_entropy;
}

void objective_sequence(const struct objective_options *options,
                        const struct objective_sequence *sequence, float *g_logprob,
                        float *g_entropy, struct objective_stats *stats)
{
    objective_check(options, sequence, g_entropy);
    memset(g_logprob, 0, sequence->count * sizeof(*g_logprob));
    if (g_entropy != NULL) {
        memset(g_entropy, 0, sequence->count * sizeof(*g_entropy));
    }
    if (sequence->teacher != NULL && options->teacher.by_logits) {
        memset(sequence->g_divergence, 0, sequence->count * sizeof(*sequence->g_divergence));
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
    objective_walk(&pass, &look);
    stats->sum.taught_sequences += sequence->teacher != NULL ? 1 : 0;
    objective_count(options, &look, dropped, &stats->sum);
    objective_count_verdict(options, sequence, &look, &pass.verdict, &stats->sum);
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
