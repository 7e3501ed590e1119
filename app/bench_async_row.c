/* One row of `foresight bench async`: sets both roles up, plays the learning one, and makes figures
 * of what they measured. */
#include "app/bench_async.h"

#include "core/clock.h"
#include "core/log.h"
#include "kernels/device.h"
#include "trainer/dispatcher.h"
#include "transport/collective.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BENCH_ARENA_SLOTS = 3, BENCH_HISTORY = 8, BENCH_SAMPLING_ROUNDS = 1000 };

/* --- set-up of a row ---------------------------------------------------------------------------
 */

static rl_status next_prompt(void *arg, uint64_t number, uint64_t *prompt_id, uint32_t *epoch)
{
    (void)arg;
    *prompt_id = number;
    *epoch = 0;
    return RL_OK;
}

static uint32_t eta_of(const struct bench_row *r)
{
    return r->rung->ahead ? (uint32_t)r->workload->shape.max_staleness : 0;
}

static rl_status open_meeting(struct bench_row *r)
{
    const struct simulate_options *shape = &r->workload->shape;
    enum dispatcher_order order = r->rung->fixed_lag ? DISPATCHER_FIXED_LAG : DISPATCHER_READY;
    struct dispatcher_options tickets = {.prompts_per_step = (uint32_t)shape->prompts_per_step,
                                         .max_staleness = eta_of(r),
                                         .order = order,
                                         .next = next_prompt};
    struct admission_options groups = {.prompts_per_step = (uint32_t)shape->prompts_per_step,
                                       .samples_per_prompt = (uint32_t)shape->samples_per_prompt,
                                       .max_staleness = BENCH_NEVER_STALE,
                                       .order = order,
                                       .dynamic_sampling = shape->active_sampling > 0,
                                       .dynamic_sampling_rounds = BENCH_SAMPLING_ROUNDS};
    struct weight_arena_options slots = {.slots = BENCH_ARENA_SLOTS +
                                                  (r->rung->fixed_lag ? (int)eta_of(r) : 0),
                                         .slot_bytes = r->workload->layout->image_bytes,
                                         .readers = BENCH_READERS};
    struct bench_meeting *m = &r->meeting;
    if (pthread_mutex_init(&m->mutex, NULL) != 0 || pthread_cond_init(&m->changed, NULL) != 0) {
        return rl_fail(RL_INTERNAL, "bench: no mutex");
    }
    RL_TRY(dispatcher_create(&tickets, &m->dispatcher));
    RL_TRY(admission_create(&groups, m->dispatcher, &m->admission));
    return weight_arena_create(&slots, &m->arena);
}

static rl_status open_learner(struct bench_row *r)
{
    const struct bench_workload *w = r->workload;
    size_t bytes = (size_t)w->layout->master_count * sizeof(float);
    size_t elements = w->layout->image_bytes / model_image_element_bytes(w->layout);
    void *master = NULL;
    RL_TRY(weight_history_create(elements / CHAR_BIT, BENCH_HISTORY, &r->history));
    RL_TRY(collective_local_create(&r->alone));
    RL_TRY(rl_waits_create(NULL, &r->waits));
    RL_TRY(device_alloc(bytes, "weights", &master));
    memcpy(master, w->master, bytes);
    struct learner_args args = {.config = &w->config,
                                .layout = w->layout,
                                .kernels = w->kernels,
                                .collective = r->alone,
                                .arena = r->meeting.arena,
                                .history = r->history,
                                .waits = r->waits,
                                .master = master};
    RL_TRY(learner_create(&args, &r->learner));
    return learner_publish_first(r->learner, 0);
}

/* Between nodes the engine has weights once they have come. */
static rl_status open_path(struct bench_row *r)
{
    const struct model_layout *layout = r->workload->layout;
    struct bench_path_options options = {.arena = r->meeting.arena,
                                         .reader = BENCH_SENDER_READER,
                                         .history = r->history,
                                         .image_bytes = layout->image_bytes,
                                         .element_bytes =
                                             (uint32_t)model_image_element_bytes(layout),
                                         .source = r->engine.source};
    return r->rung->remote ? bench_path_open(&options, &r->path) : RL_OK;
}

/* fixed_lag: versions that tickets to come are pinned to stay. */
static void keep_window(struct bench_row *r, uint32_t version)
{
    if (r->rung->fixed_lag) {
        weight_arena_keep_from(r->meeting.arena, version > eta_of(r) ? version - eta_of(r) : 0);
    }
}

