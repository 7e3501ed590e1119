/* The `countdown` reward: puzzles in every spelling of the data sets, the expression parser, and
 * what must not count as a solution. */
#include "rewards/reward_ops.h"

#include <check.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const struct reward_ops reward_countdown_ops;

static struct reward_output score(const char *completion, const char *gold, const char *row)
{
    struct reward_input input = {"", completion, gold, "", row, false};
    struct reward_output out = {false, 0.0, ""};
    reward_countdown_ops.score(NULL, &input, &out);
    return out;
}

static int verdict(const char *completion, const char *gold, const char *row)
{
    struct reward_output out = score(completion, gold, row);
    return out.valid ? (int)out.value : -1;
}

static const char puzzle[] = "{\"target\":24,\"numbers\":[8,3,1,2]}";

START_TEST(puzzle_sources)
{
    static const char *const rows[] = {
        "{\"numbers\":[8,3,1],\"target\":24}",
        "{\"nums\":[8,3,1],\"target\":\"24\"}",
        "{\"nums\":[\"8\",\"3\",\"1\"]}",
        "{\"prompt\":\"x\",\"answer\":\"24\",\"meta\":{\"numbers\":[8,3,1],\"target\":24}}",
        "{\"extra_info\":{\"numbers\":[8,3,1],\"target\":24}}",
        "{\"reward_model\":{\"ground_truth\":{\"numbers\":[8,3,1],\"target\":24}}}",
        "{\"input\":\"8,3, 1\",\"output\":\"24\"}",
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        ck_assert_msg(verdict("8*3*1", "24", rows[i]) == 1, "row %s", rows[i]);
        ck_assert_msg(verdict("8+3+1", "24", rows[i]) == 0, "row %s", rows[i]);
    }
    ck_assert_int_eq(verdict("8*3*1", "{\"target\":24,\"numbers\":[8,3,1]}", "{}"), 1);
}
END_TEST

START_TEST(unscorable_rows)
{
    static const char *const rows[] = {
        "{}",
        "not json",
        "[1,2]",
        "{\"target\":24}",
        "{\"numbers\":[],\"target\":24}",
        "{\"numbers\":[8,\"x\",1],\"target\":24}",
        "{\"numbers\":[8,3.5,1],\"target\":24}",
        "{\"numbers\":[8,-3,1],\"target\":24}",
        "{\"numbers\":\"8,3,1\",\"target\":24}",
        "{\"input\":\"8,3,\",\"output\":\"24\"}",
        "{\"input\":\"8,3,1\",\"output\":\"many\"}",
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        ck_assert_msg(verdict("8*3*1", "", rows[i]) == -1, "row %s", rows[i]);
    }
}
END_TEST

START_TEST(right_answers)
{
    static const char *const texts[] = {
        "8 * 3 * (2 - 1)",
        "<answer>8*3*(2-1)</answer>",
        "<think>8+3+1+2 = 14, no</think> <answer> (8 * 3) * (2 - 1) </answer>.",
        "8+3+2+1 is 14.\n#### 8*3*(2-1)",
        "\\boxed{8 \\times 3 \\cdot \\left(2 - 1\\right)}",
        "Let me see.\n8\xc3\x97"
        "3\xc3\xb7(2\xe2\x88\x92"
        "1)",
        "8*3*(2-1) = 24",
        "8*3*(2-1) = 12*2",
        "$8*3*(2-1)$",
        "-8*-3*(2-1)",
        "3/(1/8)*(2/2)", /* wrong numbers, see below */
        "3/(1/8)/1*2",   /* wrong numbers, see below */
    };
    size_t wrong_tail = 2;
    size_t count = sizeof(texts) / sizeof(texts[0]);
    for (size_t i = 0; i < count; i++) {
        int expected = i + wrong_tail < count;
        ck_assert_msg(verdict(texts[i], puzzle, "{}") == expected, "text %s: %s", texts[i],
                      score(texts[i], puzzle, "{}").reason);
    }
    ck_assert_int_eq(verdict("8/(3-8/3)", "{\"target\":24,\"numbers\":[3,3,8,8]}", "{}"), 1);
}
END_TEST

START_TEST(wrong_answers)
{
    static const char *const texts[] = {
        "",
        "24",
        "8*3",
        "8*3*(2-1)*1/1",
        "8*3*2-1",
        "8*3*(2-1) = 25",
        "8*3*(2-1) = ",
        "8*3*(2-1) = 24 = 24",
        "8*3(2-1)",
        "8*3*(2-1",
        "8*3*2-1)",
        "8**3*(2-1)",
        "83*(2-1)",
        "8*3*(2-1)/(1-1)",
        "8 3 2 1",
        "+",
        "()",
        "8*3*(2-1) or 24",
        "__import__('os')",
        "99999999999999999999*0+8*3*(2-1)",
        "<answer>8*3*(2-1)",
        "<answer>8*3*(2-1)</answer> <answer>8</answer>",
        "<think>8*3*(2-1)",
        "8.0*3*(2-1)",
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        ck_assert_msg(verdict(texts[i], puzzle, "{}") == 0, "text %s", texts[i]);
    }
}
END_TEST

START_TEST(hostile_expressions)
{
    enum { MANY = 4000 };
    static const char *const pieces[] = {"(", "-", "9*", "9-", "1/", "9", ")", " "};
    for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
        char text[MANY + 16] = "";
        size_t bytes = strlen(pieces[i]);
        for (size_t at = 0; at + bytes <= MANY; at += bytes) {
            memcpy(text + at, pieces[i], bytes);
        }
        text[strlen(text)] = '1';
        ck_assert_int_eq(verdict(text, puzzle, "{}"), 0);
    }
    char *nested = calloc(1, 100001);
    ck_assert_ptr_nonnull(nested);
    memset(nested, '[', 100000);
    ck_assert_int_eq(verdict("1", nested, nested), -1);
    ck_assert_int_eq(verdict(nested, puzzle, "{}"), 0);
    free(nested);
}
END_TEST

/* Every solution that the synthetic data set gives for itself counts, where the set is at hand. */
START_TEST(synthetic_solutions)
{
    FILE *file =
        fopen(FORESIGHT_SOURCE_DIR "/../shared/data/datasets/synthetic/countdown.train.jsonl", "r");
    char *line = NULL;
    size_t capacity = 0;
    int rows = 0;
    while (file != NULL && getline(&line, &capacity, file) > 0) {
        json_t *row = json_loads(line, 0, NULL);
        const json_t *meta = json_object_get(row, "meta");
        const char *solution = json_string_value(json_object_get(meta, "solution"));
        const char *answer = json_string_value(json_object_get(row, "answer"));
        ck_assert_msg(verdict(solution, answer, line) == 1, "row %s", line);
        json_decref(row);
        rows++;
    }
    free(line);
    if (file != NULL) {
        ck_assert_int_eq(rows, 10000);
        fclose(file);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rewards_countdown");
    TCase *tcase = tcase_create("countdown");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, puzzle_sources);
    tcase_add_test(tcase, unscorable_rows);
    tcase_add_test(tcase, right_answers);
    tcase_add_test(tcase, wrong_answers);
    tcase_add_test(tcase, hostile_expressions);
    tcase_add_test(tcase, synthetic_solutions);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
