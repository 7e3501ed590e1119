/* The scoring pool: threads that score samples off the decoding thread, and a watchdog that
 * abandons a thread whose sample has passed its deadline.
 * It owns the groups inside it. It does not own the text source or know any reward function.
 * Invariants: a scoring call sees only its thread's private copy of the texts and a counted
 * reference to the set, so a thread that was abandoned may go on, wake up and end at any time, even
 * after the pool was destroyed; every sample of a group is finished exactly once, by its scoring
 * thread or by the watchdog, under the pool's lock. */
#include "rewards/reward.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/wait.h"
#include "rewards/reward_ops.h"
#include "rewards/reward_queue.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Threads that may be abandoned and not back at one time; beyond it samples are given up at once.
 */
enum { ABANDONED_MAX = 64 };

/* One scoring thread; belongs to the thread, which frees it. */
struct worker {
    struct reward_pool *pool;
    struct reward_set *set; /* the thread's own reference */
    uint32_t slot;
    bool scoring;      /* inside a reward function since the deadline was set */
    bool abandoned;    /* its sample was finished without it: touch nothing any more */
    double deadline_s; /* monotonic */
    struct reward_entry *entry;
    uint32_t index;
};

/* A private copy of what one scoring call may look at. */
struct job {
    struct reward_input input;
    char *strings;
    struct trajectory sample;
};

struct reward_pool {
    pthread_mutex_t mutex;
    pthread_cond_t work;  /* workers wait: a sample to score, or stop */
    pthread_cond_t watch; /* the watchdog waits: `events` has moved */
    atomic_uint owners;   /* the handle, the watchdog, each thread */
    const struct reward_set *set;
    struct reward_text_ops text;
    double timeout_s;
    uint32_t capacity;
    uint32_t thread_count;
    struct worker **workers; /* [thread_count]; NULL: the slot is empty */
    pthread_t watchdog;
    /* guarded by mutex */
    struct reward_queue waiting; /* samples left to hand out */
    struct reward_queue done;    /* ready to be taken */
    struct reward_queue scoring; /* all handed out, some not finished */
    uint32_t inside;
    uint32_t live;      /* workers in slots */
    uint32_t abandoned; /* abandoned threads that have not come back */
    uint64_t timeouts;
    uint64_t events;
    double watched_until_s; /* when the watchdog will look next */
    bool stopping;
};

/* --- life of the shared state -------------------------------------------------------------------
 */

static void pool_release(struct reward_pool *pool)
{
    if (atomic_fetch_sub_explicit(&pool->owners, 1, memory_order_acq_rel) != 1) {
        return;
    }
    pthread_cond_destroy(&pool->watch);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->workers);
    free(pool);
}

static void wake_watchdog(struct reward_pool *pool)
{
    pool->events++;
    pthread_cond_signal(&pool->watch);
}

/* Give a sample back as unscorable. */
static void mark_unscorable(const struct reward_set *set, struct trajectory *sample)
{
    sample->reward_part_count = reward_set_count(set);
    memset(sample->reward_part, 0, sizeof(sample->reward_part));
    sample->reward_valid = false;
    sample->reward = 0.0F;
    sample->accuracy = 0.0F;
}

/* Next sample to score, with the lock held; false if there is none. */
static bool take_task(struct reward_pool *pool, struct reward_entry **entry, uint32_t *index)
{
    struct reward_entry *head = pool->waiting.head;
    if (head == NULL) {
        return false;
    }
    *entry = head;
    *index = head->next++;
    if (head->next == head->group->sample_count) {
        reward_queue_pop(&pool->waiting);
        reward_queue_push(&pool->scoring, head);
    }
    return true;
}

static void finish_sample(struct reward_pool *pool, struct reward_entry *entry)
{
    if (--entry->left == 0) {
        reward_queue_remove(&pool->scoring, entry);
        reward_queue_push(&pool->done, entry);
    }
}

/* --- a scoring thread
 * ------------------------------------------------------------------------------ */

