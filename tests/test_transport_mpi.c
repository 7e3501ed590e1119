/* World, channel and collectives over real MPI. Each case runs this very program again under mpirun
 * (rank_launch.h). */
#include "transport/channel_mpi.h"
#include "transport/collective.h"
#include "transport/weight_arena.h"
#include "transport/wire.h"
#include "transport/world.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/rng.h"
#include "tests/rank_launch.h"

#include <check.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- the ranks' side ------------------------------------------------------------------------- */

/* What a rank's compute thread works on while the main thread pumps. */
struct rank {
    struct world *world;
    struct channel *channel;
    struct collective *collective; /* learners only */
    double leave_s;                /* how long it waits for the others at the end; 0: long */
    atomic_bool finished;
};

static void rank_start(struct rank *rank, int learners, double dead_after_s, int credits)
{
    RANK_CHECK(world_open(NULL, NULL, &rank->world) == RL_OK);
    RANK_CHECK(world_form(rank->world, learners) == RL_OK);
    rl_log_identify(world_role_name(world_role(rank->world, world_rank(rank->world))),
                    world_rank(rank->world));
    struct channel_mpi_options options = {.ring_messages = 32,
                                          .credits = credits,
                                          .heartbeat_s = 0.05,
                                          .dead_after_s = dead_after_s,
                                          .first_contact_s = 60.0};
    if (world_rank(rank->world) < learners) {
        RANK_CHECK(collective_mpi_create(rank->world, 90.0, &rank->collective) == RL_OK);
    }
    RANK_CHECK(channel_mpi_create(rank->world, &options, &rank->channel) == RL_OK);
    atomic_init(&rank->finished, false);
}

static bool rank_is_finished(void *arg)
{
    return atomic_load(&((struct rank *)arg)->finished);
}

/* Run `compute` in a thread and pump until it has set `finished`. */
static void rank_run(struct rank *rank, void *(*compute)(void *))
{
    pthread_t thread;
    RANK_CHECK(pthread_create(&thread, NULL, compute, rank) == 0);
    RANK_CHECK(channel_mpi_pump(rank->channel, rank->collective, rank_is_finished, rank, 150.0) ==
               RL_OK);
    pthread_join(thread, NULL);
}

static int rank_end(struct rank *rank, int code)
{
    if (code == 0 || world_rank(rank->world) == 0) { /* a failing rank 0 may end the others */
        puts("done");
        fflush(stdout);
    }
    channel_close(rank->channel);
    collective_destroy(rank->collective);
    world_close(rank->world, code, rank->leave_s > 0 ? rank->leave_s : 100.0);
    return code;
}

static void send_bytes(struct channel *channel, int peer, const void *data, size_t bytes)
{
    struct channel_message message = {.peer = peer};
    RANK_CHECK(wire_encode_bytes(data, bytes, &message) == RL_OK);
    RANK_CHECK(channel_send_wait(channel, &message, 60.0) == RL_OK);
}

/* Sizes of the storm's messages: mostly small, some far beyond MPI's eager limit. */
enum { STORM_MESSAGES = 600, STORM_LARGEST = 3 * 1024 * 1024 };

static size_t storm_bytes(int from, uint32_t index)
{
    struct rl_rng_key key = rl_rng_key_make(1, (uint64_t)from, 0);
    if (rl_rng_below(key, index, 100) == 0) {
        return STORM_LARGEST - rl_rng_below(key, index + 1000000, 1000);
    }
    return 8 + rl_rng_below(key, index, 5000);
}

static void storm_send(struct rank *rank)
{
    int me = world_rank(rank->world);
    unsigned char *data = malloc(STORM_LARGEST);
    RANK_CHECK(data != NULL);
    for (uint32_t index = 0; index < STORM_MESSAGES; index++) {
        size_t bytes = storm_bytes(me, index);
        memset(data, (int)((unsigned)me * 7 + index), bytes);
        memcpy(data, &index, sizeof index);
        send_bytes(rank->channel, 0, data, bytes);
    }
    free(data);
}

