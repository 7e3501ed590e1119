/* The one place that asks the operating system for the time. */
#include "core/clock.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <time.h>

static double clock_read_s(clockid_t id)
{
    struct timespec now = {0, 0};
    clock_gettime(id, &now); /* cannot fail for the clocks used here */
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static double clock_monotonic_now_s(void *arg)
{
    (void)arg;
    return clock_read_s(CLOCK_MONOTONIC);
}

static void clock_monotonic_sleep_s(void *arg, double time_s)
{
    (void)arg;
    if (!(time_s > 0.0)) {
        return;
    }
    double whole = floor(fmin(time_s, 1e9));
    struct timespec left = {.tv_sec = (time_t)whole,
                            .tv_nsec = (long)((fmin(time_s, 1e9) - whole) * 999999999.0)};
    while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR) {
    }
}

static const struct rl_clock clock_of_machine = {clock_monotonic_now_s, clock_monotonic_sleep_s,
                                                 NULL};

const struct rl_clock *rl_clock_monotonic(void)
{
    return &clock_of_machine;
}

double rl_clock_now_s(const struct rl_clock *clock)
{
    const struct rl_clock *used = clock != NULL ? clock : &clock_of_machine;
    return used->now_s(used->arg);
}

void rl_clock_sleep_s(const struct rl_clock *clock, double time_s)
{
    const struct rl_clock *used = clock != NULL ? clock : &clock_of_machine;
    used->sleep_s(used->arg, time_s);
}

double rl_clock_process_cpu_s(void)
{
    return clock_read_s(CLOCK_PROCESS_CPUTIME_ID);
}

double rl_clock_thread_cpu_s(void)
{
    return clock_read_s(CLOCK_THREAD_CPUTIME_ID);
}

double rl_clock_wall_s(void)
{
    return clock_read_s(CLOCK_REALTIME);
}
