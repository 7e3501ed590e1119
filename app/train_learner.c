/* A learner rank of an asynchronous run. The main thread pumps messages and serves the dispatcher:
 * tickets out, groups in, the dead noted. The compute thread waits for batches and trains. They
 * share the run's tickets and admission under one mutex, held for moments only. Learners beside
 * rank 0 only follow (train_follow.h). */
#include "app/signals.h"
#include "app/train.h"
#include "app/train_follow.h"
#include "app/train_run.h"

#include "core/clock.h"
#include "core/log.h"
#include "transport/channel_mpi.h"
#include "transport/wire.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { PROBE_SAMPLES = 64 };
static const double stop_timeout_s = 10;

struct worker_seat {
    bool alive;
    struct wire_status status; /* newest */
};

struct probe {
    uint32_t wanted, issued, taken;
    struct trajectory_group **groups; /* [wanted] */
};

struct learner_rank {
    const struct rl_config *config;
    struct world *world;
    struct channel *channel;
    struct collective *collective;
    struct rl_waits *waits;
    struct session session;
    struct prompts *prompts;
    struct train_run run;
    pthread_mutex_t mutex;       /* guards what is below, the run's tickets and its admission */
    pthread_cond_t arrived;      /* a group was admitted or something is wrong */
    bool serving;                /* weights are published: greet workers, issue tickets */
    bool draining;               /* no more ordinary tickets */
    struct worker_seat *seats;   /* [world size] */
    struct channel_message held; /* a ticket that could not be sent yet */
    struct probe probe;
    rl_status service_status; /* first failure of the main thread's side */
    uint64_t dead_workers;
    rl_status compute_status;
    atomic_bool finished; /* the compute thread is done */
    bool completed;
    bool stepping; /* a step has begun and not ended: the masters are no step's */
};

static void fail_service(struct learner_rank *l, rl_status status)
{
    if (l->service_status == RL_OK) {
        l->service_status = status;
    }
    pthread_cond_signal(&l->arrived);
}

static uint32_t workers_alive(const struct learner_rank *l)
{
    uint32_t alive = 0;
    for (int rank = 0; rank < world_size(l->world); rank++) {
        alive += l->seats[rank].alive;
    }
    return alive;
}

/* --- main thread: messages in
 * ----------------------------------------------------------------------------- */

static void lose_peer(struct learner_rank *l, int rank)
{
    world_note_lost(l->world, rank);
    if (world_role(l->world, rank) == WORLD_LEARNER) {
        fail_service(l, rl_fail(RL_PEER_LOST, "learner rank %d is lost", rank));
        return;
    }
    if (!l->seats[rank].alive) {
        return;
    }
    l->seats[rank].alive = false;
    l->dead_workers++;
    l->probe.issued = l->probe.taken; /* the rest of the probe is asked for again */
    uint32_t tickets = 0;
    if (l->serving) { /* before that the compute thread has the run to itself */
        tickets = dispatcher_worker_lost(l->run.dispatcher, rank);
        weight_arena_clear_reader(l->run.arena, rank);
    }
    rl_log(RL_LOG_WARN, "rollout rank %d is lost; its %u tickets will be issued again", rank,
           tickets);
    if (workers_alive(l) == 0) {
        fail_service(l, rl_fail(RL_PEER_LOST, "no rollout rank is left"));
    }
}

static rl_status take_group(struct learner_rank *l, const struct channel_message *message)
{
    struct trajectory_group *group = NULL;
    rl_status status = wire_decode_group(message, &group);
    if (status != RL_OK) {
        return status == RL_CORRUPT ? RL_OK : status; /* logged; its ticket stays issued */
    }
    if (group->ticket >= TRAIN_PROBE_TICKET) {
        if (l->probe.taken < l->probe.wanted) {
            l->probe.groups[l->probe.taken++] = group;
        } else {
            trajectory_group_destroy(group);
        }
    } else {
        RL_TRY(admission_offer(l->run.admission, group));
    }
    pthread_cond_signal(&l->arrived);
    return RL_OK;
}

static rl_status handle_message(struct learner_rank *l, const struct channel_message *message)
{
    struct wire_status status;
    switch (message->kind) {
    case WIRE_GROUP:
        return l->serving ? take_group(l, message) : RL_OK;
    case WIRE_STATUS:
        if (wire_decode_status(message, &status) == RL_OK) {
            l->seats[message->peer].status = status;
        }
        return RL_OK;
    case WIRE_STOP: /* it has failed and leaves */
    case CHANNEL_PEER_LOST:
        lose_peer(l, message->peer);
        return RL_OK;
    default:
        return RL_OK;
    }
}

/* --- main thread: messages out
 * ------------------------------------------------------------------------------ */

