/* Supervised fine-tuning: cross-entropy on completion tokens only (prompts masked), packed varlen
 * batches, AdamW. Owns the order of the examples and the loop; not the data, not the files. */
#ifndef FORESIGHT_TRAINER_SFT_H
#define FORESIGHT_TRAINER_SFT_H

#include "core/config.h"
#include "model/params.h"

struct sft_example {
    const int32_t *tokens; /* [count] prompt, then completion; borrowed */
    uint32_t count;
    uint32_t prompt_count; /* tokens that carry no loss, >= 1 and < count */
};

struct sft_progress {
    int64_t update, updates; /* done, expected in all */
    double loss;             /* nats a completion token, of this update */
    double learning_rate, grad_norm;
    uint64_t tokens; /* fed so far */
    double elapsed_s;
};

/* Called after every update; a false answer stops the run early (RL_INTERRUPTED). */
typedef bool (*sft_progress_fn)(void *arg, const struct sft_progress *progress);

struct sft_args {
    const struct rl_config *config; /* sft.*, optimizer.*, run.seed */
    const struct model_layout *layout;
    const struct kernel_table *kernels;
    struct rl_pool *pool;               /* may be NULL */
    const struct sft_example *examples; /* [example_count] */
    uint64_t example_count;
    float *master;            /* [master_count], updated in place */
    sft_progress_fn progress; /* may be NULL */
    void *progress_arg;
};

/* Train for sft.epochs. *mean_loss: over the last tenth of the updates. Deterministic for the same
 * examples, seed and kernels, whatever the number of threads.
 * Errors: RL_INVALID (no examples, one that breaks the rules above), RL_NONFINITE (three updates
 * in a row), RL_INTERRUPTED, RL_NO_MEMORY. */
rl_status sft_run(const struct sft_args *args, double *mean_loss);

#endif
