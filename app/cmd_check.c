/* `foresight check CONFIG`: look at the data before a run. Scores every row's own answer with the
 * run's reward functions and shows how prompts become tokens. Exit code 1 if an answer of the data
 * set itself is wrong or unscorable by the first reward function. */
#include "app/app.h"
#include "app/commands.h"

#include "core/log.h"
#include "model/chat.h"
#include "model/tokenizer.h"
#include "rewards/reward.h"
#include "rollout/prompts.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXAMPLES = 3, SHOWN_PROMPTS = 2, SHOWN_TOKENS = 48, SHOWN_BYTES = 400 };

enum outcome { OUTCOME_RIGHT, OUTCOME_WRONG, OUTCOME_UNSCORABLE, OUTCOME_UNCHECKED, OUTCOMES };

static const char *const outcome_names[OUTCOMES] = {"right", "wrong", "unscorable", "unchecked"};

/* What was found in one data set. */
struct findings {
    uint64_t outcomes[OUTCOMES];                 /* by the first function */
    uint64_t ones[RL_REWARD_PARTS_MAX];          /* rows that each function scores 1 */
    uint64_t nulls[RL_REWARD_PARTS_MAX];         /* rows that it cannot score */
    uint64_t examples[OUTCOMES];                 /* printed so far */
    uint32_t length_min, length_p50, length_p95; /* of prompts, tokens */
    uint32_t length_max;
    double length_mean;
};

struct checker {
    const struct rl_config *config;
    struct tokenizer *tokenizer;
    struct chat_template *chat;
    struct reward_set *rewards;
};

/* --- set-up
 * --------------------------------------------------------------------------------------- */

static rl_status checker_open(const struct rl_config *config, struct checker *checker)
{
    *checker = (struct checker){.config = config};
    const char *dir =
        config->model.tokenizer[0] != '\0' ? config->model.tokenizer : config->model.path;
    if (dir[0] == '\0') {
        return rl_fail(RL_INVALID, "check needs a tokenizer: set model.tokenizer or model.path");
    }
    if (config->data.train[0] == '\0' && config->data.eval[0] == '\0') {
        return rl_fail(RL_INVALID, "check needs data: set data.train or data.eval");
    }
    RL_TRY(reward_set_create(config, &checker->rewards));
    RL_TRY(tokenizer_load(dir, &checker->tokenizer));
    return chat_template_create(checker->tokenizer, config->data.chat_template, &checker->chat);
}

static void checker_close(struct checker *checker)
{
    chat_template_destroy(checker->chat);
    tokenizer_destroy(checker->tokenizer);
    reward_set_destroy(checker->rewards);
}

/* --- one row
 * --------------------------------------------------------------------------------------- */

/* The row's worked answer, NULL if it has none; borrowed from `row`. */
static const char *worked_answer(const json_t *row)
{
    static const char *const fields[] = {"completion", "cot", "solution"};
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        const char *text = json_string_value(json_object_get(row, fields[i]));
        if (text != NULL) {
            return text;
        }
    }
    return json_string_value(json_object_get(json_object_get(row, "meta"), "solution"));
}

static enum outcome judge(const struct checker *checker, const struct reward_output *part,
                          bool worked)
{
    if (!part->valid) {
        return OUTCOME_UNSCORABLE;
    }
    if (part->value >= 1.0) {
        return OUTCOME_RIGHT;
    }
    return !worked && reward_set_gold_is_puzzle(checker->rewards, 0) ? OUTCOME_UNCHECKED
                                                                     : OUTCOME_WRONG;
}

static void show_example(struct findings *found, enum outcome outcome, const struct prompt *prompt,
                         const struct reward_output *part)
{
    if (outcome == OUTCOME_RIGHT || outcome == OUTCOME_UNCHECKED ||
        found->examples[outcome]++ >= EXAMPLES) {
        return;
    }
    size_t bytes = strlen(prompt->ground_truth);
    size_t skipped = bytes > 80 ? bytes - 80 : 0; /* answers stand at the end */
    printf("  line %" PRId64 " %s: %s; ground truth %s\"%s\"\n", prompt->line,
           outcome_names[outcome], part->reason, skipped > 0 ? "..." : "",
           prompt->ground_truth + skipped);
}