static rl_status greet_workers(struct learner_rank *l)
{
    struct wire_hello hello = {.rank = (uint32_t)world_rank(l->world),
                               .world_size = (uint32_t)world_size(l->world),
                               .config_hash = prompts_hash(l->prompts),
                               .slot_bytes = l->session.layout->image_bytes};
    snprintf(hello.arena_name, sizeof(hello.arena_name), "%s", weight_arena_name(l->run.arena));
    snprintf(hello.host, sizeof(hello.host), "%s", world_host(l->world));
    for (int rank = 0; rank < world_size(l->world); rank++) {
        struct channel_message message = {.peer = rank};
        if (!l->seats[rank].alive) {
            continue;
        }
        RL_TRY(wire_encode_hello(&hello, &message));
        rl_status status = channel_send(l->channel, &message);
        channel_message_fini(&message);
        if (status != RL_PEER_LOST) {
            RL_TRY(status);
        }
    }
    return RL_OK;
}

static rl_status encode_ticket(struct learner_rank *l, uint64_t number, uint64_t prompt_id,
                               uint32_t epoch, int worker)
{
    struct wire_ticket ticket = {.ticket = number,
                                 .prompt_id = prompt_id,
                                 .epoch = epoch,
                                 .sample_count = (uint32_t)l->config->rollout.samples_per_prompt,
                                 .seed = (uint64_t)l->config->run.seed};
    RL_TRY(wire_encode_ticket(&ticket, &l->held));
    l->held.peer = worker;
    return RL_OK;
}

/* Enough for a full engine and as much again in its queue, so that no worker runs dry. */
static uint32_t tickets_per_worker(const struct learner_rank *l)
{
    int64_t samples = l->config->rollout.samples_per_prompt;
    int64_t running = (l->config->rollout.max_running + samples - 1) / samples;
    return (uint32_t)(2 * running + 1);
}

static int32_t pick_worker(struct learner_rank *l)
{
    int32_t best = -1;
    uint32_t fewest = tickets_per_worker(l);
    for (int rank = 0; rank < world_size(l->world); rank++) {
        uint32_t outstanding = dispatcher_outstanding(l->run.dispatcher, rank);
        if (l->seats[rank].alive && outstanding < fewest) {
            fewest = outstanding;
            best = rank;
        }
    }
    return best;
}

/* Encode the next ticket into `held`; RL_AGAIN if there is none to issue. */
static rl_status next_ticket(struct learner_rank *l)
{
    struct dispatcher_ticket ticket;
    int32_t worker = pick_worker(l);
    if (l->probe.issued < l->probe.wanted) {
        for (worker = 0; !l->seats[worker].alive; worker++) {
        }
        uint32_t index = l->probe.issued++;
        return encode_ticket(l, TRAIN_PROBE_TICKET + index, index % prompts_count(l->prompts),
                             TRAIN_PROBE_EPOCH, worker);
    }
    if (l->draining || worker < 0 || !train_run_wants_tickets(&l->run)) {
        return RL_AGAIN;
    }
    RL_TRY(dispatcher_issue(l->run.dispatcher, worker, tickets_per_worker(l), &ticket));
    return encode_ticket(l, ticket.number, ticket.prompt_id, ticket.epoch, worker);
}

static rl_status issue_tickets(struct learner_rank *l)
{
    for (;;) {
        rl_status status = RL_OK;
        if (l->held.data == NULL) {
            status = next_ticket(l);
            if (status == RL_AGAIN) {
                return RL_OK;
            }
            RL_TRY(status);
        }
        status = channel_send(l->channel, &l->held);
        if (status == RL_AGAIN) {
            return RL_OK;
        }
        if (status == RL_PEER_LOST) {
            channel_message_fini(&l->held); /* its ticket goes back when the loss is announced */
            return RL_OK;
        }
        RL_TRY(status);
    }
}

/* One round of the main thread beside the pump. Returns whether there was work. */
static bool serve(struct learner_rank *l)
{
    struct channel_message message = {0};
    bool worked = false;
    while (channel_receive(l->channel, 0, &message) == RL_OK) {
        pthread_mutex_lock(&l->mutex);
        rl_status status = handle_message(l, &message);
        if (status != RL_OK) {
            fail_service(l, status);
        }
        pthread_mutex_unlock(&l->mutex);
        channel_message_fini(&message);
        worked = true;
    }
    pthread_mutex_lock(&l->mutex);
    if (l->serving && l->service_status == RL_OK) {
        rl_status status = issue_tickets(l);
        if (status != RL_OK) {
            fail_service(l, status);
        }
    }
    pthread_mutex_unlock(&l->mutex);
    return worked;
}

/* --- compute thread: rank 0
 * ------------------------------------------------------------------------------------ */

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
    pthread_mutex_unlock(&l->mutex);
    if (status == RL_AGAIN) {
        return rl_fail(RL_TIMEOUT,
                       "learner waits for samples: none of %u rollout ranks delivered a "
                       "batch in %.0f s (async.wait_timeout_ms)",
                       workers_alive(l), limit_s);
    }
    return wait.status;
}

