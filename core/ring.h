/* A bounded queue of pointers between threads, any number on either side, first in, first out.
 * Ownership of the item moves with it: to the ring on a successful push, to the caller on pop; a
 * push that fails leaves it with the caller. */
#ifndef FORESIGHT_CORE_RING_H
#define FORESIGHT_CORE_RING_H

#include "core/status.h"
#include "core/wait.h"

#include <stddef.h>

struct rl_ring;

typedef void (*rl_ring_free_fn)(void *item);

/* Room for `capacity` >= 1 items. Waits are counted in `waits` (borrowed, may be NULL) as "NAME:
 * full" (push) and "NAME: empty" (pop). Caller owns *out. Errors: RL_INVALID, RL_NO_MEMORY. */
rl_status rl_ring_create(const char *name, size_t capacity, struct rl_waits *waits,
                         struct rl_ring **out);

/* Free the ring; items still inside go to `free_item` (NULL: there must be none that need it). No
 * thread may be in a call. Takes NULL. */
void rl_ring_destroy(struct rl_ring *ring, rl_ring_free_fn free_item);

/* Put `item` (not NULL) in, waiting for room. `timeout_s` < 0: no deadline. Errors: RL_CLOSED,
 * RL_TIMEOUT (logged). */
rl_status rl_ring_push(struct rl_ring *ring, void *item, double timeout_s);

/* Take the oldest item, waiting for one. A closed ring still gives out what it holds. Errors:
 * RL_CLOSED (closed and empty), RL_TIMEOUT (logged). */
rl_status rl_ring_pop(struct rl_ring *ring, double timeout_s, void **item);

/* The same without waiting: RL_AGAIN if full or empty. */
rl_status rl_ring_try_push(struct rl_ring *ring, void *item);
rl_status rl_ring_try_pop(struct rl_ring *ring, void **item);

/* Pop where nothing in `wait_s` seconds is normal: RL_AGAIN then, not logged. */
rl_status rl_ring_poll(struct rl_ring *ring, double wait_s, void **item);

/* Refuse pushes from now on and wake everybody who waits. May be called more than once. */
void rl_ring_close(struct rl_ring *ring);

/* Items inside, at this moment. */
size_t rl_ring_depth(struct rl_ring *ring);

/* Most items that were ever inside. */
size_t rl_ring_depth_max(struct rl_ring *ring);

/* Room, as given to create. */
size_t rl_ring_capacity(const struct rl_ring *ring);

#endif