/* Everything from every worker, whole and in order. */
static void storm_receive(struct rank *rank)
{
    int size = world_size(rank->world);
    uint32_t next[16] = {0};
    for (int left = (size - 1) * STORM_MESSAGES; left > 0; left--) {
        struct channel_message message;
        const void *payload = NULL;
        size_t bytes = 0;
        uint32_t index = 0;
        RANK_CHECK(channel_receive(rank->channel, 60.0, &message) == RL_OK);
        RANK_CHECK(wire_decode_bytes(&message, &payload, &bytes) == RL_OK);
        memcpy(&index, payload, sizeof index);
        RANK_CHECK(index == next[message.peer]);
        RANK_CHECK(bytes == storm_bytes(message.peer, index));
        const unsigned char *data = payload;
        unsigned char fill = (unsigned char)((unsigned)message.peer * 7 + index);
        for (size_t i = sizeof index; i < bytes; i++) {
            RANK_CHECK(data[i] == fill);
        }
        next[message.peer]++;
        channel_message_fini(&message);
    }
    for (int peer = 1; peer < size; peer++) {
        struct wire_stop stop = {WIRE_STOP_DONE, 0};
        struct channel_message message = {.peer = peer};
        RANK_CHECK(wire_encode_stop(&stop, &message) == RL_OK);
        RANK_CHECK(channel_send_wait(rank->channel, &message, 60.0) == RL_OK);
    }
    double deadline_s = rl_clock_now_s(NULL) + 60.0;
    while (!channel_mpi_flushed(rank->channel) && rl_clock_now_s(NULL) < deadline_s) {
        rl_clock_sleep_s(NULL, 1e-3);
    }
}

static void *storm_compute(void *arg)
{
    struct rank *rank = arg;
    if (world_rank(rank->world) == 0) {
        storm_receive(rank);
    } else {
        storm_send(rank);
        struct channel_message message;
        RANK_CHECK(channel_receive(rank->channel, 90.0, &message) == RL_OK);
        RANK_CHECK(message.kind == WIRE_STOP && message.peer == 0);
        channel_message_fini(&message);
        struct channel_counters counters;
        channel_counters(rank->channel, &counters);
        RANK_CHECK(counters.sent_messages == STORM_MESSAGES);
        RANK_CHECK(counters.dropped_messages == 0 && counters.lost_peers == 0);
    }
    atomic_store(&rank->finished, true);
    return NULL;
}

static int case_storm(void)
{
    struct rank rank = {0};
    rank_start(&rank, 1, 40.0, 5);
    RANK_CHECK(world_has_mpi(rank.world) && world_node_count(rank.world) == 1);
    RANK_CHECK(world_local_rank(rank.world) == world_rank(rank.world));
    RANK_CHECK(world_local_size(rank.world) == world_size(rank.world));
    rank_run(&rank, storm_compute);
    return rank_end(&rank, 0);
}

/* Values that show any other order of addition. */
static float sum_value(int rank, int64_t i)
{
    struct rl_rng_key key = rl_rng_key_make(2, (uint64_t)rank, 9);
    double size = pow(10.0, 6.0 * rl_rng_uniform(key, (uint64_t)i) - 3.0);
    return (float)(size * (rl_rng_uniform(key, (uint64_t)i + 1000000000u) - 0.5));
}

static void sums_float(struct rank *rank, int64_t count)
{
    int learners = world_learners(rank->world);
    float *values = malloc((size_t)(count + 1) * sizeof *values);
    RANK_CHECK(values != NULL);
    for (int64_t i = 0; i < count; i++) {
        values[i] = sum_value(world_rank(rank->world), i);
    }
    RANK_CHECK(collective_sum_float(rank->collective, values, count) == RL_OK);
    for (int64_t i = 0; i<count; i += count> 5000 ? 97 : 1) {
        float expected = sum_value(0, i);
        for (int other = 1; other < learners; other++) {
            expected += sum_value(other, i);
        }
        RANK_CHECK(memcmp(&values[i], &expected, sizeof expected) == 0);
    }
    free(values);
}

