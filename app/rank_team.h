/* Ranks that all do the same work side by side (fine-tuning, distillation, evaluation): each
 * process that mpirun started runs one work function on a compute thread, while its main thread
 * moves the bytes of their collective. One process needs neither thread nor MPI. */
#ifndef FORESIGHT_APP_RANK_TEAM_H
#define FORESIGHT_APP_RANK_TEAM_H

#include "core/wait.h"
#include "transport/collective.h"

/* What the work may use. Borrowed for the call. */
struct rank_team {
    struct collective *collective; /* rank and size; all ranks */
    struct rl_waits *waits;
    double timeout_s; /* of an operation */
    int local_rank;   /* among the ranks of this machine */
};

typedef rl_status (*rank_team_fn)(void *arg, const struct rank_team *team);

/* Join the world, run `work` on every rank, leave. Catches signals (app/signals.h). No operation of
 * the collective outlives timeout_s. A rank that fails waits for nobody and so ends the job. Main
 * thread; returns the program's exit code. */
int rank_team_run(int argc, char **argv, double timeout_s, rank_team_fn work, void *arg);

#endif
