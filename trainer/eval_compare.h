/* Comparing evaluations: two models over the same problems, several seeds of one setting, and the
 * curve through several. Pure. Problems are the units that a bootstrap resamples; differences are
 * taken problem by problem first, which removes what makes problems easy or hard for both. */
#ifndef FORESIGHT_TRAINER_EVAL_COMPARE_H
#define FORESIGHT_TRAINER_EVAL_COMPARE_H

#include "trainer/eval_stats.h"
#include "transport/count_file.h"

#include <stdbool.h>

/* Mean of right - left over problems, both [count], with a percentile bootstrap over problems.
 * Errors: those of eval_mean_interval. */
rl_status eval_paired_interval(const double *left, const double *right, uint32_t count,
                               uint64_t seed, struct eval_interval *out);

/* Do two tables count the same problems in the same sets? Temperatures may differ.
 * Errors: RL_INVALID, the first difference named. */
rl_status eval_same_problems(const struct count_table *left, const struct count_table *right);

/* Which problems of a table a figure is about. */
struct eval_scope {
    uint32_t set;
    int split; /* COUNT_SPLIT_A, COUNT_SPLIT_B, or -1: both */
};
bool eval_scope_has(const struct eval_scope *scope, const struct count_problem *problem);

/* What a problem is worth. */
enum eval_figure { EVAL_PASS, EVAL_MAJORITY };

struct eval_pick {
    struct eval_scope scope;
    enum eval_figure figure;
    uint32_t temperature; /* index */
    uint32_t k;           /* of pass@k */
};

/* The figure of each problem in scope, in the table's order, into values [problem_count]; *count of
 * them. Errors: RL_INVALID (k is 0 or above a problem's samples). */
rl_status eval_counts_values(const struct count_table *table, const struct eval_pick *pick,
                             double *values, uint32_t *count);

/* Index of a temperature; -1 if it was not evaluated. */
int eval_find_temperature(const struct count_table *table, double temperature);

/* Mean and 95 % Student t interval of `count` >= 2 values (seeds). With one value low and high are
 * NAN. Errors: RL_INVALID (none, or not finite). */
rl_status eval_t_interval(const double *values, uint32_t count, struct eval_interval *out);

/* 0.975 quantile of Student's t with `df` >= 1 degrees of freedom. */
double eval_t_quantile(uint32_t df);

/* Least squares y = c[0] + c[1] x + c[2] x^2. */
struct eval_parabola {
    double c[3];
    double r2;   /* share of the variance explained; NAN if y does not vary */
    double peak; /* x of the maximum; NAN if it opens upwards */
};

/* False if fewer than three different x, so that no parabola is determined; all finite. */
bool eval_parabola_fit(const double *x, const double *y, uint32_t count, struct eval_parabola *out);

#endif
