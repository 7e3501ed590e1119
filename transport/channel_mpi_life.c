/* Who lives: signs of life given and taken, silence judged, losses announced. Owns what a peer's
 * loss undoes in the queues. Pump thread. Invariant: a loss is announced once, after everything
 * that the peer's process said before it and before anything that a successor says. */
#include "transport/channel_mpi_internal.h"

#include "core/clock.h"
#include "core/log.h"

#include <stdlib.h>

static const double life_look_s = 0.1; /* between two looks at a peer's process */

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
    if (peer->incarnation != 0) {
        return;
    }
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
    if (channel->peers[rank].incarnation != 0) {
        return; /* a socket's messages are no flights, and the others were discounted before */
    }
    for (struct mpi_flight *flight = channel->sending.head; flight != NULL; flight = flight->next) {
        if (flight->item->message.peer == rank) {
            channel->unsent--;
        }
    }
}

static struct mpi_control control_make(struct channel_mpi *channel, const struct mpi_peer *peer,
                                       uint32_t flags)
{
    pthread_mutex_lock(&channel->mutex);
    uint64_t consumed = peer->consumed;
    pthread_mutex_unlock(&channel->mutex);
    flags |= world_is_whole(channel->world) ? 0 : MPI_CONTROL_TORN;
    return (struct mpi_control){.magic = MPI_CONTROL_MAGIC, .flags = flags, .consumed = consumed};
}

/* Over MPI; skipped (false) while the last one has not left. */
static bool control_send_mpi(struct channel_mpi *channel, int rank,
                             const struct mpi_control *control)
{
    struct mpi_peer *peer = &channel->peers[rank];
    int done = 1;
    if (peer->control != MPI_REQUEST_NULL &&
        (MPI_Test(&peer->control, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS || !done)) {
        return false;
    }
    if (peer->control_data == NULL) {
        peer->control_data = calloc(1, sizeof *peer->control_data);
        if (peer->control_data == NULL) {
            return false; /* tried again with the next beat */
        }
    }
    *peer->control_data = *control;
    if (MPI_Isend(peer->control_data, sizeof *peer->control_data, MPI_BYTE, rank, MPI_TAG_CONTROL,
                  channel->comm, &peer->control) != MPI_SUCCESS) {
        peer->control = MPI_REQUEST_NULL;
        return false;
    }
    return true;
}

/* One control message to a peer, if it can be sent now. */
void channel_mpi_control_send(struct channel_mpi *channel, int rank, uint32_t flags)
{
    struct mpi_peer *peer = &channel->peers[rank];
    struct mpi_control control = control_make(channel, peer, flags);
    bool sent = peer->link != NULL ? channel_link_control(channel, rank, &control) == RL_OK
                                   : control_send_mpi(channel, rank, &control);
    if (sent) {
        peer->beat_s = channel->round_s;
        peer->consumed_told = control.consumed;
    }
}

/* From now on `rank` does not exist: announced once, in the stream of messages. */
void channel_mpi_lose(struct channel_mpi *channel, int rank, const char *why, bool agreed)
{
    struct mpi_peer *peer = &channel->peers[rank];
    if (peer->lost) {
        return;
    }
    rl_log(agreed ? RL_LOG_DEBUG : RL_LOG_WARN, "rank %d is lost: %s (last heard %.2f s ago)", rank,
           why, rl_clock_now_s(NULL) - peer->heard_s);
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
    if (peer->link != NULL) {
        if (!agreed) {
            channel_mpi_control_send(channel, rank, MPI_CONTROL_LOST);
        }
        channel_link_close(channel, rank);
    }
    if (!agreed && !world_is_disowned(channel->world)) {
        world_note_lost(channel->world, rank);
    }
    if (channel->collective != NULL) {
        collective_mpi_note_lost(channel->collective, rank);
    }
}

void channel_mpi_control(struct channel_mpi *channel, int rank, const struct mpi_control *control)
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
        if (rank == 0) {
            world_note_disowned(channel->world);
        }
        channel_mpi_lose(channel, rank, "it has given us up as lost", false);
    } else if ((control->flags & MPI_CONTROL_GOODBYE) != 0) {
        peer->told = true;
        peer->leaving = true;
    }
}

