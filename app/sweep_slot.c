/* One job at work: what is to be done next is read from the trial's folder, done by a child, and
 * looked at again, until nothing is left. So a job may begin anywhere: after a kill of the sweep,
 * of the trial, or on another rank.
 *
 * The trial's folder is locked while any process works in it; children inherit the lock, so that a
 * sweep that is started again waits for the last process of the one before. */
#include "app/sweep.h"

#include "core/clock.h"
#include "core/folder_make.h"
#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SLOT_COMMANDS_MOST = 3 };
static const double slot_lock_s = 120.0;  /* most that another sweep's last process may take */
static const double slot_leave_s = 120.0; /* most that a stopped trial takes for its checkpoint */

enum slot_phase { SLOT_LOCK, SLOT_NEXT, SLOT_TRAIN, SLOT_EVAL, SLOT_ENDED };

struct sweep_slot {
    const struct sweep *sweep;
    struct sweep_job job;
    enum slot_phase phase;
    int lock_fd;
    pid_t pid; /* 0: no child */
    bool stopping;
    double phase_began_s, stop_began_s;
    uint64_t log_offset;
    char log_path[SWEEP_PATH_BYTES];
    char doing[SWEEP_PATH_BYTES]; /* the counts file under way, "" while training */
    struct sweep_outcome outcome;
};

static void end_slot(struct sweep_slot *slot, enum sweep_end end, const char *reason)
{
    slot->phase = SLOT_ENDED;
    slot->outcome.end = end;
    snprintf(slot->outcome.reason, sizeof slot->outcome.reason, "%s", reason);
}

/* Something that is not the trial's fault but hinders it: counted as a failure, without retries. */
static void fail_slot(struct sweep_slot *slot)
{
    end_slot(slot, SWEEP_END_FAILED, rl_log_last_error());
}

static void try_lock(struct sweep_slot *slot)
{
    if (slot->stopping) {
        end_slot(slot, SWEEP_END_STOPPED, "");
    } else if (flock(slot->lock_fd, LOCK_EX | LOCK_NB) == 0) {
        slot->phase = SLOT_NEXT;
    } else if (rl_clock_now_s(NULL) - slot->phase_began_s > slot_lock_s) {
        end_slot(slot, SWEEP_END_FAILED, "another process works in the trial's folder");
    }
}

static int ranks_of(const struct sweep_slot *slot)
{
    return slot->sweep->plan->trials[slot->job.trial].ranks;
}

static rl_status launch(struct sweep_slot *slot, struct sweep_command *command)
{
    struct stat info;
    const struct rl_config *settings = &slot->sweep->plan->settings;
    struct child_options options = {.arguments = command->arguments,
                                    .log_path = slot->log_path,
                                    .ranks = slot->phase == SLOT_TRAIN ? ranks_of(slot) : 1,
                                    .memory_bytes = (uint64_t)settings->sweep.memory_mib << 20,
                                    .lock_fd = slot->lock_fd};
    slot->log_offset = stat(slot->log_path, &info) == 0 ? (uint64_t)info.st_size : 0;
    slot->phase_began_s = rl_clock_now_s(NULL);
    return child_start(&options, &slot->pid);
}

static bool wants_training(const struct sweep_slot *slot)
{
    return slot->job.trial < slot->sweep->plan->trial_count &&
           slot->sweep->plan->settings.sweep.command != CONFIG_SWEEP_EVAL &&
           !sweep_is_trained(slot->sweep, slot->job.trial, slot->job.steps);
}

/* Nothing is left to do: the result is the commit point. */
static void finish(struct sweep_slot *slot)
{
    rl_status status = sweep_check_counts(slot->sweep, slot->job.trial);
    if (status == RL_OK && slot->job.last) {
        status = sweep_write_result(slot->sweep, slot->job.trial, "done", "");
    }
    if (status != RL_OK) {
        fail_slot(slot);
    } else {
        end_slot(slot, SWEEP_END_DONE, "");
    }
}

static void begin_next(struct sweep_slot *slot)
{
    char model[SWEEP_PATH_BYTES];
    char counts[SWEEP_PATH_BYTES];
    struct sweep_command command = {0};
    rl_status status = RL_OK;
    if (slot->stopping) {
        end_slot(slot, SWEEP_END_STOPPED, "");
        return;
    }
    if (wants_training(slot)) {
        slot->phase = SLOT_TRAIN;
        slot->doing[0] = '\0';
        status = sweep_command_train(slot->sweep, &slot->job, &command);
    } else if (sweep_next_evaluation(slot->sweep, &slot->job, model, counts)) {
        slot->phase = SLOT_EVAL;
        memcpy(slot->doing, counts, sizeof counts);
        status = sweep_command_eval(slot->sweep, &slot->job, model, counts, &command);
    } else {
        finish(slot);
        return;
    }
    status = status == RL_OK ? launch(slot, &command) : status;
    sweep_command_fini(&command);
    if (status != RL_OK) {
        fail_slot(slot);
    }
}