static void check_row(const struct checker *checker, const struct prompt *prompt,
                      struct findings *found)
{
    struct reward_output parts[RL_REWARD_PARTS_MAX];
    json_t *row = json_loads(prompt->row_json, 0, NULL);
    const char *worked = worked_answer(row);
    struct reward_input input = {
        prompt->text,         worked != NULL ? worked : prompt->ground_truth,
        prompt->ground_truth, prompt->data_source,
        prompt->row_json,     false};
    reward_set_evaluate(checker->rewards, &input, parts);
    for (uint32_t i = 0; i < reward_set_count(checker->rewards); i++) {
        found->ones[i] += parts[i].valid && parts[i].value >= 1.0;
        found->nulls[i] += !parts[i].valid;
    }
    enum outcome outcome = judge(checker, &parts[0], worked != NULL);
    found->outcomes[outcome]++;
    show_example(found, outcome, prompt, &parts[0]);
    json_decref(row);
}

/* --- lengths, tokens
 * ----------------------------------------------------------------------------------- */

static int compare_lengths(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a;
    uint32_t right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

static rl_status measure_lengths(const struct prompts *prompts, struct findings *found)
{
    uint64_t count = prompts_count(prompts);
    uint32_t *lengths = malloc(count * sizeof(*lengths));
    if (lengths == NULL) {
        return rl_fail(RL_NO_MEMORY, "lengths of %" PRIu64 " prompts", count);
    }
    double sum = 0.0;
    for (uint64_t i = 0; i < count; i++) {
        lengths[i] = prompts_at(prompts, i)->token_count;
        sum += lengths[i];
    }
    qsort(lengths, count, sizeof(*lengths), compare_lengths);
    found->length_min = lengths[0];
    found->length_p50 = lengths[(count - 1) / 2];
    found->length_p95 = lengths[(count - 1) * 95 / 100];
    found->length_max = lengths[count - 1];
    found->length_mean = sum / (double)count;
    free(lengths);
    return RL_OK;
}

/* Text on one line, with what a terminal would not show written as \n or \xNN. */
static void print_quoted(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte == '\n') {
            fputs("\\n", stdout);
        } else if (byte < 0x20 || byte == 0x7f) {
            printf("\\x%02x", byte);
        } else {
            putchar(byte);
        }
    }
}

static rl_status show_tokens(const struct checker *checker, const struct prompt *prompt)
{
    uint32_t shown = prompt->token_count < SHOWN_TOKENS ? prompt->token_count : SHOWN_TOKENS;
    printf("    ids  ");
    for (uint32_t i = 0; i < shown; i++) {
        char *piece = NULL;
        size_t bytes = 0;
        RL_TRY(tokenizer_decode(checker->tokenizer, &prompt->tokens[i], 1, false, &piece, &bytes));
        printf(" %d:'", prompt->tokens[i]);
        print_quoted(piece, bytes);
        printf("'");
        free(piece);
    }
    printf("%s\n", shown < prompt->token_count ? " ..." : "");
    return RL_OK;
}

static rl_status show_prompt(const struct checker *checker, const struct prompt *prompt)
{
    char *text = NULL;
    size_t bytes = 0;
    RL_TRY(tokenizer_decode(checker->tokenizer, prompt->tokens, prompt->token_count, false, &text,
                            &bytes));
    size_t shown = bytes < SHOWN_BYTES ? bytes : SHOWN_BYTES;
    while (shown < bytes && shown > 0 && ((unsigned char)text[shown] & 0xc0) == 0x80) {
        shown--; /* not in the middle of a character */
    }
    printf("  prompt of line %" PRId64 ", %u tokens\n    text  '", prompt->line,
           prompt->token_count);
    print_quoted(text, shown);
    printf("'%s\n", shown < bytes ? " ..." : "");
    free(text);
    return show_tokens(checker, prompt);
}

/* --- one data set
 * ------------------------------------------------------------------------------------------ */

static void print_findings(const struct checker *checker, const struct prompts *prompts,
                           const struct findings *found)
{
    printf("  prompts  %" PRIu64 " (%" PRIu64
           " rows left out); tokens: min %u, mean %.1f, median %u, 95 %% %u, max %u\n",
           prompts_count(prompts), prompts_dropped(prompts), found->length_min, found->length_mean,
           found->length_p50, found->length_p95, found->length_max);
    printf("  answers  %" PRIu64 " right, %" PRIu64 " wrong, %" PRIu64 " unscorable",
           found->outcomes[OUTCOME_RIGHT], found->outcomes[OUTCOME_WRONG],
           found->outcomes[OUTCOME_UNSCORABLE]);
    if (found->outcomes[OUTCOME_UNCHECKED] > 0) {
        printf(", %" PRIu64 " without a solution to check", found->outcomes[OUTCOME_UNCHECKED]);
    }
    printf("\n");
    for (uint32_t i = 0; i < reward_set_count(checker->rewards); i++) {
        printf("  reward   %-10s scores 1 on %" PRIu64 ", cannot score %" PRIu64 "\n",
               reward_set_name(checker->rewards, i), found->ones[i], found->nulls[i]);
    }
}

