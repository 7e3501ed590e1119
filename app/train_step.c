/* See train_run.h: one step with all that follows from it, and the end of a run. */
#include "app/train_deltas.h"
#include "app/train_events.h"
#include "app/train_follow.h"
#include "app/train_guard.h"
#include "app/train_run.h"
#include "app/train_summary.h"

#include "core/clock.h"
#include "core/log.h"
#include "trainer/step_metrics.h"
#include "transport/segment_file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A segment is written when it holds so many tokens, and at every checkpoint. */
static const uint64_t segment_tokens = 1 << 20;

/* --- rollout segments
 * ----------------------------------------------------------------------------------- */

static rl_status flush_segment(struct train_run *run)
{
    char path[CHECKPOINT_PATH_MAX];
    struct segment_info info = {.first_step = run->unsaved_first_step,
                                .last_step = run->step,
                                .run = run->config->run.name};
    if (run->unsaved_count == 0) {
        return RL_OK;
    }
    uint64_t next = 0;
    RL_TRY(segment_file_next(run->dir, &next)); /* makes the folder */
    RL_TRY(segment_file_path(run->dir, run->segment, path, sizeof(path)));
    RL_TRY(segment_file_write(path, &info, (const struct trajectory_group *const *)run->unsaved,
                              run->unsaved_count));
    for (size_t i = 0; i < run->unsaved_count; i++) {
        trajectory_group_destroy(run->unsaved[i]);
    }
    run->unsaved_count = 0;
    run->unsaved_tokens = 0;
    run->segment++;
    return RL_OK;
}

/* Keep the batch's groups for the next segment; takes them out of the batch. */
static rl_status keep_groups(struct train_run *run, struct admission_batch *batch)
{
    size_t needed = run->unsaved_count + batch->count;
    if (needed > run->unsaved_capacity) {
        struct trajectory_group **grown = realloc(run->unsaved, 2 * needed * sizeof(*grown));
        if (grown == NULL) {
            return rl_fail(RL_NO_MEMORY, "rollout segment: out of memory");
        }
        run->unsaved = grown;
        run->unsaved_capacity = 2 * needed;
    }
    if (run->unsaved_count == 0) {
        run->unsaved_first_step = run->step;
    }
    for (uint32_t i = 0; i < batch->count; i++) {
        const struct trajectory_group *group = batch->groups[i];
        for (uint32_t s = 0; s < group->sample_count; s++) {
            run->unsaved_tokens += group->samples[s].completion_count;
        }
        run->unsaved[run->unsaved_count++] = batch->groups[i];
    }
    batch->count = 0;
    return run->unsaved_tokens >= segment_tokens ? flush_segment(run) : RL_OK;
}

/* --- figures
 * --------------------------------------------------------------------------------------------- */

static double completion_tokens(const struct admission_batch *batch)
{
    double tokens = 0;
    for (uint32_t g = 0; g < batch->count; g++) {
        for (uint32_t s = 0; s < batch->groups[g]->sample_count; s++) {
            tokens += batch->groups[g]->samples[s].completion_count;
        }
    }
    return tokens;
}

/* Where this rank's time of the step went. The checkpoint is the one after the step before. */
static void learner_times(struct train_run *run, const struct learner_report *report,
                          const struct train_feed *feed, double step_s,
                          double times[RL_LEARNER_TIMES])
{
    memset(times, 0, RL_LEARNER_TIMES * sizeof(*times));
    times[RL_LEARNER_TIME_WAIT_FOR_BATCH] = feed->wait_s;
    times[RL_LEARNER_TIME_WEIGHT_SLOT] = report->slot_wait_s;
    times[RL_LEARNER_TIME_PREPARE] = report->prepare_s;
    times[RL_LEARNER_TIME_FORWARD_BACKWARD] = report->forward_backward_s;
    times[RL_LEARNER_TIME_REDUCE] = report->reduce_s;
    times[RL_LEARNER_TIME_UPDATE] = fmax(0, report->update_s - report->slot_wait_s);
    times[RL_LEARNER_TIME_PUBLISH] = report->publish_s;
    times[RL_LEARNER_TIME_CHECKPOINT] = run->checkpoint_s;
    times[RL_LEARNER_TIME_OTHER] = fmax(0, step_s - rl_times_sum(times, RL_LEARNER_TIMES));
    run->checkpoint_s = 0;
}

static void draft_metrics(struct train_run *run, const struct rl_pass_times *passes)
{
    double guessed = (double)passes->guessed_tokens;
    rl_metrics_add(run->metrics, RL_METRIC_ROLLOUT_DRAFTED, guessed);
    if (guessed > 0) {
        rl_metrics_add(run->metrics, RL_METRIC_ROLLOUT_DRAFT_ACCEPTANCE,
                       (double)passes->right_guesses / guessed);
    }
}

