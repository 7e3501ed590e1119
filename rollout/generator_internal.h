/* The engine's state, shared by generator.c (life, groups in and out), generator_request.c (what a
 * request becomes) and generator_pass.c (one forward pass). Nobody else includes this. */
#ifndef FORESIGHT_ROLLOUT_GENERATOR_INTERNAL_H
#define FORESIGHT_ROLLOUT_GENERATOR_INTERNAL_H

#include "rollout/generator.h"
#include "rollout/scheduler.h"
#include "rollout/stop_rules.h"

/* A group being generated; index as in the scheduler. */
struct generator_work {
    struct trajectory_group *group;
    int32_t *prompt; /* [prompt_count] owned */
    int32_t prompt_count;
    struct rollout_schedule *schedule; /* [samples] in one block, owned; NULL: newest weights */
    uint32_t *lengths;                 /* [samples] owned; NULL: stop rules end a completion */
    bool *skip;                        /* [samples] owned: not to generate */
    uint32_t left;                     /* samples to generate when it came */
};

/* Arrays of one pass, sized for the largest plan. */
struct generator_pass {
    int32_t *tokens, *positions;        /* [max_tokens] */
    int32_t *segment_start;             /* [max_segments + 1] */
    int32_t *first_position;            /* [max_segments] */
    const int32_t **page_table;         /* [max_segments] */
    int32_t *hidden_rows, *slots, *ids; /* [max_running] */
    float *logprob;                     /* [max_running] */
    struct rl_rng_key *keys;            /* [max_running] */
    uint64_t *counters;                 /* [max_running] */
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
    int32_t max_length;
    struct generator_work *works; /* [max_groups] */
    int32_t *completion;          /* [max_running][max_completion] */
    float *logprob;               /* [max_running][max_completion] */
    uint32_t *token_version;      /* [max_running][max_completion] */
    int32_t *completion_count;    /* [max_running] */
    struct generator_pass pass;
    struct trajectory_group **done; /* ring [max_groups + 1] */
    int32_t done_head, done_count, done_capacity;
    double pass_end_s;      /* of the pass before; 0: none, or nothing ran since */
    uint32_t newest_passed; /* highest version of any pass */
    struct rollout_counters counters;
};

/* Copy and check a request. *work owns what it points to; release with generator_work_fini.
 * Errors: RL_TOO_LONG, RL_INVALID, RL_NO_MEMORY. */
rl_status generator_work_init(struct generator_work *work, const struct rollout_generator *g,
                              const struct rollout_request *request);
void generator_work_fini(struct generator_work *work);

/* Image of `version`, or NULL if it is not here. */
const void *generator_image(const struct rollout_generator *g, uint32_t version);

/* Put a finished group where rollout_generator_take finds it; *work is emptied. */
void generator_finish_work(struct rollout_generator *g, struct generator_work *work);

#endif
