/* Patterns over text: what they find, and where they give up. */
#include "rewards/text_pattern.h"

#include <check.h>

static void check_found(const char *pattern, const char *text, const char *expected)
{
    struct text_pattern *p = NULL;
    struct rl_text found;
    rl_text_init(&found, 1000);
    ck_assert_int_eq(text_pattern_create("test", pattern, &p), RL_OK);
    rl_status status = text_pattern_extract(p, text, &found);
    ck_assert_int_eq(status, expected[0] != '\0' ? RL_OK : RL_NOT_FOUND);
    ck_assert_str_eq(rl_text_str(&found), expected);
    ck_assert_int_eq(text_pattern_match(p, text), expected[0] != '\0' ? RL_OK : RL_NOT_FOUND);
    rl_text_fini(&found);
    text_pattern_destroy(p);
}

START_TEST(finds_everything)
{
    check_found("[0-9]+", "12 a 3\n45", "12\n3\n45\n");
    check_found("<<(.*?)>>", "<<1+2=3>> so <<>> <<4>>", "1+2=3\n\n4\n");
    check_found("x|(y)", "xyx", "x\ny\nx\n"); /* a group that takes no part: the whole match */
    check_found("q", "", "");
    check_found("z", "abc", "");
    check_found("b*",
                "\xc3\xa4"
                "b",
                "\nb\n\n"); /* empty matches, never inside of a character */
    check_found("a",
                "\xff\xfe"
                "a",
                "a\n");
}
END_TEST

START_TEST(refuses)
{
    struct text_pattern *p = NULL;
    struct rl_text found;
    rl_text_init(&found, 4);
    ck_assert_int_eq(text_pattern_create("test", "(", &p), RL_INVALID);
    ck_assert_int_eq(text_pattern_create("test", "a", &p), RL_OK);
    ck_assert_int_eq(text_pattern_extract(p, "aaaaaaa", &found), RL_TOO_LONG);
    text_pattern_destroy(p);
    ck_assert_int_eq(text_pattern_create("test", "(a+)+$", &p), RL_OK);
    ck_assert_int_eq(text_pattern_match(p, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"),
                     RL_INVALID);
    text_pattern_destroy(p);
    text_pattern_destroy(NULL);
    rl_text_fini(&found);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rewards_text_pattern");
    TCase *tcase = tcase_create("all");
    tcase_add_test(tcase, finds_everything);
    tcase_add_test(tcase, refuses);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