static void close_row(struct bench_row *r)
{
    admission_batch_fini(&r->batch);
    bench_engine_fini(&r->engine);
    bench_path_close(r->path);
    learner_destroy(r->learner);
    weight_history_destroy(r->history);
    admission_destroy(r->meeting.admission);
    dispatcher_destroy(r->meeting.dispatcher);
    weight_arena_close(r->meeting.arena);
    rl_waits_destroy(r->waits);
    collective_destroy(r->alone);
    pthread_cond_destroy(&r->meeting.changed);
    pthread_mutex_destroy(&r->meeting.mutex);
}

/* --- the learning role -------------------------------------------------------------------------
 */

double bench_now_s(const struct bench_workload *workload)
{
    return workload->cpu_clock ? rl_clock_thread_cpu_s() : rl_clock_now_s(NULL);
}

rl_status bench_row_take(struct bench_row *row)
{
    return admission_take(row->meeting.admission, &row->batch);
}

/* Sleeps until there is a batch. */
static rl_status await_batch(struct bench_row *r)
{
    struct bench_meeting *m = &r->meeting;
    pthread_mutex_lock(&m->mutex);
    rl_status status = m->status != RL_OK ? m->status : bench_row_take(r);
    while (status == RL_AGAIN) {
        pthread_cond_wait(&m->changed, &m->mutex);
        status = m->status != RL_OK ? m->status : bench_row_take(r);
    }
    pthread_mutex_unlock(&m->mutex);
    return status;
}

static void note_ages(struct bench_row *r)
{
    uint32_t now = learner_version(r->learner);
    for (uint32_t i = 0; i < r->batch.count; i++) {
        for (uint32_t j = 0; j < r->batch.groups[i]->sample_count; j++) {
            const struct trajectory *sample = &r->batch.groups[i]->samples[j];
            r->totals.tokens += sample->completion_count;
            for (uint32_t k = 0; k < sample->completion_count; k++) {
                r->totals.age_tokens += now - sample->version[k];
            }
        }
    }
}

rl_status bench_row_train(struct bench_row *row, uint64_t step, double *seconds)
{
    double begin = bench_now_s(row->workload);
    double wall = rl_clock_now_s(NULL);
    note_ages(row);
    RL_TRY(learner_step(row->learner, row->batch.groups, row->batch.count, step, &row->report));
    *seconds = bench_now_s(row->workload) - begin;
    double share = row->report.forward_backward_s / (rl_clock_now_s(NULL) - wall);
    row->totals.learner_busy_s += *seconds;
    row->token_s += share * *seconds;
    row->fixed_s += (1 - share) * *seconds;
    row->trained_tokens += (double)row->report.tokens;
    row->trainings++;
    return RL_OK;
}

rl_status bench_row_settle(struct bench_row *row)
{
    struct bench_meeting *m = &row->meeting;
    pthread_mutex_lock(&m->mutex);
    keep_window(row, row->report.version);
    rl_status status = admission_trained(m->admission, &row->batch);
    if (status == RL_OK) {
        status = dispatcher_set_version(m->dispatcher, row->report.version);
    }
    if (status == RL_OK) {
        status = learner_publish(row->learner, &row->report);
    }
    m->changes++;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->mutex);
    if (row->path != NULL) {
        bench_path_notify(row->path);
    }
    admission_batch_fini(&row->batch);
    return status;
}

struct bench_mark bench_row_mark(struct bench_row *row)
{
    struct rl_wait_stats waits[RL_WAIT_SITES_MAX];
    size_t count = rl_waits_snapshot(row->waits, waits);
    struct bench_mark mark = row->totals;
    for (size_t i = 0; i < count; i++) {
        mark.slot_wait_s += waits[i].total_s; /* the learner waits for nothing but slots */
    }
    pthread_mutex_lock(&row->meeting.mutex);
    mark.busy_s = row->meeting.busy_s;
    mark.paused_s = row->meeting.paused_s;
    mark.beside_s = row->meeting.beside_s;
    pthread_mutex_unlock(&row->meeting.mutex);
    if (row->path != NULL) {
        struct weight_sender_counters sent;
        bench_path_counters(row->path, &sent);
        mark.sends = (double)sent.sends;
        mark.sent_bytes = (double)sent.bytes;
    }
    mark.time_s = rl_clock_now_s(NULL);
    return mark;
}

static rl_status learn(struct bench_row *r, struct bench_mark *from, struct bench_mark *to)
{
    uint64_t warmup = (uint64_t)r->workload->shape.warmup_steps;
    uint64_t steps = (uint64_t)r->workload->shape.steps;
    for (uint64_t step = 0; step < warmup + steps; step++) {
        double seconds;
        if (step == warmup) {
            *from = bench_row_mark(r);
        }
        RL_TRY(await_batch(r));
        RL_TRY(bench_row_train(r, step, &seconds));
        RL_TRY(bench_row_settle(r));
    }
    *to = bench_row_mark(r);
    return RL_OK;
}

