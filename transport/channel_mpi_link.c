/* Peers that are not mpirun's: successors of lost ranks, reached over a socket. Owns the sockets
 * while they are peers; the rest of a peer's life is the pump's. Invariant: a peer's socket and its
 * incarnation change together, and only after its loss was announced and taken. */
#include "transport/channel_mpi_internal.h"

#include "core/clock.h"
#include "core/log.h"

#include <stdlib.h>
#include <string.h>

enum { LINK_BURST = 64 };
static const double link_dying_s = 1.0; /* most that a process takes to die */

/* Sent data leaves the count of what is unsent. */
static bool link_flush(struct channel_mpi *channel, struct mpi_peer *peer)
{
    size_t before = socket_stream_queued(peer->link);
    bool moved = socket_stream_flush(peer->link);
    size_t left = socket_stream_queued(peer->link);
    pthread_mutex_lock(&channel->mutex);
    channel->unsent -= before - left;
    pthread_mutex_unlock(&channel->mutex);
    return moved;
}

static void link_take(struct channel_mpi *channel, int rank, struct channel_message *message)
{
    struct mpi_item *item = calloc(1, sizeof *item);
    if (item == NULL) {
        channel_message_fini(message);
        channel_mpi_lose(channel, rank, "no memory for its message", false);
        return;
    }
    message->peer = rank;
    item->message = *message;
    pthread_mutex_lock(&channel->mutex);
    mpi_queue_push(&channel->inbox, item);
    pthread_cond_signal(&channel->arrived);
    pthread_mutex_unlock(&channel->mutex);
}

static void link_take_control(struct channel_mpi *channel, int rank,
                              struct channel_message *message)
{
    struct mpi_control control = {0};
    bool sound = message->bytes == sizeof control;
    if (sound) {
        memcpy(&control, message->data, sizeof control);
    }
    channel_message_fini(message);
    if (!sound || control.magic != MPI_CONTROL_MAGIC) {
        channel_mpi_lose(channel, rank, "it sent a malformed control message", false);
        return;
    }
    channel_mpi_control(channel, rank, &control);
}

/* A dying process closes its sockets a moment before it counts as dead. */
static bool leader_has_ended(const struct world *world)
{
    double deadline_s = rl_clock_now_s(NULL) + link_dying_s;
    while (!world_rank_has_ended(world, 0) && rl_clock_now_s(NULL) < deadline_s) {
        rl_clock_sleep_s(NULL, 10e-3);
    }
    return world_rank_has_ended(world, 0);
}

/* The socket's other end is gone: its process has ended, or it has closed the socket on us. */
static void link_ended(struct channel_mpi *channel, int rank)
{
    bool agreed = channel->peers[rank].leaving;
    const char *why = agreed ? "it left" : "its process has ended";
    if (!agreed && rank == 0 && !leader_has_ended(channel->world)) {
        world_note_disowned(channel->world);
        why = "it has given us up as lost";
    }
    channel_mpi_lose(channel, rank, why, agreed);
}

bool channel_link_round(struct channel_mpi *channel, int rank)
{
    struct mpi_peer *peer = &channel->peers[rank];
    bool worked = link_flush(channel, peer);
    for (int i = 0; i < LINK_BURST && peer->link != NULL && !peer->lost; i++) {
        struct channel_message message = {0};
        if (!channel_mpi_has_room(channel)) {
            peer->heard_s = channel->round_s; /* we do not listen: its silence is our own */
            break;
        }
        rl_status status = socket_stream_receive(peer->link, &message);
        if (status == RL_AGAIN) {
            break;
        }
        if (status != RL_OK) {
            link_ended(channel, rank);
            return true;
        }
        worked = true;
        peer->met = true;
        peer->heard_s = channel->round_s;
        if (message.kind == MPI_CONTROL_KIND) {
            link_take_control(channel, rank, &message);
        } else {
            link_take(channel, rank, &message);
        }
    }
    return worked;
}

rl_status channel_link_send(struct channel_mpi *channel, struct channel_message *message)
{
    return socket_stream_send(channel->peers[message->peer].link, message);
}

rl_status channel_link_control(struct channel_mpi *channel, int rank,
                               const struct mpi_control *control)
{
    struct channel_message message = {.kind = MPI_CONTROL_KIND, .bytes = sizeof *control};
    message.data = malloc(sizeof *control);
    if (message.data == NULL) {
        return RL_NO_MEMORY;
    }
    memcpy(message.data, control, sizeof *control);
    rl_status status = socket_stream_send(channel->peers[rank].link, &message);
    if (status != RL_OK) {
        channel_message_fini(&message);
        return status;
    }
    pthread_mutex_lock(&channel->mutex);
    channel->unsent++; /* counted like data: flushed means flushed */
    pthread_mutex_unlock(&channel->mutex);
    return RL_OK;
}

void channel_link_close(struct channel_mpi *channel, int rank)
{
    struct mpi_peer *peer = &channel->peers[rank];
    if (peer->link == NULL) {
        return;
    }
    (void)link_flush(channel, peer);
    pthread_mutex_lock(&channel->mutex);
    channel->unsent -= socket_stream_queued(peer->link);
    pthread_mutex_unlock(&channel->mutex);
    socket_stream_destroy(peer->link);
    peer->link = NULL;
}

rl_status channel_mpi_join(struct channel *base, int rank, uint32_t incarnation, int fd)
{
    struct channel_mpi *channel = (struct channel_mpi *)base;
    struct mpi_peer *peer = &channel->peers[rank];
    struct socket_stream *link = NULL;
    RL_TRY(socket_stream_create(fd, incarnation, channel->options.message_bytes, &link));
    if (!peer->lost || peer->link != NULL || incarnation <= peer->incarnation) {
        socket_stream_destroy(link);
        return rl_fail(RL_INVALID, "rank %d, incarnation %u, cannot follow incarnation %u%s", rank,
                       incarnation, peer->incarnation, peer->lost ? "" : ", which is not lost");
    }
    pthread_mutex_lock(&channel->mutex);
    peer->lost = false;
    peer->sent = 0;
    peer->acked = 0;
    peer->consumed = 0;
    pthread_mutex_unlock(&channel->mutex);
    peer->consumed_told = 0;
    peer->met = false;
    peer->leaving = false;
    peer->gone_s = 0.0;
    peer->incarnation = incarnation;
    peer->link = link;
    peer->heard_s = rl_clock_now_s(NULL);
    peer->beat_s = 0.0;
    return RL_OK;
}
