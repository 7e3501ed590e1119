/* Sets of rewards: the syntax of rewards.functions, weights, unscorable parts, the overlong
 * punishment; and the small functions `exact` and `format`. */
#include "core/log.h"
#include "rewards/rational.h"
#include "rewards/reward.h"
#include "rewards/reward_ops.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

extern const struct reward_ops reward_exact_ops;

static struct rl_config make_config(const char *functions)
{
    struct rl_config config;
    memset(&config, 0, sizeof(config));
    config.rewards.functions = (char *)(uintptr_t)functions;
    config.rewards.format_pattern = "^<think>.*</think>";
    config.rewards.overlong_factor = 1.0;
    config.rollout.max_completion_length = 20480;
    return config;
}

static struct reward_set *make_set(const struct rl_config *config)
{
    struct reward_set *set = NULL;
    ck_assert_int_eq(reward_set_create(config, &set), RL_OK);
    return set;
}

static struct trajectory score(const struct reward_set *set, const char *completion,
                               const char *gold, uint32_t tokens)
{
    struct reward_input input = {"", completion, gold, "", "{}", false};
    struct trajectory sample;
    memset(&sample, 0, sizeof(sample));
    sample.completion_count = tokens;
    reward_set_score(set, &input, &sample);
    return sample;
}

START_TEST(weighted_sum)
{
    struct rl_config config = make_config(" numeric*0.8 , format * 0.2,exact*-1e-1");
    struct reward_set *set = make_set(&config);
    ck_assert_uint_eq(reward_set_count(set), 3);
    ck_assert_str_eq(reward_set_name(set, 0), "numeric");
    ck_assert_str_eq(reward_set_name(set, 1), "format");
    ck_assert_str_eq(reward_set_name(set, 2), "exact");
    struct trajectory sample = score(set, "<think>a</think>x = 5", "5", 1);
    ck_assert(sample.reward_valid);
    ck_assert_uint_eq(sample.reward_part_count, 3);
    ck_assert_float_eq_tol(sample.reward, 1.0F, 1e-6F);
    ck_assert_float_eq(sample.accuracy, 1.0F);
    sample = score(set, "5", "5", 1);
    ck_assert_float_eq_tol(sample.reward, 0.7F, 1e-6F);
    ck_assert_float_eq(sample.reward_part[1], 0.0F);
    reward_set_destroy(set);
}
END_TEST

START_TEST(unscorable_parts)
{
    struct rl_config config = make_config("numeric,format*0.5");
    struct reward_set *set = make_set(&config);
    struct trajectory sample = score(set, "<think>a</think>5", "five", 1);
    ck_assert(sample.reward_valid);
    ck_assert_float_eq_tol(sample.reward, 0.5F, 1e-6F);
    ck_assert_float_eq(sample.accuracy, 0.0F);
    reward_set_destroy(set);
    config.rewards.functions = "numeric";
    set = make_set(&config);
    sample = score(set, "5", "five", 1);
    ck_assert(!sample.reward_valid);
    ck_assert_float_eq(sample.reward, 0.0F);
    struct reward_input input = {"", "5", "five", "", "{}", false};
    struct reward_output part;
    reward_set_evaluate(set, &input, &part);
    ck_assert(!part.valid);
    ck_assert_str_eq(part.reason, "the ground truth is not a number");
    reward_set_destroy(set);
}
END_TEST

START_TEST(overlong_vector)
{
    static const struct {
        uint32_t tokens;
        double punishment;
    } rows[] = {{0, 0.0}, {16384, 0.0}, {16385, -0.000244141}, {18432, -0.5}, {20480, -1.0}};
    struct rl_config config = make_config("numeric");
    config.rewards.overlong_buffer = 4096;
    struct reward_set *set = make_set(&config);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct trajectory sample = score(set, "5", "5", rows[i].tokens);
        ck_assert_float_eq_tol(sample.reward, (float)(1.0 + rows[i].punishment), 1e-6F);
        ck_assert_float_eq(sample.accuracy, 1.0F);
    }
    ck_assert(!score(set, "5", "five", 20480).reward_valid);
    reward_set_destroy(set);
    config.rewards.overlong_factor = 0.5;
    set = make_set(&config);
    ck_assert_float_eq_tol(score(set, "4", "5", 20480).reward, -0.5F, 1e-6F);
    reward_set_destroy(set);
}
END_TEST

static void check_refused(struct rl_config *config, const char *part_of_message)
{
    struct reward_set *set = NULL;
    ck_assert_int_eq(reward_set_create(config, &set), RL_INVALID);
    ck_assert_ptr_null(set);
    ck_assert_msg(strstr(rl_log_last_error(), part_of_message) != NULL, "\"%s\" lacks \"%s\"",
                  rl_log_last_error(), part_of_message);
}

