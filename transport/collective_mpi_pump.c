/* The pump's side of collectives over MPI: a small state machine. First all ranks exchange a header
 * (which finds calls that do not match, carries agree() and is the barrier), then a sum goes piece
 * by piece: every rank receives everybody's values of its own chunk, adds them in rank order, and
 * sends the result to all. A sum whose parts are shared out ends before the sending; a gathering is
 * the sending alone. MPI only ever touches scratch memory of ours. */
#include "transport/collective_mpi_internal.h"

#include "core/hash.h"
#include "core/log.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { COLLECTIVE_TAG = 7, COLLECTIVE_BLOCK = 512 };
#define COLLECTIVE_MAGIC UINT64_C(0x464c4f4353460002)

static size_t op_bytes(enum collective_op op)
{
    switch (op) {
    case OP_SUM_FLOAT:
    case OP_SUM_SHARE:
        return sizeof(float);
    case OP_SUM_DOUBLE:
    case OP_MAX:
    case OP_MIN:
        return sizeof(double);
    case OP_AGREE:
    case OP_BROADCAST:
    case OP_GATHER:
        break;
    }
    return 1;
}

const char *collective_mpi_op_name(enum collective_op op)
{
    static const char *const names[] = {[OP_AGREE] = "agree",
                                        [OP_SUM_FLOAT] = "sum (float)",
                                        [OP_SUM_DOUBLE] = "sum (double)",
                                        [OP_MAX] = "max",
                                        [OP_MIN] = "min",
                                        [OP_BROADCAST] = "broadcast",
                                        [OP_SUM_SHARE] = "shared sum",
                                        [OP_GATHER] = "gather"};
    return (unsigned)op < sizeof names / sizeof names[0] ? names[op] : "unknown";
}

static bool has_parts(const struct collective_mpi *c)
{
    return c->op == OP_SUM_SHARE || c->op == OP_GATHER;
}

/* Elements of the piece that starts at `offset`; with parts, of each at most. */
static uint64_t piece_count(const struct collective_mpi *c)
{
    uint64_t most = COLLECTIVE_PIECE_BYTES / op_bytes(c->op);
    uint64_t left = c->count - c->offset;
    most /= has_parts(c) ? (uint64_t)c->base.size : 1;
    return left < most ? left : most;
}

/* What of the piece belongs to a rank. */
struct piece_chunk {
    uint64_t place;   /* its first element in the caller's data */
    uint64_t scratch; /* in `out` */
    uint64_t count;
};

static struct piece_chunk part_chunk(const struct collective_mpi *c, int rank)
{
    uint64_t first = (uint64_t)c->bounds[rank];
    uint64_t length = (uint64_t)c->bounds[rank + 1] - first;
    uint64_t left = c->offset < length ? length - c->offset : 0;
    uint64_t unit = piece_count(c);
    return (struct piece_chunk){.place = first + c->offset,
                                .scratch = unit * (uint64_t)rank,
                                .count = left < unit ? left : unit};
}

static struct piece_chunk piece_chunk(const struct collective_mpi *c, int rank)
{
    if (has_parts(c)) {
        return part_chunk(c, rank);
    }
    uint64_t total = piece_count(c);
    uint64_t unit = (total + (uint64_t)c->base.size - 1) / (uint64_t)c->base.size;
    uint64_t start = unit * (uint64_t)rank;
    uint64_t first = start < total ? start : total;
    return (struct piece_chunk){.place = c->offset + first,
                                .scratch = first,
                                .count = total - first < unit ? total - first : unit};
}

/* Whether a rank takes the finished chunks of others. */
static bool takes_all(const struct collective_mpi *c, int rank)
{
    return c->op != OP_GATHER || c->root == COLLECTIVE_ALL || c->root == rank;
}

void collective_mpi_break(struct collective_mpi *c, rl_status status, int rank)
{
    if (c->broken == RL_OK) {
        c->broken = status;
        c->broken_rank = rank;
    }
    pthread_cond_broadcast(&c->finished);
}

static void post_receive(struct collective_mpi *c, int rank, void *data, size_t bytes)
{
    if (bytes == 0) {
        return; /* nor does the other end send */
    }
    if (MPI_Irecv(data, (int)bytes, MPI_BYTE, rank, COLLECTIVE_TAG, c->comm, &c->receives[rank]) !=
        MPI_SUCCESS) {
        c->receives[rank] = MPI_REQUEST_NULL;
        rl_fail(RL_INTERNAL, "learners' %s: cannot receive from rank %d",
                collective_mpi_op_name(c->op), rank);
        collective_mpi_break(c, RL_INTERNAL, rank);
    }
}

static void post_send(struct collective_mpi *c, int rank, const void *data, size_t bytes)
{
    if (bytes == 0) {
        return;
    }
    if (MPI_Isend(data, (int)bytes, MPI_BYTE, rank, COLLECTIVE_TAG, c->comm, &c->sends[rank]) !=
        MPI_SUCCESS) {
        c->sends[rank] = MPI_REQUEST_NULL;
        rl_fail(RL_INTERNAL, "learners' %s: cannot send to rank %d", collective_mpi_op_name(c->op),
                rank);
        collective_mpi_break(c, RL_INTERNAL, rank);
    }
}

static uint64_t bounds_hash(const struct collective_mpi *c)
{
    size_t count = has_parts(c) ? (size_t)c->base.size + 1 : 0;
    return rl_hash(c->bounds, count * sizeof *c->bounds);
}

