/* The plan of a sweep: which trials SWEEP.yaml comes to, how they are called, in which order they
 * run, and which go on where cells are halved. Everything is checked before anything runs, and is a
 * function of the files alone: the same files give the same plan. Reads two files, writes none. */
#ifndef FORESIGHT_TRAINER_SWEEP_PLAN_H
#define FORESIGHT_TRAINER_SWEEP_PLAN_H

#include "core/arena.h"
#include "core/config.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

enum { SWEEP_NAME_BYTES = 128, SWEEP_TRIALS_MAX = 20000, SWEEP_RUNGS_MAX = 16 };

/* One option with its value, both as rl_config_key and rl_config_value write them. */
struct sweep_option {
    const char *key, *value;
    const char *where; /* "file:line", or "override" */
};

struct sweep_options {
    struct sweep_option *items; /* [count] */
    size_t count;
};

/* Options that change together; entry v gives option k the value values[v * key_count + k]. */
struct sweep_axis {
    const char **keys;   /* [key_count] */
    const char **values; /* [entry_count][key_count] */
    const char **labels; /* [entry_count], or NULL: made from the values */
    size_t key_count, entry_count;
    const char *where;
};

/* A trial is left out if every term holds: its option has one of the values. */
struct sweep_term {
    const char *key;
    const char **values; /* [value_count] */
    size_t value_count;
};
struct sweep_exclusion {
    struct sweep_term *terms; /* [term_count] */
    size_t term_count;
    const char *where;
};

struct sweep_trial {
    char name[SWEEP_NAME_BYTES];  /* short, unique, a plain file name; follows from the options */
    const char *key;              /* hash of options and seed, 16 hex digits */
    struct sweep_options options; /* beside `options` of the sweep; run.seed is the last */
    int64_t seed;
    size_t cell;     /* trials of one cell differ in the seed only */
    size_t *entries; /* [axis_count] of each axis */
    int64_t steps;   /* run.steps of a training; 0: the trial itself says how many it made */
    int ranks;       /* processes */
    double units;    /* tokens at most: what its cost is taken to be proportional to */
};

/* A model that trials start from: the control of those. */
struct sweep_base {
    char name[16];     /* its folder: base, or base1, base2 ... where model.path is an axis */
    const char *model; /* model.path */
};

struct sweep_plan {
    struct rl_arena *arena;     /* holds everything below */
    struct rl_config settings;  /* its sections sweep and halving count */
    struct rl_config base;      /* config with the sweep's options */
    struct rl_config evaluated; /* the same with the options under `eval` */
    const char *name;
    const char *config_text; /* of sweep.config */
    struct sweep_options options, eval;
    struct sweep_axis *axes; /* [axis_count] */
    size_t axis_count;
    int64_t *seeds; /* [seed_count] */
    size_t seed_count;
    bool seeds_given;
    struct sweep_exclusion *exclusions; /* [exclusion_count] */
    size_t exclusion_count;
    struct sweep_trial *trials; /* [trial_count], in order of the axes, the seed fastest */
    size_t trial_count, cell_count;
    struct sweep_base *bases; /* [base_count] in order of the trials; none if nothing evaluates */
    size_t base_count;
    int64_t rungs[SWEEP_RUNGS_MAX]; /* [rung_count] steps, the last rung not among them */
    size_t rung_count;
};

/* Read SWEEP.yaml and the configuration that it names, apply overrides [override_count]
 * ("section.name=value": of the sections sweep, halving and eval they replace what the file says,
 * of others what its `options` say), make all trials and validate each. Caller owns *out
 * (sweep_plan_destroy). Errors: RL_INVALID (file, line and reason), RL_IO, RL_NO_MEMORY. */
rl_status sweep_plan_read(const char *path, char *const *overrides, int override_count,
                          struct sweep_plan **out);

/* Free a plan. Takes NULL. */
void sweep_plan_destroy(struct sweep_plan *plan);

/* The resolved plan as JSON, the text of sweep.json; the same plan gives the same bytes. How it is
 * carried out (parallel, retries, limits) is not part of it. Caller frees *out. Errors:
 * RL_NO_MEMORY. */
rl_status sweep_plan_json(const struct sweep_plan *plan, char **out);

/* {"section.name": value, ...}: numbers and truth values as such. The caller's; NULL without
 * memory.
 */
json_t *sweep_plan_options_json(const struct sweep_options *options);

/* True if trials of this sweep are evaluated, the base model with them. */
bool sweep_plan_evaluates(const struct sweep_plan *plan);

/* Seconds that each trial of the whole is expected to take, into estimates [trial_count]: its units
 * at the speed of the finished trials, those that share its values of an axis counting for what
 * that value costs. `seconds` [trial_count]: NAN where not measured. Without any measured trial the
 * units themselves. */
void sweep_plan_estimate(const struct sweep_plan *plan, const double *seconds, double *estimates);

/* Which cells go on after a rung: keep x (cells with a score), rounded up, the best, equal scores
 * in order of the plan. scores [cell_count]: NAN for a cell that is out or failed. goes_on
 * [cell_count]. */
void sweep_plan_halve(const struct sweep_plan *plan, const double *scores, bool *goes_on);

#endif