static double workers_busy_s(const struct learner_rank *l)
{
    double busy = 0;
    for (int rank = 0; rank < world_size(l->world); rank++) {
        busy += l->seats[rank].status.decode_busy_s;
    }
    return busy;
}

static rl_status save(struct learner_rank *l, bool wait)
{
    struct train_snapshot snapshot;
    pthread_mutex_lock(&l->mutex);
    rl_status status = train_run_snapshot(&l->run, &snapshot);
    pthread_mutex_unlock(&l->mutex);
    RL_TRY(status);
    return train_run_save(&l->run, &snapshot, wait);
}

struct feed_marks {
    double busy_s;
    uint64_t dead;
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
    feed.generation_s = workers_busy_s(l) - marks->busy_s;
    feed.dead_workers = l->dead_workers - marks->dead;
    marks->busy_s += feed.generation_s;
    marks->dead = l->dead_workers;
    pthread_mutex_unlock(&l->mutex);
    l->stepping = true;
    rl_status status = train_run_step(&l->run, &batch, &feed);
    admission_batch_fini(&batch);
    RL_TRY(status);
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
    uint32_t wanted = (uint32_t)((PROBE_SAMPLES + samples - 1) / samples);
    double limit_s = (double)l->config->async.wait_timeout_ms / 1000.0;
    double largest = 0;
    uint64_t tokens = 0;
    pthread_mutex_lock(&l->mutex);
    l->probe.groups = calloc(wanted, sizeof(*l->probe.groups));
    l->probe.wanted = l->probe.groups != NULL ? wanted : 0;
    rl_status status =
        l->probe.groups == NULL
            ? rl_fail(RL_NO_MEMORY, "probe: out of memory")
            : rl_wait_signal(l->waits, "learner waits for the probe's samples", &signal, limit_s);
    if (status == RL_OK && l->service_status != RL_OK) {
        status = l->service_status;
    }
    pthread_mutex_unlock(&l->mutex);
    RL_TRY(status);
    RL_TRY(learner_probe(l->run.learner, l->probe.groups, wanted, &largest, &tokens));
    train_run_note_probe(&l->run, largest, tokens);
    return RL_OK;
}

static double workers_cpu_s(struct learner_rank *l)
{
    double cpu = 0;
    pthread_mutex_lock(&l->mutex);
    for (int rank = 0; rank < world_size(l->world); rank++) {
        cpu += l->seats[rank].status.cpu_s;
    }
    pthread_mutex_unlock(&l->mutex);
    return cpu;
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
    l->run.worker_cpu_s = workers_cpu_s(l);
    if (status == RL_OK || status == RL_INTERRUPTED) {
        status = train_run_finish(&l->run, l->completed);
    }
    return status;
}

static rl_status lead(struct learner_rank *l)
{
    struct train_run_args args = {.config = l->config,
                                  .session = &l->session,
                                  .prompts = l->prompts,
                                  .collective = l->collective,
                                  .waits = l->waits,
                                  .shared_arena = true,
                                  .readers = world_size(l->world),
                                  .mutex = &l->mutex};
    rl_status status = train_run_open(&args, &l->run);
    if (status == RL_OK) {
        pthread_mutex_lock(&l->mutex);
        status = greet_workers(l);
        l->serving = status == RL_OK;
        pthread_mutex_unlock(&l->mutex);
    }
    if (status == RL_OK) {
        status = train_loop(l);
    }
    (void)train_follow_stop(l->collective);
    return status;
}

static void *compute(void *arg)
{
    struct learner_rank *l = arg;
    const struct rl_config *config = l->config;
    rl_status status = session_open(config, session_max_length(config), &l->session);
    if (status == RL_OK && world_rank(l->world) != 0) {
        status = train_follow_run(config, &l->session, l->collective, l->waits);
    } else if (status == RL_OK) {
        status = prompts_load(config->data.train, config, l->session.tokenizer, l->session.chat,
                              &l->prompts);
        if (status == RL_OK) {
            status = lead(l);
        }
    }
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
            worked = serve(l) || worked;
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
    double limit_s = (double)config->async.wait_timeout_ms / 1000.0 + 60.0;
    RL_TRY(rl_waits_create(NULL, &l->waits));
    RL_TRY(rl_wait_cond_init(&l->arrived));
    l->seats = calloc((size_t)world_size(l->world), sizeof(*l->seats));
    if (l->seats == NULL) {
        return rl_fail(RL_NO_MEMORY, "learner: out of memory");
    }
    for (int rank = 0; rank < world_size(l->world); rank++) {
        l->seats[rank].alive = world_role(l->world, rank) == WORLD_WORKER;
    }
    RL_TRY(world_learners(l->world) > 1 ? collective_mpi_create(l->world, limit_s, &l->collective)
                                        : collective_local_create(&l->collective));
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
    train_run_close(&l->run);
    prompts_destroy(l->prompts);
    session_close(&l->session);
    channel_close(l->channel);
    collective_destroy(l->collective);
    free(l->seats);
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
