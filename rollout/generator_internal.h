/* The engine's state, shared by generator.c (life, groups in and out), generator_request.c (what a
 * request becomes), generator_pass.c (one forward pass) and generator_draft.c (guessed tokens).
 * Nobody else includes this. */
#ifndef FORESIGHT_ROLLOUT_GENERATOR_INTERNAL_H
#define FORESIGHT_ROLLOUT_GENERATOR_INTERNAL_H

#include "rollout/draft_policy.h"
#include "rollout/generator.h"
#include "rollout/image_copies.h"
#include "rollout/scheduler.h"
#include "rollout/speculation.h"
#include "rollout/stop_rules.h"

/* A group being generated; index as in the scheduler. */
struct generator_work {
    struct trajectory_group *group;
    int32_t *prompt; /* [prompt_count] owned */
    int32_t prompt_count;
    struct rollout_schedule *schedule; /* [samples] in one block, owned; NULL: newest weights */
    uint32_t *lengths;                 /* [samples] owned; NULL: stop rules end a completion */
    bool *skip;                        /* [samples] owned: not to generate */
    struct rollout_speculation_text *texts; /* [samples] owned; NULL: speculation is off */
    uint32_t left;                          /* samples to generate when it came */
};

/* Guessed tokens; all NULL if speculation is off. */
struct generator_draft {
    struct rollout_speculation *speculation;
    struct rollout_draft_policy *policy;
    int32_t *guesses; /* [max_running] of each segment of the plan */
    float *chance;    /* [max_running][SPECULATION_GUESSES] */
    int32_t rows;     /* guesses in the pass */
    bool decodes;     /* the pass is of one token a sequence, and guesses */
};

/* Arrays of one pass, sized for the largest plan. */
struct generator_pass {
    int32_t *tokens, *positions;        /* [max_tokens] */
    int32_t *segment_start;             /* [max_segments + 1] */
    int32_t *first_position;            /* [max_segments] */
    const int32_t **page_table;         /* [max_segments] */
    int32_t *hidden_rows, *slots, *ids; /* [max_rows] */
    float *logprob, *kept;              /* [max_rows] */
    struct rl_rng_key *keys;            /* [max_rows] */
    uint64_t *counters;                 /* [max_rows] */
};

struct rollout_generator {
    struct model_context context;
    struct rollout_generator_options options;
    struct stop_rules stop;
    struct rollout_scheduler *scheduler;
    struct model_kv kv;
    struct model_workspace *workspace;
    const void *image;       /* newest */
    uint32_t version;        /* of it */
    rollout_image_fn source; /* of other versions, or NULL */
    void *source_arg;
    struct image_copies *copies; /* NULL: images have been used where they are, so far */
    struct model_layout *int8;   /* layout of the copies with int8 weights; NULL: there are none */
    rl_status copies_status;     /* why one could not be made */
    uint32_t awaited;            /* version that load_weights has begun to copy */
    bool awaits;
    int32_t max_length;
    struct generator_work *works; /* [max_groups] */
    int32_t *completion;          /* [max_running][max_completion] */
    float *logprob;               /* [max_running][max_completion] */
    double *kept_sum;             /* [max_running] over the sequence's tokens so far */
    uint32_t *token_version;      /* [max_running][max_completion] */
    int32_t *completion_count;    /* [max_running] */
    struct generator_pass pass;
    struct generator_draft draft;
    struct trajectory_group **done; /* ring [max_groups + 1] */
    int32_t done_head, done_count, done_capacity;
    double pass_end_s;      /* of the pass before; 0: none, or nothing ran since */
    double pass_s;          /* time of the last pass */
    uint32_t newest_passed; /* highest version of any pass */
    struct rollout_counters counters;
};

/* Copy and check a request. *work owns what it points to; release with generator_work_fini.
 * Errors: RL_TOO_LONG, RL_INVALID, RL_NO_MEMORY. */
rl_status generator_work_init(struct generator_work *work, const struct rollout_generator *g,
                              const struct rollout_request *request);
void generator_work_fini(struct generator_work *work);

/* Image of `version`, or NULL if it is not here. */
const void *generator_image(struct rollout_generator *g, uint32_t version);

/* Guessed tokens. Rows that they add to a pass at most; bytes held for them. */
int32_t generator_draft_rows(const struct rollout_generator_options *options);
size_t generator_draft_bytes(const struct rollout_generator_options *options);

/* Nothing if the options say off. Errors: RL_NO_MEMORY. */
rl_status generator_draft_create(struct rollout_generator *g);
void generator_draft_destroy(struct rollout_generator *g);

/* Texts to guess from: a group entered and left, a slot's completion grew by
 * a token, and is now, finished, at `completion` until the group is closed. */
void generator_draft_open(struct rollout_generator *g, int32_t group);
void generator_draft_close(struct rollout_generator *g, int32_t group);
void generator_draft_append(struct rollout_generator *g, int32_t slot);
void generator_draft_finish(struct rollout_generator *g, int32_t slot, const int32_t *completion);

/* Add guesses to a plan, where they pay; after its pass, which gave `tokens`, learn from it. */
void generator_draft_plan(struct rollout_generator *g, struct rollout_plan *plan);
void generator_draft_learn(struct rollout_generator *g, const struct rollout_plan *plan,
                           uint64_t tokens);

/* Put a finished group where rollout_generator_take finds it; *work is emptied. */
void generator_finish_work(struct rollout_generator *g, struct generator_work *work);

#endif