static json_t *findings_json(const struct checker *checker, const struct prompts *prompts,
                             const struct findings *found)
{
    json_t *functions = json_object();
    for (uint32_t i = 0; i < reward_set_count(checker->rewards); i++) {
        json_object_set_new(functions, reward_set_name(checker->rewards, i),
                            json_pack("{s:I,s:I}", "ones", (json_int_t)found->ones[i], "unscorable",
                                      (json_int_t)found->nulls[i]));
    }
    json_t *object = json_pack("{s:I,s:I,s:{s:I,s:f,s:I,s:I,s:I},s:o}", "prompts",
                               (json_int_t)prompts_count(prompts), "dropped",
                               (json_int_t)prompts_dropped(prompts), "prompt_tokens", "min",
                               (json_int_t)found->length_min, "mean", found->length_mean, "p50",
                               (json_int_t)found->length_p50, "p95", (json_int_t)found->length_p95,
                               "max", (json_int_t)found->length_max, "functions", functions);
    for (int i = 0; i < OUTCOMES; i++) {
        json_object_set_new(object, outcome_names[i], json_integer((json_int_t)found->outcomes[i]));
    }
    return object;
}

static rl_status check_prompts(const struct checker *checker, const struct prompts *prompts,
                               json_t **out, bool *ok)
{
    struct findings found = {0};
    uint64_t count = prompts_count(prompts);
    for (uint64_t i = 0; i < count && i < SHOWN_PROMPTS; i++) {
        RL_TRY(show_prompt(checker, prompts_at(prompts, i)));
    }
    for (uint64_t i = 0; i < count; i++) {
        check_row(checker, prompts_at(prompts, i), &found);
    }
    RL_TRY(measure_lengths(prompts, &found));
    print_findings(checker, prompts, &found);
    *out = findings_json(checker, prompts, &found);
    *ok = *ok && found.outcomes[OUTCOME_WRONG] + found.outcomes[OUTCOME_UNSCORABLE] == 0;
    return RL_OK;
}

static rl_status check_data(const struct checker *checker, const char *name, const char *paths,
                            json_t *result, bool *ok)
{
    struct prompts *prompts = NULL;
    json_t *part = NULL;
    if (paths[0] == '\0') {
        return RL_OK;
    }
    printf("data.%s: %s\n", name, paths);
    RL_TRY(prompts_load(paths, checker->config, checker->tokenizer, checker->chat, &prompts));
    rl_status status = check_prompts(checker, prompts, &part, ok);
    prompts_destroy(prompts);
    RL_TRY(status);
    if (json_object_set_new(result, name, part) != 0) {
        return rl_fail(RL_NO_MEMORY, "findings of data.%s", name);
    }
    return RL_OK;
}

static rl_status check_all(const struct rl_config *config, json_t *result, bool *ok)
{
    struct checker checker;
    rl_status status = checker_open(config, &checker);
    if (status == RL_OK) {
        status = check_data(&checker, "train", config->data.train, result, ok);
    }
    if (status == RL_OK) {
        status = check_data(&checker, "eval", config->data.eval, result, ok);
    }
    checker_close(&checker);
    return status;
}

int cmd_check(int argc, char **argv)
{
    struct rl_config config = {0};
    bool json = app_take_flag(&argc, argv, "--json");
    bool ok = true;
    if (app_config_from_args(&argc, argv, &config) != RL_OK) {
        rl_config_fini(&config);
        return APP_USAGE;
    }
    json_t *result = json_object();
    rl_status status = result != NULL ? check_all(&config, result, &ok)
                                      : rl_fail(RL_NO_MEMORY, "findings of check");
    if (status == RL_OK) {
        printf("%s\n", ok ? "check: every answer of the data scores"
                          : "check: FAILED, the reward does not accept every answer of the data");
    }
    json_object_set_new(result, "ok", json_boolean(ok && status == RL_OK));
    char *text = json && status == RL_OK ? json_dumps(result, JSON_COMPACT) : NULL;
    if (text != NULL) {
        printf("%s\n", text);
    }
    free(text);
    json_decref(result);
    rl_config_fini(&config);
    return status == RL_OK && ok ? APP_OK : APP_FAILED;
}
