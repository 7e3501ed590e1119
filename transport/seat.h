/* A rank's place, and the process that takes it after the one that had it was lost. Rank 0 starts
 * the new process itself, as a plain child with one end of a socket: mpirun knows nothing of it and
 * MPI plays no part, so nothing here can block on a peer that dies (docs/failures.md says why not
 * MPI_Comm_spawn). Only for ranks of rank 0's own node. */
#ifndef FORESIGHT_TRANSPORT_SEAT_H
#define FORESIGHT_TRANSPORT_SEAT_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

/* What a new process is told, through its environment and one inherited descriptor. */
struct seat {
    int rank, size;
    uint32_t incarnation;   /* 1 for the first successor of mpirun's process, and so on */
    int reader;             /* its index in the node's weight arena */
    int64_t learner_pid;    /* its parent, rank 0 */
    uint64_t learner_began; /* process_life_began of it */
    int64_t launcher_pid;   /* mpirun */
    int fd;                 /* connected stream socket to rank 0; the holder's end */
};

/* Start `arguments` (NULL-terminated; [0] a path) as `seat` (its fd plays no part). `cores`: a
 * cpu_set_t that the process shall run on, NULL: this thread's. Caller owns *pid (waitpid) and *fd.
 * Main thread. Errors: RL_IO, RL_NO_MEMORY. */
rl_status seat_start(const struct seat *seat, char *const *arguments, const void *cores,
                     int64_t *pid, int *fd);

/* The seat that this process was started for; false if it is none. Once, before other threads: the
 * environment is cleared of it. */
bool seat_from_environment(struct seat *out);

#endif
