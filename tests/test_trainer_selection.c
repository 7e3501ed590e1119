/* What self-distillation keeps, on a set counted by hand. */
#include "trainer/selection.h"

#include <check.h>
#include <math.h>
#include <string.h>

/* Prompt 0: mixed. 1: all wrong. 2: all right. 3: one empty, one without a reward, one truncated.
 */
static const struct selection_sample set[] = {
    {.prompt = 0, .text = "a=1", .length = 5, .valid = true, .reward = 1, .accuracy = 1},
    {.prompt = 0, .text = "a=2", .length = 4, .valid = true, .reward = 0.2F},
    {.prompt = 0, .text = " a=1\n", .length = 7, .valid = true, .reward = 1, .accuracy = 1},
    {.prompt = 0, .text = "b\na=1", .length = 9, .valid = true, .reward = 1, .accuracy = 1},
    {.prompt = 1, .text = "c", .length = 2, .valid = true, .reward = 0},
    {.prompt = 1, .text = "d", .length = 3, .valid = true, .reward = 0.1F},
    {.prompt = 2, .text = "e", .length = 6, .valid = true, .reward = 1, .accuracy = 1},
    {.prompt = 2, .text = "f\ng", .length = 8, .valid = true, .reward = 1, .accuracy = 1},
    {.prompt = 3, .text = " \n", .length = 1, .valid = true, .reward = 1, .accuracy = 1},
    {.prompt = 3, .text = "h\ni", .length = 10},
    {.prompt = 3, .text = "j\nk", .length = 11, .truncated = true, .valid = true, .accuracy = 0},
};
enum { COUNT = sizeof(set) / sizeof(set[0]) };

static enum selection_verdict verdict[COUNT];
static float weight[COUNT];
static struct selection_counts counts;

static void run(const struct selection_options *options)
{
    uint64_t sum = 0;
    ck_assert_int_eq(selection_run(options, set, COUNT, verdict, weight, &counts), RL_OK);
    for (int v = 0; v < SELECTION_VERDICT_COUNT; v++) {
        sum += counts.verdict[v];
    }
    ck_assert_uint_eq(sum, COUNT);
    ck_assert_uint_eq(counts.samples, COUNT);
    for (int i = 0; i < COUNT; i++) {
        ck_assert((weight[i] != 0) == (verdict[i] == SELECTION_KEPT));
    }
}

/* Kept samples as a string of their numbers in base 11. */
static void check_kept(const char *expected)
{
    char kept[COUNT + 1];
    size_t at = 0;
    for (int i = 0; i < COUNT; i++) {
        if (verdict[i] == SELECTION_KEPT) {
            kept[at++] = "0123456789A"[i];
        }
    }
    kept[at] = '\0';
    ck_assert_str_eq(kept, expected);
}

START_TEST(masks)
{
    struct selection_options options = {.degenerate = CONFIG_DEGENERATE_EMPTY};
    run(&options);
    check_kept("012345679A");
    ck_assert_uint_eq(counts.verdict[SELECTION_EMPTY], 1);
    options.select = CONFIG_SELECT_CORRECT;
    run(&options);
    check_kept("02367");
    ck_assert_uint_eq(counts.verdict[SELECTION_WRONG], 4);
    ck_assert_uint_eq(counts.verdict[SELECTION_UNSCORED], 1);
    options.select = CONFIG_SELECT_BEST_OF_N;
    run(&options);
    check_kept("056A");
    ck_assert_uint_eq(counts.verdict[SELECTION_NOT_BEST], 5);
    /* An empty right answer still says that its prompt is not all wrong. */
    options.select = CONFIG_SELECT_NOT_ALL_WRONG;
    run(&options);
    check_kept("012367A");
    ck_assert_uint_eq(counts.verdict[SELECTION_ALL_WRONG], 2);
    options.select = CONFIG_SELECT_MIXED_ONLY;
    run(&options);
    check_kept("0123A");
    ck_assert_uint_eq(counts.verdict[SELECTION_ALL_RIGHT], 2);
}
END_TEST

