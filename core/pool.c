/* Owns the helper threads and hands out indices. Not the work: what index i does is the task's.
 *
 * All state of "which job, which index next" is one 64-bit word, the ticket: job number above,
 * next index below. Whoever moves it from (job, i) to (job, i + 1) runs index i. A late helper of
 * an old job cannot take an index of a new one, because its compare-and-swap fails; so a run waits
 * for its indices only, never for helpers that are asleep.
 * Invariant: the fields task/arg/count change only while the ticket reads "closed". */
#include "core/pool.h"

#include "core/log.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* About 20-60 us of spinning: longer than the gap between two kernels of one layer, shorter than a
 * scheduler's time slice. */
enum { POOL_SPINS = 1000 };

#define POOL_CLOSED UINT32_MAX

struct rl_pool {
    int threads;
    int started;  /* helpers that exist */
    void *device; /* kernels/'s business */
    pthread_t *helpers;
    pthread_mutex_t lock;
    pthread_cond_t wake; /* helpers: a new job, or stop */
    pthread_cond_t done; /* caller: remaining reached 0 */
    atomic_uint_fast64_t ticket;
    _Atomic(rl_pool_fn) task;
    _Atomic(void *) arg;
    atomic_int count;
    atomic_int remaining; /* indices not finished yet */
    atomic_int sleepers;  /* helpers in `wake` */
    atomic_bool stop;
};

static inline void pool_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static uint64_t pool_ticket(uint32_t job, uint32_t index)
{
    return (uint64_t)job << 32 | index;
}

static uint32_t pool_job(uint64_t ticket)
{
    return (uint32_t)(ticket >> 32);
}

/* The last index wakes the caller; the lock orders the wake-up after its check of `remaining`. */
static void pool_finish_one(struct rl_pool *pool)
{
    if (atomic_fetch_sub(&pool->remaining, 1) == 1) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_signal(&pool->done);
        pthread_mutex_unlock(&pool->lock);
    }
}

/* Take and run indices of the current job until none is left. Returns the job that was seen last.
 */
static uint32_t pool_drain(struct rl_pool *pool)
{
    uint64_t ticket = atomic_load(&pool->ticket);
    for (;;) {
        uint32_t index = (uint32_t)ticket;
        rl_pool_fn task = atomic_load(&pool->task);
        void *arg = atomic_load(&pool->arg);
        int count = atomic_load(&pool->count);
        if (index == POOL_CLOSED || index >= (uint32_t)count) {
            return pool_job(ticket);
        }
        if (atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket + 1)) {
            task(arg, (int)index);
            pool_finish_one(pool);
            ticket = atomic_load(&pool->ticket);
        }
    }
}

/* True while a helper that has seen `job` has nothing to do. A closed ticket is not yet a job. */
static bool pool_idle(struct rl_pool *pool, uint32_t job)
{
    uint64_t ticket = atomic_load(&pool->ticket);
    bool fresh = pool_job(ticket) != job && (uint32_t)ticket != POOL_CLOSED;
    return !fresh && !atomic_load(&pool->stop);
}

static void pool_wait_for_job(struct rl_pool *pool, uint32_t job)
{
    for (int spin = 0; spin < POOL_SPINS; spin++) {
        if (!pool_idle(pool, job)) {
            return;
        }
        pool_relax();
    }
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (pool_idle(pool, job)) {
        pthread_cond_wait(&pool->wake, &pool->lock);
    }
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
}

static void *pool_helper(void *arg)
{
    struct rl_pool *pool = arg;
    uint32_t job = 0;
    for (;;) {
        pool_wait_for_job(pool, job);
        if (atomic_load(&pool->stop)) {
            return NULL;
        }
        job = pool_drain(pool);
    }
}

/* Helpers must not receive the signals that main handles (SIGTERM, SIGUSR1). */
static rl_status pool_start_helpers(struct rl_pool *pool)
{
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    while (error == 0 && pool->started < pool->threads - 1) {
        error = pthread_create(&pool->helpers[pool->started], NULL, pool_helper, pool);
        pool->started += error == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        return rl_fail(error == EAGAIN ? RL_NO_MEMORY : RL_INTERNAL,
                       "cannot start compute thread %d of %d: %s", pool->started + 2, pool->threads,
                       strerror(error));
    }
    return RL_OK;
}

rl_status rl_pool_create(int threads, struct rl_pool **out)
{
    if (threads < 1) {
        return rl_fail(RL_INTERNAL, "a pool needs at least 1 thread, got %d", threads);
    }
    struct rl_pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a pool of %d threads", threads);
    }
    pool->threads = threads;
    atomic_init(&pool->ticket, pool_ticket(0, POOL_CLOSED));
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    pool->helpers = calloc((size_t)threads, sizeof *pool->helpers);
    rl_status status = pool->helpers != NULL
                           ? pool_start_helpers(pool)
                           : rl_fail(RL_NO_MEMORY, "no memory for a pool of %d threads", threads);
    if (status != RL_OK) {
        rl_pool_destroy(pool);
        return status;
    }
    *out = pool;
    return RL_OK;
}

void rl_pool_destroy(struct rl_pool *pool)
{
    if (pool == NULL) {
        return;
    }
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->stop, true);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < pool->started; i++) {
        pthread_join(pool->helpers[i], NULL);
    }
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->helpers);
    free(pool);
}

int rl_pool_threads(const struct rl_pool *pool)
{
    return pool != NULL ? pool->threads : 1;
}

pthread_t rl_pool_helper(const struct rl_pool *pool, int index)
{
    return pool->helpers[index];
}

void *rl_pool_device(const struct rl_pool *pool)
{
    return pool != NULL ? pool->device : NULL;
}

void rl_pool_set_device(struct rl_pool *pool, void *stream)
{
    pool->device = stream;
}

static void pool_publish(struct rl_pool *pool, int count, rl_pool_fn task, void *arg)
{
    uint32_t job = pool_job(atomic_load(&pool->ticket)) + 1;
    atomic_store(&pool->ticket, pool_ticket(job, POOL_CLOSED));
    atomic_store(&pool->task, task);
    atomic_store(&pool->arg, arg);
    atomic_store(&pool->count, count);
    atomic_store(&pool->remaining, count);
    atomic_store(&pool->ticket, pool_ticket(job, 0));
    if (atomic_load(&pool->sleepers) > 0) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
}

static void pool_wait_done(struct rl_pool *pool)
{
    for (int spin = 0; spin < POOL_SPINS; spin++) {
        if (atomic_load(&pool->remaining) == 0) {
            break;
        }
        pool_relax();
    }
    /* Always through the lock: the helper that finished last may still hold it to signal, and a
     * signal left over must not meet the next run's wait with a stale count. */
    pthread_mutex_lock(&pool->lock);
    while (atomic_load(&pool->remaining) != 0) {
        pthread_cond_wait(&pool->done, &pool->lock);
    }
    pthread_mutex_unlock(&pool->lock);
}

void rl_pool_run(struct rl_pool *pool, int count, rl_pool_fn task, void *arg)
{
    if (pool == NULL || pool->threads == 1 || count <= 1) {
        for (int i = 0; i < count; i++) {
            task(arg, i);
        }
        return;
    }
    pool_publish(pool, count, task, arg);
    pool_drain(pool);
    pool_wait_done(pool);
}
