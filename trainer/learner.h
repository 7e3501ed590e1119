/* One learner rank: the master weights, the optimizer, and the step that turns admitted groups into
 * a new weight version. A step is: advantages -> plan -> (log-probs of the old and reference
 * policies) -> for each minibatch forward, objective, backward, reduce, update, new image. Its
 * weights are published by a call of their own, so that whoever counts versions can move on first.
 * It knows neither tickets nor where groups come from.
 *
 * Forward passes read the very image that workers decode from: on the publishing rank the slot of
 * the weight arena itself, on the other learners a private copy made from equal masters. */
#ifndef FORESIGHT_TRAINER_LEARNER_H
#define FORESIGHT_TRAINER_LEARNER_H

#include "core/config.h"
#include "core/wait.h"
#include "model/tokenizer.h"
#include "trainer/advantage.h"
#include "trainer/checkpoint.h"
#include "trainer/guard.h"
#include "trainer/objective.h"
#include "trainer/optimizer.h"
#include "transport/collective.h"
#include "transport/weight_arena.h"
#include "transport/weight_history.h"

struct learner;

/* Who knows what a teacher is told. Borrowed for the learner's life. */
struct learner_teacher {
    /* Replace the contents of `ids` by the prompt that the teacher sees in place of the sample's
     * own; *told false: the sample lacks what the prompt needs. Called in learner_step. Errors end
     * the step. */
    rl_status (*prompt)(void *arg, const struct trajectory_group *group, uint32_t sample,
                        struct token_buffer *ids, bool *told);
    void *arg;
    const void *image; /* frozen weights, the host's; NULL unless teacher.policy is initial */
};

/* Everything borrowed for the learner's life but `master`. */
struct learner_args {
    const struct rl_config *config;
    const struct model_layout *layout;
    const struct kernel_table *kernels;
    struct rl_pool *pool; /* may be NULL */
    struct collective *collective;
    struct weight_arena *arena; /* publishing rank only; NULL on the other learners */
    /* Publishing rank only: what changes from version to version is written here. Masks of
     * image_bytes / model_image_element_bytes / 8. NULL on the other learners. */
    struct weight_history *history;
    struct rl_waits *waits; /* may be NULL */
    float *master;          /* [master_count], device_alloc'ed: taken */
    const void
        *reference_image; /* frozen reference, the host's; NULL if the objective needs none */
    const struct learner_teacher *teacher; /* NULL unless teacher.loss is set */
};

/* What a step did. Seconds are wall time of this rank. */
struct learner_report {
    struct advantage_stats advantage;
    struct objective_stats objective; /* of all minibatches and ranks */
    double distill_loss, policy_loss; /* parts of `loss` */
    double teacher_lambda;            /* RLSD's */
    double loss;                      /* mean over minibatches */
    double grad_norm;                 /* mean over updates made */
    double learning_rate;             /* of the last update */
    int64_t updates;                  /* minibatches that moved the weights */
    int64_t skipped;  /* that did not because something was not finite or was revoked (guard.h) */
    int64_t outliers; /* that did not because their gradient norm stands out */
    uint32_t faults;  /* why; bits of guard_fault, the same on every learner */
    enum guard_action action; /* what must be done before the step's weights are published */
    double norm_score;        /* largest z-score of an update's gradient norm */
    int64_t tokens;           /* of all ranks' sequences, shared ones counted for each */
    double prepare_s, forward_backward_s, reduce_s, update_s, publish_s;
    double slot_wait_s;      /* within update_s: readers held every weight slot */
    uint32_t version;        /* to be published after the step */
    uint64_t hash;           /* of its image; publishing rank only */
    double changed_fraction; /* of the image's elements since the last version; where there is a
                                history and an update was made */
};

/* Takes args->master also on failure. Caller owns *out. Errors: RL_INVALID, RL_NO_MEMORY. */
rl_status learner_create(const struct learner_args *args, struct learner **out);
void learner_destroy(struct learner *learner);

/* Make the image of the masters and, on the publishing rank, publish it as `version`. Once, before
 * the first step, and after masters were loaded from a checkpoint. Collective. Errors: RL_TIMEOUT,
 * RL_UNSUPPORTED (learners on devices of different kinds), the collective's. */
