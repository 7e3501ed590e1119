/* See learner_rank.h: the compute thread of learner rank 0. */
#include "app/learner_rank.h"
#include "app/signals.h"
#include "app/train_follow.h"

#include "core/clock.h"
#include "core/log.h"

#include <stdlib.h>

enum { REMOTE_HISTORY = 8 }; /* versions back that deltas start from */

/* Rollout ranks answer between two passes. */
static const double snapshot_wait_s = 2;

struct batch_wait {
    struct learner_rank *rank;
    struct admission_batch *batch;
    rl_status status;
};

/* Called with the mutex held. */
static bool batch_ready(void *arg)
{
    struct batch_wait *wait = arg;
    struct learner_rank *l = wait->rank;
    wait->status = admission_take(l->run.admission, wait->batch);
    if (wait->status == RL_AGAIN && l->service_status != RL_OK) {
        wait->status = l->service_status;
    }
    if (wait->status == RL_AGAIN && signals_stop_requested() != 0) {
        wait->status = RL_INTERRUPTED;
    }
    return wait->status != RL_AGAIN;
}

/* A deadline has passed: say who waits for whom. Called with the mutex held. */
static rl_status fail_waiting(const struct learner_rank *l, const char *what, double limit_s)
{
    char ranks[2048];
    learner_seats_describe(l, ranks, sizeof(ranks));
    return rl_fail(RL_TIMEOUT,
                   "learner %d waits for %s, in vain for %.0f s (async.wait_timeout_ms): %s",
                   world_rank(l->world), what, limit_s, ranks);
}

static rl_status wait_for_batch(struct learner_rank *l, struct admission_batch *batch)
{
    struct batch_wait wait = {.rank = l, .batch = batch};
    struct rl_wait_signal signal = {
        .cond = &l->arrived, .mutex = &l->mutex, .done = batch_ready, .arg = &wait};
    double limit_s = (double)l->config->async.wait_timeout_ms / 1000.0;
    double deadline = rl_clock_now_s(NULL) + limit_s;
    rl_status status = RL_AGAIN;
    pthread_mutex_lock(&l->mutex);
    while (status == RL_AGAIN && rl_clock_now_s(NULL) < deadline) {
        status = rl_wait_signal_poll(l->waits, "learner waits for samples", &signal, 0.2);
    }
    if (status == RL_AGAIN) {
        char what[64];
        snprintf(what, sizeof(what), "samples of step %llu", (unsigned long long)l->run.step + 1);
        status = fail_waiting(l, what, limit_s);
    } else {
        status = wait.status;
    }
    pthread_mutex_unlock(&l->mutex);
    return status;
}

/* Called with the mutex held. */
static bool snapshot_done(void *arg)
{
    const struct learner_rank *l = arg;
    return learner_service_answered(l) || l->service_status != RL_OK;
}

/* Gather what is finished of unfinished groups: waits a moment, while generation goes on. Who does
 * not answer in time has it sampled again after a resume. The mutex must be held. */
static void gather_partials(struct learner_rank *l)
{
    struct rl_wait_signal signal = {
        .cond = &l->arrived, .mutex = &l->mutex, .done = snapshot_done, .arg = l};
    if (l->service_status != RL_OK || train_run_done(&l->run)) {
        return;
    }
    learner_service_ask(l);
    (void)rl_wait_signal_poll(l->waits, "learner waits for finished samples to save", &signal,
                              snapshot_wait_s);
}

static rl_status save(struct learner_rank *l, bool wait)
{
    struct train_snapshot snapshot;
    pthread_mutex_lock(&l->mutex);
    gather_partials(l);
    rl_status status = train_run_snapshot(&l->run, &snapshot);
    pthread_mutex_unlock(&l->mutex);
    RL_TRY(status);
    return train_run_save(&l->run, &snapshot, wait);
}

struct feed_marks {
    double busy_s;
    double rollout_s[RL_ROLLOUT_TIMES];
    struct rl_pass_times passes;
    uint64_t dead;
    struct weight_sender_counters weights;
};

static rl_status one_step(struct learner_rank *l, struct feed_marks *marks)
{
    struct admission_batch batch = {0};
    struct train_feed feed = {0};
    uint32_t waiting = 0;
    double start = rl_clock_now_s(NULL);
    RL_TRY(wait_for_batch(l, &batch));
    feed.wait_s = rl_clock_now_s(NULL) - start;
    pthread_mutex_lock(&l->mutex);
    (void)admission_waiting(l->run.admission, &waiting);
    feed.queue_depth = waiting;
    feed.generation_s = learner_seats_busy_s(l) - marks->busy_s;
    feed.dead_workers = l->dead_workers - marks->dead;
    marks->busy_s += feed.generation_s;
    marks->dead = l->dead_workers;
    for (int i = 0; i < RL_ROLLOUT_TIMES; i++) {
        feed.rollout_s[i] = l->rollout_s[i] - marks->rollout_s[i];
        marks->rollout_s[i] = l->rollout_s[i];
    }
    rl_pass_times_add(&feed.passes, &l->passes, &marks->passes);
    marks->passes = l->passes;
    feed.rollout_cpu_s = learner_seats_cpu_s(l);
    feed.rollout_ranks = learner_service_workers(l);
    struct weight_sender_counters weights;
    learner_weights_counters(l->weights, &weights);
    feed.weights = weight_sender_counters_since(&weights, &marks->weights);
    marks->weights = weights;
    pthread_mutex_unlock(&l->mutex);
    l->stepping = true;
    rl_status status = train_run_step(&l->run, &batch, &feed);
    admission_batch_fini(&batch);
    RL_TRY(status);
    learner_weights_published(l->weights);
    l->stepping = false;
    return train_run_checkpoint_due(&l->run) ? save(l, false) : RL_OK;
}

