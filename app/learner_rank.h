/* What the threads of a learner rank share. The main thread pumps messages and serves the
 * dispatcher (learner_service.c): tickets out, groups in, the dead noted. The compute thread waits
 * for batches and trains (learner_loop.c). They share the run's tickets and admission under one
 * mutex, held for moments only. Learners beside rank 0 only follow (train_follow.h). */
#ifndef FORESIGHT_APP_LEARNER_RANK_H
#define FORESIGHT_APP_LEARNER_RANK_H

#include "app/learner_weights.h"
#include "app/train.h"
#include "app/train_run.h"

#include "transport/channel.h"
#include "transport/wire.h"

#include <pthread.h>
#include <stdatomic.h>

struct worker_seat {
    bool alive;
    bool leaving;              /* it said that it has failed, and has not left yet */
    bool blamed;               /* the failure of its process is counted */
    uint32_t failures;         /* processes in a row that failed without a group between */
    uint32_t incarnation;      /* of its process; 0: mpirun's */
    int reader;                /* of its process, in the arena */
    uint32_t hasty;            /* successors in a row that were lost without a group */
    double wait_until_s;       /* no successor before */
    uint64_t groups;           /* from this process */
    bool snapshot_due;         /* it is to be asked for what is finished of its groups */
    bool snapshot_open;        /* its answer is not here */
    struct wire_status status; /* newest of this process */
};

/* A process that was started for a seat. */
struct seat_child {
    int64_t pid;
    int rank;
    uint32_t incarnation;
};

struct probe {
    uint32_t wanted, issued, taken;
    struct trajectory_group **groups; /* [wanted] */
};

struct learner_rank {
    const struct rl_config *config;
    struct world *world;
    struct channel *channel;
    struct collective *collective;
    struct rl_waits *waits;
    struct session session;
    struct prompts *prompts;
    struct train_run run;
    struct learner_weights *weights; /* from when `serving` is set */
    pthread_mutex_t mutex;           /* guards what is below, the run's tickets and its admission */
    pthread_cond_t arrived;          /* a group was admitted or something is wrong */
    bool serving;                    /* weights are published: greet workers, issue tickets */
    bool draining;                   /* no more ordinary tickets */
    struct worker_seat *seats;       /* [world size] */
    uint32_t successors;             /* processes started for seats of lost ranks */
    struct seat_child *children;     /* [async.replace_workers] those not waited for yet */
    uint32_t child_count;
    double gone_busy_s, gone_cpu_s; /* last figures of lost processes together */
    struct channel_message held;    /* to be sent next: a ticket, or what its group goes on from */
    struct channel_message behind;  /* the ticket after it */
    uint64_t snapshot;              /* number of the last one asked for */
    struct probe probe;
    struct rl_pass_times passes;        /* of all rollout ranks, the dead included */
    double rollout_s[RL_ROLLOUT_TIMES]; /* all rollout ranks since the start, the dead included */
    rl_status service_status;           /* first failure of the main thread's side */
    uint64_t dead_workers;
    rl_status compute_status;
    atomic_bool finished;  /* the compute thread is done */
    atomic_bool dismissed; /* the other learners were told to stop: they may leave */
    bool completed;
    bool stepping; /* a step has begun and not ended: the masters are no step's */
};

/* The first failure of the main thread's side ends the run: kept for the compute thread, which is
 * woken. The mutex must be held. */
void learner_service_fail(struct learner_rank *l, rl_status status);

/* Rollout ranks not lost. The mutex must be held. */
uint32_t learner_service_workers(const struct learner_rank *l);

/* Tell a rollout rank where the weights are. The mutex must be held; once for each process, after
 * the first weights were published. */
rl_status learner_service_greet(struct learner_rank *l, int rank);

/* Ask all rollout ranks for the finished samples of unfinished groups, which go into the run's
 * partial groups. The mutex must be held. */
void learner_service_ask(struct learner_rank *l);

/* Have all answered that live? The mutex must be held. */
bool learner_service_answered(const struct learner_rank *l);

/* One round of the main thread beside the pump: messages in, tickets out. Takes the mutex for
 * moments. Returns whether there was work. */
bool learner_service_round(struct learner_rank *l);

/* Most processes that may be started for seats: replacements, and in a hosted world the first ones.
 */
int64_t learner_seats_most(const struct learner_rank *l);

/* Seats of rollout ranks: made at the start (all mpirun's), freed at the end, when the processes
 * started here are waited for and, after ten seconds, killed. Main thread. */
rl_status learner_seats_open(struct learner_rank *l);
void learner_seats_close(struct learner_rank *l);

/* The seat's process is lost (`failed`: it says so itself, and has still to leave). The mutex must
 * be held. */
void learner_seats_lose(struct learner_rank *l, int rank, bool failed);

/* A process that has failed has left: its seat may be given away. The mutex must be held. */
void learner_seats_left(struct learner_rank *l, int rank);

/* The seat's process has delivered a group. The mutex must be held. */
void learner_seats_delivered(struct learner_rank *l, int rank);

/* Start successors where that is due. Main thread, the mutex held; takes a few milliseconds for
 * each. Returns whether there was work. */
bool learner_seats_refill(struct learner_rank *l);

/* Whether a seat is or will be taken: false means that nobody rolls out any more. The mutex must be
 * held. */
bool learner_seats_hopeful(const struct learner_rank *l);

/* Whom a waiting learner waits for: what each rollout rank has and when it was last heard, into
 * `text` [bytes]. The mutex must be held; the run is being served. */
void learner_seats_describe(const struct learner_rank *l, char *text, size_t bytes);

/* Figures of all rollout processes together, lost ones included. The mutex must be held. */
double learner_seats_busy_s(const struct learner_rank *l);
double learner_seats_cpu_s(const struct learner_rank *l);

/* The compute thread of rank 0: open the run, train to its end, close nothing. */
rl_status learner_loop_run(struct learner_rank *l);

#endif
