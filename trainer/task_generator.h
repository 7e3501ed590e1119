/* Small verifiable reasoning tasks made on the spot: training and held-out problems, demonstrations
 * with chains of thought for supervised fine-tuning, and a tokenizer of single characters. The same
 * options give the same bytes. */
#ifndef FORESIGHT_TRAINER_TASK_GENERATOR_H
#define FORESIGHT_TRAINER_TASK_GENERATOR_H

#include "core/status.h"

#include <stdint.h>

struct task_options {
    const char *name; /* "chain" or "countdown" */
    uint64_t seed;
    uint64_t train_count;  /* rows of train.jsonl */
    uint64_t eval_count;   /* rows of eval.jsonl; no problem of it is in another file */
    uint64_t sft_count;    /* rows of sft.jsonl */
    double chain_fraction; /* share of demonstrations that show their steps; the others guess */
    double noise;          /* share of guesses (chain task) with a random answer */
    int operands_min;      /* numbers of a problem */
    int operands_max;
    int modulus;           /* chain: arithmetic modulo this; operands are below it */
    int number_max;        /* countdown: largest given number */
    int target_max;        /* countdown: largest target */
    const char *operators; /* chain: which of + - * occur */
};

struct task_report {
    uint64_t sft_chains;   /* demonstrations with steps */
    uint64_t sft_in_train; /* demonstrations whose problem is also in train.jsonl */
    uint64_t sft_tokens;   /* characters of prompts and completions, one token each */
    double prompt_tokens;  /* mean over sft.jsonl */
    double chain_tokens;   /* mean length of the demonstrations with steps */
    double guess_tokens;   /* mean length of the others */
    uint32_t vocabulary;   /* entries of tokenizer.json */
};

/* Defaults of a task. Errors: RL_INVALID for an unknown name (the known ones are listed). */
rl_status task_options_default(const char *name, struct task_options *options);

/* Write train.jsonl, eval.jsonl (prompt, answer, data_source, for countdown also numbers, target
 * and a solution), sft.jsonl (prompt, completion) and tokenizer.json, tokenizer_config.json into
 * the folder `dir`, made if it is not there. Problems are distinct within a file. `report` may be
 * NULL. Errors: RL_INVALID (an option out of range, too few distinct problems), RL_IO,
 * RL_NO_MEMORY. */
rl_status task_generate(const struct task_options *options, const char *dir,
                        struct task_report *report);

#endif