static void sums_small(struct rank *rank)
{
    int me = world_rank(rank->world);
    int learners = world_learners(rank->world);
    double values[3] = {1.0 + me, me == 1 ? NAN : 2.0, -5.0 * me};
    double copy[3];
    memcpy(copy, values, sizeof copy);
    RANK_CHECK(collective_max_double(rank->collective, copy, 3) == RL_OK);
    RANK_CHECK(copy[0] == learners && isnan(copy[1]) && copy[2] == 0.0);
    memcpy(copy, values, sizeof copy);
    RANK_CHECK(collective_min_double(rank->collective, copy, 3) == RL_OK);
    RANK_CHECK(copy[0] == 1.0 && isnan(copy[1]) && copy[2] == -5.0 * (learners - 1));
    double sums[2] = {0.1 * (me + 1), 1e300};
    RANK_CHECK(collective_sum_double(rank->collective, sums, 2) == RL_OK);
    double expected = 0.1;
    for (int other = 1; other < learners; other++) {
        expected += 0.1 * (other + 1);
    }
    RANK_CHECK(sums[0] == expected);
    rl_status worst = RL_OK;
    RANK_CHECK(collective_agree(rank->collective, me == 1 ? RL_IO : RL_OK, &worst) == RL_OK);
    RANK_CHECK(worst == RL_IO);
    RANK_CHECK(collective_agree(rank->collective, RL_OK, &worst) == RL_OK && worst == RL_OK);
    RANK_CHECK(collective_barrier(rank->collective) == RL_OK);
}

static void sums_broadcast(struct rank *rank, size_t bytes, int root)
{
    unsigned char *data = calloc(bytes + 1, 1);
    RANK_CHECK(data != NULL);
    if (world_rank(rank->world) == root) {
        for (size_t i = 0; i < bytes; i++) {
            data[i] = (unsigned char)(i * 31 + 7);
        }
    }
    RANK_CHECK(collective_broadcast(rank->collective, data, bytes, root) == RL_OK);
    for (size_t i = 0; i < bytes; i++) {
        RANK_CHECK(data[i] == (unsigned char)(i * 31 + 7));
    }
    free(data);
}

/* Parts of very different sizes, one of them empty. */
static void part_bounds(int learners, int64_t unit, int64_t *bounds)
{
    bounds[0] = 0;
    for (int rank = 0; rank < learners; rank++) {
        bounds[rank + 1] = bounds[rank] + (rank == 1 ? 0 : unit * (1 + 2 * rank) + 3);
    }
}

/* The sums of the own part are those of the whole array; the other parts stay. */
static void sums_shared(struct rank *rank, int64_t unit)
{
    int me = world_rank(rank->world);
    int64_t bounds[9];
    part_bounds(world_learners(rank->world), unit, bounds);
    int64_t count = bounds[world_learners(rank->world)];
    float *values = malloc((size_t)count * sizeof *values);
    float *whole = malloc((size_t)count * sizeof *whole);
    RANK_CHECK(values != NULL && whole != NULL);
    for (int64_t i = 0; i < count; i++) {
        values[i] = whole[i] = sum_value(me, i);
    }
    RANK_CHECK(collective_sum_float(rank->collective, whole, count) == RL_OK);
    RANK_CHECK(collective_sum_share(rank->collective, values, bounds) == RL_OK);
    for (int64_t i = 0; i < count; i++) {
        bool own = i >= bounds[me] && i < bounds[me + 1];
        float expected = own ? whole[i] : sum_value(me, i);
        RANK_CHECK(memcmp(&values[i], &expected, sizeof expected) == 0);
    }
    free(whole);
    free(values);
}

