/* See corpus_writer.h. A ring of parts: [written, put) wait or are being written; the thread reads
 * them, the owner fills the others. */
#include "app/corpus_writer.h"

#include "core/log.h"

#include <pthread.h>
#include <stdlib.h>

enum { CORPUS_WRITER_PARTS = 4 };

struct corpus_writer {
    struct corpus *corpus;
    const char *run;
    struct rl_waits *waits;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* guarded by the mutex */
    struct corpus_part ring[CORPUS_WRITER_PARTS];
    uint64_t put, written; /* parts so far */
    bool stopping;
    rl_status status; /* the first error: nothing is written after it */
};

/* --- the thread
 * ------------------------------------------------------------------------------------------- */

static void drop_groups(const struct corpus_part *part)
{
    for (uint64_t i = 0; i < part->count; i++) {
        trajectory_group_destroy(part->groups[i]);
    }
}

static rl_status write_part(struct corpus_writer *w, const struct corpus_part *part)
{
    rl_status status = corpus_write(w->corpus, part->part,
                                    (const struct trajectory_group *const *)part->groups, w->run);
    if (status == RL_OK) {
        corpus_unlock(w->corpus, part->part);
    }
    return status;
}

static bool has_work(void *arg)
{
    const struct corpus_writer *w = arg;
    return w->stopping || (w->written < w->put && w->status == RL_OK);
}

static void *writer_main(void *arg)
{
    struct corpus_writer *w = arg;
    struct rl_wait_signal signal = {&w->changed, &w->mutex, has_work, w};
    pthread_mutex_lock(&w->mutex);
    for (;;) {
        rl_wait_signal_poll(NULL, "corpus writer: idle", &signal, -1.0);
        if (w->written == w->put || w->status != RL_OK) {
            break;
        }
        struct corpus_part *part = &w->ring[w->written % CORPUS_WRITER_PARTS];
        pthread_mutex_unlock(&w->mutex);
        rl_status status = write_part(w, part);
        pthread_mutex_lock(&w->mutex);
        w->status = status;
        if (status == RL_OK) {
            drop_groups(part);
            w->written++;
        }
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

/* --- life
 * ------------------------------------------------------------------------------------------- */

static rl_status start(struct corpus_writer *w)
{
    RL_TRY(rl_wait_cond_init(&w->changed));
    if (pthread_mutex_init(&w->mutex, NULL) != 0) {
        pthread_cond_destroy(&w->changed);
        return rl_fail(RL_INTERNAL, "cannot make the corpus writer's lock");
    }
    if (pthread_create(&w->thread, NULL, writer_main, w) != 0) {
        pthread_mutex_destroy(&w->mutex);
        pthread_cond_destroy(&w->changed);
        return rl_fail(RL_INTERNAL, "cannot start the corpus writer");
    }
    return RL_OK;
}

rl_status corpus_writer_create(struct corpus *corpus, const char *run, struct rl_waits *waits,
                               struct corpus_writer **out)
{
    struct corpus_writer *w = calloc(1, sizeof(*w));
    if (w == NULL) {
        return rl_fail(RL_NO_MEMORY, "corpus writer: out of memory");
    }
    w->corpus = corpus;
    w->run = run;
    w->waits = waits;
    rl_status status = start(w);
    if (status != RL_OK) {
        free(w);
        return status;
    }
    *out = w;
    return RL_OK;
}

void corpus_writer_destroy(struct corpus_writer *writer)
{
    struct corpus_writer *w = writer;
    if (w == NULL) {
        return;
    }
    pthread_mutex_lock(&w->mutex);
    w->stopping = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->mutex);
    pthread_join(w->thread, NULL);
    for (; w->written < w->put; w->written++) { /* left after an error */
        drop_groups(&w->ring[w->written % CORPUS_WRITER_PARTS]);
    }
    pthread_mutex_destroy(&w->mutex);
    pthread_cond_destroy(&w->changed);
    free(w);
}

/* --- parts in
 * ------------------------------------------------------------------------------------------- */

static bool has_room(void *arg)
{
    const struct corpus_writer *w = arg;
    return w->put - w->written < CORPUS_WRITER_PARTS || w->status != RL_OK;
}

rl_status corpus_writer_put(struct corpus_writer *writer, const struct corpus_part *part)
{
    struct corpus_writer *w = writer;
    struct rl_wait_signal signal = {&w->changed, &w->mutex, has_room, w};
    pthread_mutex_lock(&w->mutex);
    if (!has_room(w)) {
        (void)rl_wait_signal_poll(w->waits, "distill waits for parts to be written", &signal, -1.0);
    }
    rl_status status = w->status;
    if (status == RL_OK) {
        w->ring[w->put++ % CORPUS_WRITER_PARTS] = *part;
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->mutex);
    if (status != RL_OK) {
        drop_groups(part);
    }
    return status;
}

static bool is_idle(void *arg)
{
    const struct corpus_writer *w = arg;
    return w->written == w->put || w->status != RL_OK;
}

rl_status corpus_writer_written(struct corpus_writer *writer, bool all, uint64_t *count)
{
    struct corpus_writer *w = writer;
    struct rl_wait_signal signal = {&w->changed, &w->mutex, is_idle, w};
    pthread_mutex_lock(&w->mutex);
    if (all && !is_idle(w)) {
        (void)rl_wait_signal_poll(w->waits, "distill waits for parts to be written", &signal, -1.0);
    }
    rl_status status = w->status;
    if (status == RL_OK) {
        *count = w->written;
    }
    pthread_mutex_unlock(&w->mutex);
    return status;
}
