/* What world.c, channel_mpi*.c and collective_mpi*.c share. The only header that includes mpi.h; no
 * other module may include it. */
#ifndef FORESIGHT_TRANSPORT_MPI_INTERNAL_H
#define FORESIGHT_TRANSPORT_MPI_INTERNAL_H

#include "core/status.h"
#include "transport/world.h"

#include <mpi.h>

/* Tags on the world's communicator: control messages of channels, then MPI_TAG_KIND + kind for the
 * others (the standard promises tags up to 32767). */
enum { MPI_TAG_CONTROL = 1, MPI_TAG_KIND = 16, MPI_KINDS_MAX = 16384 };

/* Communicator of channels: a duplicate of MPI_COMM_WORLD. MPI_COMM_NULL without MPI. */
MPI_Comm world_comm(const struct world *world);

/* Learners only, rank in it = world rank; MPI_COMM_NULL elsewhere. */
MPI_Comm world_learner_comm(const struct world *world);

/* RL_OK, or RL_INTERNAL logged with MPI's own text and `what` was tried. */
rl_status world_mpi_check(int code, const char *what);

#endif
