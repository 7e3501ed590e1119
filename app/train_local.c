/* Training in one process: generate and learn by turns, at staleness 0. The same engine, scorer,
 * tickets and learner as the asynchronous run; only the channel is missing. */
#include "app/footprint.h"
#include "app/sampler.h"
#include "app/signals.h"
#include "app/train.h"
#include "app/train_events.h"
#include "app/train_run.h"

#include "core/clock.h"
#include "core/log.h"

#include <math.h>
#include <stdlib.h>

enum { LOCAL_WORKER = 0, LOCAL_READER = 0 };

struct local {
    struct train_run run;
    struct sampler *sampler;
    struct rollout_generator_options options;
    double busy_mark_s;
    struct rollout_counters counters_mark;
    uint64_t timeout_mark;
};

static rl_status use_newest_weights(struct local *l)
{
    struct weight_view view;
    RL_TRY(weight_arena_acquire(l->run.arena, LOCAL_READER, &view));
    return sampler_load_weights(l->sampler, view.nearest, view.version);
}

static rl_status issue_tickets(struct local *l)
{
    uint32_t samples = (uint32_t)l->run.config->rollout.samples_per_prompt;
    while (train_run_wants_tickets(&l->run)) {
        struct dispatcher_ticket ticket;
        rl_status status = dispatcher_issue(l->run.dispatcher, LOCAL_WORKER, UINT32_MAX, &ticket);
        if (status == RL_AGAIN) {
            return RL_OK;
        }
        RL_TRY(status);
        status = sampler_submit(l->sampler, ticket.number, ticket.prompt_id, ticket.epoch, samples);
        if (status == RL_AGAIN) {
            return dispatcher_requeue(l->run.dispatcher, ticket.number);
        }
        RL_TRY(status);
    }
    return RL_OK;
}

/* Generate until a batch is admitted. */
static rl_status collect_batch(struct local *l, struct admission_batch *batch)
{
    rl_status status = RL_AGAIN;
    while (status == RL_AGAIN) {
        struct trajectory_group *group = NULL;
        if (signals_stop_requested() != 0) {
            return RL_INTERRUPTED;
        }
        RL_TRY(issue_tickets(l));
        RL_TRY(sampler_step(l->sampler));
        while (sampler_take(l->sampler, &group) == RL_OK) {
            group->worker = LOCAL_WORKER;
            RL_TRY(train_events_offer(&l->run, group));
        }
        status = admission_take(l->run.admission, batch);
    }
    return status;
}

/* What the rollout side of this process did for the batch: it waits for scores only, the learner's
 * turn is no time of it. */
static void feed_times(struct local *l, double collect_s, struct train_feed *feed)
{
    const struct rollout_counters *now = sampler_counters(l->sampler);
    double *times = feed->rollout_s;
    times[RL_ROLLOUT_TIME_PREFILL] = now->prefill_s - l->counters_mark.prefill_s;
    times[RL_ROLLOUT_TIME_DECODE] = now->decode_s - l->counters_mark.decode_s;
    times[RL_ROLLOUT_TIME_SAMPLE] = now->sample_s - l->counters_mark.sample_s;
    times[RL_ROLLOUT_TIME_OTHER] =
        fmax(0, feed->generation_s - rl_times_sum(times, RL_ROLLOUT_TIMES));
    times[RL_ROLLOUT_TIME_REWARD_WAIT] = fmax(0, collect_s - feed->generation_s);
    rl_pass_times_add(&feed->passes, &now->times, &l->counters_mark.times);
    l->counters_mark = *now;
}

static rl_status one_step(struct local *l)
{
    struct admission_batch batch = {0};
    struct train_feed feed = {0};
    struct train_snapshot snapshot;
    double start = rl_clock_now_s(NULL);
    RL_TRY(collect_batch(l, &batch));
    feed.wait_s = rl_clock_now_s(NULL) - start;
    feed.generation_s = sampler_busy_s(l->sampler) - l->busy_mark_s;
    feed_times(l, feed.wait_s, &feed);
    feed.rollout_ranks = 1;
    feed.reward_timeouts = sampler_reward_timeouts(l->sampler) - l->timeout_mark;
    l->busy_mark_s = sampler_busy_s(l->sampler);
    l->timeout_mark = sampler_reward_timeouts(l->sampler);
    rl_status status = train_run_step(&l->run, &batch, &feed);
    admission_batch_fini(&batch);
    RL_TRY(status);
    RL_TRY(use_newest_weights(l));
    if (train_run_checkpoint_due(&l->run)) {
        RL_TRY(train_run_snapshot(&l->run, &snapshot));
        RL_TRY(train_run_save(&l->run, &snapshot, false));
    }
    return RL_OK;
}

