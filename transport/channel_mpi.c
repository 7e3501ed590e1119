/* The compute threads' side of the MPI channel: bounded queues, credits, blocking receive. Owns the
 * lock; makes no MPI call. Invariant: for every peer sent - acked <= credits, and the messages in
 * the inbox, the losses announced there apart, never exceed ring_messages. */
#include "transport/channel_mpi_internal.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/wait.h"
#include "transport/wire.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

void mpi_queue_push(struct mpi_queue *queue, struct mpi_item *item)
{
    item->next = NULL;
    if (queue->tail != NULL) {
        queue->tail->next = item;
    } else {
        queue->head = item;
    }
    queue->tail = item;
    queue->count++;
}

struct mpi_item *mpi_queue_pop(struct mpi_queue *queue)
{
    struct mpi_item *item = queue->head;
    if (item != NULL) {
        queue->head = item->next;
        queue->tail = queue->head == NULL ? NULL : queue->tail;
        queue->count--;
    }
    return item;
}

void mpi_item_free(struct mpi_item *item)
{
    if (item != NULL) {
        free(item->message.data);
        free(item);
    }
}

/* Why a message cannot be taken now. */
static rl_status send_admit(struct channel_mpi *channel, const struct channel_message *message)
{
    struct mpi_peer *peer = &channel->peers[message->peer];
    if (channel->closed) {
        return RL_CLOSED;
    }
    if (peer->lost) {
        channel->counters.dropped_messages++;
        return RL_PEER_LOST;
    }
    if (peer->sent - peer->acked >= (uint64_t)channel->options.credits) {
        channel->counters.credit_waits++;
        return RL_AGAIN;
    }
    bool to_self = message->peer == channel->base.rank;
    size_t used = to_self ? channel->inbox.count + channel->inbox_coming : channel->outbox.count;
    if (used >= channel->options.ring_messages) {
        channel->counters.ring_waits++;
        return RL_AGAIN;
    }
    return RL_OK;
}

static void send_enqueue(struct channel_mpi *channel, struct mpi_item *item)
{
    channel->peers[item->message.peer].sent++;
    channel->counters.sent_messages++;
    channel->counters.sent_bytes += item->message.bytes;
    if (item->message.peer == channel->base.rank) {
        mpi_queue_push(&channel->inbox, item);
        pthread_cond_broadcast(&channel->arrived);
        return;
    }
    mpi_queue_push(&channel->outbox, item);
    channel->unsent++;
    channel->woken = true;
    pthread_cond_signal(&channel->wake);
}

static rl_status mpi_send(struct channel *base, struct channel_message *message)
{
    struct channel_mpi *channel = (struct channel_mpi *)base;
    if (message->bytes > channel->options.message_bytes || message->kind >= MPI_KINDS_MAX) {
        return rl_fail(RL_INVALID, "message of kind %u, %zu bytes to rank %d: limits are %d, %zu",
                       message->kind, message->bytes, message->peer, MPI_KINDS_MAX - 1,
                       channel->options.message_bytes);
    }
    struct mpi_item *item = malloc(sizeof *item);
    if (item == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory to queue a message");
    }
    item->message = *message;
    pthread_mutex_lock(&channel->mutex);
    rl_status status = send_admit(channel, message);
    if (status == RL_OK) {
        send_enqueue(channel, item);
    }
    pthread_mutex_unlock(&channel->mutex);
    if (status != RL_OK) {
        free(item);
        return status;
    }
    memset(message, 0, sizeof *message);
    return RL_OK;
}

static bool receive_ready(void *arg)
{
    const struct channel_mpi *channel = arg;
    return channel->inbox.count > 0 || channel->closed;
}

/* Acknowledgements are sent by the pump once enough have come together; wake it for those. */
static void receive_account(struct channel_mpi *channel, const struct channel_message *message)
{
    struct mpi_peer *peer = &channel->peers[message->peer];
    if (message->kind == CHANNEL_PEER_LOST) {
        return;
    }
    peer->consumed++;
    channel->counters.received_messages++;
    channel->counters.received_bytes += message->bytes;
    if (message->peer == channel->base.rank) {
        peer->acked++;
    }
}

static rl_status mpi_receive(struct channel *base, double timeout_s, struct channel_message *out)
{
    struct channel_mpi *channel = (struct channel_mpi *)base;
    rl_status status = RL_OK;
    pthread_mutex_lock(&channel->mutex);
    if (!receive_ready(channel) && timeout_s > 0.0) {
        struct rl_wait_signal signal = {.cond = &channel->arrived,
                                        .mutex = &channel->mutex,
                                        .done = receive_ready,
                                        .arg = channel};
        rl_wait_signal_poll(NULL, "channel: empty", &signal, timeout_s);
    }
    struct mpi_item *item = mpi_queue_pop(&channel->inbox);
    if (item != NULL) {
        *out = item->message;
        receive_account(channel, out);
    } else {
        status = channel->closed ? RL_CLOSED : RL_AGAIN;
    }
    pthread_mutex_unlock(&channel->mutex);
    free(item);
    return status;
}

static bool mpi_peer_alive(struct channel *base, int peer)
{
    struct channel_mpi *channel = (struct channel_mpi *)base;
    pthread_mutex_lock(&channel->mutex);
    bool alive = !channel->peers[peer].lost;
    pthread_mutex_unlock(&channel->mutex);
    return alive;
}

