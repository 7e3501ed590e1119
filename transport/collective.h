/* Agreement and sums among the learners. Every learner calls the same operations in the same order
 * from one compute thread; the pump moves the bytes. Sums add the ranks' values in rank order,
 * element by element, so all ranks get the same bits, and the same bits in every run with that many
 * ranks. No operation outlives its deadline: RL_TIMEOUT names who is missing, RL_PEER_LOST who
 * died; after either the collective is broken and every later call fails at once. */
#ifndef FORESIGHT_TRANSPORT_COLLECTIVE_H
#define FORESIGHT_TRANSPORT_COLLECTIVE_H

#include "core/status.h"
#include "transport/world.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct collective;
struct rl_pool;

enum { COLLECTIVE_ALL = -1 }; /* every rank is the root */

struct collective_ops {
    rl_status (*sum_float)(struct collective *c, float *values, int64_t count);
    rl_status (*sum_double)(struct collective *c, double *values, int64_t count);
    rl_status (*max_double)(struct collective *c, double *values, int64_t count);
    rl_status (*min_double)(struct collective *c, double *values, int64_t count);
    rl_status (*broadcast)(struct collective *c, void *data, size_t bytes, int root);
    rl_status (*sum_share)(struct collective *c, float *values, const int64_t *bounds);
    rl_status (*gather)(struct collective *c, const void *part, const int64_t *bounds, void *whole,
                        int root);
    rl_status (*agree)(struct collective *c, rl_status mine, rl_status *worst);
    void (*destroy)(struct collective *c);
};

/* How what lies in GPUs' memory goes between them without the host's: as collective_device_* below,
 * on the stream that it was made for. */
struct collective_device {
    const struct collective_device_ops *ops;
};

struct collective_device_ops {
    rl_status (*sum_share)(struct collective_device *device, float *values, const int64_t *bounds);
    rl_status (*gather)(struct collective_device *device, const int64_t *bounds, void *whole);
};

/* First member of every implementation. */
struct collective {
    const struct collective_ops *ops;
    int rank; /* among the learners */
    int size;
    struct collective_device *device; /* of collective_gpu.h; NULL: the host's memory is the way */
};

/* One learner: every operation is the identity. Caller owns *out. Errors: RL_NO_MEMORY. */
rl_status collective_local_create(struct collective **out);

/* Over MPI, learners only, after world_form; the same deadline for every operation. The pump
 * progresses it (channel_mpi_pump_once). With one learner it is the local one. Caller owns *out.
 * Errors: RL_INVALID, RL_NO_MEMORY. */
rl_status collective_mpi_create(struct world *world, double timeout_s, struct collective **out);

/* One round of non-blocking progress; returns whether there was work. Pump thread. */
bool collective_mpi_progress(struct collective *collective);

/* True while an operation is under way: the pump should not sleep long. Any thread. */
bool collective_mpi_active(struct collective *collective);

/* A learner is lost: the running operation and all later ones fail with RL_PEER_LOST. Pump. */
void collective_mpi_note_lost(struct collective *collective, int rank);

/* RL_OK while it works, else what broke it. Any thread. */
rl_status collective_mpi_health(struct collective *collective);

/* From now on every operation of this rank fails with `status`. Any thread. */
void collective_mpi_give_up(struct collective *collective, rl_status status);

/* Sum over ranks in place, values [count]. Blocking, compute thread.
 * Errors: RL_TIMEOUT, RL_PEER_LOST, RL_INTERNAL (the ranks' calls do not match). */
rl_status collective_sum_float(struct collective *c, float *values, int64_t count);
rl_status collective_sum_double(struct collective *c, double *values, int64_t count);

/* Largest and smallest over ranks in place, values [count]; NaN wins. Errors as above. */
rl_status collective_max_double(struct collective *c, double *values, int64_t count);
rl_status collective_min_double(struct collective *c, double *values, int64_t count);

/* Copy `bytes` bytes at `data` of rank `root` to the other ranks' `data`. Errors as above. */
rl_status collective_broadcast(struct collective *c, void *data, size_t bytes, int root);

/* An array in parts: rank r has the elements [bounds[r], bounds[r + 1]), `bounds` [size + 1] rising
 * from 0 and the same on all ranks. A rank may have none. */

/* Sum over ranks as collective_sum_float makes it, to the same bits, but every rank gets only its
 * own part of `values` [bounds[size]]; the other parts are as they were. Errors as above. */
rl_status collective_sum_share(struct collective *c, float *values, const int64_t *bounds);

/* Put the parts of an array of bytes together: `part` is this rank's; `whole` [bounds[size]] is
 * filled on rank `root`, or on every rank with COLLECTIVE_ALL, and not touched elsewhere. In place
 * where part is whole + bounds[rank]. Errors as above. */
rl_status collective_gather(struct collective *c, const void *part, const int64_t *bounds,
                            void *whole, int root);

/* The two of them for arrays in the memory of the device whose stream `pool` holds (in the host's,
 * if it holds none), after all that was queued on the stream; done on return. By NCCL if
 * collective_gpu.h has set that up, else by way of the host's memory. The sums' bits depend on the
 * way, the ranks and `bounds` alone. Errors: the device's, RL_NO_MEMORY, and as above. */
rl_status collective_device_sum_share(struct collective *c, struct rl_pool *pool, float *values,
                                      const int64_t *bounds);

/* In place, to every rank: this one's part is whole + bounds[rank]. */
rl_status collective_device_gather(struct collective *c, struct rl_pool *pool,
                                   const int64_t *bounds, void *whole);

/* Every rank gives its status, every rank gets the worst (the largest code); RL_OK if all are
 * fine. The return value is about the exchange itself. */
rl_status collective_agree(struct collective *c, rl_status mine, rl_status *worst);

/* Return when every rank is here. Errors as above. */
rl_status collective_barrier(struct collective *c);

/* Takes NULL. No operation may be running; main thread. */
void collective_destroy(struct collective *c);

#endif
