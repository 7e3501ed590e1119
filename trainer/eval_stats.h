/* Figures of an evaluation and how sure we are of them. Pure; random draws are keyed by a seed.
 * Problems are the independent units, so intervals resample problems, not single completions. */
#ifndef FORESIGHT_TRAINER_EVAL_STATS_H
#define FORESIGHT_TRAINER_EVAL_STATS_H

#include "core/status.h"

#include <stdint.h>

struct eval_problem {
    uint32_t samples; /* n >= 1 */
    uint32_t correct; /* c <= n */
};

struct eval_interval {
    double mean, low, high; /* 95 % confidence */
};

/* Unbiased estimate of pass@k from n samples of which c are right: 1 - C(n-c, k) / C(n, k), as a
 * product that cannot overflow (Chen et al. 2021, arXiv 2107.03374). k is cut to n; 0 if n is 0. */
double eval_pass_at_k(uint32_t n, uint32_t c, uint32_t k);

/* Mean of pass@k over problems with a percentile bootstrap over problems (2,000 resamples drawn
 * with Philox from `seed`). Where all problems agree on 0 or on 1 the bootstrap has no width, and
 * the Wilson interval with count = problems stands in. k = 1 gives avg@n, the same figure as
 * pass@1. Errors: RL_INVALID (no problem, samples 0, correct > samples, k 0 or above any problem's
 * samples), RL_NO_MEMORY. */
rl_status eval_pass_at_k_interval(const struct eval_problem *problems, uint32_t count, uint32_t k,
                                  uint64_t seed, struct eval_interval *out);

/* Mean and bootstrap interval of any per-problem figure, values [count]. Errors as above;
 * RL_INVALID also for a value that is not finite. */
rl_status eval_mean_interval(const double *values, uint32_t count, uint64_t seed,
                             struct eval_interval *out);

/* Wilson score interval of a proportion (one sample a problem, or a degenerate bootstrap). */
void eval_wilson(uint64_t correct, uint64_t total, struct eval_interval *out);

/* maj@n of one problem: `answer` [n] identifies each completion's answer (equal answers, equal
 * numbers), `correct` [n]. Share of right answers among the most frequent ones (ties share). */
double eval_majority(const uint64_t *answer, const uint8_t *correct, uint32_t n);

#endif
