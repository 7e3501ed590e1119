/* Owns the table of named waits and the three ways to wait. Not the reasons. Invariant: begin and
 * end come in pairs, so `active` returns to 0. */
#include "core/wait.h"

#include "core/log.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WAIT_PAUSE_FIRST_S 50e-6
#define WAIT_PAUSE_LAST_S 2e-3

struct rl_waits {
    pthread_mutex_t lock;
    const struct rl_clock *clock;
    size_t count;
    struct rl_wait_stats sites[RL_WAIT_SITES_MAX];
};

rl_status rl_waits_create(const struct rl_clock *clock, struct rl_waits **out)
{
    struct rl_waits *waits = calloc(1, sizeof *waits);
    if (waits == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for the table of waits");
    }
    pthread_mutex_init(&waits->lock, NULL);
    waits->clock = clock != NULL ? clock : rl_clock_monotonic();
    *out = waits;
    return RL_OK;
}

void rl_waits_destroy(struct rl_waits *waits)
{
    if (waits == NULL) {
        return;
    }
    pthread_mutex_destroy(&waits->lock);
    free(waits);
}

static const struct rl_clock *wait_clock(const struct rl_waits *waits)
{
    return waits != NULL ? waits->clock : rl_clock_monotonic();
}

/* Find or add; the last row collects what no longer fits. Called with the lock held. */
static size_t wait_site(struct rl_waits *waits, const char *name)
{
    for (size_t i = 0; i < waits->count; i++) {
        if (strncmp(waits->sites[i].name, name, RL_WAIT_NAME_BYTES - 1) == 0) {
            return i;
        }
    }
    if (waits->count == RL_WAIT_SITES_MAX) {
        return RL_WAIT_SITES_MAX - 1;
    }
    bool last = waits->count == RL_WAIT_SITES_MAX - 1;
    size_t site = waits->count++;
    snprintf(waits->sites[site].name, RL_WAIT_NAME_BYTES, "%s", last ? "other" : name);
    return site;
}

struct rl_wait rl_wait_begin(struct rl_waits *waits, const char *name)
{
    struct rl_wait wait = {.waits = waits};
    if (waits != NULL) {
        pthread_mutex_lock(&waits->lock);
        wait.site = wait_site(waits, name);
        waits->sites[wait.site].active++;
        pthread_mutex_unlock(&waits->lock);
    }
    wait.started_s = rl_clock_now_s(wait_clock(waits));
    return wait;
}

static double wait_end_as(const struct rl_wait *wait, bool timed_out)
{
    double time_s = rl_clock_now_s(wait_clock(wait->waits)) - wait->started_s;
    if (wait->waits != NULL) {
        pthread_mutex_lock(&wait->waits->lock);
        struct rl_wait_stats *stats = &wait->waits->sites[wait->site];
        stats->active--;
        stats->count++;
        stats->timeouts += timed_out;
        stats->total_s += time_s;
        stats->max_s = fmax(stats->max_s, time_s);
        pthread_mutex_unlock(&wait->waits->lock);
    }
    return time_s;
}

double rl_wait_end(const struct rl_wait *wait)
{
    return wait_end_as(wait, false);
}

static rl_status wait_expired(const char *name, double waited_s, double timeout_s)
{
    return rl_fail(RL_TIMEOUT, "%s: nothing after %.3f s (deadline %.3f s)", name, waited_s,
                   timeout_s);
}

rl_status rl_wait_condition(struct rl_waits *waits, const char *name, rl_wait_fn done, void *arg,
                            double timeout_s)
{
    if (done(arg)) {
        return RL_OK;
    }
    const struct rl_clock *clock = wait_clock(waits);
    struct rl_wait wait = rl_wait_begin(waits, name);
    double pause_s = WAIT_PAUSE_FIRST_S;
    bool ready = false;
    bool expired = false;
    while (!ready && !expired) {
        double left_s = timeout_s - (rl_clock_now_s(clock) - wait.started_s);
        expired = timeout_s >= 0.0 && left_s <= 0.0;
        if (!expired) {
            rl_clock_sleep_s(clock, timeout_s >= 0.0 ? fmin(pause_s, left_s) : pause_s);
            pause_s = fmin(pause_s * 1.5, WAIT_PAUSE_LAST_S);
        }
        ready = done(arg); /* once more after the deadline: it may have come during the pause */
    }
    double waited_s = wait_end_as(&wait, !ready);
    return ready ? RL_OK : wait_expired(name, waited_s, timeout_s);
}

rl_status rl_wait_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attributes;
    int error = pthread_condattr_init(&attributes);
    if (error == 0) {
        error = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
        error = error == 0 ? pthread_cond_init(cond, &attributes) : error;
        pthread_condattr_destroy(&attributes);
    }
    if (error != 0) {
        return rl_fail(RL_INTERNAL, "cannot make a condition variable: %s", strerror(error));
    }
    return RL_OK;
}

/* Absolute monotonic time `timeout_s` from now; more than 30 years counts as 30 years. */
static struct timespec wait_deadline(double timeout_s)
{
    struct timespec time = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &time);
    double bounded_s = fmin(fmax(timeout_s, 0.0), 1e9);
    double whole = floor(bounded_s);
    long nanoseconds = time.tv_nsec + (long)((bounded_s - whole) * 1e9);
    time.tv_sec += (time_t)whole + nanoseconds / 1000000000L;
    time.tv_nsec = nanoseconds % 1000000000L;
    return time;
}

/* True if `done` became true before the deadline. */
static bool wait_on_cond(const struct rl_wait_signal *signal, double timeout_s)
{
    struct timespec deadline = wait_deadline(timeout_s);
    int error = 0;
    while (!signal->done(signal->arg)) {
        if (error == ETIMEDOUT) {
            return false;
        }
        if (timeout_s < 0.0) {
            pthread_cond_wait(signal->cond, signal->mutex);
        } else {
            error = pthread_cond_timedwait(signal->cond, signal->mutex, &deadline);
        }
    }
    return true;
}

static rl_status wait_signal_as(struct rl_waits *waits, const char *name,
                                const struct rl_wait_signal *signal, double timeout_s,
                                bool timeout_is_error)
{
    if (signal->done(signal->arg)) {
        return RL_OK;
    }
    if (timeout_s == 0.0 && !timeout_is_error) {
        return RL_AGAIN;
    }
    struct rl_wait wait = rl_wait_begin(waits, name);
    bool ready = wait_on_cond(signal, timeout_s);
    double waited_s = wait_end_as(&wait, !ready);
    if (ready) {
        return RL_OK;
    }
    return timeout_is_error ? wait_expired(name, waited_s, timeout_s) : RL_AGAIN;
}

rl_status rl_wait_signal(struct rl_waits *waits, const char *name,
                         const struct rl_wait_signal *signal, double timeout_s)
{
    return wait_signal_as(waits, name, signal, timeout_s, true);
}

rl_status rl_wait_signal_poll(struct rl_waits *waits, const char *name,
                              const struct rl_wait_signal *signal, double timeout_s)
{
    return wait_signal_as(waits, name, signal, timeout_s, false);
}

size_t rl_waits_snapshot(struct rl_waits *waits, struct rl_wait_stats *out)
{
    pthread_mutex_lock(&waits->lock);
    size_t count = waits->count;
    memcpy(out, waits->sites, count * sizeof *out);
    pthread_mutex_unlock(&waits->lock);
    return count;
}
