/* See weight_history.h. A union is made piece by piece, each under the lock; the chain of versions
 * is looked up again for every piece, since the writer may have overwritten a part meanwhile. */
#include "transport/weight_history.h"

#include "core/log.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { HISTORY_PIECE_BYTES = 1 << 20, HISTORY_DEPTH_MAX = 1024 };

/* Leads from version `base` to version `version`. */
struct history_mask {
    uint8_t *bits;
    uint32_t base, version;
    bool valid;
};

struct weight_history {
    size_t mask_bytes;
    int depth, next; /* next: entry that the next commit replaces */
    uint8_t *memory; /* depth + 1 masks */
    uint8_t *pending;
    uint32_t last; /* version committed last */
    bool started;
    pthread_mutex_t mutex;       /* guards the masks and their versions */
    struct history_mask masks[]; /* [depth] */
};

rl_status weight_history_create(size_t mask_bytes, int depth, struct weight_history **out)
{
    if (depth < 1 || depth > HISTORY_DEPTH_MAX || mask_bytes == 0) {
        return rl_fail(RL_INVALID, "weight history of %d masks of %zu bytes", depth, mask_bytes);
    }
    struct weight_history *h = calloc(1, sizeof *h + (size_t)depth * sizeof h->masks[0]);
    if (h == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a weight history");
    }
    h->memory = calloc((size_t)depth + 1, mask_bytes);
    if (h->memory == NULL || pthread_mutex_init(&h->mutex, NULL) != 0) {
        free(h->memory);
        free(h);
        return rl_fail(RL_NO_MEMORY, "no memory for %d masks of %zu bytes", depth + 1, mask_bytes);
    }
    h->mask_bytes = mask_bytes;
    h->depth = depth;
    for (int i = 0; i < depth; i++) {
        h->masks[i].bits = h->memory + (size_t)i * mask_bytes;
    }
    h->pending = h->memory + (size_t)depth * mask_bytes;
    *out = h;
    return RL_OK;
}

void weight_history_destroy(struct weight_history *history)
{
    if (history == NULL) {
        return;
    }
    pthread_mutex_destroy(&history->mutex);
    free(history->memory);
    free(history);
}

uint8_t *weight_history_pending(struct weight_history *history)
{
    return history->pending;
}

uint64_t weight_history_pending_count(const struct weight_history *history)
{
    uint64_t count = 0;
    for (size_t i = 0; i < history->mask_bytes; i += 8) {
        uint64_t word = 0;
        size_t left = history->mask_bytes - i;
        memcpy(&word, history->pending + i, left < sizeof word ? left : sizeof word);
        count += (uint64_t)__builtin_popcountll(word);
    }
    return count;
}

void weight_history_commit(struct weight_history *history, uint32_t version)
{
    struct weight_history *h = history;
    pthread_mutex_lock(&h->mutex);
    if (h->started) {
        struct history_mask *entry = &h->masks[h->next];
        uint8_t *freed = entry->bits;
        *entry = (struct history_mask){
            .bits = h->pending, .base = h->last, .version = version, .valid = true};
        h->pending = freed;
        h->next = (h->next + 1) % h->depth;
    }
    h->last = version;
    h->started = true;
    pthread_mutex_unlock(&h->mutex);
}

static const struct history_mask *find_mask(const struct weight_history *h, uint32_t version)
{
    for (int i = 0; i < h->depth; i++) {
        if (h->masks[i].valid && h->masks[i].version == version) {
            return &h->masks[i];
        }
    }
    return NULL;
}

static void or_bytes(uint8_t *to, const uint8_t *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        to[i] |= from[i];
    }
}

/* Bytes start .. end-1 of the union; the lock must be held. */
static rl_status union_piece(const struct weight_history *h, const uint32_t versions[2],
                             const size_t range[2], uint8_t *mask)
{
    memset(mask + range[0], 0, range[1] - range[0]);
    for (uint32_t version = versions[1]; version != versions[0];) {
        const struct history_mask *entry = find_mask(h, version);
        if (entry == NULL || entry->base < versions[0]) {
            return RL_NOT_FOUND;
        }
        or_bytes(mask + range[0], entry->bits + range[0], range[1] - range[0]);
        version = entry->base;
    }
    return RL_OK;
}

rl_status weight_history_union(struct weight_history *history, uint32_t base, uint32_t version,
                               uint8_t *mask)
{
    const uint32_t versions[2] = {base, version};
    rl_status status = RL_OK;
    for (size_t start = 0; start < history->mask_bytes && status == RL_OK;) {
        size_t left = history->mask_bytes - start;
        size_t end = start + (left < HISTORY_PIECE_BYTES ? left : HISTORY_PIECE_BYTES);
        pthread_mutex_lock(&history->mutex);
        status = union_piece(history, versions, (const size_t[2]){start, end}, mask);
        pthread_mutex_unlock(&history->mutex);
        start = end;
    }
    return status;
}
