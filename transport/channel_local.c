/* Channels inside one process. Owns one hub: a lock, an inbox per rank sorted by due time, and the
 * credits of each ordered pair. Invariant: credit_used[from][to] counts exactly the messages of
 * `from` that `to` has neither received nor had dropped, so it can never exceed options.credits. */
#include "transport/channel_local.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/wait.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* A message on its way. */
struct local_node {
    struct local_node *next;
    struct channel_message message; /* peer: the sender */
    double due_s;
    bool charged; /* gives a credit back when it leaves the inbox */
};

struct local_end {
    struct channel base;
    struct channel_hub *hub;
    bool open;
    struct local_node *inbox; /* by due time, then by order of sending */
    struct channel_counters counters;
    double dead_at_s; /* others know from then on that this rank is dead; INFINITY: lives */
    bool killed;
    bool *lost; /* [size] CHANNEL_PEER_LOST of this peer was delivered here */
};

struct channel_hub {
    struct channel_hub_options options;
    pthread_mutex_t mutex;
    pthread_cond_t arrived;
    struct local_end *ends; /* [size] */
    int *credit_used;       /* [size * size] from * size + to */
};

static double hub_now_s(const struct channel_hub *hub)
{
    return hub->options.now_s != NULL ? hub->options.now_s(hub->options.context)
                                      : rl_clock_now_s(NULL);
}

static int *hub_credit(struct channel_hub *hub, int from, int to)
{
    return &hub->credit_used[(size_t)from * (size_t)hub->options.size + (size_t)to];
}

static void node_free(struct local_node *node)
{
    channel_message_fini(&node->message);
    free(node);
}

/* Behind everything that is due no later. */
static void inbox_insert(struct local_end *end, struct local_node *node)
{
    struct local_node **place = &end->inbox;
    while (*place != NULL && (*place)->due_s <= node->due_s) {
        place = &(*place)->next;
    }
    node->next = *place;
    *place = node;
}

static void inbox_clear(struct local_end *end)
{
    while (end->inbox != NULL) {
        struct local_node *node = end->inbox;
        end->inbox = node->next;
        node_free(node);
    }
}

static rl_status node_make(int from, const struct channel_message *message, bool copy,
                           struct local_node **out)
{
    struct local_node *node = calloc(1, sizeof *node);
    void *data = copy && message->bytes > 0 ? malloc(message->bytes) : NULL;
    if (node == NULL || (copy && message->bytes > 0 && data == NULL)) {
        free(node);
        free(data);
        return rl_fail(RL_NO_MEMORY, "no memory for a message of %zu bytes", message->bytes);
    }
    node->message = *message;
    node->message.peer = from;
    if (copy) {
        node->message.data = data;
        if (data != NULL) {
            memcpy(data, message->data, message->bytes);
        }
    }
    *out = node;
    return RL_OK;
}

/* What send does to a message that may go: by the hook's wish, deliver, lose or deliver twice. */
static rl_status hub_route(struct channel_hub *hub, struct local_end *from, int to,
                           const struct channel_message *message)
{
    struct local_end *receiver = &hub->ends[to];
    double delay_s = 0.0;
    enum channel_fate fate = CHANNEL_DELIVER;
    if (hub->options.fate != NULL) {
        fate = hub->options.fate(hub->options.context, from->base.rank, message, &delay_s);
    }
    struct local_node *twin = NULL;
    if (fate == CHANNEL_DUPLICATE && !receiver->killed) {
        RL_TRY(node_make(from->base.rank, message, true, &twin));
    }
    struct local_node *node = NULL;
    rl_status status = node_make(from->base.rank, message, false, &node);
    if (status != RL_OK) {
        if (twin != NULL) {
            node_free(twin);
        }
        return status;
    }
    node->due_s = hub_now_s(hub) + (delay_s > 0.0 ? delay_s : 0.0);
    node->charged = true;
    if (fate == CHANNEL_LOSE || receiver->killed) {
        /* A dead receiver never acknowledges: its credits stay used, as on a real network. */
        if (receiver->killed) {
            ++*hub_credit(hub, from->base.rank, to);
        }
        node_free(node);
        return RL_OK;
    }
    ++*hub_credit(hub, from->base.rank, to);
    inbox_insert(receiver, node);
    if (twin != NULL) {
        twin->due_s = node->due_s;
        inbox_insert(receiver, twin);
    }
    return RL_OK;
}

static rl_status send_locked(struct channel_hub *hub, struct local_end *end,
                             const struct channel_message *message)
{
    int to = message->peer;
    if (end->killed) {
        return RL_CLOSED;
    }
    if (hub_now_s(hub) >= hub->ends[to].dead_at_s || end->lost[to]) {
        end->counters.dropped_messages++;
        return RL_PEER_LOST;
    }
    if (*hub_credit(hub, end->base.rank, to) >= hub->options.credits) {
        end->counters.credit_waits++;
        return RL_AGAIN;
    }
    size_t bytes = message->bytes;
    RL_TRY(hub_route(hub, end, to, message));
    end->counters.sent_messages++;
    end->counters.sent_bytes += bytes;
    pthread_cond_broadcast(&hub->arrived);
    return RL_OK;
}

