/* Whether processes of this node still run, seen from outside. Owns no state. */
#ifndef FORESIGHT_TRANSPORT_PROCESS_LIFE_H
#define FORESIGHT_TRANSPORT_PROCESS_LIFE_H

#include <stdint.h>

/* When the process began, in the kernel's ticks since boot: with the pid it names one process for
 * ever, since pids are used again. 0: there is none, it has ended (nobody need have waited for it),
 * or /proc does not show it. Any thread. */
uint64_t process_life_began(int64_t pid);

/* Living children of a process, whichever of its threads started them; -1: /proc does not show
 * them. Any thread. */
int process_life_children(int64_t pid);

#endif
