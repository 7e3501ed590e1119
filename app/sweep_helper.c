/* Every rank of a sweep but rank 0: takes jobs, says how they ended. */
#include "app/signals.h"
#include "app/sweep_message.h"

#include "core/clock.h"
#include "core/log.h"
#include "transport/channel_mpi.h"
#include "transport/world.h"

enum { HELPER_HEAD = 0 };
static const double helper_pause_s = 0.01;
static const double helper_send_s = 60.0;

struct helper {
    const struct sweep *sweep;
    struct channel *channel;
    struct sweep_pool pool;
    bool leaving;
};

/* A queue that is full for a moment is pumped until it takes the message. */
static rl_status tell_head(struct helper *h, const struct sweep_message *message)
{
    double began_s = rl_clock_now_s(NULL);
    rl_status status = RL_AGAIN;
    while (status == RL_AGAIN && rl_clock_now_s(NULL) - began_s < helper_send_s) {
        status = sweep_message_send(h->channel, HELPER_HEAD, message);
        (void)channel_mpi_pump_once(h->channel, NULL);
    }
    return status;
}

static rl_status obey(struct helper *h, const struct sweep_message *message)
{
    if (message->kind == SWEEP_MESSAGE_JOB && message->job.trial < sweep_count(h->sweep)) {
        return sweep_pool_start(&h->pool, &message->job);
    }
    if (message->kind == SWEEP_MESSAGE_STOP) {
        sweep_pool_stop(&h->pool);
    }
    h->leaving = message->kind == SWEEP_MESSAGE_LEAVE;
    return RL_OK;
}

static rl_status take_messages(struct helper *h)
{
    struct channel_message message = {0};
    struct sweep_message order;
    rl_status status = RL_OK;
    while (status == RL_OK && channel_receive(h->channel, 0, &message) == RL_OK) {
        if (message.kind == CHANNEL_PEER_LOST) {
            status = message.peer == HELPER_HEAD
                         ? rl_fail(RL_PEER_LOST, "the sweep's rank 0 is lost, the job ends")
                         : RL_OK;
        } else {
            status = sweep_message_read(&message, &order);
            status = status == RL_OK ? obey(h, &order) : status;
        }
        channel_message_fini(&message);
    }
    return status;
}

static rl_status report_ends(struct helper *h)
{
    struct sweep_message end = {.kind = SWEEP_MESSAGE_END};
    while (sweep_pool_take(&h->pool, &end.job, &end.outcome)) {
        RL_TRY(tell_head(h, &end));
    }
    return RL_OK;
}

static rl_status work(struct helper *h)
{
    struct sweep_message ready = {.kind = SWEEP_MESSAGE_READY,
                                  .capacity = (uint32_t)h->pool.capacity};
    RL_TRY(sweep_message_plan_hash(h->sweep->plan, &ready.plan_hash));
    RL_TRY(tell_head(h, &ready));
    while (!h->leaving) {
        (void)channel_mpi_pump_once(h->channel, NULL);
        RL_TRY(take_messages(h));
        RL_TRY(report_ends(h));
        if (signals_stop_requested() != 0) {
            sweep_pool_stop(&h->pool);
        }
        rl_clock_sleep_s(NULL, helper_pause_s);
    }
    return RL_OK;
}

rl_status sweep_helper_run(const struct sweep *sweep, struct world *world, struct channel *channel)
{
    struct helper h = {.sweep = sweep, .channel = channel};
    RL_TRY(sweep_pool_open(sweep, &h.pool));
    rl_status status = work(&h);
    sweep_pool_close(&h.pool); /* kills what still runs: nobody would hear of its end */
    if (status != RL_OK) {
        world_note_torn(world);
    }
    return status;
}
