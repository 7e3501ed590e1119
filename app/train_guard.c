/* See train_guard.h. */
#include "app/train_guard.h"
#include "app/train_events.h"
#include "app/train_follow.h"

#include "core/folder_make.h"
#include "core/log.h"
#include "kernels/device.h"
#include "transport/segment_file.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* --- the batch, for who wants to look
 * --------------------------------------------------------------- */

static rl_status write_dump(struct train_run *run, const struct admission_batch *batch)
{
    char path[CHECKPOINT_PATH_MAX + 64];
    uint64_t step = run->step + 1;
    struct segment_info info = {
        .first_step = step, .last_step = step, .run = run->config->run.name};
    snprintf(path, sizeof(path), "%s/dumps", run->dir);
    RL_TRY(rl_folder_make(path));
    snprintf(path, sizeof(path), "%s/dumps/step_%06" PRIu64 ".h5", run->dir, step);
    RL_TRY(segment_file_write(path, &info, (const struct trajectory_group *const *)batch->groups,
                              batch->count));
    rl_log(RL_LOG_WARN, "the batch of step %" PRIu64 " is kept in %s", step, path);
    return RL_OK;
}

static void dump(struct train_run *run, const struct admission_batch *batch)
{
    if (run->totals.dumps >= (double)run->config->alarms.dumps) {
        return;
    }
    run->totals.dumps++;
    if (write_dump(run, batch) != RL_OK) {
        rl_log(RL_LOG_WARN, "the batch could not be kept; training goes on");
    }
}

/* --- back to sound weights
 * -------------------------------------------------------------------------- */

/* The model that the run began with: version 0. */
static rl_status load_start(const struct session *session, const struct rl_config *config,
                            struct learner *learner)
{
    struct optimizer_state *optimizer = learner_optimizer(learner);
    size_t bytes = (size_t)session->layout->master_count * sizeof(float);
    float *master = NULL;
    RL_TRY(session_load_master(session, config->model.path, &master));
    memcpy(learner_master(learner), master, bytes);
    device_free(master);
    memset(optimizer->m, 0, (size_t)optimizer->count * sizeof(float));
    memset(optimizer->v, 0, (size_t)optimizer->count * sizeof(float));
    optimizer->step = 0;
    return RL_OK;
}

rl_status train_guard_roll_back(const struct session *session, const struct rl_config *config,
                                struct learner *learner, const char *checkpoint,
                                struct learner_report *report, uint64_t *step)
{
    struct optimizer_state *optimizer = learner_optimizer(learner);
    struct checkpoint_state state = {0};
    if (checkpoint[0] == '\0') {
        RL_TRY(load_start(session, config, learner));
    } else {
        struct checkpoint_moments moments = checkpoint_moments_of(optimizer);
        RL_TRY(checkpoint_load(checkpoint, session->layout, learner_master(learner), &moments,
                               &state));
        optimizer->step = (int64_t)state.updates;
    }
    rl_status status = learner_roll_back(learner, (uint32_t)state.version, report);
    *step = state.step;
    checkpoint_state_fini(&state);
    return status;
}

/* The newest checkpoint whose weights have been trained from without a fault; "": none. */
static rl_status find_sound(struct train_run *run, char path[CHECKPOINT_PATH_MAX])
{
    uint64_t sound = learner_guard(run->learner)->sound_step;
    rl_status status = checkpoint_writer_wait(run->writer, 0);
    path[0] = '\0';
    if (status == RL_OK && sound > 1) {
        status = checkpoint_find_before(run->dir, sound, path);
    }
    return status == RL_NOT_FOUND ? RL_OK : status;
}

static rl_status roll_back(struct train_run *run, struct learner_report *report)
{
    char path[CHECKPOINT_PATH_MAX];
    uint64_t step = 0;
    RL_TRY(find_sound(run, path));
    RL_TRY(train_follow_roll_back(run->collective, path));
    RL_TRY(train_guard_roll_back(run->session, run->config, run->learner, path, report, &step));
    RL_TRY(train_events_rollback(run, step));
    rl_log(RL_LOG_WARN,
           "step %" PRIu64 ": rolled back to %s as version %u, at half the learning rate; samples "
           "of the versions in between are not trained on",
           run->step + 1, path[0] != '\0' ? path : "the model that the run began with",
           report->version);
    run->checkpoint_now = true; /* a resumed run must not begin with what was given up */
    return RL_OK;
}

static rl_status stop(struct train_run *run, const struct learner_report *report)
{
    char faults[128];
    char path[CHECKPOINT_PATH_MAX];
    if (find_sound(run, path) != RL_OK || path[0] == '\0') {
        snprintf(path, sizeof(path), "none");
    }
    return rl_fail(
        RL_NONFINITE,
        "step %" PRIu64 ": numbers that are not finite (%s) again after a rollback; the run stops "
        "without another checkpoint. Newest checkpoint that is known to be sound: %s. Lower "
        "optimizer.learning_rate, look at %s/dumps",
        run->step + 1, guard_faults_text(report->faults, faults, sizeof(faults)), path, run->dir);
}

rl_status train_guard_act(struct train_run *run, const struct admission_batch *batch,
                          struct learner_report *report)
{
    if (report->skipped > 0 || report->action != GUARD_GO_ON) {
        dump(run, batch);
    }
    if (report->action == GUARD_ROLL_BACK) {
        run->totals.rollbacks++;
        return roll_back(run, report);
    }
    return report->action == GUARD_STOP ? stop(run, report) : RL_OK;
}

rl_status train_guard_alarms(struct train_run *run)
{
    double mismatch = 0;
    (void)alarms_look(&run->totals.alarms, run->metrics, run->step);
    if (run->config->alarms.on_mismatch == CONFIG_MISMATCH_STOP &&
        rl_metrics_get(run->metrics, RL_METRIC_LOGPROB_MISMATCH, &mismatch) && mismatch > 0) {
        return rl_fail(RL_NONFINITE,
                       "step %" PRIu64 ": a log-prob of sampler and learner differs by %g nats "
                       "under the same weights (alarms.on_mismatch: stop)",
                       run->step, mismatch);
    }
    return RL_OK;
}
