/* Collectives over MPI, point to point and non-blocking: the compute thread's side. It hands in one
 * request and sleeps; the pump carries it out (collective_mpi_pump.c). A caller whose deadline
 * passes may free its memory at once. Invariant: everything below `mutex` in the struct is touched
 * only while holding it. */
#include "transport/collective_mpi_internal.h"

#include "core/log.h"
#include "core/wait.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Say who has not answered. */
static rl_status fail_timeout(struct collective_mpi *c)
{
    char missing[128] = "";
    size_t used = 0;
    for (int rank = 0; rank < c->base.size && used + 12 < sizeof missing; rank++) {
        if (c->receives[rank] != MPI_REQUEST_NULL || c->sends[rank] != MPI_REQUEST_NULL) {
            int length = snprintf(missing + used, sizeof missing - used, " %d", rank);
            used += length > 0 ? (size_t)length : 0;
        }
    }
    bool unserved = c->stage == STAGE_SUBMITTED;
    collective_mpi_break(c, RL_TIMEOUT, -1);
    return rl_fail(RL_TIMEOUT, "learners' %s (call %" PRIu64 "): no answer within %.1f s from%s",
                   collective_mpi_op_name(c->op), c->sequence, c->timeout_s,
                   unserved ? " this rank's own pump" : missing);
}

static bool call_is_over(void *arg)
{
    const struct collective_mpi *c = arg;
    return c->stage == STAGE_DONE || c->broken != RL_OK;
}

static rl_status call_wait(struct collective_mpi *c)
{
    struct rl_wait_signal signal = {
        .cond = &c->finished, .mutex = &c->mutex, .done = call_is_over, .arg = c};
    if (rl_wait_signal_poll(NULL, "learners: collective", &signal, c->timeout_s) != RL_OK) {
        return fail_timeout(c);
    }
    if (c->stage == STAGE_DONE) {
        return RL_OK;
    }
    if (c->broken == RL_PEER_LOST) {
        return rl_fail(RL_PEER_LOST, "learners' %s: rank %d is lost", collective_mpi_op_name(c->op),
                       c->broken_rank);
    }
    return c->broken;
}

/* Hand a request to the pump and wait for its end. */
static rl_status collective_call(struct collective_mpi *c, enum collective_op op, void *data,
                                 uint64_t count, int root)
{
    pthread_mutex_lock(&c->mutex);
    rl_status status = c->broken;
    if (status == RL_OK) {
        c->op = op;
        c->data = data;
        c->count = count;
        c->offset = 0;
        c->root = root;
        c->sequence++;
        c->stage = STAGE_SUBMITTED;
        status = call_wait(c);
        c->stage = STAGE_IDLE;
        c->data = NULL;
    } else {
        rl_fail(status, "learners' %s: an earlier call failed", collective_mpi_op_name(op));
    }
    pthread_mutex_unlock(&c->mutex);
    return status;
}

static rl_status call_values(struct collective *base, enum collective_op op, void *data,
                             uint64_t count, int root)
{
    struct collective_mpi *c = (struct collective_mpi *)base;
    c->worst = RL_OK;
    return collective_call(c, op, data, count, root);
}

static rl_status mpi_sum_float(struct collective *base, float *values, int64_t count)
{
    return call_values(base, OP_SUM_FLOAT, values, (uint64_t)count, 0);
}

static rl_status mpi_sum_double(struct collective *base, double *values, int64_t count)
{
    return call_values(base, OP_SUM_DOUBLE, values, (uint64_t)count, 0);
}

static rl_status mpi_max_double(struct collective *base, double *values, int64_t count)
{
    return call_values(base, OP_MAX, values, (uint64_t)count, 0);
}

static rl_status mpi_min_double(struct collective *base, double *values, int64_t count)
{
    return call_values(base, OP_MIN, values, (uint64_t)count, 0);
}

static rl_status mpi_broadcast(struct collective *base, void *data, size_t bytes, int root)
{
    return call_values(base, OP_BROADCAST, data, bytes, root);
}

struct collective_parts {
    enum collective_op op;
    void *data;
    const void *part;
    const int64_t *bounds;
    int root;
};

/* An array in parts: what the pump counts is the longest of them. */
static rl_status call_parts(struct collective *base, const struct collective_parts *parts)
{
    struct collective_mpi *c = (struct collective_mpi *)base;
    int64_t longest = 0;
    for (int rank = 0; rank < base->size; rank++) {
        int64_t length = parts->bounds[rank + 1] - parts->bounds[rank];
        longest = length > longest ? length : longest;
    }
    pthread_mutex_lock(&c->mutex);
    memcpy(c->bounds, parts->bounds, ((size_t)base->size + 1) * sizeof *c->bounds);
    c->part = parts->part;
    pthread_mutex_unlock(&c->mutex);
    return call_values(base, parts->op, parts->data, (uint64_t)longest, parts->root);
}

