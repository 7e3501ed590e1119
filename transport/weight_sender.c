/* See weight_sender.h. The thread alone owns transfers and payloads; what other threads tell it
 * (leaders that come and go, answers) lies in `told` under the mutex, which is held for moments.
 * Leaders that are at the same version share one payload. */
#include "transport/weight_sender.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/wait.h"
#include "transport/weight_delta.h"
#include "transport/weight_message.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum {
    SENDER_PIECE_BYTES = 1 << 20,
    SENDER_WINDOW_BYTES = 8 << 20, /* unanswered at most */
    SENDER_CLEAR_MAX = 32          /* dead readers of a node not yet reported */
};
static const double idle_s = 0.05;
static const double retry_s = 0.001;

/* What is being sent to one or several leaders. */
struct payload {
    uint32_t form, base, version;
    uint64_t hash; /* of the resulting image */
    int users;
    void *data;
    size_t bytes;
};

/* What other threads said about a peer. */
struct peer_told {
    bool leads;
    uint64_t turn;     /* counts how often it was added */
    uint64_t transfer; /* of the last answer */
    uint64_t received; /* bytes */
    uint32_t state;    /* enum weight_transfer_state */
    bool has;          /* it has published something: */
    uint32_t version;
    int clear[SENDER_CLEAR_MAX], clear_count; /* reader indices */
};

struct peer {
    uint64_t turn;
    bool has; /* an image: of `version`, with `hash` */
    uint32_t version;
    uint64_t hash;
    struct payload *payload; /* under way */
    uint64_t transfer, sent;
};

struct weight_sender {
    struct weight_sender_options options;
    pthread_t thread;
    pthread_mutex_t mutex; /* guards told, stop, woken, counters */
    pthread_cond_t wake;
    struct peer_told *told; /* [size] */
    bool stop, woken;
    struct weight_sender_counters counters;
    /* The thread's own. */
    struct peer *peers; /* [size] */
    uint8_t *mask;
    uint64_t transfers;
};

/* --- payloads
 * -------------------------------------------------------------------------------------- */

static void payload_release(struct payload **payload)
{
    if (*payload != NULL && --(*payload)->users == 0) {
        free((*payload)->data);
        free(*payload);
    }
    *payload = NULL;
}

static rl_status encode_delta(struct weight_sender *s, const struct peer *peer,
                              const struct weight_view *view, struct payload *out)
{
    struct weight_delta_info info = {.base_version = peer->version,
                                     .version = view->version,
                                     .element_bytes = s->options.element_bytes,
                                     .image_bytes = s->options.image_bytes,
                                     .base_hash = peer->hash,
                                     .hash = view->hash};
    RL_TRY(weight_history_union(s->options.history, peer->version, view->version, s->mask));
    RL_TRY(weight_delta_encode(&info, s->mask, view->image, &out->data, &out->bytes));
    if (out->bytes >= s->options.image_bytes) {
        free(out->data);
        out->data = NULL;
        return RL_TOO_LONG;
    }
    out->form = WEIGHT_DELTA;
    out->base = peer->version;
    return RL_OK;
}

static rl_status copy_image(const struct weight_sender *s, const struct weight_view *view,
                            struct payload *out)
{
    out->data = malloc(s->options.image_bytes);
    if (out->data == NULL) {
        return rl_fail(RL_NO_MEMORY, "weight sender: no memory for %zu bytes",
                       s->options.image_bytes);
    }
    memcpy(out->data, view->image, s->options.image_bytes);
    out->bytes = s->options.image_bytes;
    out->form = WEIGHT_FULL;
    return RL_OK;
}

/* One that another leader is being sent. */
static struct payload *find_payload(const struct weight_sender *s, const struct peer *peer,
                                    uint32_t version)
{
    for (int i = 0; i < s->options.channel->size; i++) {
        struct payload *other = s->peers[i].payload;
        if (other != NULL && other->version == version &&
            (other->form == WEIGHT_FULL ? !peer->has : peer->has && other->base == peer->version)) {
            return other;
        }
    }
    return NULL;
}

