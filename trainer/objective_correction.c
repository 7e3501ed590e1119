/* Off-policy corrections: detached weights of token losses from the gap between the policy that
 * sampled a token and the one that ratios are taken against. Owns the arithmetic behind
 * RL_CORRECTIONS, the veto, off-policy sequence masking and M2PO's mask. The invariant: where the
 * gap is 0 everywhere each weight is exactly 1. */
#include "trainer/objective_internal.h"

#include <math.h>

enum objective_scope {
    OBJECTIVE_SCOPE_TOKEN,
    OBJECTIVE_SCOPE_SEQUENCE,
    OBJECTIVE_SCOPE_MEAN,
    OBJECTIVE_SCOPE_K3
};
enum objective_rule {
    OBJECTIVE_RULE_TRUNCATE,
    OBJECTIVE_RULE_KEEP,
    OBJECTIVE_RULE_REJECT,
    OBJECTIVE_RULE_GATE
};

struct objective_row {
    enum objective_scope scope;
    enum objective_rule rule;
};

/* AUTO and NONE are never looked up. */
#define OBJECTIVE_ROW(id, name, scope, rule, ...)                                                  \
    [CONFIG_CORRECTION_##id] = {OBJECTIVE_SCOPE_##scope, OBJECTIVE_RULE_##rule},
static const struct objective_row objective_rows[CONFIG_CORRECTION_COUNT] = {
    RL_CORRECTIONS(OBJECTIVE_ROW)};
#undef OBJECTIVE_ROW

double objective_bounded(double x)
{
    return fmin(fmax(x, -OBJECTIVE_LOG_RATIO_MAX), OBJECTIVE_LOG_RATIO_MAX);
}

/* A-3PO: old is the sampler's policy moved towards the current one by the share of versions that
 * lie between. The current policy is on its way from version_now, the one to compare with, to the
 * next. A token of version_now itself needs no moving: its behaviour log-prob is the old one. */
static double objective_interpolate(const struct objective_sequence *sequence, uint32_t t)
{
    double behaviour = (double)sequence->behaviour[t];
    uint32_t now = sequence->version_now;
    if (sequence->version[t] >= now) {
        return behaviour;
    }
    double age = (double)(now - sequence->version[t]);
    return behaviour + age / (age + 1) * ((double)sequence->logprob[t] - behaviour);
}

double objective_old_at(const struct objective_options *options,
                        const struct objective_sequence *sequence, uint32_t t)
{
    return options->loglinear ? objective_interpolate(sequence, t) : (double)sequence->old[t];
}

double objective_gap_at(const struct objective_options *options,
                        const struct objective_sequence *sequence, uint32_t t)
{
    double from = sequence->proximal != NULL ? (double)sequence->proximal[t]
                                             : objective_old_at(options, sequence, t);
    return from - (double)sequence->behaviour[t];
}

void objective_look_gap(struct objective_look *look, double gap)
{
    double bounded = objective_bounded(gap);
    look->log_rho += gap;
    look->rho_excess += expm1(bounded) - bounded;
    look->lowest_log_rho = fmin(look->lowest_log_rho, gap);
}

/* x of the table for a whole sequence. */
static double objective_sequence_x(enum objective_scope scope, const struct objective_look *look)
{
    switch (scope) {
    case OBJECTIVE_SCOPE_SEQUENCE:
        return exp(objective_bounded(look->log_rho));
    case OBJECTIVE_SCOPE_MEAN:
        return exp(objective_bounded(look->log_rho / look->tokens));
    case OBJECTIVE_SCOPE_K3:
        return look->rho_excess / look->tokens;
    case OBJECTIVE_SCOPE_TOKEN:
    default:
        return 1;
    }
}

/* The rule's weight for x; GATE's is 1 here, rho comes in with the token. */
static double objective_apply(const struct objective_options *options, enum objective_rule rule,
                              double x)
{
    bool within = options->correction_low <= x && x <= options->correction_high;
    switch (rule) {
    case OBJECTIVE_RULE_TRUNCATE:
        return fmin(fmax(x, options->correction_low), options->correction_high);
    case OBJECTIVE_RULE_KEEP:
        return within ? x : 0;
    case OBJECTIVE_RULE_REJECT:
    case OBJECTIVE_RULE_GATE:
    default:
        return within ? 1 : 0;
    }
}

void objective_judge(const struct objective_options *options, const struct objective_look *look,
                     struct objective_verdict *out)
{
    *out = (struct objective_verdict){.weight = 1};
    out->vetoed =
        options->veto_threshold > 0 && look->lowest_log_rho < log(options->veto_threshold);
    out->opsm = options->opsm_delta > 0 && look->drift / look->tokens > options->opsm_delta;
    if (options->correction == CONFIG_CORRECTION_NONE) {
        return;
    }
    struct objective_row row = objective_rows[options->correction];
    out->by_token = row.scope == OBJECTIVE_SCOPE_TOKEN || row.rule == OBJECTIVE_RULE_GATE;
    if (row.scope != OBJECTIVE_SCOPE_TOKEN) {
        double x = objective_sequence_x(row.scope, look);
        out->weight = objective_apply(options, row.rule, x);
        out->masked = out->weight == 0;
        out->clipped = row.rule == OBJECTIVE_RULE_TRUNCATE && (out->weight < x || out->weight > x);
    }
}

bool objective_corrects(const struct objective_options *options,
                        const struct objective_sequence *sequence)
{
    bool apart =
        options->loglinear || sequence->proximal != NULL || sequence->old != sequence->behaviour;
    return sequence->behaviour != NULL && (apart || options->opsm_delta > 0);
}

/* The correction's own weight of a token; what it did goes to clipped and masked. */
static double objective_row_weight(const struct objective_options *options,
                                   const struct objective_verdict *verdict, double gap,
                                   bool *clipped, bool *masked)
{
    *clipped = verdict->clipped;
    *masked = verdict->masked;
    if (!verdict->by_token || verdict->masked) {
        return verdict->weight;
    }
    struct objective_row row = objective_rows[options->correction];
    double rho = exp(objective_bounded(gap));
    if (row.rule == OBJECTIVE_RULE_GATE) {
        return rho;
    }
    double weight = objective_apply(options, row.rule, rho);
    *masked = weight == 0;
    *clipped = row.rule == OBJECTIVE_RULE_TRUNCATE && (weight < rho || weight > rho);
    return weight;
}

static void objective_count_rho(double gap, struct objective_stats *stats)
{
    double bounded = objective_bounded(gap);
    double rho = exp(bounded);
    stats->sum.behaviour_kl -= gap;
    stats->sum.behaviour_kl3 += expm1(bounded) - bounded;
    stats->sum.rho_tokens++;
    stats->sum.rho += rho;
    stats->sum.rho_squared += rho * rho;
    stats->max.rho_max = fmax(stats->max.rho_max, rho);
    stats->min.rho_min = fmin(stats->min.rho_min, rho);
}

double objective_weight_at(const struct objective_options *options,
                           const struct objective_sequence *sequence,
                           const struct objective_verdict *verdict, uint32_t t,
                           struct objective_stats *stats)
{
    if (!objective_corrects(options, sequence)) {
        return 1;
    }
    bool clipped = false;
    bool masked = false;
    double gap = objective_gap_at(options, sequence, t);
    double weight = objective_row_weight(options, verdict, gap, &clipped, &masked);
    double advantage = sequence->token_advantage != NULL ? (double)sequence->token_advantage[t]
                                                         : sequence->advantage;
    bool opsm = verdict->opsm && advantage < 0;
    bool m2po = sequence->minibatch != NULL && (float)(gap * gap) > sequence->minibatch->gap_limit;
    weight *= sequence->minibatch != NULL ? sequence->minibatch->weight_scale : 1;
    weight = verdict->vetoed || opsm || m2po ? 0 : weight;
    if (stats != NULL) {
        objective_count_rho(gap, stats);
        stats->sum.weight += weight;
        stats->sum.weight_squared += weight * weight;
        stats->sum.weight_clipped += clipped ? 1 : 0;
        stats->sum.weight_masked += masked ? 1 : 0;
        stats->sum.tokens_vetoed += verdict->vetoed ? 1 : 0;
        stats->sum.tokens_opsm += opsm ? 1 : 0;
        stats->sum.tokens_m2po += m2po ? 1 : 0;
        stats->max.weight_max = fmax(stats->max.weight_max, weight);
        stats->min.weight_min = fmin(stats->min.weight_min, weight);
    }
    return weight;
}
