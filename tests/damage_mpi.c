/* Preloaded by script_train_recovers.sh: flips one bit of every seventh group that a rank sends to
 * another, wherever it falls, as a bad cable or a bad memory would. */
#include <mpi.h>
#include <stdint.h>
#include <string.h>

enum { KIND_OFFSET = 8, KIND_GROUP = 3, EVERY = 7, STRIDE = 1237 };

static uint32_t groups;

/* The caller's buffer is its own and is freed after the send. */
static void flip(void *frame, int bytes)
{
    uint32_t at = groups * STRIDE % (uint32_t)bytes;
    ((unsigned char *)frame)[at] ^= (unsigned char)(1U << groups / EVERY % 8);
}

int MPI_Isend(const void *data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm,
              MPI_Request *request)
{
    uint32_t kind = 0;
    void *frame = (void *)(uintptr_t)data;
    if (count > KIND_OFFSET + (int)sizeof kind && memcmp(data, "FSW1", 4) == 0) {
        memcpy(&kind, (const unsigned char *)data + KIND_OFFSET, sizeof kind);
    }
    groups += kind == KIND_GROUP;
    if (kind == KIND_GROUP && groups % EVERY == 0) {
        flip(frame, count);
    }
    return PMPI_Isend(data, count, type, to, tag, comm, request);
}