static rl_status local_send(struct channel *channel, struct channel_message *message)
{
    struct local_end *end = (struct local_end *)channel;
    struct channel_hub *hub = end->hub;
    if (hub->options.message_bytes > 0 && message->bytes > hub->options.message_bytes) {
        return rl_fail(RL_INVALID, "message of %zu bytes to rank %d, the limit is %zu",
                       message->bytes, message->peer, hub->options.message_bytes);
    }
    pthread_mutex_lock(&hub->mutex);
    rl_status status = send_locked(hub, end, message);
    pthread_mutex_unlock(&hub->mutex);
    if (status == RL_OK) {
        memset(message, 0, sizeof *message);
    }
    return status;
}

/* Take the first due message that may still be seen; drops what a lost peer sent. */
static bool inbox_take(struct channel_hub *hub, struct local_end *end, struct channel_message *out)
{
    while (end->inbox != NULL && end->inbox->due_s <= hub_now_s(hub)) {
        struct local_node *node = end->inbox;
        end->inbox = node->next;
        int peer = node->message.peer;
        if (node->charged) {
            --*hub_credit(hub, peer, end->base.rank);
        }
        if (end->lost[peer]) {
            end->counters.dropped_messages++;
            node_free(node);
            continue;
        }
        *out = node->message;
        free(node);
        if (out->kind == CHANNEL_PEER_LOST) {
            end->lost[peer] = true;
            end->counters.lost_peers++;
        } else {
            end->counters.received_messages++;
            end->counters.received_bytes += out->bytes;
        }
        return true;
    }
    return false;
}

/* What a blocked receiver watches: under the hub's lock. */
struct local_watch {
    struct local_end *end;
    struct local_node *head; /* first message when it went to sleep */
};

static bool inbox_changed(void *arg)
{
    const struct local_watch *watch = arg;
    return watch->end->killed || watch->end->inbox != watch->head;
}

/* Sleep until something changes or is due, at most until the deadline. */
static void inbox_sleep(struct channel_hub *hub, struct local_end *end, double deadline_s)
{
    double until_s = deadline_s;
    if (end->inbox != NULL && end->inbox->due_s < until_s) {
        until_s = end->inbox->due_s;
    }
    struct local_watch watch = {.end = end, .head = end->inbox};
    struct rl_wait_signal signal = {
        .cond = &hub->arrived, .mutex = &hub->mutex, .done = inbox_changed, .arg = &watch};
    double wait_s = until_s - rl_clock_now_s(NULL);
    rl_wait_signal_poll(NULL, "channel: empty", &signal, wait_s > 1e-6 ? wait_s : 1e-6);
}

static rl_status local_receive(struct channel *channel, double timeout_s,
                               struct channel_message *out)
{
    struct local_end *end = (struct local_end *)channel;
    struct channel_hub *hub = end->hub;
    bool may_sleep = hub->options.now_s == NULL && timeout_s > 0.0;
    double deadline_s = rl_clock_now_s(NULL) + timeout_s;
    rl_status status = RL_AGAIN;
    pthread_mutex_lock(&hub->mutex);
    for (;;) {
        if (end->killed) {
            status = RL_CLOSED;
            break;
        }
        if (inbox_take(hub, end, out)) {
            status = RL_OK;
            break;
        }
        if (!may_sleep || rl_clock_now_s(NULL) >= deadline_s) {
            break;
        }
        inbox_sleep(hub, end, deadline_s);
    }
    pthread_mutex_unlock(&hub->mutex);
    return status;
}

static bool local_peer_alive(struct channel *channel, int peer)
{
    struct local_end *end = (struct local_end *)channel;
    pthread_mutex_lock(&end->hub->mutex);
    bool alive = !end->lost[peer] && hub_now_s(end->hub) < end->hub->ends[peer].dead_at_s;
    pthread_mutex_unlock(&end->hub->mutex);
    return alive;
}

static void local_counters(struct channel *channel, struct channel_counters *out)
{
    struct local_end *end = (struct local_end *)channel;
    pthread_mutex_lock(&end->hub->mutex);
    *out = end->counters;
    pthread_mutex_unlock(&end->hub->mutex);
}

static void local_close(struct channel *channel)
{
    struct local_end *end = (struct local_end *)channel;
    struct channel_hub *hub = end->hub;
    pthread_mutex_lock(&hub->mutex);
    inbox_clear(end);
    for (int from = 0; from < hub->options.size; from++) {
        *hub_credit(hub, from, end->base.rank) = 0;
    }
    end->open = false;
    end->killed = true;
    pthread_cond_broadcast(&hub->arrived);
    pthread_mutex_unlock(&hub->mutex);
}