/* Whether what comes over MPI from `rank` is from the process that has the rank now. */
bool channel_mpi_is_current(const struct mpi_peer *peer)
{
    return !peer->lost && peer->incarnation == 0;
}

/* Something came over MPI. A lost process that speaks again learns, once, that it is lost. */
void channel_mpi_heard(struct channel_mpi *channel, int rank)
{
    struct mpi_peer *peer = &channel->peers[rank];
    if (channel_mpi_is_current(peer)) {
        peer->met = true;
        peer->heard_s = channel->round_s;
    } else if (!peer->told) {
        struct mpi_control control = control_make(channel, peer, MPI_CONTROL_LOST);
        peer->told = control_send_mpi(channel, rank, &control);
    }
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
    if (channel->peers[rank].link != NULL) {
        return channel->peers[rank].leaving; /* a socket keeps the order */
    }
    return channel->peers[rank].leaving && channel->peers[rank].receiving.head == NULL &&
           MPI_Iprobe(rank, MPI_ANY_TAG, channel->comm, &waiting, MPI_STATUS_IGNORE) ==
               MPI_SUCCESS &&
           !waiting;
}

/* The end of a process on this node is seen at once, not after async.dead_after_ms. What it sent
 * before must still be taken: MPI has that by now, so a moment after a look is enough. */
static bool peer_has_ended(struct channel_mpi *channel, int rank)
{
    struct mpi_peer *peer = &channel->peers[rank];
    double now_s = channel->round_s;
    if (!peer->watched || peer->incarnation != 0 || peer->link != NULL) {
        return false;
    }
    if (peer->gone_s == 0.0 && now_s - peer->looked_s >= life_look_s) {
        peer->looked_s = now_s;
        peer->gone_s = world_rank_has_ended(channel->world, rank) ? now_s : 0.0;
    }
    return peer->gone_s > 0.0 && now_s - peer->gone_s >= life_look_s &&
           channel_mpi_has_room(channel);
}

void channel_mpi_peer_round(struct channel_mpi *channel, int rank)
{
    struct mpi_peer *peer = &channel->peers[rank];
    if (peer->lost || rank == channel->base.rank) {
        return;
    }
    if (peer_has_left(channel, rank)) {
        channel_mpi_lose(channel, rank, "it left", true);
        return;
    }
    if (peer_has_ended(channel, rank)) {
        channel_mpi_lose(channel, rank, "its process has ended", false);
        return;
    }
    double now_s = channel->round_s;
    bool beat_due = peer->watched && now_s - peer->beat_s >= channel->options.heartbeat_s;
    if (beat_due || ack_is_due(channel, peer)) {
        channel_mpi_control_send(channel, rank, 0);
    }
    double limit_s = peer->met ? channel->options.dead_after_s : channel->options.first_contact_s;
    if (peer->watched && now_s - peer->heard_s > limit_s) {
        channel_mpi_lose(channel, rank,
                         peer->met ? "no sign of life within async.dead_after_ms"
                                   : "it never gave a sign of life",
                         false);
    }
}

/* Silence counts only while we listen: after a stop of our own, everybody gets the time back. */
void channel_mpi_clock(struct channel_mpi *channel)
{
    double now_s = rl_clock_now_s(NULL);
    double gap_s = now_s - channel->round_s;
    if (gap_s > channel->options.heartbeat_s) {
        for (int rank = 0; rank < channel->base.size; rank++) {
            channel->peers[rank].heard_s = channel->peers[rank].heard_s + gap_s;
        }
    }
    channel->round_s = now_s;
}
