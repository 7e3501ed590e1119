/* Memory that is freed together: a bump pointer over one reserved range of addresses. Pages are
 * touched only as they are used, so a generous limit costs nothing; exceeding it is an error, never
 * a surprise. One thread at a time. */
#ifndef FORESIGHT_CORE_ARENA_H
#define FORESIGHT_CORE_ARENA_H

#include "core/status.h"

#include <stddef.h>

enum { RL_ARENA_ALIGN_BYTES = 64 };

struct rl_arena;

/* Reserve addresses for `limit_bytes` > 0. `name` (borrowed) says in errors whose arena it is.
 * Caller owns *out. Errors: RL_INVALID, RL_NO_MEMORY. */
rl_status rl_arena_create(const char *name, size_t limit_bytes, struct rl_arena **out);

/* Give back everything. Takes NULL. */
void rl_arena_destroy(struct rl_arena *arena);

/* `count` x `item_bytes` bytes, aligned to 64, content undefined; valid until a release to an
 * earlier mark. Zero bytes give a valid pointer. Errors: RL_NO_MEMORY (limit), named and with
 * figures. */
rl_status rl_arena_alloc(struct rl_arena *arena, size_t count, size_t item_bytes, void **out);

/* The same, zeroed. */
rl_status rl_arena_calloc(struct rl_arena *arena, size_t count, size_t item_bytes, void **out);

/* Where the arena stands now; hand it to rl_arena_release to free all that came later. */
size_t rl_arena_mark(const struct rl_arena *arena);

/* Free everything allocated since `mark`; 0 frees all. Pages stay, so that reuse costs nothing. */
void rl_arena_release(struct rl_arena *arena, size_t mark);

/* Most bytes ever in use, and the limit. */
size_t rl_arena_peak_bytes(const struct rl_arena *arena);
size_t rl_arena_limit_bytes(const struct rl_arena *arena);

#endif
