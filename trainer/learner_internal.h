/* Inside of a learner, shared by trainer/learner*.c: its state, the memory of a step, the forward
 * pass of a micro-batch. */
#ifndef FORESIGHT_TRAINER_LEARNER_INTERNAL_H
#define FORESIGHT_TRAINER_LEARNER_INTERNAL_H

#include "model/forward.h"
#include "trainer/batcher.h"
#include "trainer/guard.h"
#include "trainer/learner.h"

/* Arrays over all completion tokens of this rank's step, micro-batch after micro-batch. */
struct step_rows {
    float *old, *reference; /* [capacity]; NULL where not needed */
    size_t *base;           /* [microbatch_count] first row of each micro-batch */
    size_t capacity, base_capacity;
};

struct learner {
    struct learner_args args;
    struct model_context context;
    struct objective_options objective;
    struct advantage_options advantage;
    struct batcher_options batcher;
    struct optimizer *optimizer;
    float *grad;           /* [master_count] */
    void *own_image;       /* [image_bytes] learners that do not publish */
    const void *image;     /* what forward passes read */
    const void *published; /* newest arena slot: what is being changed; NULL before the first */
    int slot;              /* arena slot being written; -1: none */
    uint32_t version;
    float inv_temperature;
    bool recompute_old, kl_in_reward;
    bool version_per_step; /* also of a step without an update */
    struct guard_options guard_options;
    struct guard_state guard;
    uint32_t faults; /* of this rank so far in the step, see guard_fault */
    /* activations of one micro-batch, grown to the largest seen */
    struct model_workspace *workspace;
    struct model_kv kv;
    int64_t workspace_tokens, kv_pages;
    struct batcher_arrays arrays;
    float *logprob, *entropy, *g_logprob, *g_entropy; /* [row_capacity] */
    uint32_t row_capacity;
    struct step_rows rows;
    float *sample_advantage; /* [sample_capacity] */
    double *sample_penalty;  /* [sample_capacity] */
    size_t sample_capacity;
};

/* Make room for a step: activations and token rows of the largest micro-batch, log-probs that stay
 * fixed during the step, per-sample figures. Errors: RL_NO_MEMORY. */
rl_status learner_grow_activations(struct learner *l, const struct batcher_plan *plan);
rl_status learner_grow_step_rows(struct learner *l, const struct batcher_plan *plan);
rl_status learner_grow_samples(struct learner *l, size_t samples);

/* Release all of it. */
void learner_free_memory(struct learner *l);

/* Log-probs (and entropies, may be NULL) of micro-batch `index` under `image`. Errors:
 * RL_NO_MEMORY. */
rl_status learner_forward_microbatch(struct learner *l, const struct batcher_plan *plan,
                                     uint32_t index, const void *image, float *logprob,
                                     float *entropy);

/* True if every token of the sample was sampled by `version`. */
bool learner_sampled_by(const struct trajectory *sample, uint32_t version);

#endif
