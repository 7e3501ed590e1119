/* See learner_rank.h: the main thread's side of learner rank 0, beside the pump. */
#include "app/learner_rank.h"
#include "app/train_events.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

void learner_service_fail(struct learner_rank *l, rl_status status)
{
    if (l->service_status == RL_OK) {
        l->service_status = status;
    }
    pthread_cond_signal(&l->arrived);
}

uint32_t learner_service_workers(const struct learner_rank *l)
{
    uint32_t alive = 0;
    for (int rank = 0; rank < world_size(l->world); rank++) {
        alive += l->seats[rank].alive;
    }
    return alive;
}

/* --- main thread: messages in
 * ----------------------------------------------------------------------------- */

static void lose_peer(struct learner_rank *l, int rank, bool failed)
{
    bool learner = world_role(l->world, rank) == WORLD_LEARNER;
    if (learner && atomic_load(&l->dismissed)) {
        return; /* it left before us, as it was told to */
    }
    world_note_lost(l->world, rank);
    if (learner) {
        learner_service_fail(l, rl_fail(RL_PEER_LOST, "learner rank %d is lost", rank));
        return;
    }
    if (!l->seats[rank].alive) {
        return;
    }
    l->dead_workers++;
    l->probe.issued = l->probe.taken; /* the rest of the probe is asked for again */
    if (l->held.data != NULL && l->held.peer == rank) {
        channel_message_fini(&l->held); /* its ticket goes back with the others */
        channel_message_fini(&l->behind);
    }
    l->seats[rank].snapshot_due = l->seats[rank].snapshot_open = false;
    pthread_cond_signal(&l->arrived);
    uint32_t tickets = 0;
    if (l->serving) { /* before that the compute thread has the run to itself */
        tickets = dispatcher_worker_lost(l->run.dispatcher, rank);
        rl_status status = learner_weights_lose(l->weights, rank, l->seats[rank].reader);
        if (status != RL_OK) {
            learner_service_fail(l, status);
        }
    }
    rl_log(RL_LOG_WARN, "rollout rank %d is lost; its %u tickets will be issued again", rank,
           tickets);
    learner_seats_lose(l, rank, failed);
    if (!learner_seats_hopeful(l)) {
        learner_service_fail(l, rl_fail(RL_PEER_LOST, "no rollout rank is left"));
    }
}

/* A group of this rank came damaged: of which ticket cannot be trusted, so all that the rank has
 * are issued again. Those that it still delivers are duplicates then, or arrive first. */
static void reissue_all(struct learner_rank *l, int rank)
{
    uint32_t tickets = dispatcher_worker_lost(l->run.dispatcher, rank);
    l->probe.issued = l->probe.taken;
    rl_log(RL_LOG_WARN,
           "a group from rollout rank %d came damaged; its %u tickets will be issued again", rank,
           tickets);
}

static rl_status take_group(struct learner_rank *l, const struct channel_message *message)
{
    struct trajectory_group *group = NULL;
    rl_status status = wire_decode_group(message, &group);
    if (status == RL_CORRUPT) {
        reissue_all(l, message->peer);
        return RL_OK;
    }
    RL_TRY(status);
    if (group->ticket >= TRAIN_PROBE_TICKET) {
        if (l->probe.taken < l->probe.wanted) {
            l->probe.groups[l->probe.taken++] = group;
        } else {
            trajectory_group_destroy(group);
        }
    } else {
        RL_TRY(train_events_offer(&l->run, group));
    }
    pthread_cond_signal(&l->arrived);
    return RL_OK;
}

/* What a rank's time went to since its status before; a new process in its seat counts from 0. */
static void add_times(struct learner_rank *l, const struct wire_status *before,
                      const struct wire_status *now)
{
    bool same = now->cpu_s >= before->cpu_s && now->tokens_generated >= before->tokens_generated;
    for (int i = 0; i < RL_ROLLOUT_TIMES; i++) {
        double spent = now->time_s[i] - (same ? before->time_s[i] : 0);
        l->rollout_s[i] += spent > 0 ? spent : 0;
    }
    rl_pass_times_add(&l->passes, &now->passes, &before->passes);
}