static void sums_gather(struct rank *rank, int64_t unit, int root)
{
    int me = world_rank(rank->world);
    int64_t bounds[9];
    part_bounds(world_learners(rank->world), unit, bounds);
    int64_t count = bounds[world_learners(rank->world)];
    bool here = root == COLLECTIVE_ALL || root == me;
    unsigned char *part = malloc((size_t)(bounds[me + 1] - bounds[me]) + 1);
    unsigned char *whole = here ? calloc((size_t)count, 1) : NULL;
    RANK_CHECK(part != NULL && (whole != NULL || !here));
    for (int64_t i = bounds[me]; i < bounds[me + 1]; i++) {
        part[i - bounds[me]] = (unsigned char)(i * 29 + 11);
    }
    RANK_CHECK(collective_gather(rank->collective, part, bounds, whole, root) == RL_OK);
    for (int64_t i = 0; i < count && here; i++) {
        RANK_CHECK(whole[i] == (unsigned char)(i * 29 + 11));
    }
    free(whole);
    free(part);
}

static void *sums_compute(void *arg)
{
    struct rank *rank = arg;
    static const int64_t counts[] = {0, 1, 2, 3, 17, 1000, 1048577, 3000001};
    if (rank->collective != NULL) {
        for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
            sums_float(rank, counts[i]);
        }
        for (int round = 0; round < 50; round++) {
            sums_small(rank);
        }
        sums_broadcast(rank, 0, 0);
        sums_broadcast(rank, 1, 1);
        sums_broadcast(rank, 5 * 1024 * 1024 + 3, world_learners(rank->world) - 1);
        for (int root = COLLECTIVE_ALL; root < world_learners(rank->world); root++) {
            sums_gather(rank, 1, root);
            sums_gather(rank, 1100000, root);
        }
        sums_shared(rank, 1);
        sums_shared(rank, 300000);
        RANK_CHECK(collective_barrier(rank->collective) == RL_OK);
    }
    atomic_store(&rank->finished, true);
    return NULL;
}

static int case_sums(void)
{
    struct rank rank = {0};
    rank_start(&rank, 3, 40.0, 8);
    rank_run(&rank, sums_compute);
    return rank_end(&rank, 0);
}

/* Equal sizes, other parts. */
static void *parts_mismatch_compute(void *arg)
{
    struct rank *rank = arg;
    float values[8] = {0};
    if (rank->collective != NULL) {
        int64_t cut = world_rank(rank->world) == 0 ? 3 : 5;
        int64_t bounds[] = {0, cut, 8};
        RANK_CHECK(collective_sum_share(rank->collective, values, bounds) == RL_INTERNAL);
    }
    atomic_store(&rank->finished, true);
    return NULL;
}

static void *mismatch_compute(void *arg)
{
    struct rank *rank = arg;
    double values[4] = {0};
    if (rank->collective != NULL) {
        int64_t count = world_rank(rank->world) == 0 ? 3 : 4;
        RANK_CHECK(collective_sum_double(rank->collective, values, count) == RL_INTERNAL);
        RANK_CHECK(collective_barrier(rank->collective) == RL_INTERNAL); /* broken from now on */
    }
    atomic_store(&rank->finished, true);
    return NULL;
}

/* Learners whose calls differ find out at once instead of mixing up data. */
static int case_mismatch(void)
{
    struct rank rank = {0};
    rank_start(&rank, 2, 40.0, 8);
    rank_run(&rank, mismatch_compute);
    return rank_end(&rank, 0);
}

static int case_parts_mismatch(void)
{
    struct rank rank = {0};
    rank_start(&rank, 2, 40.0, 8);
    rank_run(&rank, parts_mismatch_compute);
    return rank_end(&rank, 0);
}

/* The last rank dies in the middle of a storm; the first must notice within the limit, once, get
 * everything of the others, and end with its own code. */