/* Copy the texts into one block and point the job's input at it. */
static rl_status job_copy(struct job *job, const struct reward_input *input)
{
    const char *from[] = {input->prompt, input->completion, input->ground_truth, input->data_source,
                          input->extra_json};
    const char **to[] = {&job->input.prompt, &job->input.completion, &job->input.ground_truth,
                         &job->input.data_source, &job->input.extra_json};
    enum { COUNT = sizeof(from) / sizeof(from[0]) };
    size_t bytes[COUNT];
    size_t total = 0;
    for (size_t i = 0; i < COUNT; i++) {
        bytes[i] = strlen(from[i]) + 1;
        total += bytes[i];
    }
    job->strings = malloc(total);
    if (job->strings == NULL) {
        return rl_fail(RL_NO_MEMORY, "texts of a sample to score: %zu bytes", total);
    }
    char *at = job->strings;
    for (size_t i = 0; i < COUNT; i++) {
        memcpy(at, from[i], bytes[i]);
        *to[i] = at;
        at += bytes[i];
    }
    return RL_OK;
}

static rl_status job_make(const struct worker *worker, struct job *job)
{
    const struct reward_text_ops *text = &worker->pool->text;
    const struct trajectory_group *group = worker->entry->group;
    struct reward_input input = {"", "", "", "", "{}", false};
    memset(job, 0, sizeof(*job));
    job->sample = group->samples[worker->index];
    job->sample.tokens = NULL;
    job->sample.logprob = NULL;
    job->sample.version = NULL;
    RL_TRY(text->acquire(text->arg, group, worker->index, &input));
    rl_status status = job_copy(job, &input);
    job->input.truncated = input.truncated || job->sample.finish == RL_FINISH_LENGTH;
    text->release(text->arg, &input);
    return status;
}

static void begin_scoring(struct worker *worker)
{
    struct reward_pool *pool = worker->pool;
    pthread_mutex_lock(&pool->mutex);
    worker->deadline_s = rl_clock_now_s(NULL) + pool->timeout_s;
    worker->scoring = true;
    if (worker->deadline_s < pool->watched_until_s) {
        wake_watchdog(pool);
    }
    pthread_mutex_unlock(&pool->mutex);
}

/* Store the result, unless the watchdog was faster; false: this thread was abandoned. */
static bool end_scoring(struct worker *worker, const struct job *job)
{
    struct reward_pool *pool = worker->pool;
    pthread_mutex_lock(&pool->mutex);
    bool wanted = !worker->abandoned;
    if (wanted) {
        struct trajectory *sample = &worker->entry->group->samples[worker->index];
        sample->reward_valid = job->sample.reward_valid;
        sample->reward = job->sample.reward;
        sample->accuracy = job->sample.accuracy;
        sample->reward_part_count = job->sample.reward_part_count;
        memcpy(sample->reward_part, job->sample.reward_part, sizeof(sample->reward_part));
        worker->scoring = false;
        finish_sample(pool, worker->entry);
    } else {
        pool->abandoned--;
        wake_watchdog(pool);
    }
    pthread_mutex_unlock(&pool->mutex);
    return wanted;
}

/* Score the sample that the worker holds; false: the thread was abandoned meanwhile. */
static bool worker_score(struct worker *worker)
{
    struct job job;
    bool made = job_make(worker, &job) == RL_OK;
    if (!made) {
        mark_unscorable(worker->set, &job.sample);
    }
    if (made) {
        begin_scoring(worker);
        reward_set_score(worker->set, &job.input, &job.sample);
    }
    bool wanted = end_scoring(worker, &job);
    free(job.strings);
    return wanted;
}

static bool worker_may_go_on(void *arg)
{
    const struct reward_pool *pool = arg;
    return pool->stopping || pool->waiting.head != NULL;
}

