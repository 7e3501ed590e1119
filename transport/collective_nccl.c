/* Owns the learners' NCCL communicator, and is the only file that sees nccl.h. The communicator is
 * non-blocking, every call is polled to its end beside the state of the MPI collective, and so is
 * the stream: nobody waits for a GPU that waits for a learner who is gone. Operations begin with an
 * agreement over MPI, so that a learner with a failure of its own keeps the others from starting.
 *
 * Parts of an array may differ in length, NCCL's may not: they go through staging memory on the
 * GPU, a window of all parts at a time. What a window holds depends on the parts alone, and so do
 * the sums' bits. */
#include "transport/collective_nccl.h"

#include "core/log.h"

#include <stdio.h>
#include <string.h>

#if FORESIGHT_HAVE_NCCL

#include "core/wait.h"
#include "transport/watchdog.h"

#include <dlfcn.h>
#include <nccl.h>
#include <stdlib.h>

#ifndef FORESIGHT_NCCL_LIBRARY /* the tests' is part of their program */
#define FORESIGHT_NCCL_LIBRARY "libnccl.so.2"
#endif

/* NCCL_FUNCTION(field, symbol) */
#define NCCL_FUNCTIONS(NCCL_FUNCTION)                                                              \
    NCCL_FUNCTION(version, ncclGetVersion)                                                         \
    NCCL_FUNCTION(unique_id, ncclGetUniqueId)                                                      \
    NCCL_FUNCTION(init, ncclCommInitRankConfig)                                                    \
    NCCL_FUNCTION(finalize, ncclCommFinalize)                                                      \
    NCCL_FUNCTION(destroy, ncclCommDestroy)                                                        \
    NCCL_FUNCTION(abort, ncclCommAbort)                                                            \
    NCCL_FUNCTION(state, ncclCommGetAsyncError)                                                    \
    NCCL_FUNCTION(text, ncclGetErrorString)                                                        \
    NCCL_FUNCTION(last_error, ncclGetLastError)                                                    \
    NCCL_FUNCTION(reduce_scatter, ncclReduceScatter)                                               \
    NCCL_FUNCTION(all_gather, ncclAllGather)

struct nccl_library {
#define NCCL_FUNCTION(field, symbol) __typeof__(&symbol) field;
    NCCL_FUNCTIONS(NCCL_FUNCTION)
#undef NCCL_FUNCTION
};

enum {
    STAGING_ALIGN = 256, /* of a piece, where the parts are long enough */
    WINDOWS_QUEUED = 32, /* before they are waited for: a full queue would block */
    LEAVE_EXIT_CODE = 1
};

static const double leave_timeout_s = 30;

struct nccl {
    struct collective_device base;
    struct nccl_library library;
    struct collective *c;
    struct device *device;
    struct rl_pool *pool;
    ncclComm_t comm; /* NULL: none, or it was aborted */
    double timeout_s;
    void *staging; /* [staging_bytes] the device's */
    size_t staging_bytes;
};

/* --- the library ------------------------------------------------------------------------------ */

/* *slot [a function pointer] = address of `symbol`. */
static bool load_symbol(void *library, const char *symbol, void *slot)
{
    void *address = dlsym(library, symbol);
    if (address != NULL) {
        memcpy(slot, &address, sizeof address);
    }
    return address != NULL;
}

