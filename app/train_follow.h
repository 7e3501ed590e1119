/* How the learners beside rank 0 stay in step with it: rank 0 broadcasts commands over the
 * learners' collective, the followers carry them out with a learner of their own. */
#ifndef FORESIGHT_APP_TRAIN_FOLLOW_H
#define FORESIGHT_APP_TRAIN_FOLLOW_H

#include "app/session.h"
#include "core/trajectory.h"
#include "core/wait.h"
#include "transport/collective.h"

/* Rank 0: begin from the model's weights (checkpoint "") or from a checkpoint folder. No-ops when
 * there is one learner. Errors: those of the collective. */
rl_status train_follow_start(struct collective *collective, const char *checkpoint);

/* Rank 0: train on these groups as step `step`. Errors: those of the collective and of encoding. */
rl_status train_follow_batch(struct collective *collective, struct trajectory_group *const *groups,
                             uint32_t count, uint64_t step);

/* Rank 0, after a step whose report says GUARD_ROLL_BACK: back to this checkpoint ("": to the
 * beginning). */
rl_status train_follow_roll_back(struct collective *collective, const char *checkpoint);

/* Rank 0, whose moments are shared out: it fetches some (optimizer_fetch) until it has said that it
 * is done (optimizer_fetch_end). */
rl_status train_follow_save(struct collective *collective);

/* Rank 0: the run is over. */
rl_status train_follow_stop(struct collective *collective);

/* The other learners: carry out commands until the stop. Compute thread; blocking. */
rl_status train_follow_run(const struct rl_config *config, struct session *session,
                           struct collective *collective, struct rl_waits *waits);

#endif