/* An attempt has failed: again, or never again. */
static void note_failure(struct sweep_slot *slot, const char *how)
{
    char error[SWEEP_REASON_BYTES / 2];
    char reason[SWEEP_REASON_BYTES];
    const char *what = slot->phase == SLOT_TRAIN ? "train" : "eval";
    const struct sweep *sweep = slot->sweep;
    int64_t attempts = sweep_attempts(sweep, slot->job.trial) + 1;
    sweep_last_error(slot->log_path, slot->log_offset, error, sizeof error);
    snprintf(reason, sizeof reason, "%s: %.120s%s%s", what, how, error[0] != '\0' ? ": " : "",
             error);
    if (sweep_note_attempt(sweep, slot->job.trial, attempts) != RL_OK) {
        fail_slot(slot);
        return;
    }
    bool again = attempts <= sweep->plan->settings.sweep.retries;
    rl_log(RL_LOG_WARN, "%s: attempt %" PRId64 " failed%s: %s",
           sweep_trial_name(sweep, slot->job.trial), attempts, again ? ", tried again" : "",
           reason);
    if (again) {
        slot->phase = SLOT_NEXT;
        return;
    }
    end_slot(slot, SWEEP_END_FAILED, reason);
    if (sweep_write_result(sweep, slot->job.trial, "failed", reason) != RL_OK) {
        fail_slot(slot);
    }
}

/* Whether the child did what it was started for. */
static bool has_done(const struct sweep_slot *slot)
{
    return slot->phase == SLOT_TRAIN ? !wants_training(slot) : access(slot->doing, F_OK) == 0;
}

static void child_ended(struct sweep_slot *slot, int wait_status)
{
    char how[128];
    double took_s = rl_clock_now_s(NULL) - slot->phase_began_s;
    bool training = slot->phase == SLOT_TRAIN;
    slot->pid = 0;
    (void)sweep_note_time(slot->sweep, slot->job.trial, training ? took_s : 0,
                          training ? 0 : took_s);
    if (has_done(slot)) {
        slot->phase = SLOT_NEXT;
    } else if (slot->stopping) {
        end_slot(slot, SWEEP_END_STOPPED, "");
    } else if (WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0) {
        note_failure(slot, "it ended without its result");
    } else {
        child_describe(wait_status, how, sizeof how);
        note_failure(slot, how);
    }
}

static void kill_group(struct sweep_slot *slot, int number)
{
    if (kill(-slot->pid, number) != 0) {
        (void)kill(slot->pid, number);
    }
}

static void look_at_child(struct sweep_slot *slot)
{
    int wait_status = 0;
    double now_s = rl_clock_now_s(NULL);
    double timeout_s = (double)slot->sweep->plan->settings.sweep.timeout_s;
    char how[128];
    if (child_poll(slot->pid, &wait_status)) {
        child_ended(slot, wait_status);
    } else if (slot->stopping && now_s - slot->stop_began_s > slot_leave_s) {
        kill_group(slot, SIGKILL);
    } else if (timeout_s > 0 && !slot->stopping && now_s - slot->phase_began_s > timeout_s) {
        kill_group(slot, SIGKILL);
        (void)waitpid(slot->pid, &wait_status, 0);
        slot->pid = 0;
        snprintf(how, sizeof how, "not done after %.0f s (sweep.timeout_s)", timeout_s);
        note_failure(slot, how);
    }
}

rl_status sweep_slot_start(const struct sweep *sweep, const struct sweep_job *job,
                           struct sweep_slot **out)
{
    char path[SWEEP_PATH_BYTES];
    RL_TRY(sweep_path(sweep, job->trial, "eval", path));
    RL_TRY(rl_folder_make(path));
    RL_TRY(sweep_path(sweep, job->trial, "lock", path));
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) {
        return rl_fail(RL_IO, "%s: cannot be opened: %s", path, strerror(errno));
    }
    struct sweep_slot *slot = calloc(1, sizeof *slot);
    if (slot == NULL) {
        close(fd);
        return rl_fail(RL_NO_MEMORY, "sweep: out of memory");
    }
    slot->sweep = sweep;
    slot->job = *job;
    slot->lock_fd = fd;
    slot->phase_began_s = rl_clock_now_s(NULL);
    rl_status status = sweep_path(sweep, job->trial, "trial.log", slot->log_path);
    if (status != RL_OK) {
        sweep_slot_destroy(slot);
        return status;
    }
    *out = slot;
    return RL_OK;
}

bool sweep_slot_poll(struct sweep_slot *slot, struct sweep_outcome *outcome)
{
    for (int i = 0; i < SLOT_COMMANDS_MOST; i++) {
        if (slot->phase == SLOT_LOCK) {
            try_lock(slot);
        } else if (slot->phase == SLOT_NEXT) {
            begin_next(slot);
        } else if (slot->phase != SLOT_ENDED) {
            look_at_child(slot);
        }
    }
    if (slot->phase == SLOT_ENDED) {
        *outcome = slot->outcome;
    }
    return slot->phase == SLOT_ENDED;
}

void sweep_slot_stop(struct sweep_slot *slot)
{
    if (slot->stopping) {
        return;
    }
    slot->stopping = true;
    slot->stop_began_s = rl_clock_now_s(NULL);
    if (slot->pid != 0) {
        (void)kill(slot->pid, SIGUSR1);
    }
}

void sweep_slot_destroy(struct sweep_slot *slot)
{
    if (slot == NULL) {
        return;
    }
    if (slot->pid != 0) {
        kill_group(slot, SIGKILL);
        (void)waitpid(slot->pid, NULL, 0);
    }
    close(slot->lock_fd);
    free(slot);
}
