/* See signals.h. The one mutable global of the program: a handler can reach nothing else. */
#include "app/signals.h"

#include "core/log.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t stop_signal;

static void remember(int number)
{
    if (stop_signal != 0 && number == SIGINT) {
        _Exit(130);
    }
    stop_signal = number;
}

static rl_status catch_with(void (*handler)(int))
{
    static const int numbers[] = {SIGTERM, SIGINT, SIGUSR1};
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART;
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        if (sigaction(numbers[i], &action, NULL) != 0) {
            return rl_fail(RL_INTERNAL, "sigaction(%d) failed", numbers[i]);
        }
    }
    return RL_OK;
}

rl_status signals_install(void)
{
    return catch_with(remember);
}

rl_status signals_ignore(void)
{
    return catch_with(SIG_IGN);
}

int signals_stop_requested(void)
{
    return stop_signal;
}
