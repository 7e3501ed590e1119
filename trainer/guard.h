/* The guard between a gradient and the weights: which update is made, which is skipped, when the
 * run goes back to older weights, and when it stops. Pure: it is given facts that are the same on
 * every learner rank (reduced over all of them), so every rank decides the same. Its state is plain
 * data and travels in checkpoints as it stands.
 *
 * Rules. Anything that is not finite: the update is skipped. Three steps in a row without a sound
 * update, or weights that are not finite: roll back to weights that are known to be sound, at half
 * the learning rate. When that would be necessary a second time the run stops. Samples of
 * the weights that were given up are not trained on, and do not count towards the next rollback. */
#ifndef FORESIGHT_TRAINER_GUARD_H
#define FORESIGHT_TRAINER_GUARD_H

#include "core/status.h"
#include "core/trajectory.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    GUARD_WINDOW = 128,       /* gradient norms that the z-score looks back on */
    GUARD_WINDOW_LEAST = 32,  /* below so many there is no z-score */
    GUARD_SKIPS = 3,          /* steps in a row without a sound update: roll back */
    GUARD_ROLLBACKS_MOST = 1, /* one more that is needed stops the run */
    GUARD_OUTLIERS = 3        /* updates in a row: not outliers but a new level */
};

/* What was found not to be finite; bits. */
enum guard_fault {
    GUARD_LOGPROB = 1,   /* a log-prob of the current, behaviour, old or reference policy */
    GUARD_ADVANTAGE = 2, /* an advantage or a penalty */
    GUARD_SAMPLER = 4,   /* a sample that the engine ended because its log-prob was not finite */
    GUARD_GRADIENT = 8,  /* gradient norm, or a loss */
    GUARD_WEIGHTS = 16,  /* the masters, after an update */
    GUARD_REVOKED = 32   /* finite, but sampled by weights that were given up */
};

enum guard_verdict { GUARD_APPLY, GUARD_SKIP, GUARD_SKIP_OUTLIER };
enum guard_action { GUARD_GO_ON, GUARD_ROLL_BACK, GUARD_STOP };

struct guard_options {
    double norm_score_max; /* skip updates whose gradient norm has a higher z-score; 0: never */
    uint32_t lag;          /* versions that a sample may be old */
};

/* Whole numbers only but for what is a double: no padding, so it can be hashed and stored. */
struct guard_state {
    uint64_t skipped_in_a_row; /* steps */
    uint64_t rollbacks;
    uint64_t sound_step;   /* newest step that was all finite: it began with sound weights */
    uint64_t revoked_from; /* versions [from, to) were given up; from == to: none */
    uint64_t revoked_to;
    uint64_t grace_until; /* steps up to this may still see samples of those */
    uint64_t outliers_in_a_row;
    uint64_t norm_count; /* valid entries of norms */
    uint64_t norm_next;
    double rate_scale; /* of the learning rate; 1 at first */
    double norms[GUARD_WINDOW];
};

/* What a step did. */
struct guard_step {
    uint64_t step;
    int64_t updates; /* made */
    int64_t skipped; /* because something was not finite, or revoked */
    uint32_t faults; /* of all its minibatches; bits of guard_fault */
};

/* Nothing seen yet. */
void guard_init(struct guard_state *state);

/* Refuse a state that no guard wrote. Errors: RL_CORRUPT. */
rl_status guard_check(const struct guard_state *state);

/* z-score of a gradient norm against the window; 0 if that is not full enough or has no spread. */
double guard_norm_score(const struct guard_state *state, double norm);

/* Decide on one update from the faults found before it and its gradient norm. A norm that is let
 * through joins the window; an outlier does not, until GUARD_OUTLIERS in a row show that the level
 * has changed. */
enum guard_verdict guard_judge(struct guard_state *state, const struct guard_options *options,
                               uint32_t faults, double norm);

/* Faults that the groups of step `step` bring with them: revoked or aborted samples. */
uint32_t guard_examine(const struct guard_state *state, struct trajectory_group *const *groups,
                       uint32_t count, uint64_t step);

/* The step is over: what now? */
enum guard_action guard_end_step(struct guard_state *state, const struct guard_step *step);

/* The run went back to the weights of version `version`, which step `step` publishes again as
 * version `next`. Halves the learning rate. */
void guard_rolled_back(struct guard_state *state, const struct guard_options *options,
                       uint64_t step, uint32_t version, uint32_t next);

/* "log-prob, gradient": the faults as text, in out [bytes]; returns out. */
const char *guard_faults_text(uint32_t faults, char *out, size_t bytes);

#endif