/* Called with the mutex held. */
static bool probe_done(void *arg)
{
    struct learner_rank *l = arg;
    return l->probe.taken == l->probe.wanted || l->service_status != RL_OK;
}

/* Samples of the last version from the workers, compared with the learner's own log-probs. */
static rl_status run_probe(struct learner_rank *l)
{
    struct rl_wait_signal signal = {
        .cond = &l->arrived, .mutex = &l->mutex, .done = probe_done, .arg = l};
    int64_t samples = l->config->rollout.samples_per_prompt;
    uint32_t wanted = (uint32_t)((TRAIN_PROBE_SAMPLES + samples - 1) / samples);
    double limit_s = (double)l->config->async.wait_timeout_ms / 1000.0;
    double largest = 0;
    uint64_t tokens = 0;
    pthread_mutex_lock(&l->mutex);
    l->probe.groups = calloc(wanted, sizeof(*l->probe.groups));
    l->probe.wanted = l->probe.groups != NULL ? wanted : 0;
    rl_status status = l->probe.groups == NULL
                           ? rl_fail(RL_NO_MEMORY, "probe: out of memory")
                           : rl_wait_signal_poll(l->waits, "learner waits for the probe's samples",
                                                 &signal, limit_s);
    if (status == RL_AGAIN) {
        status = fail_waiting(l, "the samples of the probe", limit_s);
    }
    if (status == RL_OK && l->service_status != RL_OK) {
        status = l->service_status;
    }
    pthread_mutex_unlock(&l->mutex);
    RL_TRY(status);
    RL_TRY(learner_probe(l->run.learner, l->probe.groups, wanted, &largest, &tokens));
    train_run_note_probe(&l->run, largest, tokens);
    return RL_OK;
}

static rl_status train_loop(struct learner_rank *l)
{
    struct feed_marks marks = {0};
    rl_status status = RL_OK;
    while (!train_run_done(&l->run) && status == RL_OK) {
        status = signals_stop_requested() != 0 ? RL_INTERRUPTED : one_step(l, &marks);
    }
    l->completed = status == RL_OK;
    pthread_mutex_lock(&l->mutex);
    l->draining = true;
    pthread_mutex_unlock(&l->mutex);
    if (status == RL_OK) {
        status = run_probe(l);
    } else if (!l->stepping &&
               (status == RL_INTERRUPTED || status == RL_PEER_LOST || status == RL_TIMEOUT)) {
        rl_log(RL_LOG_INFO, "stopping after step %llu with a checkpoint",
               (unsigned long long)l->run.step);
        RL_TRY(save(l, true));
    }
    pthread_mutex_lock(&l->mutex);
    l->run.worker_cpu_s = learner_seats_cpu_s(l);
    pthread_mutex_unlock(&l->mutex);
    if (status == RL_OK || status == RL_INTERRUPTED) {
        status = train_run_finish(&l->run, l->completed);
    }
    return status;
}

static rl_status open_weights(struct learner_rank *l)
{
    struct learner_weights_options options = {
        .config = l->config,
        .world = l->world,
        .channel = l->channel,
        .arena = l->run.arena,
        .history = l->run.history,
        .hello = {.rank = (uint32_t)world_rank(l->world),
                  .world_size = (uint32_t)world_size(l->world),
                  .slot_bytes = l->session.layout->image_bytes},
        .element_bytes = (uint32_t)model_image_element_bytes(l->session.layout)};
    RL_TRY(session_agreement(&l->session, l->prompts, &options.hello.config_hash));
    snprintf(options.hello.host, sizeof(options.hello.host), "%s", world_host(l->world));
    return learner_weights_create(&options, &l->weights);
}

rl_status learner_loop_run(struct learner_rank *l)
{
    bool remote = learner_weights_any_remote(l->config, l->world);
    struct train_run_args args = {.config = l->config,
                                  .session = &l->session,
                                  .prompts = l->prompts,
                                  .collective = l->collective,
                                  .waits = l->waits,
                                  .shared_arena = true,
                                  .readers = world_size(l->world) + (int)learner_seats_most(l),
                                  .history = remote ? REMOTE_HISTORY : 1,
                                  .mutex = &l->mutex};
    rl_status status = train_run_open(&args, &l->run);
    if (status == RL_OK) {
        pthread_mutex_lock(&l->mutex);
        status = open_weights(l);
        for (int rank = 0; rank < world_size(l->world) && status == RL_OK; rank++) {
            status = l->seats[rank].alive ? learner_service_greet(l, rank) : RL_OK;
        }
        l->serving = status == RL_OK;
        pthread_mutex_unlock(&l->mutex);
    }
    if (status == RL_OK) {
        status = train_loop(l);
    }
    atomic_store(&l->dismissed, true);
    (void)train_follow_stop(l->collective);
    return status;
}
