/* `foresight sweep`: what its parts share. A sweep's ranks only hand out trials; each trial runs in
 * processes of its own (child.h), so that a trial that dies takes nothing with it. What was done is
 * read from the sweep's folder and from nowhere else: a sweep that was killed goes on exactly. */
#ifndef FORESIGHT_APP_SWEEP_H
#define FORESIGHT_APP_SWEEP_H

#include "app/child.h"
#include "trainer/sweep_plan.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SWEEP_PATH_BYTES = 4096, SWEEP_REASON_BYTES = 512 };

/* One process's view of the sweep; immutable once it is open. */
struct sweep {
    struct sweep_plan *plan;
    char folder[SWEEP_PATH_BYTES];
    char program[SWEEP_PATH_BYTES];
};

/* A piece of work: take a trial to `steps`, and evaluate it. */
struct sweep_job {
    size_t trial;  /* index; plan->trial_count + b: base model b, which is evaluated only */
    int64_t steps; /* run.steps of this rung; 0 of a trial that is not `train` */
    bool last;     /* the trial's result is written afterwards */
};

/* How a job ended. */
enum sweep_end { SWEEP_END_DONE, SWEEP_END_FAILED, SWEEP_END_STOPPED };

struct sweep_outcome {
    enum sweep_end end;
    char reason[SWEEP_REASON_BYTES]; /* of a failure */
};

/* --- sweep_folder.c: what is where in the folder, and what is done ---------------------------- */

/* Trials and base models. */
size_t sweep_count(const struct sweep *sweep);

/* A path below the trial's folder, which is SWEEP/trials/NAME, or SWEEP/base (base1 ...). path
 * [SWEEP_PATH_BYTES]. Errors: RL_TOO_LONG. */
rl_status sweep_path(const struct sweep *sweep, size_t trial, const char *name, char *path);

/* Name of the trial or the base model; borrowed. */
const char *sweep_trial_name(const struct sweep *sweep, size_t trial);

/* Make the folder with sweep.json and config.yaml, or check that the one that is there is of this
 * very plan. Errors: RL_INVALID (another plan, the difference named), RL_IO, RL_NO_MEMORY. */
rl_status sweep_folder_open(const struct sweep *sweep);

/* State in the trial's result.json: "done", "failed", "stopped_early", or "" without one. state
 * [32]. Errors: RL_CORRUPT (the file and what it lacks). */
rl_status sweep_result_state(const struct sweep *sweep, size_t trial, char *state);

/* Whether this shard runs the trial. */
bool sweep_is_own(const struct sweep *sweep, size_t trial);

/* The checkpoint's number in a run's summary: steps, or updates of a distillation. */
int64_t sweep_summary_step(const json_t *summary);

/* Whether training has come to `steps` (0: to its end) with its checkpoint on the disk. */
bool sweep_is_trained(const struct sweep *sweep, size_t trial, int64_t steps);

/* The next checkpoint of at most `steps` steps that is to be evaluated and is not yet: its folder
 * into model [SWEEP_PATH_BYTES], where its counts go into counts [SWEEP_PATH_BYTES]. False: all
 * are. */
bool sweep_next_evaluation(const struct sweep *sweep, const struct sweep_job *job, char *model,
                           char *counts);

/* That every counts file of the trial can be read. Errors: RL_CORRUPT (file and place), RL_IO. */
rl_status sweep_check_counts(const struct sweep *sweep, size_t trial);

/* Mean share of right answers on split A after `steps` steps, at the temperature where it is
 * largest. Errors: RL_IO, RL_CORRUPT. */
rl_status sweep_score(const struct sweep *sweep, size_t trial, int64_t steps, double *score);

/* --- sweep_result.c: what a trial leaves behind ------------------------------------------------
 */

/* Attempts so far that ended by themselves without success, over restarts of the sweep. */
int64_t sweep_attempts(const struct sweep *sweep, size_t trial);
rl_status sweep_note_attempt(const struct sweep *sweep, size_t trial, int64_t attempts);

