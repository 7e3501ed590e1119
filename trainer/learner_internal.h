/* Inside of a learner, shared by trainer/learner*.c: its state, the memory of a step, the forward
 * pass of a micro-batch. */
#ifndef FORESIGHT_TRAINER_LEARNER_INTERNAL_H
#define FORESIGHT_TRAINER_LEARNER_INTERNAL_H

#include "model/divergence.h"
#include "model/forward.h"
#include "model/slab.h"
#include "trainer/batcher.h"
#include "trainer/guard.h"
#include "trainer/learner.h"

/* Arrays over all completion tokens of this rank's step, micro-batch after micro-batch. */
struct step_rows {
    float *old, *reference; /* [capacity]; NULL where not needed */
    size_t *base;           /* [microbatch_count] first row of each micro-batch */
    size_t capacity, base_capacity;
};

/* The teacher: its weights, its prompts of a step, its log-probs of a micro-batch. */
struct learner_teaching {
    struct model_slab average; /* of teacher.policy ema; else none */
    void *image;               /* of the average, or the frozen one; NULL: the policy's own */
    bool image_is_own;
    struct token_buffer ids; /* scratch */
    int32_t *tokens;         /* [token_capacity] prompt and completion of each sequence */
    size_t *first;           /* [sequences + 1] into tokens; no tokens: no teacher */
    size_t token_capacity;
    int64_t longest; /* tokens of a sequence in this step */
    struct model_packing *packing;
    int32_t *rows;                   /* [3][row_capacity] */
    float *logprob, *packed_logprob; /* [row_capacity] */
    /* by logits only */
    float *hidden, *g_hidden;         /* [row_capacity, C] the device's */
    float *g_divergence, *divergence; /* [row_capacity] */
    void *scratch, *host_scratch;     /* [model_divergence_bytes], see there */
    struct model_divergence kind;
    uint32_t row_capacity;
};

struct learner {
    struct learner_args args;
    struct model_context context;
    struct objective_options objective;
    struct advantage_options advantage;
    struct batcher_options batcher;
    struct optimizer *optimizer;
    struct model_slab master;
    float *grad;           /* [master_count] */
    void *own_image;       /* where images are made, if not in the arena's slots */
    uint8_t *own_changed;  /* on a device: what the history's pending mask is to become */
    void *reference;       /* the reference policy's image; NULL: not needed */
    const void *image;     /* what forward passes read */
    void *host_image;      /* the same where the host can read it; NULL: nowhere */
    const void *published; /* the image last published, which is not overwritten; NULL: none yet */
    int slot;              /* arena slot being written; -1: none */
    uint32_t version;
    float inv_temperature;
    bool recompute_old; /* ratios are taken against the step's start */
    bool needs_old;     /* its log-probs are needed, for that or for M2PO */
    bool kl_in_reward;
    bool version_per_step; /* also of a step without an update */
    struct guard_options guard_options;
    struct guard_state guard;
    uint32_t faults; /* of this rank so far in the step, see guard_fault */
    struct learner_teaching teaching;
    /* activations of one micro-batch, grown to the largest seen */
    struct model_workspace *workspace;
    struct model_kv kv;
    int64_t workspace_tokens, kv_pages;
    struct batcher_arrays arrays;
    float *logprob, *entropy, *g_logprob, *g_entropy; /* [row_capacity] */
    uint32_t row_capacity;
    struct step_rows rows;
    struct objective_minibatch minibatch; /* of the minibatch under way */
    struct objective_sequence *ahead;     /* [ahead_capacity] its sequences, for its measure */
    size_t ahead_capacity;
    float *sample_advantage; /* [sample_capacity] */
    double *sample_penalty;  /* [sample_capacity] */
    size_t sample_capacity;
    /* advantages by token; of all ranks' sequences, since whitening takes the whole batch */
    float *token_advantage, *token_penalty; /* [token_capacity] */
    size_t *token_first;                    /* [sample_capacity] */
    size_t token_capacity;
};

/* Make room for a step: activations and token rows of the largest micro-batch, log-probs that stay
 * fixed during the step, per-sample figures. Errors: RL_NO_MEMORY. */
rl_status learner_grow_activations(struct learner *l, const struct batcher_plan *plan);
rl_status learner_grow_step_rows(struct learner *l, const struct batcher_plan *plan);
rl_status learner_grow_samples(struct learner *l, size_t samples);
rl_status learner_grow_tokens(struct learner *l, size_t tokens);

/* Release all of it. */
void learner_free_memory(struct learner *l);

/* Log-probs (and entropies, may be NULL) of micro-batch `index` under `image`. Errors:
 * RL_NO_MEMORY. */
rl_status learner_forward_microbatch(struct learner *l, const struct batcher_plan *plan,
                                     uint32_t index, const void *image, float *logprob,
                                     float *entropy);

