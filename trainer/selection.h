/* Which samples self-distillation trains on, and with what weight. Pure: no model, no file, no
 * clock. One path for SSD, RFT, STaR, ReST-EM, RAFT, RAFT++ and Reinforce-Rej: a mask, filters and
 * a weight rule. Every sample gets one verdict, the first that applies in the order below; filters
 * act one after the other on what is left:
 *   degenerate, truncated, unscored -> mask -> duplicates -> shortest share -> cap -> weight 0
 * Whether a prompt is all wrong or all right is judged by all its samples that could be scored,
 * degenerate ones included. */
#ifndef FORESIGHT_TRAINER_SELECTION_H
#define FORESIGHT_TRAINER_SELECTION_H

#include "core/config.h"

/* Verdicts, with the names that metrics and summaries use. */
#define SELECTION_VERDICTS(X)                                                                      \
    X(KEPT, "kept")                                                                                \
    X(EMPTY, "empty")                                                                              \
    X(STUB, "stub")                                                                                \
    X(TRUNCATED, "truncated")                                                                      \
    X(UNSCORED, "unscored")   /* where mask or weight need a reward */                             \
    X(WRONG, "wrong")         /* select: correct */                                                \
    X(NOT_BEST, "not_best")   /* select: best_of_n */                                              \
    X(ALL_WRONG, "all_wrong") /* select: not_all_wrong, mixed_only */                              \
    X(ALL_RIGHT, "all_right") /* select: mixed_only */                                             \
    X(DUPLICATE, "duplicate")                                                                      \
    X(SHORT, "short")                                                                              \
    X(CAPPED, "capped")                                                                            \
    X(WEIGHTLESS, "weightless")

#define SELECTION_ID(id, name) SELECTION_##id,
enum selection_verdict { SELECTION_VERDICTS(SELECTION_ID) SELECTION_VERDICT_COUNT };
#undef SELECTION_ID

struct selection_options {
    enum config_select select;
    enum config_weight weight;
    enum config_degenerate degenerate;
    bool dedupe, drop_truncated;
    double drop_shortest;    /* share, below 1 */
    uint32_t max_per_prompt; /* 0: no limit */
};

/* One sample; those of a prompt stand together, in order of their index. Texts are borrowed. */
struct selection_sample {
    uint64_t prompt;
    const char *text; /* completion */
    const char *path; /* what makes it the same as another, but for white space; NULL: its text */
    uint32_t length;  /* completion tokens */
    bool truncated, valid;  /* valid: it has a reward */
    float reward, accuracy; /* accuracy >= 1: correct */
    float advantage;        /* for weight: advantage */
};

struct selection_counts {
    uint64_t samples;
    uint64_t verdict[SELECTION_VERDICT_COUNT];
};

/* Options from distill.*. */
void selection_options_from_config(const struct rl_config *config, struct selection_options *out);

/* verdict [count] and weight [count] (0 where not kept) of samples [count].
 * Errors: RL_INVALID (a weight that is not finite), RL_NO_MEMORY. */
rl_status selection_run(const struct selection_options *options,
                        const struct selection_sample *samples, size_t count,
                        enum selection_verdict *verdict, float *weight,
                        struct selection_counts *counts);

/* A verdict's name; static. */
const char *selection_verdict_name(enum selection_verdict verdict);

#endif