/* --- figures -----------------------------------------------------------------------------------
 */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static rl_status median_pass(const struct bench_engine *engine, double *out)
{
    double *seconds = calloc(engine->pass_count + 1, sizeof *seconds);
    if (seconds == NULL) {
        return rl_fail(RL_NO_MEMORY, "bench: no memory for %zu passes", engine->pass_count);
    }
    for (size_t i = 0; i < engine->pass_count; i++) {
        seconds[i] = engine->passes[i].seconds;
    }
    qsort(seconds, engine->pass_count, sizeof *seconds, compare_doubles);
    *out = seconds[engine->pass_count / 2];
    free(seconds);
    return RL_OK;
}

static void measure_costs(const struct bench_row *r, struct bench_costs *out)
{
    bench_costs_fit(r->engine.passes, r->engine.pass_count, out);
    out->train_s = r->fixed_s / r->trainings;
    out->train_token_s = r->token_s / r->trained_tokens;
    out->publish_s = r->publish_s / r->trainings;
    out->transfer_s = r->engine.transfers > 0
                          ? (r->engine.paused_s + r->engine.beside_s) / r->engine.transfers
                          : 0;
}

/* Copied to the engine, sent over the path, or read where they lie. */
static double bytes_per_update(const struct bench_row *r, const struct bench_mark *from,
                               const struct bench_mark *to)
{
    if (r->path != NULL) {
        return (to->sent_bytes - from->sent_bytes) / fmax(1, to->sends - from->sends);
    }
    return r->engine.own_image != NULL ? (double)r->workload->layout->image_bytes : 0;
}

static rl_status figures(struct bench_row *r, const struct bench_mark *from,
                         const struct bench_mark *to, struct bench_outcome *out)
{
    double seconds = to->time_s - from->time_s;
    double tokens = to->tokens - from->tokens;
    double paused = to->paused_s - from->paused_s;
    double working = to->busy_s - from->busy_s + to->beside_s - from->beside_s;
    double median = 0;
    RL_TRY(median_pass(&r->engine, &median));
    *out = (struct bench_outcome){
        .seconds = seconds,
        .tokens = tokens,
        .tokens_per_second = tokens / seconds,
        .learner_idle = fmax(0.0, 1 - (to->learner_busy_s - from->learner_busy_s) / seconds),
        .rollout_idle = fmax(0.0, 1 - (working + paused) / seconds),
        .learner_weight_wait = (to->slot_wait_s - from->slot_wait_s) / seconds,
        .rollout_weight_wait = paused / seconds,
        .staleness_mean = (to->age_tokens - from->age_tokens) / tokens,
        .pass_median_us = median * 1e6,
        .gap_us = r->engine.gap_us,
        .gap_count = r->engine.gap_count,
        .bytes_per_update = bytes_per_update(r, from, to)};
    r->engine.gap_us = NULL;
    measure_costs(r, &out->costs);
    return RL_OK;
}

void bench_outcome_fini(struct bench_outcome *outcome)
{
    free(outcome->gap_us);
    *outcome = (struct bench_outcome){0};
}

/* --- a row -------------------------------------------------------------------------------------
 */

static void *generate(void *arg)
{
    bench_engine_run(arg);
    return NULL;
}

/* Both roles at the same time; this thread learns. */
static rl_status run_side_by_side(struct bench_row *r, struct bench_mark *from,
                                  struct bench_mark *to)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, generate, &r->engine) != 0) {
        return rl_fail(RL_INTERNAL, "bench: no thread for the generating role");
    }
    rl_status status = learn(r, from, to);
    pthread_mutex_lock(&r->meeting.mutex);
    r->meeting.stop = true;
    pthread_cond_broadcast(&r->meeting.changed);
    pthread_mutex_unlock(&r->meeting.mutex);
    pthread_join(thread, NULL);
    return status;
}

static rl_status run_roles(struct bench_row *r, struct bench_outcome *out)
{
    struct bench_mark from = {0};
    struct bench_mark to = {0};
    RL_TRY(r->workload->cpu_clock ? bench_row_run_in_turns(r, &from, &to)
                                  : run_side_by_side(r, &from, &to));
    return figures(r, &from, &to, out);
}

rl_status bench_row_run(const struct bench_workload *workload, const struct bench_rung *rung,
                        struct bench_outcome *out)
{
    struct bench_row row = {.workload = workload, .rung = rung};
    rl_status status = RL_OK;
    RL_TRY_GOTO(open_meeting(&row), status, done);
    RL_TRY_GOTO(open_learner(&row), status, done);
    keep_window(&row, 0);
    RL_TRY_GOTO(bench_engine_init(&row.engine, workload, rung, &row.meeting), status, done);
    RL_TRY_GOTO(open_path(&row), status, done);
    status = run_roles(&row, out);
done:
    close_row(&row);
    return status;
}
