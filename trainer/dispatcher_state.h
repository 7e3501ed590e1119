/* Inside of the dispatcher, shared by dispatcher.c and dispatcher_save.c only. */
#ifndef FORESIGHT_TRAINER_DISPATCHER_STATE_H
#define FORESIGHT_TRAINER_DISPATCHER_STATE_H

#include "trainer/dispatcher.h"

struct dispatcher {
    struct dispatcher_options options;
    uint32_t version;
    uint64_t ahead; /* trained since set_version was last called */
    uint64_t created, issues, reissues, trained, duplicates, unknown;
    uint64_t dropped[DISPATCHER_REASON_COUNT];
    struct dispatcher_ticket *tickets; /* [live], ascending numbers */
    uint64_t live, reserved;
};

/* Make room for `count` live tickets. Errors: RL_NO_MEMORY. */
rl_status dispatcher_reserve(struct dispatcher *dispatcher, uint64_t count);

#endif
