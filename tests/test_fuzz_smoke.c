/* Two seconds of fuzzing for each reader of foreign bytes (scripts/fuzz goes on for longer): the
 * seeds are accepted, some mutants are refused, none crashes, hangs or breaks a promise. */
#include "core/log.h"
#include "tests/fuzz_driver.h"

#include <check.h>

START_TEST(two_seconds)
{
    struct fuzz_result result = fuzz_run(&fuzz_targets[_i], 20240901, 2.0, NULL);
    ck_assert_msg(result.seeds_accepted == result.seeds, "%s: %llu of %llu seeds accepted",
                  fuzz_targets[_i].name, (unsigned long long)result.seeds_accepted,
                  (unsigned long long)result.seeds);
    ck_assert_uint_gt(result.runs, 50);
    ck_assert_uint_lt(result.accepted, result.runs);
    ck_assert_msg(result.slowest_s < 10.0, "%s: an input took %.1f s", fuzz_targets[_i].name,
                  result.slowest_s);
}
END_TEST

int main(void)
{
    rl_log_set_level((enum rl_log_level) - 1);
    Suite *suite = suite_create("fuzz smoke");
    TCase *tests = tcase_create("targets");
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, two_seconds, 0, FUZZ_TARGETS);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
