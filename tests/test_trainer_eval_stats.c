/* pass@k against counting by hand, intervals against known figures and coverage. */
#include "core/rng.h"
#include "trainer/eval_stats.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>

/* Share of k-subsets of n samples that hold one of the first c: every subset is looked at. */
static double pass_by_counting(uint32_t n, uint32_t c, uint32_t k)
{
    uint32_t all = 0;
    uint32_t hit = 0;
    for (uint32_t subset = 0; subset < 1u << n; subset++) {
        if ((uint32_t)__builtin_popcount(subset) == k) {
            all++;
            hit += (subset & ((1u << c) - 1)) != 0 ? 1 : 0;
        }
    }
    return (double)hit / all;
}

START_TEST(pass_at_k_counts_subsets)
{
    for (uint32_t n = 1; n <= 9; n++) {
        for (uint32_t c = 0; c <= n; c++) {
            for (uint32_t k = 1; k <= n; k++) {
                ck_assert_double_eq_tol(eval_pass_at_k(n, c, k), pass_by_counting(n, c, k), 1e-12);
            }
        }
    }
    ck_assert_double_eq(eval_pass_at_k(4, 1, 9), 1); /* k is cut to n */
    ck_assert_double_eq(eval_pass_at_k(0, 0, 1), 0);
    ck_assert(isfinite(eval_pass_at_k(100000, 17, 50000)));
}
END_TEST

START_TEST(pass_at_1_is_the_average)
{
    static const struct eval_problem problems[3] = {{4, 1}, {4, 4}, {2, 1}};
    struct eval_interval got;
    ck_assert_int_eq(eval_pass_at_k_interval(problems, 3, 1, 7, &got), RL_OK);
    ck_assert_double_eq_tol(got.mean, (0.25 + 1 + 0.5) / 3, 1e-12);
    ck_assert_double_le(got.low, got.mean);
    ck_assert_double_ge(got.high, got.mean);
    struct eval_interval again;
    ck_assert_int_eq(eval_pass_at_k_interval(problems, 3, 1, 7, &again), RL_OK);
    ck_assert_double_eq(got.low, again.low);
    ck_assert_double_eq(got.high, again.high);
}
END_TEST

START_TEST(wilson_known_figures)
{
    struct eval_interval got;
    eval_wilson(0, 10, &got); /* z^2 / (n + z^2) */
    ck_assert_double_eq(got.low, 0);
    ck_assert_double_eq_tol(got.high, 0.2775327998, 1e-9);
    eval_wilson(10, 10, &got);
    ck_assert_double_eq(got.high, 1);
    ck_assert_double_eq_tol(got.low, 1 - 0.2775327998, 1e-9);
    eval_wilson(50, 100, &got);
    ck_assert_double_eq_tol(got.low, 0.4038315, 1e-6);
    ck_assert_double_eq_tol(got.high, 0.5961685, 1e-6);
    eval_wilson(0, 0, &got);
    ck_assert_double_eq(got.high - got.low, 1);
}
END_TEST

START_TEST(unanimous_problems_still_have_an_interval)
{
    static const struct eval_problem right[5] = {{2, 2}, {2, 2}, {2, 2}, {2, 2}, {2, 2}};
    static const struct eval_problem wrong[5] = {{2, 0}, {2, 0}, {2, 0}, {2, 0}, {2, 0}};
    struct eval_interval got;
    ck_assert_int_eq(eval_pass_at_k_interval(right, 5, 1, 1, &got), RL_OK);
    ck_assert_double_eq(got.mean, 1);
    ck_assert_double_lt(got.low, 0.7);
    ck_assert_int_eq(eval_pass_at_k_interval(wrong, 5, 2, 1, &got), RL_OK);
    ck_assert_double_eq(got.mean, 0);
    ck_assert_double_gt(got.high, 0.3);
}
END_TEST

/* Of 120 experiments with a known mean about 95 % must hold it. */
START_TEST(bootstrap_covers)
{
    enum { EXPERIMENTS = 120, PROBLEMS = 80 };
    struct rl_rng rng = rl_rng_make(12, 0);
    int covered = 0;
    for (int e = 0; e < EXPERIMENTS; e++) {
        struct eval_problem problems[PROBLEMS];
        for (int i = 0; i < PROBLEMS; i++) {
            double p = rl_rng_next_uniform(&rng); /* mean 0.5 */
            problems[i] = (struct eval_problem){.samples = 4};
            for (int s = 0; s < 4; s++) {
                problems[i].correct += rl_rng_next_uniform(&rng) < p ? 1 : 0;
            }
        }
        struct eval_interval got;
        ck_assert_int_eq(eval_pass_at_k_interval(problems, PROBLEMS, 1, (uint64_t)e, &got), RL_OK);
        covered += got.low <= 0.5 && 0.5 <= got.high ? 1 : 0;
        ck_assert_double_lt(got.high - got.low, 0.2);
    }
    ck_assert_int_ge(covered, 105);
    ck_assert_int_lt(covered, EXPERIMENTS);
}
END_TEST

START_TEST(bad_input_is_refused)
{
    struct eval_interval got;
    static const struct eval_problem more[1] = {{2, 3}};
    static const struct eval_problem few[2] = {{4, 1}, {2, 1}};
    static const double broken[2] = {0.5, NAN};
    ck_assert_int_eq(eval_pass_at_k_interval(more, 1, 1, 0, &got), RL_INVALID);
    ck_assert_int_eq(eval_pass_at_k_interval(few, 2, 4, 0, &got), RL_INVALID);
    ck_assert_int_eq(eval_pass_at_k_interval(few, 2, 0, 0, &got), RL_INVALID);
    ck_assert_int_eq(eval_pass_at_k_interval(few, 0, 1, 0, &got), RL_INVALID);
    ck_assert_int_eq(eval_mean_interval(broken, 2, 0, &got), RL_INVALID);
}
END_TEST

START_TEST(majority)
{
    static const uint64_t answer[5] = {7, 9, 7, 8, 7};
    static const uint8_t sevens[5] = {1, 0, 1, 0, 1};
    static const uint8_t eights[5] = {0, 0, 0, 1, 0};
    ck_assert_double_eq(eval_majority(answer, sevens, 5), 1);
    ck_assert_double_eq(eval_majority(answer, eights, 5), 0);
    ck_assert_double_eq(eval_majority(answer, sevens, 2), 0.5); /* 7 and 9 tie */
    ck_assert_double_eq(eval_majority(answer, sevens, 0), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("eval stats");
    TCase *tests = tcase_create("all");
    tcase_add_test(tests, pass_at_k_counts_subsets);
    tcase_add_test(tests, pass_at_1_is_the_average);
    tcase_add_test(tests, wilson_known_figures);
    tcase_add_test(tests, unanimous_problems_still_have_an_interval);
    tcase_add_test(tests, bootstrap_covers);
    tcase_add_test(tests, bad_input_is_refused);
    tcase_add_test(tests, majority);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