static const struct channel_ops local_ops = {
    .send = local_send,
    .receive = local_receive,
    .peer_alive = local_peer_alive,
    .counters = local_counters,
    .close = local_close,
};

static rl_status hub_alloc(struct channel_hub *hub)
{
    size_t size = (size_t)hub->options.size;
    hub->ends = calloc(size, sizeof *hub->ends);
    hub->credit_used = calloc(size * size, sizeof *hub->credit_used);
    if (hub->ends == NULL || hub->credit_used == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a hub of %zu ranks", size);
    }
    for (size_t i = 0; i < size; i++) {
        struct local_end *end = &hub->ends[i];
        end->base = (struct channel){.ops = &local_ops, .rank = (int)i, .size = (int)size};
        end->hub = hub;
        end->dead_at_s = INFINITY;
        end->lost = calloc(size, sizeof *end->lost);
        if (end->lost == NULL) {
            return rl_fail(RL_NO_MEMORY, "no memory for a hub of %zu ranks", size);
        }
    }
    return RL_OK;
}

static void hub_free(struct channel_hub *hub)
{
    for (int i = 0; hub->ends != NULL && i < hub->options.size; i++) {
        inbox_clear(&hub->ends[i]);
        free(hub->ends[i].lost);
    }
    free(hub->ends);
    free(hub->credit_used);
    free(hub);
}

rl_status channel_hub_create(const struct channel_hub_options *options, struct channel_hub **out)
{
    if (options->size < 1 || options->size > 100000 || options->credits < 1) {
        return rl_fail(RL_INVALID, "hub of %d ranks with %d credits: both must be at least 1",
                       options->size, options->credits);
    }
    struct channel_hub *hub = calloc(1, sizeof *hub);
    if (hub == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a hub");
    }
    hub->options = *options;
    rl_status status = hub_alloc(hub);
    if (status == RL_OK && pthread_mutex_init(&hub->mutex, NULL) != 0) {
        status = rl_fail(RL_INTERNAL, "cannot make the hub's lock");
    }
    if (status != RL_OK) {
        hub_free(hub);
        return status;
    }
    status = rl_wait_cond_init(&hub->arrived);
    if (status != RL_OK) {
        pthread_mutex_destroy(&hub->mutex);
        hub_free(hub);
        return status;
    }
    *out = hub;
    return RL_OK;
}

void channel_hub_destroy(struct channel_hub *hub)
{
    if (hub == NULL) {
        return;
    }
    pthread_cond_destroy(&hub->arrived);
    pthread_mutex_destroy(&hub->mutex);
    hub_free(hub);
}

rl_status channel_local_open(struct channel_hub *hub, int rank, struct channel **out)
{
    if (rank < 0 || rank >= hub->options.size) {
        return rl_fail(RL_INVALID, "rank %d of a hub of %d", rank, hub->options.size);
    }
    struct local_end *end = &hub->ends[rank];
    pthread_mutex_lock(&hub->mutex);
    bool taken = end->open || end->killed;
    end->open = true;
    pthread_mutex_unlock(&hub->mutex);
    if (taken) {
        return rl_fail(RL_INVALID, "rank %d's end was opened before", rank);
    }
    *out = &end->base;
    return RL_OK;
}

/* Tell `end` that `rank` is lost. Without memory the flag alone must do. */
static void hub_announce(struct channel_hub *hub, struct local_end *end, int rank, double due_s)
{
    struct channel_message message = {.peer = rank, .kind = CHANNEL_PEER_LOST};
    struct local_node *node = NULL;
    if (node_make(rank, &message, false, &node) == RL_OK) {
        node->due_s = due_s;
        inbox_insert(end, node);
    }
    *hub_credit(hub, end->base.rank, rank) = 0;
}

void channel_hub_kill(struct channel_hub *hub, int rank, double detect_after_s)
{
    if (rank < 0 || rank >= hub->options.size) {
        return;
    }
    pthread_mutex_lock(&hub->mutex);
    struct local_end *end = &hub->ends[rank];
    if (!end->killed) {
        end->killed = true;
        end->dead_at_s = hub_now_s(hub) + (detect_after_s > 0.0 ? detect_after_s : 0.0);
        inbox_clear(end);
        for (int i = 0; i < hub->options.size; i++) {
            if (i != rank && !hub->ends[i].killed) {
                hub_announce(hub, &hub->ends[i], rank, end->dead_at_s);
            }
        }
        pthread_cond_broadcast(&hub->arrived);
    }
    pthread_mutex_unlock(&hub->mutex);
}

double channel_hub_next_due_s(struct channel_hub *hub)
{
    pthread_mutex_lock(&hub->mutex);
    double due_s = -1.0;
    for (int i = 0; i < hub->options.size; i++) {
        const struct local_node *head = hub->ends[i].inbox;
        if (head != NULL && (due_s < 0.0 || head->due_s < due_s)) {
            due_s = head->due_s;
        }
    }
    pthread_mutex_unlock(&hub->mutex);
    return due_s;
}
