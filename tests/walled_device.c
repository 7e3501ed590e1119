/* See walled_device.h. Two mappings of the same memory would be simpler to keep apart, but pointers
 * must be the same inside and outside of ops; so pages are opened and closed. */
#include "tests/walled_device.h"

#include "core/log.h"
#include "kernels/device_ops.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { WALLED_BLOCKS = 512 };

struct block {
    void *data;
    size_t bytes; /* whole pages */
};

static struct {
    pthread_mutex_t mutex;
    struct block blocks[WALLED_BLOCKS];
    int count;
    int inside;  /* ops and copies at work */
    int streams; /* open */
} wall = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void protect_all(int rights)
{
    for (int i = 0; i < wall.count; i++) {
        if (mprotect(wall.blocks[i].data, wall.blocks[i].bytes, rights) != 0) {
            abort();
        }
    }
}

static void enter(void)
{
    pthread_mutex_lock(&wall.mutex);
    if (wall.inside++ == 0) {
        protect_all(PROT_READ | PROT_WRITE);
    }
    pthread_mutex_unlock(&wall.mutex);
}

static void leave(void)
{
    pthread_mutex_lock(&wall.mutex);
    if (--wall.inside == 0) {
        protect_all(PROT_NONE);
    }
    pthread_mutex_unlock(&wall.mutex);
}

/* --- memory --- */

static rl_status walled_alloc(struct device *device, size_t bytes, const char *what, void **out)
{
    (void)device;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t whole = (bytes + page - 1) / page * page + (bytes == 0 ? page : 0);
    void *data = mmap(NULL, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory behind the wall", what);
    }
    pthread_mutex_lock(&wall.mutex);
    if (wall.count == WALLED_BLOCKS) {
        abort();
    }
    wall.blocks[wall.count++] = (struct block){data, whole};
    if (wall.inside > 0 && mprotect(data, whole, PROT_READ | PROT_WRITE) != 0) {
        abort();
    }
    pthread_mutex_unlock(&wall.mutex);
    *out = data;
    return RL_OK;
}

static void walled_free(struct device *device, void *data)
{
    (void)device;
    pthread_mutex_lock(&wall.mutex);
    for (int i = 0; i < wall.count; i++) {
        if (wall.blocks[i].data == data) {
            (void)munmap(data, wall.blocks[i].bytes);
            wall.blocks[i] = wall.blocks[--wall.count];
            pthread_mutex_unlock(&wall.mutex);
            return;
        }
    }
    abort(); /* not ours: freed with the wrong function */
}

int walled_held(void)
{
    pthread_mutex_lock(&wall.mutex);
    int count = wall.count + wall.streams;
    pthread_mutex_unlock(&wall.mutex);
    return count;
}

/* True if the bytes lie in one block. */
static bool is_walled(const void *data, size_t bytes)
{
    bool inside = false;
    pthread_mutex_lock(&wall.mutex);
    for (int i = 0; i < wall.count && !inside; i++) {
        uintptr_t first = (uintptr_t)wall.blocks[i].data;
        uintptr_t at = (uintptr_t)data;
        inside = at >= first && at + bytes <= first + wall.blocks[i].bytes;
    }
    pthread_mutex_unlock(&wall.mutex);
    return inside;
}

/* --- streams --- */

static void copy(void *to, const void *from, size_t bytes, bool inside[2])
{
    if (bytes > 0 && (is_walled(to, bytes) != inside[0] || is_walled(from, bytes) != inside[1])) {
        abort(); /* not a copy of this kind */
    }
    enter();
    memcpy(to, from, bytes);
    leave();
}

static void walled_read(struct device_stream *stream, void *host, const void *from, size_t bytes)
{
    (void)stream;
    copy(host, from, bytes, (bool[]){false, true});
}

static void walled_write(struct device_stream *stream, void *to, const void *host, size_t bytes)
{
    (void)stream;
    copy(to, host, bytes, (bool[]){true, false});
}

static void walled_copy(struct device_stream *stream, void *to, const void *from, size_t bytes)
{
    (void)stream;
    copy(to, from, bytes, (bool[]){true, true});
}

