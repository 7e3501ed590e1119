/* See sweep.h: sweep.parallel jobs at a time in this process. */
#include "app/sweep.h"

#include "core/log.h"

#include <stdlib.h>

rl_status sweep_pool_open(const struct sweep *sweep, struct sweep_pool *out)
{
    size_t capacity = (size_t)sweep->plan->settings.sweep.parallel;
    *out = (struct sweep_pool){.sweep = sweep, .capacity = capacity};
    out->slots = calloc(capacity, sizeof *out->slots);
    out->jobs = calloc(capacity, sizeof *out->jobs);
    if (out->slots == NULL || out->jobs == NULL) {
        sweep_pool_close(out);
        return rl_fail(RL_NO_MEMORY, "sweep: out of memory");
    }
    return RL_OK;
}

void sweep_pool_close(struct sweep_pool *pool)
{
    for (size_t i = 0; pool->slots != NULL && i < pool->capacity; i++) {
        sweep_slot_destroy(pool->slots[i]);
    }
    free(pool->slots);
    free(pool->jobs);
    *pool = (struct sweep_pool){0};
}

rl_status sweep_pool_start(struct sweep_pool *pool, const struct sweep_job *job)
{
    for (size_t i = 0; i < pool->capacity; i++) {
        if (pool->slots[i] == NULL) {
            RL_TRY(sweep_slot_start(pool->sweep, job, &pool->slots[i]));
            pool->jobs[i] = *job;
            pool->busy++;
            return RL_OK;
        }
    }
    return rl_fail(RL_INTERNAL, "sweep: no free slot for %s",
                   sweep_trial_name(pool->sweep, job->trial));
}

bool sweep_pool_take(struct sweep_pool *pool, struct sweep_job *job, struct sweep_outcome *outcome)
{
    for (size_t i = 0; i < pool->capacity; i++) {
        if (pool->slots[i] != NULL && sweep_slot_poll(pool->slots[i], outcome)) {
            sweep_slot_destroy(pool->slots[i]);
            pool->slots[i] = NULL;
            pool->busy--;
            *job = pool->jobs[i];
            return true;
        }
    }
    return false;
}

void sweep_pool_stop(struct sweep_pool *pool)
{
    for (size_t i = 0; i < pool->capacity; i++) {
        if (pool->slots[i] != NULL) {
            sweep_slot_stop(pool->slots[i]);
        }
    }
}