START_TEST(refused_configs)
{
    static const char *const rows[][2] = {
        {"", "empty"},
        {"  ", "empty"},
        {"numric", "did you mean \"numeric\""},
        {"numeric,", "unknown reward function \"\""},
        {"zzzzzzzzzzzz", "exact, numeric, countdown, format"},
        {"numeric,numeric*2", "named twice"},
        {"numeric*", "bad weight"},
        {"numeric*x", "bad weight"},
        {"numeric*1.0x", "bad weight"},
        {"numeric*nan", "bad weight"},
        {"numeric*inf", "bad weight"},
        {"numeric*1e300", "bad weight"},
        {"Numeric", "unknown reward function"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct rl_config config = make_config(rows[i][0]);
        check_refused(&config, rows[i][1]);
    }
    struct rl_config config = make_config("format");
    config.rewards.format_pattern = "";
    check_refused(&config, "rewards.format_pattern");
    config.rewards.format_pattern = "(a";
    check_refused(&config, "rewards.format_pattern");
    config = make_config("numeric");
    config.rewards.overlong_buffer = 20481;
    check_refused(&config, "rewards.overlong_buffer");
}
END_TEST

START_TEST(long_unknown_name)
{
    char name[100001];
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    struct rl_config config = make_config(name);
    check_refused(&config, "unknown reward function");
}
END_TEST

START_TEST(exact_answers)
{
    static const struct {
        const char *completion;
        const char *gold;
        int expected;
    } rows[] = {
        {" Paris\n", "Paris", 1},
        {"paris", "Paris", 0},
        {"It is in France.\n\nParis \n", "Paris", 1},
        {"Paris or London", "Paris", 0},
        {"<answer> Paris </answer> of course", "Paris", 1},
        {"<answer>London</answer>\nParis", "Paris", 0},
        {"<think>Paris", "Paris", 0},
        {"<think>London?</think>Paris", "Paris", 1},
        {"a\nb", "a\nb", 1},
        {"one\n#### Paris\nindeed", "Paris", 1},
        {"Paris\n#### London", "Paris", 0},
        {"", "Paris", 0},
        {"x", " ", -1},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct reward_input input = {"", rows[i].completion, rows[i].gold, "", "{}", false};
        struct reward_output out = {false, 0.0, ""};
        reward_exact_ops.score(NULL, &input, &out);
        ck_assert_msg((out.valid ? (int)out.value : -1) == rows[i].expected, "row %zu", i);
    }
}
END_TEST

START_TEST(format_limits)
{
    struct rl_config config = make_config("format");
    config.rewards.format_pattern = "^(a+)+$";
    struct reward_set *set = make_set(&config);
    ck_assert_float_eq(score(set, "aaaa", "", 1).reward, 1.0F);
    char text[64];
    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 2] = 'b';
    text[sizeof(text) - 1] = '\0';
    ck_assert(!score(set, text, "", 1).reward_valid);
    ck_assert(score(set, "bad utf-8 \xff\xfe", "", 1).reward_valid);
    reward_set_destroy(set);
}
END_TEST

static void nan_score(const void *state, const struct reward_input *input,
                      struct reward_output *out)
{
    (void)state;
    (void)input;
    out->valid = true;
    out->value = NAN;
}

START_TEST(value_not_finite)
{
    static const struct reward_ops ops = {.name = "nan", .score = nan_score};
    static const struct reward_ops *const table[] = {&ops};
    struct rl_config config = make_config("nan");
    struct reward_set *set = NULL;
    ck_assert_int_eq(reward_set_create_from_ops(table, 1, &config, &set), RL_OK);
    ck_assert(!score(set, "", "", 1).reward_valid);
    reward_set_destroy(set);
}
END_TEST

START_TEST(rational_limits)
{
    struct rational *value = rational_create();
    rational_set_int(value, 3);
    int squarings = 0;
    while (rational_multiply(value, value, value)) {
        squarings++;
        ck_assert_int_lt(squarings, 40);
    }
    ck_assert_int_gt(squarings, 10);
    ck_assert(!rational_set_decimal(value, "", 0));
    ck_assert(!rational_set_decimal(value, "-", 1));
    ck_assert(!rational_set_decimal(value, ".", 1));
    ck_assert(!rational_set_decimal(value, "1e5", 3));
    ck_assert(!rational_set_decimal(value, "1.2.3", 5));
    ck_assert(!rational_set_decimal(value, " 1", 2));
    ck_assert(rational_set_decimal(value, "-001.250", 8));
    struct rational *other = rational_create();
    rational_set_int(other, -5);
    ck_assert(rational_scale_ten(value, 2));
    ck_assert(rational_set_decimal(other, "-125", 4));
    ck_assert(rational_equal(value, other));
    rational_set_int(other, 0);
    ck_assert(!rational_divide(value, value, other));
    rational_destroy(other);
    rational_destroy(value);
    rational_destroy(NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rewards_set");
    TCase *tcase = tcase_create("set");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, weighted_sum);
    tcase_add_test(tcase, unscorable_parts);
    tcase_add_test(tcase, overlong_vector);
    tcase_add_test(tcase, refused_configs);
    tcase_add_test(tcase, long_unknown_name);
    tcase_add_test(tcase, exact_answers);
    tcase_add_test(tcase, format_limits);
    tcase_add_test(tcase, value_not_finite);
    tcase_add_test(tcase, rational_limits);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