START_TEST(filters)
{
    struct selection_options options = {.degenerate = CONFIG_DEGENERATE_STUB};
    run(&options);
    check_kept("379A");
    ck_assert_uint_eq(counts.verdict[SELECTION_STUB], 6);
    options = (struct selection_options){.drop_truncated = true};
    run(&options);
    check_kept("0123456789");
    options = (struct selection_options){.dedupe = true};
    run(&options);
    check_kept("013456789A");
    ck_assert_int_eq(verdict[2], SELECTION_DUPLICATE);
    /* A quarter of 11 is 2: lengths 1 and 2. */
    options = (struct selection_options){.drop_shortest = 0.25};
    run(&options);
    check_kept("01235679A");
    ck_assert_int_eq(verdict[4], SELECTION_SHORT);
    options = (struct selection_options){
        .select = CONFIG_SELECT_CORRECT, .dedupe = true, .max_per_prompt = 1};
    run(&options);
    check_kept("068");
    ck_assert_int_eq(verdict[2], SELECTION_DUPLICATE);
    ck_assert_int_eq(verdict[3], SELECTION_CAPPED);
}
END_TEST

/* What a pattern found decides, where there is something. */
START_TEST(paths)
{
    struct selection_sample samples[] = {{.text = "x", .path = "1+2\n", .length = 1},
                                         {.text = "y", .path = "1+2\n", .length = 1},
                                         {.text = "x", .length = 1},
                                         {.prompt = 1, .text = "z", .path = "1+2\n", .length = 1}};
    struct selection_options options = {.dedupe = true};
    ck_assert_int_eq(selection_run(&options, samples, 4, verdict, weight, &counts), RL_OK);
    ck_assert_int_eq(verdict[0], SELECTION_KEPT);
    ck_assert_int_eq(verdict[1], SELECTION_DUPLICATE);
    ck_assert_int_eq(verdict[2], SELECTION_KEPT);
    ck_assert_int_eq(verdict[3], SELECTION_KEPT);
}
END_TEST

START_TEST(weights)
{
    struct selection_options options = {.weight = CONFIG_WEIGHT_REWARD};
    run(&options);
    check_kept("01235678");
    ck_assert_float_eq(weight[1], 0.2F);
    ck_assert_uint_eq(counts.verdict[SELECTION_WEIGHTLESS], 2);
    struct selection_sample samples[] = {
        {.text = "x", .length = 1, .valid = true, .advantage = -0.5F},
        {.text = "y", .length = 1, .valid = true, .advantage = 0},
        {.text = "z", .length = 1, .valid = true, .advantage = NAN}};
    options.weight = CONFIG_WEIGHT_ADVANTAGE;
    ck_assert_int_eq(selection_run(&options, samples, 2, verdict, weight, &counts), RL_OK);
    ck_assert_float_eq(weight[0], -0.5F);
    ck_assert_int_eq(verdict[1], SELECTION_WEIGHTLESS);
    ck_assert_int_eq(selection_run(&options, samples, 3, verdict, weight, &counts), RL_INVALID);
    options.weight = CONFIG_WEIGHT_IMPORTANCE;
    ck_assert_int_eq(selection_run(&options, samples, 3, verdict, weight, &counts), RL_OK);
    ck_assert_float_eq(weight[2], 1.0F);
}
END_TEST

START_TEST(nothing)
{
    struct selection_options options = {.dedupe = true, .drop_shortest = 0.5};
    ck_assert_int_eq(selection_run(&options, set, 0, verdict, weight, &counts), RL_OK);
    ck_assert_uint_eq(counts.samples, 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("trainer_selection");
    TCase *tcase = tcase_create("all");
    tcase_add_test(tcase, masks);
    tcase_add_test(tcase, filters);
    tcase_add_test(tcase, paths);
    tcase_add_test(tcase, weights);
    tcase_add_test(tcase, nothing);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
