/* See subprocess.h. */
#include "app/subprocess.h"

#include "core/clock.h"
#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CANNOT_START = 127, READ_BYTES = 4096 };

#define GRACE_S 3.0 /* between asking a program to end and killing it */

/* In the child: only async-signal-safe calls. */
static void become(char *const argv[], int out)
{
    setpgid(0, 0);
    int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (in < 0 || dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 ||
        dup2(out, STDERR_FILENO) < 0) {
        _exit(CANNOT_START);
    }
    signal(SIGPIPE, SIG_DFL);
    execvp(argv[0], argv);
    _exit(CANNOT_START);
}

/* Read until the end of the stream. Errors: RL_TIMEOUT. */
static rl_status drain(int fd, double deadline_s, struct rl_text *output)
{
    char part[READ_BYTES];
    for (;;) {
        double left_s = deadline_s - rl_clock_now_s(NULL);
        if (left_s <= 0) {
            return RL_TIMEOUT;
        }
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        if (poll(&ready, 1, (int)ceil(left_s * 1000)) <= 0) {
            continue; /* a signal, or the deadline: seen above */
        }
        ssize_t bytes = read(fd, part, sizeof part);
        if (bytes == 0) {
            return RL_OK;
        }
        if (bytes < 0) {
            if (errno != EINTR) {
                return RL_OK;
            }
            continue;
        }
        size_t room = output->limit - output->bytes;
        if (rl_text_append(output, part, (size_t)bytes < room ? (size_t)bytes : room) != RL_OK) {
            continue; /* what does not fit is thrown away */
        }
    }
}

/* Wait for the end of the child. Errors: RL_TIMEOUT. */
static rl_status reap(pid_t child, double deadline_s, int *exit_code)
{
    int state = 0;
    pid_t ended = 0;
    while ((ended = waitpid(child, &state, WNOHANG)) == 0 || (ended < 0 && errno == EINTR)) {
        if (rl_clock_now_s(NULL) >= deadline_s) {
            return RL_TIMEOUT;
        }
        rl_clock_sleep_s(NULL, 0.005);
    }
    *exit_code = WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
    return RL_OK;
}

/* Ask first: mpirun takes its ranks along only if it may end by itself. */
static void end_child(pid_t child)
{
    int ignored = 0;
    kill(-child, SIGTERM);
    if (reap(child, rl_clock_now_s(NULL) + GRACE_S, &ignored) != RL_OK) {
        kill(-child, SIGKILL);
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {
        }
    }
}

rl_status subprocess_run(char *const argv[], double timeout_s, struct rl_text *output,
                         int *exit_code)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
        return rl_fail(RL_IO, "cannot make a pipe for %s: %s", argv[0], strerror(errno));
    }
    pid_t child = fork();
    if (child < 0) {
        int code = errno;
        close(ends[0]);
        close(ends[1]);
        return rl_fail(RL_IO, "cannot start %s: %s", argv[0], strerror(code));
    }
    if (child == 0) {
        become(argv, ends[1]);
    }
    close(ends[1]);
    setpgid(child, child); /* both sides do it: whoever comes first */
    double deadline_s = rl_clock_now_s(NULL) + timeout_s;
    rl_status status = drain(ends[0], deadline_s, output);
    if (status == RL_OK) {
        status = reap(child, deadline_s, exit_code);
    }
    if (status != RL_OK) {
        end_child(child);
    }
    close(ends[0]);
    return status;
}