/* Promise P1 measured once more at the end, on samples of the last version. */
static rl_status probe(struct local *l)
{
    uint32_t samples = (uint32_t)l->run.config->rollout.samples_per_prompt;
    uint32_t wanted = (TRAIN_PROBE_SAMPLES + samples - 1) / samples;
    struct trajectory_group **groups = calloc(wanted, sizeof(*groups));
    uint32_t submitted = 0;
    uint32_t taken = 0;
    double largest = 0;
    uint64_t tokens = 0;
    rl_status status = RL_OK;
    if (groups == NULL) {
        return rl_fail(RL_NO_MEMORY, "probe: out of memory");
    }
    while (taken < wanted && status == RL_OK) {
        while (submitted < wanted && status == RL_OK) {
            status =
                sampler_submit(l->sampler, submitted, submitted % prompts_count(l->run.prompts),
                               TRAIN_PROBE_EPOCH, samples);
            submitted += status == RL_OK;
        }
        status = status == RL_AGAIN ? RL_OK : status;
        if (status == RL_OK) {
            status = sampler_step(l->sampler);
        }
        while (status == RL_OK && sampler_take(l->sampler, &groups[taken]) == RL_OK) {
            taken++;
        }
    }
    if (status == RL_OK) {
        status = learner_probe(l->run.learner, groups, taken, &largest, &tokens);
        train_run_note_probe(&l->run, largest, tokens);
    }
    for (uint32_t i = 0; i < taken; i++) {
        trajectory_group_destroy(groups[i]);
    }
    free(groups);
    return status;
}

static rl_status open_sampler(struct local *l, struct session *session)
{
    const struct rl_config *config = l->run.config;
    struct sampler_args args = {.session = session,
                                .config = config,
                                .prompts = l->run.prompts,
                                .rewards = l->run.rewards,
                                .options = l->options};
    RL_TRY(sampler_create(&args, &l->sampler));
    return use_newest_weights(l);
}

static rl_status run_loop(struct local *l)
{
    rl_status status = RL_OK;
    struct train_snapshot snapshot;
    while (!train_run_done(&l->run) && status == RL_OK) {
        status = signals_stop_requested() != 0 ? RL_INTERRUPTED : one_step(l);
    }
    if (status == RL_INTERRUPTED) {
        rl_log(RL_LOG_INFO, "stopped by signal %d after step %llu", signals_stop_requested(),
               (unsigned long long)l->run.step);
        RL_TRY(train_run_snapshot(&l->run, &snapshot));
        RL_TRY(train_run_save(&l->run, &snapshot, true));
        return train_run_finish(&l->run, false);
    }
    RL_TRY(status);
    RL_TRY(probe(l));
    return train_run_finish(&l->run, true);
}

rl_status train_local(const struct rl_config *config, struct session *session,
                      const struct prompts *prompts, struct rl_waits *waits)
{
    struct local l = {0};
    struct collective *alone = NULL;
    struct footprint_run here = {
        .config = config, .layout = session->layout, .ranks = 1, .learners = 1};
    session_training_options(config, true, &l.options);
    RL_TRY(footprint_settle(&here, session, 0, &l.options));
    RL_TRY(collective_local_create(&alone));
    struct train_run_args args = {.config = config,
                                  .session = session,
                                  .prompts = prompts,
                                  .collective = alone,
                                  .waits = waits,
                                  .readers = 1,
                                  .history = 1};
    rl_status status = signals_install();
    if (status == RL_OK) {
        status = train_run_open(&args, &l.run);
    }
    if (status == RL_OK) {
        status = open_sampler(&l, session);
    }
    if (status == RL_OK) {
        status = run_loop(&l);
    }
    sampler_destroy(l.sampler);
    train_run_close(&l.run);
    collective_destroy(alone);
    return status;
}
