/* Which completions vote together. */
#include "rewards/answer_key.h"

#include <check.h>
#include <stdlib.h>

START_TEST(same_answers)
{
    static const char *const same[][2] = {
        {"3+8=1;1*2=2;#2", "#2"},     {"so it is 7", "7.0"},
        {"\\boxed{1/2} or 9", "0.5"}, {"9 steps\n#### 1,200", "<answer> 1200 </answer> and 3"},
        {"<think>5</think> 6", "6"},  {"<answer>Paris</answer>", "I think\nParis"},
    };
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        ck_assert_uint_ne(answer_key(same[i][0]), 0);
        ck_assert_uint_eq(answer_key(same[i][0]), answer_key(same[i][1]));
    }
}
END_TEST

START_TEST(different_answers)
{
    static const char *const all[] = {"1", "2", "-1", "1/3", "3/1", "50%", "Paris", "paris", "12"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        for (size_t k = 0; k < i; k++) {
            ck_assert_uint_ne(answer_key(all[i]), answer_key(all[k]));
        }
    }
    ck_assert_uint_eq(answer_key(""), 0);
    ck_assert_uint_eq(answer_key("<think>cut off: 4"), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("answer key");
    TCase *tests = tcase_create("all");
    tcase_add_test(tests, same_answers);
    tcase_add_test(tests, different_answers);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
