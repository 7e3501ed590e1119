/* pass@k, its intervals, majority vote. Pure. The invariant: the same problems and the same seed
 * give the same figures. */
#include "trainer/eval_stats.h"

#include "core/log.h"
#include "core/rng.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

enum { EVAL_RESAMPLES = 2000 };

#define EVAL_Z95 1.959963984540054 /* normal quantile of 0.975 */
#define EVAL_TAIL 0.025
#define EVAL_RNG_TAG (UINT64_C(0xE5) << 56)

double eval_pass_at_k(uint32_t n, uint32_t c, uint32_t k)
{
    uint32_t draws = k < n ? k : n;
    if (n == 0 || c == 0 || draws == 0) {
        return 0;
    }
    if (n - c < draws) {
        return 1;
    }
    double none = 1; /* probability that k draws without replacement are all wrong */
    for (uint32_t i = 0; i < draws; i++) {
        none *= (double)(n - c - i) / (double)(n - i);
    }
    return 1 - none;
}

void eval_wilson(uint64_t correct, uint64_t total, struct eval_interval *out)
{
    if (total == 0) {
        *out = (struct eval_interval){.mean = 0, .low = 0, .high = 1};
        return;
    }
    double n = (double)total;
    double p = (double)correct / n;
    double z2 = EVAL_Z95 * EVAL_Z95;
    double middle = (p + z2 / (2 * n)) / (1 + z2 / n);
    double half = EVAL_Z95 / (1 + z2 / n) * sqrt(p * (1 - p) / n + z2 / (4 * n * n));
    *out = (struct eval_interval){
        .mean = p,
        .low = correct == 0 ? 0 : fmax(0, middle - half),
        .high = correct == total ? 1 : fmin(1, middle + half),
    };
}

static int eval_compare(const void *left, const void *right)
{
    double a = *(const double *)left;
    double b = *(const double *)right;
    return (a > b) - (a < b);
}

static double eval_mean(const double *values, uint32_t count)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        sum += values[i];
    }
    return sum / count;
}

/* Quantile of sorted values, linear between neighbours. */
static double eval_quantile(const double *sorted, uint32_t count, double q)
{
    double place = q * (count - 1);
    uint32_t below = (uint32_t)place;
    if (below + 1 >= count) {
        return sorted[count - 1];
    }
    double part = place - below;
    return sorted[below] + part * (sorted[below + 1] - sorted[below]);
}

static void eval_resample(const double *values, uint32_t count, uint64_t seed, double *means)
{
    for (uint32_t r = 0; r < EVAL_RESAMPLES; r++) {
        struct rl_rng_key key = rl_rng_key_make(seed, r, EVAL_RNG_TAG);
        double sum = 0;
        for (uint32_t i = 0; i < count; i++) {
            sum += values[rl_rng_below(key, i, count)];
        }
        means[r] = sum / count;
    }
    qsort(means, EVAL_RESAMPLES, sizeof(*means), eval_compare);
}

static rl_status eval_check_values(const double *values, uint32_t count)
{
    if (count == 0) {
        return rl_fail(RL_INVALID, "evaluation: no problem to take a mean over");
    }
    for (uint32_t i = 0; i < count; i++) {
        if (!isfinite(values[i])) {
            return rl_fail(RL_INVALID, "evaluation: figure of problem %" PRIu32 " is not finite",
                           i);
        }
    }
    return RL_OK;
}

rl_status eval_mean_interval(const double *values, uint32_t count, uint64_t seed,
                             struct eval_interval *out)
{
    RL_TRY(eval_check_values(values, count));
    double *means = calloc(EVAL_RESAMPLES, sizeof(*means));
    if (means == NULL) {
        return rl_fail(RL_NO_MEMORY, "evaluation: no memory for %d resamples", EVAL_RESAMPLES);
    }
    eval_resample(values, count, seed, means);
    *out = (struct eval_interval){
        .mean = eval_mean(values, count),
        .low = eval_quantile(means, EVAL_RESAMPLES, EVAL_TAIL),
        .high = eval_quantile(means, EVAL_RESAMPLES, 1 - EVAL_TAIL),
    };
    free(means);
    return RL_OK;
}

static rl_status eval_check_problems(const struct eval_problem *problems, uint32_t count,
                                     uint32_t k)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct eval_problem *problem = &problems[i];
        if (problem->correct > problem->samples) {
            return rl_fail(RL_INVALID,
                           "evaluation: problem %" PRIu32 " has %" PRIu32 " right of %" PRIu32, i,
                           problem->correct, problem->samples);
        }
        if (k == 0 || k > problem->samples) {
            return rl_fail(RL_INVALID,
                           "evaluation: pass@%" PRIu32 " needs 1 <= k <= samples, problem %" PRIu32
                           " has %" PRIu32 " samples",
                           k, i, problem->samples);
        }
    }
    return RL_OK;
}

rl_status eval_pass_at_k_interval(const struct eval_problem *problems, uint32_t count, uint32_t k,
                                  uint64_t seed, struct eval_interval *out)
{
    RL_TRY(eval_check_problems(problems, count, k));
    double *values = calloc((size_t)count + 1, sizeof(*values));
    if (values == NULL) {
        return rl_fail(RL_NO_MEMORY, "evaluation: no memory for %" PRIu32 " problems", count);
    }
    uint32_t sure = 0;
    uint32_t hopeless = 0;
    for (uint32_t i = 0; i < count; i++) {
        values[i] = eval_pass_at_k(problems[i].samples, problems[i].correct, k);
        sure += values[i] >= 1 ? 1 : 0;
        hopeless += values[i] <= 0 ? 1 : 0;
    }
    rl_status status = eval_mean_interval(values, count, seed, out);
    free(values);
    if (status == RL_OK && (sure == count || hopeless == count)) {
        eval_wilson(sure, count, out);
    }
    return status;
}

double eval_majority(const uint64_t *answer, const uint8_t *correct, uint32_t n)
{
    uint32_t most = 0;
    uint32_t leaders = 0; /* members of the most frequent answers */
    uint32_t right = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t votes = 0;
        for (uint32_t j = 0; j < n; j++) {
            votes += answer[j] == answer[i] ? 1 : 0;
        }
        if (votes > most) {
            most = votes;
            leaders = 0;
            right = 0;
        }
        if (votes == most) {
            leaders++;
            right += correct[i] != 0 ? 1 : 0;
        }
    }
    return leaders > 0 ? (double)right / leaders : 0;
}