/* Quantiles over the run so far: a step has too few switches for any of its own. */
static void pass_metrics(struct train_run *run, const struct train_feed *feed)
{
    struct rl_pass_times *all = &run->totals.passes;
    rl_pass_times_add(all, &feed->passes, NULL);
    double p50 = rl_histogram_quantile_us(all->pass_us, 0.5);
    if (p50 > 0) {
        rl_metrics_add(run->metrics, RL_METRIC_ROLLOUT_PASS_P50, p50);
    }
    draft_metrics(run, &feed->passes);
    if (all->switch_gap_max_s > 0) {
        rl_metrics_add(run->metrics, RL_METRIC_ROLLOUT_SWITCH_GAP_P50,
                       rl_pass_times_gap_us(all, 0.5));
        rl_metrics_add(run->metrics, RL_METRIC_ROLLOUT_SWITCH_GAP_P99,
                       rl_pass_times_gap_us(all, 0.99));
        rl_metrics_add(run->metrics, RL_METRIC_ROLLOUT_SWITCH_GAP_MAX, all->switch_gap_max_s * 1e6);
    }
}

static void role_metrics(struct train_run *run, const struct train_feed *feed,
                         const double learner_s[RL_LEARNER_TIMES])
{
    double rollout_s = rl_times_sum(feed->rollout_s, RL_ROLLOUT_TIMES);
    double step_s = rl_times_sum(learner_s, RL_LEARNER_TIMES);
    for (int i = 0; i < RL_LEARNER_TIMES; i++) {
        rl_metrics_add(run->metrics, (enum rl_metric_id)(RL_METRIC_TIME_WAIT_FOR_BATCH + i),
                       learner_s[i]);
        run->totals.learner_s[i] += learner_s[i];
    }
    for (int i = 0; i < RL_ROLLOUT_TIMES; i++) {
        rl_metrics_add(run->metrics, (enum rl_metric_id)(RL_METRIC_TIME_ROLLOUT_PREFILL + i),
                       feed->rollout_s[i]);
        run->totals.rollout_s[i] += feed->rollout_s[i];
    }
    if (step_s > 0) {
        rl_metrics_add(run->metrics, RL_METRIC_LEARNER_IDLE, rl_learner_idle_s(learner_s) / step_s);
    }
    if (rollout_s > 0) {
        rl_metrics_add(run->metrics, RL_METRIC_ROLLOUT_IDLE,
                       rl_rollout_idle_s(feed->rollout_s) / rollout_s);
    }
    pass_metrics(run, feed);
    rl_metrics_add(run->metrics, RL_METRIC_ROLLOUT_CPU_TIME, feed->rollout_cpu_s);
    rl_metrics_add(run->metrics, RL_METRIC_ROLLOUT_RANKS, feed->rollout_ranks);
}

static void add_totals(struct train_run *run, const struct learner_report *report,
                       const struct train_feed *feed, double tokens, double step_s)
{
    struct train_totals *totals = &run->totals;
    const struct objective_stats *stats = &report->objective;
    totals->wall_s += step_s;
    totals->wait_s += feed->wait_s;
    totals->generation_s += feed->generation_s;
    totals->learner_busy_s +=
        report->prepare_s + report->forward_backward_s + report->reduce_s + report->update_s;
    totals->staleness_sum += stats->sum.staleness;
    totals->staleness_tokens += stats->sum.staleness_tokens;
    totals->staleness_max = fmax(totals->staleness_max, stats->max.staleness_max);
    for (int i = 0; i < OBJECTIVE_STALENESS_BUCKETS; i++) {
        totals->staleness_histogram[i] += objective_stats_staleness(stats)[i];
    }
    totals->mismatch_tokens += stats->sum.mismatch_tokens;
    if (stats->sum.mismatch_tokens > 0) {
        totals->mismatch_max = fmax(totals->mismatch_max, stats->max.mismatch_max);
    }
    totals->completion_tokens += tokens;
    totals->learner_tokens += (double)report->tokens;
    totals->skipped_updates += (double)report->skipped;
    totals->outlier_updates += (double)report->outliers;
    totals->dead_workers += (double)feed->dead_workers;
    weight_sender_counters_add(&totals->weights, &feed->weights);
}

/* --- async.max_staleness auto
 * ---------------------------------------------------------------------------------------- */

