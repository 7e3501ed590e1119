/* A test program that is its own ranks: it starts itself again under mpirun, as "SELF --rank CASE".
 * A rank reports what went wrong and ends with a code that says so. Every mpirun has a deadline and
 * a process group of its own, which ends with it. */
#ifndef FORESIGHT_TESTS_RANK_LAUNCH_H
#define FORESIGHT_TESTS_RANK_LAUNCH_H

#include "core/clock.h"

#include <check.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define RANK_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition);               \
            _exit(3);                                                                              \
        }                                                                                          \
    } while (0)

static const double rank_launch_limit_s = 200;

struct rank_launch {
    const char *name;         /* of the case */
    const char *ranks;        /* how many, as text */
    const char *variables[2]; /* of the ranks' environment, "NAME=VALUE"; NULL: none */
    bool recovery;            /* let the others live on when one dies */
    int done;   /* ranks that must report a good end by a line "done"; mpirun's status does not tell
                   with recovery: it is 0 whatever they return, or 1 if rank 0 ended it */
    int status; /* mpirun's expected exit status */
};

/* In the child: become mpirun with its output in `out`. */
static inline void rank_launch_exec(const struct rank_launch *launch, int out)
{
    char self[4096];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length <= 0) {
        _exit(126);
    }
    self[length] = '\0';
    setpgid(0, 0);
    dup2(out, STDOUT_FILENO);
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    /* MPI itself leaks, and is not built for sanitizers. */
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
    setenv("TSAN_OPTIONS", "ignore_noninstrumented_modules=1:halt_on_error=1", 1);
    for (size_t i = 0; i < 2 && launch->variables[i] != NULL; i++) {
        putenv((char *)launch->variables[i]);
    }
    execlp("mpirun", "mpirun", "--oversubscribe", "-n", launch->ranks,
           launch->recovery ? "--enable-recovery" : "--oversubscribe", self, "--rank", launch->name,
           (char *)NULL);
    _exit(127);
}

/* Lines "done" in what the ranks wrote. */
static inline int rank_launch_count(FILE *out)
{
    char line[256];
    int done = 0;
    rewind(out);
    while (fgets(line, sizeof line, out) != NULL) {
        done += strcmp(line, "done\n") == 0;
    }
    return done;
}

/* Run the case and check how it ended; it is killed, with all its ranks, at its deadline. */
static inline void rank_launch_check(const struct rank_launch *launch)
{
    FILE *out = tmpfile();
    ck_assert_ptr_nonnull(out);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        rank_launch_exec(launch, fileno(out));
    }
    double deadline_s = rl_clock_now_s(NULL) + rank_launch_limit_s;
    int status = 0;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (rl_clock_now_s(NULL) > deadline_s) {
            kill(-pid, SIGKILL);
            waitpid(pid, &status, 0);
            ck_abort_msg("%s did not end", launch->name);
        }
        rl_clock_sleep_s(NULL, 0.02);
    }
    int done = rank_launch_count(out);
    fclose(out);
    ck_assert_msg(WIFEXITED(status), "%s: mpirun ended by signal %d", launch->name,
                  WTERMSIG(status));
    ck_assert_int_eq(done, launch->done);
    ck_assert_int_eq(WEXITSTATUS(status), launch->status);
}

#endif
