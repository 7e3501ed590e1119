/* The dispatcher: owns the data cursor and every ticket. Pure state: no MPI, clock or file; one
 * thread (learner rank 0's). A ticket stands for one group of samples of one prompt; its number is
 * its position in the infinite order of prompts, so numbers are never used twice.
 *
 *   pending -> issued -> (generated) -> scored -> admitted -> trained
 *      ^_________|____________|           |          |
 *      requeue, worker lost               +----------+--> dropped(reason)   (from any live state)
 *
 * Live tickets are those neither trained nor dropped. Invariant (dispatcher_check): tickets created
 * = live + trained + dropped, and the live states add up.
 *
 * Admission rule (AReaL, arXiv 2505.24298 section 5.1): with B prompts a step and eta the bound on
 * staleness, a new ticket may be made only while
 *     live + ahead < (eta + 1) * B,
 * ahead being the tickets trained since the version last moved. With trained = version * B + ahead
 * this is the paper's live + trained < (eta + version + 1) * B; in this form a step that was
 * skipped cannot shrink the capacity for ever. Dropped tickets leave `live`, so a drop always makes
 * room for its replacement, and at least B tickets may be live whenever the learner waits for B
 * groups: the loop cannot starve itself. */
#ifndef FORESIGHT_TRAINER_DISPATCHER_H
#define FORESIGHT_TRAINER_DISPATCHER_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

enum dispatcher_state {
    DISPATCHER_PENDING,   /* made, with no worker: waits to be issued (again) */
    DISPATCHER_ISSUED,    /* a worker has it */
    DISPATCHER_GENERATED, /* the worker said that its tokens are complete */
    DISPATCHER_SCORED,    /* its group has arrived */
    DISPATCHER_ADMITTED,  /* its group is in a batch */
    DISPATCHER_STATE_COUNT
};

enum dispatcher_reason {
    DISPATCHER_STALE,         /* its oldest token is older than eta versions */
    DISPATCHER_ZERO_VARIANCE, /* dynamic sampling: all right or all wrong */
    DISPATCHER_UNSCORABLE,    /* no sample has a valid reward */
    DISPATCHER_SURPLUS,       /* not needed any more when the run ended */
    DISPATCHER_REJECTED,      /* malformed, or skipped by the learner */
    DISPATCHER_REASON_COUNT
};

enum dispatcher_verdict {
    DISPATCHER_ACCEPTED,  /* first delivery */
    DISPATCHER_DUPLICATE, /* delivered, trained or dropped before: throw it away */
    DISPATCHER_UNKNOWN    /* no such ticket was ever issued */
};

struct dispatcher_ticket {
    uint64_t number;
    uint64_t prompt_id;
    uint32_t epoch;
    uint32_t version; /* learner's version at (re-)issue; a worker with older weights takes the new
                         ones first if max_staleness is 0 */
    uint32_t issue_count; /* times handed to a worker */
    int32_t worker;       /* world rank, -1: none */
    enum dispatcher_state state;
};

struct dispatcher_counters {
    uint64_t created;  /* tickets ever made = the cursor */
    uint64_t issues;   /* hand-overs to workers, re-issues included */
    uint64_t reissues; /* hand-overs of a ticket that had been handed over before */
    uint64_t trained;
    uint64_t dropped[DISPATCHER_REASON_COUNT];
    uint64_t duplicates, unknown; /* deliveries thrown away */
    uint64_t live[DISPATCHER_STATE_COUNT];
};

/* Prompt at `position` (0, 1, 2, ... without end) of the run's order. */
typedef rl_status (*dispatcher_next_fn)(void *arg, uint64_t position, uint64_t *prompt_id,
                                        uint32_t *epoch);

struct dispatcher_options {
    uint32_t prompts_per_step; /* B >= 1 */
    uint32_t max_staleness;    /* eta; 0: synchronous */
    dispatcher_next_fn next;
    void *next_arg; /* borrowed for life */
};

struct dispatcher;

/* Cursor 0, version 0. Caller owns *out. Errors: RL_NO_MEMORY, RL_INVALID. */
rl_status dispatcher_create(const struct dispatcher_options *options, struct dispatcher **out);

/* Takes NULL. */
void dispatcher_destroy(struct dispatcher *dispatcher);

