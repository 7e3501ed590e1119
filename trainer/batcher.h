/* From admitted groups to packed micro-batches. Pure. Whole groups are dealt to minibatches, the
 * sequences of a minibatch to learner ranks by token count, and a rank's sequences to micro-batches
 * under the token budget. Everything depends on the groups, the options and the seed alone, so all
 * ranks that hold the same groups make the same plan.
 *
 * A sequence of p prompt and n completion tokens is fed as p + n - 1 tokens (the last one predicts
 * nothing); the hidden state of the token before predicts each completion token.
 *
 * Samples of a group that are neighbours in a micro-batch form a family: the whole pages of 16
 * tokens of their prompt are fed once, as a segment of its own (see kernel_segments.prefix), and
 * each sample's segment goes on from there. Log-probs have the same bits either way. */
#ifndef FORESIGHT_TRAINER_BATCHER_H
#define FORESIGHT_TRAINER_BATCHER_H

#include "core/trajectory.h"
#include "model/forward.h"

struct batcher_options {
    uint32_t updates_per_step;          /* minibatches; at most the number of groups is used */
    uint32_t max_tokens_per_microbatch; /* a longer sequence has a micro-batch of its own */
    uint32_t ranks, rank;               /* learner ranks, this one */
    bool shuffle;                       /* deal groups in an order keyed by seed and step */
    uint64_t seed, step;
    bool mask_truncated; /* leave out completions that were cut at the length limit */
    bool share_prompts;  /* form families */
};

struct batcher_sequence {
    const struct trajectory *sample; /* borrowed from the group */
    uint32_t group;                  /* index into the groups given */
    uint32_t index; /* of the sample among all samples, group by group: the advantage's index */
    uint32_t token_count; /* tokens fed: prompt + completion - 1 */
    uint32_t shared;      /* the first so many of them are its family's; 0: it has none */
    bool leads;           /* the first of its family: its segment follows the shared one */
};

struct batcher_microbatch {
    uint32_t first_sequence, sequence_count; /* into plan->sequences */
    uint32_t token_count;                    /* N */
    uint32_t row_count;                      /* M: completion tokens */
    uint32_t page_count;                     /* KV pages of 16 tokens */
    uint32_t segment_count;                  /* sequences and what families share */
    uint32_t table_count;                    /* page numbers in the segments' tables */
};

struct batcher_minibatch {
    uint32_t first_microbatch, microbatch_count; /* 0 microbatches: this rank has nothing to do but
                                                    must still join the reduction */
    uint32_t group_count;                        /* of all ranks */
    uint32_t sequence_count, row_count;          /* of all ranks */
};

/* What one rank does in one step. */
struct batcher_plan {
    uint32_t minibatch_count, microbatch_count, sequence_count;
    struct batcher_minibatch *minibatches;
    struct batcher_microbatch *microbatches;
    struct batcher_sequence *sequences;
    uint32_t skipped_empty;     /* sequences of all ranks left out: no completion token */
    uint32_t skipped_truncated; /* the same: cut at the limit, with mask_truncated */
    uint32_t max_tokens, max_rows, max_sequences, max_pages; /* largest micro-batch of this rank */
};

/* Groups are borrowed for the plan's life. Caller owns *out.
 * Errors: RL_INVALID (no group, rank >= ranks, an option 0, a trained sequence without prompt),
 * RL_NO_MEMORY. */
rl_status batcher_plan_create(const struct batcher_options *options,
                              struct trajectory_group *const *groups, uint32_t group_count,
                              struct batcher_plan **out);

/* Takes NULL. */
void batcher_plan_destroy(struct batcher_plan *plan);

/* A micro-batch as arrays for model_forward and model_head_forward. Reused from one
 * micro-batch to the next; grows when needed. */
struct batcher_arrays {
    struct model_batch batch;        /* ready for model_forward; its arrays are the ones below */
    struct kernel_segments segments; /* S: one a sequence, one more a family */
    int32_t *tokens, *positions;     /* [N] */
    int32_t *segment_start;          /* [S + 1] */
    int32_t *first_position;         /* [S] */
    int32_t *prefix;                 /* [S] the family's segment, -1 */
    int32_t *tables;                 /* [table_count] page numbers */
    const int32_t **page_table;      /* [S] into tables */
    int32_t *row_start;              /* [sequences + 1] sequence i has rows [i] .. [i + 1] - 1 */
    int32_t *hidden_rows, *targets;  /* [M] */
    int64_t token_count, row_count;  /* N, M */
    int64_t sequence_count, segment_count, page_count, table_count;
    int64_t token_capacity, row_capacity, segment_capacity, table_capacity;
};

/* Starts empty. Release with batcher_arrays_fini. */
void batcher_arrays_init(struct batcher_arrays *arrays);
void batcher_arrays_fini(struct batcher_arrays *arrays);

/* Fill with micro-batch `microbatch` of the plan. Errors: RL_NO_MEMORY (arrays then hold nothing).
 */
rl_status batcher_arrays_fill(struct batcher_arrays *arrays, const struct batcher_plan *plan,
                              uint32_t microbatch);

#endif
