/* The task `chain`: a row of operations evaluated strictly from left to right, modulo a number.
 *   prompt  3+8-5*2=
 *   chain   3+8=1;1-5=6;6*2=2#2      guess  #2
 * Each step is one entry of a small table; only the way through them is long. */
#include "core/log.h"
#include "trainer/task_problem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { OPERANDS_LIMIT = TASK_NUMBERS_MAX, MODULUS_MAX = 100 };

static rl_status check_operators(const char *operators)
{
    bool sound = operators[0] != '\0' && operators[strspn(operators, "+-*")] == '\0';
    for (size_t i = 0; sound && operators[i] != '\0'; i++) {
        sound = strchr(operators + i + 1, operators[i]) == NULL;
    }
    if (!sound) {
        return rl_fail(RL_INVALID,
                       "task chain: operators \"%s\"; expected some of + - *, each once",
                       operators);
    }
    return RL_OK;
}

static rl_status chain_check(const struct task_options *options)
{
    if (options->operands_min < 2 || options->operands_max > OPERANDS_LIMIT ||
        options->operands_min > options->operands_max) {
        return rl_fail(RL_INVALID,
                       "task chain: operands %d to %d; expected 2 <= operands-min <= operands-max "
                       "<= %d",
                       options->operands_min, options->operands_max, OPERANDS_LIMIT);
    }
    if (options->modulus < 2 || options->modulus > MODULUS_MAX) {
        return rl_fail(RL_INVALID, "task chain: modulus %d; expected 2 to %d", options->modulus,
                       MODULUS_MAX);
    }
    return check_operators(options->operators);
}

static double chain_space(const struct task_options *options)
{
    double space = 0.0;
    double operators = (double)strlen(options->operators);
    for (int count = options->operands_min; count <= options->operands_max; count++) {
        space += pow(options->modulus, count) * pow(operators, count - 1);
    }
    return space;
}

static int apply(char symbol, int left, int right, int modulus)
{
    int value;
    switch (symbol) {
    case '+':
        value = left + right;
        break;
    case '-':
        value = left - right;
        break;
    default:
        value = left * right;
        break;
    }
    return ((value % modulus) + modulus) % modulus;
}

/* Append formatted text at *used; texts are bounded by OPERANDS_LIMIT and MODULUS_MAX. */
static void append(char *text, size_t *used, const char *piece)
{
    size_t bytes = strlen(piece);
    memcpy(text + *used, piece, bytes + 1);
    *used += bytes;
}

static void chain_draw(const struct task_options *options, struct rl_rng *rng,
                       struct task_problem *problem)
{
    uint64_t modulus = (uint64_t)options->modulus;
    uint64_t spread = (uint64_t)(options->operands_max - options->operands_min + 1);
    int operands = options->operands_min + (int)rl_rng_next_below(rng, spread);
    int value = (int)rl_rng_next_below(rng, modulus);
    size_t prompt_used = 0;
    size_t chain_used = 0;
    char piece[48];
    snprintf(piece, sizeof(piece), "%d", value);
    append(problem->prompt, &prompt_used, piece);
    for (int i = 1; i < operands; i++) {
        char symbol = options->operators[rl_rng_next_below(rng, strlen(options->operators))];
        int right = (int)rl_rng_next_below(rng, modulus);
        int result = apply(symbol, value, right, options->modulus);
        snprintf(piece, sizeof(piece), "%c%d", symbol, right);
        append(problem->prompt, &prompt_used, piece);
        snprintf(piece, sizeof(piece), "%s%d%c%d=%d", i > 1 ? ";" : "", value, symbol, right,
                 result);
        append(problem->chain, &chain_used, piece);
        value = result;
    }
    append(problem->prompt, &prompt_used, "=");
    snprintf(problem->answer, sizeof(problem->answer), "%d", value);
    snprintf(piece, sizeof(piece), "#%d", value);
    append(problem->chain, &chain_used, piece);
    bool wrong = rl_rng_next_uniform(rng) < options->noise;
    int guess = wrong ? (int)rl_rng_next_below(rng, modulus) : value;
    snprintf(problem->guess, sizeof(problem->guess), "#%d", guess);
    problem->solution[0] = '\0';
    problem->number_count = 0;
}

const struct task_ops task_chain_ops = {
    .name = "chain", .check = chain_check, .space = chain_space, .draw = chain_draw};
