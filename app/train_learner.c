/* A learner rank of an asynchronous run: its life and its threads (learner_rank.h). */
#include "app/footprint.h"
#include "app/learner_rank.h"
#include "app/signals.h"
#include "app/train_follow.h"

#include "core/clock.h"
#include "core/log.h"
#include "transport/channel_mpi.h"
#include "transport/collective_gpu.h"

#include <stdlib.h>

static const double stop_timeout_s = 10;

/* For an operation among learners. */
static double limit_s(const struct rl_config *config)
{
    return (double)config->async.wait_timeout_ms / 1000.0 + 60.0;
}

static rl_status open_session(struct learner_rank *l)
{
    const struct rl_config *config = l->config;
    RL_TRY(session_open(config, session_learner_length(config), world_local_rank(l->world),
                        &l->session));
    /* NCCL's own memory is gone before what is left is looked at */
    RL_TRY(
        collective_gpu_start(l->collective, l->session.device, l->session.pool, limit_s(config)));
    struct footprint_run run = {.config = config,
                                .layout = l->session.layout,
                                .ranks = world_size(l->world),
                                .learners = world_learners(l->world),
                                .world = l->world};
    return footprint_settle(&run, &l->session, world_rank(l->world), NULL);
}

static void *compute(void *arg)
{
    struct learner_rank *l = arg;
    const struct rl_config *config = l->config;
    rl_status status = open_session(l);
    if (status == RL_OK && world_rank(l->world) != 0) {
        status = train_follow_run(config, &l->session, l->collective, l->waits);
    } else if (status == RL_OK) {
        status = prompts_load(config->data.train, config, l->session.tokenizer, l->session.chat,
                              &l->prompts);
        if (status == RL_OK) {
            status = learner_loop_run(l);
        }
    }
    collective_gpu_stop(l->collective);
    l->compute_status = status;
    atomic_store(&l->finished, true);
    return NULL;
}

/* --- main thread: life of the rank
 * ------------------------------------------------------------------------------ */

static void pump(struct learner_rank *l)
{
    while (!atomic_load(&l->finished)) {
        bool worked = channel_mpi_pump_once(l->channel, l->collective);
        if (world_rank(l->world) == 0) {
            worked = learner_service_round(l) || worked;
        }
        channel_mpi_idle(l->channel, worked);
    }
}

static bool flushed(void *arg)
{
    return channel_mpi_flushed(arg);
}

/* Tell the workers to leave, and see the message off. */
static void stop_workers(struct learner_rank *l)
{
    struct wire_stop stop = {.reason = l->completed                 ? WIRE_STOP_DONE
                                       : l->compute_status == RL_OK ? WIRE_STOP_INTERRUPTED
                                                                    : WIRE_STOP_FAILED,
                             .exit_code = l->compute_status == RL_OK ? 0 : 1};
    for (int rank = 0; rank < world_size(l->world); rank++) {
        struct channel_message message = {.peer = rank};
        if (l->seats[rank].alive && wire_encode_stop(&stop, &message) == RL_OK) {
            double deadline = rl_clock_now_s(NULL) + stop_timeout_s;
            while (channel_send(l->channel, &message) == RL_AGAIN &&
                   rl_clock_now_s(NULL) < deadline) {
                channel_mpi_idle(l->channel, channel_mpi_pump_once(l->channel, l->collective));
            }
            channel_message_fini(&message);
        }
    }
    (void)channel_mpi_pump(l->channel, l->collective, flushed, l->channel, stop_timeout_s);
    if (l->compute_status != RL_OK) {
        world_note_torn(l->world); /* who fails waits for nobody */
    }
}

static rl_status open_rank(struct learner_rank *l)
{
    const struct rl_config *config = l->config;
    struct channel_mpi_options options = {
        .ring_messages = (size_t)config->transport.ring_groups,
        .credits = (int)config->transport.credits,
        .heartbeat_s = (double)config->async.heartbeat_ms / 1000.0,
        .dead_after_s = (double)config->async.dead_after_ms / 1000.0};
    RL_TRY(rl_waits_create(NULL, &l->waits));
    RL_TRY(rl_wait_cond_init(&l->arrived));
    RL_TRY(learner_seats_open(l));
    RL_TRY(collective_mpi_create(l->world, limit_s(config), &l->collective));
    RL_TRY(channel_mpi_create(l->world, &options, &l->channel));
    return signals_install();
}

static void close_rank(struct learner_rank *l)
{
    for (uint32_t i = 0; i < l->probe.taken; i++) {
        trajectory_group_destroy(l->probe.groups[i]);
    }
    free(l->probe.groups);
    channel_message_fini(&l->held);
    channel_message_fini(&l->behind);
    learner_weights_destroy(l->weights);
    train_run_close(&l->run);
    prompts_destroy(l->prompts);
    session_close(&l->session);
    channel_close(l->channel);
    collective_destroy(l->collective);
    learner_seats_close(l);
    rl_waits_destroy(l->waits);
}

rl_status train_learner_rank(const struct rl_config *config, struct world *world)
{
    struct learner_rank l = {.config = config, .world = world, .mutex = PTHREAD_MUTEX_INITIALIZER};
    pthread_t thread;
    rl_status status = open_rank(&l);
    if (status == RL_OK && pthread_create(&thread, NULL, compute, &l) != 0) {
        status = rl_fail(RL_INTERNAL, "learner: cannot start the compute thread");
    }
    if (status == RL_OK) {
        pump(&l);
        pthread_join(thread, NULL);
        status = l.compute_status;
        if (world_rank(world) == 0) {
            stop_workers(&l);
        } else if (status != RL_OK) {
            world_note_torn(world); /* a follower alone cannot tell the others */
        }
    }
    close_rank(&l);
    return status;
}
