/* See seat.h. */
#include "transport/seat.h"

#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEAT_VARIABLE "FORESIGHT_SEAT"

enum { SEAT_FD = 3, SEAT_TEXT_BYTES = 256 };

extern char **environ;

/* Our environment with one variable more; the strings stay borrowed, the table is the caller's. */
static char **seat_environment(char *variable)
{
    size_t count = 0;
    while (environ[count] != NULL) {
        count++;
    }
    char **table = calloc(count + 2, sizeof *table);
    if (table != NULL) {
        table[0] = variable;
        memcpy(table + 1, environ, count * sizeof *table);
    }
    return table;
}

/* The child gets standard streams and its socket, nothing else: MPI's own descriptors must not stay
 * open in a process that MPI does not know. */
static int seat_spawn(char *const *arguments, char **environment, int fd, pid_t *pid)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigemptyset(&none);
    int error = posix_spawn_file_actions_init(&files);
    if (error != 0) {
        return error;
    }
    error = posix_spawnattr_init(&attributes);
    if (error == 0) {
        error = posix_spawn_file_actions_adddup2(&files, fd, SEAT_FD);
        error = error != 0 ? error : posix_spawn_file_actions_addclosefrom_np(&files, SEAT_FD + 1);
        error = error != 0 ? error : posix_spawnattr_setsigmask(&attributes, &none);
        error = error != 0 ? error : posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
        error = error != 0
                    ? error
                    : posix_spawn(pid, arguments[0], &files, &attributes, arguments, environment);
        posix_spawnattr_destroy(&attributes);
    }
    posix_spawn_file_actions_destroy(&files);
    return error;
}

/* A child inherits the cores of the thread that starts it: borrow the lost rank's for a moment. */
static int seat_spawn_on(const void *cores, char *const *arguments, char **environment, int fd,
                         pid_t *pid)
{
    cpu_set_t mine;
    bool moved = cores != NULL && sched_getaffinity(0, sizeof mine, &mine) == 0 &&
                 sched_setaffinity(0, sizeof mine, cores) == 0;
    int error = seat_spawn(arguments, environment, fd, pid);
    if (moved) {
        (void)sched_setaffinity(0, sizeof mine, &mine);
    }
    return error;
}

rl_status seat_start(const struct seat *seat, char *const *arguments, const void *cores,
                     int64_t *pid, int *fd)
{
    int ends[2] = {-1, -1};
    pid_t child = 0;
    char variable[SEAT_TEXT_BYTES];
    snprintf(variable, sizeof variable,
             SEAT_VARIABLE "=%d %d %" PRIu32 " %d %" PRId64 " %" PRIu64 " %" PRId64, seat->rank,
             seat->size, seat->incarnation, seat->reader, seat->learner_pid, seat->learner_began,
             seat->launcher_pid);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
        return rl_fail(RL_IO, "a new process for rank %d: no socket: %s", seat->rank,
                       strerror(errno));
    }
    char **environment = seat_environment(variable);
    int error = environment == NULL ? ENOMEM
                                    : seat_spawn_on(cores, arguments, environment, ends[1], &child);
    free(environment);
    close(ends[1]);
    if (error != 0) {
        close(ends[0]);
        return rl_fail(RL_IO, "a new process for rank %d: cannot start %s: %s", seat->rank,
                       arguments[0], strerror(error));
    }
    *pid = child;
    *fd = ends[0];
    return RL_OK;
}

bool seat_from_environment(struct seat *out)
{
    const char *text = getenv(SEAT_VARIABLE);
    struct seat seat = {.fd = SEAT_FD};
    struct stat info;
    if (text == NULL ||
        sscanf(text, "%d %d %" SCNu32 " %d %" SCNd64 " %" SCNu64 " %" SCNd64, &seat.rank,
               &seat.size, &seat.incarnation, &seat.reader, &seat.learner_pid, &seat.learner_began,
               &seat.launcher_pid) != 7 ||
        seat.rank < 1 || seat.rank >= seat.size || seat.incarnation < 1 || seat.reader < 0 ||
        fstat(SEAT_FD, &info) != 0 || !S_ISSOCK(info.st_mode)) {
        return false;
    }
    unsetenv(SEAT_VARIABLE);
    (void)fcntl(SEAT_FD, F_SETFD, FD_CLOEXEC);
    /* Should rank 0 die while we are stopped, we must wake to notice and leave. */
    (void)prctl(PR_SET_PDEATHSIG, SIGCONT);
    *out = seat;
    return true;
}