/* Wait for a sample; false when the pool stops, and then the slot is given up. */
static bool worker_take(struct worker *worker)
{
    struct reward_pool *pool = worker->pool;
    struct rl_wait_signal signal = {&pool->work, &pool->mutex, worker_may_go_on, pool};
    pthread_mutex_lock(&pool->mutex);
    while (!worker_may_go_on(pool)) {
        rl_wait_signal_poll(NULL, "reward thread waits for samples", &signal, -1.0);
    }
    bool taken = !pool->stopping && take_task(pool, &worker->entry, &worker->index);
    if (!taken) {
        pool->workers[worker->slot] = NULL;
        pool->live--;
        wake_watchdog(pool);
    }
    pthread_mutex_unlock(&pool->mutex);
    return taken;
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    struct reward_pool *pool = worker->pool;
    while (worker_take(worker) && worker_score(worker)) {
    }
    reward_set_destroy(worker->set);
    free(worker);
    pool_release(pool);
    return NULL;
}

static int start_detached(struct worker *worker)
{
    pthread_attr_t attributes;
    pthread_t thread;
    int rc = pthread_attr_init(&attributes);
    if (rc != 0) {
        return rc;
    }
    rc = pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    if (rc == 0) {
        rc = pthread_create(&thread, &attributes, worker_main, worker);
    }
    pthread_attr_destroy(&attributes);
    return rc;
}

/* Fill an empty slot, with the lock held. */
static rl_status spawn_worker(struct reward_pool *pool, uint32_t slot)
{
    struct worker *worker = calloc(1, sizeof(*worker));
    if (worker == NULL) {
        return rl_fail(RL_NO_MEMORY, "reward thread: %zu bytes", sizeof(*worker));
    }
    worker->pool = pool;
    worker->slot = slot;
    worker->set = reward_set_acquire(pool->set);
    atomic_fetch_add_explicit(&pool->owners, 1, memory_order_relaxed);
    int rc = start_detached(worker);
    if (rc != 0) {
        atomic_fetch_sub_explicit(&pool->owners, 1, memory_order_relaxed);
        reward_set_destroy(worker->set);
        free(worker);
        return rl_fail(RL_INTERNAL, "cannot start a reward thread: %s", strerror(rc));
    }
    pool->workers[slot] = worker;
    pool->live++;
    return RL_OK;
}

/* --- the watchdog
 * ------------------------------------------------------------------------------------ */

struct watch {
    const struct reward_pool *pool;
    uint64_t seen; /* events handled so far */
};

static bool watch_has_news(void *arg)
{
    const struct watch *watch = arg;
    return watch->pool->events != watch->seen;
}

/* Finish the sample without its thread and let the thread go. */
static void abandon(struct reward_pool *pool, struct worker *worker)
{
    struct reward_entry *entry = worker->entry;
    pool->timeouts++;
    rl_log(RL_LOG_WARN,
           "scoring sample %u of ticket %llu passed rewards.timeout_ms (%.0f ms): unscorable",
           worker->index, (unsigned long long)entry->group->ticket, pool->timeout_s * 1e3);
    mark_unscorable(pool->set, &entry->group->samples[worker->index]);
    finish_sample(pool, entry);
    worker->abandoned = true;
    pool->workers[worker->slot] = NULL;
    pool->live--;
    pool->abandoned++;
}

static void abandon_overdue(struct reward_pool *pool, double now_s)
{
    for (uint32_t i = 0; i < pool->thread_count; i++) {
        struct worker *worker = pool->workers[i];
        if (worker != NULL && worker->scoring && worker->deadline_s <= now_s) {
            abandon(pool, worker);
        }
    }
}

static void refill_slots(struct reward_pool *pool)
{
    for (uint32_t i = 0; i < pool->thread_count && pool->abandoned < ABANDONED_MAX; i++) {
        if (pool->workers[i] == NULL && spawn_worker(pool, i) != RL_OK) {
            return;
        }
    }
}

/* No thread is left to score with: what waits is given up, so that nobody waits for ever. */
static void give_up_waiting(struct reward_pool *pool)
{
    struct reward_entry *entry;
    uint32_t index;
    while (take_task(pool, &entry, &index)) {
        mark_unscorable(pool->set, &entry->group->samples[index]);
        pool->timeouts++;
        finish_sample(pool, entry);
    }
}