static void *death_compute(void *arg)
{
    struct rank *rank = arg;
    int size = world_size(rank->world);
    int me = world_rank(rank->world);
    if (me != 0) {
        for (uint32_t i = 0; i < 200; i++) {
            if (me == size - 1 && i == 100) {
                raise(SIGKILL);
            }
            send_bytes(rank->channel, 0, &i, sizeof i);
        }
        struct channel_message message;
        RANK_CHECK(channel_receive(rank->channel, 60.0, &message) == RL_OK);
        RANK_CHECK(message.kind == WIRE_STOP);
        channel_message_fini(&message);
        atomic_store(&rank->finished, true);
        return NULL;
    }
    int losses = 0;
    int others = 0;
    double died_s = 0.0;
    double lost_s = 0.0;
    unsigned char *large = calloc(1, 4 << 20);
    struct channel_message message;
    while (losses == 0 || others < (size - 2) * 200) {
        RANK_CHECK(channel_receive(rank->channel, 60.0, &message) == RL_OK);
        if (message.kind == CHANNEL_PEER_LOST) {
            RANK_CHECK(message.peer == size - 1);
            lost_s = rl_clock_now_s(NULL);
            losses++;
        } else if (message.peer == size - 1) {
            died_s = rl_clock_now_s(NULL);
        } else {
            others++;
        }
        channel_message_fini(&message);
    }
    RANK_CHECK(losses == 1 && lost_s - died_s < 30.0); /* seen to end, not merely silent */
    RANK_CHECK(!channel_peer_alive(rank->channel, size - 1));
    message = (struct channel_message){.peer = size - 1};
    RANK_CHECK(wire_encode_bytes(large, 4 << 20, &message) == RL_OK);
    RANK_CHECK(channel_send(rank->channel, &message) == RL_PEER_LOST);
    channel_message_fini(&message);
    free(large);
    for (int peer = 1; peer < size - 1; peer++) {
        struct wire_stop stop = {WIRE_STOP_DONE, 0};
        RANK_CHECK(wire_encode_stop(&stop, &message) == RL_OK);
        message.peer = peer;
        RANK_CHECK(channel_send_wait(rank->channel, &message, 60.0) == RL_OK);
    }
    double deadline_s = rl_clock_now_s(NULL) + 60.0;
    while (!channel_mpi_flushed(rank->channel) && rl_clock_now_s(NULL) < deadline_s) {
        rl_clock_sleep_s(NULL, 1e-3);
    }
    atomic_store(&rank->finished, true);
    return NULL;
}

static int case_death(void)
{
    struct rank rank = {0};
    rank_start(&rank, 1, 40.0, 16);
    rank_run(&rank, death_compute);
    RANK_CHECK(world_rank(rank.world) != 0 || !world_is_whole(rank.world));
    return rank_end(&rank, 0);
}

/* Learner 1 dies; learner 0's collective must fail with RL_PEER_LOST long before its deadline. */
static void *learner_death_compute(void *arg)
{
    struct rank *rank = arg;
    if (rank->collective != NULL) {
        RANK_CHECK(collective_barrier(rank->collective) == RL_OK);
        if (world_rank(rank->world) == 1) {
            raise(SIGKILL);
        }
        float *values = calloc(2000000, sizeof *values);
        double started_s = rl_clock_now_s(NULL);
        RANK_CHECK(collective_sum_float(rank->collective, values, 2000000) == RL_PEER_LOST);
        RANK_CHECK(rl_clock_now_s(NULL) - started_s < 30.0);
        RANK_CHECK(collective_barrier(rank->collective) == RL_PEER_LOST);
        free(values);
    } else {
        rl_clock_sleep_s(NULL, 2.0);
    }
    atomic_store(&rank->finished, true);
    return NULL;
}

static int case_learner_death(void)
{
    struct rank rank = {0};
    rank_start(&rank, 2, 40.0, 16);
    rank_run(&rank, learner_death_compute);
    return rank_end(&rank, 5);
}

/* The last rank sleeps (SIGSTOP) until it is taken for lost, wakes, and must learn that it is; what
 * it sends then must not be seen: its own pump throws it away if the news of the loss came first,
 * and the receiver's does if the message did. */
