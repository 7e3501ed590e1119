/* MPI's side of the channel: one round takes what arrived, sends what is queued, beats and judges
 * who is alive. Only non-blocking calls. Invariant: messages of one peer enter the inbox in the
 * order in which MPI matched them, and memory that MPI may still touch is never freed: what a lost
 * peer keeps from completing is left behind on purpose. */
#include "transport/channel_mpi_internal.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/wait.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { PUMP_BURST = 64 }; /* messages taken or sent in a round */
static const double pump_idle_min_s = 50e-6;
static const double pump_idle_max_s = 1e-3;
static const double pump_drain_s = 5.0;   /* most that a close waits for queued messages */
static const double pump_goodbye_s = 0.5; /* most that it waits for MPI to let go of the rest */

static void flights_push(struct mpi_flights *flights, struct mpi_flight *flight)
{
    flight->next = NULL;
    if (flights->tail != NULL) {
        flights->tail->next = flight;
    } else {
        flights->head = flight;
    }
    flights->tail = flight;
    flights->count++;
}

/* Unlink the flight that *place points at; `before` is its predecessor or NULL. */
static struct mpi_flight *flights_unlink(struct mpi_flights *flights, struct mpi_flight *before)
{
    struct mpi_flight *flight = before != NULL ? before->next : flights->head;
    if (before != NULL) {
        before->next = flight->next;
    } else {
        flights->head = flight->next;
    }
    if (flights->tail == flight) {
        flights->tail = before;
    }
    flights->count--;
    return flight;
}

static struct mpi_flight *flight_make(int peer, uint32_t kind, size_t bytes)
{
    struct mpi_flight *flight = calloc(1, sizeof *flight);
    struct mpi_item *item = calloc(1, sizeof *item);
    void *data = bytes > 0 ? malloc(bytes) : NULL;
    if (flight == NULL || item == NULL || (bytes > 0 && data == NULL)) {
        free(flight);
        free(item);
        free(data);
        return NULL;
    }
    item->message =
        (struct channel_message){.peer = peer, .kind = kind, .bytes = bytes, .data = data};
    flight->item = item;
    flight->request = MPI_REQUEST_NULL;
    return flight;
}

/* Queued messages to a lost peer go nowhere. Caller holds the mutex. */
static void outbox_purge(struct channel_mpi *channel, int rank)
{
    struct mpi_queue kept = {0};
    for (struct mpi_item *item = mpi_queue_pop(&channel->outbox); item != NULL;
         item = mpi_queue_pop(&channel->outbox)) {
        if (item->message.peer == rank) {
            mpi_item_free(item);
            channel->unsent--;
            channel->counters.dropped_messages++;
        } else {
            mpi_queue_push(&kept, item);
        }
    }
    channel->outbox = kept;
}

/* Ask MPI to give up receives from a lost peer. What does not end stays in the list, unread. */
static void receiving_cancel(struct channel_mpi *channel, struct mpi_peer *peer)
{
    size_t coming = 0;
    for (struct mpi_flight *flight = peer->receiving.head; flight != NULL; flight = flight->next) {
        if (flight->request != MPI_REQUEST_NULL) {
            MPI_Cancel(&flight->request);
        }
        coming++;
    }
    channel->inbox_coming -= coming;
}

/* Sends on their way to it no longer count as unsent. Caller holds the mutex. */
static void sending_discount(struct channel_mpi *channel, int rank)
{
    for (struct mpi_flight *flight = channel->sending.head; flight != NULL; flight = flight->next) {
        if (flight->item->message.peer == rank) {
            channel->unsent--;
        }
    }
}

/* From now on `rank` does not exist: announced once, in the stream of messages. */
static void peer_lose(struct channel_mpi *channel, int rank, const char *why, bool agreed)
{
    struct mpi_peer *peer = &channel->peers[rank];
    if (peer->lost) {
        return;
    }
    rl_log(agreed ? RL_LOG_DEBUG : RL_LOG_WARN, "rank %d is lost: %s", rank, why);
    struct mpi_item *item = calloc(1, sizeof *item);
    pthread_mutex_lock(&channel->mutex);
    peer->lost = true;
    channel->counters.lost_peers += agreed ? 0 : 1;
    outbox_purge(channel, rank);
    sending_discount(channel, rank);
    receiving_cancel(channel, peer);
    if (item != NULL) {
        item->message = (struct channel_message){.peer = rank, .kind = CHANNEL_PEER_LOST};
        mpi_queue_push(&channel->inbox, item);
    }
    pthread_cond_broadcast(&channel->arrived);
    pthread_mutex_unlock(&channel->mutex);
    if (!agreed) {
        world_note_lost(channel->world, rank);
    }
    if (channel->collective != NULL) {
        collective_mpi_note_lost(channel->collective, rank);
    }
}

