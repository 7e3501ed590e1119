/* The task `countdown`: make the target from the given numbers, each used exactly once.
 *   prompt  3,8,1:24=
 *   chain   3*8=24;24*1=24\n(3*8)*1      guess  (3*8)*1
 * Problems are made backwards, from a random expression, so every one of them has a solution. */
#include "core/log.h"
#include "trainer/task_problem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { OPERANDS_LIMIT = 6, NUMBER_LIMIT = 99, VALUE_LIMIT = 9999, TERM_BYTES = 96 };

struct term {
    int64_t value;
    char text[TERM_BYTES];
    bool composite;
};

static rl_status countdown_check(const struct task_options *options)
{
    if (options->operands_min < 2 || options->operands_max > OPERANDS_LIMIT ||
        options->operands_min > options->operands_max) {
        return rl_fail(RL_INVALID,
                       "task countdown: operands %d to %d; expected 2 <= operands-min <= "
                       "operands-max <= %d",
                       options->operands_min, options->operands_max, OPERANDS_LIMIT);
    }
    if (options->number_max < 2 || options->number_max > NUMBER_LIMIT) {
        return rl_fail(RL_INVALID, "task countdown: number-max %d; expected 2 to %d",
                       options->number_max, NUMBER_LIMIT);
    }
    if (options->target_max < 10 || options->target_max > VALUE_LIMIT) {
        return rl_fail(RL_INVALID, "task countdown: target-max %d; expected 10 to %d",
                       options->target_max, VALUE_LIMIT);
    }
    return RL_OK;
}

/* Ordered numbers alone; each gives several targets, so this is too low rather than too high. */
static double countdown_space(const struct task_options *options)
{
    double space = 0.0;
    for (int count = options->operands_min; count <= options->operands_max; count++) {
        space += pow(options->number_max, count);
    }
    return space;
}

/* A random operation whose result is a whole number in 0 .. VALUE_LIMIT; '\0': none was found. */
static char choose_operation(struct rl_rng *rng, const struct term *left, const struct term *right,
                             int64_t *value)
{
    static const char symbols[] = "+-*/";
    for (;;) {
        char symbol = symbols[rl_rng_next_below(rng, 4)];
        *value = -1;
        if (symbol == '+') {
            *value = left->value + right->value;
        } else if (symbol == '-') {
            *value = left->value - right->value;
        } else if (symbol == '*') {
            *value = left->value * right->value;
        } else if (right->value != 0 && left->value % right->value == 0) {
            *value = left->value / right->value;
        }
        if (*value >= 0 && *value <= VALUE_LIMIT) {
            return symbol;
        }
        if (left->value + right->value > VALUE_LIMIT && left->value < right->value) {
            return '\0'; /* neither sum nor difference fits: other operations hardly would */
        }
    }
}

/* Combine terms until one is left; writes the steps. False: start again with other numbers. */
static bool combine(struct rl_rng *rng, struct term *terms, int count, char *steps)
{
    size_t used = 0;
    steps[0] = '\0';
    while (count > 1) {
        int at = (int)rl_rng_next_below(rng, (uint64_t)count);
        struct term left = terms[at];
        terms[at] = terms[--count];
        at = (int)rl_rng_next_below(rng, (uint64_t)count);
        struct term right = terms[at];
        struct term *joined = &terms[at];
        int64_t value = 0;
        char symbol = choose_operation(rng, &left, &right, &value);
        if (symbol == '\0') {
            return false;
        }
        int wrote =
            snprintf(joined->text, sizeof(joined->text), "%s%s%s%c%s%s%s",
                     left.composite ? "(" : "", left.text, left.composite ? ")" : "", symbol,
                     right.composite ? "(" : "", right.text, right.composite ? ")" : "");
        if (wrote < 0 || (size_t)wrote >= sizeof(joined->text)) {
            return false;
        }
        joined->value = value;
        joined->composite = true;
        used += (size_t)snprintf(steps + used, TASK_TEXT_BYTES - used, "%s%lld%c%lld=%lld",
                                 used > 0 ? ";" : "", (long long)left.value, symbol,
                                 (long long)right.value, (long long)value);
    }
    return true;
}

static void countdown_draw(const struct task_options *options, struct rl_rng *rng,
                           struct task_problem *problem)
{
    struct term terms[OPERANDS_LIMIT];
    char steps[TASK_TEXT_BYTES];
    uint64_t spread = (uint64_t)(options->operands_max - options->operands_min + 1);
    int count = options->operands_min + (int)rl_rng_next_below(rng, spread);
    do {
        for (int i = 0; i < count; i++) {
            problem->numbers[i] =
                1 + (int64_t)rl_rng_next_below(rng, (uint64_t)options->number_max);
            terms[i].value = problem->numbers[i];
            terms[i].composite = false;
            snprintf(terms[i].text, sizeof(terms[i].text), "%lld", (long long)terms[i].value);
        }
    } while (!combine(rng, terms, count, steps) || terms[0].value < 1 ||
             terms[0].value > options->target_max);
    problem->number_count = count;
    problem->target = terms[0].value;
    size_t used = 0;
    for (int i = 0; i < count; i++) {
        used += (size_t)snprintf(problem->prompt + used, sizeof(problem->prompt) - used, "%s%lld",
                                 i > 0 ? "," : "", (long long)problem->numbers[i]);
    }
    snprintf(problem->prompt + used, sizeof(problem->prompt) - used,
             ":%lld=", (long long)problem->target);
    snprintf(problem->answer, sizeof(problem->answer), "%lld", (long long)problem->target);
    snprintf(problem->solution, sizeof(problem->solution), "%s", terms[0].text);
    snprintf(problem->guess, sizeof(problem->guess), "%s", terms[0].text);
    snprintf(problem->chain, sizeof(problem->chain), "%.300s\n%s", steps, terms[0].text);
}

const struct task_ops task_countdown_ops = {.name = "countdown",
                                            .check = countdown_check,
                                            .space = countdown_space,
                                            .draw = countdown_draw};
