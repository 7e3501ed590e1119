/* See bench_async_path.h. Two ends of a channel in one process; a thread at each hands on what
 * comes in, which the message loops of the ranks do in a run. */
#include "app/bench_async_path.h"

#include "core/clock.h"
#include "core/log.h"
#include "transport/channel_local.h"
#include "transport/weight_receiver.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { PATH_LEARNER, PATH_ENGINE, PATH_ENDS, PATH_CREDITS = 64 };
static const double poll_s = 0.01;
static const double push_poll_s = 1e-4;
static const double push_timeout_s = 60;

struct end {
    struct bench_path *path;
    struct channel *channel;
    pthread_t thread;
    bool started;
    atomic_bool stop;
};

struct bench_path {
    struct bench_path_options options;
    struct channel_hub *hub;
    struct end ends[PATH_ENDS];
    struct weight_sender *sender;
    struct weight_receiver *receiver;
};

static void arena_is_there(void *arg, struct weight_arena *arena)
{
    struct bench_path *path = arg;
    weight_source_attach(path->options.source, arena);
}

static void *hand_on(void *arg)
{
    struct end *end = arg;
    struct bench_path *path = end->path;
    struct channel_message message = {0};
    while (!atomic_load(&end->stop)) {
        if (channel_receive(end->channel, poll_s, &message) != RL_OK) {
            continue;
        }
        if (end->channel->rank == PATH_ENGINE) {
            weight_receiver_give(path->receiver, &message);
        } else {
            (void)weight_sender_take(path->sender, &message); /* logged; the push then times out */
            channel_message_fini(&message);
        }
    }
    return NULL;
}

static rl_status start_end(struct bench_path *path, int rank)
{
    struct end *end = &path->ends[rank];
    end->path = path;
    if (pthread_create(&end->thread, NULL, hand_on, end) != 0) {
        return rl_fail(RL_INTERNAL, "bench: no thread for the weights' path");
    }
    end->started = true;
    return RL_OK;
}

static void stop_end(struct end *end)
{
    if (end->started) {
        atomic_store(&end->stop, true);
        pthread_join(end->thread, NULL);
        end->started = false;
    }
}

static rl_status start(struct bench_path *path)
{
    const struct bench_path_options *o = &path->options;
    struct channel_hub_options hub = {.size = PATH_ENDS, .credits = PATH_CREDITS};
    RL_TRY(channel_hub_create(&hub, &path->hub));
    for (int rank = 0; rank < PATH_ENDS; rank++) {
        RL_TRY(channel_local_open(path->hub, rank, &path->ends[rank].channel));
    }
    struct weight_sender_options sender = {.channel = path->ends[PATH_LEARNER].channel,
                                           .arena = o->arena,
                                           .reader = o->reader,
                                           .history = o->history,
                                           .image_bytes = o->image_bytes,
                                           .element_bytes = o->element_bytes};
    struct weight_receiver_options receiver = {.channel = path->ends[PATH_ENGINE].channel,
                                               .learner = PATH_LEARNER,
                                               .image_bytes = o->image_bytes,
                                               .ready = arena_is_there,
                                               .arg = path};
    RL_TRY(weight_sender_start(&sender, &path->sender));
    RL_TRY(weight_receiver_start(&receiver, &path->receiver));
    RL_TRY(start_end(path, PATH_LEARNER));
    return start_end(path, PATH_ENGINE);
}

rl_status bench_path_open(const struct bench_path_options *options, struct bench_path **out)
{
    struct bench_path *path = calloc(1, sizeof *path);
    uint32_t newest = 0;
    struct bench_push push;
    if (path == NULL) {
        return rl_fail(RL_NO_MEMORY, "bench: no memory for the weights' path");
    }
    *out = path;
    path->options = *options;
    RL_TRY(start(path));
    weight_sender_add(path->sender, PATH_ENGINE);
    (void)weight_arena_latest(options->arena, &newest);
    return bench_path_push(path, newest, &push);
}

/* The receiver answers until it has ended, and its answers must find somebody. */
void bench_path_close(struct bench_path *path)
{
    if (path == NULL) {
        return;
    }
    stop_end(&path->ends[PATH_ENGINE]);
    weight_receiver_stop(path->receiver);
    stop_end(&path->ends[PATH_LEARNER]);
    weight_sender_stop(path->sender);
    for (int rank = 0; rank < PATH_ENDS; rank++) {
        channel_close(path->ends[rank].channel);
    }
    channel_hub_destroy(path->hub);
    free(path);
}

void bench_path_notify(struct bench_path *path)
{
    weight_sender_notify(path->sender);
}

rl_status bench_path_push(struct bench_path *path, uint32_t version, struct bench_push *out)
{
    struct weight_sender_counters before;
    struct weight_sender_counters after;
    uint32_t there = 0;
    double give_up_s = rl_clock_now_s(NULL) + push_timeout_s;
    double cpu_s = rl_clock_process_cpu_s() - rl_clock_thread_cpu_s();
    weight_sender_counters(path->sender, &before);
    weight_sender_notify(path->sender);
    while (!weight_sender_version(path->sender, PATH_ENGINE, &there) || there != version) {
        if (rl_clock_now_s(NULL) > give_up_s) {
            return rl_fail(RL_TIMEOUT, "bench: version %u did not arrive within %.0f s", version,
                           push_timeout_s);
        }
        rl_clock_sleep_s(NULL, push_poll_s);
    }
    weight_sender_counters(path->sender, &after);
    out->total_s = rl_clock_process_cpu_s() - rl_clock_thread_cpu_s() - cpu_s;
    out->encode_s = after.encode_s - before.encode_s;
    return RL_OK;
}

void bench_path_counters(struct bench_path *path, struct weight_sender_counters *out)
{
    weight_sender_counters(path->sender, out);
}