static void sleeper_sleep(struct rank *rank)
{
    struct channel_message message = {.peer = 0};
    int64_t pid = (int64_t)getpid();
    send_bytes(rank->channel, 0, &pid, sizeof pid);
    while (!channel_mpi_flushed(rank->channel)) {
        rl_clock_sleep_s(NULL, 1e-3);
    }
    pid_t waker = fork(); /* in case rank 0 does not wake it, so that nothing sleeps for ever */
    if (waker == 0) {
        rl_clock_sleep_s(NULL, 100.0);
        kill(getppid(), SIGCONT);
        _exit(0);
    }
    raise(SIGSTOP);
    kill(waker, SIGKILL);
    waitpid(waker, NULL, 0);
    RANK_CHECK(wire_encode_bytes(&pid, sizeof pid, &message) == RL_OK);
    if (channel_send(rank->channel, &message) != RL_OK) {
        channel_message_fini(&message);
    }
    RANK_CHECK(channel_receive(rank->channel, 60.0, &message) == RL_OK);
    RANK_CHECK(message.kind == CHANNEL_PEER_LOST && message.peer == 0);
}

/* Rank 0: see the loss, wake the lost, hear nothing from it, tell the others that it is over. */
static void sleeper_wake(struct rank *rank, int last)
{
    struct channel_message message;
    const void *payload = NULL;
    size_t bytes = 0;
    int64_t pid = 0;
    RANK_CHECK(channel_receive(rank->channel, 60.0, &message) == RL_OK);
    RANK_CHECK(message.peer == last && wire_decode_bytes(&message, &payload, &bytes) == RL_OK);
    memcpy(&pid, payload, sizeof pid);
    channel_message_fini(&message);
    RANK_CHECK(channel_receive(rank->channel, 60.0, &message) == RL_OK);
    RANK_CHECK(message.peer == last && message.kind == CHANNEL_PEER_LOST);
    RANK_CHECK(kill((pid_t)pid, SIGCONT) == 0);
    double until_s = rl_clock_now_s(NULL) + 2.0;
    while (rl_clock_now_s(NULL) < until_s) {
        rl_status status = channel_receive(rank->channel, 0.1, &message);
        RANK_CHECK(status != RL_OK || message.peer != last);
    }
    for (int peer = 1; peer < last; peer++) {
        struct wire_stop stop = {WIRE_STOP_DONE, 0};
        RANK_CHECK(wire_encode_stop(&stop, &message) == RL_OK);
        message.peer = peer;
        RANK_CHECK(channel_send_wait(rank->channel, &message, 60.0) == RL_OK);
    }
    while (!channel_mpi_flushed(rank->channel)) {
        rl_clock_sleep_s(NULL, 1e-3);
    }
}

static void *sleeper_compute(void *arg)
{
    struct rank *rank = arg;
    int last = world_size(rank->world) - 1;
    int me = world_rank(rank->world);
    struct channel_message message;
    if (me == last) {
        sleeper_sleep(rank);
    } else if (me == 0) {
        sleeper_wake(rank, last);
    } else {
        RANK_CHECK(channel_receive(rank->channel, 90.0, &message) == RL_OK);
        RANK_CHECK(message.kind == WIRE_STOP && message.peer == 0);
        channel_message_fini(&message);
    }
    atomic_store(&rank->finished, true);
    return NULL;
}

static int case_sleeper(void)
{
    struct rank rank = {0};
    rank_start(&rank, 1, 4.0, 16);
    rank_run(&rank, sleeper_compute);
    return rank_end(&rank, 0);
}

