/* A process of this program as a child that cannot outlive us: its own environment (nothing of
 * mpirun's), limits and log, and it is killed when we die, however we die. Never blocks. */
#ifndef FORESIGHT_APP_CHILD_H
#define FORESIGHT_APP_CHILD_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct child_options {
    char *const *arguments; /* NULL-terminated, [0] a path; borrowed for the call */
    const char *log_path;   /* both streams are appended to it */
    uint64_t memory_bytes;  /* address space; 0: no limit */
    int ranks;              /* > 1: it is rank 0 of so many, and starts the others (world.h) */
    int lock_fd;            /* kept open in the child and its children, or -1 */
};

/* Start it. Main thread only: the child is killed when the thread that started it ends. The caller
 * owns *pid and calls child_poll until it has ended. Errors: RL_IO, RL_NO_MEMORY. */
rl_status child_start(const struct child_options *options, pid_t *pid);

/* True once it has ended and was waited for; *wait_status as waitpid gives it. */
bool child_poll(pid_t pid, int *wait_status);

/* How it ended, in words: "exit status 1", "killed by signal 9 (Killed)". out [bytes]. */
void child_describe(int wait_status, char *out, size_t bytes);

/* Path of this program. path [bytes]. Errors: RL_IO. */
rl_status child_program(char *path, size_t bytes);

#endif
