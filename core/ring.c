/* Owns the slots and the lock. A mutex and two condition variables: items here are whole groups or
 * messages, a few thousand a second at most, so waiting well matters more than lock-free speed.
 * Invariant: depth <= capacity; items lie at (head + i) % capacity for i < depth. */
#include "core/ring.h"

#include "core/log.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

struct rl_ring {
    pthread_mutex_t lock;
    pthread_cond_t not_full;
    pthread_cond_t not_empty;
    struct rl_waits *waits;
    char full_name[RL_WAIT_NAME_BYTES];
    char empty_name[RL_WAIT_NAME_BYTES];
    bool closed;
    size_t capacity;
    size_t head;
    size_t depth;
    size_t depth_max;
    void **slots;
};

static rl_status ring_init_conds(struct rl_ring *ring)
{
    RL_TRY(rl_wait_cond_init(&ring->not_full));
    rl_status status = rl_wait_cond_init(&ring->not_empty);
    if (status != RL_OK) {
        pthread_cond_destroy(&ring->not_full);
    }
    return status;
}

rl_status rl_ring_create(const char *name, size_t capacity, struct rl_waits *waits,
                         struct rl_ring **out)
{
    if (capacity == 0) {
        return rl_fail(RL_INVALID, "ring %s: capacity 0, expected at least 1", name);
    }
    struct rl_ring *ring = calloc(1, sizeof *ring);
    void **slots = calloc(capacity, sizeof *slots);
    rl_status status = RL_OK;
    if (ring == NULL || slots == NULL) {
        status = rl_fail(RL_NO_MEMORY, "ring %s: no memory for %zu items", name, capacity);
    } else {
        status = ring_init_conds(ring);
    }
    if (status != RL_OK) {
        free(slots);
        free(ring);
        return status;
    }
    pthread_mutex_init(&ring->lock, NULL);
    ring->waits = waits;
    snprintf(ring->full_name, sizeof ring->full_name, "%.56s: full", name);
    snprintf(ring->empty_name, sizeof ring->empty_name, "%.56s: empty", name);
    ring->capacity = capacity;
    ring->slots = slots;
    *out = ring;
    return RL_OK;
}

void rl_ring_destroy(struct rl_ring *ring, rl_ring_free_fn free_item)
{
    if (ring == NULL) {
        return;
    }
    for (size_t i = 0; free_item != NULL && i < ring->depth; i++) {
        free_item(ring->slots[(ring->head + i) % ring->capacity]);
    }
    pthread_cond_destroy(&ring->not_empty);
    pthread_cond_destroy(&ring->not_full);
    pthread_mutex_destroy(&ring->lock);
    free(ring->slots);
    free(ring);
}

static bool ring_can_push(void *arg)
{
    const struct rl_ring *ring = arg;
    return ring->closed || ring->depth < ring->capacity;
}

static bool ring_can_pop(void *arg)
{
    const struct rl_ring *ring = arg;
    return ring->closed || ring->depth > 0;
}

/* Called with the lock held and either room or a closed ring. */
static rl_status ring_put(struct rl_ring *ring, void *item)
{
    if (ring->closed) {
        return RL_CLOSED;
    }
    ring->slots[(ring->head + ring->depth) % ring->capacity] = item;
    ring->depth++;
    ring->depth_max = ring->depth > ring->depth_max ? ring->depth : ring->depth_max;
    pthread_cond_signal(&ring->not_empty);
    return RL_OK;
}

/* Called with the lock held and either an item or a closed ring. */
static rl_status ring_take(struct rl_ring *ring, void **item)
{
    if (ring->depth == 0) {
        return RL_CLOSED;
    }
    *item = ring->slots[ring->head];
    ring->slots[ring->head] = NULL;
    ring->head = (ring->head + 1) % ring->capacity;
    ring->depth--;
    pthread_cond_signal(&ring->not_full);
    return RL_OK;
}

rl_status rl_ring_push(struct rl_ring *ring, void *item, double timeout_s)
{
    struct rl_wait_signal signal = {&ring->not_full, &ring->lock, ring_can_push, ring};
    pthread_mutex_lock(&ring->lock);
    rl_status status = rl_wait_signal(ring->waits, ring->full_name, &signal, timeout_s);
    status = status == RL_OK ? ring_put(ring, item) : status;
    pthread_mutex_unlock(&ring->lock);
    return status;
}

rl_status rl_ring_pop(struct rl_ring *ring, double timeout_s, void **item)
{
    struct rl_wait_signal signal = {&ring->not_empty, &ring->lock, ring_can_pop, ring};
    pthread_mutex_lock(&ring->lock);
    rl_status status = rl_wait_signal(ring->waits, ring->empty_name, &signal, timeout_s);
    status = status == RL_OK ? ring_take(ring, item) : status;
    pthread_mutex_unlock(&ring->lock);
    return status;
}

rl_status rl_ring_poll(struct rl_ring *ring, double wait_s, void **item)
{
    struct rl_wait_signal signal = {&ring->not_empty, &ring->lock, ring_can_pop, ring};
    pthread_mutex_lock(&ring->lock);
    rl_status status = rl_wait_signal_poll(ring->waits, ring->empty_name, &signal, wait_s);
    status = status == RL_OK ? ring_take(ring, item) : status;
    pthread_mutex_unlock(&ring->lock);
    return status;
}

rl_status rl_ring_try_push(struct rl_ring *ring, void *item)
{
    pthread_mutex_lock(&ring->lock);
    rl_status status = ring_can_push(ring) ? ring_put(ring, item) : RL_AGAIN;
    pthread_mutex_unlock(&ring->lock);
    return status;
}

rl_status rl_ring_try_pop(struct rl_ring *ring, void **item)
{
    pthread_mutex_lock(&ring->lock);
    rl_status status = ring_can_pop(ring) ? ring_take(ring, item) : RL_AGAIN;
    pthread_mutex_unlock(&ring->lock);
    return status;
}

void rl_ring_close(struct rl_ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    ring->closed = true;
    pthread_cond_broadcast(&ring->not_full);
    pthread_cond_broadcast(&ring->not_empty);
    pthread_mutex_unlock(&ring->lock);
}

size_t rl_ring_depth(struct rl_ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    size_t depth = ring->depth;
    pthread_mutex_unlock(&ring->lock);
    return depth;
}

size_t rl_ring_depth_max(struct rl_ring *ring)
{
    pthread_mutex_lock(&ring->lock);
    size_t depth_max = ring->depth_max;
    pthread_mutex_unlock(&ring->lock);
    return depth_max;
}

size_t rl_ring_capacity(const struct rl_ring *ring)
{
    return ring->capacity;
}