static bool controls_staleness(const struct train_run *run)
{
    return run->config->async.enabled && run->config->async.max_staleness == CONFIG_AUTO;
}

static rl_status apply_staleness(struct train_run *run)
{
    admission_set_max_staleness(run->admission, run->totals.staleness.limit);
    return dispatcher_set_max_staleness(run->dispatcher, run->totals.staleness.eta);
}

rl_status train_run_open_staleness(struct train_run *run)
{
    struct staleness_control *control = &run->totals.staleness;
    if (!controls_staleness(run)) {
        return RL_OK;
    }
    if (control->raise_patience == 0) { /* never started */
        staleness_control_init(control, rl_config_first_staleness(run->config));
    }
    return apply_staleness(run);
}

/* After a step: which bound holds from now on, and what it was for the metrics. */
static rl_status control_staleness(struct train_run *run, const struct train_feed *feed,
                                   double step_s)
{
    struct staleness_control *control = &run->totals.staleness;
    if (!controls_staleness(run)) {
        rl_metrics_add(run->metrics, RL_METRIC_MAX_STALENESS,
                       rl_config_first_staleness(run->config));
        return RL_OK;
    }
    uint32_t before = control->eta;
    uint32_t batches = feed->queue_depth / (uint32_t)run->config->rollout.prompts_per_step;
    enum staleness_move move = staleness_control_step(control, step_s, feed->wait_s, batches);
    rl_metrics_add(run->metrics, RL_METRIC_MAX_STALENESS, control->eta);
    if (move != STALENESS_KEPT) {
        rl_log(RL_LOG_INFO, "async.max_staleness auto: %u -> %u, %s (%.1f %% of the last %d steps)",
               before, control->eta, staleness_control_reason(move), 100 * control->idle,
               STALENESS_CONTROL_WINDOW);
    }
    train_run_lock(run);
    rl_status status = apply_staleness(run);
    train_run_unlock(run);
    return status;
}

static void step_metrics(struct train_run *run, const struct admission_batch *batch,
                         const struct learner_report *report, const struct train_feed *feed,
                         double step_s)
{
    const char *names[RL_REWARD_PARTS_MAX];
    uint32_t name_count = reward_set_count(run->rewards);
    struct dispatcher_counters counters;
    double times[RL_LEARNER_TIMES];
    double tokens = completion_tokens(batch);
    for (uint32_t i = 0; i < name_count && i < RL_REWARD_PARTS_MAX; i++) {
        names[i] = reward_set_name(run->rewards, i);
    }
    train_run_lock(run);
    dispatcher_count(run->dispatcher, &counters);
    train_run_unlock(run);
    step_metrics_groups(run->metrics, batch->groups, batch->count, names, name_count);
    step_metrics_report(run->metrics, run->config, report);
    step_metrics_teacher(run->metrics, run->config, batch->groups, batch->count, report);
    step_metrics_weights(run->metrics, &feed->weights, run->session->layout->image_bytes);
    step_metrics_tickets(run->metrics, &counters);
    rl_metrics_set_waits(run->metrics, run->waits);
    rl_metrics_add(run->metrics, RL_METRIC_STALENESS_DROPPED, (double)batch->counts.stale);
    if (run->config->loss.dynamic_sampling) {
        rl_metrics_add(run->metrics, RL_METRIC_FILTERED_SOLVED,
                       (double)batch->counts.filtered_solved);
        rl_metrics_add(run->metrics, RL_METRIC_FILTERED_UNSOLVED,
                       (double)batch->counts.filtered_unsolved);
    }
    rl_metrics_add(run->metrics, RL_METRIC_STEP_TIME, step_s);
    learner_times(run, report, feed, step_s, times);
    role_metrics(run, feed, times);
    rl_metrics_add(run->metrics, RL_METRIC_TIME_GENERATION, feed->generation_s);
    rl_metrics_add(run->metrics, RL_METRIC_QUEUE_DEPTH, feed->queue_depth);
    rl_metrics_add(run->metrics, RL_METRIC_REWARD_TIMEOUTS, (double)feed->reward_timeouts);
    rl_metrics_add(run->metrics, RL_METRIC_ROLLBACKS, report->action == GUARD_ROLL_BACK);
    rl_metrics_add(run->metrics, RL_METRIC_DEAD_WORKERS, (double)feed->dead_workers);
    rl_metrics_add(run->metrics, RL_METRIC_CPU_TIME, rl_clock_process_cpu_s() - run->cpu_started_s);
    rl_metrics_add(run->metrics, RL_METRIC_EPOCH,
                   (double)counters.created / (double)prompts_count(run->prompts));
    if (step_s > 0) {
        rl_metrics_add(run->metrics, RL_METRIC_ROLLOUT_TOKENS_PER_SECOND, tokens / step_s);
    }
    add_totals(run, report, feed, tokens, step_s);
}