/* It stays loaded for the process's life. False with the reason in `problem`. */
static bool load_library(struct nccl_library *out, char problem[COLLECTIVE_NCCL_TEXT])
{
    void *library = dlopen(FORESIGHT_NCCL_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        (void)snprintf(problem, COLLECTIVE_NCCL_TEXT, "no NCCL: %s", dlerror());
        return false;
    }
#define NCCL_FUNCTION(field, symbol)                                                               \
    if (!load_symbol(library, #symbol, &out->field)) {                                             \
        (void)snprintf(problem, COLLECTIVE_NCCL_TEXT, "NCCL is too old: it has no %s", #symbol);   \
        return false;                                                                              \
    }
    NCCL_FUNCTIONS(NCCL_FUNCTION)
#undef NCCL_FUNCTION
    return true;
}

void collective_nccl_survey(struct collective_nccl_survey *out)
{
    struct nccl_library library;
    memset(out, 0, sizeof *out);
    if (!load_library(&library, out->problem)) {
        return;
    }
    ncclResult_t result = library.version(&out->version);
    if (result != ncclSuccess) {
        out->version = 0;
        (void)snprintf(out->problem, sizeof out->problem, "NCCL: %s", library.text(result));
    }
}

/* --- waiting, and leaving --------------------------------------------------------------------- */

/* NCCL has no deadlines of its own, not even here. */
static void nccl_leave(struct nccl *n, ncclResult_t (*leave)(ncclComm_t))
{
    struct watchdog dog;
    struct watchdog_options options = {.what = "leaving NCCL's communicator",
                                       .timeout_s = leave_timeout_s,
                                       .exit_code = LEAVE_EXIT_CODE};
    if (n->comm != NULL && watchdog_start(&dog, &options) == RL_OK) {
        (void)leave(n->comm);
        watchdog_stop(&dog);
    }
    n->comm = NULL;
}

static rl_status nccl_fail(const struct nccl *n, const char *what, ncclResult_t result)
{
    const char *more = n->comm != NULL ? n->library.last_error(n->comm) : NULL;
    return rl_fail(result == ncclRemoteError ? RL_PEER_LOST : RL_INTERNAL, "%s: %s%s%s", what,
                   n->library.text(result), more != NULL && more[0] != '\0' ? ": " : "",
                   more != NULL ? more : "");
}

static ncclResult_t nccl_state(const struct nccl *n)
{
    ncclResult_t state = ncclSuccess;
    ncclResult_t result = n->library.state(n->comm, &state);
    return result != ncclSuccess ? result : state;
}

struct nccl_wait {
    struct nccl *n;
    const char *what;
    bool stream; /* wait for the pool's stream, too */
    rl_status status;
};

static bool nccl_is_over(void *arg)
{
    struct nccl_wait *w = arg;
    struct nccl *n = w->n;
    bool done = true;
    w->status = collective_mpi_health(n->c);
    if (w->status != RL_OK) {
        rl_fail(w->status, "%s: the learners' MPI is broken, a learner may be lost", w->what);
        return true;
    }
    ncclResult_t state = nccl_state(n);
    if (state == ncclInProgress) {
        return false;
    }
    if (state != ncclSuccess) {
        w->status = nccl_fail(n, w->what, state);
        return true;
    }
    if (w->stream) {
        w->status = device_poll(n->pool, &done);
    }
    return done || w->status != RL_OK;
}

/* Until the call that gave `result` has ended, and the stream with it if it is to. A failure aborts
 * the communicator. */
static rl_status nccl_wait(struct nccl *n, const char *what, ncclResult_t result, bool stream,
                           double timeout_s)
{
    struct nccl_wait wait = {.n = n, .what = what, .stream = stream};
    rl_status status = RL_OK;
    if (result != ncclSuccess && result != ncclInProgress) {
        status = nccl_fail(n, what, result);
    } else {
        status = rl_wait_condition(NULL, what, nccl_is_over, &wait, timeout_s);
        status = status == RL_OK ? wait.status : status;
    }
    if (status != RL_OK) {
        nccl_leave(n, n->library.abort);
    }
    return status;
}

/* --- operations ------------------------------------------------------------------------------- */

/* An operation under way: parts [bounds[r], bounds[r + 1]) of `data`, in elements of `width`. */
struct nccl_job {
    struct nccl *n;
    const char *what;
    unsigned char *data;
    const int64_t *bounds;
    size_t width;
    int64_t longest; /* part */
    int64_t offset;  /* of the window in every part */
    int64_t unit;    /* elements of a rank's piece in the staging memory */
};

static int64_t largest_unit(const struct nccl_job *job)
{
    size_t bytes =
        COLLECTIVE_NCCL_STAGING / (size_t)job->n->c->size / STAGING_ALIGN * STAGING_ALIGN;
    int64_t most = (int64_t)(bytes / job->width);
    return most < job->longest ? most : job->longest;
}

static rl_status grow_staging(struct nccl *n, size_t bytes)
{
    void *memory = NULL;
    if (bytes <= n->staging_bytes) {
        return RL_OK;
    }
    device_buffer_free(n->device, n->staging);
    n->staging = NULL;
    n->staging_bytes = 0;
    RL_TRY(device_buffer_alloc(n->device, bytes, "what goes between GPUs", &memory));
    n->staging = memory;
    n->staging_bytes = bytes;
    return RL_OK;
}

/* Everything that one learner alone can fail at comes before the agreement. */
static rl_status job_begin(struct nccl_job *job)
{
    struct nccl *n = job->n;
    rl_status worst = RL_OK;
    for (int rank = 0; rank < n->c->size; rank++) {
        int64_t length = job->bounds[rank + 1] - job->bounds[rank];
        job->longest = length > job->longest ? length : job->longest;
    }
    rl_status mine = device_wait(n->pool);
    if (mine == RL_OK) {
        mine = grow_staging(n, (size_t)(largest_unit(job) * n->c->size) * job->width);
    }
    RL_TRY(collective_agree(n->c, mine, &worst));
    if (worst != RL_OK && mine == RL_OK) {
        return rl_fail(worst, "%s: another learner's GPU failed", job->what);
    }
    return worst;
}

/* The piece of a rank's part, to the staging memory or from it. */
static void copy_piece(const struct nccl_job *job, int rank, bool to_staging)
{
    int64_t left = job->bounds[rank + 1] - job->bounds[rank] - job->offset;
    int64_t count = left < 0 ? 0 : left < job->unit ? left : job->unit;
    unsigned char *staged =
        (unsigned char *)job->n->staging + (size_t)(rank * job->unit) * job->width;
    unsigned char *place = job->data + (size_t)(job->bounds[rank] + job->offset) * job->width;
    if (count > 0) {
        device_copy(job->n->pool, to_staging ? staged : place, to_staging ? place : staged,
                    (size_t)count * job->width);
    }
}

static ncclResult_t sum_window(const struct nccl_job *job)
{
    struct nccl *n = job->n;
    float *staging = n->staging;
    for (int rank = 0; rank < n->c->size; rank++) {
        copy_piece(job, rank, true);
    }
    return n->library.reduce_scatter(staging, staging + n->c->rank * job->unit, (size_t)job->unit,
                                     ncclFloat, ncclSum, n->comm, device_stream_native(n->pool));
}

static ncclResult_t gather_window(const struct nccl_job *job)
{
    struct nccl *n = job->n;
    unsigned char *staging = n->staging;
    copy_piece(job, n->c->rank, true);
    return n->library.all_gather(staging + n->c->rank * job->unit, staging, (size_t)job->unit,
                                 ncclInt8, n->comm, device_stream_native(n->pool));
}

static void take_window(const struct nccl_job *job, bool own)
{
    for (int rank = 0; rank < job->n->c->size; rank++) {
        if ((rank == job->n->c->rank) == own) {
            copy_piece(job, rank, false);
        }
    }
}

static rl_status job_windows(struct nccl_job *job, bool sum)
{
    struct nccl *n = job->n;
    int64_t most = largest_unit(job);
    for (int queued = 1; job->offset < job->longest; queued++, job->offset += job->unit) {
        int64_t left = job->longest - job->offset;
        job->unit = left < most ? left : most;
        ncclResult_t result = sum ? sum_window(job) : gather_window(job);
        bool whole = queued % WINDOWS_QUEUED == 0;
        RL_TRY(nccl_wait(n, job->what, result, whole, n->timeout_s));
        take_window(job, sum);
    }
    return nccl_wait(n, job->what, ncclSuccess, true, n->timeout_s);
}

static rl_status job_run(struct nccl_job *job, bool sum)
{
    RL_TRY(job_begin(job));
    rl_status status = job_windows(job, sum);
    if (status != RL_OK) {
        collective_mpi_give_up(job->n->c, status);
    }
    return status;
}

static rl_status nccl_sum_share(struct collective_device *base, float *values,
                                const int64_t *bounds)
{
    struct nccl_job job = {.n = (struct nccl *)base,
                           .what = "learners: sum by NCCL",
                           .data = (unsigned char *)values,
                           .bounds = bounds,
                           .width = sizeof(float)};
    return job_run(&job, true);
}

static rl_status nccl_gather(struct collective_device *base, const int64_t *bounds, void *whole)
{
    struct nccl_job job = {.n = (struct nccl *)base,
                           .what = "learners: gathering by NCCL",
                           .data = whole,
                           .bounds = bounds,
                           .width = 1};
    return job_run(&job, false);
}

/* --- life ------------------------------------------------------------------------------------- */

static const struct collective_device_ops nccl_ops = {.sum_share = nccl_sum_share,
                                                      .gather = nccl_gather};

static rl_status make_id(const struct nccl *n, ncclUniqueId *id)
{
    ncclResult_t result = n->c->rank == 0 ? n->library.unique_id(id) : ncclSuccess;
    return result == ncclSuccess ? RL_OK : nccl_fail(n, "learners: meeting by NCCL", result);
}

/* Half the time, so that who could not is not taken for lost by those who wait for it. */
static rl_status meet(struct nccl *n, const ncclUniqueId *id)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    (void)device_stream_native(n->pool); /* the communicator is of the thread's device */
    ncclResult_t result = n->library.init(&n->comm, n->c->size, *id, n->c->rank, &config);
    return nccl_wait(n, "learners: meeting by NCCL", result, false, n->timeout_s / 2);
}

/* All or nobody. */
static rl_status agreed(struct nccl *n, rl_status mine)
{
    rl_status worst = RL_OK;
    RL_TRY(collective_agree(n->c, mine, &worst));
    return worst == RL_OK ? RL_OK : RL_AGAIN;
}

static rl_status nccl_open(struct nccl *n)
{
    ncclUniqueId id = {{0}};
    char problem[COLLECTIVE_NCCL_TEXT];
    rl_status mine = load_library(&n->library, problem) ? make_id(n, &id) : RL_UNSUPPORTED;
    RL_TRY(agreed(n, mine));
    RL_TRY(collective_broadcast(n->c, &id, sizeof id, 0));
    mine = meet(n, &id);
    rl_status health = collective_mpi_health(n->c);
    return health == RL_OK ? agreed(n, mine) : health;
}

static bool nccl_is_idle(void *arg)
{
    const struct nccl *n = arg;
    return nccl_state(n) != ncclInProgress || collective_mpi_health(n->c) != RL_OK;
}

/* In good order if that can be. Others may have left already, which is no loss now. */
static void nccl_close(struct nccl *n)
{
    bool orderly = n->comm != NULL && collective_mpi_health(n->c) == RL_OK;
    if (orderly) {
        ncclResult_t result = n->library.finalize(n->comm);
        orderly = (result == ncclSuccess || result == ncclInProgress) &&
                  rl_wait_condition(NULL, "learners: leaving NCCL", nccl_is_idle, n,
                                    leave_timeout_s) == RL_OK &&
                  nccl_state(n) == ncclSuccess;
    }
    nccl_leave(n, orderly ? n->library.destroy : n->library.abort);
    device_buffer_free(n->device, n->staging);
    free(n);
}

rl_status collective_nccl_connect(struct collective *c, struct device *device, struct rl_pool *pool,
                                  double timeout_s, struct collective_device **out)
{
    struct nccl *n = calloc(1, sizeof *n);
    int version = 0;
    if (n == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for NCCL's communicator");
    }
    *n = (struct nccl){
        .base = {.ops = &nccl_ops}, .c = c, .device = device, .pool = pool, .timeout_s = timeout_s};
    rl_status status = nccl_open(n);
    if (status != RL_OK) {
        nccl_leave(n, n->library.abort);
        free(n);
        return status;
    }
    (void)n->library.version(&version);
    if (c->rank == 0) {
        rl_log(RL_LOG_INFO, "%d learners' GPUs sum by NCCL %d.%d.%d", c->size, version / 10000,
               version / 100 % 100, version % 100);
    }
    *out = &n->base;
    return RL_OK;
}

void collective_nccl_disconnect(struct collective_device *device)
{
    if (device != NULL) {
        nccl_close((struct nccl *)device);
    }
}

#else

static const char without[] = "this program was built without NCCL";

void collective_nccl_survey(struct collective_nccl_survey *out)
{
    memset(out, 0, sizeof *out);
    (void)snprintf(out->problem, sizeof out->problem, "%s", without);
}

rl_status collective_nccl_connect(struct collective *c, struct device *device, struct rl_pool *pool,
                                  double timeout_s, struct collective_device **out)
{
    (void)c;
    (void)device;
    (void)pool;
    (void)timeout_s;
    (void)out;
    return rl_fail(RL_UNSUPPORTED, "%s", without);
}

void collective_nccl_disconnect(struct collective_device *device)
{
    (void)device;
}

#endif