static rl_status make_payload(struct weight_sender *s, const struct peer *peer, uint32_t version,
                              struct payload **out)
{
    struct weight_view view;
    double start = rl_clock_thread_cpu_s();
    RL_TRY(weight_arena_pin(s->options.arena, s->options.reader, version, &view));
    struct payload *payload = calloc(1, sizeof *payload);
    rl_status status = payload != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "weight sender: no memory");
    if (status == RL_OK && (!peer->has || encode_delta(s, peer, &view, payload) != RL_OK)) {
        status = copy_image(s, &view, payload);
    }
    weight_arena_unpin(s->options.arena, s->options.reader, version);
    if (status != RL_OK) {
        free(payload);
        return status;
    }
    payload->version = version;
    payload->hash = view.hash;
    *out = payload;
    pthread_mutex_lock(&s->mutex);
    s->counters.encode_s += rl_clock_thread_cpu_s() - start;
    pthread_mutex_unlock(&s->mutex);
    return RL_OK;
}

/* --- one leader
 * ------------------------------------------------------------------------------------ */

/* The version that the leader should get next; false if it has the newest. */
static bool next_version(const struct weight_sender *s, const struct peer *peer, uint32_t *version)
{
    uint32_t newest = 0;
    uint32_t kept = 0;
    if (!weight_arena_latest(s->options.arena, &newest) || (peer->has && peer->version == newest)) {
        return false;
    }
    *version = newest;
    if (weight_arena_kept_from(s->options.arena, &kept)) {
        *version = peer->has && peer->version >= kept ? peer->version + 1 : kept;
        *version = *version > newest ? newest : *version;
    }
    return true;
}

static rl_status begin_transfer(struct weight_sender *s, struct peer *peer)
{
    uint32_t version = 0;
    if (!next_version(s, peer, &version)) {
        return RL_AGAIN;
    }
    struct payload *payload = find_payload(s, peer, version);
    rl_status status = payload != NULL ? RL_OK : make_payload(s, peer, version, &payload);
    uint32_t newest = 0;
    while (status == RL_NOT_FOUND && weight_arena_latest(s->options.arena, &newest) &&
           version < newest) {
        status = make_payload(s, peer, ++version, &payload); /* kept, but never published */
    }
    RL_TRY(status);
    payload->users++;
    peer->payload = payload;
    peer->transfer = ++s->transfers;
    peer->sent = 0;
    pthread_mutex_lock(&s->mutex);
    s->counters.sends++;
    s->counters.bytes += payload->bytes;
    s->counters.full_sends += payload->form == WEIGHT_FULL;
    pthread_mutex_unlock(&s->mutex);
    return RL_OK;
}

static rl_status send_piece(struct weight_sender *s, int rank, struct peer *peer)
{
    const struct payload *payload = peer->payload;
    size_t left = payload->bytes - peer->sent;
    uint32_t kept = 0;
    struct weight_message piece = {.type = WEIGHT_PIECE,
                                   .form = payload->form,
                                   .transfer = peer->transfer,
                                   .version = payload->version,
                                   .total_bytes = payload->bytes,
                                   .offset = peer->sent,
                                   .hash = payload->hash,
                                   .keep_from = WEIGHT_KEEP_NONE,
                                   .slots = (uint32_t)weight_arena_slots(s->options.arena),
                                   .readers = (uint32_t)weight_arena_readers(s->options.arena),
                                   .data = (const unsigned char *)payload->data + peer->sent,
                                   .bytes = left < SENDER_PIECE_BYTES ? left : SENDER_PIECE_BYTES};
    struct channel_message message = {.peer = rank};
    if (weight_arena_kept_from(s->options.arena, &kept)) {
        piece.keep_from = kept;
    }
    RL_TRY(weight_message_encode(&piece, &message));
    rl_status status = channel_send(s->options.channel, &message);
    channel_message_fini(&message);
    peer->sent += status == RL_OK ? piece.bytes : 0;
    return status;
}

/* Report one dead reader; RL_AGAIN: there is none. */
static rl_status send_clear(struct weight_sender *s, int rank, const struct peer_told *told)
{
    if (told->clear_count == 0) {
        return RL_AGAIN;
    }
    struct weight_message clear = {.type = WEIGHT_CLEAR, .readers = (uint32_t)told->clear[0]};
    struct channel_message message = {.peer = rank};
    RL_TRY(weight_message_encode(&clear, &message));
    rl_status status = channel_send(s->options.channel, &message);
    channel_message_fini(&message);
    if (status == RL_OK) {
        pthread_mutex_lock(&s->mutex);
        struct peer_told *now = &s->told[rank];
        now->clear_count -= now->clear_count > 0;
        memmove(now->clear, now->clear + 1, (size_t)now->clear_count * sizeof now->clear[0]);
        pthread_mutex_unlock(&s->mutex);
    }
    return status;
}

