/* See weight_source.h. The compute thread asks for a version by leaving its number in `wanted`; the
 * helper sleeps until then, verifies, and sleeps again. The mark in the arena is the answer. */
#include "transport/weight_source.h"

#include "core/log.h"
#include "core/wait.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

struct weight_source {
    int reader;
    _Atomic(struct weight_arena *) arena; /* NULL before the first */
    struct weight_arena *seen;            /* arena that `newest` is of */
    bool has;
    uint32_t newest; /* verified */
    pthread_t thread;
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t asked;
    bool stop, wants, corrupt;
    uint32_t wanted;
};

static bool has_work(void *arg)
{
    const struct weight_source *s = arg;
    return s->wants || s->stop;
}

static void *verify_run(void *arg)
{
    struct weight_source *s = arg;
    struct rl_wait_signal signal = {
        .cond = &s->asked, .mutex = &s->mutex, .done = has_work, .arg = s};
    pthread_mutex_lock(&s->mutex);
    while (!s->stop) {
        (void)rl_wait_signal(NULL, "weight verification: idle", &signal, -1);
        if (s->stop) {
            break;
        }
        uint32_t version = s->wanted;
        pthread_mutex_unlock(&s->mutex);
        struct weight_arena *arena = atomic_load(&s->arena);
        rl_status status = weight_arena_is_verified(arena, version)
                               ? RL_OK
                               : weight_arena_verify(arena, s->reader, version);
        pthread_mutex_lock(&s->mutex);
        s->wants = s->wanted != version;
        s->corrupt = s->corrupt || status == RL_CORRUPT;
    }
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}

rl_status weight_source_create(int reader, struct weight_source **out)
{
    struct weight_source *s = calloc(1, sizeof *s);
    if (s == NULL) {
        return rl_fail(RL_NO_MEMORY, "weight source: no memory");
    }
    s->reader = reader;
    rl_status status = rl_wait_cond_init(&s->asked);
    if (status != RL_OK) {
        free(s);
        return status;
    }
    pthread_mutex_init(&s->mutex, NULL);
    if (pthread_create(&s->thread, NULL, verify_run, s) != 0) {
        pthread_mutex_destroy(&s->mutex);
        pthread_cond_destroy(&s->asked);
        free(s);
        return rl_fail(RL_INTERNAL, "weight source: cannot start its thread");
    }
    *out = s;
    return RL_OK;
}

void weight_source_destroy(struct weight_source *source)
{
    if (source == NULL) {
        return;
    }
    pthread_mutex_lock(&source->mutex);
    source->stop = true;
    pthread_cond_signal(&source->asked);
    pthread_mutex_unlock(&source->mutex);
    pthread_join(source->thread, NULL);
    pthread_mutex_destroy(&source->mutex);
    pthread_cond_destroy(&source->asked);
    free(source);
}

void weight_source_attach(struct weight_source *source, struct weight_arena *arena)
{
    atomic_store(&source->arena, arena);
}

/* RL_OK: `version` may be used. RL_AGAIN: the helper is at it. What is read from the GPU that made
 * it is not what the host's image and its hash would tell about. */
static rl_status check_version(struct weight_source *s, struct weight_arena *arena,
                               uint32_t version)
{
    if (weight_arena_place(arena) != DEVICE_PLACE_HOST ||
        weight_arena_is_verified(arena, version)) {
        return RL_OK;
    }
    pthread_mutex_lock(&s->mutex);
    rl_status status = s->corrupt ? RL_CORRUPT : RL_AGAIN;
    if (!s->wants) {
        s->wanted = version;
        s->wants = true;
        pthread_cond_signal(&s->asked);
    }
    pthread_mutex_unlock(&s->mutex);
    return status;
}

rl_status weight_source_latest(struct weight_source *source, uint32_t *version, bool *coming)
{
    struct weight_source *s = source;
    struct weight_arena *arena = atomic_load(&s->arena);
    uint32_t newest = 0;
    *coming = false;
    if (arena == NULL || !weight_arena_latest(arena, &newest)) {
        return RL_AGAIN;
    }
    if (arena != s->seen) {
        s->has = false;
        s->seen = arena;
    }
    if (!s->has || s->newest != newest) {
        rl_status status = check_version(s, arena, newest);
        if (status != RL_OK && status != RL_AGAIN) {
            return status;
        }
        *coming = status == RL_AGAIN;
        s->newest = status == RL_OK ? newest : s->newest;
        s->has = s->has || status == RL_OK;
    }
    *version = s->newest;
    return s->has ? RL_OK : RL_AGAIN;
}

rl_status weight_source_acquire(struct weight_source *source, uint32_t version,
                                struct weight_view *out)
{
    struct weight_arena *arena = atomic_load(&source->arena);
    RL_TRY(arena == NULL ? RL_AGAIN : check_version(source, arena, version));
    return weight_arena_acquire_version(arena, source->reader, version, out);
}

/* Whoever is told to ask again holds nothing: it might never ask, if meanwhile the version came to
 * it as the newest. */
rl_status weight_source_pin(struct weight_source *source, uint32_t version, struct weight_view *out)
{
    struct weight_arena *arena = atomic_load(&source->arena);
    RL_TRY(arena == NULL ? RL_AGAIN : weight_arena_pin(arena, source->reader, version, out));
    rl_status status = check_version(source, arena, version);
    if (status != RL_OK) {
        weight_arena_unpin(arena, source->reader, version);
    }
    return status;
}

void weight_source_unpin(struct weight_source *source, uint32_t version)
{
    struct weight_arena *arena = atomic_load(&source->arena);
    if (arena != NULL) {
        weight_arena_unpin(arena, source->reader, version);
    }
}

void weight_source_release(struct weight_source *source)
{
    struct weight_arena *arena = atomic_load(&source->arena);
    if (arena != NULL) {
        weight_arena_release(arena, source->reader);
    }
}
