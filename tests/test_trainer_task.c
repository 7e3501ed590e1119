/* The task generator: same seed same bytes, distinct and disjoint problems, demonstrations that are
 * right by the rewards' own judgement, and options that cannot work refused. */
#include "core/log.h"
#include "rewards/reward.h"
#include "rewards/reward_ops.h"
#include "trainer/task_generator.h"

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern const struct reward_ops reward_numeric_ops;
extern const struct reward_ops reward_countdown_ops;

static char root[64];

static void make_root(void)
{
    snprintf(root, sizeof(root), "task_test_XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(root));
}

static void remove_root(void)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf '%s'", root);
    ck_assert_int_eq(system(command), 0);
}

static struct task_options small_options(const char *name)
{
    struct task_options options;
    ck_assert_int_eq(task_options_default(name, &options), RL_OK);
    options.train_count = 2000;
    options.eval_count = 200;
    options.sft_count = 4000;
    return options;
}

static char *read_text(const char *dir, const char *file)
{
    char path[128];
    char *text = NULL;
    size_t bytes = 0;
    snprintf(path, sizeof(path), "%s/%s/%s", root, dir, file);
    FILE *stream = fopen(path, "rb");
    ck_assert_msg(stream != NULL, "%s is missing", path);
    ck_assert_int_ge(getdelim(&text, &bytes, '\0', stream), 1);
    fclose(stream);
    return text;
}

static struct task_report generate(const struct task_options *options, const char *dir)
{
    char path[128];
    struct task_report report;
    snprintf(path, sizeof(path), "%s/%s", root, dir);
    ck_assert_int_eq(task_generate(options, path, &report), RL_OK);
    return report;
}

/* Rows of a file as one JSON array. */
static json_t *read_rows(const char *dir, const char *file)
{
    char *text = read_text(dir, file);
    json_t *rows = json_array();
    char *rest = text;
    char *line;
    while ((line = strsep(&rest, "\n")) != NULL) {
        if (line[0] != '\0') {
            json_t *row = json_loads(line, 0, NULL);
            ck_assert_msg(row != NULL, "row %s", line);
            json_array_append_new(rows, row);
        }
    }
    free(text);
    return rows;
}

static const char *member(const json_t *row, const char *name)
{
    const char *text = json_string_value(json_object_get(row, name));
    ck_assert_msg(text != NULL, "row without %s", name);
    return text;
}

/* Put a file's prompts into a set; each must be new to it and absent from `held_out`. */
static json_t *prompt_set(const json_t *rows, const json_t *held_out)
{
    size_t i;
    json_t *row;
    json_t *set = json_object();
    json_array_foreach(rows, i, row)
    {
        const char *prompt = member(row, "prompt");
        ck_assert_msg(json_object_get(set, prompt) == NULL, "%s twice", prompt);
        ck_assert_msg(json_object_get(held_out, prompt) == NULL, "%s is held out", prompt);
        json_object_set_new(set, prompt, json_true());
    }
    return set;
}

static void check_splits(const char *dir, const struct task_options *options)
{
    json_t *eval = read_rows(dir, "eval.jsonl");
    json_t *train = read_rows(dir, "train.jsonl");
    json_t *sft = read_rows(dir, "sft.jsonl");
    ck_assert_uint_eq(json_array_size(eval), options->eval_count);
    ck_assert_uint_eq(json_array_size(train), options->train_count);
    ck_assert_uint_eq(json_array_size(sft), options->sft_count);
    json_t *held_out = prompt_set(eval, NULL);
    json_decref(prompt_set(train, held_out));
    json_decref(prompt_set(sft, held_out));
    json_decref(held_out);
    json_decref(sft);
    json_decref(train);
    json_decref(eval);
}

/* Left-to-right value of "3+8-5*2=" modulo `modulus`, by a second hand. */
static long chain_value(const char *prompt, long modulus)
{
    char *at = NULL;
    long value = strtol(prompt, &at, 10);
    while (*at != '=') {
        char symbol = *at;
        long right = strtol(at + 1, &at, 10);
        value = symbol == '+' ? value + right : symbol == '-' ? value - right : value * right;
        value = ((value % modulus) + modulus) % modulus;
    }
    ck_assert_str_eq(at, "=");
    return value;
}