rl_status learner_publish_first(struct learner *learner, uint32_t version);

/* Train on groups [count] (the same on every learner, in the same order) as step `step`.
 * The version that report names is one more than before unless no update was made (in the order
 * fixed_lag even then: version = steps); it must be given to learner_publish before the next step.
 * An update with anything not finite about it is skipped on all ranks together and changes neither
 * weights nor moments; report->action says when that is no longer enough. Collective among the
 * learners. Errors: RL_PEER_LOST, RL_TIMEOUT, RL_NO_MEMORY. */
rl_status learner_step(struct learner *learner, struct trajectory_group *const *groups,
                       uint32_t count, uint64_t step, struct learner_report *report);

/* Make the step's weights the current version and, on the publishing rank, show them to readers.
 * Quick: may be called with a mutex held. Errors: RL_INVALID (no such step was made). */
rl_status learner_publish(struct learner *learner, const struct learner_report *report);

/* Current weight version, masters, optimizer and guard, for checkpoints. Borrowed. All are the
 * host's: of a learner on a device they are up to date after learner_pull, and what is written
 * there counts from learner_publish_first or learner_roll_back on. */
uint32_t learner_version(const struct learner *learner);
float *learner_master(struct learner *learner);
struct optimizer_state *learner_optimizer(struct learner *learner);

/* Where moments that are shared out among learners are fetched from and served; NULL if they are
 * all here. Borrowed. */
struct optimizer *learner_shared_optimizer(struct learner *learner);
struct guard_state *learner_guard(struct learner *learner);

/* Bring masters, moments and the teacher's average from the device. Errors: the device's. When they
 * are of no more use, their memory, 12 bytes a parameter or 16, is given back until next time. */
rl_status learner_pull(struct learner *learner);
void learner_forget(struct learner *learner);

/* Answer to GUARD_ROLL_BACK of the last step: the caller has put sound weights and moments of
 * version `version` into the learner's slabs. They become what the step made: report gets the next
 * version and its hash, and the learning rate is halved. Every learner. Errors: RL_NONFINITE (those
 * weights are not finite either), RL_TIMEOUT. */
rl_status learner_roll_back(struct learner *learner, uint32_t version,
                            struct learner_report *report);

/* Take over the guard of a checkpoint. Errors: RL_CORRUPT. */
rl_status learner_restore_guard(struct learner *learner, const struct guard_state *state);

/* Hash of the masters, xxh3 on the CPU and of the op hash_words on a device, and xxh3 of the image
 * that forward passes read (on a device: of a learner that publishes). */
uint64_t learner_master_hash(const struct learner *learner);
uint64_t learner_image_hash(const struct learner *learner);

/* The moving average that teaches, [master_count]; NULL unless teacher.policy is ema. Starts as
 * the masters of version 0; for a later one it must be put there before learner_publish_first. */
float *learner_teacher_average(struct learner *learner);

/* That image, the host's: borrowed until the next step; NULL: a device's learner that does not
 * publish. */
const void *learner_image(const struct learner *learner);

/* Largest |log-prob of the training forward - behaviour log-prob| over all samples whose every
 * token was sampled by the current version, and how many tokens that were: promise P1 measured on
 * any groups. 0 tokens: *largest is 0. Not collective. Errors: RL_NO_MEMORY, RL_NONFINITE. */
rl_status learner_probe(struct learner *learner, struct trajectory_group *const *groups,
                        uint32_t count, double *largest, uint64_t *tokens);

/* Bytes that each of `learners` holds at most beside activations and, on a device, the images that
 * it makes. */
struct learner_bytes {
    size_t all; /* of what follows */
    size_t masters, gradients, moments;
    size_t average; /* the teacher's weights */
    size_t frozen;  /* images of reference and teacher */
};
struct learner_bytes learner_bytes(const struct model_layout *layout,
                                   const struct rl_config *config, int learners);

/* What a teacher by logits takes beside a micro-batch of `rows`; 0 without. */
size_t learner_teacher_bytes(const struct model_layout *layout, const struct rl_config *config,
                             int64_t rows);

/* The images that a learner makes on a device: in the slots of its arena, with the mask of what
 * changes, or one if it publishes none (`slots` 0). */
size_t learner_image_bytes(const struct model_layout *layout, int slots);

#endif