/* Add seconds to the trial's timing.json: of training, of evaluation. */
rl_status sweep_note_time(const struct sweep *sweep, size_t trial, double train_s, double eval_s);

/* Seconds noted so far, NAN without any. */
double sweep_seconds(const struct sweep *sweep, size_t trial);

/* Write result.json, the trial's commit point. `reason` may be "". Errors: RL_IO, RL_NO_MEMORY. */
rl_status sweep_write_result(const struct sweep *sweep, size_t trial, const char *state,
                             const char *reason);

/* Forget that a trial failed, so that it is tried again. Errors: RL_IO. */
rl_status sweep_forget_failure(const struct sweep *sweep, size_t trial);

/* The last error that a log holds from `offset` on, without its time; "" if there is none. out
 * [bytes]. */
void sweep_last_error(const char *log_path, uint64_t offset, char *out, size_t bytes);

/* --- sweep_command.c: command lines ------------------------------------------------------------
 */

/* Arguments of a child; owns its strings. */
struct sweep_command {
    char **arguments; /* NULL-terminated */
    size_t count, capacity;
};

/* What trains the trial to job->steps; what evaluates `model` into `counts`. For an eval trial
 * `model` is ignored. Errors: RL_NO_MEMORY. */
rl_status sweep_command_train(const struct sweep *sweep, const struct sweep_job *job,
                              struct sweep_command *out);
rl_status sweep_command_eval(const struct sweep *sweep, const struct sweep_job *job,
                             const char *model, const char *counts, struct sweep_command *out);
void sweep_command_fini(struct sweep_command *command);

/* --- sweep_slot.c: one job at work --------------------------------------------------------------
 */

struct sweep_slot;

/* Begin a job. Caller owns *out (sweep_slot_destroy). Main thread. Errors: RL_IO, RL_NO_MEMORY. */
rl_status sweep_slot_start(const struct sweep *sweep, const struct sweep_job *job,
                           struct sweep_slot **out);

/* Go on; never blocks. True once it has ended, with *outcome filled. Main thread. */
bool sweep_slot_poll(struct sweep_slot *slot, struct sweep_outcome *outcome);

/* Ask its processes to stop with a checkpoint; it then ends as SWEEP_END_STOPPED. */
void sweep_slot_stop(struct sweep_slot *slot);

/* Kill what still runs, wait for it, free. Takes NULL. */
void sweep_slot_destroy(struct sweep_slot *slot);

/* --- sweep_pool.c: the jobs of this process -----------------------------------------------------
 */

struct sweep_pool {
    const struct sweep *sweep;
    struct sweep_slot **slots; /* [capacity], NULL: free */
    struct sweep_job *jobs;    /* [capacity] */
    size_t capacity, busy;
};

/* Empty, with sweep.parallel slots. Errors: RL_NO_MEMORY. */
rl_status sweep_pool_open(const struct sweep *sweep, struct sweep_pool *out);

/* Kill what is at work and free. Takes a zeroed struct. */
void sweep_pool_close(struct sweep_pool *pool);

/* Begin a job; a slot must be free. Errors: as sweep_slot_start, RL_INTERNAL. */
rl_status sweep_pool_start(struct sweep_pool *pool, const struct sweep_job *job);

/* The next job that has ended; false if none has since. */
bool sweep_pool_take(struct sweep_pool *pool, struct sweep_job *job, struct sweep_outcome *outcome);

/* sweep_slot_stop of all. */
void sweep_pool_stop(struct sweep_pool *pool);

/* --- the loops ----------------------------------------------------------------------------------
 */

struct world;
struct channel;

/* Rank 0: hand out all jobs and wait for their ends. *failed: trials that failed. `channel` is NULL
 * without other ranks. Errors: RL_INTERRUPTED (asked to stop), RL_IO, RL_NO_MEMORY. */
rl_status sweep_head_run(const struct sweep *sweep, struct world *world, struct channel *channel,
                         size_t *failed);

/* Other ranks: work until rank 0 says stop or is lost. Errors: RL_PEER_LOST, RL_INVALID. */
rl_status sweep_helper_run(const struct sweep *sweep, struct world *world, struct channel *channel);

#endif
