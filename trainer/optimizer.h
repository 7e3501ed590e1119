/* AdamW on the master slab: global-norm clipping, learning-rate schedule, decay of matrices only,
 * and the guard that keeps numbers that are not finite out of the weights. Every learner rank calls
 * it with the same reduced gradient and so keeps the same weights. Moments are kept whole by every
 * rank, or shared out among them (optimizer_share.h): then measuring and applying are collective,
 * and of the gradient each rank needs its own share only. The weights have the same bits either
 * way. */
#ifndef FORESIGHT_TRAINER_OPTIMIZER_H
#define FORESIGHT_TRAINER_OPTIMIZER_H

#include "model/forward.h"
#include "trainer/optimizer_share.h"
#include "trainer/schedule.h"

#include <stdbool.h>

struct optimizer_options {
    struct schedule schedule;
    double beta1, beta2, epsilon; /* epsilon > 0 */
    double weight_decay;
    double max_grad_norm;           /* 0: no clipping */
    struct collective *share_among; /* ranks that share the moments out, borrowed for life; NULL:
                                       they are all here */
};

enum optimizer_outcome {
    OPTIMIZER_UPDATED,
    OPTIMIZER_SKIPPED_NONFINITE, /* gradient norm, its square or the denominator is not finite */
    OPTIMIZER_SKIPPED_EMPTY      /* inv_denominator is 0: nothing to learn from */
};

struct optimizer_report {
    enum optimizer_outcome outcome;
    double grad_norm;     /* after the division by the denominator, before clipping */
    double learning_rate; /* of this update */
    double clip_scale;    /* <= 1 */
    double grad_scale;    /* what the gradient is multiplied with: denominator and clipping */
};

/* Moments and counters; the caller may read and write `state` for checkpoints between steps. */
struct optimizer_state {
    float *m, *v;        /* [count] the host's, see optimizer_push; owned by the optimizer */
    int64_t first;       /* where they begin in the slabs, floats; 0 unless shared out */
    int64_t count;       /* master_count, or this rank's share of it */
    int64_t step;        /* updates made */
    int64_t skipped;     /* updates skipped because something was not finite, in all */
    int64_t skipped_run; /* the same, in a row */
    double rate_scale;   /* of the schedule's learning rate; 1 at first */
};

struct optimizer;

/* What an update works on; all borrowed for the call. */
struct optimizer_weights {
    float *master;                       /* [master_count] */
    const float *grad;                   /* [master_count], only read; of it, the own share */
    void *image;                         /* [image_bytes]: becomes the image of the new masters */
    const struct model_image_diff *diff; /* of the image against another; may be NULL */
};

/* Options from optimizer.*; total_updates: updates of the whole run; `learners`: who trains
 * together, borrowed for the optimizer's life. */
void optimizer_options_from_config(const struct rl_config *config, int64_t total_updates,
                                   struct collective *learners, struct optimizer_options *out);

/* Floats of the largest share of slabs of `count` among so many learners, as the configuration has
 * it: `count` if nothing is shared out. */
int64_t optimizer_largest_share(const struct rl_config *config, int64_t count, int learners);

/* The floats [*first, *first + *own) whose moments an optimizer of this learner will keep. */
void optimizer_own_share(const struct rl_config *config, const struct collective *learners,
                         int64_t count, int64_t *first, int64_t *own);

/* What the workspace of training keeps of a forward pass, from optimizer.recompute. */
enum model_keep optimizer_keep(const struct rl_config *config);

/* Zero moments. `layout` and `kernels` are borrowed for life. Caller owns *out.
 * Errors: RL_NO_MEMORY, RL_INVALID (epsilon not > 0, a rate or beta out of range). */
rl_status optimizer_create(const struct optimizer_options *options,
                           const struct model_layout *layout, const struct kernel_table *kernels,
                           struct optimizer **out);

/* Takes NULL. */
void optimizer_destroy(struct optimizer *optimizer);

/* One update: master -= AdamW(grad * inv_denominator), and its image. A skipped update changes
 * neither weights nor image nor moments nor the step. Errors: the collective's; after one the
 * weights are of no use. */
rl_status optimizer_step(struct optimizer *optimizer, const struct optimizer_weights *weights,
                         double inv_denominator, struct rl_pool *pool,
                         struct optimizer_report *report);

/* The same in parts, for a caller with reasons of its own to skip: what the update would be,
 * changing nothing; making it (report->outcome must be OPTIMIZER_UPDATED), *finite: every new
 * weight is; counting that it was not made because something was not finite, and saying so. */
rl_status optimizer_measure(struct optimizer *optimizer, const float *grad, double inv_denominator,
                            struct rl_pool *pool, struct optimizer_report *report);
rl_status optimizer_apply(struct optimizer *optimizer, const struct optimizer_weights *weights,
                          const struct optimizer_report *report, struct rl_pool *pool,
                          bool *finite);
void optimizer_skip(struct optimizer *optimizer, const char *why);

/* Sum a gradient [master_count] over the ranks of `collective`, as far as this rank's update needs
 * it. Errors: the collective's, the device's. */
rl_status optimizer_reduce(struct optimizer *optimizer, struct collective *collective, float *grad,
                           struct rl_pool *pool);

/* On a device, whose moments are its own: those of `state` to it, and from it; those of `state` are
 * of no more use. */
void optimizer_push(const struct optimizer *optimizer, struct rl_pool *pool);
rl_status optimizer_pull(const struct optimizer *optimizer, struct rl_pool *pool);
void optimizer_forget(const struct optimizer *optimizer);

/* True if the moments are shared out. */
bool optimizer_is_shared(const struct optimizer *optimizer);

/* Moments for a checkpoint that rank 0 writes, as much at a time as it has room for. Rank 0 fetches
 * windows in any order and says when it is done; meanwhile the other ranks serve. Collective where
 * moments are shared out, else a copy, and nothing to serve. Errors: the collective's, RL_INVALID
 * (no such moments), RL_NO_MEMORY. */
rl_status optimizer_fetch(struct optimizer *optimizer, const struct optimizer_window *window);
rl_status optimizer_fetch_end(struct optimizer *optimizer);
rl_status optimizer_serve(struct optimizer *optimizer);

/* True if every weight is finite. Reads master [master_count] once. */
bool optimizer_weights_finite(struct optimizer *optimizer, const float *master,
                              struct rl_pool *pool);

/* Borrowed for the optimizer's life. */
struct optimizer_state *optimizer_state(struct optimizer *optimizer);

#endif
