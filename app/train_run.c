/* See train_run.h: set-up, resume and tear-down. The step itself is in train_step.c. */
#include "app/train_run.h"
#include "app/run_folder.h"
#include "app/teacher_prompts.h"
#include "app/train.h"
#include "app/train_deltas.h"
#include "app/train_events.h"
#include "app/train_follow.h"

#include "core/clock.h"
#include "core/log.h"
#include "kernels/device.h"
#include "transport/segment_file.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WINDOW_READER = 0 }; /* the learner's own rank: it decodes nothing, so its pins are free */

/* --- parts
 * -----------------------------------------------------------------------------------------------
 */

/* Epochs of refills: beyond those of ordinary tickets, before the probe's. */
enum { REFILL_EPOCH = 0x200000 };
static const uint64_t refill_seed = UINT64_C(0x7265666c6c);

/* A refill's prompt comes from an order of its own, at a place that only its step and index
 * determine. */
static rl_status next_refill(struct train_run *run, uint64_t number, uint64_t *prompt_id,
                             uint32_t *epoch)
{
    uint64_t rounds = (uint64_t)run->config->loss.dynamic_sampling_rounds;
    uint64_t stride = rounds * (uint64_t)run->config->rollout.prompts_per_step;
    uint64_t step = (number & (DISPATCHER_REFILL - 1)) >> DISPATCHER_REFILL_BITS;
    uint64_t index = number & ((UINT64_C(1) << DISPATCHER_REFILL_BITS) - 1);
    RL_TRY(prompt_order_at(run->refill_order, step * stride + index, prompt_id, epoch));
    if (*epoch >= TRAIN_PROBE_EPOCH - REFILL_EPOCH) {
        return rl_fail(RL_INVALID, "refill %llu of step %llu: epoch %u of the refills",
                       (unsigned long long)index, (unsigned long long)step, *epoch);
    }
    *epoch += REFILL_EPOCH;
    return RL_OK;
}

static rl_status next_prompt(void *arg, uint64_t number, uint64_t *prompt_id, uint32_t *epoch)
{
    struct train_run *run = arg;
    if ((number & DISPATCHER_REFILL) != 0) {
        return next_refill(run, number, prompt_id, epoch);
    }
    RL_TRY(prompt_order_at(run->order, number, prompt_id, epoch));
    return *epoch < REFILL_EPOCH ? RL_OK
                                 : rl_fail(RL_INVALID, "ticket %llu: epoch %u, at most %d",
                                           (unsigned long long)number, *epoch, REFILL_EPOCH - 1);
}

static rl_status open_tickets(struct train_run *run)
{
    const struct rl_config *config = run->config;
    struct admission_options admission;
    struct dispatcher_options dispatcher = {
        .prompts_per_step = (uint32_t)config->rollout.prompts_per_step,
        .max_staleness = rl_config_first_staleness(config),
        .order =
            config->async.enabled ? (enum dispatcher_order)config->async.order : DISPATCHER_READY,
        .next = next_prompt};
    RL_TRY(prompt_order_create(prompts_count(run->prompts), (uint64_t)config->run.seed,
                               config->data.shuffle, &run->order));
    RL_TRY(prompt_order_create(prompts_count(run->prompts),
                               (uint64_t)config->run.seed ^ refill_seed, config->data.shuffle,
                               &run->refill_order));
    dispatcher.next_arg = run;
    RL_TRY(dispatcher_create(&dispatcher, &run->dispatcher));
    admission_options_from_config(config, &admission);
    return admission_create(&admission, run->dispatcher, &run->admission);
}

static rl_status open_reference(struct train_run *run)
{
    const char *path = run->config->model.reference;
    if (!objective_needs_reference(run->config)) {
        return RL_OK;
    }
    return session_load_image(run->session, path[0] != '\0' ? path : run->config->model.path,
                              &run->reference_image);
}

static rl_status open_learner(struct train_run *run, const struct train_run_args *args,
                              float **master)
{
    struct weight_arena_options arena = {
        .shared = args->shared_arena,
        .slots = args->shared_arena ? weight_window_slots(run->config) : 2,
        .slot_bytes = run->session->layout->image_bytes,
        .readers = args->readers};
    struct learner_args learner = {.config = run->config,
                                   .layout = run->session->layout,
                                   .kernels = run->session->kernels,
                                   .pool = run->session->pool,
                                   .collective = run->collective,
                                   .waits = run->waits,
                                   .reference_image = run->reference_image,
                                   .teacher = teacher_prompts_get(run->teacher)};
    size_t mask_bytes =
        arena.slot_bytes / model_image_element_bytes(run->session->layout) / CHAR_BIT;
    RL_TRY(weight_arena_create(&arena, &run->arena));
    RL_TRY(weight_history_create(mask_bytes, args->history, &run->history));
    learner.arena = run->arena;
    learner.history = run->history;
    learner.master = *master;
    *master = NULL; /* the learner takes it, whatever happens */
    return learner_create(&learner, &run->learner);
}

