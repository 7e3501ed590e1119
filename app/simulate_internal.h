/* What the simulator's files share: virtual time (a heap of events) and the engines. */
#ifndef FORESIGHT_APP_SIMULATE_INTERNAL_H
#define FORESIGHT_APP_SIMULATE_INTERNAL_H

#include "app/simulate.h"
#include "core/trajectory.h"
#include "rollout/scheduler.h"

#include <stdbool.h>

/* --- events ------------------------------------------------------------------------------------
 */

enum simulate_event_kind {
    SIMULATE_ENGINE, /* an engine's pass or pause is over */
    SIMULATE_SCORED, /* a group reaches the learner */
    SIMULATE_TRAINED,
    SIMULATE_VERSION /* new weights can be taken by engines */
};

struct simulate_event {
    double time;
    uint64_t order; /* of posting: decides among equal times */
    enum simulate_event_kind kind;
    int32_t worker;
    uint32_t version;
    struct trajectory_group *group; /* owned while it is on its way */
};

struct simulate_events {
    struct simulate_event *heap; /* [count] */
    size_t count, reserved;
    uint64_t posted;
};

/* Errors: RL_NO_MEMORY. */
rl_status simulate_events_post(struct simulate_events *events, struct simulate_event event);

/* Remove the earliest; false if there is none. */
bool simulate_events_next(struct simulate_events *events, struct simulate_event *out);

/* Groups on their way are destroyed. */
void simulate_events_fini(struct simulate_events *events);

/* --- engines -----------------------------------------------------------------------------------
 */

/* What all engines of a simulation have in common, in tokens of the scheduler. */
struct simulate_scale {
    double stride; /* real tokens that one of the scheduler stands for */
    int32_t prompt, max_new, max_running, max_groups, prefill_chunk;
};

/* A ticket at an engine. */
struct simulate_ticket {
    uint64_t number, prompt;
    uint32_t version; /* learner's when it was issued; fixed_lag: the group's */
};

/* The schedules of a group that one version generates. */
struct simulate_pin {
    struct rollout_switch only;
    struct rollout_schedule samples[]; /* [samples_per_prompt] */
};

/* Totals of a group when it was finished. */
struct simulate_group {
    struct trajectory_group *group; /* its samples have one token per oldest and newest version */
    double tokens;                  /* completion tokens */
    double version_tokens;          /* sum over them of their versions */
    struct simulate_pin *pin;       /* owned; NULL: by the newest weights at each pass */
};

struct simulate_slot {
    int32_t total, done; /* tokens of the scheduler; total 0: nobody there yet */
    uint32_t tokens;     /* real ones */
    uint32_t first_version;
    double version_sum; /* over `done` */
};

struct simulate_engine {
    const struct simulate_options *options;
    const struct simulate_scale *scale;
    struct rollout_scheduler *scheduler;
    struct rollout_plan plan;      /* of the pass that runs */
    struct simulate_slot *slots;   /* [max_running] */
    struct simulate_group *groups; /* [max_groups] by the scheduler's index */
    struct simulate_ticket *queue; /* [max_groups] not yet in the scheduler, oldest first */
    int32_t queue_count;
    int32_t unfinished; /* samples of its tickets */
    uint32_t version;
    bool passing, pausing;
    uint32_t pausing_for; /* version */
    double busy_s, paused_s, running_s;
    uint64_t passes;
};

/* Errors: RL_NO_MEMORY. Release with simulate_engine_fini (also after an error). */
rl_status simulate_engine_init(struct simulate_engine *engine,
                               const struct simulate_options *options,
                               const struct simulate_scale *scale);
void simulate_engine_fini(struct simulate_engine *engine);

/* Tickets that it would take now. */
int32_t simulate_engine_room(const struct simulate_engine *engine);

/* Take a ticket; there must be room. */
void simulate_engine_give(struct simulate_engine *engine, struct simulate_ticket ticket);

/* Go on if it can, with `newest` the newest weights to be had: *seconds until
 * simulate_engine_finish is due, 0: nothing to do before a ticket or new weights come. Errors:
 * RL_NO_MEMORY. */
rl_status simulate_engine_start(struct simulate_engine *engine, uint32_t newest, double *seconds);

/* The pass or pause is over. `done` [max_running] gets *count finished groups, owned by the caller.
 * Errors: RL_NO_MEMORY. */
rl_status simulate_engine_finish(struct simulate_engine *engine, struct simulate_group *done,
                                 int32_t *count);

#endif
