/* A rollout rank of an asynchronous run. The main thread pumps messages; the compute thread sets up
 * the engine, waits to be greeted by learner 0, and runs rollout/worker until it is told to stop.
 * Signals are the learner's business: a rollout rank leaves when the learner says so. */
#include "app/footprint.h"
#include "app/signals.h"
#include "app/train.h"
#include "app/worker_weights.h"

#include "core/clock.h"
#include "core/log.h"
#include "rollout/worker.h"
#include "transport/channel_mpi.h"
#include "transport/wire.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { LEARNER_RANK = 0 };
static const double status_every_s = 0.05;
static const double flush_timeout_s = 10;
static const double leave_timeout_s = 15; /* most that a rank takes to leave a lost learner */

struct worker_rank {
    const struct rl_config *config;
    struct world *world;
    struct channel *channel;
    struct rl_waits *waits;
    struct session session;
    struct session_texts texts;
    struct prompts *prompts;
    struct reward_set *rewards;
    struct reward_pool *pool;
    struct worker_weights *weights;
    struct rollout_generator *generator;
    atomic_bool cancel;
    bool run_failed; /* the learner said so when it stopped us */
    rl_status compute_status;
    atomic_bool finished;
};

static rl_status submit_to_pool(void *arg, struct trajectory_group *group)
{
    return reward_pool_submit(arg, group);
}

static rl_status take_from_pool(void *arg, struct trajectory_group **group)
{
    return reward_pool_take(arg, group);
}

static rl_status copy_from_pool(void *arg, struct trajectory_group ***groups, uint32_t *count)
{
    return reward_pool_copy(arg, groups, count);
}

static rl_status open_engine(struct worker_rank *w)
{
    const struct rl_config *config = w->config;
    struct rollout_generator_options options;
    struct footprint_run run = {.config = config,
                                .ranks = world_size(w->world),
                                .learners = world_learners(w->world),
                                .world = w->world};
    RL_TRY(
        session_open(config, session_max_length(config), world_local_rank(w->world), &w->session));
    run.layout = w->session.layout;
    session_training_options(config, false, &options);
    RL_TRY(footprint_settle(&run, &w->session, world_rank(w->world), &options));
    RL_TRY(prompts_load(config->data.train, config, w->session.tokenizer, w->session.chat,
                        &w->prompts));
    RL_TRY(reward_set_create(config, &w->rewards));
    w->texts = (struct session_texts){.tokenizer = w->session.tokenizer, .prompts = w->prompts};
    RL_TRY(reward_pool_create(w->rewards, config, session_reward_texts(&w->texts), &w->pool));
    return rollout_generator_create(&w->session.context, w->session.tokenizer, &options,
                                    &w->generator);
}

static rl_status take_hello(struct worker_rank *w, const struct channel_message *message)
{
    struct wire_hello hello;
    uint64_t agreement = 0;
    RL_TRY(wire_decode_hello(message, &hello));
    RL_TRY(session_agreement(&w->session, w->prompts, &agreement));
    if (hello.config_hash != agreement) {
        return rl_fail(RL_INVALID,
                       "rollout rank %d reads other prompts than the learner, only one of them has "
                       "a GPU, or their GPUs give sums other bits (another kind, or another "
                       "cuBLASLt): the ranks' configurations, data or machines differ",
                       world_rank(w->world));
    }
    return worker_weights_hello(w->weights, &hello);
}

/* Wait until learner 0 has published its first weights, says where, and they are here. */
static rl_status wait_for_greeting(struct worker_rank *w, bool *stopped)
{
    struct wire_stop stop;
    double deadline = rl_clock_now_s(NULL) + (double)w->config->async.wait_timeout_ms / 1000.0;
    struct rl_wait wait = rl_wait_begin(w->waits, "worker waits for the learner's greeting");
    rl_status status = RL_AGAIN;
    *stopped = false;
    while (status == RL_AGAIN && rl_clock_now_s(NULL) < deadline) {
        struct channel_message message = {0};
        status = channel_receive(w->channel, 0.1, &message);
        if (status == RL_OK && message.kind == WIRE_HELLO) {
            status = take_hello(w, &message);
        } else if (status == RL_OK && message.kind == WIRE_STOP) {
            *stopped = true;
            status = wire_decode_stop(&message, &stop);
            w->run_failed = status == RL_OK && stop.reason == WIRE_STOP_FAILED;
        } else if (status == RL_OK && message.kind == CHANNEL_PEER_LOST &&
                   message.peer == LEARNER_RANK) {
            status = RL_PEER_LOST;
        } else if (status == RL_OK) {
            status = RL_AGAIN;
        }
        if (status == RL_AGAIN && message.data != NULL) {
            worker_weights_deliver(w->weights, &message);
        }
        channel_message_fini(&message);
        if ((status == RL_OK || status == RL_AGAIN) && !*stopped) { /* a leader is sent some */
            status = worker_weights_ready(w->weights) ? RL_OK : RL_AGAIN;
        }
    }
    (void)rl_wait_end(&wait);
    if (status != RL_AGAIN) {
        return status;
    }
    return rl_fail(RL_TIMEOUT,
                   "rollout rank %d waits for the greeting and weights of rank %d, in vain for "
                   "%.0f s (async.wait_timeout_ms): it was last heard %.1f s ago",
                   world_rank(w->world), LEARNER_RANK,
                   (double)w->config->async.wait_timeout_ms / 1000.0,
                   channel_mpi_silence_s(w->channel, LEARNER_RANK));
}

