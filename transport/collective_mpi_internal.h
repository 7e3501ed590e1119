/* What collective_mpi.c (the compute thread's side) and collective_mpi_pump.c (MPI's side) share.
 */
#ifndef FORESIGHT_TRANSPORT_COLLECTIVE_MPI_INTERNAL_H
#define FORESIGHT_TRANSPORT_COLLECTIVE_MPI_INTERNAL_H

#include "transport/collective.h"
#include "transport/mpi_internal.h"

#include <pthread.h>

enum { COLLECTIVE_PIECE_BYTES = 4 * 1024 * 1024 };

enum collective_op {
    OP_AGREE,
    OP_SUM_FLOAT,
    OP_SUM_DOUBLE,
    OP_MAX,
    OP_MIN,
    OP_BROADCAST,
    OP_SUM_SHARE, /* float; every rank gets the sums of its own part */
    OP_GATHER     /* bytes; every rank gives its own part */
};

enum collective_stage {
    STAGE_IDLE,      /* no request */
    STAGE_SUBMITTED, /* waits for the pump */
    STAGE_HEADERS,
    STAGE_COLLECT, /* my chunk of everybody comes in */
    STAGE_SPREAD,  /* the finished chunks go round */
    STAGE_COPY,    /* a piece of a broadcast */
    STAGE_DONE
};

struct collective_header {
    uint64_t magic;
    uint64_t sequence;
    uint64_t count;  /* elements, or bytes of a broadcast */
    uint64_t bounds; /* hash of the parts' */
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
    void *data;       /* the caller's */
    const void *part; /* the caller's own, of OP_GATHER */
    uint64_t count;   /* elements (bytes of a broadcast); with parts, of the longest */
    uint64_t offset;  /* elements done; with parts, of each */
    uint64_t sequence;
    int root;
    int64_t *bounds; /* [size + 1] of the parts */
    rl_status worst;
    /* Scratch. */
    struct collective_header mine;
    struct collective_header *headers; /* [size] */
    unsigned char *out;    /* [COLLECTIVE_PIECE_BYTES] this rank's piece, then the sum */
    unsigned char *in;     /* [COLLECTIVE_PIECE_BYTES + size chunks' rounding] */
    MPI_Request *receives; /* [size] */
    MPI_Request *sends;    /* [size] */
};

/* For messages. */
const char *collective_mpi_op_name(enum collective_op op);

/* The operation cannot go on, nor can any later one. The caller holds the mutex. */
void collective_mpi_break(struct collective_mpi *c, rl_status status, int rank);

#endif
