/* `foresight task NAME OUT`: write a generated reasoning task. Owns the reading of its flags. */
#include "app/app.h"
#include "app/commands.h"

#include "core/log.h"
#include "trainer/task_generator.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static rl_status take_count(int *argc, char **argv, const char *flag, uint64_t max, uint64_t *out)
{
    const char *text = NULL;
    char *end = NULL;
    RL_TRY(app_take_value(argc, argv, flag, &text));
    if (text == NULL) {
        return RL_OK;
    }
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || value > max) {
        return rl_fail(RL_INVALID, "%s %s: expected a whole number from 0 to %" PRIu64, flag, text,
                       max);
    }
    *out = value;
    return RL_OK;
}

static rl_status take_small(int *argc, char **argv, const char *flag, int *out)
{
    uint64_t value = (uint64_t)*out;
    RL_TRY(take_count(argc, argv, flag, 1000000, &value));
    *out = (int)value;
    return RL_OK;
}

static rl_status take_share(int *argc, char **argv, const char *flag, double *out)
{
    const char *text = NULL;
    char *end = NULL;
    RL_TRY(app_take_value(argc, argv, flag, &text));
    if (text == NULL) {
        return RL_OK;
    }
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(value)) {
        return rl_fail(RL_INVALID, "%s %s: expected a number from 0 to 1", flag, text);
    }
    *out = value;
    return RL_OK;
}

static rl_status take_options(int *argc, char **argv, struct task_options *options)
{
    RL_TRY(take_count(argc, argv, "--train", UINT32_MAX, &options->train_count));
    RL_TRY(take_count(argc, argv, "--eval", UINT32_MAX, &options->eval_count));
    RL_TRY(take_count(argc, argv, "--sft", UINT32_MAX, &options->sft_count));
    RL_TRY(take_count(argc, argv, "--seed", INT64_MAX, &options->seed));
    RL_TRY(take_share(argc, argv, "--chain-fraction", &options->chain_fraction));
    RL_TRY(take_share(argc, argv, "--noise", &options->noise));
    RL_TRY(take_small(argc, argv, "--operands-min", &options->operands_min));
    RL_TRY(take_small(argc, argv, "--operands-max", &options->operands_max));
    RL_TRY(take_small(argc, argv, "--modulus", &options->modulus));
    RL_TRY(take_small(argc, argv, "--number-max", &options->number_max));
    RL_TRY(take_small(argc, argv, "--target-max", &options->target_max));
    return app_take_value(argc, argv, "--ops", &options->operators);
}

static void print_report(const struct task_options *options, const char *dir,
                         const struct task_report *report)
{
    printf("task %s, seed %" PRIu64 ", in %s\n", options->name, options->seed, dir);
    printf("  train.jsonl     %" PRIu64 " problems\n", options->train_count);
    printf("  eval.jsonl      %" PRIu64 " held-out problems, none of them in another file\n",
           options->eval_count);
    printf("  sft.jsonl       %" PRIu64 " demonstrations, %" PRIu64 " with steps (%" PRIu64
           " of their problems are in train.jsonl)\n",
           options->sft_count, report->sft_chains, report->sft_in_train);
    printf("                  %" PRIu64
           " tokens; means: prompt %.1f, with steps %.1f, guess %.1f\n",
           report->sft_tokens, report->prompt_tokens, report->chain_tokens, report->guess_tokens);
    printf("  tokenizer.json  %u entries, one character a token\n", report->vocabulary);
}

static void print_json(const struct task_options *options, const char *dir,
                       const struct task_report *report)
{
    json_t *object = json_pack(
        "{s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:f,s:f,s:f,s:I}", "task", options->name, "dir", dir,
        "seed", (json_int_t)options->seed, "train", (json_int_t)options->train_count, "eval",
        (json_int_t)options->eval_count, "sft", (json_int_t)options->sft_count, "sft_chains",
        (json_int_t)report->sft_chains, "sft_in_train", (json_int_t)report->sft_in_train,
        "sft_tokens", (json_int_t)report->sft_tokens, "prompt_tokens.mean", report->prompt_tokens,
        "chain_tokens.mean", report->chain_tokens, "guess_tokens.mean", report->guess_tokens,
        "vocabulary", (json_int_t)report->vocabulary);
    char *text = json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(6));
    printf("%s\n", text != NULL ? text : "{}");
    free(text);
    json_decref(object);
}

/* NAME and OUT are what is left once every flag was taken. */
static rl_status read_arguments(int argc, char **argv, struct task_options *options,
                                const char **dir)
{
    RL_TRY(app_take_value(&argc, argv, "--out", dir));
    const char *name = argc > 1 ? argv[1] : NULL;
    if (name == NULL || name[0] == '-') {
        return rl_fail(RL_INVALID, "task: expected NAME (chain or countdown) first; see foresight "
                                   "task --help");
    }
    RL_TRY(task_options_default(name, options));
    RL_TRY(take_options(&argc, argv, options));
    if (argc > 2 && *dir == NULL) {
        *dir = argv[2];
        argc--;
    }
    if (argc > 2 || *dir == NULL || (*dir)[0] == '-') {
        return rl_fail(RL_INVALID, "task: %s; see foresight task --help",
                       argc > 2 ? "an argument that is no option of it" : "expected a folder, OUT");
    }
    return RL_OK;
}

int cmd_task(int argc, char **argv)
{
    struct task_options options;
    struct task_report report;
    const char *dir = NULL;
    bool json = app_take_flag(&argc, argv, "--json");
    if (read_arguments(argc, argv, &options, &dir) != RL_OK) {
        return APP_USAGE;
    }
    rl_status status = task_generate(&options, dir, &report);
    if (status != RL_OK) {
        return status == RL_INVALID ? APP_USAGE : APP_FAILED;
    }
    print_report(&options, dir, &report);
    if (json) {
        print_json(&options, dir, &report);
    }
    return APP_OK;
}