static rl_status work(struct worker_rank *w)
{
    struct wire_stop stop;
    bool stopped = false;
    RL_TRY(open_engine(w));
    struct worker_weights_options weights = {.channel = w->channel,
                                             .learner = LEARNER_RANK,
                                             .rank = world_rank(w->world),
                                             .reader = world_reader(w->world),
                                             .image_bytes = w->session.layout->image_bytes,
                                             .device = w->session.device};
    RL_TRY(worker_weights_create(&weights, &w->weights));
    RL_TRY(wait_for_greeting(w, &stopped));
    if (stopped) {
        return RL_OK;
    }
    struct rollout_worker_args args = {.rank = world_rank(w->world),
                                       .learner = LEARNER_RANK,
                                       .channel = w->channel,
                                       .weights = worker_weights_source(w->weights),
                                       .deliver = worker_weights_deliver,
                                       .deliver_arg = w->weights,
                                       .generator = w->generator,
                                       .prompts = w->prompts,
                                       .scorer = {.submit = submit_to_pool,
                                                  .take = take_from_pool,
                                                  .copy = copy_from_pool,
                                                  .arg = w->pool},
                                       .waits = w->waits,
                                       .cancel = &w->cancel,
                                       .status_every_s = status_every_s};
    worker_weights_working(w->weights);
    rl_status status = rollout_worker_run(&args, &stop);
    w->run_failed = status == RL_OK && stop.reason == WIRE_STOP_FAILED;
    return status;
}

static void *compute(void *arg)
{
    struct worker_rank *w = arg;
    w->compute_status = work(w);
    atomic_store(&w->finished, true);
    return NULL;
}

static rl_status open_rank(struct worker_rank *w)
{
    const struct rl_config *config = w->config;
    struct channel_mpi_options options = {
        .ring_messages = (size_t)config->transport.ring_groups,
        .credits = (int)config->transport.credits,
        .heartbeat_s = (double)config->async.heartbeat_ms / 1000.0,
        .dead_after_s = (double)config->async.dead_after_ms / 1000.0};
    RL_TRY(rl_waits_create(NULL, &w->waits));
    RL_TRY(channel_mpi_create(w->world, &options, &w->channel));
    return signals_ignore();
}

/* Before the last messages are seen off: the learner, which they go to, is waiting to free slots
 * that are mapped here. */
static void close_engine(struct worker_rank *w)
{
    rollout_generator_destroy(w->generator);
    worker_weights_destroy(w->weights);
}

static void close_rank(struct worker_rank *w)
{
    reward_pool_destroy(w->pool);
    reward_set_destroy(w->rewards);
    prompts_destroy(w->prompts);
    session_close(&w->session);
    channel_close(w->channel);
    rl_waits_destroy(w->waits);
}

/* A rank that fails says so, rather than be missed after async.dead_after_ms. */
static void announce_failure(struct worker_rank *w)
{
    struct wire_stop stop = {.reason = WIRE_STOP_FAILED, .exit_code = 1};
    struct channel_message message = {0};
    if (wire_encode_stop(&stop, &message) == RL_OK) {
        message.peer = LEARNER_RANK;
        (void)channel_send(w->channel, &message);
        channel_message_fini(&message);
    }
}

static bool flushed(void *arg)
{
    return channel_mpi_flushed(arg);
}

/* Pump until the compute thread is done. Should the learner be lost, that must be soon. */
static void pump(struct worker_rank *w)
{
    double leave_by_s = 0;
    while (!atomic_load(&w->finished)) {
        channel_mpi_idle(w->channel, channel_mpi_pump_once(w->channel, NULL));
        double now_s = rl_clock_now_s(NULL);
        if (leave_by_s == 0 && !channel_peer_alive(w->channel, LEARNER_RANK) &&
            !world_is_whole(w->world)) {
            leave_by_s = now_s + leave_timeout_s;
        }
        if (leave_by_s > 0 && now_s > leave_by_s) {
            rl_log(RL_LOG_ERROR, "the learner is lost and this rank is still busy: it ends now");
            world_abort(w->world, 1);
        }
    }
}

/* What the end of the compute thread means for the rank. */
static rl_status conclude(struct worker_rank *w)
{
    if (world_is_disowned(w->world)) {
        rl_log(RL_LOG_INFO, "the learner has given this process up; it leaves");
        return RL_OK;
    }
    if (w->compute_status == RL_PEER_LOST) {
        return rl_fail(RL_PEER_LOST, "rollout rank %d: the learner is lost, the job ends",
                       world_rank(w->world));
    }
    if (w->compute_status != RL_OK) {
        announce_failure(w);
    }
    return w->compute_status;
}

rl_status train_worker_rank(const struct rl_config *config, struct world *world)
{
    struct worker_rank w = {.config = config, .world = world};
    pthread_t thread;
    rl_status status = open_rank(&w);
    if (status == RL_OK && pthread_create(&thread, NULL, compute, &w) != 0) {
        status = rl_fail(RL_INTERNAL, "worker: cannot start the compute thread");
    }
    if (status == RL_OK) {
        pump(&w);
        pthread_join(thread, NULL);
        status = conclude(&w);
        close_engine(&w);
        (void)channel_mpi_pump(w.channel, NULL, flushed, w.channel, flush_timeout_s);
    }
    if (status != RL_OK || w.run_failed) {
        world_note_torn(world); /* the others have no reason to come to the end together */
    }
    close_rank(&w);
    return status;
}
