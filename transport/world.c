/* The world. Owns MPI's life in this process, the table of hosts, and the watchdog that bounds the
 * few MPI calls that may block (init, communicators, finalize): MPI itself has no deadlines, and a
 * rank that dies inside one of them would hold the others for ever. Invariant: after world_open
 * returns, blocking MPI calls are made only under a watchdog. */
#include "transport/world.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/wait.h"
#include "transport/mpi_internal.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WORLD_HOST_BYTES = 128, WORLD_EXIT_HUNG = 1 };
static const double world_start_s = 300.0; /* large jobs start slowly */
static const double world_finalize_s = 10.0;

/* What each rank tells the others at the start. */
struct world_card {
    char host[WORLD_HOST_BYTES];
    int64_t pid;
};

struct world {
    int rank, size;
    int local_rank, local_size;
    int node, node_count;
    int64_t leader_pid;
    int *node_of; /* [size] */
    int learners; /* 0 until formed */
    bool mpi;
    atomic_bool whole;
    MPI_Comm comm;         /* MPI_COMM_NULL without MPI */
    MPI_Comm learner_comm; /* MPI_COMM_NULL but on learners */
    char host[WORLD_HOST_BYTES];
};

/* Ends the process if it is not called off in time. */
struct watchdog {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool off; /* guarded by mutex */
    const char *what;
    double timeout_s;
    int exit_code;
};

static bool watchdog_is_off(void *arg)
{
    return ((const struct watchdog *)arg)->off;
}

static void *watchdog_main(void *arg)
{
    struct watchdog *dog = arg;
    struct rl_wait_signal signal = {
        .cond = &dog->cond, .mutex = &dog->mutex, .done = watchdog_is_off, .arg = dog};
    pthread_mutex_lock(&dog->mutex);
    rl_status status = rl_wait_signal_poll(NULL, dog->what, &signal, dog->timeout_s);
    pthread_mutex_unlock(&dog->mutex);
    if (status != RL_OK) {
        rl_log(RL_LOG_ERROR, "%s hung for %.0f s: this rank ends with code %d", dog->what,
               dog->timeout_s, dog->exit_code);
        fflush(NULL);
        _exit(dog->exit_code);
    }
    return NULL;
}

static rl_status watchdog_start(struct watchdog *dog, const char *what, double timeout_s,
                                int exit_code)
{
    *dog = (struct watchdog){.what = what, .timeout_s = timeout_s, .exit_code = exit_code};
    pthread_mutex_init(&dog->mutex, NULL);
    RL_TRY(rl_wait_cond_init(&dog->cond));
    if (pthread_create(&dog->thread, NULL, watchdog_main, dog) != 0) {
        pthread_cond_destroy(&dog->cond);
        return rl_fail(RL_INTERNAL, "cannot start the watchdog of %s", what);
    }
    return RL_OK;
}

static void watchdog_stop(struct watchdog *dog)
{
    pthread_mutex_lock(&dog->mutex);
    dog->off = true;
    pthread_cond_signal(&dog->cond);
    pthread_mutex_unlock(&dog->mutex);
    pthread_join(dog->thread, NULL);
    pthread_cond_destroy(&dog->cond);
    pthread_mutex_destroy(&dog->mutex);
}

rl_status world_mpi_check(int code, const char *what)
{
    if (code == MPI_SUCCESS) {
        return RL_OK;
    }
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    return rl_fail(RL_INTERNAL, "%s: MPI: %s", what, text);
}

/* Open MPI, PMIx (srun) and the launchers with PMI all leave a mark in the environment. */
static bool world_is_launched(void)
{
    return getenv("OMPI_COMM_WORLD_SIZE") != NULL || getenv("PMIX_RANK") != NULL ||
           getenv("PMI_RANK") != NULL;
}

/* Wishes to Open MPI that a user's own settings override: let idle ranks yield where there are more
 * ranks than cores, and copy through shared memory rather than by reading another process, which
 * containers forbid and which fails badly when that process dies. */
static void world_tune(void)
{
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
}

static rl_status world_start_mpi(struct world *world, int *argc, char ***argv)
{
    int provided = 0;
    world_tune();
    RL_TRY(world_mpi_check(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided),
                           "cannot join the job"));
    world->mpi = true;
    if (provided < MPI_THREAD_FUNNELED) {
        return rl_fail(RL_INTERNAL, "this MPI gives thread level %d, MPI_THREAD_FUNNELED is needed",
                       provided);
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
    RL_TRY(world_mpi_check(MPI_Comm_dup(MPI_COMM_WORLD, &world->comm), "communicator"));
    MPI_Comm_set_errhandler(world->comm, MPI_ERRORS_RETURN);
    RL_TRY(world_mpi_check(MPI_Comm_rank(world->comm, &world->rank), "rank"));
    return world_mpi_check(MPI_Comm_size(world->comm, &world->size), "size");
}