void learner_service_ask(struct learner_rank *l)
{
    l->snapshot++;
    for (int rank = 0; rank < world_size(l->world); rank++) {
        l->seats[rank].snapshot_due = l->seats[rank].snapshot_open = l->seats[rank].alive;
    }
}

bool learner_service_answered(const struct learner_rank *l)
{
    for (int rank = 0; rank < world_size(l->world); rank++) {
        if (l->seats[rank].alive && l->seats[rank].snapshot_open) {
            return false;
        }
    }
    return true;
}

static rl_status take_partial(struct learner_rank *l, const struct channel_message *message)
{
    struct trajectory_group *group = NULL;
    uint64_t id = 0;
    rl_status status = wire_decode_partial(message, &id, &group);
    if (status != RL_OK) {
        return status == RL_CORRUPT ? RL_OK : status; /* logged; it is sampled again */
    }
    if (group == NULL) {
        struct worker_seat *seat = &l->seats[message->peer];
        seat->snapshot_open = seat->snapshot_open && id != l->snapshot;
        pthread_cond_signal(&l->arrived);
        return RL_OK;
    }
    if (group->ticket >= TRAIN_PROBE_TICKET) {
        trajectory_group_destroy(group);
        return RL_OK;
    }
    return partial_store_put(&l->run.partials, l->run.admission, group);
}

static rl_status handle_message(struct learner_rank *l, const struct channel_message *message)
{
    struct wire_status status;
    switch (message->kind) {
    case WIRE_GROUP:
        learner_seats_delivered(l, message->peer);
        return l->serving ? take_group(l, message) : RL_OK;
    case WIRE_PARTIAL:
        return l->serving ? take_partial(l, message) : RL_OK;
    case WIRE_STATUS:
        if (wire_decode_status(message, &status) == RL_OK) {
            add_times(l, &l->seats[message->peer].status, &status);
            l->seats[message->peer].status = status;
        }
        return RL_OK;
    case WIRE_STOP: /* it has failed and leaves */
        lose_peer(l, message->peer, true);
        return RL_OK;
    case CHANNEL_PEER_LOST:
        lose_peer(l, message->peer, false);
        learner_seats_left(l, message->peer);
        return RL_OK;
    case WIRE_HELLO:
    case WIRE_BYTES:
        return l->serving ? learner_weights_take(l->weights, message) : RL_OK;
    default:
        return RL_OK;
    }
}

/* --- main thread: messages out
 * ------------------------------------------------------------------------------ */

rl_status learner_service_greet(struct learner_rank *l, int rank)
{
    return learner_weights_greet(l->weights, rank);
}

/* `held` is the ticket, or what is finished of its group with the ticket behind it. */
static rl_status encode_ticket(struct learner_rank *l, const struct dispatcher_ticket *ticket,
                               bool pinned)
{
    struct wire_ticket out = {.ticket = ticket->number,
                              .prompt_id = ticket->prompt_id,
                              .epoch = ticket->epoch,
                              .sample_count = (uint32_t)l->config->rollout.samples_per_prompt,
                              .seed = (uint64_t)l->config->run.seed,
                              .version = ticket->version,
                              .pinned = pinned};
    const struct trajectory_group *partial =
        partial_store_find(&l->run.partials, l->run.admission, ticket->number);
    if (partial != NULL) {
        RL_TRY(wire_encode_partial(0, partial, &l->held));
    }
    rl_status status = wire_encode_ticket(&out, partial != NULL ? &l->behind : &l->held);
    if (status != RL_OK) {
        channel_message_fini(&l->held);
        return status;
    }
    l->held.peer = l->behind.peer = ticket->worker;
    return RL_OK;
}

