/* A deadline for calls that have none: ends the process if it is not called off in time. */
#ifndef FORESIGHT_TRANSPORT_WATCHDOG_H
#define FORESIGHT_TRANSPORT_WATCHDOG_H

#include "core/status.h"

#include <pthread.h>
#include <stdbool.h>

/* Caller's storage, not to be moved between start and stop. */
struct watchdog {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool off; /* guarded by mutex */
    const char *what;
    double timeout_s;
    int exit_code;
};

/* From now on the process ends with `exit_code` after timeout_s, with a line in the log that names
 * `what` (borrowed) hung. Errors: RL_INTERNAL. */
rl_status watchdog_start(struct watchdog *dog, const char *what, double timeout_s, int exit_code);

/* It came back in time. */
void watchdog_stop(struct watchdog *dog);

#endif
