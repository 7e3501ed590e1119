/* Collectives over MPI, point to point and non-blocking. The compute thread hands in one request
 * and sleeps; the pump runs it as a small state machine: first all ranks exchange a header (which
 * finds calls that do not match, carries agree() and is the barrier), then a sum goes piece by
 * piece: every rank receives everybody's values of its own chunk, adds them in rank order, and
 * sends the result to all. MPI only ever touches scratch memory of ours, so a caller whose deadline
 * passes may free its own at once. Invariant: everything below `mutex` in the struct is touched
 * only while holding it. */
#include "core/log.h"
#include "core/wait.h"
#include "transport/collective.h"
#include "transport/mpi_internal.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COLLECTIVE_PIECE_BYTES = 4 * 1024 * 1024, COLLECTIVE_TAG = 7, COLLECTIVE_BLOCK = 512 };
#define COLLECTIVE_MAGIC UINT64_C(0x464c4f4353460001)

enum collective_op { OP_AGREE, OP_SUM_FLOAT, OP_SUM_DOUBLE, OP_MAX, OP_MIN, OP_BROADCAST };

enum collective_stage {
    STAGE_IDLE,      /* no request */
    STAGE_SUBMITTED, /* waits for the pump */
    STAGE_HEADERS,
    STAGE_GATHER, /* my chunk of everybody comes in */
    STAGE_SPREAD, /* the finished chunks go round */
    STAGE_COPY,   /* a piece of a broadcast */
    STAGE_DONE
};

struct collective_header {
    uint64_t magic;
    uint64_t sequence;
    uint64_t count; /* elements, or bytes of a broadcast */
    int32_t op;
    int32_t root;
    int32_t status; /* of agree */
    int32_t reserved;
};

struct collective_mpi {
    struct collective base;
    MPI_Comm comm;
    double timeout_s;
    pthread_mutex_t mutex;
    pthread_cond_t finished;
    rl_status broken; /* RL_OK while it works */
    int broken_rank;
    /* The request. */
    enum collective_stage stage;
    enum collective_op op;
    void *data;      /* the caller's */
    uint64_t count;  /* elements (bytes of a broadcast) */
    uint64_t offset; /* elements done */
    uint64_t sequence;
    int root;
    rl_status worst;
    /* Scratch. */
    struct collective_header mine;
    struct collective_header *headers; /* [size] */
    unsigned char *out;    /* [COLLECTIVE_PIECE_BYTES] this rank's piece, then the sum */
    unsigned char *in;     /* [COLLECTIVE_PIECE_BYTES + size chunks' rounding] */
    MPI_Request *receives; /* [size] */
    MPI_Request *sends;    /* [size] */
};

static size_t op_bytes(enum collective_op op)
{
    switch (op) {
    case OP_SUM_FLOAT:
        return sizeof(float);
    case OP_SUM_DOUBLE:
    case OP_MAX:
    case OP_MIN:
        return sizeof(double);
    case OP_AGREE:
    case OP_BROADCAST:
        break;
    }
    return 1;
}

static const char *op_name(enum collective_op op)
{
    static const char *const names[] = {"agree", "sum (float)", "sum (double)",
                                        "max",   "min",         "broadcast"};
    return (unsigned)op < 6 ? names[op] : "unknown";
}

/* Elements of the piece that starts at `offset`. */
static uint64_t piece_count(const struct collective_mpi *c)
{
    uint64_t most = COLLECTIVE_PIECE_BYTES / op_bytes(c->op);
    uint64_t left = c->count - c->offset;
    return left < most ? left : most;
}

/* Elements [first, first + count) of the piece belong to `rank`. */
static void piece_chunk(const struct collective_mpi *c, int rank, uint64_t *first, uint64_t *count)
{
    uint64_t total = piece_count(c);
    uint64_t unit = (total + (uint64_t)c->base.size - 1) / (uint64_t)c->base.size;
    uint64_t start = unit * (uint64_t)rank;
    *first = start < total ? start : total;
    *count = total - *first < unit ? total - *first : unit;
}

static void collective_break(struct collective_mpi *c, rl_status status, int rank)
{
    if (c->broken == RL_OK) {
        c->broken = status;
        c->broken_rank = rank;
    }
    pthread_cond_broadcast(&c->finished);
}

static void post_receive(struct collective_mpi *c, int rank, void *data, size_t bytes)
{
    if (MPI_Irecv(data, (int)bytes, MPI_BYTE, rank, COLLECTIVE_TAG, c->comm, &c->receives[rank]) !=
        MPI_SUCCESS) {
        c->receives[rank] = MPI_REQUEST_NULL;
        rl_fail(RL_INTERNAL, "learners' %s: cannot receive from rank %d", op_name(c->op), rank);
        collective_break(c, RL_INTERNAL, rank);
    }
}

