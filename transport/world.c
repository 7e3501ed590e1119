/* The world: joining it, the table of hosts and processes, the roles. Leaving is in world_leave.c.
 * The few MPI calls that may block (init, communicators, finalize) are bounded by a watchdog: MPI
 * itself has no deadlines, and a rank that dies inside one of them would hold the others for ever.
 * Invariant: after world_open returns, blocking MPI calls are made only under a watchdog. */
#include "transport/world.h"

#include "core/clock.h"
#include "core/log.h"
#include "transport/mpi_internal.h"
#include "transport/process_life.h"
#include "transport/watchdog.h"
#include "transport/world_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WORLD_EXIT_HUNG = 1, WORLD_HOSTED_MOST = 1024 };
static const double world_start_s = 300.0; /* large jobs start slowly */
static const double world_missing_s = 3.0; /* until a rank that is not there counts as dead */

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

/* Remember the others' cards; a process that we cannot find (containers) is not looked for. */
static void world_keep_cards(struct world *world, struct world_card *cards)
{
    for (int rank = 0; rank < world->size; rank++) {
        if (world->node_of[rank] != world->node ||
            process_life_began(cards[rank].pid) != cards[rank].began) {
            cards[rank].began = 0;
        }
    }
    world->cards = cards;
}

static rl_status world_meet(struct world *world)
{
    struct world_card mine = {.pid = (int64_t)getpid(),
                              .began = process_life_began((int64_t)getpid())};
    (void)sched_getaffinity(0, sizeof mine.cores, &mine.cores);
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
    if (status != RL_OK) {
        free(cards);
        return status;
    }
    world_place(world, cards);
    world_keep_cards(world, cards);
    return RL_OK;
}

/* A process started for a seat: on rank 0's node, and with nobody to meet but rank 0. */
static rl_status world_join(struct world *world)
{
    world->size = world->seat.size;
    world->rank = world->seat.rank;
    world->node_of = calloc((size_t)world->size, sizeof *world->node_of);
    world->cards = calloc((size_t)world->size, sizeof *world->cards);
    if (world->node_of == NULL || world->cards == NULL ||
        gethostname(world->host, sizeof world->host - 1) != 0) {
        return rl_fail(RL_NO_MEMORY, "no memory for a world of %d ranks", world->size);
    }
    world->cards[0].pid = world->seat.learner_pid;
    world->cards[0].began = world->seat.learner_began;
    world->leader_pid = world->seat.learner_pid;
    world->node_count = 1;
    world->local_rank = world->rank;
    world->local_size = world->size;
    return RL_OK;
}

/* MPI waits for ever for a rank that died before it came to the meeting. */
struct world_meeting {
    double missing_s; /* since when ranks of this node are missing; 0: all are there */
};

static const char *meeting_look(void *arg)
{
    struct world_meeting *meeting = arg;
    const char *expected = getenv("OMPI_COMM_WORLD_LOCAL_SIZE"); /* launch code: what mpirun says */
    int living = process_life_children((int64_t)getppid());
    double now_s = rl_clock_now_s(NULL);
    if (expected == NULL || living < 0 || !world_is_launcher((int64_t)getppid()) ||
        living >= (int)strtol(expected, NULL, 10)) {
        meeting->missing_s = 0.0;
        return NULL;
    }
    meeting->missing_s = meeting->missing_s > 0.0 ? meeting->missing_s : now_s;
    if (now_s - meeting->missing_s < world_missing_s) {
        return NULL;
    }
    world_end_launcher((int64_t)getppid());
    return "a rank of this node has died before it joined";
}

/* Rank 0 of a world whose other processes it will start: they share its node and its cores. */
static rl_status world_host_others(struct world *world, int size)
{
    RL_TRY(world_meet(world));
    struct world_card *cards = calloc((size_t)size, sizeof *cards);
    int *node_of = calloc((size_t)size, sizeof *node_of);
    if (cards == NULL || node_of == NULL) {
        free(cards);
        free(node_of);
        return rl_fail(RL_NO_MEMORY, "no memory for a world of %d ranks", size);
    }
    for (int rank = 0; rank < size; rank++) {
        cards[rank] = world->cards[0];
        cards[rank].pid = rank == 0 ? world->cards[0].pid : 0;
        cards[rank].began = rank == 0 ? world->cards[0].began : 0;
    }
    free(world->cards);
    free(world->node_of);
    world->cards = cards;
    world->node_of = node_of;
    world->size = size;
    world->local_size = size;
    world->hosted = true;
    return RL_OK;
}

/* How many ranks the environment asks for, which is not for processes that we start; 0: none. */
static int world_hosted_size(void)
{
    const char *text = getenv(WORLD_HOSTED_VARIABLE); /* launch code: what our parent says */
    long size = text != NULL ? strtol(text, NULL, 10) : 0;
    unsetenv(WORLD_HOSTED_VARIABLE);
    return size > 1 && size <= WORLD_HOSTED_MOST ? (int)size : 0;
}

