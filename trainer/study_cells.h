/* Cells of a sweep and what may be said of them. A cell is a setting, a checkpoint and a
 * temperature of evaluation, averaged over seeds. Which cell wins is decided from split A alone, by
 * a function that is given nothing else; what is claimed of it is computed from split B. Pure. */
#ifndef FORESIGHT_TRAINER_STUDY_CELLS_H
#define FORESIGHT_TRAINER_STUDY_CELLS_H

#include "trainer/eval_compare.h"
#include "trainer/study_data.h"

/* A setting below zero is a base model: STUDY_BASE the first, STUDY_BASE - 1 the second. */
enum { STUDY_BASE = -1, STUDY_NONE = -1, STUDY_ANY_CLASS = -1 };

/* Step of a cell of the trials' last checkpoints, which need not be at one step for all seeds. */
#define STUDY_LAST INT64_MAX

struct study_cell {
    int32_t setting;      /* below 0: a base model */
    int64_t step;         /* STUDY_LAST: see there */
    uint32_t temperature; /* index */
    uint32_t seeds;       /* trials behind it */
};

/* All cells: the bases' first, then by setting, step and temperature. */
struct study_cells {
    const struct study *study; /* borrowed */
    struct study_cell *items;  /* owned [count] */
    uint32_t count;
    uint8_t *classes; /* owned [problems]; difficulty of the problems of set 0 */
    char class_names[COUNT_CLASSES_MAX][64];
    uint32_t class_count;
    bool classes_measured; /* terciles of what was measured, not the rows' own */
};

/* Enumerate; the study must outlive it. A study without counts has no cells. Release with
 * study_cells_fini. Errors: RL_NO_MEMORY. */
rl_status study_cells_make(const struct study *study, struct study_cells *out);
void study_cells_fini(struct study_cells *cells);

/* --- split A: choosing --------------------------------------------------------------------------
 */

/* What choosing may look at: per cell its mean pass@1 on split A, and to which candidates it
 * belongs. There are no counts in here, so nothing can be chosen by any other problems. */
struct study_half_a {
    uint32_t count, group_count, base_count;
    double *score;  /* owned [count] */
    int32_t *group; /* owned [count]; below 0: a base model, as of a cell's setting */
};

struct study_choice {
    int32_t winner;      /* best cell that is not a base's; STUDY_NONE: there is none */
    int32_t *base_tuned; /* owned [base_count]: best cell of each base, STUDY_NONE: none */
    int32_t *of_group;   /* owned [group_count]: best cell of each group, STUDY_NONE: none */
    uint32_t group_count, base_count;
};

/* Errors: RL_INVALID (no problem falls into split A), RL_NO_MEMORY. */
rl_status study_half_a_make(const struct study_cells *cells, struct study_half_a *out);
void study_half_a_fini(struct study_half_a *half);

/* The largest scores; of equal ones the first. Errors: RL_NO_MEMORY. */
rl_status study_choose(const struct study_half_a *half, struct study_choice *out);
void study_choice_fini(struct study_choice *choice);

/* --- figures ------------------------------------------------------------------------------------
 */

/* What is asked of a cell. */
struct study_ask {
    struct eval_scope scope;
    enum eval_figure figure;
    uint32_t k;
    int32_t difficulty; /* STUDY_ANY_CLASS, or a class of set 0 */
};

/* A cell's figure of each problem, mean over seeds, into values [problems of the table].
 * Errors: those of eval_counts_values. */
rl_status study_values(const struct study_cells *cells, uint32_t cell, const struct study_ask *ask,
                       double *values, uint32_t *count);

/* Mean over problems. *count: problems; 0: none, and *mean is NAN. */
rl_status study_mean(const struct study_cells *cells, uint32_t cell, const struct study_ask *ask,
                     double *mean, uint32_t *count);

/* The same with a bootstrap interval over problems. */
rl_status study_figure(const struct study_cells *cells, uint32_t cell, const struct study_ask *ask,
                       struct eval_interval *out, uint32_t *count);

/* right - left, by problem; and over the seeds of `right` where it has several (low NAN: one). */
struct study_difference {
    struct eval_interval problems; /* paired bootstrap */
    struct eval_interval seeds; /* Student's t; seeds are paired where both sides have the same */
};
rl_status study_compare(const struct study_cells *cells, uint32_t left, uint32_t right,
                        const struct study_ask *ask, struct study_difference *out);

/* Mean figure of each trial behind a cell, in order of the plan: into values [trial_count]. */
rl_status study_seed_values(const struct study_cells *cells, uint32_t cell,
                            const struct study_ask *ask, double *values, uint32_t *count);

/* Step of a cell as a number; of the last checkpoints the largest. */
int64_t study_cell_step(const struct study_cells *cells, uint32_t cell);

/* Number of the base model of a cell: the one that its trials start from, or that it is. */
uint32_t study_cell_base(const struct study_cells *cells, uint32_t cell);

/* Cell of a base model at its default decoding; STUDY_NONE: not evaluated. */
int32_t study_base_default(const struct study_cells *cells, uint32_t base);

/* Cell of a setting (or base model) at its last checkpoint and a temperature; STUDY_NONE. */
int32_t study_last_cell(const struct study_cells *cells, int32_t setting, uint32_t temperature);

/* Index of the default temperature of evaluation; STUDY_NONE if it was not evaluated. */
int32_t study_default_temperature(const struct study *study);

/* Samples of a problem that all cells have: the largest k of pass@k. */
uint32_t study_samples(const struct study *study);

#endif