static rl_status mpi_sum_share(struct collective *base, float *values, const int64_t *bounds)
{
    return call_parts(base, &(struct collective_parts){OP_SUM_SHARE, values, NULL, bounds, 0});
}

static rl_status mpi_gather(struct collective *base, const void *part, const int64_t *bounds,
                            void *whole, int root)
{
    return call_parts(base, &(struct collective_parts){OP_GATHER, whole, part, bounds, root});
}

static rl_status mpi_agree(struct collective *base, rl_status mine, rl_status *worst)
{
    struct collective_mpi *c = (struct collective_mpi *)base;
    pthread_mutex_lock(&c->mutex);
    c->worst = mine;
    pthread_mutex_unlock(&c->mutex);
    RL_TRY(collective_call(c, OP_AGREE, NULL, 0, 0));
    *worst = c->worst;
    return RL_OK;
}

/* Requests that a failure left open keep their scratch memory: MPI may still write there. */
static void mpi_destroy(struct collective *base)
{
    struct collective_mpi *c = (struct collective_mpi *)base;
    bool open = false;
    for (int rank = 0; rank < base->size; rank++) {
        open = open || c->receives[rank] != MPI_REQUEST_NULL || c->sends[rank] != MPI_REQUEST_NULL;
    }
    pthread_cond_destroy(&c->finished);
    pthread_mutex_destroy(&c->mutex);
    free(c->receives);
    free(c->sends);
    free(c->bounds);
    if (!open) {
        free(c->headers);
        free(c->out);
        free(c->in);
        free(c);
    }
}

static const struct collective_ops mpi_ops = {
    .sum_float = mpi_sum_float,
    .sum_double = mpi_sum_double,
    .max_double = mpi_max_double,
    .min_double = mpi_min_double,
    .broadcast = mpi_broadcast,
    .sum_share = mpi_sum_share,
    .gather = mpi_gather,
    .agree = mpi_agree,
    .destroy = mpi_destroy,
};

static rl_status create_scratch(struct collective_mpi *c)
{
    size_t size = (size_t)c->base.size;
    c->headers = calloc(size, sizeof *c->headers);
    c->out = malloc(COLLECTIVE_PIECE_BYTES);
    c->in = malloc(COLLECTIVE_PIECE_BYTES + size * size * sizeof(double));
    c->receives = malloc(size * sizeof(MPI_Request));
    c->sends = malloc(size * sizeof(MPI_Request));
    c->bounds = calloc(size + 1, sizeof *c->bounds);
    if (c->headers == NULL || c->out == NULL || c->in == NULL || c->receives == NULL ||
        c->sends == NULL || c->bounds == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for the collectives of %zu learners", size);
    }
    for (size_t i = 0; i < size; i++) {
        c->receives[i] = MPI_REQUEST_NULL;
        c->sends[i] = MPI_REQUEST_NULL;
    }
    return RL_OK;
}

static rl_status create_fill(struct collective_mpi *c)
{
    RL_TRY(create_scratch(c));
    RL_TRY(rl_wait_cond_init(&c->finished));
    if (pthread_mutex_init(&c->mutex, NULL) != 0) {
        pthread_cond_destroy(&c->finished);
        return rl_fail(RL_INTERNAL, "cannot make the collective's lock");
    }
    return RL_OK;
}

rl_status collective_mpi_create(struct world *world, double timeout_s, struct collective **out)
{
    if (world_learners(world) == 1) {
        return collective_local_create(out);
    }
    MPI_Comm comm = world_learner_comm(world);
    if (comm == MPI_COMM_NULL || timeout_s <= 0.0) {
        return rl_fail(RL_INVALID, "a collective needs a learner and a deadline (%g s)", timeout_s);
    }
    struct collective_mpi *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a collective");
    }
    c->base = (struct collective){
        .ops = &mpi_ops, .rank = world_rank(world), .size = world_learners(world)};
    c->comm = comm;
    c->timeout_s = timeout_s;
    rl_status status = create_fill(c);
    if (status != RL_OK) {
        free(c->headers);
        free(c->out);
        free(c->in);
        free(c->receives);
        free(c->sends);
        free(c->bounds);
        free(c);
        return status;
    }
    *out = &c->base;
    return RL_OK;
}
