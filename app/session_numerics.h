/* How a session's GPU adds up, as a number that ranks compare before the first token: each chooses
 * algorithms for itself, and only the same choice gives the same bits (P1). */
#ifndef FORESIGHT_APP_SESSION_NUMERICS_H
#define FORESIGHT_APP_SESSION_NUMERICS_H

#include "app/session.h"

/* Hash of the bits of linear maps of fixed numbers, one for each depth that the model's have; 0 on
 * the CPU. Waits for the pool's stream. Errors: RL_NO_MEMORY; those of the GPU. */
rl_status session_numerics(const struct session *session, uint64_t *out);

#endif
