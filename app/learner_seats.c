/* See learner_rank.h: seats of rollout ranks and the processes that take them. A lost rank's seat
 * is given to a new process of this program, started with the run's resolved configuration.
 * Successors that are lost before their first group wait longer and longer, so that a machine that
 * kills them all is not kept busy with starting them. A process that ends by an error of its own is
 * replaced like one that was killed, but a seat whose processes do so again and again without
 * delivering anything is given up: the error would come for ever. */
#include "app/learner_rank.h"

#include "core/clock.h"
#include "core/log.h"
#include "transport/channel_mpi.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SEATS_HASTY_MAX = 6, SEATS_FAILURES_MAX = 3, SEATS_PATH_BYTES = 4096 };
static const double seats_first_delay_s = 0.5; /* doubled with each hasty loss */
static const double seats_leave_s = 10;        /* most that a process may take to leave */

int64_t learner_seats_most(const struct learner_rank *l)
{
    int first = world_is_hosted(l->world) ? world_size(l->world) - 1 : 0;
    return l->config->async.replace_workers + first;
}

rl_status learner_seats_open(struct learner_rank *l)
{
    l->seats = calloc((size_t)world_size(l->world), sizeof(*l->seats));
    l->children = calloc((size_t)learner_seats_most(l) + 1, sizeof(*l->children));
    if (l->seats == NULL || l->children == NULL) {
        return rl_fail(RL_NO_MEMORY, "learner: out of memory");
    }
    for (int rank = 0; rank < world_size(l->world); rank++) {
        l->seats[rank].alive =
            world_role(l->world, rank) == WORLD_WORKER && !world_is_hosted(l->world);
        l->seats[rank].reader = rank;
    }
    return RL_OK;
}

static bool is_given_up(const struct worker_seat *seat)
{
    return seat->failures >= SEATS_FAILURES_MAX;
}

/* Count, once a process, that it has failed. */
static void blame(struct learner_rank *l, int rank)
{
    struct worker_seat *seat = &l->seats[rank];
    if (seat->blamed) {
        return;
    }
    seat->blamed = true;
    seat->failures++;
    if (is_given_up(seat)) {
        rl_log(RL_LOG_ERROR,
               "rollout rank %d: %u processes in a row failed before they delivered a group; the "
               "seat is given up, their messages say why",
               rank, seat->failures);
    }
}

/* SIGKILL says nothing of the process: somebody else wanted the machine, or its memory. */
static bool has_failed(int status)
{
    return WIFEXITED(status) ? WEXITSTATUS(status) != 0 : WTERMSIG(status) != SIGKILL;
}

/* Forget children that have ended. */
static void reap(struct learner_rank *l)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < l->child_count; i++) {
        struct seat_child child = l->children[i];
        int status = 0;
        if (waitpid((pid_t)child.pid, &status, WNOHANG) == 0) {
            l->children[left++] = child;
        } else if (has_failed(status) && l->seats[child.rank].incarnation == child.incarnation) {
            blame(l, child.rank);
        }
    }
    l->child_count = left;
}

void learner_seats_close(struct learner_rank *l)
{
    double deadline_s = rl_clock_now_s(NULL) + seats_leave_s;
    reap(l);
    while (l->child_count > 0 && rl_clock_now_s(NULL) < deadline_s) {
        rl_clock_sleep_s(NULL, 5e-3);
        reap(l);
    }
    for (uint32_t i = 0; i < l->child_count; i++) {
        rl_log(RL_LOG_WARN, "process %lld, started for a lost rank's seat, does not leave: killed",
               (long long)l->children[i].pid);
        kill((pid_t)l->children[i].pid, SIGKILL);
        waitpid((pid_t)l->children[i].pid, NULL, 0);
    }
    free(l->children);
    free(l->seats);
}

void learner_seats_lose(struct learner_rank *l, int rank, bool failed)
{
    struct worker_seat *seat = &l->seats[rank];
    bool hasty = seat->incarnation > 0 && seat->groups == 0;
    seat->alive = false;
    seat->leaving = failed;
    seat->hasty = !hasty ? 0 : seat->hasty < SEATS_HASTY_MAX ? seat->hasty + 1 : seat->hasty;
    seat->wait_until_s =
        hasty ? rl_clock_now_s(NULL) + seats_first_delay_s * (1 << seat->hasty) : 0;
    l->gone_busy_s += seat->status.decode_busy_s;
    l->gone_cpu_s += seat->status.cpu_s;
    memset(&seat->status, 0, sizeof(seat->status));
    if (failed) {
        blame(l, rank);
    }
}

void learner_seats_left(struct learner_rank *l, int rank)
{
    l->seats[rank].leaving = false;
}

void learner_seats_delivered(struct learner_rank *l, int rank)
{
    l->seats[rank].groups++;
    l->seats[rank].failures = 0;
}

/* Whether the seat can still be given to a new process, if not at once. */
static bool is_replaceable(const struct learner_rank *l, int rank)
{
    const struct worker_seat *seat = &l->seats[rank];
    return world_role(l->world, rank) == WORLD_WORKER && !seat->alive && !is_given_up(seat) &&
           (int64_t)l->successors < learner_seats_most(l) &&
           world_node_of(l->world, rank) == world_node(l->world);
}

