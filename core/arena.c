/* Owns one mapping. Invariant: used <= limit, used is a multiple of the alignment. Under
 * AddressSanitizer the unused part is poisoned, so that a stale pointer is caught. */
#include "core/arena.h"

#include "core/log.h"

#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define ARENA_POISON(start, bytes) __asan_poison_memory_region(start, bytes)
#define ARENA_UNPOISON(start, bytes) __asan_unpoison_memory_region(start, bytes)
#else
#define ARENA_POISON(start, bytes) ((void)0)
#define ARENA_UNPOISON(start, bytes) ((void)0)
#endif

struct rl_arena {
    const char *name;
    unsigned char *base;
    size_t limit;
    size_t used;
    size_t peak;
};

rl_status rl_arena_create(const char *name, size_t limit_bytes, struct rl_arena **out)
{
    if (limit_bytes == 0 || limit_bytes > SIZE_MAX / 2) {
        return rl_fail(RL_INVALID, "arena %s: limit of %zu bytes, expected 1 .. %zu", name,
                       limit_bytes, SIZE_MAX / 2);
    }
    size_t limit = (limit_bytes + RL_ARENA_ALIGN_BYTES - 1) & ~(size_t)(RL_ARENA_ALIGN_BYTES - 1);
    struct rl_arena *arena = calloc(1, sizeof *arena);
    if (arena == NULL) {
        return rl_fail(RL_NO_MEMORY, "arena %s: no memory", name);
    }
    void *base = mmap(NULL, limit, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        free(arena);
        return rl_fail(RL_NO_MEMORY, "arena %s: cannot reserve %zu bytes: %s", name, limit,
                       strerror(errno));
    }
    *arena = (struct rl_arena){.name = name, .base = base, .limit = limit};
    ARENA_POISON(base, limit);
    *out = arena;
    return RL_OK;
}

void rl_arena_destroy(struct rl_arena *arena)
{
    if (arena == NULL) {
        return;
    }
    ARENA_UNPOISON(arena->base, arena->limit);
    munmap(arena->base, arena->limit);
    free(arena);
}

rl_status rl_arena_alloc(struct rl_arena *arena, size_t count, size_t item_bytes, void **out)
{
    size_t left = arena->limit - arena->used;
    if (item_bytes > 0 && count > left / item_bytes) {
        return rl_fail(RL_NO_MEMORY, "arena %s: %zu x %zu bytes asked, %zu of %zu are left",
                       arena->name, count, item_bytes, left, arena->limit);
    }
    size_t bytes = count * item_bytes;
    unsigned char *start = arena->base + arena->used;
    ARENA_UNPOISON(start, bytes);
    /* The limit is a multiple of the alignment, so rounding up cannot pass it. */
    arena->used += (bytes + RL_ARENA_ALIGN_BYTES - 1) & ~(size_t)(RL_ARENA_ALIGN_BYTES - 1);
    arena->peak = arena->used > arena->peak ? arena->used : arena->peak;
    *out = start;
    return RL_OK;
}

rl_status rl_arena_calloc(struct rl_arena *arena, size_t count, size_t item_bytes, void **out)
{
    void *start = NULL;
    RL_TRY(rl_arena_alloc(arena, count, item_bytes, &start));
    if (count * item_bytes > 0) {
        memset(start, 0, count * item_bytes);
    }
    *out = start;
    return RL_OK;
}

size_t rl_arena_mark(const struct rl_arena *arena)
{
    return arena->used;
}

void rl_arena_release(struct rl_arena *arena, size_t mark)
{
    assert(mark <= arena->used && mark % RL_ARENA_ALIGN_BYTES == 0);
    if (mark > arena->used) {
        return;
    }
    arena->used = mark;
    ARENA_POISON(arena->base + mark, arena->limit - mark);
}

size_t rl_arena_peak_bytes(const struct rl_arena *arena)
{
    return arena->peak;
}

size_t rl_arena_limit_bytes(const struct rl_arena *arena)
{
    return arena->limit;
}