static void walled_clear(struct device_stream *stream, void *to, size_t bytes)
{
    (void)stream;
    enter();
    memset(to, 0, bytes);
    leave();
}

static rl_status walled_wait(struct device_stream *stream)
{
    (void)stream;
    return RL_OK;
}

static void walled_replay(struct device_stream *stream, const struct device_work *work)
{
    (void)stream;
    work->queue(work->arg);
}

static void walled_replay_allow(struct device_stream *stream, bool allowed)
{
    (void)stream;
    (void)allowed;
}

static void walled_mark(struct device_stream *stream, enum device_mark mark)
{
    (void)stream;
    (void)mark;
}

static double walled_marked_s(struct device_stream *stream, enum device_mark from,
                              enum device_mark to)
{
    (void)stream;
    (void)from;
    (void)to;
    return 0;
}

static rl_status walled_open(struct device *device, struct device_stream **out)
{
    struct device_stream *stream = calloc(1, sizeof(*stream));
    if (stream == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a stream");
    }
    stream->ops = device->ops;
    pthread_mutex_lock(&wall.mutex);
    wall.streams++;
    pthread_mutex_unlock(&wall.mutex);
    *out = stream;
    return RL_OK;
}

static void walled_close(struct device_stream *stream)
{
    free(stream);
    pthread_mutex_lock(&wall.mutex);
    wall.streams--;
    pthread_mutex_unlock(&wall.mutex);
}

struct device *walled_device(void)
{
    static const struct device_ops ops = {.alloc = walled_alloc,
                                          .free = walled_free,
                                          .stream_open = walled_open,
                                          .stream_close = walled_close,
                                          .wait = walled_wait,
                                          .write = walled_write,
                                          .read = walled_read,
                                          .clear = walled_clear,
                                          .copy = walled_copy,
                                          .replay = walled_replay,
                                          .replay_allow = walled_replay_allow,
                                          .mark = walled_mark,
                                          .marked_s = walled_marked_s};
    static struct device device = {.ops = &ops, .name = "walled"};
    return &device;
}

/* --- kernels --- */

static const struct kernel_table *inner(void)
{
    const struct kernel_table *table = NULL;
    if (kernel_table_get(kernel_isa_best(), &table) != RL_OK) {
        abort();
    }
    return table;
}

#define KERNEL_OP(op, args, tolerance)                                                             \
    static void op##_walled(const struct args *a, struct rl_pool *pool)                            \
    {                                                                                              \
        if (rl_pool_device(pool) == NULL) {                                                        \
            abort(); /* no stream to run on */                                                     \
        }                                                                                          \
        enter();                                                                                   \
        inner()->op(a, pool);                                                                      \
        leave();                                                                                   \
    }
#include "kernels/ops.def"

/* The CPU's op wants scratch, which devices have of their own. */
static void head_decode_with_scratch(const struct kernel_decode_args *a, struct rl_pool *pool)
{
    const size_t rows = (size_t)a->m;
    const size_t chunks = (size_t)(a->v + KERNEL_HEAD_CHUNK - 1) / KERNEL_HEAD_CHUNK;
    struct kernel_decode_args own = *a;
    own.columns = (int64_t)chunks * KERNEL_HEAD_CHUNK;
    own.logits = aligned_alloc(64, rows * chunks * KERNEL_HEAD_CHUNK * sizeof(float));
    own.chunks = calloc(rows * chunks, sizeof *own.chunks);
    own.order = calloc(rows * (size_t)a->v, sizeof *own.order);
    if (own.logits == NULL || own.chunks == NULL || own.order == NULL) {
        abort();
    }
    head_decode_walled(&own, pool);
    free(own.logits);
    free(own.chunks);
    free(own.order);
}

const struct kernel_table *walled_kernels(void)
{
    static const struct kernel_table table = {
        .name = "walled",
        .isa = KERNEL_ISA_AVX512,
#define head_decode_walled head_decode_with_scratch /* the one op that is not the CPU's as it is   \
                                                     */
#define KERNEL_OP(op, args, tolerance) .op = op##_walled,
#include "kernels/ops.def"
    };
    return &table;
}
