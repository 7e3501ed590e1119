/* Guesses at what a sequence says next, from text that its group has already: the prompt, the
 * sequence itself, the group's other samples, finished ones too. A guess is checked by the forward
 * pass that it is part of, so guesses decide how fast a completion comes and never what it says
 * (see generator.h). Pure: no model, no clock; one thread.
 *
 * Every text is indexed by its runs of the last 8, 4 and 2 tokens: where such a run was seen last,
 * the token after it is the guess, and so on from there. Indexing costs O(1) a token and allocates
 * nothing; tables are of fixed size and forget the oldest. How often a guess is right is learnt
 * by the length of the match that it comes from, from every token, guessed at in a pass or not. */
#ifndef FORESIGHT_ROLLOUT_SPECULATION_H
#define FORESIGHT_ROLLOUT_SPECULATION_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SPECULATION_GUESSES = 15 }; /* tokens guessed of a sequence in one pass, at most */

struct rollout_speculation_limits {
    int32_t max_running;    /* slots */
    int32_t max_groups;     /* groups open at a time */
    int32_t max_prompt;     /* tokens */
    int32_t max_completion; /* tokens */
};

struct rollout_speculation;

/* Caller owns *out. Errors: RL_NO_MEMORY. */
rl_status rollout_speculation_create(const struct rollout_speculation_limits *limits,
                                     struct rollout_speculation **out);
void rollout_speculation_destroy(struct rollout_speculation *speculation);

/* Bytes that one with these limits holds. */
size_t rollout_speculation_bytes(const struct rollout_speculation_limits *limits);

/* A completion; the caller's storage, the drafter's content. */
struct rollout_speculation_text {
    const int32_t *completion;
    int32_t count;
    int32_t indexed; /* positions whose runs are in the tables */
};

/* A group's prompt and room for its completions; borrowed until the group is closed. */
struct rollout_speculation_group {
    const int32_t *prompt; /* [prompt_count] */
    int32_t prompt_count;  /* >= 1 */
    int32_t samples;
    struct rollout_speculation_text *texts; /* [samples], zeroed */
};
void rollout_speculation_open(struct rollout_speculation *speculation, int32_t group,
                              const struct rollout_speculation_group *args);
void rollout_speculation_close(struct rollout_speculation *speculation, int32_t group);

/* A completion of the group that was finished elsewhere; borrowed until the group is closed. */
void rollout_speculation_add(struct rollout_speculation *speculation, int32_t group, int32_t sample,
                             const int32_t *completion, int32_t count);

/* The slot now runs a sample, empty so far, whose tokens will be written to `completion`
 * [max_completion]; borrowed until the sample is finished. */
struct rollout_speculation_start {
    int32_t group, sample;
    int32_t *completion;
};
void rollout_speculation_start(struct rollout_speculation *speculation, int32_t slot,
                               const struct rollout_speculation_start *args);

/* One more token stands at the end of the slot's completion. */
void rollout_speculation_append(struct rollout_speculation *speculation, int32_t slot);

/* The slot's sample is done; from now on its tokens are at `completion`, borrowed until the group
 * is closed. */
void rollout_speculation_finish(struct rollout_speculation *speculation, int32_t slot,
                                const int32_t *completion);

/* Guess at most `max` <= SPECULATION_GUESSES tokens of a slot: they are written after the end of
 * its completion, which must have room. chance[i]: how likely guesses 0 .. i are right, all of
 * them; it never rises with i. Returns how many. */
int32_t rollout_speculation_guess(struct rollout_speculation *speculation, int32_t slot,
                                  int32_t max, float *chance);

#endif
