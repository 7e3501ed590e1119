/* Admission: which scored groups are trained on next. Owns the groups that wait; tells the
 * dispatcher of every delivery, drop and admission. Pure state, one thread (learner rank 0's).
 *
 * A group that arrives is thrown away and counted if it is a duplicate, malformed, unscorable, too
 * old, or (with dynamic sampling) has samples all right or all wrong. The others wait. A batch is B
 * groups in order of ticket, so that its order does not depend on the order of arrival; which ones
 * is the dispatcher's order:
 *   ready      those with the oldest tokens, lowest ticket first among equals, as soon as B wait
 *   ticket     those of the B lowest live tickets, when all of them are here
 *   fixed_lag  the step's own B, when all of them are here. Nothing is too old; an unscorable group
 *              stays (its advantages are 0) unless dynamic sampling replaces it, and a malformed
 *              one is asked for again: what is trained on does not depend on time.
 * Surplus waits for the next step.
 *
 * Invariant: every group inside belongs to a ticket in state scored; nothing older than
 * max_staleness leaves in a batch. */
#ifndef FORESIGHT_TRAINER_ADMISSION_H
#define FORESIGHT_TRAINER_ADMISSION_H

#include "core/config.h"
#include "core/trajectory.h"
#include "trainer/dispatcher.h"

struct admission_options {
    uint32_t prompts_per_step;   /* B */
    uint32_t samples_per_prompt; /* G; a group of another size is malformed */
    uint32_t max_staleness;      /* eta */
    enum dispatcher_order order; /* the dispatcher's */
    bool dynamic_sampling;
    uint32_t dynamic_sampling_rounds;
};

/* Groups since the batch before, for metrics. */
struct admission_counts {
    uint64_t offered;
    uint64_t queued; /* passed all tests */
    uint64_t duplicates, unknown, rejected, unscorable, stale;
    uint64_t zero_variance;     /* groups whose accuracies are all equal, dropped or not */
    uint64_t filtered_solved;   /* of those, dropped by dynamic sampling: all right */
    uint64_t filtered_unsolved; /* and not all right */
};

struct admission_batch {
    struct trajectory_group **groups; /* [count], owned, in order of ticket */
    uint32_t count;                   /* B */
    uint32_t staleness_max;           /* version - oldest token's version */
    double staleness_mean;            /* of the groups' oldest tokens */
    struct admission_counts counts;
};

struct admission;

/* Options from rollout.*, async.* and loss.*; eta is 0 and the order is ready if async.enabled is
 * false; with max_staleness auto eta is where the controller begins. */
void admission_options_from_config(const struct rl_config *config, struct admission_options *out);

/* `dispatcher` is borrowed for life. Caller owns *out. Errors: RL_NO_MEMORY, RL_INVALID. */
rl_status admission_create(const struct admission_options *options, struct dispatcher *dispatcher,
                           struct admission **out);

/* The bound on staleness from now on. Not in fixed_lag. */
void admission_set_max_staleness(struct admission *admission, uint32_t max_staleness);

/* Groups inside are destroyed. Takes NULL. */
void admission_destroy(struct admission *admission);

/* A scored group has arrived. Always takes the group. What is thrown away is counted and
 * no error. Errors: RL_NO_MEMORY (its ticket is requeued). */
rl_status admission_offer(struct admission *admission, struct trajectory_group *group);

/* Is the ticket's group still to come? */
bool admission_awaits(const struct admission *admission, uint64_t ticket);

/* Would the group's tokens, if it came now, be young enough to be trained on? */
bool admission_young(const struct admission *admission, const struct trajectory_group *group);

/* Is this a part of an awaited ticket's group (samples not finished yet are empty)? RL_AGAIN (not
 * logged): the whole group is here already. Errors: RL_INVALID with the reason: no such ticket,
 * another prompt's, tokens of a version that cannot have made them. */
rl_status admission_check_partial(const struct admission *admission,
                                  const struct trajectory_group *group);

/* Groups since the last batch; borrowed until the next call. */
const struct admission_counts *admission_counts(const struct admission *admission);

/* Drop what has become too old, then hand out a batch if B groups are there (see above); their
 * tickets become admitted. Release with admission_batch_fini. RL_AGAIN (not logged): not enough
 * yet. Errors: RL_NOT_FOUND (dynamic sampling has asked for dynamic_sampling_rounds * B groups for
 * this batch and too few are of use, or since the last batch 10 * (eta + 1) * B groups were
 * unscorable, malformed or too old: stop, it will not get better by waiting), RL_NO_MEMORY. */
rl_status admission_take(struct admission *admission, struct admission_batch *out);

/* The batch was trained on: its tickets become trained. Errors: RL_INVALID. */
rl_status admission_trained(struct admission *admission, const struct admission_batch *batch);

/* The batch was given up (e.g. numbers were not finite): its tickets are dropped as rejected. Not
 * in fixed_lag, where each step trains on its own tickets. Errors: RL_INVALID. */
rl_status admission_rejected(struct admission *admission, const struct admission_batch *batch);

/* Destroy a batch's groups. Takes a zeroed struct; may be called twice. */
void admission_batch_fini(struct admission_batch *batch);

/* Groups that wait, in order of arrival, for a checkpoint: *count of them, borrowed until the next
 * call. */
struct trajectory_group *const *admission_waiting(const struct admission *admission,
                                                  uint32_t *count);

/* Put a group back after a checkpoint was loaded: its ticket must be in state scored or admitted
 * (it becomes scored). Takes the group on RL_OK. Errors: RL_INVALID, RL_NO_MEMORY. */
rl_status admission_restore(struct admission *admission, struct trajectory_group *group);

#endif
