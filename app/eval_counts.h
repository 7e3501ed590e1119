/* From sampled and scored groups to counts (transport/count_file.h), and from counts to the figures
 * that `foresight eval` prints. */
#ifndef FORESIGHT_APP_EVAL_COUNTS_H
#define FORESIGHT_APP_EVAL_COUNTS_H

#include "app/sample_set.h"
#include "trainer/eval_stats.h"
#include "transport/count_file.h"

#include <jansson.h>

/* The problem sets of an evaluation: data.eval, then each file of eval.guards. */
struct eval_sets {
    struct prompts *prompts[COUNT_SETS_MAX];
    uint64_t limits[COUNT_SETS_MAX]; /* problems used of each */
    uint32_t first[COUNT_SETS_MAX];  /* index of the set's first problem in the table */
    char *names;                     /* one a line: "eval", and the guards' file names */
    uint32_t count, problems;
};

/* Load data.eval and eval.guards. Release with eval_sets_close (also after an error). Errors: those
 * of prompts_load; RL_INVALID (data.eval not set, too many guards). */
rl_status eval_sets_open(const struct session *session, struct eval_sets *sets);
void eval_sets_close(struct eval_sets *sets);

/* Name of one set: not NUL-terminated, *bytes long. */
const char *eval_sets_name(const struct eval_sets *sets, uint32_t set, int *bytes);

/* eval.temperatures as numbers, else eval.temperature: into out [COUNT_TEMPERATURES_MAX]. Errors:
 * RL_INVALID (no number, out of 0 .. 100, twice, too many). */
rl_status eval_temperatures(const struct rl_config *config, double *out, uint32_t *count);

/* An empty table for these sets and temperatures, problems described. Caller owns *out. */
rl_status eval_counts_create(const struct rl_config *config, const struct eval_sets *sets,
                             const double *temperatures, uint32_t count, struct count_table **out);

/* Count the groups of one set at one temperature. Errors: those of decoding. */
rl_status eval_counts_fill(struct count_table *table, const struct session *session,
                           const struct sample_set *groups, uint32_t first, uint32_t temperature);

/* A sample that counts as right. */
bool eval_sample_solved(const struct trajectory *sample);

struct evaluation {
    double temperature;
    struct eval_interval pass_at_1, pass_at_n, majority;
    uint32_t problems, samples;
    uint64_t unscorable;
    double reward, length, truncated, tokens_per_second, wall_s, cpu_s;
};

/* Figures of one set at one temperature, groups and counts of the same samples. Errors: those of
 * eval_stats.h. */
rl_status eval_figures(const struct count_table *table, const struct sample_set *groups,
                       uint32_t first, uint32_t temperature, struct evaluation *out);

/* The figures as JSON; NULL if memory ran out. */
json_t *eval_figures_json(const struct evaluation *e);

#endif
