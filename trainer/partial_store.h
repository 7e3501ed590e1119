/* Partial groups: of tickets that workers are at, the samples that are finished already (the others
 * are empty: completion_count 0). Workers send them on request; a checkpoint holds them, and after
 * a resume, or when another worker takes over a ticket, they go out before it, so that what was
 * finished is not sampled again. Only a saving: a ticket without its partial group gives the same
 * samples. Pure state, one thread. */
#ifndef FORESIGHT_TRAINER_PARTIAL_STORE_H
#define FORESIGHT_TRAINER_PARTIAL_STORE_H

#include "core/trajectory.h"
#include "trainer/admission.h"

struct partial_store {
    struct trajectory_group **groups; /* [count], one a ticket */
    uint32_t count, reserved;
};

/* Release all groups. Takes a zeroed struct, and leaves one. */
void partial_store_fini(struct partial_store *store);

/* Keep a group unless it is refused (logged) or has no more finished samples than the one that is
 * here: its ticket must be at work or wait to be issued, and every finished sample such as
 * admission would take it. Always takes the group. Errors: RL_NO_MEMORY. */
rl_status partial_store_put(struct partial_store *store, const struct admission *admission,
                            struct trajectory_group *group);

/* The group of a ticket about to be issued, or NULL if there is none or it would be too old to be
 * trained on. Borrowed until the next call. */
const struct trajectory_group *partial_store_find(const struct partial_store *store,
                                                  const struct admission *admission,
                                                  uint64_t ticket);

/* Forget groups whose tickets have arrived, were dropped or have become too old. */
void partial_store_prune(struct partial_store *store, const struct admission *admission);

#endif
