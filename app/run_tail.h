/* The newest figures of a run that is going on, seen from outside. */
#ifndef FORESIGHT_APP_RUN_TAIL_H
#define FORESIGHT_APP_RUN_TAIL_H

#include <jansson.h>

/* The last whole line of a metrics.jsonl as an object, the caller's; NULL if there is none. */
json_t *run_tail(const char *path);

#endif