static void print_line(const struct train_run *run)
{
    struct progress_step line;
    char text[PROGRESS_LINE_BYTES];
    double elapsed = rl_clock_now_s(NULL) - run->started_s;
    if (run->quiet) {
        return;
    }
    step_metrics_progress(run->metrics, (int64_t)run->step, &line);
    line.steps = run->config->run.steps;
    line.eta_s = progress_eta((double)run->step, (double)line.steps, elapsed);
    if (run->step == 1 || run->step % 25 == 0) {
        progress_head_format(text);
        printf("%s\n", text);
    }
    progress_step_format(&line, text);
    printf("%s\n", text);
    fflush(stdout);
}

/* The batch was trained on: its tickets are, and the version moves on. All in one go: a group with
 * tokens of a version that the dispatcher does not know yet would be thrown away, and a ticket
 * issued before its version is published could be served with the one before. */
static rl_status settle_tickets(struct train_run *run, const struct admission_batch *batch,
                                const struct learner_report *report)
{
    uint64_t master_hash = learner_master_hash(run->learner);
    train_run_lock(run);
    rl_status status = train_events_step(run, batch, report, master_hash);
    if (status == RL_OK) {
        status = admission_trained(run->admission, batch);
    }
    if (status == RL_OK) {
        status = dispatcher_set_version(run->dispatcher, report->version);
    }
    if (status == RL_OK) {
        status = learner_publish(run->learner, report);
    }
    run->step++;
    train_run_keep_window(run);
    train_run_unlock(run);
    return status;
}

rl_status train_run_step(struct train_run *run, struct admission_batch *batch,
                         const struct train_feed *feed)
{
    struct learner_report report;
    RL_TRY(train_follow_batch(run->collective, batch->groups, batch->count, run->step + 1));
    RL_TRY(learner_step(run->learner, batch->groups, batch->count, run->step + 1, &report));
    RL_TRY(train_guard_act(run, batch, &report));
    double now = rl_clock_now_s(NULL);
    RL_TRY(settle_tickets(run, batch, &report));
    RL_TRY(train_deltas_step(run));
    step_metrics(run, batch, &report, feed, now - run->step_started_s);
    RL_TRY(control_staleness(run, feed, now - run->step_started_s));
    run->step_started_s = now;
    print_line(run);
    RL_TRY(train_guard_alarms(run));
    RL_TRY(rl_metrics_write(run->metrics, (int64_t)run->step));
    return run->config->rollout.save ? keep_groups(run, batch) : RL_OK;
}

void train_run_note_probe(struct train_run *run, double largest, uint64_t tokens)
{
    run->totals.mismatch_max = fmax(run->totals.mismatch_max, largest);
    run->totals.mismatch_tokens += (double)tokens;
}

/* --- checkpoints
 * ------------------------------------------------------------------------------------------ */

bool train_run_checkpoint_due(const struct train_run *run)
{
    int64_t every = run->config->checkpoint.every;
    return run->checkpoint_now || train_run_done(run) ||
           (every > 0 && run->step % (uint64_t)every == 0);
}

static rl_status copy_groups(struct trajectory_group *const *groups, uint32_t count,
                             struct trajectory_group ***out, size_t *out_count)
{
    *out = calloc((size_t)count + 1, sizeof(**out));
    if (*out == NULL) {
        return rl_fail(RL_NO_MEMORY, "checkpoint: out of memory");
    }
    for (uint32_t i = 0; i < count; i++) {
        RL_TRY(trajectory_group_copy(groups[i], &(*out)[i]));
        (*out_count)++;
    }
    return RL_OK;
}

/* Groups that wait, and what is finished of those to come. */
static rl_status copy_all_groups(struct train_run *run, struct checkpoint_state *state)
{
    uint32_t count = 0;
    struct trajectory_group *const *waiting = admission_waiting(run->admission, &count);
    RL_TRY(copy_groups(waiting, count, &state->pending, &state->pending_count));
    partial_store_prune(&run->partials, run->admission);
    return copy_groups(run->partials.groups, run->partials.count, &state->partial,
                       &state->partial_count);
}

