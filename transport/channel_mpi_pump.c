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

/* A process of mpirun's has gone wrong: no concern of its successor's. */
static void lose_current(struct channel_mpi *channel, int rank, const char *why)
{
    if (channel->peers[rank].incarnation == 0) {
        channel_mpi_lose(channel, rank, why, false);
    }
}

/* Control messages are small and were sent whole: receiving them cannot block. */
static void take_control(struct channel_mpi *channel, MPI_Message *found, int rank, int bytes)
{
    struct mpi_control control = {0};
    if (bytes != (int)sizeof control) {
        lose_current(channel, rank, "it sent a control message of the wrong size");
        return;
    }
    if (MPI_Mrecv(&control, sizeof control, MPI_BYTE, found, MPI_STATUS_IGNORE) != MPI_SUCCESS ||
        control.magic != MPI_CONTROL_MAGIC) {
        lose_current(channel, rank, "it sent a malformed control message");
        return;
    }
    channel_mpi_heard(channel, rank);
    if (channel->peers[rank].incarnation == 0) {
        channel_mpi_control(channel, rank, &control);
    }
}

static void take_data(struct channel_mpi *channel, MPI_Message *found, int rank, int tag, int bytes)
{
    struct mpi_peer *peer = &channel->peers[rank];
    if (bytes < 0 || (size_t)bytes > channel->options.message_bytes || tag < MPI_TAG_KIND) {
        lose_current(channel, rank, "it sent a message beyond the limits");
        return;
    }
    struct mpi_flight *flight = flight_make(rank, (uint32_t)(tag - MPI_TAG_KIND), (size_t)bytes);
    if (flight == NULL) {
        lose_current(channel, rank, "no memory for its message");
        return;
    }
    if (MPI_Imrecv(flight->item->message.data, bytes, MPI_BYTE, found, &flight->request) !=
        MPI_SUCCESS) {
        mpi_item_free(flight->item);
        free(flight);
        lose_current(channel, rank, "MPI could not receive its message");
        return;
    }
    channel_mpi_heard(channel, rank);
    flights_push(&peer->receiving, flight);
    if (channel_mpi_is_current(peer)) {
        pthread_mutex_lock(&channel->mutex);
        channel->inbox_coming++;
        pthread_mutex_unlock(&channel->mutex);
    }
}

bool channel_mpi_has_room(struct channel_mpi *channel)
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
    for (int i = 0; i < PUMP_BURST && channel->comm != MPI_COMM_NULL; i++) {
        int tag = channel_mpi_has_room(channel) ? MPI_ANY_TAG : MPI_TAG_CONTROL;
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
    bool drop = !channel_mpi_is_current(peer);
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
            if (channel_mpi_is_current(peer)) {
                peer->heard_s = channel->round_s;
            }
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
    channel_mpi_lose(channel, rank, "MPI could not send to it", false);
}

static void outbox_to_link(struct channel_mpi *channel, struct mpi_item *item)
{
    if (channel_link_send(channel, &item->message) != RL_OK) {
        send_failed(channel, item);
        return;
    }
    mpi_item_free(item);
}

/* Hand queued messages to MPI, or to the sockets. */
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
        struct channel_message *message = &item->message;
        if (channel->peers[message->peer].link != NULL) {
            free(flight);
            outbox_to_link(channel, item);
            continue;
        }
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

/* Forget sends that MPI has finished. Each question costs a round of MPI's own, so what follows an
 * unfinished one to the same peer is not asked about: with a peer that sleeps that would be dear.
 */
static bool pump_sending(struct channel_mpi *channel)
{
    bool worked = false;
    int stalled = -1; /* peer of the last unfinished one */
    struct mpi_flight *before = NULL;
    struct mpi_flight *flight = channel->sending.head;
    while (flight != NULL) {
        int peer = flight->item->message.peer;
        int done = 0;
        if (peer == stalled ||
            MPI_Test(&flight->request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || !done) {
            stalled = peer;
            before = flight;
            flight = flight->next;
            continue;
        }
        struct mpi_flight *next = flight->next;
        flights_unlink(&channel->sending, before);
        pthread_mutex_lock(&channel->mutex);
        channel->unsent -=
            channel_mpi_is_current(&channel->peers[flight->item->message.peer]) ? 1 : 0;
        pthread_mutex_unlock(&channel->mutex);
        mpi_item_free(flight->item);
        free(flight);
        flight = next;
        worked = true;
    }
    return worked;
}

bool channel_mpi_pump_once(struct channel *base, struct collective *collective)
{
    struct channel_mpi *channel = (struct channel_mpi *)base;
    channel->collective = collective;
    channel_mpi_clock(channel);
    bool worked = pump_outbox(channel);
    worked = pump_probe(channel) || worked;
    for (int rank = 0; rank < base->size; rank++) {
        if (channel->peers[rank].receiving.head != NULL) {
            worked = pump_receiving(channel, &channel->peers[rank]) || worked;
        }
        if (channel->peers[rank].link != NULL) {
            worked = channel_link_round(channel, rank) || worked;
        }
        channel_mpi_peer_round(channel, rank);
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
        if (peer->link != NULL) {
            (void)socket_stream_flush(peer->link);
            empty = empty && socket_stream_queued(peer->link) == 0;
        }
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
            channel_mpi_control_send(channel, rank, MPI_CONTROL_GOODBYE);
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
        channel_link_close(channel, rank);
        if (peer->control == MPI_REQUEST_NULL) {
            free(peer->control_data);
        }
    }
}
