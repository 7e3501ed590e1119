/* Sums, maxima and minima of an objective: starting, merging, and the flat views that are reduced
 * over ranks. The invariant: each section is an array of doubles and nothing else. */
#include "trainer/objective.h"

#include <math.h>

#define OBJECTIVE_COUNT_ONE(name) +1
_Static_assert(OBJECTIVE_SUM_COUNT == 0 OBJECTIVE_SUMS(OBJECTIVE_COUNT_ONE), "padding in sums");
_Static_assert(OBJECTIVE_MAX_COUNT == 0 OBJECTIVE_MAXIMA(OBJECTIVE_COUNT_ONE), "padding in maxima");
_Static_assert(OBJECTIVE_MIN_COUNT == 0 OBJECTIVE_MINIMA(OBJECTIVE_COUNT_ONE), "padding in minima");
#undef OBJECTIVE_COUNT_ONE

double *objective_stats_sums(struct objective_stats *stats)
{
    return (double *)(void *)&stats->sum;
}

double *objective_stats_maxima(struct objective_stats *stats)
{
    return (double *)(void *)&stats->max;
}

double *objective_stats_minima(struct objective_stats *stats)
{
    return (double *)(void *)&stats->min;
}

const double *objective_stats_staleness(const struct objective_stats *stats)
{
    return (const double *)(const void *)((const char *)&stats->sum +
                                          offsetof(struct objective_sums, staleness_0));
}

void objective_stats_init(struct objective_stats *stats)
{
    *stats = (struct objective_stats){0};
    for (int i = 0; i < OBJECTIVE_MAX_COUNT; i++) {
        objective_stats_maxima(stats)[i] = -INFINITY;
    }
    for (int i = 0; i < OBJECTIVE_MIN_COUNT; i++) {
        objective_stats_minima(stats)[i] = INFINITY;
    }
}

void objective_stats_merge(struct objective_stats *into, const struct objective_stats *from)
{
    struct objective_stats other = *from;
    for (int i = 0; i < OBJECTIVE_SUM_COUNT; i++) {
        objective_stats_sums(into)[i] += objective_stats_sums(&other)[i];
    }
    for (int i = 0; i < OBJECTIVE_MAX_COUNT; i++) {
        double *mine = &objective_stats_maxima(into)[i];
        *mine = fmax(*mine, objective_stats_maxima(&other)[i]);
    }
    for (int i = 0; i < OBJECTIVE_MIN_COUNT; i++) {
        double *mine = &objective_stats_minima(into)[i];
        *mine = fmin(*mine, objective_stats_minima(&other)[i]);
    }
}

double objective_denominator(const struct objective_options *options,
                             const struct objective_stats *stats)
{
    double counted = stats->sum.denominator;
    switch (options->aggregation) {
    case OBJECTIVE_SEQ_SUM_NORM:
        return counted > 0 ? options->loss_scale : 0;
    case OBJECTIVE_SEQ_MEAN_TOKEN_SUM_NORM:
        return counted * options->loss_scale;
    default:
        return counted;
    }
}

double objective_loss(const struct objective_options *options, const struct objective_stats *stats)
{
    double divisor = objective_denominator(options, stats);
    double sum = stats->sum.policy_loss + stats->sum.kl_loss + stats->sum.entropy_loss +
                 stats->sum.distill_loss;
    return divisor > 0 ? sum / divisor : 0;
}