/* Weights published by rank 0 reach the others through the node's arena by its name. */
static void *weights_compute(void *arg)
{
    struct rank *rank = arg;
    struct channel_message message = {0};
    struct wire_hello hello = {.rank = (uint32_t)world_rank(rank->world),
                               .world_size = (uint32_t)world_size(rank->world),
                               .slot_bytes = 4096};
    struct weight_arena *arena = NULL;
    if (hello.rank == 0) {
        struct weight_arena_options options = {
            .shared = true, .slots = 3, .slot_bytes = 4096, .readers = world_size(rank->world)};
        RANK_CHECK(weight_arena_create(&options, &arena) == RL_OK);
        snprintf(hello.arena_name, sizeof hello.arena_name, "%s", weight_arena_name(arena));
        for (int peer = 1; peer < world_size(rank->world); peer++) {
            RANK_CHECK(wire_encode_hello(&hello, &message) == RL_OK);
            message.peer = peer;
            RANK_CHECK(channel_send_wait(rank->channel, &message, 60.0) == RL_OK);
        }
        for (uint32_t version = 1; version <= 200; version++) {
            int slot = -1;
            void *image = NULL;
            RANK_CHECK(weight_arena_begin_write(arena, 60.0, &slot, &image) == RL_OK);
            memset(image, (int)version, 4096);
            RANK_CHECK(weight_arena_publish(arena, slot, version, version) == RL_OK);
        }
        for (int left = world_size(rank->world) - 1; left > 0;) {
            RANK_CHECK(channel_receive(rank->channel, 60.0, &message) == RL_OK);
            left -= message.kind == WIRE_STATUS ? 1 : 0; /* a worker that is done may leave first */
            channel_message_fini(&message);
        }
    } else {
        struct weight_view view = {0};
        RANK_CHECK(channel_receive(rank->channel, 60.0, &message) == RL_OK);
        RANK_CHECK(wire_decode_hello(&message, &hello) == RL_OK);
        channel_message_fini(&message);
        RANK_CHECK(weight_arena_attach(hello.arena_name, 4096, &arena) == RL_OK);
        RANK_CHECK(weight_arena_wait(arena, 1, 60.0) == RL_OK);
        while (view.version < 200) {
            RANK_CHECK(weight_arena_acquire(arena, world_rank(rank->world), &view) == RL_OK);
            const unsigned char *bytes = view.image;
            RANK_CHECK(bytes[0] == (view.version & 0xff) && bytes[4095] == bytes[0]);
        }
        weight_arena_release(arena, world_rank(rank->world));
        struct wire_status status = {.rank = (uint32_t)world_rank(rank->world), .version = 200};
        RANK_CHECK(wire_encode_status(&status, &message) == RL_OK);
        message.peer = 0;
        RANK_CHECK(channel_send_wait(rank->channel, &message, 60.0) == RL_OK);
    }
    weight_arena_close(arena);
    atomic_store(&rank->finished, true);
    return NULL;
}

static int case_weights(void)
{
    struct rank rank = {0};
    rank_start(&rank, 1, 40.0, 16);
    rank_run(&rank, weights_compute);
    return rank_end(&rank, 0);
}

/* An hour's waiting must cost nearly nothing. */
static void *idle_compute(void *arg)
{
    rl_clock_sleep_s(NULL, 2.0);
    atomic_store(&((struct rank *)arg)->finished, true);
    return NULL;
}

static int case_idle(void)
{
    struct rank rank = {0};
    rank_start(&rank, 1, 40.0, 16);
    double before_s = rl_clock_process_cpu_s();
    rank_run(&rank, idle_compute);
    double used_s = rl_clock_process_cpu_s() - before_s;
    fprintf(stderr, "idle pump: %.3f s of CPU in 2 s\n", used_s);
    RANK_CHECK(used_s < 0.4);
    return rank_end(&rank, 0);
}

/* Rank 1 never comes to the end: the others must leave by their deadline, with their own code. */
static int case_absent(void)
{
    struct rank rank = {.leave_s = 5.0};
    rank_start(&rank, 1, 40.0, 16);
    if (world_rank(rank.world) == 1) {
        rl_clock_sleep_s(NULL, 12.0);
        _exit(0);
    }
    return rank_end(&rank, 7);
}