/* The transfer is over, one way or the other. */
static void end_transfer(struct weight_sender *s, int rank, struct peer *peer, bool published)
{
    pthread_mutex_lock(&s->mutex);
    s->counters.published += published;
    s->counters.refused += !published;
    pthread_mutex_unlock(&s->mutex);
    peer->has = published;
    peer->version = peer->payload->version;
    peer->hash = peer->payload->hash;
    payload_release(&peer->payload);
    if (!published) {
        rl_log(RL_LOG_WARN, "rank %d refused weight version %u: it gets the whole image", rank,
               peer->version);
    }
}

/* Bring one leader on, as far as it goes without waiting. RL_AGAIN: nothing to do. */
static rl_status serve(struct weight_sender *s, int rank, const struct peer_told *told)
{
    struct peer *peer = &s->peers[rank];
    if (!told->leads || peer->turn != told->turn) {
        payload_release(&peer->payload);
        *peer = (struct peer){.turn = told->turn};
    }
    if (!told->leads) {
        return RL_AGAIN;
    }
    if (send_clear(s, rank, told) == RL_OK) {
        return RL_OK;
    }
    bool answered = peer->payload != NULL && told->transfer == peer->transfer;
    if (answered && told->state != WEIGHT_COMING) {
        end_transfer(s, rank, peer, told->state == WEIGHT_PUBLISHED);
        answered = false;
    }
    if (peer->payload == NULL) {
        RL_TRY(begin_transfer(s, peer));
    }
    uint64_t received = answered ? told->received : 0;
    if (peer->sent == peer->payload->bytes || peer->sent - received >= SENDER_WINDOW_BYTES) {
        return RL_AGAIN;
    }
    return send_piece(s, rank, peer);
}

/* --- the thread
 * ------------------------------------------------------------------------------------ */

static bool woken(void *arg)
{
    const struct weight_sender *s = arg;
    return s->woken || s->stop;
}

static bool wait_for_work(struct weight_sender *s, double timeout_s)
{
    struct rl_wait_signal signal = {.cond = &s->wake, .mutex = &s->mutex, .done = woken, .arg = s};
    pthread_mutex_lock(&s->mutex);
    if (timeout_s > 0 && !woken(s)) {
        (void)rl_wait_signal_poll(NULL, "weight sender: idle", &signal, timeout_s);
    }
    s->woken = false;
    bool go_on = !s->stop;
    pthread_mutex_unlock(&s->mutex);
    return go_on;
}

static void *sender_run(void *arg)
{
    struct weight_sender *s = arg;
    double pause_s = 0;
    while (wait_for_work(s, pause_s)) {
        pause_s = idle_s;
        for (int rank = 0; rank < s->options.channel->size; rank++) {
            pthread_mutex_lock(&s->mutex);
            struct peer_told told = s->told[rank];
            pthread_mutex_unlock(&s->mutex);
            rl_status status = serve(s, rank, &told);
            if (status == RL_OK) {
                pause_s = 0;
            } else if (s->peers[rank].payload != NULL && pause_s > retry_s) {
                pause_s = retry_s; /* no credit just now, or an answer is due */
            }
        }
    }
    return NULL;
}

/* --- life cycle and other threads
 * ------------------------------------------------------------------ */

static void sender_free(struct weight_sender *s)
{
    for (int i = 0; s->peers != NULL && i < s->options.channel->size; i++) {
        payload_release(&s->peers[i].payload);
    }
    free(s->peers);
    free(s->told);
    free(s->mask);
    free(s);
}

rl_status weight_sender_start(const struct weight_sender_options *options,
                              struct weight_sender **out)
{
    struct weight_sender *s = calloc(1, sizeof *s);
    size_t size = (size_t)options->channel->size;
    if (s == NULL) {
        return rl_fail(RL_NO_MEMORY, "weight sender: no memory");
    }
    s->options = *options;
    s->peers = calloc(size, sizeof *s->peers);
    s->told = calloc(size, sizeof *s->told);
    s->mask = malloc(options->image_bytes / options->element_bytes / 8);
    rl_status status = s->peers != NULL && s->told != NULL && s->mask != NULL
                           ? rl_wait_cond_init(&s->wake)
                           : rl_fail(RL_NO_MEMORY, "weight sender: no memory for %zu ranks", size);
    if (status != RL_OK) {
        sender_free(s);
        return status;
    }
    pthread_mutex_init(&s->mutex, NULL);
    if (pthread_create(&s->thread, NULL, sender_run, s) != 0) {
        pthread_mutex_destroy(&s->mutex);
        pthread_cond_destroy(&s->wake);
        sender_free(s);
        return rl_fail(RL_INTERNAL, "weight sender: cannot start its thread");
    }
    *out = s;
    return RL_OK;
}