/* Enough for a full engine and as much again in its queue, so that no worker runs dry. */
static uint32_t tickets_per_worker(const struct learner_rank *l)
{
    int64_t samples = l->config->rollout.samples_per_prompt;
    int64_t running = (l->config->rollout.max_running + samples - 1) / samples;
    return (uint32_t)(2 * running + 1);
}

/* May the rank be given a ticket? Where groups must be of the newest version (`newest`), only once
 * its node has that. */
static bool can_generate(const struct learner_rank *l, int rank, bool newest)
{
    uint32_t version = learner_version(l->run.learner);
    return l->seats[rank].alive &&
           learner_weights_ready(l->weights, rank, newest ? &version : NULL);
}

static int32_t pick_worker(struct learner_rank *l)
{
    int32_t best = -1;
    uint32_t fewest = tickets_per_worker(l);
    bool newest = l->config->async.max_staleness == 0;
    for (int rank = 0; rank < world_size(l->world); rank++) {
        uint32_t outstanding = dispatcher_outstanding(l->run.dispatcher, rank);
        if (outstanding < fewest && can_generate(l, rank, newest)) {
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
        for (worker = 0; worker < world_size(l->world) && !can_generate(l, worker, true);
             worker++) {
        }
        if (worker == world_size(l->world)) {
            return RL_AGAIN; /* the last weights are on their way, or a seat is being refilled */
        }
        uint32_t index = l->probe.issued++;
        ticket = (struct dispatcher_ticket){.number = TRAIN_PROBE_TICKET + index,
                                            .prompt_id = index % prompts_count(l->prompts),
                                            .epoch = TRAIN_PROBE_EPOCH,
                                            .version = learner_version(l->run.learner),
                                            .worker = worker};
        return encode_ticket(l, &ticket, false);
    }
    if (l->draining || worker < 0 || !train_run_wants_tickets(&l->run)) {
        return RL_AGAIN;
    }
    RL_TRY(dispatcher_issue(l->run.dispatcher, worker, tickets_per_worker(l), &ticket));
    return encode_ticket(l, &ticket, train_run_fixed_lag(&l->run));
}

static rl_status issue_tickets(struct learner_rank *l)
{
    for (;;) {
        rl_status status = RL_OK;
        if (l->held.data == NULL && l->behind.data != NULL) {
            l->held = l->behind;
            l->behind = (struct channel_message){0};
        }
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
            channel_message_fini(&l->behind);
            return RL_OK;
        }
        RL_TRY(status);
    }
}

static rl_status send_snapshots(struct learner_rank *l)
{
    for (int rank = 0; rank < world_size(l->world); rank++) {
        struct channel_message message = {.peer = rank};
        if (!l->seats[rank].alive || !l->seats[rank].snapshot_due) {
            continue;
        }
        RL_TRY(wire_encode_snapshot(l->snapshot, &message));
        rl_status status = channel_send(l->channel, &message);
        channel_message_fini(&message);
        if (status == RL_OK || status == RL_PEER_LOST) {
            l->seats[rank].snapshot_due = false;
        } else if (status != RL_AGAIN) {
            return status;
        }
    }
    return RL_OK;
}

/* One round of the main thread beside the pump. Returns whether there was work. */
bool learner_service_round(struct learner_rank *l)
{
    struct channel_message message = {0};
    bool worked = false;
    while (channel_receive(l->channel, 0, &message) == RL_OK) {
        pthread_mutex_lock(&l->mutex);
        rl_status status = handle_message(l, &message);
        if (status != RL_OK) {
            learner_service_fail(l, status);
        }
        pthread_mutex_unlock(&l->mutex);
        channel_message_fini(&message);
        worked = true;
    }
    pthread_mutex_lock(&l->mutex);
    if (l->serving && l->service_status == RL_OK) {
        worked = learner_seats_refill(l) || worked;
        rl_status status = send_snapshots(l);
        status = status == RL_OK ? issue_tickets(l) : status;
        if (status != RL_OK) {
            learner_service_fail(l, status);
        }
    }
    pthread_mutex_unlock(&l->mutex);
    return worked;
}