static void log_memory(const struct train_run *run)
{
    const double gib = 1 << 30;
    int learners = run->collective->size;
    struct learner_bytes bytes = learner_bytes(run->session->layout, run->config, learners);
    rl_log(
        RL_LOG_INFO,
        "memory of %s%d learner%s: %.3f GiB beside activations and weight slots, moments %.3f GiB",
        learners > 1 ? "each of " : "", learners, learners > 1 ? "s" : "", (double)bytes.all / gib,
        (double)bytes.moments / gib);
}

/* --- resume
 * ------------------------------------------------------------------------------------------------
 */

static rl_status restore_groups(struct train_run *run, struct checkpoint_state *state)
{
    uint64_t live = 0;
    for (size_t i = 0; i < state->pending_count; i++) {
        RL_TRY(admission_restore(run->admission, state->pending[i]));
        state->pending[i] = NULL;
    }
    /* Groups scored but not saved would be lost: their tickets are issued again. */
    const struct dispatcher_ticket *tickets = dispatcher_tickets(run->dispatcher, &live);
    uint32_t waiting = 0;
    struct trajectory_group *const *groups = admission_waiting(run->admission, &waiting);
    for (uint64_t i = 0; i < live; i++) {
        bool held = tickets[i].state == DISPATCHER_PENDING;
        for (uint32_t g = 0; g < waiting && !held; g++) {
            held = groups[g]->ticket == tickets[i].number;
        }
        if (!held) {
            RL_TRY(dispatcher_requeue(run->dispatcher, tickets[i].number));
        }
    }
    return RL_OK;
}

rl_status train_totals_read(const struct checkpoint_state *state, struct train_totals *totals)
{
    if (state->learner_bytes != sizeof(*totals)) {
        return rl_fail(RL_CORRUPT, "checkpoint: %zu bytes of totals, expected %zu",
                       state->learner_bytes, sizeof(*totals));
    }
    memcpy(totals, state->learner, sizeof(*totals));
    if (totals->format != TRAIN_TOTALS_FORMAT) {
        return rl_fail(RL_CORRUPT, "checkpoint: totals of format %llu, expected %d",
                       (unsigned long long)totals->format, TRAIN_TOTALS_FORMAT);
    }
    return RL_OK;
}

/* Finished samples of groups that are generated again. */
static rl_status restore_partials(struct train_run *run, struct checkpoint_state *state)
{
    uint64_t samples = 0;
    for (size_t i = 0; i < state->partial_count; i++) {
        struct trajectory_group *group = state->partial[i];
        state->partial[i] = NULL;
        RL_TRY(partial_store_put(&run->partials, run->admission, group));
    }
    for (uint32_t i = 0; i < run->partials.count; i++) {
        for (uint32_t s = 0; s < run->partials.groups[i]->sample_count; s++) {
            samples += run->partials.groups[i]->samples[s].completion_count > 0;
        }
    }
    if (samples > 0) {
        rl_log(RL_LOG_INFO, "%llu finished samples of %u unfinished groups are kept",
               (unsigned long long)samples, run->partials.count);
    }
    return RL_OK;
}

static rl_status restore_state(struct train_run *run, struct checkpoint_state *state)
{
    RL_TRY(train_totals_read(state, &run->totals));
    RL_TRY(learner_restore_guard(run->learner, &run->totals.guard));
    if (run->totals.prompts_hash != prompts_hash(run->prompts)) {
        return rl_fail(RL_INVALID, "data.train or its templates have changed since the checkpoint: "
                                   "the run cannot go on as the same run");
    }
    if (state->seed != (uint64_t)run->config->run.seed) {
        return rl_fail(RL_INVALID, "run.seed is %lld, the checkpoint was made with %llu",
                       (long long)run->config->run.seed, (unsigned long long)state->seed);
    }
    run->step = state->step;
    run->segment = state->segment;
    RL_TRY(dispatcher_load(run->dispatcher, state->dispatcher, state->dispatcher_bytes));
    RL_TRY(restore_groups(run, state));
    return restore_partials(run, state);
}

