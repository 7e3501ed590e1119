/* Leaving the world: together where all ranks live, alone where somebody is missing, and with a
 * status of the job that is no lie. */
#include "core/clock.h"
#include "core/log.h"
#include "core/wait.h"
#include "transport/watchdog.h"
#include "transport/world_internal.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double world_finalize_s = 10.0;
static const double world_look_s = 0.25; /* between looks for ranks that have ended */

void world_free(struct world *world)
{
    free(world->node_of);
    free(world->cards);
    free(world);
}

/* True if a rank of this node has ended. Nobody ends before all have met here, unless it is missing
 * or knows that somebody is. */
static bool world_some_have_ended(const struct world *world)
{
    for (int rank = 0; rank < world->size; rank++) {
        if (world_rank_has_ended(world, rank)) {
            return true;
        }
    }
    return false;
}

/* True if every rank came here in time. The barrier is non-blocking: a missing rank costs only the
 * deadline, or less if it is seen to have ended, and its request is left behind. */
static bool world_all_leave(struct world *world, double timeout_s)
{
    if (!world_is_whole(world)) {
        return false;
    }
    MPI_Request request = MPI_REQUEST_NULL;
    if (MPI_Ibarrier(world->comm, &request) != MPI_SUCCESS) {
        return false;
    }
    const double begin_s = rl_clock_now_s(NULL);
    double look_s = begin_s + world_look_s;
    double now_s = begin_s;
    int done = 0;
    for (bool ended = false; !ended && now_s < begin_s + timeout_s; now_s = rl_clock_now_s(NULL)) {
        if (now_s >= look_s) { /* before the last test: an end after a meeting is no absence */
            ended = world_some_have_ended(world);
            look_s = now_s + world_look_s;
        }
        if (MPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) {
            return false;
        }
        if (done) {
            return true;
        }
        rl_clock_sleep_s(NULL, 200e-6);
    }
    rl_log(RL_LOG_WARN, "not every rank came to the end within %.0f s", now_s - begin_s);
    return false;
}

static bool world_has_recovery(void)
{
    const char *recovery = getenv("OMPI_MCA_orte_enable_recovery");
    return recovery != NULL && strcmp(recovery, "1") == 0;
}

bool world_is_launcher(int64_t pid)
{
    char path[64];
    char name[32] = "";
    snprintf(path, sizeof path, "/proc/%lld/comm", (long long)pid);
    FILE *file = fopen(path, "re");
    if (file != NULL) {
        if (fgets(name, sizeof name, file) == NULL) {
            name[0] = '\0';
        }
        fclose(file);
    }
    return strcmp(name, "mpirun\n") == 0 || strcmp(name, "orterun\n") == 0 ||
           strcmp(name, "mpiexec\n") == 0;
}

void world_end_launcher(int64_t launcher)
{
    if (world_has_recovery() && world_is_launcher(launcher)) {
        fflush(NULL);
        kill((pid_t)launcher, SIGTERM);
    }
}

/* Under mpirun --enable-recovery the launcher reports success whatever its ranks returned, and even
 * MPI_Abort leaves it at that. A failing rank 0 speaks for the job, so it ends the launcher too,
 * whose status then says failure; where rank 0 is dead, every survivor does (once or often is the
 * same). Where rank 0 is lost but its process lives, it may go on without us. */
static void world_tell_launcher(const struct world *world, int exit_code)
{
    bool speaks =
        world->rank == 0 || (atomic_load(&world->leaderless) &&
                             (!world_rank_is_seen(world, 0) || world_rank_has_ended(world, 0)));
    int64_t launcher = world->joined ? world->seat.launcher_pid : (int64_t)getppid();
    if (speaks && exit_code != 0) {
        world_end_launcher(launcher);
    }
}

static bool world_leader_has_ended(void *arg)
{
    return world_rank_has_ended(arg, 0);
}

/* Without --enable-recovery a rank that leaves takes the whole job with it: one that rank 0 has
 * given up stays, asleep, until the others are done. */
static void world_wait_disowned(struct world *world)
{
    if (world_is_disowned(world) && !world_has_recovery() && world_rank_is_seen(world, 0)) {
        (void)rl_wait_condition(NULL, "given up by rank 0: waits for its end",
                                world_leader_has_ended, world, -1.0);
    }
}

static void world_finalize(struct world *world)
{
    if (world->learner_comm != MPI_COMM_NULL) {
        MPI_Comm_free(&world->learner_comm);
    }
    MPI_Comm_free(&world->comm);
    MPI_Finalize();
}

void world_close(struct world *world, int exit_code, double timeout_s)
{
    if (world == NULL) {
        return;
    }
    if (world->mpi) {
        struct watchdog_options options = {
            .what = "leaving the job", .timeout_s = world_finalize_s, .exit_code = exit_code};
        struct watchdog dog;
        if (!world_all_leave(world, timeout_s) || watchdog_start(&dog, &options) != RL_OK) {
            world_tell_launcher(world, exit_code);
            world_wait_disowned(world);
            fflush(NULL);
            _exit(exit_code);
        }
        world_finalize(world);
        watchdog_stop(&dog);
    }
    if (world->mpi || world->joined) {
        world_tell_launcher(world, exit_code);
    }
    world_free(world);
}

void world_abort(struct world *world, int exit_code)
{
    fflush(NULL);
    if (world != NULL && world->mpi) {
        struct watchdog_options options = {
            .what = "ending the job", .timeout_s = world_finalize_s, .exit_code = exit_code};
        struct watchdog dog;
        world_tell_launcher(world, exit_code);
        if (watchdog_start(&dog, &options) == RL_OK) {
            MPI_Abort(MPI_COMM_WORLD, exit_code);
        }
    }
    _exit(exit_code);
}
