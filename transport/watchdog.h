/* A deadline for calls that have none: ends the process if it is not called off in time. */
#ifndef FORESIGHT_TRANSPORT_WATCHDOG_H
#define FORESIGHT_TRANSPORT_WATCHDOG_H

#include "core/status.h"

#include <pthread.h>
#include <stdbool.h>

struct watchdog_options {
    const char *what; /* borrowed; named in the log */
    double timeout_s; /* the process ends after so long */
    int exit_code;    /* with this code */
    /* Looked twice a second, NULL: not at all: a reason (static) to end at once, or NULL. */
    const char *(*look)(void *arg);
    void *arg;
};

/* Caller's storage, not to be moved between start and stop. */
struct watchdog {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    bool off; /* guarded by mutex */
    struct watchdog_options options;
};

/* From now on the process ends as `options` (copied) say. Errors: RL_INTERNAL. */
rl_status watchdog_start(struct watchdog *dog, const struct watchdog_options *options);

/* It came back in time. */
void watchdog_stop(struct watchdog *dog);

#endif