static void post_send(struct collective_mpi *c, int rank, const void *data, size_t bytes)
{
    if (MPI_Isend(data, (int)bytes, MPI_BYTE, rank, COLLECTIVE_TAG, c->comm, &c->sends[rank]) !=
        MPI_SUCCESS) {
        c->sends[rank] = MPI_REQUEST_NULL;
        rl_fail(RL_INTERNAL, "learners' %s: cannot send to rank %d", op_name(c->op), rank);
        collective_break(c, RL_INTERNAL, rank);
    }
}

static void begin_headers(struct collective_mpi *c)
{
    c->mine = (struct collective_header){.magic = COLLECTIVE_MAGIC,
                                         .sequence = c->sequence,
                                         .count = c->count,
                                         .op = (int32_t)c->op,
                                         .root = c->root,
                                         .status = (int32_t)c->worst};
    for (int rank = 0; rank < c->base.size; rank++) {
        if (rank != c->base.rank) {
            post_receive(c, rank, &c->headers[rank], sizeof c->mine);
            post_send(c, rank, &c->mine, sizeof c->mine);
        }
    }
    c->stage = STAGE_HEADERS;
}

static void begin_gather(struct collective_mpi *c)
{
    size_t width = op_bytes(c->op);
    uint64_t first = 0;
    uint64_t mine = 0;
    uint64_t count = 0;
    memcpy(c->out, (unsigned char *)c->data + c->offset * width, piece_count(c) * width);
    piece_chunk(c, c->base.rank, &first, &mine);
    for (int rank = 0; rank < c->base.size; rank++) {
        if (rank == c->base.rank) {
            continue;
        }
        piece_chunk(c, rank, &first, &count);
        post_receive(c, rank, c->in + (uint64_t)rank * mine * width, mine * width);
        post_send(c, rank, c->out + first * width, count * width);
    }
    c->stage = STAGE_GATHER;
}

static void begin_spread(struct collective_mpi *c)
{
    size_t width = op_bytes(c->op);
    uint64_t my_first = 0;
    uint64_t mine = 0;
    uint64_t first = 0;
    uint64_t count = 0;
    piece_chunk(c, c->base.rank, &my_first, &mine);
    for (int rank = 0; rank < c->base.size; rank++) {
        if (rank == c->base.rank) {
            continue;
        }
        piece_chunk(c, rank, &first, &count);
        post_receive(c, rank, c->out + first * width, count * width);
        post_send(c, rank, c->out + my_first * width, mine * width);
    }
    c->stage = STAGE_SPREAD;
}

static void begin_copy(struct collective_mpi *c)
{
    uint64_t bytes = piece_count(c);
    if (c->base.rank != c->root) {
        post_receive(c, c->root, c->out, bytes);
    } else {
        memcpy(c->out, (unsigned char *)c->data + c->offset, bytes);
        for (int rank = 0; rank < c->base.size; rank++) {
            if (rank != c->root) {
                post_send(c, rank, c->out, bytes);
            }
        }
    }
    c->stage = STAGE_COPY;
}

/* The next piece, or the end. */
static void begin_piece(struct collective_mpi *c)
{
    if (c->op == OP_AGREE || c->offset >= c->count) {
        c->stage = STAGE_DONE;
        pthread_cond_broadcast(&c->finished);
    } else if (c->op == OP_BROADCAST) {
        begin_copy(c);
    } else {
        begin_gather(c);
    }
}

static double larger(double a, double b)
{
    return isnan(a) || a > b ? a : b;
}

static double smaller(double a, double b)
{
    return isnan(a) || a < b ? a : b;
}

static void combine_double(enum collective_op op, double *total, const double *values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (op == OP_SUM_DOUBLE) {
            total[i] += values[i];
        } else {
            total[i] = op == OP_MAX ? larger(values[i], total[i]) : smaller(values[i], total[i]);
        }
    }
}

static void combine_float(float *total, const float *values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        total[i] += values[i];
    }
}

/* Fold my chunk over the ranks, always from rank 0 up, block by block. */
static void reduce_chunk(struct collective_mpi *c)
{
    size_t width = op_bytes(c->op);
    uint64_t first = 0;
    uint64_t count = 0;
    double block[COLLECTIVE_BLOCK];
    piece_chunk(c, c->base.rank, &first, &count);
    for (uint64_t start = 0; start < count; start += COLLECTIVE_BLOCK) {
        size_t n = count - start < COLLECTIVE_BLOCK ? (size_t)(count - start) : COLLECTIVE_BLOCK;
        unsigned char *own = c->out + (first + start) * width;
        for (int rank = 0; rank < c->base.size; rank++) {
            const void *values =
                rank == c->base.rank ? own : c->in + ((uint64_t)rank * count + start) * width;
            if (rank == 0) {
                memcpy(block, values, n * width);
            } else if (c->op == OP_SUM_FLOAT) {
                combine_float((float *)(void *)block, values, n);
            } else {
                combine_double(c->op, block, values, n);
            }
        }
        memcpy(own, block, n * width);
    }
}

