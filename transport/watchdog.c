/* See watchdog.h: a thread that sleeps until the deadline. */
#include "transport/watchdog.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/wait.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

static const double watchdog_look_s = 0.5;

static bool watchdog_is_off(void *arg)
{
    return ((const struct watchdog *)arg)->off;
}

static void *watchdog_main(void *arg)
{
    struct watchdog *dog = arg;
    const struct watchdog_options *options = &dog->options;
    struct rl_wait_signal signal = {
        .cond = &dog->cond, .mutex = &dog->mutex, .done = watchdog_is_off, .arg = dog};
    double until_s = rl_clock_now_s(NULL) + options->timeout_s;
    const char *reason = NULL;
    rl_status status = RL_AGAIN;
    pthread_mutex_lock(&dog->mutex);
    while (status != RL_OK && reason == NULL && rl_clock_now_s(NULL) < until_s) {
        status = rl_wait_signal_poll(NULL, options->what, &signal,
                                     fmin(watchdog_look_s, until_s - rl_clock_now_s(NULL)));
        reason = status != RL_OK && options->look != NULL ? options->look(options->arg) : NULL;
    }
    pthread_mutex_unlock(&dog->mutex);
    if (status != RL_OK) {
        rl_log(RL_LOG_ERROR, "%s: %s after at most %.0f s: this rank ends with code %d",
               options->what, reason != NULL ? reason : "hung", options->timeout_s,
               options->exit_code);
        fflush(NULL);
        _exit(options->exit_code);
    }
    return NULL;
}

rl_status watchdog_start(struct watchdog *dog, const struct watchdog_options *options)
{
    *dog = (struct watchdog){.options = *options};
    pthread_mutex_init(&dog->mutex, NULL);
    RL_TRY(rl_wait_cond_init(&dog->cond));
    if (pthread_create(&dog->thread, NULL, watchdog_main, dog) != 0) {
        pthread_cond_destroy(&dog->cond);
        return rl_fail(RL_INTERNAL, "cannot start the watchdog of %s", options->what);
    }
    return RL_OK;
}

void watchdog_stop(struct watchdog *dog)
{
    pthread_mutex_lock(&dog->mutex);
    dog->off = true;
    pthread_cond_signal(&dog->cond);
    pthread_mutex_unlock(&dog->mutex);
    pthread_join(dog->thread, NULL);
    pthread_cond_destroy(&dog->cond);
    pthread_mutex_destroy(&dog->mutex);
}