static void wake_thread(struct weight_sender *s)
{
    s->woken = true;
    pthread_cond_signal(&s->wake);
}

void weight_sender_stop(struct weight_sender *sender)
{
    if (sender == NULL) {
        return;
    }
    pthread_mutex_lock(&sender->mutex);
    sender->stop = true;
    wake_thread(sender);
    pthread_mutex_unlock(&sender->mutex);
    pthread_join(sender->thread, NULL);
    pthread_mutex_destroy(&sender->mutex);
    pthread_cond_destroy(&sender->wake);
    sender_free(sender);
}

void weight_sender_add(struct weight_sender *sender, int peer)
{
    pthread_mutex_lock(&sender->mutex);
    struct peer_told *told = &sender->told[peer];
    *told = (struct peer_told){.leads = true, .turn = told->turn + 1};
    wake_thread(sender);
    pthread_mutex_unlock(&sender->mutex);
}

void weight_sender_remove(struct weight_sender *sender, int peer)
{
    pthread_mutex_lock(&sender->mutex);
    sender->told[peer].leads = false;
    wake_thread(sender);
    pthread_mutex_unlock(&sender->mutex);
}

void weight_sender_clear_reader(struct weight_sender *sender, int peer, int reader)
{
    pthread_mutex_lock(&sender->mutex);
    struct peer_told *told = &sender->told[peer];
    if (told->clear_count < SENDER_CLEAR_MAX) {
        told->clear[told->clear_count++] = reader;
        wake_thread(sender);
    }
    pthread_mutex_unlock(&sender->mutex);
}

bool weight_sender_version(struct weight_sender *sender, int peer, uint32_t *version)
{
    pthread_mutex_lock(&sender->mutex);
    bool has = sender->told[peer].leads && sender->told[peer].has;
    *version = has ? sender->told[peer].version : 0;
    pthread_mutex_unlock(&sender->mutex);
    return has;
}

void weight_sender_notify(struct weight_sender *sender)
{
    pthread_mutex_lock(&sender->mutex);
    wake_thread(sender);
    pthread_mutex_unlock(&sender->mutex);
}

rl_status weight_sender_take(struct weight_sender *sender, const struct channel_message *message)
{
    struct weight_message answer;
    RL_TRY(weight_message_decode(message, &answer));
    if (answer.type != WEIGHT_STATE) {
        return rl_fail(RL_CORRUPT, "rank %d sends weights to the learner", message->peer);
    }
    pthread_mutex_lock(&sender->mutex);
    struct peer_told *told = &sender->told[message->peer];
    told->transfer = answer.transfer;
    told->received = answer.offset;
    told->state = answer.state;
    if (answer.state == WEIGHT_PUBLISHED) {
        told->has = true;
        told->version = answer.version;
    }
    wake_thread(sender);
    pthread_mutex_unlock(&sender->mutex);
    return RL_OK;
}

void weight_sender_counters(struct weight_sender *sender, struct weight_sender_counters *out)
{
    pthread_mutex_lock(&sender->mutex);
    *out = sender->counters;
    pthread_mutex_unlock(&sender->mutex);
}

void weight_sender_counters_add(struct weight_sender_counters *sum,
                                const struct weight_sender_counters *more)
{
    sum->sends += more->sends;
    sum->bytes += more->bytes;
    sum->full_sends += more->full_sends;
    sum->published += more->published;
    sum->refused += more->refused;
    sum->encode_s += more->encode_s;
}

struct weight_sender_counters
weight_sender_counters_since(const struct weight_sender_counters *now,
                             const struct weight_sender_counters *before)
{
    return (struct weight_sender_counters){.sends = now->sends - before->sends,
                                           .bytes = now->bytes - before->bytes,
                                           .full_sends = now->full_sends - before->full_sends,
                                           .published = now->published - before->published,
                                           .refused = now->refused - before->refused,
                                           .encode_s = now->encode_s - before->encode_s};
}