/* One control message to a peer; skipped while the last one has not left. */
static void control_send(struct channel_mpi *channel, int rank, uint32_t flags)
{
    struct mpi_peer *peer = &channel->peers[rank];
    int done = 1;
    if (peer->control != MPI_REQUEST_NULL &&
        (MPI_Test(&peer->control, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || !done)) {
        return;
    }
    if (peer->control_data == NULL) {
        peer->control_data = calloc(1, sizeof *peer->control_data);
        if (peer->control_data == NULL) {
            return; /* tried again with the next beat */
        }
    }
    pthread_mutex_lock(&channel->mutex);
    uint64_t consumed = peer->consumed;
    pthread_mutex_unlock(&channel->mutex);
    flags |= world_is_whole(channel->world) ? 0 : MPI_CONTROL_TORN;
    *peer->control_data =
        (struct mpi_control){.magic = MPI_CONTROL_MAGIC, .flags = flags, .consumed = consumed};
    if (MPI_Isend(peer->control_data, sizeof *peer->control_data, MPI_BYTE, rank, MPI_TAG_CONTROL,
                  channel->comm, &peer->control) == MPI_SUCCESS) {
        peer->beat_s = channel->round_s;
        peer->consumed_told = consumed;
    } else {
        peer->control = MPI_REQUEST_NULL;
    }
}

static void control_take(struct channel_mpi *channel, int rank, const struct mpi_control *control)
{
    struct mpi_peer *peer = &channel->peers[rank];
    pthread_mutex_lock(&channel->mutex);
    if (control->consumed > peer->acked && control->consumed <= peer->sent) {
        peer->acked = control->consumed;
    }
    pthread_mutex_unlock(&channel->mutex);
    if ((control->flags & MPI_CONTROL_TORN) != 0) {
        world_note_torn(channel->world);
    }
    if ((control->flags & MPI_CONTROL_LOST) != 0) {
        peer->told = true; /* it knows; no need to answer in kind */
        peer_lose(channel, rank, "it has given us up as lost", false);
    } else if ((control->flags & MPI_CONTROL_GOODBYE) != 0) {
        peer->told = true;
        peer->leaving = true;
    }
}

/* A lost peer that speaks again learns that it is lost, once. */
static void peer_heard(struct channel_mpi *channel, int rank)
{
    struct mpi_peer *peer = &channel->peers[rank];
    peer->met = true;
    peer->heard_s = channel->round_s;
    if (peer->lost && !peer->told) {
        peer->told = true;
        control_send(channel, rank, MPI_CONTROL_LOST);
    }
}

/* Control messages are small and were sent whole: receiving them cannot block. */
static void take_control(struct channel_mpi *channel, MPI_Message *found, int rank, int bytes)
{
    struct mpi_control control = {0};
    if (bytes != (int)sizeof control) {
        peer_lose(channel, rank, "it sent a control message of the wrong size", false);
        return;
    }
    if (MPI_Mrecv(&control, sizeof control, MPI_BYTE, found, MPI_STATUS_IGNORE) != MPI_SUCCESS ||
        control.magic != MPI_CONTROL_MAGIC) {
        peer_lose(channel, rank, "it sent a malformed control message", false);
        return;
    }
    peer_heard(channel, rank);
    control_take(channel, rank, &control);
}

static void take_data(struct channel_mpi *channel, MPI_Message *found, int rank, int tag, int bytes)
{
    struct mpi_peer *peer = &channel->peers[rank];
    if (bytes < 0 || (size_t)bytes > channel->options.message_bytes || tag < MPI_TAG_KIND) {
        peer_lose(channel, rank, "it sent a message beyond the limits", false);
        return;
    }
    struct mpi_flight *flight = flight_make(rank, (uint32_t)(tag - MPI_TAG_KIND), (size_t)bytes);
    if (flight == NULL) {
        peer_lose(channel, rank, "no memory for its message", false);
        return;
    }
    if (MPI_Imrecv(flight->item->message.data, bytes, MPI_BYTE, found, &flight->request) !=
        MPI_SUCCESS) {
        mpi_item_free(flight->item);
        free(flight);
        peer_lose(channel, rank, "MPI could not receive its message", false);
        return;
    }
    peer_heard(channel, rank);
    flights_push(&peer->receiving, flight);
    if (!peer->lost) {
        pthread_mutex_lock(&channel->mutex);
        channel->inbox_coming++;
        pthread_mutex_unlock(&channel->mutex);
    }
}

static bool inbox_has_room(struct channel_mpi *channel)
{
    pthread_mutex_lock(&channel->mutex);
    bool room = channel->inbox.count + channel->inbox_coming < channel->options.ring_messages;
    pthread_mutex_unlock(&channel->mutex);
    return room;
}

/* Match what arrived. A full inbox leaves data with MPI, but control is always taken. */
static bool pump_probe(struct channel_mpi *channel)
{
    bool worked = false;
    for (int i = 0; i < PUMP_BURST; i++) {
        int tag = inbox_has_room(channel) ? MPI_ANY_TAG : MPI_TAG_CONTROL;
        int flag = 0;
        int bytes = 0;
        MPI_Message found = MPI_MESSAGE_NULL;
        MPI_Status status;
        if (MPI_Improbe(MPI_ANY_SOURCE, tag, channel->comm, &flag, &found, &status) !=
                MPI_SUCCESS ||
            !flag) {
            break;
        }
        worked = true;
        if (MPI_Get_count(&status, MPI_BYTE, &bytes) != MPI_SUCCESS) {
            bytes = -1;
        }
        if (status.MPI_TAG == MPI_TAG_CONTROL) {
            take_control(channel, &found, status.MPI_SOURCE, bytes);
        } else {
            take_data(channel, &found, status.MPI_SOURCE, status.MPI_TAG, bytes);
        }
    }
    return worked;
}

/* Hand a finished message to the receivers, or drop it if its sender is lost. */
static void deliver(struct channel_mpi *channel, struct mpi_peer *peer, struct mpi_item *item)
{
    pthread_mutex_lock(&channel->mutex);
    bool drop = peer->lost;
    if (drop) {
        channel->counters.dropped_messages++;
    } else {
        channel->inbox_coming--;
        mpi_queue_push(&channel->inbox, item);
        pthread_cond_signal(&channel->arrived);
    }
    pthread_mutex_unlock(&channel->mutex);
    if (drop) {
        mpi_item_free(item);
    }
}

/* Finish receives of one peer; later ones wait for earlier ones. */
static bool pump_receiving(struct channel_mpi *channel, struct mpi_peer *peer)
{
    bool worked = false;
    for (struct mpi_flight *flight = peer->receiving.head; flight != NULL; flight = flight->next) {
        int done = 0;
        if (!flight->done && MPI_Test(&flight->request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS &&
            done) {
            flight->done = true;
            peer->heard_s = channel->round_s;
            worked = true;
        }
    }
    while (peer->receiving.head != NULL && peer->receiving.head->done) {
        struct mpi_flight *flight = flights_unlink(&peer->receiving, NULL);
        deliver(channel, peer, flight->item);
        free(flight);
    }
    return worked;
}

static void send_failed(struct channel_mpi *channel, struct mpi_item *item)
{
    int rank = item->message.peer;
    pthread_mutex_lock(&channel->mutex);
    channel->unsent--;
    channel->counters.dropped_messages++;
    pthread_mutex_unlock(&channel->mutex);
    mpi_item_free(item);
    peer_lose(channel, rank, "MPI could not send to it", false);
}

/* Hand queued messages to MPI. */
static bool pump_outbox(struct channel_mpi *channel)
{
    bool worked = false;
    for (int i = 0; i < PUMP_BURST; i++) {
        struct mpi_flight *flight = calloc(1, sizeof *flight);
        if (flight == NULL) {
            break; /* memory is short: the message waits */
        }
        pthread_mutex_lock(&channel->mutex);
        struct mpi_item *item = mpi_queue_pop(&channel->outbox);
        pthread_mutex_unlock(&channel->mutex);
        if (item == NULL) {
            free(flight);
            break;
        }
        worked = true;
        const struct channel_message *message = &item->message;
        if (MPI_Isend(message->data, (int)message->bytes, MPI_BYTE, message->peer,
                      MPI_TAG_KIND + (int)message->kind, channel->comm,
                      &flight->request) != MPI_SUCCESS) {
            free(flight);
            send_failed(channel, item);
            continue;
        }
        flight->item = item;
        flights_push(&channel->sending, flight);
    }
    return worked;
}

/* Forget sends that MPI has finished. */
static bool pump_sending(struct channel_mpi *channel)
{
    bool worked = false;
    struct mpi_flight *before = NULL;
    struct mpi_flight *flight = channel->sending.head;
    while (flight != NULL) {
        int done = 0;
        if (MPI_Test(&flight->request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || !done) {
            before = flight;
            flight = flight->next;
            continue;
        }
        struct mpi_flight *next = flight->next;
        flights_unlink(&channel->sending, before);
        pthread_mutex_lock(&channel->mutex);
        channel->unsent -= channel->peers[flight->item->message.peer].lost ? 0 : 1;
        pthread_mutex_unlock(&channel->mutex);
        mpi_item_free(flight->item);
        free(flight);
        flight = next;
        worked = true;
    }
    return worked;
}

/* A peer is told how much was consumed when a quarter of its credits is due, or with the beat. */
static bool ack_is_due(struct channel_mpi *channel, struct mpi_peer *peer)
{
    uint64_t quarter = (uint64_t)channel->options.credits / 4;
    pthread_mutex_lock(&channel->mutex);
    uint64_t owed = peer->consumed - peer->consumed_told;
    pthread_mutex_unlock(&channel->mutex);
    if (owed == 0) {
        return false;
    }
    bool beat_due = channel->round_s - peer->beat_s >= channel->options.heartbeat_s;
    return owed >= (quarter > 0 ? quarter : 1) || beat_due;
}

/* A goodbye may overtake data while the inbox is full: what was sent before it still counts. */
static bool peer_has_left(struct channel_mpi *channel, int rank)
{
    int waiting = 0;
    return channel->peers[rank].leaving && channel->peers[rank].receiving.head == NULL &&
           MPI_Iprobe(rank, MPI_ANY_TAG, channel->comm, &waiting, MPI_STATUS_IGNORE) ==
               MPI_SUCCESS &&
           !waiting;
}

static void pump_peer_life(struct channel_mpi *channel, int rank)
{
    struct mpi_peer *peer = &channel->peers[rank];
    if (peer->lost || rank == channel->base.rank) {
        return;
    }
    if (peer_has_left(channel, rank)) {
        peer_lose(channel, rank, "it left", true);
        return;
    }
    double now_s = channel->round_s;
    bool beat_due = peer->watched && now_s - peer->beat_s >= channel->options.heartbeat_s;
    if (beat_due || ack_is_due(channel, peer)) {
        control_send(channel, rank, 0);
    }
    double limit_s = peer->met ? channel->options.dead_after_s : channel->options.first_contact_s;
    if (peer->watched && now_s - peer->heard_s > limit_s) {
        peer_lose(channel, rank,
                  peer->met ? "no sign of life within async.dead_after_ms"
                            : "it never gave a sign of life",
                  false);
    }
}

/* Silence counts only while we listen: after a stop of our own, everybody gets the time back. */
static void pump_clock(struct channel_mpi *channel)
{
    double now_s = rl_clock_now_s(NULL);
    double gap_s = now_s - channel->round_s;
    if (gap_s > channel->options.heartbeat_s) {
        for (int rank = 0; rank < channel->base.size; rank++) {
            channel->peers[rank].heard_s += gap_s;
        }
    }
    channel->round_s = now_s;
}

bool channel_mpi_pump_once(struct channel *base, struct collective *collective)
{
    struct channel_mpi *channel = (struct channel_mpi *)base;
    channel->collective = collective;
    pump_clock(channel);
    bool worked = pump_outbox(channel);
    worked = pump_probe(channel) || worked;
    for (int rank = 0; rank < base->size; rank++) {
        if (channel->peers[rank].receiving.head != NULL) {
            worked = pump_receiving(channel, &channel->peers[rank]) || worked;
        }
        pump_peer_life(channel, rank);
    }
    worked = pump_sending(channel) || worked;
    if (collective != NULL) {
        worked = collective_mpi_progress(collective) || worked;
    }
    return worked;
}

static bool pump_is_woken(void *arg)
{
    return ((const struct channel_mpi *)arg)->woken;
}

void channel_mpi_idle(struct channel *base, bool worked)
{
    struct channel_mpi *channel = (struct channel_mpi *)base;
    if (worked) {
        channel->idle_s = pump_idle_min_s;
        return;
    }
    if (channel->collective != NULL && collective_mpi_active(channel->collective)) {
        channel->idle_s = pump_idle_min_s;
    }
    struct rl_wait_signal signal = {
        .cond = &channel->wake, .mutex = &channel->mutex, .done = pump_is_woken, .arg = channel};
    pthread_mutex_lock(&channel->mutex);
    rl_wait_signal_poll(NULL, "pump: idle", &signal,
                        channel->idle_s > 0.0 ? channel->idle_s : pump_idle_min_s);
    channel->woken = false;
    pthread_mutex_unlock(&channel->mutex);
    double longer_s = channel->idle_s * 1.2;
    channel->idle_s = longer_s < pump_idle_min_s   ? pump_idle_min_s
                      : longer_s < pump_idle_max_s ? longer_s
                                                   : pump_idle_max_s;
}

rl_status channel_mpi_pump(struct channel *base, struct collective *collective,
                           bool (*done)(void *context), void *context, double timeout_s)
{
    double started_s = rl_clock_now_s(NULL);
    while (!done(context)) {
        bool worked = channel_mpi_pump_once(base, collective);
        double waited_s = rl_clock_now_s(NULL) - started_s;
        if (timeout_s > 0.0 && waited_s > timeout_s) {
            return rl_fail(RL_TIMEOUT, "the pump was not told to stop within %.1f s", waited_s);
        }
        channel_mpi_idle(base, worked);
    }
    return RL_OK;
}

static bool drain_done(void *arg)
{
    return channel_mpi_flushed(arg);
}

/* Wait briefly for requests that can still end. True when MPI holds nothing of ours. */
static bool drain_test(struct channel_mpi *channel)
{
    pump_sending(channel);
    bool empty = channel->sending.head == NULL;
    for (int rank = 0; rank < channel->base.size; rank++) {
        struct mpi_peer *peer = &channel->peers[rank];
        pump_receiving(channel, peer);
        int done = 1;
        if (peer->control != MPI_REQUEST_NULL) {
            MPI_Test(&peer->control, &done, MPI_STATUS_IGNORE);
        }
        empty = empty && peer->receiving.head == NULL && done;
    }
    return empty;
}

/* Requests that never end: MPI keeps request and memory, only our records go. */
static void flights_abandon(struct mpi_flights *flights)
{
    while (flights->head != NULL) {
        struct mpi_flight *flight = flights_unlink(flights, NULL);
        if (flight->done) {
            mpi_item_free(flight->item);
        }
        free(flight);
    }
}

void channel_mpi_drain(struct channel_mpi *channel)
{
    if (channel_mpi_pump(&channel->base, NULL, drain_done, &channel->base, pump_drain_s) != RL_OK) {
        rl_log(RL_LOG_WARN, "messages were left unsent at the end");
    }
    pthread_mutex_lock(&channel->mutex);
    channel->closed = true;
    pthread_mutex_unlock(&channel->mutex);
    for (int rank = 0; rank < channel->base.size; rank++) {
        if (channel->peers[rank].watched && !channel->peers[rank].lost) {
            control_send(channel, rank, MPI_CONTROL_GOODBYE);
        }
    }
    double deadline_s = rl_clock_now_s(NULL) + pump_goodbye_s;
    bool empty = drain_test(channel);
    while (!empty && rl_clock_now_s(NULL) < deadline_s) {
        rl_clock_sleep_s(NULL, 200e-6);
        empty = drain_test(channel);
    }
    flights_abandon(&channel->sending);
    for (int rank = 0; rank < channel->base.size; rank++) {
        struct mpi_peer *peer = &channel->peers[rank];
        flights_abandon(&peer->receiving);
        if (peer->control == MPI_REQUEST_NULL) {
            free(peer->control_data);
        }
    }
}
