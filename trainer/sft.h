/* Supervised fine-tuning: weighted cross-entropy on completion tokens only (prompts masked), packed
 * varlen batches, AdamW; or, for samples that carry behaviour log-probs, the clipped policy
 * objective with the weight as advantage (RAFT++). Owns the order of the examples and the loop; not
 * the data, not the files.
 *
 * Ranks of the collective hold the same examples and share each update's: an example goes to the
 * rank with the fewest tokens so far. All ranks end with the same weights. Bits depend on the
 * number of ranks, on nothing else. */
#ifndef FORESIGHT_TRAINER_SFT_H
#define FORESIGHT_TRAINER_SFT_H

#include "core/config.h"
#include "model/params.h"
#include "trainer/objective.h"
#include "transport/collective.h"

struct sft_example {
    const int32_t *tokens; /* [count] prompt, then completion; borrowed */
    uint32_t count;
    uint32_t prompt_count; /* tokens that carry no loss, >= 1 and < count */
    float weight;          /* of the completion's loss; may be negative, not 0, finite */
    /* [count - prompt_count] nats: what sampled the completion, for sft_args.objective; borrowed;
     * else not read */
    const float *behaviour;
};

struct sft_progress {
    int64_t update, updates; /* done, expected in all */
    double loss;             /* a completion token, of this update */
    double entropy;          /* nats, mean over this update's completion tokens, before it */
    double learning_rate, grad_norm;
    uint64_t tokens; /* fed so far, all ranks together */
    uint64_t update_tokens;
    double elapsed_s; /* of this call */
    double busy_s;    /* of this call: forward, backward, update; without waits and saving */
    bool skipped;     /* the update was not finite and was left out */
};

/* Called after every update; a false answer stops the run early (RL_INTERRUPTED), on all ranks
 * together. */
typedef bool (*sft_progress_fn)(void *arg, const struct sft_progress *progress);

/* Where a run stands besides its weights and moments. Plain numbers: may be stored anywhere. */
struct sft_state {
    int64_t update;            /* updates done, skipped ones included */
    uint64_t position, tokens; /* examples and tokens fed, over epochs */
    double tail_loss;
    int64_t tail_updates;
    int64_t optimizer_step, skipped, skipped_run;
};

/* A moment between two updates. Borrowed for the call. */
struct sft_point {
    struct sft_state state;
    const float *master, *adam_m, *adam_v; /* [master_count] the host's */
    struct optimizer *shared; /* NULL, or what shares moments out: rank 0 fetches them, the others
                                 serve; the two above are NULL then */
    bool finished;            /* after the last update */
};

/* Called on every rank at the same points: every args.save_every updates, when the run is stopped,
 * and at the end. An error ends the run with it. */
typedef rl_status (*sft_save_fn)(void *arg, const struct sft_point *point);

/* A point to go on from: its weights are in args.master. Borrowed. */
struct sft_resume {
    struct sft_state state;
    const float *adam_m, *adam_v; /* of this rank's share (optimizer_own_share) */
};

struct sft_args {
    const struct rl_config *config; /* sft.*, optimizer.*, run.seed */
    const struct model_layout *layout;
    const struct kernel_table *kernels;
    struct rl_pool *pool;               /* may be NULL */
    struct collective *collective;      /* NULL: one rank */
    const struct sft_example *examples; /* [example_count] */
    uint64_t example_count;
    uint64_t stream; /* picks the order of the examples, beside run.seed */
    /* Clipped policy objective against `behaviour`, at the temperature that the samples were drawn
     * at; NULL: cross-entropy at temperature 1. Borrowed. */
    const struct objective_options *objective;
    float inv_temperature;           /* of `objective` */
    float *master;                   /* [master_count] the host's, updated in place */
    const struct sft_resume *resume; /* NULL: from the start */
    sft_progress_fn progress;        /* may be NULL */
    void *progress_arg;
    sft_save_fn save; /* may be NULL */
    void *save_arg;
    int64_t save_every; /* updates; 0: only when stopped and at the end */
};

/* Train for sft.epochs. *mean_loss: over the last tenth of the updates. Deterministic for the same
 * examples, seed, kernels and number of ranks, whatever the number of threads and wherever it was
 * stopped and resumed. Blocking; collective among the ranks.
 * Errors: RL_INVALID (no examples, one that breaks the rules above), RL_NONFINITE (three updates
 * in a row), RL_INTERRUPTED, RL_NO_MEMORY; those of `save` and the collective. */
rl_status sft_run(const struct sft_args *args, double *mean_loss);

#endif
