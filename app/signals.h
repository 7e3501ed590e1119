/* SIGTERM, SIGINT and SIGUSR1 ask a run to stop after the current step, with a checkpoint. */
#ifndef FORESIGHT_APP_SIGNALS_H
#define FORESIGHT_APP_SIGNALS_H

#include "core/status.h"

/* Catch the signals from here on; a second SIGINT ends the program at once. Main thread. */
rl_status signals_install(void);

/* Catch and forget them: rollout ranks stop when the learner says so. Main thread. */
rl_status signals_ignore(void);

/* Number of the signal that asked for the stop, 0 if none did. Any thread. */
int signals_stop_requested(void);

#endif
