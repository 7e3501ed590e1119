/* The older weight versions that a run in the order fixed_lag still generates with: into a
 * checkpoint as a chain of deltas, each from one version to the one before, and back into the
 * arena. Without them a resumed run could not make the same samples. */
#ifndef FORESIGHT_APP_WEIGHT_WINDOW_H
#define FORESIGHT_APP_WEIGHT_WINDOW_H

#include "app/session.h"
#include "trainer/checkpoint.h"
#include "transport/weight_arena.h"

/* Slots of the arena that workers in other processes decode from: the newest, one being written and
 * one that a worker is about to leave; in fixed_lag the whole window of versions that tickets are
 * pinned to. */
int weight_window_slots(const struct rl_config *config);

/* Versions `oldest` .. `newest`, all in the arena; the newest is not written, it is made from the
 * masters. Pins as `reader`. The caller frees *images and their data. Errors: RL_NOT_FOUND,
 * RL_NO_MEMORY. */
struct weight_window {
    const struct session *session;
    struct weight_arena *arena;
    int reader;
    uint32_t oldest, newest;
};
rl_status weight_window_save(const struct weight_window *window, struct checkpoint_blob **images,
                             size_t *count);

/* Publish the versions `oldest` .. `newest` - 1 in their order, made from `master` (those of
 * `newest`) and the deltas. Before anything else is published. Errors: RL_CORRUPT (the chain is not
 * of this window), RL_INVALID (other weights come of these masters here: another storage or
 * other kernels), RL_NO_MEMORY. */
rl_status weight_window_restore(const struct weight_window *window, const float *master,
                                const struct checkpoint_blob *images, size_t count);

#endif
