/* Between the task generator and its tasks: one problem, and the table row of a task. */
#ifndef FORESIGHT_TRAINER_TASK_PROBLEM_H
#define FORESIGHT_TRAINER_TASK_PROBLEM_H

#include "core/rng.h"
#include "trainer/task_generator.h"

enum { TASK_TEXT_BYTES = 512, TASK_NUMBERS_MAX = 16 };

struct task_problem {
    char prompt[TASK_TEXT_BYTES];
    char answer[32];
    char chain[TASK_TEXT_BYTES];    /* completion that shows its steps */
    char guess[TASK_TEXT_BYTES];    /* completion that does not */
    char solution[TASK_TEXT_BYTES]; /* countdown: the expression; "" if the task has none */
    int64_t numbers[TASK_NUMBERS_MAX];
    int number_count; /* 0: the row names no numbers */
    int64_t target;
};

struct task_ops {
    const char *name;
    /* Ranges of the task's own options. Errors: RL_INVALID. */
    rl_status (*check)(const struct task_options *options);
    /* About how many distinct problems there are. */
    double (*space)(const struct task_options *options);
    /* Draw one problem. */
    void (*draw)(const struct task_options *options, struct rl_rng *rng,
                 struct task_problem *problem);
};

extern const struct task_ops task_chain_ops;
extern const struct task_ops task_countdown_ops;

/* Write tokenizer.json and tokenizer_config.json of single characters into `dir`; *count: entries
 * of the vocabulary. Errors: RL_IO, RL_NO_MEMORY. */
rl_status task_tokenizer_write(const char *dir, uint32_t *count);

#endif