/* Log-probs that stay fixed during the step: of the policy at its start and of the reference. Those
 * that are not finite go to l->faults. Errors: RL_NO_MEMORY. */
rl_status learner_fixed_logprobs(struct learner *l, const struct batcher_plan *plan);

/* KL in the reward: what it takes off each sample, [samples] of all groups. Collective. */
rl_status learner_penalties(struct learner *l, const struct batcher_plan *plan, size_t samples);

/* Advantages by token, after those of samples. Collective with KL in the reward.
 * Errors: RL_NO_MEMORY, the collective's. */
rl_status learner_token_advantages(struct learner *l, struct trajectory_group *const *groups,
                                   uint32_t count, const struct batcher_plan *plan);

/* What corrections need of a whole minibatch; nothing is done if they need nothing. Collective.
 * Errors: RL_NO_MEMORY, the collective's. */
rl_status learner_measure_minibatch(struct learner *l, const struct batcher_plan *plan,
                                    const struct batcher_minibatch *mini);

/* Objective of every sequence of the micro-batch just forwarded: fills g_logprob and g_entropy.
 * Returns GUARD_LOGPROB if a log-prob, new or of the sampler, is not finite, else 0. */
uint32_t learner_objective_of_microbatch(struct learner *l, const struct batcher_plan *plan,
                                         uint32_t index, bool first, struct objective_stats *stats);

/* *out = an image that stays as it is, where forward passes can read it: `image` itself, or a
 * device's copy of it; NULL for NULL. Give it back with learner_frozen_free. Errors: RL_NO_MEMORY.
 */
rl_status learner_frozen_image(struct learner *l, const void *image, void **out);
void learner_frozen_free(struct learner *l, void *image);

/* Where the next image goes: *image [image_bytes] in the device's memory; later updates of a step
 * rewrite it in place. The publishing rank makes it in a slot of the arena, for which it may wait,
 * *slot_wait_s seconds. Errors: RL_TIMEOUT. */
rl_status learner_begin_image(struct learner *l, void **image, double *slot_wait_s);

/* What images are compared with, in *diff: the version last published, also when this step has
 * written its slot before. NULL if there is nothing to compare with or to tell. */
const struct model_image_diff *learner_image_diff(const struct learner *l,
                                                  struct model_image_diff *diff);

/* l->image is what the step leaves: if it is published from a device's memory, the host's slot gets
 * it too, and the history what has changed. All of the device's work on it is done then. Errors:
 * the device's. */
rl_status learner_settle_image(struct learner *l);

/* The image of masters that did not come from an update. Errors: as of the two it goes by. */
rl_status learner_refresh_image(struct learner *l, double *slot_wait_s);

/* Bytes of the mask of what changes between two images, a bit an element. */
size_t learner_mask_bytes(const struct model_layout *layout);

/* Share of the image's elements that the next version changes, 0 .. 1; needs a history. */
double learner_changed_fraction(const struct learner *l);

/* Hash of the image to publish; 0 of a learner that publishes none. */
uint64_t learner_version_hash(const struct learner *l);

/* To the device: what the caller has put into the host's masters and moments. */
void learner_push(const struct learner *l);

/* Make what teacher.* asks for, and release it. Errors: RL_INVALID, RL_NO_MEMORY. */
rl_status learner_teacher_open(struct learner *l);
void learner_teacher_close(struct learner *l);

/* The weights of `version` are about to be published for the first time. */
void learner_teacher_start(struct learner *l, uint32_t version);

/* The weights have changed in the step that ends: the average follows them. */
void learner_teacher_follow(struct learner *l);

/* RLSD's lambda in a step, the first being 1. */
double learner_teacher_lambda(const struct rl_config *config, uint64_t step);

/* The teacher's prompts of this rank's sequences; before learner_grow_activations, which makes room
 * for them. Errors: RL_NO_MEMORY, those of the prompts. */
rl_status learner_teacher_prepare(struct learner *l, struct trajectory_group *const *groups,
                                  const struct batcher_plan *plan);

/* Score the micro-batch's tokens behind the teacher's prompts. Uses the workspace, so before the
 * micro-batch's own forward pass. */
rl_status learner_teacher_microbatch(struct learner *l, const struct batcher_plan *plan,
                                     uint32_t index);

/* By logits: the divergence of the micro-batch just forwarded, times the objective's weights, into
 * `stats` and the gradients. Else nothing. */
void learner_teacher_divergence(struct learner *l, struct objective_stats *stats);

/* Log-probs of a sequence of the plan whose rows in its micro-batch begin at `row`; NULL: it has no
 * teacher. */
const float *learner_teacher_rows(const struct learner *l, uint32_t sequence, size_t row);

/* True if every token of the sample was sampled by `version`. */
bool learner_sampled_by(const struct trajectory *sample, uint32_t version);

#endif