static double score(const struct reward_ops *ops, const char *completion, const char *gold,
                    const char *row)
{
    struct reward_input input = {"", completion, gold, "", row, false};
    struct reward_output out = {false, 0.0, ""};
    ops->score(NULL, &input, &out);
    ck_assert_msg(out.valid, "unscorable: %s", out.reason);
    return out.value;
}

START_TEST(same_seed_same_bytes)
{
    static const char *const files[] = {"train.jsonl", "eval.jsonl", "sft.jsonl", "tokenizer.json",
                                        "tokenizer_config.json"};
    static const char *const names[] = {"chain", "countdown"};
    for (size_t task = 0; task < 2; task++) {
        struct task_options options = small_options(names[task]);
        generate(&options, "a");
        generate(&options, "b");
        options.seed = 2;
        generate(&options, "deep/er/c");
        for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
            char *a = read_text("a", files[i]);
            char *b = read_text("b", files[i]);
            char *c = read_text("deep/er/c", files[i]);
            ck_assert_str_eq(a, b);
            ck_assert_msg((strcmp(a, c) != 0) == (i < 3), "%s and the seed", files[i]);
            free(c);
            free(b);
            free(a);
        }
    }
}
END_TEST

START_TEST(chain_rows)
{
    struct task_options options = small_options("chain");
    struct task_report report = generate(&options, "chain");
    check_splits("chain", &options);
    json_t *train = read_rows("chain", "train.jsonl");
    size_t i;
    json_t *row;
    int operators[128] = {0};
    json_array_foreach(train, i, row)
    {
        const char *prompt = member(row, "prompt");
        ck_assert_int_eq(chain_value(prompt, 10), strtol(member(row, "answer"), NULL, 10));
        ck_assert_str_eq(member(row, "data_source"), "chain");
        for (const char *at = prompt; *at != '\0'; at++) {
            operators[(unsigned char)*at & 127]++;
        }
    }
    ck_assert_int_gt(operators['+'], 1500);
    ck_assert_int_gt(operators['-'], 1500);
    ck_assert_int_gt(operators['*'], 1500);
    json_decref(train);
    ck_assert_double_eq_tol((double)report.sft_chains / (double)options.sft_count, 0.4, 0.03);
    ck_assert_double_gt(report.chain_tokens, 15.0);
    ck_assert_double_eq(report.guess_tokens, 2.0);
}
END_TEST

/* Every demonstration is right, its steps are true, and `numeric` says so. */
START_TEST(chain_demonstrations)
{
    struct task_options options = small_options("chain");
    generate(&options, "chain");
    json_t *sft = read_rows("chain", "sft.jsonl");
    size_t i;
    json_t *row;
    json_array_foreach(sft, i, row)
    {
        char gold[16];
        const char *completion = member(row, "completion");
        snprintf(gold, sizeof(gold), "%ld", chain_value(member(row, "prompt"), 10));
        ck_assert_double_eq(score(&reward_numeric_ops, completion, gold, "{}"), 1.0);
        const char *at = completion;
        while (*at != '#') {
            char *end = NULL;
            long value = chain_value((char[8]){at[0], at[1], at[2], '=', '\0'}, 10);
            ck_assert_int_eq(strtol(at + 4, &end, 10), value);
            at = *end == ';' ? end + 1 : end;
        }
    }
    json_decref(sft);
}
END_TEST

START_TEST(noisy_guesses)
{
    struct task_options options = small_options("chain");
    options.noise = 0.5;
    options.chain_fraction = 0.0;
    struct task_report report = generate(&options, "noisy");
    ck_assert_uint_eq(report.sft_chains, 0);
    json_t *sft = read_rows("noisy", "sft.jsonl");
    size_t i;
    json_t *row;
    int right = 0;
    json_array_foreach(sft, i, row)
    {
        right += strtol(member(row, "completion") + 1, NULL, 10) ==
                 chain_value(member(row, "prompt"), 10);
    }
    ck_assert_double_eq_tol(right / 4000.0, 0.55, 0.04);
    json_decref(sft);
}
END_TEST

START_TEST(other_modulus_and_operators)
{
    struct task_options options = small_options("chain");
    options.modulus = 97;
    options.operators = "*";
    options.operands_min = 2;
    options.operands_max = 4;
    generate(&options, "other");
    check_splits("other", &options);
    json_t *eval = read_rows("other", "eval.jsonl");
    size_t i;
    json_t *row;
    json_array_foreach(eval, i, row)
    {
        const char *prompt = member(row, "prompt");
        ck_assert_ptr_null(strpbrk(prompt, "+-"));
        ck_assert_int_eq(chain_value(prompt, 97), strtol(member(row, "answer"), NULL, 10));
    }
    json_decref(eval);
}
END_TEST

