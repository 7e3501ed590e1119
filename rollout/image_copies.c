/* See image_copies.h. Invariant: a slot is touched by the copying thread only while `work` names
 * it, and is read by passes only when it is not. */
#include "rollout/image_copies.h"

#include "core/log.h"
#include "core/wait.h"
#include "model/slab.h"

#include <stdlib.h>

/* Versions that may be in use at once, and one being written. */
enum { COPIES_MAX = 64 };

struct image_slot {
    void *image; /* the device's; NULL: no memory yet */
    uint32_t version;
    bool filled;
};

struct image_copies {
    struct image_copies_kind kind;
    image_copies_fn needed;
    void *needed_arg;
    struct rl_pool *pool; /* the copying thread's, for its stream */
    struct image_slot slots[COPIES_MAX];
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* Guarded by mutex. */
    struct image_slot *work;     /* being filled; NULL: nothing is */
    struct device_source source; /* the image for it */
    bool stopping;
    rl_status status; /* of the first copy that failed */
};

/* --- the thread
 * ------------------------------------------------------------------------------------- */

static rl_status fill(const struct image_copies *c, const struct image_slot *slot)
{
    if (c->kind.source != NULL) {
        struct model_quantize_args to = {
            .layout = c->kind.layout, .kernels = c->kind.kernels, .image = slot->image};
        model_image_quantize(c->kind.source, c->source.data, &to, NULL);
        return RL_OK;
    }
    if (c->source.place == DEVICE_PLACE_PEER) {
        device_copy(c->pool, slot->image, c->source.data, c->kind.layout->image_bytes);
    } else {
        model_upload(c->pool, slot->image, c->source.data, c->kind.layout->image_bytes);
    }
    return device_wait(c->pool);
}

static bool has_work(void *arg)
{
    const struct image_copies *c = arg;
    return c->work != NULL || c->stopping;
}

static void *copy_main(void *arg)
{
    struct image_copies *c = arg;
    struct rl_wait_signal signal = {
        .cond = &c->changed, .mutex = &c->mutex, .done = has_work, .arg = c};
    for (;;) {
        pthread_mutex_lock(&c->mutex);
        (void)rl_wait_signal_poll(NULL, "weight copies: idle", &signal, -1.0);
        struct image_slot *slot = c->work;
        pthread_mutex_unlock(&c->mutex);
        if (slot == NULL) {
            return NULL;
        }
        rl_status status = fill(c, slot);
        pthread_mutex_lock(&c->mutex);
        slot->filled = status == RL_OK;
        c->status = c->status == RL_OK ? status : c->status;
        c->work = NULL;
        pthread_cond_broadcast(&c->changed);
        pthread_mutex_unlock(&c->mutex);
    }
}

/* --- life cycle
 * ------------------------------------------------------------------------------------- */

static rl_status start(struct image_copies *c)
{
    RL_TRY(rl_pool_create(1, &c->pool));
    RL_TRY(device_stream_start(c->kind.layout->device, c->pool));
    RL_TRY(rl_wait_cond_init(&c->changed));
    if (pthread_mutex_init(&c->mutex, NULL) != 0) {
        pthread_cond_destroy(&c->changed);
        return rl_fail(RL_INTERNAL, "cannot make the lock of weight copies");
    }
    if (pthread_create(&c->thread, NULL, copy_main, c) != 0) {
        pthread_mutex_destroy(&c->mutex);
        pthread_cond_destroy(&c->changed);
        return rl_fail(RL_INTERNAL, "cannot start the thread of weight copies");
    }
    return RL_OK;
}

static void free_all(struct image_copies *c)
{
    for (int i = 0; i < COPIES_MAX; i++) {
        device_buffer_free(c->kind.layout->device, c->slots[i].image);
    }
    device_stream_stop(c->pool);
    rl_pool_destroy(c->pool);
    free(c);
}

rl_status image_copies_create(const struct image_copies_kind *kind, image_copies_fn needed,
                              void *arg, struct image_copies **out)
{
    struct image_copies *c = calloc(1, sizeof(*c));
    if (c == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for weight copies");
    }
    c->kind = *kind;
    c->needed = needed;
    c->needed_arg = arg;
    rl_status status = start(c);
    if (status != RL_OK) {
        free_all(c);
        return status;
    }
    *out = c;
    return RL_OK;
}

void image_copies_destroy(struct image_copies *copies)
{
    if (copies == NULL) {
        return;
    }
    image_copies_wait(copies);
    pthread_mutex_lock(&copies->mutex);
    copies->stopping = true;
    pthread_cond_broadcast(&copies->changed);
    pthread_mutex_unlock(&copies->mutex);
    pthread_join(copies->thread, NULL);
    pthread_cond_destroy(&copies->changed);
    pthread_mutex_destroy(&copies->mutex);
    free_all(copies);
}

/* --- copies
 * ----------------------------------------------------------------------------------------- */

static struct image_slot *find(struct image_copies *c, uint32_t version)
{
    for (int i = 0; i < COPIES_MAX; i++) {
        if (c->slots[i].filled && c->slots[i].version == version) {
            return &c->slots[i];
        }
    }
    return NULL;
}

/* A slot whose version nobody needs any more, with memory if there is one. */
static rl_status take_slot(struct image_copies *c, struct image_slot **out)
{
    struct image_slot *bare = NULL;
    for (int i = 0; i < COPIES_MAX; i++) {
        struct image_slot *slot = &c->slots[i];
        if (slot->image == NULL) {
            bare = bare == NULL ? slot : bare;
        } else if (!slot->filled || !c->needed(c->needed_arg, slot->version)) {
            *out = slot;
            return RL_OK;
        }
    }
    if (bare == NULL) {
        return RL_AGAIN;
    }
    RL_TRY(device_buffer_alloc(c->kind.layout->device, c->kind.layout->image_bytes,
                               "copy of the weights", &bare->image));
    *out = bare;
    return RL_OK;
}

static rl_status begin(struct image_copies *c, uint32_t version, struct device_source image)
{
    struct image_slot *slot = NULL;
    RL_TRY(take_slot(c, &slot));
    slot->version = version;
    slot->filled = false;
    c->work = slot;
    c->source = image;
    pthread_cond_broadcast(&c->changed);
    return RL_AGAIN;
}

rl_status image_copies_get(struct image_copies *copies, uint32_t version,
                           struct device_source image, const void **out)
{
    struct image_copies *c = copies;
    pthread_mutex_lock(&c->mutex);
    struct image_slot *slot = find(c, version);
    rl_status status = slot != NULL ? RL_OK : c->status;
    if (slot != NULL) {
        *out = slot->image;
    } else if (status == RL_OK) {
        status = c->work != NULL ? RL_AGAIN : begin(c, version, image);
    }
    pthread_mutex_unlock(&c->mutex);
    return status;
}

static bool is_idle(void *arg)
{
    return ((const struct image_copies *)arg)->work == NULL;
}

void image_copies_wait(struct image_copies *copies)
{
    struct rl_wait_signal signal = {
        .cond = &copies->changed, .mutex = &copies->mutex, .done = is_idle, .arg = copies};
    pthread_mutex_lock(&copies->mutex);
    (void)rl_wait_signal_poll(NULL, "engine waits for weights", &signal, -1.0);
    pthread_mutex_unlock(&copies->mutex);
}
