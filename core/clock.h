/* Time, replaceable: production uses the monotonic clock, simulations a virtual one. Pure logic
 * takes a time as an argument instead. */
#ifndef FORESIGHT_CORE_CLOCK_H
#define FORESIGHT_CORE_CLOCK_H

/* Both functions are called from several threads at once unless the owner says otherwise. */
struct rl_clock {
    double (*now_s)(void *arg);                /* seconds from a fixed, arbitrary start */
    void (*sleep_s)(void *arg, double time_s); /* at least about so long; nothing if <= 0 */
    void *arg;                                 /* handed to both */
};

/* The machine's monotonic clock; borrowed, static, any thread. */
const struct rl_clock *rl_clock_monotonic(void);

/* Now, and sleep, by `clock`; NULL: the monotonic one. */
double rl_clock_now_s(const struct rl_clock *clock);
void rl_clock_sleep_s(const struct rl_clock *clock, double time_s);

/* CPU seconds that this process (all its threads) has used. */
double rl_clock_process_cpu_s(void);

/* CPU seconds that the calling thread has used. */
double rl_clock_thread_cpu_s(void);

/* Seconds since 1970, for file names and logs only. */
double rl_clock_wall_s(void);

#endif
