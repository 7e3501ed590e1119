/* The learner's side of a run, whoever generates: data order, tickets, admission, the learner
 * itself, metrics, rollout segments, checkpoints, resume, summary. The synchronous loop and the
 * asynchronous learner rank are two ways to feed it. One thread, but for what it says. */
#ifndef FORESIGHT_APP_TRAIN_RUN_H
#define FORESIGHT_APP_TRAIN_RUN_H

#include "app/session.h"
#include "app/weight_window.h"
#include "core/metrics.h"
#include "core/role_times.h"
#include "core/wait.h"
#include "rollout/prompt_order.h"
#include "trainer/admission.h"
#include "trainer/alarms.h"
#include "trainer/checkpoint_writer.h"
#include "trainer/dispatcher.h"
#include "trainer/learner.h"
#include "trainer/partial_store.h"
#include "trainer/staleness_control.h"
#include "transport/collective.h"
#include "transport/event_file.h"
#include "transport/weight_arena.h"
#include "transport/weight_history.h"
#include "transport/weight_sender.h"

#include <pthread.h>

/* Totals over the run, resumes included; travels in checkpoints as it stands. */
struct train_totals {
    uint64_t format; /* TRAIN_TOTALS_FORMAT */
    uint64_t prompts_hash;
    double wall_s, learner_busy_s, generation_s, wait_s;
    double staleness_sum, staleness_tokens, staleness_max;
    double staleness_histogram[OBJECTIVE_STALENESS_BUCKETS]; /* tokens */
    double mismatch_max, mismatch_tokens;
    double completion_tokens, learner_tokens;
    double skipped_updates, dead_workers;
    struct staleness_control staleness; /* async.max_staleness auto */
    double dumps, rollbacks, outlier_updates;
    double learner_s[RL_LEARNER_TIMES], rollout_s[RL_ROLLOUT_TIMES];
    struct rl_pass_times passes;
    struct weight_sender_counters weights;
    struct alarm_state alarms;
    struct guard_state guard; /* a copy of the learner's, taken for the checkpoint */
};
enum { TRAIN_TOTALS_FORMAT = 7 };

struct delta_record;
struct teacher_prompts;

struct train_run {
    const struct rl_config *config;
    struct session *session;
    const struct prompts *prompts;
    struct reward_set *rewards;
    struct prompt_order *order, *refill_order;
    struct dispatcher *dispatcher;
    struct admission *admission;
    struct partial_store partials; /* of tickets at work */
    struct collective *collective; /* borrowed */
    struct weight_arena *arena;
    struct weight_history *history;
    struct learner *learner;
    void *reference_image;
    struct teacher_prompts *teacher;
    struct rl_metrics *metrics;
    struct rl_waits *waits;
    struct checkpoint_target target;
    struct checkpoint_writer *writer;
    char dir[CHECKPOINT_PATH_MAX];
    uint64_t step;                     /* finished steps */
    bool checkpoint_now;               /* one is due, whatever checkpoint.every says */
    struct event_writer *events;       /* RUN/events.bin; the mutex guards it */
    uint64_t image_hash;               /* of the published version */
    struct delta_record *deltas;       /* RUN/deltas.bin; NULL: not kept */
    uint64_t segment;                  /* next rollout segment */
    struct trajectory_group **unsaved; /* trained on, not yet in a segment */
    size_t unsaved_count, unsaved_capacity;
    uint64_t unsaved_tokens, unsaved_first_step;
    struct train_totals totals;
    double started_s, step_started_s, cpu_started_s;
    double worker_cpu_s;    /* of all rollout ranks, for the summary */
    double checkpoint_s;    /* since the step before */
    pthread_mutex_t *mutex; /* guards tickets, admission, partials and `step`; NULL: one thread */
    bool quiet;
};

/* What a feeder knows of the time since the step before. */
struct train_feed {
    double wait_s;                      /* learner without samples */
    double generation_s;                /* engines busy, all ranks */
    double rollout_s[RL_ROLLOUT_TIMES]; /* all rollout ranks */
    struct rl_pass_times passes;        /* all rollout ranks, since the step before */
    double rollout_cpu_s;               /* their processes' CPU time since they started */
    uint32_t rollout_ranks;             /* that are there */
    uint32_t queue_depth;
    uint64_t reward_timeouts;              /* since the step before */
    uint64_t dead_workers;                 /* since the step before */
    struct weight_sender_counters weights; /* since the step before; zeros without other nodes */
};

struct train_run_args {
    const struct rl_config *config;
    struct session *session;
    const struct prompts *prompts;
    struct collective *collective;
    struct rl_waits *waits;
    bool shared_arena;      /* workers are other processes */
    int readers;            /* reader indices of the arena */
    int history;            /* versions back that deltas may start from, >= 1 */
    bool quiet;             /* no live lines */
    pthread_mutex_t *mutex; /* see struct train_run; borrowed, may be NULL */
};

/* Set everything up in RUN (made if need be), resume if the configuration says so, publish the
 * first weights. Release with train_run_close (also after an error). */
rl_status train_run_open(const struct train_run_args *args, struct train_run *run);
void train_run_close(struct train_run *run);

/* async.max_staleness auto: start the controller, or go on with the one that was restored. The
 * mutex must be held. */
rl_status train_run_open_staleness(struct train_run *run);

/* Is async.order fixed_lag in force? */
bool train_run_fixed_lag(const struct train_run *run);

/* fixed_lag: the versions that tickets of the steps to come are pinned to, the newest last; and
 * tell the arena to keep them. Compute thread. */
struct weight_window train_run_window(const struct train_run *run);
void train_run_keep_window(struct train_run *run);

/* Take and give back the run's mutex, if it has one. */
void train_run_lock(struct train_run *run);
void train_run_unlock(struct train_run *run);

/* True when all steps are done. */
bool train_run_done(const struct train_run *run);

/* True if one more ticket may be made without exceeding what the remaining steps can use. The mutex
 * must be held. */
bool train_run_wants_tickets(const struct train_run *run);

/* One learner step on an admitted batch, its tickets and the dispatcher's version settled, then
 * metrics, live line, segment; the batch may be empty afterwards. Collective among the learners.
 * Takes the mutex for moments. */
rl_status train_run_step(struct train_run *run, struct admission_batch *batch,
                         const struct train_feed *feed);

/* Is a checkpoint due after the step just made? */
bool train_run_checkpoint_due(const struct train_run *run);

/* Snapshot now (the caller holds off changes to dispatcher and admission); written beside training.
 * `wait`: return when it is on disk. */
struct train_snapshot {
    struct checkpoint_state state; /* owns copies */
};
rl_status train_run_snapshot(struct train_run *run, struct train_snapshot *snapshot);
rl_status train_run_save(struct train_run *run, struct train_snapshot *snapshot, bool wait);

/* The totals in a checkpoint. Errors: RL_CORRUPT (not of this format). */
rl_status train_totals_read(const struct checkpoint_state *state, struct train_totals *totals);

/* Count a probe's result. */
void train_run_note_probe(struct train_run *run, double largest, uint64_t tokens);

/* Write the rest of the segments, the summary and the last lines. `completed`: all steps done. */
rl_status train_run_finish(struct train_run *run, bool completed);

#endif