/* Segments written after the checkpoint describe steps that will be made again. */
static void remove_later_segments(const struct train_run *run)
{
    char path[CHECKPOINT_PATH_MAX];
    for (uint64_t number = run->segment;; number++) {
        if (segment_file_path(run->dir, number, path, sizeof(path)) != RL_OK ||
            access(path, F_OK) != 0) {
            return;
        }
        if (unlink(path) == 0) {
            rl_log(RL_LOG_INFO, "%s removed: its steps come after the checkpoint", path);
        }
    }
}

/* Load the checkpoint into the new learner. Every learner rank reads the same files. */
/* fixed_lag: the versions that tickets are pinned to are there again. */
static rl_status restore_window(struct train_run *run, const struct checkpoint_state *state)
{
    struct weight_window window = train_run_window(run);
    if (!train_run_fixed_lag(run)) {
        return RL_OK;
    }
    if (state->version != state->step) {
        return rl_fail(RL_CORRUPT,
                       "checkpoint: version %llu after step %llu, in fixed_lag the same",
                       (unsigned long long)state->version, (unsigned long long)state->step);
    }
    weight_arena_keep_from(run->arena, window.oldest);
    return weight_window_restore(&window, learner_master(run->learner), state->images,
                                 state->image_count);
}

static rl_status resume_from(struct train_run *run, const char *path)
{
    struct checkpoint_state state = {0};
    struct optimizer_state *optimizer = learner_optimizer(run->learner);
    struct checkpoint_moments moments = checkpoint_moments_of(optimizer);
    rl_status status =
        checkpoint_load(path, run->session->layout, learner_master(run->learner), &moments, &state);
    if (status == RL_OK) {
        status = checkpoint_load_teacher(path, run->session->layout,
                                         learner_teacher_average(run->learner));
    }
    if (status == RL_OK) {
        status = restore_state(run, &state);
    }
    if (status == RL_OK) {
        status = restore_window(run, &state);
    }
    if (status == RL_OK) {
        optimizer->step = (int64_t)state.updates;
        status = learner_publish_first(run->learner, (uint32_t)state.version);
    }
    if (status == RL_OK) {
        remove_later_segments(run);
        rl_log(RL_LOG_INFO, "resumed from %s: step %llu, version %llu", path,
               (unsigned long long)state.step, (unsigned long long)state.version);
    }
    checkpoint_state_fini(&state);
    return status;
}

static rl_status start_or_resume(struct train_run *run)
{
    char path[CHECKPOINT_PATH_MAX];
    RL_TRY(run_folder_checkpoint(run->config, run->dir, path));
    if (path[0] == '\0') {
        run->totals.prompts_hash = prompts_hash(run->prompts);
        train_run_keep_window(run);
        RL_TRY(train_follow_start(run->collective, ""));
        return learner_publish_first(run->learner, 0);
    }
    RL_TRY(train_follow_start(run->collective, path));
    return resume_from(run, path);
}

static rl_status open_metrics(struct train_run *run)
{
    char path[CHECKPOINT_PATH_MAX + 32];
    struct dispatcher_counters counters;
    dispatcher_count(run->dispatcher, &counters);
    snprintf(path, sizeof(path), "%s/metrics.jsonl", run->dir);
    RL_TRY(rl_metrics_open(run->metrics, path, run->step > 0 ? (int64_t)run->step : -1));
    rl_metrics_restore_counter(run->metrics, RL_METRIC_NUM_TOKENS, run->totals.learner_tokens);
    rl_metrics_restore_counter(run->metrics, RL_METRIC_SKIPPED_UPDATES,
                               run->totals.skipped_updates);
    rl_metrics_restore_counter(run->metrics, RL_METRIC_STALENESS_DROPPED,
                               (double)counters.dropped[DISPATCHER_STALE]);
    rl_metrics_restore_counter(run->metrics, RL_METRIC_OUTLIER_UPDATES,
                               run->totals.outlier_updates);
    rl_metrics_restore_counter(run->metrics, RL_METRIC_ROLLBACKS, run->totals.rollbacks);
    rl_metrics_restore_counter(run->metrics, RL_METRIC_DEAD_WORKERS, run->totals.dead_workers);
    rl_metrics_restore_counter(run->metrics, RL_METRIC_WEIGHTS_FULL_SENDS,
                               (double)run->totals.weights.full_sends);
    rl_metrics_restore_counter(run->metrics, RL_METRIC_WEIGHTS_REFUSED,
                               (double)run->totals.weights.refused);
    rl_metrics_restore_counter(run->metrics, RL_METRIC_UPDATES,
                               (double)learner_optimizer(run->learner)->step);
    return RL_OK;
}

