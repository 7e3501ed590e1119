/* Channels between threads of one process, or between actors of a simulation. With a `fate` and a
 * `now_s` hook the hub becomes a network of seeded delays, losses and reorderings on a virtual
 * clock, fully deterministic in one thread. */
#ifndef FORESIGHT_TRANSPORT_CHANNEL_LOCAL_H
#define FORESIGHT_TRANSPORT_CHANNEL_LOCAL_H

#include "transport/channel.h"

struct channel_hub;

enum channel_fate { CHANNEL_DELIVER, CHANNEL_LOSE, CHANNEL_DUPLICATE };

struct channel_hub_options {
    int size;             /* ends, >= 1 */
    int credits;          /* messages not yet received, per ordered pair, >= 1 */
    size_t message_bytes; /* largest message; 0: no limit but memory */
    void *context;        /* for the hooks */
    /* Virtual clock in seconds, must not go backwards; NULL: the monotonic clock. With a virtual
     * clock channel_receive never sleeps. */
    double (*now_s)(void *context);
    /* What becomes of a message, and its delay (set to 0 before the call); equal due times keep
     * the order of sending. NULL: deliver at once. Called under the hub's lock. A lost message
     * still counts as received for its credit. */
    enum channel_fate (*fate)(void *context, int from, const struct channel_message *message,
                              double *delay_s);
};

/* Caller owns *out. Errors: RL_INVALID, RL_NO_MEMORY. */
rl_status channel_hub_create(const struct channel_hub_options *options, struct channel_hub **out);

/* All ends must have been closed. Takes NULL. */
void channel_hub_destroy(struct channel_hub *hub);

/* This rank's end. Caller closes *out. Errors: RL_INVALID (rank out of range or open already). */
rl_status channel_local_open(struct channel_hub *hub, int rank, struct channel **out);

/* Rank dies now: its inbox is dropped, every other end gets CHANNEL_PEER_LOST after
 * `detect_after_s`, its own end returns RL_CLOSED from now on. Any thread. */
void channel_hub_kill(struct channel_hub *hub, int rank, double detect_after_s);

/* Earliest due time of any undelivered message, or a negative number if there is none: where a
 * simulation may advance its clock to. */
double channel_hub_next_due_s(struct channel_hub *hub);

#endif
