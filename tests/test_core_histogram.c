/* Durations in doubling buckets: where they fall and what quantiles come out. */
#include "core/histogram.h"

#include <check.h>
#include <stdlib.h>

START_TEST(buckets_double)
{
    static const double us[] = {-5, 0, 0.5, 1, 1.9, 2, 3.9, 4, 1023, 1025, 1e30};
    static const int bucket[] = {0, 0, 0, 1, 1, 2, 2, 3, 10, 11, RL_HISTOGRAM_BUCKETS - 1};
    for (size_t i = 0; i < sizeof us / sizeof us[0]; i++) {
        uint64_t counts[RL_HISTOGRAM_BUCKETS] = {0};
        rl_histogram_add(counts, us[i] * 1e-6);
        ck_assert_msg(counts[bucket[i]] == 1, "%g us is not in bucket %d", us[i], bucket[i]);
    }
}
END_TEST

START_TEST(quantiles_lie_in_their_buckets)
{
    uint64_t counts[RL_HISTOGRAM_BUCKETS] = {0};
    ck_assert_double_eq(rl_histogram_quantile_us(counts, 0.5), 0);
    counts[3] = 98; /* 4 .. 8 us */
    counts[9] = 2;  /* 256 .. 512 us */
    ck_assert_double_eq_tol(rl_histogram_quantile_us(counts, 0.49), 6, 1e-9);
    ck_assert_double_eq_tol(rl_histogram_quantile_us(counts, 0.98), 8, 1e-9);
    ck_assert_double_eq_tol(rl_histogram_quantile_us(counts, 0.99), 384, 1e-9);
    ck_assert_double_eq_tol(rl_histogram_quantile_us(counts, 1), 512, 1e-9);
    ck_assert_double_eq_tol(rl_histogram_quantile_us(counts, 0), 4, 1e-9);
}
END_TEST

START_TEST(ranks_add_up_and_new_processes_begin_anew)
{
    struct rl_pass_times sum = {0};
    struct rl_pass_times before = {.pass_us = {[4] = 7}, .switch_gap_us = {[2] = 1}};
    struct rl_pass_times now = {.pass_us = {[4] = 9},
                                .switch_gap_us = {[2] = 3},
                                .switch_gap_max_s = 2,
                                .guessed_tokens = 5};
    struct rl_pass_times anew = {.pass_us = {[4] = 1}, .switch_gap_max_s = 1};
    rl_pass_times_add(&sum, &now, &before);
    ck_assert_uint_eq(sum.pass_us[4], 2);
    ck_assert_uint_eq(sum.switch_gap_us[2], 2);
    rl_pass_times_add(&sum, &anew, &now);
    rl_pass_times_add(&sum, &anew, NULL);
    ck_assert_uint_eq(sum.pass_us[4], 4);
    ck_assert_uint_eq(sum.switch_gap_us[2], 2);
    ck_assert_double_eq(sum.switch_gap_max_s, 2);
    ck_assert_uint_eq(sum.guessed_tokens, 5);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("histogram");
    TCase *tests = tcase_create("histogram");
    tcase_add_test(tests, buckets_double);
    tcase_add_test(tests, quantiles_lie_in_their_buckets);
    tcase_add_test(tests, ranks_add_up_and_new_processes_begin_anew);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