static rl_status world_start(struct world *world, int *argc, char ***argv)
{
    int hosted = world_hosted_size();
    world->joined = seat_from_environment(&world->seat);
    if (world->joined) {
        return world_join(world);
    }
    if (hosted > 0 && !world_is_launched()) {
        return world_host_others(world, hosted);
    }
    if (!world_is_launched()) {
        return world_meet(world);
    }
    struct world_meeting meeting = {0};
    struct watchdog_options options = {.what = "joining the job",
                                       .timeout_s = world_start_s,
                                       .exit_code = WORLD_EXIT_HUNG,
                                       .look = meeting_look,
                                       .arg = &meeting};
    struct watchdog dog;
    RL_TRY(watchdog_start(&dog, &options));
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
    atomic_init(&world->leaderless, false);
    atomic_init(&world->disowned, false);
    rl_status status = world_start(world, argc, argv);
    if (status != RL_OK) {
        world_free(world);
        return status;
    }
    *out = world;
    return RL_OK;
}

static rl_status world_check_learners(const struct world *world, int learners)
{
    if (learners < 1 || (world->size == 1 && learners != 1) ||
        (world->size > 1 && learners >= world->size)) {
        return rl_fail(RL_INVALID,
                       "cluster.learners is %d in a world of %d: expected 1 to %d, the rest roll "
                       "out",
                       learners, world->size, world->size > 1 ? world->size - 1 : 1);
    }
    if (world->hosted && learners != 1) {
        return rl_fail(
            RL_UNSUPPORTED,
            "cluster.learners is %d: several learners need mpirun; a process that starts "
            "the other ranks itself is the only one",
            learners);
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

static rl_status world_set_roles(struct world *world, int learners)
{
    if (world->learners != 0) {
        return rl_fail(RL_INVALID, "the roles of the ranks were fixed before");
    }
    if (world->mpi && world->rank < learners) {
        struct watchdog_options options = {.what = "meeting the learners",
                                           .timeout_s = world_start_s,
                                           .exit_code = WORLD_EXIT_HUNG};
        struct watchdog dog;
        RL_TRY(watchdog_start(&dog, &options));
        rl_status status = world_make_learner_comm(world, learners);
        watchdog_stop(&dog);
        RL_TRY(status);
    }
    world->learners = learners;
    return RL_OK;
}

rl_status world_form(struct world *world, int learners)
{
    RL_TRY(world_check_learners(world, learners));
    return world_set_roles(world, learners);
}

rl_status world_form_equal(struct world *world)
{
    if (world_has_joined(world) && world->size > 1) {
        return rl_fail(RL_UNSUPPORTED, "a process in a lost rank's seat cannot be one of equals");
    }
    return world_set_roles(world, world->size);
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
        if (rank == 0) {
            atomic_store(&world->leaderless, true);
        }
    }
}

void world_note_disowned(struct world *world)
{
    atomic_store(&world->disowned, true);
    atomic_store(&world->whole, false);
}

bool world_is_disowned(const struct world *world)
{
    return atomic_load(&world->disowned);
}

bool world_rank_is_seen(const struct world *world, int rank)
{
    return rank >= 0 && rank < world->size && world->cards[rank].began != 0;
}

bool world_rank_has_ended(const struct world *world, int rank)
{
    return world_rank_is_seen(world, rank) &&
           process_life_began(world->cards[rank].pid) != world->cards[rank].began;
}

int64_t world_rank_pid(const struct world *world, int rank)
{
    return world->cards[rank].pid;
}

bool world_is_hosted(const struct world *world)
{
    return world->hosted;
}

bool world_has_joined(const struct world *world)
{
    return world->joined;
}

uint32_t world_incarnation(const struct world *world)
{
    return world->joined ? world->seat.incarnation : 0;
}

int world_reader(const struct world *world)
{
    return world->joined ? world->seat.reader : world->rank;
}

int world_socket(const struct world *world)
{
    return world->joined ? world->seat.fd : -1;
}

rl_status world_start_successor(const struct world *world, const struct world_successor *successor,
                                char *const *arguments, int64_t *pid, int *fd)
{
    int rank = successor->rank;
    if (world->rank != 0 || world_node_of(world, rank) != world->node || rank == 0) {
        return rl_fail(RL_UNSUPPORTED,
                       "rank %d is on another node (%s): a process for its seat can be started on "
                       "rank 0's only",
                       rank, world->cards[rank].host);
    }
    struct seat seat = {.rank = rank,
                        .size = world->size,
                        .incarnation = successor->incarnation,
                        .reader = successor->reader,
                        .learner_pid = world->cards[0].pid,
                        .learner_began = world->cards[0].began,
                        .launcher_pid = (int64_t)getppid()};
    return seat_start(&seat, arguments, &world->cards[rank].cores, pid, fd);
}

void world_note_torn(struct world *world)
{
    atomic_store(&world->whole, false);
}

bool world_is_whole(const struct world *world)
{
    return atomic_load(&world->whole);
}
