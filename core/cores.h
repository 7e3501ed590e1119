/* Which cores the compute threads of a process run on. Ranks of a node share its cores without
 * talking to each other: a core is claimed by a name that the system frees when a process ends. */
#ifndef FORESIGHT_CORE_CORES_H
#define FORESIGHT_CORE_CORES_H

#include "core/pool.h"

struct rl_cores;

/* Cores that this process may use: the machine's, or those that its launcher has bound it to; at
 * least 1. */
int rl_cores_allowed(void);

/* Claim one core for each of the pool's threads among those allowed that no other process has
 * claimed, and bind the helpers to theirs. The calling thread is not bound: threads and processes
 * that it starts would be, too. *out is NULL, and nothing is bound, where the pool has one thread
 * or there are not enough cores. *out must outlive the pool. Errors: RL_NO_MEMORY. */
rl_status rl_cores_bind(struct rl_pool *pool, struct rl_cores **out);

/* Give the claims back. Takes NULL. */
void rl_cores_release(struct rl_cores *cores);

#endif