static void mpi_counters(struct channel *base, struct channel_counters *out)
{
    struct channel_mpi *channel = (struct channel_mpi *)base;
    pthread_mutex_lock(&channel->mutex);
    *out = channel->counters;
    pthread_mutex_unlock(&channel->mutex);
}

bool channel_mpi_flushed(struct channel *base)
{
    struct channel_mpi *channel = (struct channel_mpi *)base;
    pthread_mutex_lock(&channel->mutex);
    bool flushed = channel->unsent == 0;
    pthread_mutex_unlock(&channel->mutex);
    return flushed;
}

double channel_mpi_silence_s(const struct channel *base, int rank)
{
    const struct channel_mpi *channel = (const struct channel_mpi *)base;
    return rl_clock_now_s(NULL) - channel->peers[rank].heard_s;
}

static void queue_clear(struct mpi_queue *queue)
{
    for (struct mpi_item *item = mpi_queue_pop(queue); item != NULL; item = mpi_queue_pop(queue)) {
        mpi_item_free(item);
    }
}

static void mpi_close(struct channel *base)
{
    struct channel_mpi *channel = (struct channel_mpi *)base;
    channel_mpi_drain(channel);
    queue_clear(&channel->outbox);
    queue_clear(&channel->inbox);
    pthread_cond_destroy(&channel->wake);
    pthread_cond_destroy(&channel->arrived);
    pthread_mutex_destroy(&channel->mutex);
    free(channel->peers);
    free(channel);
}

static const struct channel_ops mpi_ops = {
    .send = mpi_send,
    .receive = mpi_receive,
    .peer_alive = mpi_peer_alive,
    .counters = mpi_counters,
    .close = mpi_close,
};

/* Rank 0 and everybody else watch each other, and learners watch learners. */
static void create_peers(struct channel_mpi *channel)
{
    int learners = world_learners(channel->world);
    int me = channel->base.rank;
    double now_s = rl_clock_now_s(NULL);
    for (int rank = 0; rank < channel->base.size; rank++) {
        struct mpi_peer *peer = &channel->peers[rank];
        peer->watched = rank != me && (rank == 0 || me == 0 || (rank < learners && me < learners));
        peer->heard_s = now_s;
        peer->control = MPI_REQUEST_NULL;
        if (world_has_joined(channel->world) && rank != me) {
            peer->lost = true; /* nobody but rank 0, which comes next */
            peer->watched = rank == 0;
        }
        if (world_is_hosted(channel->world) && rank != me) {
            peer->lost = true; /* until its process is started */
        }
    }
    channel->round_s = now_s;
}

static rl_status create_check(const struct world *world, const struct channel_mpi_options *options)
{
    bool reaches = world_has_mpi(world) || world_has_joined(world) || world_is_hosted(world);
    if (!reaches || world_learners(world) == 0) {
        return rl_fail(RL_INVALID, "an MPI channel needs mpirun and the ranks' roles");
    }
    if (options->ring_messages < 1 || options->credits < 1 || options->heartbeat_s <= 0.0 ||
        options->dead_after_s <= 2.0 * options->heartbeat_s ||
        options->message_bytes > (size_t)INT_MAX) {
        return rl_fail(RL_INVALID,
                       "MPI channel: ring %zu, credits %d, heartbeat %g s, dead after %g s "
                       "(more than two heartbeats), messages of %zu bytes",
                       options->ring_messages, options->credits, options->heartbeat_s,
                       options->dead_after_s, options->message_bytes);
    }
    return RL_OK;
}

static rl_status create_locks(struct channel_mpi *channel)
{
    RL_TRY(rl_wait_cond_init(&channel->arrived));
    rl_status status = rl_wait_cond_init(&channel->wake);
    if (status == RL_OK && pthread_mutex_init(&channel->mutex, NULL) != 0) {
        pthread_cond_destroy(&channel->wake);
        status = rl_fail(RL_INTERNAL, "cannot make the channel's lock");
    }
    if (status != RL_OK) {
        pthread_cond_destroy(&channel->arrived);
    }
    return status;
}

rl_status channel_mpi_create(struct world *world, const struct channel_mpi_options *options,
                             struct channel **out)
{
    RL_TRY(create_check(world, options));
    struct channel_mpi *channel = calloc(1, sizeof *channel);
    struct mpi_peer *peers = calloc((size_t)world_size(world), sizeof *peers);
    rl_status status = RL_OK;
    if (channel == NULL || peers == NULL) {
        status = rl_fail(RL_NO_MEMORY, "no memory for a channel of %d ranks", world_size(world));
    } else {
        status = create_locks(channel);
    }
    if (status != RL_OK) {
        free(peers);
        free(channel);
        return status;
    }
    channel->base =
        (struct channel){.ops = &mpi_ops, .rank = world_rank(world), .size = world_size(world)};
    channel->world = world;
    channel->options = *options;
    if (options->message_bytes == 0) {
        channel->options.message_bytes = (size_t)WIRE_BYTES_MAX + WIRE_HEADER_BYTES;
    }
    if (options->first_contact_s <= 0.0) {
        channel->options.first_contact_s = 120.0;
    }
    channel->comm = world_comm(world);
    channel->peers = peers;
    create_peers(channel);
    if (world_has_joined(world)) {
        status = channel_mpi_join(&channel->base, 0, world_incarnation(world), world_socket(world));
        if (status != RL_OK) {
            mpi_close(&channel->base);
            return status;
        }
    }
    *out = &channel->base;
    return RL_OK;
}
