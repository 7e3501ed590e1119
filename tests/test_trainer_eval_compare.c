/* Paired intervals against every resample there is, Student's t against known quantiles, parabolas
 * through known points, and what is refused. */
#include "trainer/eval_compare.h"

#include "core/rng.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>

enum { FEW = 6, ALL = 46656 }; /* 6^6 resamples */

static int compare_doubles(const void *left, const void *right)
{
    double a = *(const double *)left;
    double b = *(const double *)right;
    return (a > b) - (a < b);
}

START_TEST(paired_interval_against_all_resamples)
{
    static const double left[FEW] = {0.5, 0.25, 1, 0, 0.75, 0.1};
    static const double right[FEW] = {0.75, 0.25, 0.9, 0.4, 1, 0.7};
    static double means[ALL];
    for (int r = 0; r < ALL; r++) {
        int rest = r;
        means[r] = 0;
        for (int i = 0; i < FEW; i++) {
            means[r] += (right[rest % FEW] - left[rest % FEW]) / FEW;
            rest /= FEW;
        }
    }
    qsort(means, ALL, sizeof *means, compare_doubles);
    struct eval_interval got;
    ck_assert_int_eq(eval_paired_interval(left, right, FEW, 5, &got), RL_OK);
    ck_assert_double_eq_tol(got.mean, (0.25 - 0.1 + 0.4 + 0.25 + 0.6) / FEW, 1e-12);
    /* 2,000 draws find the 2.5 % quantile between the exact 1.5 % and 3.5 % ones */
    ck_assert_double_ge(got.low, means[ALL * 15 / 1000]);
    ck_assert_double_le(got.low, means[ALL * 35 / 1000]);
    ck_assert_double_ge(got.high, means[ALL * 965 / 1000]);
    ck_assert_double_le(got.high, means[ALL * 985 / 1000]);
    struct eval_interval again;
    ck_assert_int_eq(eval_paired_interval(left, right, FEW, 5, &again), RL_OK);
    ck_assert_double_eq(got.low, again.low);
    ck_assert_double_eq(got.high, again.high);
}
END_TEST

START_TEST(pairing_removes_what_both_share)
{
    enum { COUNT = 200 };
    double left[COUNT];
    double right[COUNT];
    struct rl_rng rng = rl_rng_make(3, 1);
    for (int i = 0; i < COUNT; i++) {
        left[i] = rl_rng_next_uniform(&rng);
        right[i] = left[i] + 0.05 + 0.01 * rl_rng_next_normal(&rng);
    }
    struct eval_interval single;
    struct eval_interval paired;
    ck_assert_int_eq(eval_mean_interval(left, COUNT, 1, &single), RL_OK);
    ck_assert_int_eq(eval_paired_interval(left, right, COUNT, 1, &paired), RL_OK);
    ck_assert_double_lt(10 * (paired.high - paired.low), single.high - single.low);
    ck_assert_double_lt(fabs(paired.mean - 0.05), 0.005);
}
END_TEST

START_TEST(student_t)
{
    ck_assert_double_eq_tol(eval_t_quantile(1), 12.706204736174, 1e-8);
    ck_assert_double_eq_tol(eval_t_quantile(2), 4.302652729749, 1e-8);
    ck_assert_double_eq_tol(eval_t_quantile(30), 2.042272456301, 1e-8);
    ck_assert_double_eq_tol(eval_t_quantile(31), 2.039513446396, 1e-5);
    ck_assert_double_eq_tol(eval_t_quantile(60), 2.000297821058, 1e-6);
    ck_assert_double_eq_tol(eval_t_quantile(1000), 1.962339080792, 1e-8);
    static const double values[3] = {1, 2, 6};
    struct eval_interval got;
    ck_assert_int_eq(eval_t_interval(values, 3, &got), RL_OK);
    ck_assert_double_eq_tol(got.mean, 3, 1e-12);
    ck_assert_double_eq_tol(got.high - got.mean, 4.302652729749 * sqrt(7.0 / 3), 1e-7);
    ck_assert_int_eq(eval_t_interval(values, 1, &got), RL_OK);
    ck_assert(got.mean == 1 && isnan(got.low) && isnan(got.high));
    ck_assert_int_eq(eval_t_interval(values, 0, &got), RL_INVALID);
}
END_TEST

