/* Whether a process of this node still runs, seen from outside. Owns no state. */
#ifndef FORESIGHT_TRANSPORT_PROCESS_LIFE_H
#define FORESIGHT_TRANSPORT_PROCESS_LIFE_H

#include <stdint.h>

/* When the process began, in the kernel's ticks since boot: with the pid it names one process for
 * ever, since pids are used again. 0: there is none, it has ended (nobody need have waited for it),
 * or /proc does not show it. Any thread. */
uint64_t process_life_began(int64_t pid);

#endif
