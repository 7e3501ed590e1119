/* See weight_receiver.h. A transfer is a row of pieces in order. A whole image is written where it
 * will be read, piece by piece; a delta is collected first. The slot is published only after the
 * hash of all of it was computed here, so the node's workers need not do so again. */
#include "transport/weight_receiver.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/wait.h"
#include "transport/weight_delta.h"
#include "transport/weight_message.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { RECEIVER_QUEUE = 64 }; /* pieces; the sender leaves far fewer unanswered */
static const double slot_timeout_s = 10;
static const double answer_timeout_s = 10;

struct transfer {
    uint64_t number; /* 0: none */
    struct weight_message first;
    uint64_t received;
    unsigned char *delta; /* [total_bytes] of a delta */
    unsigned char *image; /* slot of a whole image */
    int slot;
    bool refused; /* the rest of it is skipped */
};

struct weight_receiver {
    struct weight_receiver_options options;
    pthread_t thread;
    pthread_mutex_t mutex; /* guards the queue and stop */
    pthread_cond_t arrived;
    struct channel_message queue[RECEIVER_QUEUE]; /* ring */
    size_t queue_head, queue_count;
    bool stop;
    /* The thread's own. */
    struct weight_arena *arena; /* NULL until the first piece */
    bool has;                   /* an image: of `version`, with `hash` */
    uint32_t version;
    uint64_t hash;
    struct transfer transfer;
};

/* --- one transfer
 * ---------------------------------------------------------------------------------- */

/* Like the learner's, so that a window of versions has room here too. */
static rl_status make_arena(struct weight_receiver *r, const struct weight_message *piece)
{
    if (piece->slots > WEIGHT_ARENA_SLOTS_MAX || piece->readers > INT32_MAX) {
        return rl_fail(RL_CORRUPT, "weight version %u: an arena of %u slots and %u readers",
                       piece->version, piece->slots, piece->readers);
    }
    struct weight_arena_options options = {.shared = true,
                                           .slots = (int)piece->slots,
                                           .slot_bytes = r->options.image_bytes,
                                           .readers = (int)piece->readers};
    return r->arena != NULL ? RL_OK : weight_arena_create(&options, &r->arena);
}

static rl_status begin_transfer(struct weight_receiver *r, const struct weight_message *piece)
{
    struct transfer *t = &r->transfer;
    free(t->delta);
    *t = (struct transfer){.number = piece->transfer, .first = *piece};
    t->first.data = NULL;
    RL_TRY(make_arena(r, piece));
    size_t limit = r->options.image_bytes;
    if (piece->offset != 0 || piece->total_bytes > limit ||
        (piece->form == WEIGHT_FULL && piece->total_bytes != limit)) {
        return rl_fail(RL_CORRUPT,
                       "weight version %u: a transfer of %llu bytes that begins at %llu, the "
                       "image has %zu",
                       piece->version, (unsigned long long)piece->total_bytes,
                       (unsigned long long)piece->offset, limit);
    }
    if (piece->keep_from <= UINT32_MAX) {
        weight_arena_keep_from(r->arena, (uint32_t)piece->keep_from);
    }
    if (piece->form == WEIGHT_DELTA) {
        t->delta = malloc(piece->total_bytes);
        return t->delta != NULL ? RL_OK
                                : rl_fail(RL_NO_MEMORY, "weight delta: no memory for %llu bytes",
                                          (unsigned long long)piece->total_bytes);
    }
    void *image = NULL;
    RL_TRY(weight_arena_begin_write(r->arena, slot_timeout_s, &t->slot, &image));
    t->image = image;
    return RL_OK;
}

static rl_status add_piece(struct weight_receiver *r, const struct weight_message *piece)
{
    struct transfer *t = &r->transfer;
    if (piece->offset != t->received || piece->total_bytes != t->first.total_bytes ||
        piece->form != t->first.form || piece->version != t->first.version) {
        return rl_fail(RL_CORRUPT, "weight version %u: a piece at %llu, expected one at %llu",
                       piece->version, (unsigned long long)piece->offset,
                       (unsigned long long)t->received);
    }
    memcpy((t->delta != NULL ? t->delta : t->image) + piece->offset, piece->data, piece->bytes);
    t->received += piece->bytes;
    return RL_OK;
}

/* Patch a free slot; the newest one is the base and is not overwritten meanwhile. */
static rl_status apply_delta(struct weight_receiver *r)
{
    struct transfer *t = &r->transfer;
    struct weight_delta_info info;
    struct weight_view view;
    void *image = NULL;
    RL_TRY(weight_delta_inspect(t->delta, t->received, &info));
    if (info.version != t->first.version || info.hash != t->first.hash) {
        return rl_fail(RL_CORRUPT, "weight version %u: the delta is of version %u",
                       t->first.version, info.version);
    }
    if (!r->has) {
        return rl_fail(RL_INVALID, "weight version %u: a delta, and there is no base here",
                       t->first.version);
    }
    RL_TRY(weight_arena_begin_write(r->arena, slot_timeout_s, &t->slot, &image));
    RL_TRY(weight_arena_newest(r->arena, &view));
    struct weight_delta_base base = {.image = view.image,
                                     .image_bytes = r->options.image_bytes,
                                     .version = view.version,
                                     .hash = view.hash};
    return weight_delta_apply(t->delta, t->received, &base, image);
}

static rl_status check_full(const struct weight_receiver *r)
{
    const struct transfer *t = &r->transfer;
    uint64_t hash = XXH3_64bits(t->image, r->options.image_bytes);
    return hash == t->first.hash
               ? RL_OK
               : rl_fail(RL_CORRUPT, "weight version %u does not have its hash %016llx",
                         t->first.version, (unsigned long long)t->first.hash);
}

