/* Policy losses of one token, by the columns of RL_OBJECTIVES. Owns the formulas and their
 * derivatives; knows nothing of sequences, corrections and aggregation. Where a loss has branches
 * each has its own gradient; at a bound itself the gradient still flows. */
#include "trainer/objective_internal.h"

#include <math.h>

#define OBJECTIVE_FORM(id, name, form, ...) [CONFIG_LOSS_##id] = OBJECTIVE_##form,
static const enum objective_form objective_forms[CONFIG_LOSS_COUNT] = {
    RL_OBJECTIVES(OBJECTIVE_FORM)};
#undef OBJECTIVE_FORM

#define OBJECTIVE_RATIO(id, name, form, ratio, ...) [CONFIG_LOSS_##id] = OBJECTIVE_RATIO_##ratio,
static const enum objective_ratio objective_ratios[CONFIG_LOSS_COUNT] = {
    RL_OBJECTIVES(OBJECTIVE_RATIO)};
#undef OBJECTIVE_RATIO

enum objective_ratio objective_ratio_of(enum config_loss_type type)
{
    return objective_ratios[type];
}

/* PPO's clipped surrogate with dual clip. */
static double objective_clip(const struct objective_options *options,
                             const struct objective_token *token, double *gradient,
                             struct objective_sums *sum)
{
    double advantage = token->advantage * token->influence;
    double high = 1 + options->epsilon_high;
    double low = 1 - options->epsilon_low;
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
    *gradient = token->inside ? -advantage * token->ratio : 0;
    return -advantage * token->ratio;
}

/* The clipped ratio is a weight here, so that no token loses its gradient. */
static double objective_cispo(const struct objective_options *options,
                              const struct objective_token *token, double *gradient,
                              struct objective_sums *sum)
{
    double high = 1 + options->epsilon_high;
    double low = 1 - options->epsilon_low;
    sum->clip_high += token->ratio > high ? 1 : 0;
    sum->clip_low += token->ratio < low ? 1 : 0;
    *gradient = -fmin(fmax(token->ratio, low), high) * token->advantage;
    return *gradient * token->logprob;
}

static double objective_reinforce(const struct objective_token *token, double *gradient)
{
    *gradient = -token->advantage;
    return *gradient * token->logprob;
}

/* A smooth gate instead of a clip; its slope at ratio 1 is that of the plain ratio. */
static double objective_sapo(const struct objective_options *options,
                             const struct objective_token *token, double *gradient)
{
    double k = token->advantage > 0 ? options->sapo_positive : options->sapo_negative;
    double gate = 1 / (1 + exp(-k * (token->ratio - 1)));
    *gradient = token->inside ? -4 * token->advantage * gate * (1 - gate) * token->ratio : 0;
    return -token->advantage * gate * 4 / k;
}

/* Tokens whose probability has moved too far the way that the advantage pushes it keep only the
 * squared log-ratio, which pulls them back. */
static double objective_dppo(const struct objective_options *options,
                             const struct objective_token *token, double *gradient,
                             struct objective_sums *sum)
{
    double moved = exp(token->logprob) - exp(token->old);
    bool high = token->advantage > 0 && moved > options->dppo_high;
    bool low = token->advantage <= 0 && moved < -options->dppo_low;
    double surrogate = high || low ? 0 : -token->advantage * token->ratio;
    sum->clip_high += high ? 1 : 0;
    sum->clip_low += low ? 1 : 0;
    *gradient = token->inside ? surrogate + 2 * options->dppo_kl * token->log_ratio : 0;
    return surrogate + options->dppo_kl * token->log_ratio * token->log_ratio;
}

/* A sequence's ratio as a weight that is 1 at 1 and falls off on both sides, smoothly. */
static double objective_vespo(const struct objective_options *options,
                              const struct objective_token *token, double *gradient)
{
    bool positive = token->advantage > 0;
    double k = positive ? options->vespo_k_positive : options->vespo_k_negative;
    double lambda = positive ? options->vespo_lambda_positive : options->vespo_lambda_negative;
    double weight = exp(k * log(token->ratio) + lambda * (1 - token->ratio));
    *gradient = -weight * token->advantage;
    return *gradient * token->logprob;
}

double objective_policy_loss(const struct objective_options *options,
                             const struct objective_token *token, double *gradient,
                             struct objective_sums *sum)
{
    *gradient = 0;
    switch (objective_forms[options->loss_type]) {
    case OBJECTIVE_CISPO:
        return objective_cispo(options, token, gradient, sum);
    case OBJECTIVE_REINFORCE:
        return objective_reinforce(token, gradient);
    case OBJECTIVE_SAPO:
        return objective_sapo(options, token, gradient);
    case OBJECTIVE_DPPO:
        return objective_dppo(options, token, gradient, sum);
    case OBJECTIVE_VESPO:
        return objective_vespo(options, token, gradient);
    case OBJECTIVE_CLIP:
    default:
        return objective_clip(options, token, gradient, sum);
    }
}
