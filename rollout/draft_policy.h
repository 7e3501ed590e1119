/* How many guessed tokens a pass of one token a sequence should carry: as many as make it produce
 * most tokens a second, by the chances that they are right and by what passes of so many tokens
 * have taken here. Knows no tokens and no clock; times are handed in. One thread.
 *
 * What a pass takes is measured: for every number of sequences the plain pass, and by the number of
 * guesses how much longer passes with guesses took. Widths not tried yet are tried where they seem
 * to pay, on credit: a bad guess costs time that plain passes would not have, and once more has
 * been lost than a small share of all time, no guesses are made until that share has grown again.
 */
#ifndef FORESIGHT_ROLLOUT_DRAFT_POLICY_H
#define FORESIGHT_ROLLOUT_DRAFT_POLICY_H

#include <stdbool.h>
#include <stdint.h>

enum {
    DRAFT_WIDTHS = 11,  /* numbers of guesses of a pass that are told apart, 0 among them */
    DRAFT_ROWS = 64,    /* guesses of a pass at most: the widest */
    DRAFT_BATCHES = 72, /* numbers of sequences told apart */
    DRAFT_CHANCE_LEVELS = 32
};

/* Passes of one width: time of a plain pass (s), or the ratio to it. */
struct draft_cell {
    double cost;
    uint32_t trials;
    uint64_t last; /* pass of the last trial */
};

struct rollout_draft_policy {
    struct draft_cell cells[DRAFT_BATCHES][DRAFT_WIDTHS];
    uint64_t passes;
    double credit_s;
    /* what is on offer for the next pass, by chance */
    int32_t offered[DRAFT_CHANCE_LEVELS];
    double chance[DRAFT_CHANCE_LEVELS]; /* sums */
};

/* Guesses with at least `chance`, `rows` of them. */
struct draft_choice {
    float chance;
    int32_t rows; /* 0: none */
};

/* Nothing measured yet. */
void rollout_draft_policy_init(struct rollout_draft_policy *policy);

/* Forget what was on offer. */
void rollout_draft_policy_clear(struct rollout_draft_policy *policy);

/* A guess that could be made, and the chance that it and those before it are right. */
void rollout_draft_policy_offer(struct rollout_draft_policy *policy, float chance);

/* What to take of it in a pass of `sequences` >= 1. */
struct draft_choice rollout_draft_policy_choose(const struct rollout_draft_policy *policy,
                                                int32_t sequences);

/* A pass of one token for each of `sequences` and `rows` guesses took `seconds` and gave `tokens`.
 */
struct draft_pass {
    int32_t sequences, rows, tokens;
    double seconds;
};
void rollout_draft_policy_learn(struct rollout_draft_policy *policy, const struct draft_pass *pass);

#endif
