/* Collectives over arrays in a GPU's memory: by the GPUs themselves where they are connected, else
 * by way of the host's memory, a window at a time. A window is a piece of every rank's part, so
 * that all ranks have work in each. */
#include "transport/collective.h"

#include "core/log.h"
#include "core/pool.h"
#include "kernels/device.h"

#include <stdlib.h>

enum { WINDOW_BYTES = 16 << 20 };

/* An operation under way. */
struct window {
    struct collective *c;
    struct rl_pool *pool;
    unsigned char *data;   /* the device's array */
    size_t width;          /* of an element, bytes */
    const int64_t *bounds; /* elements */
    unsigned char *host;   /* [WINDOW_BYTES] the pieces, one behind the other */
    int64_t *ends;         /* [size + 1] bounds of the pieces in `host` */
    int64_t offset;        /* of the window in every part */
};

static rl_status window_open(struct window *w)
{
    void *memory = NULL;
    w->ends = calloc((size_t)w->c->size + 1, sizeof *w->ends);
    if (w->ends == NULL) {
        return rl_fail(RL_NO_MEMORY, "learner %d: no memory for the parts of %d learners",
                       w->c->rank, w->c->size);
    }
    rl_status status = device_alloc(WINDOW_BYTES, "what goes between GPUs", &memory);
    if (status != RL_OK) {
        free(w->ends);
        return status;
    }
    w->host = memory;
    return RL_OK;
}

static void window_close(struct window *w)
{
    device_free(w->host);
    free(w->ends);
}

/* Set the pieces; false if none is left. */
static bool window_next(struct window *w)
{
    int64_t most = (int64_t)(WINDOW_BYTES / w->width) / w->c->size;
    for (int rank = 0; rank < w->c->size; rank++) {
        int64_t left = w->bounds[rank + 1] - w->bounds[rank] - w->offset;
        int64_t count = left < 0 ? 0 : left < most ? left : most;
        w->ends[rank + 1] = w->ends[rank] + count;
    }
    return w->ends[w->c->size] > 0;
}

static void *device_piece(const struct window *w, int rank)
{
    return w->data + (size_t)(w->bounds[rank] + w->offset) * w->width;
}

static unsigned char *host_piece(const struct window *w, int rank)
{
    return w->host + (size_t)w->ends[rank] * w->width;
}

static size_t piece_bytes(const struct window *w, int rank)
{
    return (size_t)(w->ends[rank + 1] - w->ends[rank]) * w->width;
}

static rl_status read_piece(const struct window *w, int rank)
{
    return device_read(w->pool, host_piece(w, rank), device_piece(w, rank), piece_bytes(w, rank));
}

static void write_piece(const struct window *w, int rank)
{
    device_write(w->pool, device_piece(w, rank), host_piece(w, rank), piece_bytes(w, rank));
}

static rl_status sum_window(const struct window *w)
{
    for (int rank = 0; rank < w->c->size; rank++) {
        RL_TRY(read_piece(w, rank));
    }
    RL_TRY(collective_sum_share(w->c, (float *)(void *)w->host, w->ends));
    write_piece(w, w->c->rank);
    return RL_OK;
}

static rl_status gather_window(const struct window *w)
{
    RL_TRY(read_piece(w, w->c->rank));
    RL_TRY(collective_gather(w->c, host_piece(w, w->c->rank), w->ends, w->host, COLLECTIVE_ALL));
    for (int rank = 0; rank < w->c->size; rank++) {
        if (rank != w->c->rank) {
            write_piece(w, rank);
        }
    }
    return RL_OK;
}

static rl_status by_windows(struct window *w, rl_status (*one)(const struct window *w))
{
    RL_TRY(window_open(w));
    rl_status status = RL_OK;
    while (status == RL_OK && window_next(w)) {
        status = one(w);
        w->offset += (int64_t)(WINDOW_BYTES / w->width) / w->c->size;
    }
    window_close(w);
    return status == RL_OK ? device_wait(w->pool) : status;
}

rl_status collective_device_sum_share(struct collective *c, struct rl_pool *pool, float *values,
                                      const int64_t *bounds)
{
    struct window w = {.c = c,
                       .pool = pool,
                       .data = (unsigned char *)values,
                       .width = sizeof(float),
                       .bounds = bounds};
    if (c->size == 1) {
        return device_wait(pool);
    }
    if (c->device != NULL) {
        return c->device->ops->sum_share(c->device, values, bounds);
    }
    return rl_pool_device(pool) != NULL ? by_windows(&w, sum_window)
                                        : collective_sum_share(c, values, bounds);
}

rl_status collective_device_gather(struct collective *c, struct rl_pool *pool,
                                   const int64_t *bounds, void *whole)
{
    struct window w = {.c = c, .pool = pool, .data = whole, .width = 1, .bounds = bounds};
    if (c->size == 1) {
        return device_wait(pool);
    }
    if (c->device != NULL) {
        return c->device->ops->gather(c->device, bounds, whole);
    }
    return rl_pool_device(pool) != NULL
               ? by_windows(&w, gather_window)
               : collective_gather(c, w.data + bounds[c->rank], bounds, whole, COLLECTIVE_ALL);
}