static double next_deadline_s(const struct reward_pool *pool)
{
    double next_s = INFINITY;
    for (uint32_t i = 0; i < pool->thread_count; i++) {
        const struct worker *worker = pool->workers[i];
        if (worker != NULL && worker->scoring && worker->deadline_s < next_s) {
            next_s = worker->deadline_s;
        }
    }
    return next_s;
}

static void watch_once(struct reward_pool *pool, struct watch *watch)
{
    struct rl_wait_signal signal = {&pool->watch, &pool->mutex, watch_has_news, watch};
    double now_s = rl_clock_now_s(NULL);
    abandon_overdue(pool, now_s);
    if (!pool->stopping) {
        refill_slots(pool);
    }
    if (!pool->stopping && pool->live == 0) {
        give_up_waiting(pool);
    }
    if (pool->stopping && pool->live == 0) {
        return;
    }
    pool->watched_until_s = next_deadline_s(pool);
    double sleep_s = isinf(pool->watched_until_s) ? -1.0 : pool->watched_until_s - now_s;
    rl_wait_signal_poll(NULL, "reward watchdog waits", &signal, sleep_s < 0.0 ? -1.0 : sleep_s);
    watch->seen = pool->events;
}

static void *watchdog_main(void *arg)
{
    struct reward_pool *pool = arg;
    pthread_mutex_lock(&pool->mutex);
    struct watch watch = {pool, pool->events};
    while (!pool->stopping || pool->live > 0) {
        watch_once(pool, &watch);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

/* --- interface
 * ------------------------------------------------------------------------------------------ */

static rl_status init_locks(struct reward_pool *pool)
{
    int rc = pthread_mutex_init(&pool->mutex, NULL);
    if (rc != 0) {
        return rl_fail(RL_INTERNAL, "reward pool: %s", strerror(rc));
    }
    rl_status status = rl_wait_cond_init(&pool->work);
    if (status != RL_OK) {
        pthread_mutex_destroy(&pool->mutex);
        return status;
    }
    status = rl_wait_cond_init(&pool->watch);
    if (status != RL_OK) {
        pthread_cond_destroy(&pool->work);
        pthread_mutex_destroy(&pool->mutex);
    }
    return status;
}

static rl_status start_threads(struct reward_pool *pool)
{
    rl_status status = RL_OK;
    pthread_mutex_lock(&pool->mutex);
    for (uint32_t i = 0; i < pool->thread_count && status == RL_OK; i++) {
        if (pool->workers[i] == NULL) { /* else the watchdog was faster */
            status = spawn_worker(pool, i);
        }
    }
    pthread_mutex_unlock(&pool->mutex);
    return status;
}

/* Memory and locks; no threads yet. */
static rl_status pool_alloc(const struct rl_config *config, struct reward_pool **out)
{
    struct reward_pool *pool = calloc(1, sizeof(*pool));
    uint32_t threads = (uint32_t)config->rewards.threads;
    struct worker **workers = calloc(threads, sizeof(*workers));
    rl_status status = RL_OK;
    if (pool == NULL || workers == NULL) {
        status = rl_fail(RL_NO_MEMORY, "reward pool of %u threads", threads);
    } else {
        status = init_locks(pool);
    }
    if (status != RL_OK) {
        free(workers);
        free(pool);
        return status;
    }
    pool->workers = workers;
    pool->thread_count = threads;
    pool->capacity = (uint32_t)config->transport.ring_groups;
    pool->timeout_s = (double)config->rewards.timeout_ms * 1e-3;
    pool->watched_until_s = INFINITY;
    atomic_init(&pool->owners, 1);
    *out = pool;
    return RL_OK;
}

rl_status reward_pool_create(const struct reward_set *set, const struct rl_config *config,
                             struct reward_text_ops text, struct reward_pool **out)
{
    struct reward_pool *pool = NULL;
    RL_TRY(pool_alloc(config, &pool));
    pool->set = set;
    pool->text = text;
    int rc = pthread_create(&pool->watchdog, NULL, watchdog_main, pool);
    if (rc != 0) {
        pool_release(pool);
        return rl_fail(RL_INTERNAL, "cannot start the reward watchdog: %s", strerror(rc));
    }
    rl_status status = start_threads(pool);
    if (status != RL_OK) {
        reward_pool_destroy(pool);
        return status;
    }
    *out = pool;
    return RL_OK;
}

void reward_pool_destroy(struct reward_pool *pool)
{
    if (pool == NULL) {
        return;
    }
    pthread_mutex_lock(&pool->mutex);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->work);
    wake_watchdog(pool);
    pthread_mutex_unlock(&pool->mutex);
    pthread_join(pool->watchdog, NULL);
    pthread_mutex_lock(&pool->mutex);
    reward_queue_clear(&pool->waiting);
    reward_queue_clear(&pool->scoring);
    reward_queue_clear(&pool->done);
    pthread_mutex_unlock(&pool->mutex);
    pool_release(pool);
}

rl_status reward_pool_submit(struct reward_pool *pool, struct trajectory_group *group)
{
    struct reward_entry *entry = calloc(1, sizeof(*entry));
    if (entry == NULL) {
        return rl_fail(RL_NO_MEMORY, "group to score: %zu bytes", sizeof(*entry));
    }
    *entry = (struct reward_entry){group, 0, group->sample_count, NULL};
    pthread_mutex_lock(&pool->mutex);
    bool room = pool->inside < pool->capacity;
    if (room) {
        pool->inside++;
        reward_queue_push(group->sample_count > 0 ? &pool->waiting : &pool->done, entry);
        pthread_cond_broadcast(&pool->work);
        if (pool->live == 0) {
            wake_watchdog(pool);
        }
    }
    pthread_mutex_unlock(&pool->mutex);
    if (!room) {
        free(entry);
        return RL_AGAIN;
    }
    return RL_OK;
}

rl_status reward_pool_take(struct reward_pool *pool, struct trajectory_group **group)
{
    pthread_mutex_lock(&pool->mutex);
    struct reward_entry *entry = reward_queue_pop(&pool->done);
    pool->inside -= entry != NULL ? 1 : 0;
    pthread_mutex_unlock(&pool->mutex);
    if (entry == NULL) {
        return RL_AGAIN;
    }
    *group = entry->group;
    free(entry);
    return RL_OK;
}

/* With the lock held: results are written under it. */
static rl_status copy_inside(const struct reward_pool *pool, struct trajectory_group **groups,
                             uint32_t *count)
{
    RL_TRY(reward_queue_copy(&pool->waiting, groups, count));
    RL_TRY(reward_queue_copy(&pool->scoring, groups, count));
    return reward_queue_copy(&pool->done, groups, count);
}

rl_status reward_pool_copy(struct reward_pool *pool, struct trajectory_group ***groups,
                           uint32_t *count)
{
    uint32_t copied = 0;
    struct trajectory_group **copies = calloc((size_t)pool->capacity + 1, sizeof(*copies));
    if (copies == NULL) {
        return rl_fail(RL_NO_MEMORY, "reward pool: copies of %u groups", pool->capacity);
    }
    pthread_mutex_lock(&pool->mutex);
    rl_status status = copy_inside(pool, copies, &copied);
    pthread_mutex_unlock(&pool->mutex);
    if (status != RL_OK) {
        while (copied > 0) {
            trajectory_group_destroy(copies[--copied]);
        }
        free(copies);
        return status;
    }
    *groups = copies;
    *count = copied;
    return RL_OK;
}

uint64_t reward_pool_timeouts(const struct reward_pool *pool)
{
    struct reward_pool *locked = (struct reward_pool *)(uintptr_t)pool;
    pthread_mutex_lock(&locked->mutex);
    uint64_t timeouts = pool->timeouts;
    pthread_mutex_unlock(&locked->mutex);
    return timeouts;
}

uint32_t reward_pool_pending(const struct reward_pool *pool)
{
    struct reward_pool *locked = (struct reward_pool *)(uintptr_t)pool;
    pthread_mutex_lock(&locked->mutex);
    uint32_t inside = pool->inside;
    pthread_mutex_unlock(&locked->mutex);
    return inside;
}