static rl_status finish_transfer(struct weight_receiver *r)
{
    struct transfer *t = &r->transfer;
    if (r->has && r->version == t->first.version && r->hash == t->first.hash) {
        return RL_OK; /* sent again */
    }
    RL_TRY(t->delta != NULL ? apply_delta(r) : check_full(r));
    RL_TRY(weight_arena_publish_verified(r->arena, t->slot, t->first.version, t->first.hash));
    bool first = !r->has;
    r->has = true;
    r->version = t->first.version;
    r->hash = t->first.hash;
    if (first) {
        r->options.ready(r->options.arg, r->arena);
    }
    return RL_OK;
}

/* --- messages
 * -------------------------------------------------------------------------------------- */

static void answer(struct weight_receiver *r, enum weight_transfer_state state)
{
    struct weight_message report = {.type = WEIGHT_STATE,
                                    .form = r->transfer.first.form,
                                    .transfer = r->transfer.number,
                                    .version = r->transfer.first.version,
                                    .state = state,
                                    .total_bytes = r->transfer.first.total_bytes,
                                    .offset = r->transfer.received};
    struct channel_message message = {.peer = r->options.learner};
    if (weight_message_encode(&report, &message) == RL_OK) {
        (void)channel_send_wait(r->options.channel, &message, answer_timeout_s);
        channel_message_fini(&message);
    }
}

static void take_piece(struct weight_receiver *r, const struct weight_message *piece)
{
    struct transfer *t = &r->transfer;
    rl_status status = RL_OK;
    if (piece->transfer != t->number) {
        status = begin_transfer(r, piece);
    }
    if (t->refused) {
        return;
    }
    if (status == RL_OK) {
        status = add_piece(r, piece);
    }
    bool whole = status == RL_OK && t->received == t->first.total_bytes;
    if (whole) {
        status = finish_transfer(r);
    }
    t->refused = status != RL_OK;
    answer(r, t->refused ? WEIGHT_REFUSED : whole ? WEIGHT_PUBLISHED : WEIGHT_COMING);
}

static bool has_work(void *arg)
{
    const struct weight_receiver *r = arg;
    return r->queue_count > 0 || r->stop;
}

/* The next message; false at the end. */
static bool next_message(struct weight_receiver *r, struct channel_message *out)
{
    struct rl_wait_signal signal = {
        .cond = &r->arrived, .mutex = &r->mutex, .done = has_work, .arg = r};
    pthread_mutex_lock(&r->mutex);
    (void)rl_wait_signal(NULL, "weight receiver: idle", &signal, -1);
    bool go_on = !r->stop;
    if (go_on) {
        *out = r->queue[r->queue_head];
        r->queue_head = (r->queue_head + 1) % RECEIVER_QUEUE;
        r->queue_count--;
    }
    pthread_mutex_unlock(&r->mutex);
    return go_on;
}

static void *receiver_run(void *arg)
{
    struct weight_receiver *r = arg;
    struct channel_message message = {0};
    while (next_message(r, &message)) {
        struct weight_message piece;
        bool sound = weight_message_decode(&message, &piece) == RL_OK;
        if (sound && piece.type == WEIGHT_PIECE) {
            take_piece(r, &piece);
        } else if (sound && piece.type == WEIGHT_CLEAR && r->arena != NULL) {
            weight_arena_clear_reader(r->arena, (int)piece.readers);
        }
        channel_message_fini(&message);
    }
    return NULL;
}

/* --- life cycle
 * ------------------------------------------------------------------------------------ */

rl_status weight_receiver_start(const struct weight_receiver_options *options,
                                struct weight_receiver **out)
{
    struct weight_receiver *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return rl_fail(RL_NO_MEMORY, "weight receiver: no memory");
    }
    r->options = *options;
    rl_status status = rl_wait_cond_init(&r->arrived);
    if (status != RL_OK) {
        free(r);
        return status;
    }
    pthread_mutex_init(&r->mutex, NULL);
    if (pthread_create(&r->thread, NULL, receiver_run, r) != 0) {
        pthread_mutex_destroy(&r->mutex);
        pthread_cond_destroy(&r->arrived);
        free(r);
        return rl_fail(RL_INTERNAL, "weight receiver: cannot start its thread");
    }
    *out = r;
    return RL_OK;
}

void weight_receiver_stop(struct weight_receiver *receiver)
{
    struct weight_receiver *r = receiver;
    if (r == NULL) {
        return;
    }
    pthread_mutex_lock(&r->mutex);
    r->stop = true;
    pthread_cond_signal(&r->arrived);
    pthread_mutex_unlock(&r->mutex);
    pthread_join(r->thread, NULL);
    for (; r->queue_count > 0; r->queue_count--) {
        channel_message_fini(&r->queue[r->queue_head]);
        r->queue_head = (r->queue_head + 1) % RECEIVER_QUEUE;
    }
    free(r->transfer.delta);
    weight_arena_close(r->arena);
    pthread_mutex_destroy(&r->mutex);
    pthread_cond_destroy(&r->arrived);
    free(r);
}

void weight_receiver_give(struct weight_receiver *receiver, struct channel_message *message)
{
    struct weight_receiver *r = receiver;
    pthread_mutex_lock(&r->mutex);
    bool room = r->queue_count < RECEIVER_QUEUE;
    if (room) {
        r->queue[(r->queue_head + r->queue_count++) % RECEIVER_QUEUE] = *message;
        *message = (struct channel_message){0};
        pthread_cond_signal(&r->arrived);
    }
    pthread_mutex_unlock(&r->mutex);
    if (!room) {
        rl_log(RL_LOG_WARN, "rank %d sends weights faster than was agreed: a piece is dropped",
               message->peer);
        channel_message_fini(message);
    }
}