/* Number the nodes by their lowest rank and find this rank's place on its node. */
static void world_place(struct world *world, const struct world_card *cards)
{
    for (int rank = 0; rank < world->size; rank++) {
        world->node_of[rank] = -1;
        for (int other = 0; other < rank && world->node_of[rank] < 0; other++) {
            if (strcmp(cards[other].host, cards[rank].host) == 0) {
                world->node_of[rank] = world->node_of[other];
            }
        }
        if (world->node_of[rank] < 0) {
            world->node_of[rank] = world->node_count++;
        }
    }
    world->node = world->node_of[world->rank];
    for (int rank = world->size - 1; rank >= 0; rank--) {
        if (world->node_of[rank] == world->node) {
            world->local_size++;
            world->local_rank += rank < world->rank ? 1 : 0;
            world->leader_pid = cards[rank].pid;
        }
    }
}

static rl_status world_meet(struct world *world)
{
    struct world_card mine = {.pid = (int64_t)getpid()};
    if (gethostname(mine.host, sizeof mine.host - 1) != 0 || mine.host[0] == '\0') {
        snprintf(mine.host, sizeof mine.host, "localhost");
    }
    memcpy(world->host, mine.host, sizeof mine.host);
    struct world_card *cards = calloc((size_t)world->size, sizeof *cards);
    world->node_of = calloc((size_t)world->size, sizeof *world->node_of);
    if (cards == NULL || world->node_of == NULL) {
        free(cards);
        return rl_fail(RL_NO_MEMORY, "no memory for a world of %d ranks", world->size);
    }
    cards[world->rank] = mine;
    rl_status status = RL_OK;
    if (world->mpi) {
        status = world_mpi_check(
            MPI_Allgather(&mine, sizeof mine, MPI_BYTE, cards, sizeof mine, MPI_BYTE, world->comm),
            "exchange of host names");
    }
    if (status == RL_OK) {
        world_place(world, cards);
    }
    free(cards);
    return status;
}

static rl_status world_start(struct world *world, int *argc, char ***argv)
{
    if (!world_is_launched()) {
        return world_meet(world);
    }
    struct watchdog dog;
    RL_TRY(watchdog_start(&dog, "joining the job", world_start_s, WORLD_EXIT_HUNG));
    rl_status status = world_start_mpi(world, argc, argv);
    if (status == RL_OK) {
        status = world_meet(world);
    }
    watchdog_stop(&dog);
    return status;
}

rl_status world_open(int *argc, char ***argv, struct world **out)
{
    struct world *world = calloc(1, sizeof *world);
    if (world == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for the world");
    }
    world->size = 1;
    world->comm = MPI_COMM_NULL;
    world->learner_comm = MPI_COMM_NULL;
    atomic_init(&world->whole, true);
    rl_status status = world_start(world, argc, argv);
    if (status != RL_OK) {
        free(world->node_of);
        free(world);
        return status;
    }
    *out = world;
    return RL_OK;
}

static rl_status world_check_learners(const struct world *world, int learners)
{
    if (world->learners != 0) {
        return rl_fail(RL_INVALID, "the roles of the ranks were fixed before");
    }
    if (learners < 1 || (world->size == 1 && learners != 1) ||
        (world->size > 1 && learners >= world->size)) {
        return rl_fail(RL_INVALID,
                       "cluster.learners is %d in a world of %d: expected 1 to %d, the rest roll "
                       "out",
                       learners, world->size, world->size > 1 ? world->size - 1 : 1);
    }
    return RL_OK;
}

/* Only the learners take part, so a slow worker cannot hold them. */
static rl_status world_make_learner_comm(struct world *world, int learners)
{
    MPI_Group all = MPI_GROUP_NULL;
    MPI_Group group = MPI_GROUP_NULL;
    int range[1][3] = {{0, learners - 1, 1}};
    RL_TRY(world_mpi_check(MPI_Comm_group(world->comm, &all), "group of ranks"));
    rl_status status = world_mpi_check(MPI_Group_range_incl(all, 1, range, &group), "learners");
    if (status == RL_OK) {
        status = world_mpi_check(MPI_Comm_create_group(world->comm, group, 0, &world->learner_comm),
                                 "learners");
        MPI_Group_free(&group);
    }
    MPI_Group_free(&all);
    if (status == RL_OK) {
        MPI_Comm_set_errhandler(world->learner_comm, MPI_ERRORS_RETURN);
    }
    return status;
}

rl_status world_form(struct world *world, int learners)
{
    RL_TRY(world_check_learners(world, learners));
    if (world->mpi && world->rank < learners) {
        struct watchdog dog;
        RL_TRY(watchdog_start(&dog, "meeting the learners", world_start_s, WORLD_EXIT_HUNG));
        rl_status status = world_make_learner_comm(world, learners);
        watchdog_stop(&dog);
        RL_TRY(status);
    }
    world->learners = learners;
    return RL_OK;
}