bool learner_seats_hopeful(const struct learner_rank *l)
{
    for (int rank = 0; rank < world_size(l->world); rank++) {
        if (l->seats[rank].alive || is_replaceable(l, rank)) {
            return true;
        }
    }
    return false;
}

static rl_status start_process(struct learner_rank *l, int rank, int64_t *pid)
{
    char program[SEATS_PATH_BYTES];
    char config[CHECKPOINT_PATH_MAX + 32];
    char *arguments[] = {program, (char[]){"train"}, config, NULL};
    struct world_successor successor = {.rank = rank,
                                        .incarnation = l->seats[rank].incarnation + 1,
                                        .reader = world_size(l->world) + (int)l->successors};
    int fd = -1;
    ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);
    if (length <= 0) {
        return rl_fail(RL_IO, "/proc/self/exe does not say which program this is");
    }
    program[length] = '\0';
    snprintf(config, sizeof(config), "%s/config.yaml", l->run.dir);
    RL_TRY(world_start_successor(l->world, &successor, arguments, pid, &fd));
    l->children[l->child_count++] =
        (struct seat_child){.pid = *pid, .rank = rank, .incarnation = successor.incarnation};
    l->successors++;
    l->seats[rank].blamed = false;
    l->seats[rank].incarnation = successor.incarnation;
    l->seats[rank].reader = successor.reader;
    l->seats[rank].groups = 0;
    RL_TRY(channel_mpi_join(l->channel, rank, successor.incarnation, fd));
    l->seats[rank].alive = true;
    return learner_service_greet(l, rank);
}

static bool is_due(const struct learner_rank *l, int rank)
{
    const struct worker_seat *seat = &l->seats[rank];
    return is_replaceable(l, rank) && !seat->leaving && rl_clock_now_s(NULL) >= seat->wait_until_s;
}

static void refill(struct learner_rank *l, int rank)
{
    int64_t pid = 0;
    if (start_process(l, rank, &pid) == RL_OK) {
        rl_log(RL_LOG_INFO, "rollout rank %d: process %lld takes the seat (incarnation %u)", rank,
               (long long)pid, l->seats[rank].incarnation);
        return;
    }
    learner_seats_lose(l, rank, false); /* logged; tried again later */
    l->seats[rank].wait_until_s = rl_clock_now_s(NULL) + seats_leave_s;
}

bool learner_seats_refill(struct learner_rank *l)
{
    bool worked = false;
    for (int rank = 0; rank < world_size(l->world); rank++) {
        if (!is_due(l, rank)) {
            continue;
        }
        reap(l); /* how its last process ended may have given the seat up */
        worked = true;
        if (is_due(l, rank)) {
            refill(l, rank);
        } else if (!learner_seats_hopeful(l)) {
            learner_service_fail(l, rl_fail(RL_PEER_LOST, "no rollout rank is left"));
        }
    }
    return worked;
}

/* "3 tickets (40-47)": how many tickets a rank has, the lowest and the highest. */
static void describe_tickets(const struct learner_rank *l, int rank, char *text, size_t bytes)
{
    uint64_t live = 0;
    uint64_t count = 0;
    uint64_t low = 0;
    uint64_t high = 0;
    const struct dispatcher_ticket *tickets = dispatcher_tickets(l->run.dispatcher, &live);
    for (uint64_t i = 0; i < live; i++) {
        if (tickets[i].worker == rank && tickets[i].state <= DISPATCHER_GENERATED) {
            low = count == 0 || tickets[i].number < low ? tickets[i].number : low;
            high = tickets[i].number > high ? tickets[i].number : high;
            count++;
        }
    }
    if (count == 0) {
        snprintf(text, bytes, "no tickets");
    } else {
        snprintf(text, bytes, "%" PRIu64 " tickets (%" PRIu64 "-%" PRIu64 ")", count, low, high);
    }
}

void learner_seats_describe(const struct learner_rank *l, char *text, size_t bytes)
{
    size_t used = 0;
    text[0] = '\0';
    for (int rank = 0; rank < world_size(l->world) && used + 1 < bytes; rank++) {
        char tickets[96];
        const char *separator = used > 0 ? "; " : "";
        int length = 0;
        if (world_role(l->world, rank) != WORLD_WORKER) {
            continue;
        }
        if (l->seats[rank].alive) {
            describe_tickets(l, rank, tickets, sizeof(tickets));
            length = snprintf(text + used, bytes - used,
                              "%srank %d has %s and was last heard %.1f s ago", separator, rank,
                              tickets, channel_mpi_silence_s(l->channel, rank));
        } else {
            length = snprintf(text + used, bytes - used, "%srank %d is lost", separator, rank);
        }
        used += length > 0 ? (size_t)length : 0;
    }
}

double learner_seats_busy_s(const struct learner_rank *l)
{
    double busy_s = l->gone_busy_s;
    for (int rank = 0; rank < world_size(l->world); rank++) {
        busy_s += l->seats[rank].status.decode_busy_s;
    }
    return busy_s;
}

double learner_seats_cpu_s(const struct learner_rank *l)
{
    double cpu_s = l->gone_cpu_s;
    for (int rank = 0; rank < world_size(l->world); rank++) {
        cpu_s += l->seats[rank].status.cpu_s;
    }
    return cpu_s;
}