static rl_status open_checkpoints(struct train_run *run)
{
    run->target = (struct checkpoint_target){.run_dir = run->dir,
                                             .layout = run->session->layout,
                                             .tokenizer = run->session->tokenizer,
                                             .keep_last = run->config->checkpoint.keep_last,
                                             .keep_every = run->config->checkpoint.keep_every};
    return checkpoint_writer_start(&run->target, checkpoint_writer_reserve(), &run->writer);
}

rl_status train_run_open(const struct train_run_args *args, struct train_run *run)
{
    float *master = NULL;
    *run = (struct train_run){.config = args->config,
                              .session = args->session,
                              .prompts = args->prompts,
                              .collective = args->collective,
                              .waits = args->waits,
                              .quiet = args->quiet,
                              .mutex = args->mutex,
                              .segment = 1,
                              .totals = {.format = TRAIN_TOTALS_FORMAT}};
    RL_TRY(run_folder_open(run->config, 0, run->dir));
    RL_TRY(reward_set_create(args->config, &run->rewards));
    RL_TRY(open_tickets(run));
    RL_TRY(rl_metrics_create(&run->metrics));
    RL_TRY(open_reference(run));
    RL_TRY(teacher_prompts_create(run->session, run->prompts, &run->teacher));
    RL_TRY(session_load_master(args->session, args->config->model.path, &master));
    RL_TRY(open_learner(run, args, &master));
    log_memory(run);
    RL_TRY(start_or_resume(run));
    RL_TRY(train_run_open_staleness(run));
    RL_TRY(open_metrics(run));
    RL_TRY(run_folder_write_config(run->config, run->dir));
    RL_TRY(train_events_open(run));
    RL_TRY(train_deltas_open(run));
    RL_TRY(open_checkpoints(run));
    run->started_s = rl_clock_now_s(NULL);
    run->step_started_s = run->started_s;
    run->cpu_started_s = rl_clock_process_cpu_s();
    return RL_OK;
}

void train_run_close(struct train_run *run)
{
    checkpoint_writer_stop(run->writer);
    event_writer_close(run->events);
    train_deltas_close(run->deltas);
    for (size_t i = 0; i < run->unsaved_count; i++) {
        trajectory_group_destroy(run->unsaved[i]);
    }
    free(run->unsaved);
    rl_metrics_destroy(run->metrics);
    learner_destroy(run->learner);
    weight_arena_close(run->arena);
    weight_history_destroy(run->history);
    device_free(run->reference_image);
    teacher_prompts_destroy(run->teacher);
    partial_store_fini(&run->partials);
    admission_destroy(run->admission);
    dispatcher_destroy(run->dispatcher);
    prompt_order_destroy(run->refill_order);
    prompt_order_destroy(run->order);
    reward_set_destroy(run->rewards);
    rl_log_close_file();
    *run = (struct train_run){0};
}

void train_run_lock(struct train_run *run)
{
    if (run->mutex != NULL) {
        pthread_mutex_lock(run->mutex);
    }
}

void train_run_unlock(struct train_run *run)
{
    if (run->mutex != NULL) {
        pthread_mutex_unlock(run->mutex);
    }
}

bool train_run_fixed_lag(const struct train_run *run)
{
    return run->config->async.enabled && run->config->async.order == CONFIG_ORDER_FIXED_LAG;
}

struct weight_window train_run_window(const struct train_run *run)
{
    uint64_t lag = (uint64_t)run->config->async.max_staleness;
    return (struct weight_window){.session = run->session,
                                  .arena = run->arena,
                                  .reader = WINDOW_READER,
                                  .oldest = (uint32_t)(run->step > lag ? run->step - lag : 0),
                                  .newest = (uint32_t)run->step};
}

void train_run_keep_window(struct train_run *run)
{
    if (train_run_fixed_lag(run)) {
        weight_arena_keep_from(run->arena, train_run_window(run).oldest);
    }
}

bool train_run_done(const struct train_run *run)
{
    return run->step >= (uint64_t)run->config->run.steps;
}

bool train_run_wants_tickets(const struct train_run *run)
{
    struct dispatcher_counters counters;
    dispatcher_count(run->dispatcher, &counters);
    if (counters.live[DISPATCHER_PENDING] > 0) {
        return true;
    }
    uint64_t live = 0;
    for (int i = 0; i < DISPATCHER_STATE_COUNT; i++) {
        live += counters.live[i];
    }
    uint64_t steps_left = (uint64_t)run->config->run.steps - run->step;
    /* An admitted batch belongs to the step being made: it counts as one of those left. */
    return live < steps_left * (uint64_t)run->config->rollout.prompts_per_step;
}