static void begin_headers(struct collective_mpi *c)
{
    c->mine = (struct collective_header){.magic = COLLECTIVE_MAGIC,
                                         .sequence = c->sequence,
                                         .count = c->count,
                                         .bounds = bounds_hash(c),
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

/* Chunks of the piece between the caller's data and `out`. */
static void load_chunk(struct collective_mpi *c, int rank)
{
    size_t width = op_bytes(c->op);
    struct piece_chunk chunk = piece_chunk(c, rank);
    if (chunk.count > 0) {
        memcpy(c->out + chunk.scratch * width, (unsigned char *)c->data + chunk.place * width,
               chunk.count * width);
    }
}

static void load_part(struct collective_mpi *c)
{
    struct piece_chunk chunk = piece_chunk(c, c->base.rank);
    if (chunk.count > 0) {
        memcpy(c->out + chunk.scratch, (const unsigned char *)c->part + c->offset, chunk.count);
    }
}

static void store_chunk(struct collective_mpi *c, int rank)
{
    size_t width = op_bytes(c->op);
    struct piece_chunk chunk = piece_chunk(c, rank);
    if (chunk.count > 0) {
        memcpy((unsigned char *)c->data + chunk.place * width, c->out + chunk.scratch * width,
               chunk.count * width);
    }
}

static void begin_collect(struct collective_mpi *c)
{
    size_t width = op_bytes(c->op);
    uint64_t mine = piece_chunk(c, c->base.rank).count;
    for (int rank = 0; rank < c->base.size; rank++) {
        load_chunk(c, rank);
    }
    for (int rank = 0; rank < c->base.size; rank++) {
        if (rank == c->base.rank) {
            continue;
        }
        struct piece_chunk chunk = piece_chunk(c, rank);
        post_receive(c, rank, c->in + (uint64_t)rank * mine * width, mine * width);
        post_send(c, rank, c->out + chunk.scratch * width, chunk.count * width);
    }
    c->stage = STAGE_COLLECT;
}

static void begin_spread(struct collective_mpi *c)
{
    size_t width = op_bytes(c->op);
    struct piece_chunk mine = piece_chunk(c, c->base.rank);
    for (int rank = 0; rank < c->base.size; rank++) {
        if (rank == c->base.rank) {
            continue;
        }
        struct piece_chunk chunk = piece_chunk(c, rank);
        if (takes_all(c, c->base.rank)) {
            post_receive(c, rank, c->out + chunk.scratch * width, chunk.count * width);
        }
        if (takes_all(c, rank)) {
            post_send(c, rank, c->out + mine.scratch * width, mine.count * width);
        }
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
    } else if (c->op == OP_GATHER) {
        load_part(c);
        begin_spread(c);
    } else {
        begin_collect(c);
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
    struct piece_chunk mine = piece_chunk(c, c->base.rank);
    double block[COLLECTIVE_BLOCK];
    for (uint64_t start = 0; start < mine.count; start += COLLECTIVE_BLOCK) {
        uint64_t left = mine.count - start;
        size_t n = left < COLLECTIVE_BLOCK ? (size_t)left : COLLECTIVE_BLOCK;
        unsigned char *own = c->out + (mine.scratch + start) * width;
        for (int rank = 0; rank < c->base.size; rank++) {
            const void *values =
                rank == c->base.rank ? own : c->in + ((uint64_t)rank * mine.count + start) * width;
            if (rank == 0) {
                memcpy(block, values, n * width);
            } else if (width == sizeof(float)) {
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
    uint64_t count = piece_count(c);
    for (int rank = 0; rank < c->base.size && takes_all(c, c->base.rank); rank++) {
        if (rank == c->base.rank || c->op != OP_SUM_SHARE) {
            store_chunk(c, rank);
        }
    }
    c->offset += count;
    begin_piece(c);
}

static void finish_copy(struct collective_mpi *c)
{
    uint64_t count = piece_count(c);
    if (c->base.rank != c->root) {
        memcpy((unsigned char *)c->data + c->offset, c->out, count);
    }
    c->offset += count;
    begin_piece(c);
}

static void finish_collect(struct collective_mpi *c)
{
    reduce_chunk(c);
    if (c->op == OP_SUM_SHARE) {
        finish_piece(c);
    } else {
        begin_spread(c);
    }
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
            header->op != (int32_t)c->op || header->count != c->count || header->root != c->root ||
            header->bounds != c->mine.bounds) {
            rl_fail(RL_INTERNAL,
                    "learners' calls differ: rank %d is at %s of %" PRIu64 " (call %" PRIu64
                    "), rank %d at %s of %" PRIu64 " (call %" PRIu64 ")",
                    c->base.rank, collective_mpi_op_name(c->op), c->count, c->sequence, rank,
                    collective_mpi_op_name((enum collective_op)header->op), header->count,
                    header->sequence);
            collective_mpi_break(c, RL_INTERNAL, rank);
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
    } else if (c->stage == STAGE_COLLECT) {
        finish_collect(c);
    } else if (c->stage == STAGE_SPREAD) {
        finish_piece(c);
    } else {
        finish_copy(c);
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
    collective_mpi_break(c, RL_PEER_LOST, rank);
    pthread_mutex_unlock(&c->mutex);
}

rl_status collective_mpi_health(struct collective *base)
{
    if (base->size == 1) {
        return RL_OK;
    }
    struct collective_mpi *c = (struct collective_mpi *)base;
    pthread_mutex_lock(&c->mutex);
    rl_status status = c->broken;
    pthread_mutex_unlock(&c->mutex);
    return status;
}

void collective_mpi_give_up(struct collective *base, rl_status status)
{
    if (base->size == 1) {
        return;
    }
    struct collective_mpi *c = (struct collective_mpi *)base;
    pthread_mutex_lock(&c->mutex);
    collective_mpi_break(c, status, -1);
    pthread_mutex_unlock(&c->mutex);
}
