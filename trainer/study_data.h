/* What a sweep's folder holds for its report: the plan, every trial's result and counts
 * (docs/sweep.md, docs/evaluation.md). Owns the data, computes nothing. Trials that differ in their
 * seed only are one setting; settings that differ in the sampling temperature only are one group.
 * Invariant: all counts are of the same problems at the same temperatures. One thread. */
#ifndef FORESIGHT_TRAINER_STUDY_DATA_H
#define FORESIGHT_TRAINER_STUDY_DATA_H

#include "core/status.h"
#include "transport/count_file.h"

#include <jansson.h>
#include <stdbool.h>

enum { STUDY_LABEL_BYTES = 256 };

/* Counts of one checkpoint. */
struct study_evaluation {
    int64_t step;
    struct count_table *counts; /* owned */
};

struct study_trial {
    const char *name; /* borrowed from the plan, as `options` */
    const json_t *options;
    int64_t seed;
    uint32_t setting;
    const char *state;  /* "done", "failed", "stopped_early"; "" : no result yet; borrowed */
    const char *reason; /* of a failure; "" */
    json_t *result;     /* owned; NULL: none yet */
    json_t *summary;    /* owned; the run's summary.json; NULL: none */
    json_t *timing;     /* owned; NULL: none */
    struct study_evaluation *evaluations; /* owned [evaluation_count], by rising step */
    uint32_t evaluation_count;
};

struct study_setting {
    char label[STUDY_LABEL_BYTES]; /* values of the axes, the seed left out */
    char *key;                     /* owned; the options as text, without the seed */
    double train_temperature;
    bool truncated;  /* top-k, top-p or min-p cut the sampler */
    bool unfiltered; /* all samples are trained on alike */
    uint32_t group;
    uint32_t base; /* the model that its trials start from */
};

/* A control. */
struct study_base {
    char name[32];                 /* its folder in the sweep's; what tables call it as a trial */
    char label[STUDY_LABEL_BYTES]; /* with its model where there are several */
    const char *model;             /* model.path; borrowed from the plan, "" of a single base */
    struct count_table *counts;    /* owned; NULL: not evaluated */
};

struct study_group {
    char label[STUDY_LABEL_BYTES]; /* as of a setting, the sampling temperature left out */
    char *key;                     /* owned */
};

struct study {
    char *dir;        /* owned */
    const char *name; /* borrowed from the plan, as `command` */
    const char *command;
    json_t *plan;                   /* owned */
    struct study_trial *trials;     /* owned [trial_count], in order of the plan */
    struct study_setting *settings; /* owned [setting_count], in order of their first trials */
    struct study_group *groups;     /* owned [group_count], likewise */
    struct study_base *bases;       /* owned [base_count], at least one */
    uint32_t trial_count, setting_count, group_count, base_count;
};

/* Read SWEEP. A trial without result.json is one that has not ended; its counts are not read.
 * Caller owns *out (study_destroy). Errors: RL_IO, RL_CORRUPT, RL_INVALID (file and reason; counts
 * of other problems or temperatures), RL_NO_MEMORY. */
rl_status study_load(const char *dir, struct study **out);

/* Takes NULL. */
void study_destroy(struct study *study);

/* True if DIR has a plan of a sweep. */
bool study_is_sweep(const char *dir);

/* Any counts of the study, by which the sets, problems and temperatures are known; NULL: none. */
const struct count_table *study_counts(const struct study *study);

#endif