static const struct {
    const char *name;
    int (*run)(void);
} rank_cases[] = {
    {"storm", case_storm},       {"sums", case_sums},
    {"mismatch", case_mismatch}, {"parts_mismatch", case_parts_mismatch},
    {"death", case_death},       {"learner_death", case_learner_death},
    {"sleeper", case_sleeper},   {"weights", case_weights},
    {"idle", case_idle},         {"absent", case_absent},
};

static int rank_main(const char *name)
{
    for (size_t i = 0; i < sizeof rank_cases / sizeof rank_cases[0]; i++) {
        if (strcmp(rank_cases[i].name, name) == 0) {
            return rank_cases[i].run();
        }
    }
    return 99;
}

/* --- the tests' side ------------------------------------------------------------------------- */

START_TEST(cases)
{
    static const struct rank_launch launches[] = {
        {"storm", "4", {NULL}, false, 4, 0},    {"sums", "4", {NULL}, false, 4, 0},
        {"mismatch", "3", {NULL}, false, 3, 0}, {"weights", "3", {NULL}, false, 3, 0},
        {"idle", "2", {NULL}, false, 2, 0},     {"death", "3", {NULL}, true, 2, 0},
        {"sleeper", "3", {NULL}, true, 3, 0},   {"learner_death", "3", {NULL}, true, 1, 1},
        {"absent", "3", {NULL}, true, 1, 1},    {"parts_mismatch", "3", {NULL}, false, 3, 0},
    };
    rank_launch_check(&launches[_i]);
}
END_TEST

/* Without mpirun: a world of one, and no MPI in it. */
START_TEST(alone)
{
    struct world *world = NULL;
    ck_assert_int_eq(world_open(NULL, NULL, &world), RL_OK);
    ck_assert_int_eq(world_form(world, 2), RL_INVALID);
    ck_assert_int_eq(world_form(world, 1), RL_OK);
    ck_assert_int_eq(world_form(world, 1), RL_INVALID);
    ck_assert_int_eq(world_role(world, 0), WORLD_BOTH);
    ck_assert(!world_has_mpi(world));
    ck_assert_int_eq((int)world_node_leader_pid(world), (int)getpid());
    struct collective *collective = NULL;
    ck_assert_int_eq(collective_mpi_create(world, 1.0, &collective), RL_OK);
    float values[2] = {1.0f, 2.0f};
    ck_assert_int_eq(collective_sum_float(collective, values, 2), RL_OK);
    ck_assert(values[0] == 1.0f);
    ck_assert_int_eq(collective_sum_float(collective, NULL, 2), RL_INVALID);
    ck_assert_int_eq(collective_sum_share(collective, values, (int64_t[]){0, 2}), RL_OK);
    ck_assert(values[1] == 2.0f);
    ck_assert_int_eq(collective_sum_share(collective, values, (int64_t[]){1, 2}), RL_INVALID);
    float copy[2] = {0};
    ck_assert_int_eq(collective_gather(collective, values, (int64_t[]){0, -1}, copy, 0),
                     RL_INVALID);
    ck_assert_int_eq(collective_gather(collective, values, (int64_t[]){0, 8}, copy, 1), RL_INVALID);
    ck_assert_int_eq(collective_gather(collective, values, (int64_t[]){0, 8}, NULL, 0), RL_INVALID);
    ck_assert_int_eq(collective_gather(collective, values, (int64_t[]){0, 8}, copy, 0), RL_OK);
    ck_assert(copy[1] == 2.0f);
    collective_destroy(collective);
    struct channel *channel = NULL;
    struct channel_mpi_options options = {
        .ring_messages = 1, .credits = 1, .heartbeat_s = 1, .dead_after_s = 3};
    ck_assert_int_eq(channel_mpi_create(world, &options, &channel), RL_INVALID);
    world_close(world, 0, 1.0);
}
END_TEST

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--rank") == 0) {
        return rank_main(argv[2]);
    }
    Suite *suite = suite_create("mpi");
    TCase *tests = tcase_create("ranks");
    tcase_set_timeout(tests, 250);
    tcase_add_test(tests, alone);
    tcase_add_loop_test(tests, cases, 0, 10);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
