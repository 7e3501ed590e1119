/* See watchdog.h: a thread that sleeps until the deadline. */
#include "transport/watchdog.h"

#include "core/log.h"
#include "core/wait.h"

#include <stdio.h>
#include <unistd.h>

static bool watchdog_is_off(void *arg)
{
    return ((const struct watchdog *)arg)->off;
}

static void *watchdog_main(void *arg)
{
    struct watchdog *dog = arg;
    struct rl_wait_signal signal = {
        .cond = &dog->cond, .mutex = &dog->mutex, .done = watchdog_is_off, .arg = dog};
    pthread_mutex_lock(&dog->mutex);
    rl_status status = rl_wait_signal_poll(NULL, dog->what, &signal, dog->timeout_s);
    pthread_mutex_unlock(&dog->mutex);
    if (status != RL_OK) {
        rl_log(RL_LOG_ERROR, "%s hung for %.0f s: this rank ends with code %d", dog->what,
               dog->timeout_s, dog->exit_code);
        fflush(NULL);
        _exit(dog->exit_code);
    }
    return NULL;
}

rl_status watchdog_start(struct watchdog *dog, const char *what, double timeout_s, int exit_code)
{
    *dog = (struct watchdog){.what = what, .timeout_s = timeout_s, .exit_code = exit_code};
    pthread_mutex_init(&dog->mutex, NULL);
    RL_TRY(rl_wait_cond_init(&dog->cond));
    if (pthread_create(&dog->thread, NULL, watchdog_main, dog) != 0) {
        pthread_cond_destroy(&dog->cond);
        return rl_fail(RL_INTERNAL, "cannot start the watchdog of %s", what);
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