static void finish_piece(struct collective_mpi *c)
{
    size_t width = op_bytes(c->op);
    uint64_t count = piece_count(c);
    if (c->stage != STAGE_COPY || c->base.rank != c->root) {
        memcpy((unsigned char *)c->data + c->offset * width, c->out, count * width);
    }
    c->offset += count;
    begin_piece(c);
}

/* All ranks must have called the same thing. */
static void finish_headers(struct collective_mpi *c)
{
    for (int rank = 0; rank < c->base.size; rank++) {
        const struct collective_header *header = &c->headers[rank];
        if (rank == c->base.rank) {
            continue;
        }
        if (header->magic != COLLECTIVE_MAGIC || header->sequence != c->sequence ||
            header->op != (int32_t)c->op || header->count != c->count || header->root != c->root) {
            rl_fail(RL_INTERNAL,
                    "learners' calls differ: rank %d is at %s of %" PRIu64 " (call %" PRIu64
                    "), rank %d at %s of %" PRIu64 " (call %" PRIu64 ")",
                    c->base.rank, op_name(c->op), c->count, c->sequence, rank,
                    op_name((enum collective_op)header->op), header->count, header->sequence);
            collective_break(c, RL_INTERNAL, rank);
            return;
        }
        if (header->status > (int32_t)c->worst && header->status < (int32_t)RL_STATUS_COUNT) {
            c->worst = (rl_status)header->status;
        }
    }
    begin_piece(c);
}

/* True when every posted request has ended. */
static bool all_ended(struct collective_mpi *c)
{
    bool ended = true;
    for (int rank = 0; rank < c->base.size; rank++) {
        MPI_Request *both[2] = {&c->receives[rank], &c->sends[rank]};
        for (int i = 0; i < 2; i++) {
            int done = 1;
            if (*both[i] != MPI_REQUEST_NULL &&
                (MPI_Test(both[i], &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || !done)) {
                ended = false;
            }
        }
    }
    return ended;
}

/* One step of the state machine; true if it moved. */
static bool collective_step(struct collective_mpi *c)
{
    if (c->broken != RL_OK || c->stage == STAGE_IDLE || c->stage == STAGE_DONE) {
        return false;
    }
    if (c->stage == STAGE_SUBMITTED) {
        begin_headers(c);
        return true;
    }
    if (!all_ended(c)) {
        return false;
    }
    if (c->stage == STAGE_HEADERS) {
        finish_headers(c);
    } else if (c->stage == STAGE_GATHER) {
        reduce_chunk(c);
        begin_spread(c);
    } else {
        finish_piece(c);
    }
    return true;
}

bool collective_mpi_progress(struct collective *base)
{
    if (base->size == 1) {
        return false;
    }
    struct collective_mpi *c = (struct collective_mpi *)base;
    bool worked = false;
    pthread_mutex_lock(&c->mutex);
    while (collective_step(c)) {
        worked = true;
    }
    pthread_mutex_unlock(&c->mutex);
    return worked;
}

bool collective_mpi_active(struct collective *base)
{
    if (base->size == 1) {
        return false;
    }
    struct collective_mpi *c = (struct collective_mpi *)base;
    pthread_mutex_lock(&c->mutex);
    bool active = c->stage != STAGE_IDLE && c->stage != STAGE_DONE && c->broken == RL_OK;
    pthread_mutex_unlock(&c->mutex);
    return active;
}

void collective_mpi_note_lost(struct collective *base, int rank)
{
    if (base->size == 1 || rank >= base->size) {
        return;
    }
    struct collective_mpi *c = (struct collective_mpi *)base;
    pthread_mutex_lock(&c->mutex);
    collective_break(c, RL_PEER_LOST, rank);
    pthread_mutex_unlock(&c->mutex);
}

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
    collective_break(c, RL_TIMEOUT, -1);
    return rl_fail(RL_TIMEOUT, "learners' %s (call %" PRIu64 "): no answer within %.1f s from%s",
                   op_name(c->op), c->sequence, c->timeout_s,
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
        return rl_fail(RL_PEER_LOST, "learners' %s: rank %d is lost", op_name(c->op),
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
        rl_fail(status, "learners' %s: an earlier call failed", op_name(op));
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
    if (c->headers == NULL || c->out == NULL || c->in == NULL || c->receives == NULL ||
        c->sends == NULL) {
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
        free(c);
        return status;
    }
    *out = &c->base;
    return RL_OK;
}