int world_rank(const struct world *world)
{
    return world->rank;
}

int world_size(const struct world *world)
{
    return world->size;
}

int world_local_rank(const struct world *world)
{
    return world->local_rank;
}

int world_local_size(const struct world *world)
{
    return world->local_size;
}

int world_node(const struct world *world)
{
    return world->node;
}

int world_node_count(const struct world *world)
{
    return world->node_count;
}

int world_node_of(const struct world *world, int rank)
{
    return rank >= 0 && rank < world->size ? world->node_of[rank] : -1;
}

const char *world_host(const struct world *world)
{
    return world->host;
}

bool world_has_mpi(const struct world *world)
{
    return world->mpi;
}

int64_t world_node_leader_pid(const struct world *world)
{
    return world->leader_pid;
}

int world_learners(const struct world *world)
{
    return world->learners;
}

enum world_role world_role(const struct world *world, int rank)
{
    if (world->size == 1) {
        return WORLD_BOTH;
    }
    return rank < world->learners ? WORLD_LEARNER : WORLD_WORKER;
}

const char *world_role_name(enum world_role role)
{
    static const char *const names[] = {"learner", "worker", "both"};
    return (unsigned)role < 3 ? names[role] : "unknown";
}

MPI_Comm world_comm(const struct world *world)
{
    return world->comm;
}

MPI_Comm world_learner_comm(const struct world *world)
{
    return world->learner_comm;
}

void world_note_lost(struct world *world, int rank)
{
    if (rank >= 0 && rank < world->size && rank != world->rank) {
        atomic_store(&world->whole, false);
    }
}

void world_note_torn(struct world *world)
{
    atomic_store(&world->whole, false);
}

bool world_is_whole(const struct world *world)
{
    return atomic_load(&world->whole);
}

/* True if every rank came here in time. The barrier is non-blocking: a missing rank costs only the
 * deadline, and its request is left behind. */
static bool world_all_leave(struct world *world, double timeout_s)
{
    if (!world_is_whole(world)) {
        return false;
    }
    MPI_Request request = MPI_REQUEST_NULL;
    if (MPI_Ibarrier(world->comm, &request) != MPI_SUCCESS) {
        return false;
    }
    double deadline_s = rl_clock_now_s(NULL) + timeout_s;
    int done = 0;
    while (rl_clock_now_s(NULL) < deadline_s) {
        if (MPI_Test(&request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) {
            return false;
        }
        if (done) {
            return true;
        }
        rl_clock_sleep_s(NULL, 200e-6);
    }
    rl_log(RL_LOG_WARN, "not every rank came to the end within %.0f s", timeout_s);
    return false;
}

/* Under mpirun --enable-recovery the launcher reports success whatever its ranks returned. A
 * failing rank 0 speaks for the job, so it ends the launcher too, whose status then says failure.
 * Only a parent that is Open MPI's launcher is told. */
static void world_tell_launcher(const struct world *world, int exit_code)
{
    const char *recovery = getenv("OMPI_MCA_orte_enable_recovery");
    if (world->rank != 0 || exit_code == 0 || recovery == NULL || strcmp(recovery, "1") != 0) {
        return;
    }
    char path[64];
    char name[32] = "";
    snprintf(path, sizeof path, "/proc/%ld/comm", (long)getppid());
    FILE *file = fopen(path, "re");
    if (file != NULL) {
        if (fgets(name, sizeof name, file) == NULL) {
            name[0] = '\0';
        }
        fclose(file);
    }
    if (strcmp(name, "mpirun\n") == 0 || strcmp(name, "orterun\n") == 0 ||
        strcmp(name, "mpiexec\n") == 0) {
        fflush(NULL);
        kill(getppid(), SIGTERM);
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
        struct watchdog dog;
        if (!world_all_leave(world, timeout_s) ||
            watchdog_start(&dog, "leaving the job", world_finalize_s, exit_code) != RL_OK) {
            world_tell_launcher(world, exit_code);
            fflush(NULL);
            _exit(exit_code);
        }
        world_finalize(world);
        watchdog_stop(&dog);
        world_tell_launcher(world, exit_code);
    }
    free(world->node_of);
    free(world);
}

void world_abort(struct world *world, int exit_code)
{
    fflush(NULL);
    if (world != NULL && world->mpi) {
        struct watchdog dog;
        world_tell_launcher(world, exit_code);
        if (watchdog_start(&dog, "ending the job", world_finalize_s, exit_code) == RL_OK) {
            MPI_Abort(MPI_COMM_WORLD, exit_code);
        }
    }
    _exit(exit_code);
}
