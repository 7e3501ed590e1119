/* `foresight audit`: where a run's time went, what held it up, what would help. Reads what the run
 * wrote (trainer/report_data.h) and takes no part in it. The expected gain comes from a prediction
 * function that the caller supplies, so that this layer knows no simulator. */
#ifndef FORESIGHT_TRAINER_AUDIT_H
#define FORESIGHT_TRAINER_AUDIT_H

#include "core/config.h"
#include "core/role_times.h"
#include "core/text.h"
#include "trainer/report_data.h"

#include <jansson.h>
#include <stdbool.h>

enum { AUDIT_AGES = 32, AUDIT_LENGTHS = 24 };

/* A run as numbers that a prediction can start from; also a changed run. */
struct audit_plan {
    bool by_turns; /* one process: generates and learns by turns */
    double rollout_ranks, learners, max_staleness;
    double prompts_per_step, samples_per_prompt, max_running;
    double length_median, length_p95, length_max; /* tokens */
    double token_s; /* work of one rollout rank for each completion token */
    double step_s;  /* work of the learner for a step */
};

enum audit_bottleneck {
    AUDIT_BALANCED,
    AUDIT_BY_TURNS,   /* one process: neither side works while the other does */
    AUDIT_GENERATION, /* the learner waits for samples */
    AUDIT_LEARNING,   /* rollout ranks wait for tickets */
    AUDIT_STALENESS,  /* both wait: the bound on staleness keeps them apart */
    AUDIT_REWARDS,    /* rollout ranks wait for scores */
    AUDIT_CHANNEL,    /* rollout ranks wait for the learner to take groups */
    AUDIT_CHECKPOINT, /* the learner waits for checkpoints */
    AUDIT_WEIGHTS     /* somebody waits for weights */
};

struct audit {
    const char *name; /* of the run; borrowed from the loaded run */
    size_t steps;
    double wall_s, tokens; /* completion tokens trained on */
    double learner_s[RL_LEARNER_TIMES], rollout_s[RL_ROLLOUT_TIMES];
    double learner_idle, rollout_idle; /* shares of the role's time */
    double weight_wait;                /* the larger of both roles' shares */
    double learner_cpu_s, rollout_cpu_s;
    double ages[AUDIT_AGES]; /* share of tokens by staleness in versions */
    double
        lengths[AUDIT_LENGTHS]; /* share of completions of at most 2^i tokens and more than half */
    double length_mean, length_p50, length_p95, length_max;
    struct audit_plan plan;
    enum audit_bottleneck bottleneck;
    struct audit_plan change; /* the run that is proposed; equal to `plan` if none is predicted */
    bool predicted;           /* gain and predicted_now mean something */
    double predicted_now;     /* tokens/s that the prediction gives for the run as it was */
    double gain;              /* share of throughput that the change is expected to add */
};

/* Tokens per second of `plan`. Errors: whatever keeps it from predicting. */
typedef rl_status (*audit_predict_fn)(void *arg, const struct audit_plan *plan,
                                      double *tokens_per_second);

/* Add up a loaded run (borrowed for the audit's life), name its bottleneck and try the change that
 * goes with it. Errors: RL_INVALID (no finished step, or one written without times by role). */
rl_status audit_make(const struct report_run *run, const struct rl_config *config,
                     audit_predict_fn predict, void *arg, struct audit *out);

/* The bottleneck, and the change that would help, as a sentence each, in text [bytes]. */
void audit_say_bottleneck(const struct audit *audit, char *text, size_t bytes);
void audit_say_change(const struct audit *audit, char *text, size_t bytes);

/* The audit as plain text, as JSON (new reference; NULL: out of memory), as a page that loads
 * nothing (merges rows of long runs). Errors: RL_TOO_LONG, RL_NO_MEMORY. */
rl_status audit_text_append(struct rl_text *out, const struct audit *audit);
json_t *audit_json(const struct audit *audit);
rl_status audit_page_append(struct rl_text *out, const struct audit *audit, struct report_run *run);

#endif