/* New tickets that the admission rule allows now (pending ones not counted). */
uint64_t dispatcher_capacity(const struct dispatcher *dispatcher);

/* Tickets that a worker has now (issued or generated). */
uint32_t dispatcher_outstanding(const struct dispatcher *dispatcher, int32_t worker);

/* The worker of `workers` [count] with the fewest outstanding tickets (first of equals), or -1 if
 * each has max_outstanding already: ask before each issue to deal fairly. */
int32_t dispatcher_pick_worker(const struct dispatcher *dispatcher, const int32_t *workers,
                               uint32_t count, uint32_t max_outstanding);

/* Hand one ticket to `worker`: the lowest pending one, else a new one if the rule allows it.
 * RL_AGAIN (not logged): nothing to hand out, or the worker has max_outstanding already.
 * Errors: RL_NO_MEMORY, or what `next` returned. */
rl_status dispatcher_issue(struct dispatcher *dispatcher, int32_t worker, uint32_t max_outstanding,
                           struct dispatcher_ticket *out);

/* A worker says that a ticket's tokens are complete. Ignored unless the ticket is issued to it. */
void dispatcher_generated(struct dispatcher *dispatcher, uint64_t number, int32_t worker);

/* A group has arrived: issued, generated or pending (a worker taken for dead came back) -> scored.
 */
enum dispatcher_verdict dispatcher_deliver(struct dispatcher *dispatcher, uint64_t number);

/* scored -> admitted. Errors: RL_INVALID (not in that state). */
rl_status dispatcher_admit(struct dispatcher *dispatcher, uint64_t number);

/* admitted -> trained. Errors: RL_INVALID. */
rl_status dispatcher_train(struct dispatcher *dispatcher, uint64_t number);

/* Any live state -> dropped. Errors: RL_INVALID (not live). */
rl_status dispatcher_drop(struct dispatcher *dispatcher, uint64_t number,
                          enum dispatcher_reason reason);

/* Any live state -> pending: the ticket will be issued again under its number (a deadline passed; a
 * group was lost with a checkpoint). Errors: RL_INVALID (not live). */
rl_status dispatcher_requeue(struct dispatcher *dispatcher, uint64_t number);

/* A worker is dead: all that it had goes back to pending. Returns how many tickets. */
uint32_t dispatcher_worker_lost(struct dispatcher *dispatcher, int32_t worker);

/* The learner's version is now `version` (never less than before); call once after each step,
 * before the weights are published, with the old version if the step was skipped. Errors:
 * RL_INVALID (version went back). */
rl_status dispatcher_set_version(struct dispatcher *dispatcher, uint32_t version);
uint32_t dispatcher_version(const struct dispatcher *dispatcher);

/* Every ticket now live is dropped as surplus (end of a run). Returns how many. */
uint64_t dispatcher_drop_all(struct dispatcher *dispatcher);

/* A live ticket by number; RL_NOT_FOUND (not logged) if it is not live. */
rl_status dispatcher_find(const struct dispatcher *dispatcher, uint64_t number,
                          struct dispatcher_ticket *out);

/* Live tickets in order of number: *count of them, borrowed until the next change. */
const struct dispatcher_ticket *dispatcher_tickets(const struct dispatcher *dispatcher,
                                                   uint64_t *count);

/* All counters as they stand. */
void dispatcher_count(const struct dispatcher *dispatcher, struct dispatcher_counters *out);

/* The invariant; a bug in the caller or here if it fails. Errors: RL_INTERNAL with the figures. */
rl_status dispatcher_check(const struct dispatcher *dispatcher);

/* The whole state as bytes for a checkpoint. Caller frees *data. Errors: RL_NO_MEMORY. */
rl_status dispatcher_save(const struct dispatcher *dispatcher, uint8_t **data, size_t *bytes);

/* Put a saved state into a dispatcher just created with the options of the run that goes on (B and
 * eta may differ). Issued and generated tickets come back as pending; scored and admitted ones keep
 * their state, and the caller restores their groups or requeues them. Nothing changes on failure.
 * Errors: RL_CORRUPT (bytes), RL_INVALID (the prompt order differs from the saved one),
 * RL_NO_MEMORY. */
rl_status dispatcher_load(struct dispatcher *dispatcher, const uint8_t *data, size_t bytes);

#endif
