/* Every blocking wait goes through here, so that each has a name, a deadline and a counter, and the
 * program can say where its time goes. A name says who waits for what ("learner waits for samples")
 * and is the key of the counter. */
#ifndef FORESIGHT_CORE_WAIT_H
#define FORESIGHT_CORE_WAIT_H

#include "core/clock.h"
#include "core/status.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RL_WAIT_NAME_BYTES = 64, RL_WAIT_SITES_MAX = 64 };

/* The waits of one rank, counted by name. Thread-safe. */
struct rl_waits;

/* Counters of one name. */
struct rl_wait_stats {
    char name[RL_WAIT_NAME_BYTES];
    uint64_t count;    /* finished waits */
    uint64_t timeouts; /* of those, how many ended at their deadline */
    uint64_t active;   /* going on now */
    double total_s;    /* finished waits together */
    double max_s;      /* the longest finished one */
};

/* A wait that is going on. Plain data, held by the waiting thread. */
struct rl_wait {
    struct rl_waits *waits; /* NULL: not counted */
    size_t site;
    double started_s;
};

typedef bool (*rl_wait_fn)(void *arg); /* true: stop waiting */

/* Empty table. `clock` (borrowed; NULL: monotonic) measures and, in rl_wait_condition, sleeps.
 * Caller owns *out. Errors: RL_NO_MEMORY. */
rl_status rl_waits_create(const struct rl_clock *clock, struct rl_waits **out);

/* Free the table. No wait may be going on. Takes NULL. */
void rl_waits_destroy(struct rl_waits *waits);

/* Count a wait whose blocking is done by the caller itself (an MPI test loop, a join). `waits` may
 * be NULL; names beyond the table's room are counted together as "other". */
struct rl_wait rl_wait_begin(struct rl_waits *waits, const char *name);

/* End it; returns the seconds it took. */
double rl_wait_end(const struct rl_wait *wait);

/* Poll `done(arg)` with pauses that grow from 50 us to 2 ms until it is true. `timeout_s` < 0: no
 * deadline. Errors: RL_TIMEOUT, logged with the name and the time waited. */
rl_status rl_wait_condition(struct rl_waits *waits, const char *name, rl_wait_fn done, void *arg,
                            double timeout_s);

/* A wait on a condition variable. */
struct rl_wait_signal {
    pthread_cond_t *cond;   /* made by rl_wait_cond_init */
    pthread_mutex_t *mutex; /* held by the caller; guards what `done` reads */
    rl_wait_fn done;
    void *arg;
};

/* Condition variable on the monotonic clock. Errors: RL_INTERNAL. */
rl_status rl_wait_cond_init(pthread_cond_t *cond);

/* Sleep until `done` is true. Deadlines are real time, whatever the table's clock. `timeout_s` < 0:
 * none. Errors: RL_TIMEOUT, logged as above. */
rl_status rl_wait_signal(struct rl_waits *waits, const char *name,
                         const struct rl_wait_signal *signal, double timeout_s);

/* The same where not being served in time is no error: RL_AGAIN, not logged. */
rl_status rl_wait_signal_poll(struct rl_waits *waits, const char *name,
                              const struct rl_wait_signal *signal, double timeout_s);

/* Copy the counters of all names, in order of first use, into out [RL_WAIT_SITES_MAX]; returns how
 * many. */
size_t rl_waits_snapshot(struct rl_waits *waits, struct rl_wait_stats *out);

#endif