START_TEST(parabolas)
{
    static const double x[6] = {0.3, 0.6, 0.9, 1.2, 1.5, 1.8};
    double y[6];
    struct eval_parabola fit;
    for (int i = 0; i < 6; i++) {
        y[i] = 0.4 - 0.3 * (x[i] - 1.1) * (x[i] - 1.1);
    }
    ck_assert(eval_parabola_fit(x, y, 6, &fit));
    ck_assert_double_eq_tol(fit.peak, 1.1, 1e-9);
    ck_assert_double_eq_tol(fit.r2, 1, 1e-12);
    ck_assert_double_eq_tol(fit.c[2], -0.3, 1e-9);
    ck_assert_double_eq_tol(fit.c[0] + fit.c[1] * 1.1 + fit.c[2] * 1.21, 0.4, 1e-9);
    /* the least squares parabola of these leaves known residuals: y = 1, 0, 0, 1 over -1.5 .. 1.5
     */
    static const double u[4] = {-1.5, -0.5, 0.5, 1.5};
    static const double v[4] = {1, 0.2, -0.2, 1};
    ck_assert(eval_parabola_fit(u, v, 4, &fit));
    ck_assert_double_eq_tol(fit.c[2], 0.5, 1e-9); /* (1 - 0.2 + 0.2 + 1) / 4 */
    ck_assert_double_eq_tol(fit.c[1], -0.04, 1e-9);
    ck_assert(isnan(fit.peak));
    static const double two[4] = {1, 1, 2, 2};
    ck_assert(!eval_parabola_fit(two, v, 4, &fit));
    ck_assert(!eval_parabola_fit(two, v, 1, &fit));
}
END_TEST

static struct count_table *make_table(uint32_t problems, uint64_t salt)
{
    struct count_table *table = NULL;
    ck_assert_int_eq(count_table_create(problems, 2, &table), RL_OK);
    table->temperatures[0] = 0.7;
    table->temperatures[1] = 1;
    for (uint32_t p = 0; p < problems; p++) {
        table->problems[p].id = salt + 3 * (uint64_t)p;
        table->problems[p].split = count_problem_split(table->problems[p].id);
        for (uint32_t t = 0; t < 2; t++) {
            *count_table_at(table, t, p) =
                (struct count_cell){.samples = 4, .correct = (p + t) % 5, .majority = 0.5 * t};
        }
    }
    return table;
}

START_TEST(values_in_scope)
{
    struct count_table *table = make_table(40, 100);
    double values[40];
    uint32_t counts[2] = {0};
    for (int split = COUNT_SPLIT_A; split <= COUNT_SPLIT_B; split++) {
        struct eval_pick pick = {.scope = {0, split}, .temperature = 1, .k = 2};
        ck_assert_int_eq(eval_counts_values(table, &pick, values, &counts[split]), RL_OK);
        uint32_t at = 0;
        for (uint32_t p = 0; p < 40; p++) {
            if (table->problems[p].split == split) {
                ck_assert_double_eq(values[at++], eval_pass_at_k(4, (p + 1) % 5, 2));
            }
        }
    }
    ck_assert_uint_eq(counts[0] + counts[1], 40);
    ck_assert(counts[0] > 5 && counts[1] > 5);
    struct eval_pick majority = {.scope = {0, -1}, .figure = EVAL_MAJORITY, .temperature = 1};
    ck_assert_int_eq(eval_counts_values(table, &majority, values, &counts[0]), RL_OK);
    ck_assert(counts[0] == 40 && values[7] == 0.5);
    struct eval_pick beyond = {.scope = {0, -1}, .k = 5};
    ck_assert_int_eq(eval_counts_values(table, &beyond, values, &counts[0]), RL_INVALID);
    ck_assert_int_eq(eval_find_temperature(table, 0.7), 0);
    ck_assert_int_eq(eval_find_temperature(table, 0.8), -1);
    count_table_destroy(table);
}
END_TEST

START_TEST(other_problems_are_refused)
{
    struct count_table *table = make_table(20, 100);
    struct count_table *same = make_table(20, 100);
    struct count_table *fewer = make_table(19, 100);
    struct count_table *other = make_table(20, 101);
    ck_assert_int_eq(eval_same_problems(table, same), RL_OK);
    ck_assert_int_eq(eval_same_problems(table, fewer), RL_INVALID);
    ck_assert_int_eq(eval_same_problems(table, other), RL_INVALID);
    same->problems[19].set = 1;
    ck_assert_int_eq(eval_same_problems(table, same), RL_INVALID);
    count_table_destroy(table);
    count_table_destroy(same);
    count_table_destroy(fewer);
    count_table_destroy(other);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("eval compare");
    TCase *tests = tcase_create("all");
    tcase_add_test(tests, paired_interval_against_all_resamples);
    tcase_add_test(tests, pairing_removes_what_both_share);
    tcase_add_test(tests, student_t);
    tcase_add_test(tests, parabolas);
    tcase_add_test(tests, values_in_scope);
    tcase_add_test(tests, other_problems_are_refused);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
