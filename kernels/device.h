/* What the machine computes on: memory of the CPU, and GPUs with their memory and streams. A GPU's
 * memory is never touched by the host but through the functions at the end of this header. */
#ifndef FORESIGHT_KERNELS_DEVICE_H
#define FORESIGHT_KERNELS_DEVICE_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct rl_pool;

/* Zeroed buffer aligned to 64 bytes (2 MiB, huge pages advised, when large). Caller frees with
 * device_free. `what` names it in the error. Any thread. Errors: RL_NO_MEMORY. */
rl_status device_alloc(size_t bytes, const char *what, void **out);

/* Give back a buffer of device_alloc. Takes NULL. Any thread. */
void device_free(void *data);

/* The contents of a buffer of device_alloc are lost; its memory is the system's until it is written
 * to again. Any thread. */
void device_forget(void *data);

/* Bytes held by device_alloc now and at the peak, for the footprint line. Counters are process-wide
 * atomics. */
void device_memory(size_t *now_bytes, size_t *peak_bytes);

/* Model name of the CPU, for `doctor` and reports; borrowed, valid for the calling thread's life.
 */
const char *device_cpu_name(void);

/* Bytes of the last-level cache, or a guess where the system does not say. */
size_t device_cache_bytes(void);

/* Logical processors online, at least 1. */
int device_cpu_count(void);

/* --- GPUs --------------------------------------------------------------------------------------
 */

/* A GPU of this machine; NULL stands for the CPU wherever one is taken. */
struct device;

/* A queue of a GPU's work, held by a pool. */
struct device_stream;

/* What there is, without opening anything. */
struct device_survey {
    bool built;        /* this program has the CUDA back end */
    int count;         /* GPUs that can be used */
    int driver;        /* CUDA version that the driver offers, 1000 * major + 10 * minor; 0: none */
    int runtime;       /* CUDA version of the build; 0 without the back end */
    char problem[160]; /* why count is 0; "" otherwise */
    char name[128];    /* of the first GPU, "" if there is none */
};

/* Fill `out`. Takes up to a second on a machine with GPUs. */
void device_gpu_survey(struct device_survey *out);

/* Open GPU `index` (0 .. count - 1 of the survey). Caller closes *out with device_close, after all
 * its buffers and streams. Errors: RL_UNSUPPORTED (no such GPU, or a build without CUDA). */
rl_status device_gpu_open(int index, struct device **out);

/* Takes NULL. */
void device_close(struct device *device);

/* Model name of the device; borrowed. */
const char *device_name(const struct device *device);

/* Memory of a GPU that is free now, and all of it. */
void device_gpu_memory(const struct device *device, size_t *free_bytes, size_t *total_bytes);

enum { DEVICE_UUID_BYTES = 16 };

/* What tells a GPU from every other one, of this machine or another. */
void device_gpu_uuid(const struct device *device, unsigned char out[DEVICE_UUID_BYTES]);

/* Zeroed memory of the device, aligned to 256 bytes (CPU: as device_alloc). Waits for the device.
 * Caller frees with device_buffer_free. Errors: RL_NO_MEMORY, naming `what`. */
rl_status device_buffer_alloc(struct device *device, size_t bytes, const char *what, void **out);

/* Give back a buffer of device_buffer_alloc; waits for the device's work. Takes NULL data. */
void device_buffer_free(struct device *device, void *data);

/* --- memory that processes share ---------------------------------------------------------------
 */

/* Where memory is, seen from a device. */
enum device_place {
    DEVICE_PLACE_HOST, /* the host's; for the CPU all memory */
    DEVICE_PLACE_PEER, /* another GPU's: device_copy may read it */
    DEVICE_PLACE_HERE  /* its own: ops may read it */
};

/* Something to read, and where it is. */
struct device_source {
    const void *data;
    enum device_place place;
};

/* How other processes of the machine can reach a GPU's buffer; plain bytes, as they stand in shared
 * memory. */
struct device_share {
    unsigned char gpu[DEVICE_UUID_BYTES]; /* whose memory it is */
    unsigned char handle[64];             /* CUDA's cudaIpcMemHandle_t */
};