static rl_status copy_texts(struct train_run *run, struct checkpoint_state *state)
{
    size_t bytes = 0;
    state->learner = malloc(sizeof(run->totals));
    FILE *memory = open_memstream(&state->config_text, &bytes);
    if (state->learner == NULL || memory == NULL) {
        return rl_fail(RL_NO_MEMORY, "checkpoint: out of memory");
    }
    run->totals.guard = *learner_guard(run->learner);
    memcpy(state->learner, &run->totals, sizeof(run->totals));
    state->learner_bytes = sizeof(run->totals);
    rl_status status = rl_config_dump(run->config, memory);
    if (fclose(memory) != 0 && status == RL_OK) {
        status = rl_fail(RL_NO_MEMORY, "checkpoint: out of memory");
    }
    return status;
}

rl_status train_run_snapshot(struct train_run *run, struct train_snapshot *snapshot)
{
    struct checkpoint_state *state = &snapshot->state;
    uint8_t *blob = NULL;
    rl_status status = RL_OK;
    *state = (struct checkpoint_state){.step = run->step,
                                       .version = learner_version(run->learner),
                                       .updates = (uint64_t)learner_optimizer(run->learner)->step,
                                       .seed = (uint64_t)run->config->run.seed,
                                       .tokens_trained = (uint64_t)run->totals.learner_tokens,
                                       .tokens_generated = (uint64_t)run->totals.completion_tokens,
                                       .elapsed_s = run->totals.wall_s,
                                       .cpu_s = rl_clock_process_cpu_s() - run->cpu_started_s};
    RL_TRY_GOTO(dispatcher_save(run->dispatcher, &blob, &state->dispatcher_bytes), status, fail);
    state->dispatcher = blob;
    RL_TRY_GOTO(copy_all_groups(run, state), status, fail);
    RL_TRY_GOTO(copy_texts(run, state), status, fail);
    RL_TRY_GOTO(train_events_checkpoint(run), status, fail);
    RL_TRY_GOTO(train_deltas_checkpoint(run), status, fail);
    return RL_OK;
fail:
    checkpoint_state_fini(state);
    return status;
}

/* Moments that are shared out are fetched meanwhile: no checkpoint can be written without all
 * learners. */
static rl_status submit(struct train_run *run, const struct checkpoint_state *state)
{
    const struct optimizer_state *optimizer = learner_optimizer(run->learner);
    struct optimizer *shared = learner_shared_optimizer(run->learner);
    RL_TRY(learner_pull(run->learner));
    struct checkpoint_slabs slabs = {.master = learner_master(run->learner),
                                     .teacher = learner_teacher_average(run->learner),
                                     .shared = shared};
    if (shared == NULL) {
        slabs.adam_m = optimizer->m;
        slabs.adam_v = optimizer->v;
        return checkpoint_writer_submit(run->writer, state, &slabs);
    }
    RL_TRY(train_follow_save(run->collective));
    rl_status status = checkpoint_writer_submit(run->writer, state, &slabs);
    rl_status end = optimizer_fetch_end(shared);
    return status != RL_OK ? status : end;
}

rl_status train_run_save(struct train_run *run, struct train_snapshot *snapshot, bool wait)
{
    double start = rl_clock_now_s(NULL);
    rl_status status = flush_segment(run);
    run->checkpoint_now = false;
    snapshot->state.segment = run->segment;
    if (status == RL_OK && train_run_fixed_lag(run)) {
        struct weight_window window = train_run_window(run);
        status = weight_window_save(&window, &snapshot->state.images, &snapshot->state.image_count);
    }
    if (status == RL_OK) {
        status = submit(run, &snapshot->state);
        learner_forget(run->learner);
    }
    if (status == RL_OK && wait) {
        status = checkpoint_writer_wait(run->writer, 0);
    }
    checkpoint_state_fini(&snapshot->state);
    run->checkpoint_s += rl_clock_now_s(NULL) - start;
    return status;
}

/* --- the end
 * ------------------------------------------------------------------------------------------------
 */

rl_status train_run_finish(struct train_run *run, bool completed)
{
    RL_TRY(flush_segment(run));
    train_run_lock(run);
    if (completed) {
        (void)dispatcher_drop_all(run->dispatcher);
    }
    rl_status status = dispatcher_check(run->dispatcher);
    struct dispatcher_counters tickets;
    dispatcher_count(run->dispatcher, &tickets);
    train_run_unlock(run);
    RL_TRY(status);
    RL_TRY(train_summary_write(run, completed, &tickets));
    RL_TRY(train_events_end(run));
    RL_TRY(checkpoint_writer_wait(run->writer, 0));
    rl_log(RL_LOG_INFO, "%s: %llu of %lld steps done; newest checkpoint in %s/checkpoints",
           run->config->run.name, (unsigned long long)run->step, (long long)run->config->run.steps,
           run->dir);
    return RL_OK;
}
