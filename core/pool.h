/* A small pool of threads with a fixed split of work: `task(arg, index)` is called once for each
 * index in [0, count), and index i always does the same work whatever the number of threads, so
 * results never depend on it. Owner: one compute thread; not re-entrant. */
#ifndef FORESIGHT_CORE_POOL_H
#define FORESIGHT_CORE_POOL_H

#include "core/status.h"

#include <pthread.h>

#ifdef __cplusplus
extern "C" {
#endif

struct rl_pool;

typedef void (*rl_pool_fn)(void *arg, int index);

/* Start `threads` - 1 helpers (the caller is the remaining one); threads >= 1.
 * Caller owns *out. Errors: RL_NO_MEMORY, RL_INTERNAL. */
rl_status rl_pool_create(int threads, struct rl_pool **out);

/* Stop and join the helpers. Takes NULL. */
void rl_pool_destroy(struct rl_pool *pool);

/* Threads that take part, the caller included; 1 for NULL. */
int rl_pool_threads(const struct rl_pool *pool);

/* Helper `index` of the pool, 0 .. threads - 2. */
pthread_t rl_pool_helper(const struct rl_pool *pool, int index);

/* Run all indices, return when all are done. A NULL pool runs them in order on the caller.
 * Waits spin briefly and then sleep: machines steal time, spinning barriers collapse. */
void rl_pool_run(struct rl_pool *pool, int count, rl_pool_fn task, void *arg);

/* The stream of a GPU that work for this pool goes to; NULL: there is none (and for a NULL pool).
 * Only kernels/ knows what it is. */
void *rl_pool_device(const struct rl_pool *pool);
void rl_pool_set_device(struct rl_pool *pool, void *stream);

#ifdef __cplusplus
}
#endif

#endif
