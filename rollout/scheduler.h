/* Continuous batching as a pure state machine: which sequences run, which tokens the next forward
 * pass holds, which KV pages they use. It owns page numbers and counts, never data: no model, no
 * weights, no clock.
 *
 * A group's prompt but for its last token is the *prefix*: computed once, its full pages shared by
 * all samples, its last partial page copied. Every sample then starts with the prompt's last token
 * as an ordinary decode step. All pages a sample may ever need are taken when it starts, so a
 * running sequence always finishes: no preemption, no deadlock.
 *
 * One pass has one weight version. A group without schedules follows the newest; the samples of one
 * with schedules ask for versions by position, and passes take the versions asked for in turn. A
 * sample attends to a prompt computed wholly by the version of its own first token, and with caches
 * kept to each earlier token as computed by the version that sampled the token after it (with
 * caches recomputed: everything by the version of the next token). So a scheduled sample shares its
 * group's prefix only where the versions allow it; otherwise it holds a whole sequence of its own.
 *
 * A decode step may be extended by guessed tokens (see speculation.h): what they leave in the cache
 * counts only as far as the tokens sampled are the guessed ones; the rest is written over later.
 *
 * Invariant: a page is in the free list or has a positive reference count, never both. */
#ifndef FORESIGHT_ROLLOUT_SCHEDULER_H
#define FORESIGHT_ROLLOUT_SCHEDULER_H

#include "core/status.h"
#include "rollout/switch_schedule.h"

#include <stdbool.h>
#include <stdint.h>

struct rollout_scheduler_limits {
    int32_t max_running;   /* sequences decoded together */
    int32_t max_groups;    /* groups inside at a time, running or queued */
    int32_t max_length;    /* prompt + completion of one sequence, tokens */
    int32_t prefill_chunk; /* prompt tokens of one pass at most */
    int32_t pages;         /* KV pages at most; 0: as many as the other limits call for */
    bool recompute;        /* a switch computes caches again; false: running sequences keep them */
};

/* A group to generate. The arrays are borrowed until its last sample has finished. */
struct rollout_scheduler_group {
    int32_t prompt_count;                    /* >= 1 */
    int32_t max_new;                         /* tokens of a completion at most, >= 1 */
    int32_t samples;                         /* >= 1 */
    const struct rollout_schedule *schedule; /* [samples]; NULL: the newest weights throughout */
    const bool *skip; /* [samples], samples not to generate, at least one false; NULL: none */
};

/* One run of consecutive tokens of a pass. */
struct rollout_segment {
    bool prefix; /* index is a group's prefix, else a sequence slot */
    bool sample; /* the last token's hidden state yields the next token */
    int32_t index;
    int32_t first; /* position of the first token */
    int32_t count;
    int32_t
        guessed; /* of them at the end; with them `sample` holds for the 1 + guessed last ones */
};

struct rollout_page_copy {
    int32_t from, to;
};

/* What one pass does: `copies` first, then the forward pass over `segments`. */
struct rollout_plan {
    struct rollout_segment *segments; /* [segment_count] */
    int32_t segment_count;
    int32_t token_count;
    struct rollout_page_copy *copies; /* [copy_count] */
    int32_t copy_count;
    uint32_t version; /* weights of the pass */
};

/* May a pass use the weights of `version` now? */
typedef bool (*rollout_usable_fn)(void *arg, uint32_t version);

struct rollout_scheduler;

/* KV pages that the other limits call for: with so many, no sequence ever waits for pages. And the
 * fewest that will do: a sequence starts when there are pages for all of it, so that with fewer
 * than wanted fewer run together, and none is ever stopped halfway. */
int64_t rollout_scheduler_pages_wanted(const struct rollout_scheduler_limits *limits);
int64_t rollout_scheduler_pages_least(const struct rollout_scheduler_limits *limits);

/* Caller owns *out. Errors: RL_INVALID (a limit is not positive or too large, or so few pages),
 * RL_NO_MEMORY. */
rl_status rollout_scheduler_create(const struct rollout_scheduler_limits *limits,
                                   struct rollout_scheduler **out);
void rollout_scheduler_destroy(struct rollout_scheduler *scheduler);

/* Passes are planned for versions for which `usable` says yes, others wait; NULL: for all. */
void rollout_scheduler_set_usable(struct rollout_scheduler *scheduler, rollout_usable_fn usable,
                                  void *arg);

/* Queue a group; *index is the scheduler's name of it until its last sample has finished.
 * Errors: RL_AGAIN (max_groups inside), RL_TOO_LONG (does not fit max_length). */
rl_status rollout_scheduler_add(struct rollout_scheduler *scheduler,
                                const struct rollout_scheduler_group *group, int32_t *index);

/* Start what fits and lay out the next pass. *plan is borrowed until the next call; a plan without
 * segments means that there is nothing to do, or nothing with weights that are usable. Every plan
 * must be followed by rollout_scheduler_commit. */
void rollout_scheduler_plan(struct rollout_scheduler *scheduler, struct rollout_plan *plan);

/* Tokens that a sequence with `sample` may get from the pass's version at most, >= 1: its limit, or
 * its schedule's next switch, comes after them. */
int32_t rollout_scheduler_room(const struct rollout_scheduler *scheduler, int32_t slot);

/* Extend segment `segment` of the plan, one token of a sequence with `sample`, by `count` guessed
 * tokens; count < rollout_scheduler_room. Once a segment, before the commit. */
void rollout_scheduler_extend(struct rollout_scheduler *scheduler, struct rollout_plan *plan,
                              int32_t segment, int32_t count);

/* The pass is done: its tokens are in the KV cache. */
void rollout_scheduler_commit(struct rollout_scheduler *scheduler, const struct rollout_plan *plan);

/* After a commit, for each segment with `sample`: `count` >= 1 tokens were appended to the
 * sequence, all but the last of which had been guessed, and if `finished` its slot and pages are
 * given back
 * (*group_done: it was its group's last). */
void rollout_scheduler_append(struct rollout_scheduler *scheduler, int32_t slot, int32_t count,
                              bool finished, bool *group_done);

/* The newest weights are `version` from the next pass on, for groups without schedules. Running
 * sequences keep their caches, but prefixes are not handed on to samples that start later; with
 * `recompute`, all caches are computed again before the next token. */
void rollout_scheduler_switch(struct rollout_scheduler *scheduler, uint32_t version);

/* Facts about a sequence slot in use. */
int32_t rollout_scheduler_group_of(const struct rollout_scheduler *scheduler, int32_t slot);
int32_t rollout_scheduler_sample_of(const struct rollout_scheduler *scheduler, int32_t slot);

/* Pages of a prefix or a slot, page j holding positions 16 j ..; borrowed. */
const int32_t *rollout_scheduler_pages(const struct rollout_scheduler *scheduler,
                                       const struct rollout_segment *segment);

/* Sequence slots in use, and groups held (waiting ones too). */
int32_t rollout_scheduler_running(const struct rollout_scheduler *scheduler);
int32_t rollout_scheduler_groups(const struct rollout_scheduler *scheduler);

/* KV pages (the cache must have as many), and those free now. Pages are handed out last-freed
 * first, so untouched ones never become resident memory. */
int32_t rollout_scheduler_page_count(const struct rollout_scheduler *scheduler);
int32_t rollout_scheduler_free_pages(const struct rollout_scheduler *scheduler);

/* Check the invariants (for tests). Errors: RL_INTERNAL, what is wrong is logged. */
rl_status rollout_scheduler_check(const struct rollout_scheduler *scheduler);

#endif
