/* Inside of the dispatcher, shared by dispatcher.c and dispatcher_save.c only. */
#ifndef FORESIGHT_TRAINER_DISPATCHER_STATE_H
#define FORESIGHT_TRAINER_DISPATCHER_STATE_H

#include "trainer/dispatcher.h"

struct dispatcher {
    struct dispatcher_options options;
    uint32_t version;
    uint64_t ahead;   /* trained since set_version was last called */
    uint64_t created; /* the cursor: next position in the order of prompts */
    uint64_t refills; /* made so far, of all steps */
    uint64_t issues, reissues, trained, duplicates, unknown;
    uint64_t dropped[DISPATCHER_REASON_COUNT];
    uint32_t *step_refills; /* [eta + 1] fixed_lag: refills of steps version .. version + eta, at
                               step % (eta + 1); NULL in the other orders */
    struct dispatcher_ticket *tickets; /* [live], ascending by dispatcher_key */
    uint64_t live, reserved;
};

/* Step that a ticket is bound to (fixed_lag). */
uint64_t dispatcher_step(const struct dispatcher *dispatcher, uint64_t number);

/* What the table is sorted by: the number; in fixed_lag step, then index, refills after the rest.
 */
uint64_t dispatcher_key(const struct dispatcher *dispatcher, uint64_t number);

/* Make room for `count` live tickets. Errors: RL_NO_MEMORY. */
rl_status dispatcher_reserve(struct dispatcher *dispatcher, uint64_t count);

#endif