enum { DEVICE_WHY_MAX = 160 };

/* How to reach `data`, a buffer of device_buffer_alloc of whole 2 MiB (CUDA shares no less), in
 * *out. RL_UNSUPPORTED, not logged: it cannot be shared, `why` says it. */
rl_status device_buffer_share(struct device *device, void *data, struct device_share *out,
                              char why[DEVICE_WHY_MAX]);

/* Map another process's buffer, once a process, for reading by `device`, which may be another GPU
 * than its own. Give it back with device_buffer_unmap before its owner frees it; the owner's death
 * does not matter. RL_UNSUPPORTED, not logged: it cannot be reached, `why` says it. */
rl_status device_buffer_map(struct device *device, const struct device_share *share,
                            struct device_source *out, char why[DEVICE_WHY_MAX]);
void device_buffer_unmap(struct device *device, const void *data);

/* From now on the ops that are given `pool` run on a new stream of the GPU, in order, beside other
 * streams. A pool has at most one. NULL device: nothing happens. Errors: RL_NO_MEMORY, RL_INTERNAL.
 */
rl_status device_stream_start(struct device *device, struct rl_pool *pool);

/* Wait for the pool's stream, if it has one, and close it. */
void device_stream_stop(struct rl_pool *pool);

/* Wait for all that was queued on the pool's stream. After a failure in any op this is where it is
 * said, and every later call fails too. RL_OK at once for a pool without a stream. */
rl_status device_wait(struct rl_pool *pool);

/* The same without waiting: *done says whether all of it has been done. Errors as device_wait. */
rl_status device_poll(struct rl_pool *pool, bool *done);

/* The pool's stream for a library of the device's maker (a cudaStream_t), whose device is made the
 * calling thread's. The pool must have a stream. */
void *device_stream_native(struct rl_pool *pool);

/* Queue copies on the pool's stream (a pool without one, or NULL: done at once). `host` may be
 * changed when device_write returns. device_read waits and reports like device_wait. */
void device_write(struct rl_pool *pool, void *to, const void *host, size_t bytes);
rl_status device_read(struct rl_pool *pool, void *host, const void *from, size_t bytes);

/* Work on a pool's stream that may come again. */
struct device_work {
    void (*queue)(void *arg); /* calls ops with the pool */
    void *arg;
    /* All that the calls depend on but what memory holds: device addresses, sizes, options, the
     * host's arrays for results. Of the host's arrays the ops read those of the last pass_begin
     * alone, whose sizes and order belong to the key too; padding is zero. NULL: never again. */
    const void *key;
    size_t key_bytes; /* at most DEVICE_KEY_BYTES */
};
enum { DEVICE_KEY_BYTES = 192 };

/* Queue the work: by work->queue, or in one go where a device has recorded what that queued for the
 * same key. What ops give to the host's memory is there after the next device_wait, not when they
 * return. Not to be nested. A pool without a stream: work->queue. */
void device_replay(struct rl_pool *pool, const struct device_work *work);

/* May device_replay launch records (it may at first)? Without, work->queue is always called. */
void device_replay_allow(struct rl_pool *pool, bool allowed);

/* Points in a stream's work whose times are kept, until they are passed again. */
enum device_mark { DEVICE_MARK_BEGIN, DEVICE_MARK_MIDDLE, DEVICE_MARK_END, DEVICE_MARKS };

/* The stream, when it comes here, notes the time. A pool without a stream does nothing. */
void device_mark(struct rl_pool *pool, enum device_mark mark);

/* Seconds between two marks, both passed since before the last device_wait; 0 where nobody knows.
 */
double device_marked_s(struct rl_pool *pool, enum device_mark from, enum device_mark to);

/* Queue a fill with zeros; a copy within the device's memory (not overlapping), or from a peer's to
 * it. */
void device_clear(struct rl_pool *pool, void *to, size_t bytes);
void device_copy(struct rl_pool *pool, void *to, const void *from, size_t bytes);

#ifdef __cplusplus
}
#endif

#endif