START_TEST(countdown_rows)
{
    struct task_options options = small_options("countdown");
    generate(&options, "countdown");
    check_splits("countdown", &options);
    json_t *train = read_rows("countdown", "train.jsonl");
    size_t i;
    json_t *row;
    json_array_foreach(train, i, row)
    {
        char *text = json_dumps(row, JSON_COMPACT);
        const char *answer = member(row, "answer");
        ck_assert_double_eq(score(&reward_countdown_ops, member(row, "solution"), answer, text),
                            1.0);
        ck_assert_double_eq(score(&reward_countdown_ops, answer, answer, text), 0.0);
        free(text);
    }
    json_decref(train);
}
END_TEST

START_TEST(countdown_demonstrations)
{
    struct task_options options = small_options("countdown");
    generate(&options, "countdown");
    json_t *sft = read_rows("countdown", "sft.jsonl");
    size_t i;
    json_t *row;
    json_array_foreach(sft, i, row)
    {
        char puzzle[128];
        char numbers[64];
        const char *prompt = member(row, "prompt");
        size_t bytes = strcspn(prompt, ":");
        snprintf(numbers, sizeof(numbers), "%.*s", (int)bytes, prompt);
        snprintf(puzzle, sizeof(puzzle), "{\"input\":\"%s\",\"output\":\"%ld\"}", numbers,
                 strtol(prompt + bytes + 1, NULL, 10));
        ck_assert_double_eq(score(&reward_countdown_ops, member(row, "completion"), "", puzzle),
                            1.0);
    }
    json_decref(sft);
}
END_TEST

static void refuse(const struct task_options *options, const char *part)
{
    char path[128];
    snprintf(path, sizeof(path), "%s/refused", root);
    ck_assert_int_eq(task_generate(options, path, NULL), RL_INVALID);
    ck_assert_msg(strstr(rl_log_last_error(), part) != NULL, "\"%s\" lacks \"%s\"",
                  rl_log_last_error(), part);
}

START_TEST(refused_options)
{
    struct task_options good = small_options("chain");
    struct task_options options = good;
    ck_assert_int_eq(task_options_default("maze", &options), RL_INVALID);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "chain or countdown"));
    options = good, options.operands_max = 3;
    options.train_count = 10000;
    refuse(&options, "distinct problems");
    options = good, options.operands_min = 7;
    refuse(&options, "operands");
    options = good, options.modulus = 1;
    refuse(&options, "modulus");
    options = good, options.operators = "+/";
    refuse(&options, "operators");
    options = good, options.operators = "++";
    refuse(&options, "operators");
    options = good, options.operators = "";
    refuse(&options, "operators");
    options = good, options.chain_fraction = NAN;
    refuse(&options, "chain-fraction");
    options = good, options.noise = 1.5;
    refuse(&options, "noise");
    options = good, options.eval_count = 0;
    refuse(&options, "--eval");
    options = small_options("countdown"), options.number_max = 1000;
    refuse(&options, "number-max");
    options = small_options("countdown"), options.operands_max = 9;
    refuse(&options, "operands");
}
END_TEST

START_TEST(folder_that_cannot_be_made)
{
    struct task_options options = small_options("chain");
    ck_assert_int_eq(task_generate(&options, "/dev/null/x", NULL), RL_IO);
    ck_assert_int_eq(task_generate(&options, "", NULL), RL_INVALID);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("trainer_task");
    TCase *tcase = tcase_create("task");
    tcase_set_timeout(tcase, 60);
    tcase_add_checked_fixture(tcase, make_root, remove_root);
    tcase_add_test(tcase, same_seed_same_bytes);
    tcase_add_test(tcase, chain_rows);
    tcase_add_test(tcase, chain_demonstrations);
    tcase_add_test(tcase, noisy_guesses);
    tcase_add_test(tcase, other_modulus_and_operators);
    tcase_add_test(tcase, countdown_rows);
    tcase_add_test(tcase, countdown_demonstrations);
    tcase_add_test(tcase, refused_options);
    tcase_add_test(tcase, folder_that_cannot_be_made);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
