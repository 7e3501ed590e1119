/* See child.h. Between fork and exec only async-signal-safe calls: MPI may have threads. */
#include "app/child.h"

#include "core/log.h"
#include "transport/world.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHILD_CANNOT_START = 127, CHILD_LOCK_FD = 3 };

extern char **environ;

/* A child that believes to be a rank of our mpirun would wait for the others for ever. */
static bool is_of_launcher(const char *variable)
{
    static const char *const prefixes[] = {"OMPI_", "PMIX_", "PMI_",      "PMI2_",
                                           "ORTE_", "PRTE_", "FORESIGHT_"};
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
        if (strncmp(variable, prefixes[i], strlen(prefixes[i])) == 0) {
            return true;
        }
    }
    return false;
}

/* Our variables but those, and `hosted` if it is not NULL. The strings stay borrowed, the table is
 * the caller's; NULL without memory. */
static char **child_environment(char *hosted)
{
    size_t count = 0;
    size_t kept = 0;
    while (environ[count] != NULL) {
        count++;
    }
    char **table = calloc(count + 2, sizeof *table);
    if (table != NULL && hosted != NULL) {
        table[kept++] = hosted;
    }
    for (size_t i = 0; table != NULL && i < count; i++) {
        if (!is_of_launcher(environ[i])) {
            table[kept++] = environ[i];
        }
    }
    return table;
}

/* In the child. */
static void become(const struct child_options *options, char **environment, int log, pid_t parent)
{
    struct rlimit limit = {.rlim_cur = options->memory_bytes, .rlim_max = options->memory_bytes};
    sigset_t none;
    sigemptyset(&none);
    int in = open("/dev/null", O_RDONLY);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent || in < 0 ||
        dup2(log, STDOUT_FILENO) < 0 || dup2(log, STDERR_FILENO) < 0 ||
        dup2(in, STDIN_FILENO) < 0) {
        _exit(CHILD_CANNOT_START);
    }
    if (options->lock_fd >= 0 && options->lock_fd != CHILD_LOCK_FD &&
        dup2(options->lock_fd, CHILD_LOCK_FD) < 0) {
        _exit(CHILD_CANNOT_START);
    }
    if (options->lock_fd == CHILD_LOCK_FD) {
        (void)fcntl(CHILD_LOCK_FD, F_SETFD, 0);
    }
    closefrom(options->lock_fd >= 0 ? CHILD_LOCK_FD + 1 : CHILD_LOCK_FD);
    if (options->memory_bytes > 0 && setrlimit(RLIMIT_AS, &limit) != 0) {
        _exit(CHILD_CANNOT_START);
    }
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    (void)setpgid(0, 0); /* the terminal's Ctrl-C is ours to pass on */
    execve(options->arguments[0], options->arguments, environment);
    _exit(CHILD_CANNOT_START);
}

rl_status child_start(const struct child_options *options, pid_t *pid)
{
    pid_t parent = getpid();
    char hosted[64];
    snprintf(hosted, sizeof hosted, WORLD_HOSTED_VARIABLE "=%d", options->ranks);
    char **environment = child_environment(options->ranks > 1 ? hosted : NULL);
    if (environment == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: out of memory", options->arguments[0]);
    }
    int log = open(options->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    pid_t child = log >= 0 ? fork() : -1;
    if (child == 0) {
        become(options, environment, log, parent);
    }
    int error = errno;
    free(environment);
    if (log < 0) {
        return rl_fail(RL_IO, "%s: cannot be written: %s", options->log_path, strerror(error));
    }
    close(log);
    if (child < 0) {
        return rl_fail(RL_IO, "cannot start %s: %s", options->arguments[0], strerror(error));
    }
    *pid = child;
    return RL_OK;
}

bool child_poll(pid_t pid, int *wait_status)
{
    pid_t ended = waitpid(pid, wait_status, WNOHANG);
    if (ended < 0 && errno == ECHILD) { /* SIGCHLD is ignored: nobody is told how it ended */
        *wait_status = 0;
        return true;
    }
    return ended == pid;
}

void child_describe(int wait_status, char *out, size_t bytes)
{
    if (WIFSIGNALED(wait_status)) {
        snprintf(out, bytes, "killed by signal %d (%s)", WTERMSIG(wait_status),
                 strsignal(WTERMSIG(wait_status)));
    } else if (WEXITSTATUS(wait_status) == CHILD_CANNOT_START) {
        snprintf(out, bytes, "cannot be started");
    } else {
        snprintf(out, bytes, "exit status %d", WEXITSTATUS(wait_status));
    }
}

rl_status child_program(char *path, size_t bytes)
{
    ssize_t length = readlink("/proc/self/exe", path, bytes - 1);
    if (length <= 0) {
        return rl_fail(RL_IO, "/proc/self/exe does not say which program this is");
    }
    path[length] = '\0';
    return RL_OK;
}
