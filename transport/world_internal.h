/* What world.c (joining) and world_leave.c share. */
#ifndef FORESIGHT_TRANSPORT_WORLD_INTERNAL_H
#define FORESIGHT_TRANSPORT_WORLD_INTERNAL_H

#include "transport/mpi_internal.h"
#include "transport/seat.h"
#include "transport/world.h"

#include <sched.h>
#include <stdatomic.h>

enum { WORLD_HOST_BYTES = 128 };

/* What each rank tells the others at the start. */
struct world_card {
    char host[WORLD_HOST_BYTES];
    int64_t pid;
    uint64_t began;  /* process_life_began of pid; 0 once it is known that we cannot see it */
    cpu_set_t cores; /* that it may run on */
};

struct world {
    int rank, size;
    int local_rank, local_size;
    int node, node_count;
    int64_t leader_pid;
    int *node_of;             /* [size] */
    struct world_card *cards; /* [size] */
    int learners;             /* 0 until formed */
    bool mpi;
    bool joined; /* started for a seat, not by mpirun */
    bool hosted; /* we are rank 0 and start the others */
    struct seat seat;
    atomic_bool whole;
    atomic_bool leaderless; /* rank 0 is lost */
    atomic_bool disowned;   /* rank 0 has given this rank up */
    MPI_Comm comm;          /* MPI_COMM_NULL without MPI */
    MPI_Comm learner_comm;  /* MPI_COMM_NULL but on learners */
    char host[WORLD_HOST_BYTES];
};

/* Free what the struct owns and itself; MPI is untouched. */
void world_free(struct world *world);

/* Whether `pid` is Open MPI's launcher, going by its name. */
bool world_is_launcher(int64_t pid);

/* End the launcher by SIGTERM, so that its status is not 0, if it is one and would report success
 * otherwise (--enable-recovery). */
void world_end_launcher(int64_t launcher);

#endif
