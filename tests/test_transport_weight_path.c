/* The weight path between nodes inside one process: a sender and its learner's arena on one end, a
 * receiver and a source on the other, a local channel between them and a courier who can damage
 * what he carries. Every version that can be read is whole; what was damaged is never published. */
#include "transport/channel_local.h"
#include "transport/weight_delta.h"
#include "transport/weight_message.h"
#include "transport/weight_receiver.h"
#include "transport/weight_sender.h"
#include "transport/weight_source.h"
#include "transport/wire.h"

#include "core/clock.h"
#include "core/log.h"

#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { IMAGE_BYTES = 3 << 20, WIDTH = 2, DEPTH = 8, LEARNER = 0, LEADER = 1, READERS = 2 };
static const double patience_s = 60;

struct path {
    struct channel_hub *hub;
    struct channel *ends[2];
    struct weight_arena *arena;
    struct weight_history *history;
    struct weight_sender *sender;
    struct weight_receiver *receiver;
    struct weight_source *source;
    _Atomic(struct weight_arena *) remote;
    unsigned char *image; /* newest */
    uint32_t version;
    pthread_t couriers[2];
    atomic_bool stop;
    atomic_int damage; /* so many pieces from now on are damaged */
};

static struct path path;

static void remote_ready(void *arg, struct weight_arena *arena)
{
    struct path *p = arg;
    weight_source_attach(p->source, arena);
    atomic_store(&p->remote, arena);
}

/* Change a byte in the middle of the payload and make the frame sound again: only the image's hash
 * and the delta's checks can tell. */
static void damage_piece(struct channel_message *message)
{
    struct weight_message piece;
    struct channel_message damaged = {.peer = message->peer};
    ck_assert_int_eq(weight_message_decode(message, &piece), RL_OK);
    ((unsigned char *)(uintptr_t)piece.data)[piece.bytes / 2] ^= 0x10;
    ck_assert_int_eq(weight_message_encode(&piece, &damaged), RL_OK);
    channel_message_fini(message);
    *message = damaged;
}

static void *carry_pieces(void *arg)
{
    struct path *p = arg;
    struct channel_message message = {0};
    while (!atomic_load(&p->stop)) {
        if (channel_receive(p->ends[LEADER], 0.01, &message) != RL_OK) {
            continue;
        }
        if (atomic_load(&p->damage) > 0) {
            atomic_fetch_sub(&p->damage, 1);
            damage_piece(&message);
        }
        weight_receiver_give(p->receiver, &message);
    }
    return NULL;
}

static void *carry_answers(void *arg)
{
    struct path *p = arg;
    struct channel_message message = {0};
    while (!atomic_load(&p->stop)) {
        if (channel_receive(p->ends[LEARNER], 0.01, &message) == RL_OK) {
            ck_assert_int_eq(weight_sender_take(p->sender, &message), RL_OK);
            channel_message_fini(&message);
        }
    }
    return NULL;
}

/* Publish the next version, in which every `stride`-th element differs; 0: none does. */
static void publish(struct path *p, size_t stride)
{
    int slot = -1;
    void *image = NULL;
    uint8_t *mask = weight_history_pending(p->history);
    memset(mask, 0, IMAGE_BYTES / WIDTH / 8);
    for (size_t e = p->version % 7; stride > 0 && e < IMAGE_BYTES / WIDTH; e += stride) {
        p->image[e * WIDTH] ^= (unsigned char)(1 + p->version % 255);
        mask[e / 8] |= (uint8_t)(1U << (e % 8));
    }
    ck_assert_int_eq(weight_arena_begin_write(p->arena, patience_s, &slot, &image), RL_OK);
    memcpy(image, p->image, IMAGE_BYTES);
    weight_history_commit(p->history, p->version);
    ck_assert_int_eq(
        weight_arena_publish(p->arena, slot, p->version, XXH3_64bits(p->image, IMAGE_BYTES)),
        RL_OK);
    p->version++;
    weight_sender_notify(p->sender);
}

static void path_open(struct path *p, int slots)
{
    struct channel_hub_options hub = {.size = 2, .credits = 16};
    struct weight_arena_options arena = {
        .slots = slots, .slot_bytes = IMAGE_BYTES, .readers = READERS};
    memset(p, 0, sizeof *p);
    ck_assert_int_eq(channel_hub_create(&hub, &p->hub), RL_OK);
    ck_assert_int_eq(channel_local_open(p->hub, LEARNER, &p->ends[LEARNER]), RL_OK);
    ck_assert_int_eq(channel_local_open(p->hub, LEADER, &p->ends[LEADER]), RL_OK);
    ck_assert_int_eq(weight_arena_create(&arena, &p->arena), RL_OK);
    ck_assert_int_eq(weight_history_create(IMAGE_BYTES / WIDTH / 8, DEPTH, &p->history), RL_OK);
    p->image = malloc(IMAGE_BYTES);
    for (size_t i = 0; i < IMAGE_BYTES; i++) {
        p->image[i] = (unsigned char)(i * 2654435761U >> 24);
    }
    struct weight_sender_options sender = {.channel = p->ends[LEARNER],
                                           .arena = p->arena,
                                           .reader = LEARNER,
                                           .history = p->history,
                                           .image_bytes = IMAGE_BYTES,
                                           .element_bytes = WIDTH};
    struct weight_receiver_options receiver = {.channel = p->ends[LEADER],
                                               .learner = LEARNER,
                                               .image_bytes = IMAGE_BYTES,
                                               .ready = remote_ready,
                                               .arg = p};
    ck_assert_int_eq(weight_source_create(1, &p->source), RL_OK);
    ck_assert_int_eq(weight_sender_start(&sender, &p->sender), RL_OK);
    ck_assert_int_eq(weight_receiver_start(&receiver, &p->receiver), RL_OK);
    ck_assert_int_eq(pthread_create(&p->couriers[0], NULL, carry_pieces, p), 0);
    ck_assert_int_eq(pthread_create(&p->couriers[1], NULL, carry_answers, p), 0);
}

static void path_close(struct path *p)
{
    atomic_store(&p->stop, true);
    pthread_join(p->couriers[0], NULL);
    pthread_join(p->couriers[1], NULL);
    weight_sender_stop(p->sender);
    weight_source_destroy(p->source);
    weight_receiver_stop(p->receiver);
    channel_close(p->ends[0]);
    channel_close(p->ends[1]);
    channel_hub_destroy(p->hub);
    weight_arena_close(p->arena);
    weight_history_destroy(p->history);
    free(p->image);
}

/* Until the other end can read `version`. */
static void wait_remote(struct path *p, uint32_t version)
{
    double deadline_s = rl_clock_now_s(NULL) + patience_s;
    uint32_t seen = 0;
    bool coming = false;
    while (weight_source_latest(p->source, &seen, &coming) != RL_OK || seen != version) {
        ck_assert_msg(rl_clock_now_s(NULL) < deadline_s, "version %u did not come", version);
        rl_clock_sleep_s(NULL, 1e-3);
    }
}

/* The newest version of the other end is the learner's, byte for byte. */
static void expect_equal(struct path *p)
{
    struct weight_view view;
    wait_remote(p, p->version - 1);
    ck_assert_int_eq(weight_source_acquire(p->source, p->version - 1, &view), RL_OK);
    ck_assert_mem_eq(view.image, p->image, IMAGE_BYTES);
    ck_assert_uint_eq(view.hash, XXH3_64bits(p->image, IMAGE_BYTES));
}

START_TEST(images_then_deltas)
{
    struct weight_sender_counters counters;
    uint32_t version = 0;
    path_open(&path, 3);
    publish(&path, 0);
    ck_assert(!weight_sender_version(path.sender, LEADER, &version));
    weight_sender_add(path.sender, LEADER);
    expect_equal(&path);
    static const size_t strides[] = {1000, 3, 0, 1, 40000, 17};
    for (size_t i = 0; i < sizeof strides / sizeof strides[0]; i++) {
        publish(&path, strides[i]);
        expect_equal(&path);
    }
    for (int i = 0; i < 20; i++) { /* coalesced: the newest comes, whatever was skipped */
        publish(&path, 500);
    }
    expect_equal(&path);
    weight_sender_counters(path.sender, &counters);
    ck_assert_uint_eq(counters.refused, 0);
    ck_assert_uint_ge(counters.full_sends, 1);
    ck_assert_uint_lt(counters.full_sends, counters.sends);
    ck_assert_uint_lt(counters.bytes, counters.sends * (uint64_t)IMAGE_BYTES);
    ck_assert(weight_sender_version(path.sender, LEADER, &version));
    path_close(&path);
}
END_TEST

/* Damaged deltas and images are refused; the whole image comes until one is sound. */
START_TEST(damage_is_never_published)
{
    struct weight_sender_counters counters;
    path_open(&path, 3);
    publish(&path, 0);
    atomic_store(&path.damage, 1);
    weight_sender_add(path.sender, LEADER);
    expect_equal(&path); /* the first image was damaged, the second was not */
    weight_sender_counters(path.sender, &counters);
    ck_assert_uint_eq(counters.refused, 1);
    ck_assert_uint_eq(counters.full_sends, 2);
    for (int i = 1; i <= 3; i++) {
        atomic_store(&path.damage, 1);
        publish(&path, 900);
        expect_equal(&path);
        publish(&path, 900); /* the chain of deltas goes on after a refusal */
        expect_equal(&path);
        weight_sender_counters(path.sender, &counters);
        ck_assert_uint_eq(counters.refused, 1 + (uint64_t)i);
        ck_assert_uint_eq(counters.full_sends, 2 + (uint64_t)i);
    }
    path_close(&path);
}
END_TEST

/* A kept window: each version comes in its turn and stays. */
START_TEST(every_version_in_turn)
{
    enum { WINDOW = 3, VERSIONS = 12 };
    struct weight_view view;
    path_open(&path, WINDOW + 3);
    weight_arena_keep_from(path.arena, 0);
    publish(&path, 0);
    weight_sender_add(path.sender, LEADER);
    for (uint32_t v = 1; v < VERSIONS; v++) {
        publish(&path, 300);
        weight_arena_keep_from(path.arena, v > WINDOW ? v - WINDOW : 0);
        if (v % 3 == 0) { /* they arrive in bundles, none is skipped */
            wait_remote(&path, v);
            for (uint32_t kept = v - 2; kept <= v; kept++) {
                ck_assert_int_eq(weight_source_pin(path.source, kept, &view), RL_OK);
                ck_assert_uint_eq(XXH3_64bits(view.image, IMAGE_BYTES), view.hash);
                weight_source_unpin(path.source, kept);
            }
        }
    }
    path_close(&path);
}
END_TEST

/* A reader that died on the other node does not hold its slot for ever. */
START_TEST(dead_readers_are_cleared)
{
    struct weight_view view;
    path_open(&path, 2);
    publish(&path, 0);
    weight_sender_add(path.sender, LEADER);
    wait_remote(&path, 0);
    ck_assert_int_eq(weight_arena_pin(atomic_load(&path.remote), 0, 0, &view), RL_OK);
    publish(&path, 100);
    wait_remote(&path, 1);
    publish(&path, 100); /* both slots are taken there: the receiver waits */
    weight_sender_clear_reader(path.sender, LEADER, 0);
    expect_equal(&path);
    path_close(&path);
}
END_TEST

/* Weights that do not have their hash are not used. */
START_TEST(sources_verify)
{
    struct weight_arena_options options = {.slots = 3, .slot_bytes = 1 << 16, .readers = READERS};
    struct weight_arena *arena = NULL;
    struct weight_source *source = NULL;
    struct weight_view view;
    uint32_t version = 0;
    bool coming = false;
    int slot = -1;
    void *image = NULL;
    ck_assert_int_eq(weight_arena_create(&options, &arena), RL_OK);
    ck_assert_int_eq(weight_source_create(1, &source), RL_OK);
    ck_assert_int_eq(weight_source_latest(source, &version, &coming), RL_AGAIN);
    weight_source_attach(source, arena);
    ck_assert_int_eq(weight_source_latest(source, &version, &coming), RL_AGAIN);
    ck_assert_int_eq(weight_arena_begin_write(arena, 0, &slot, &image), RL_OK);
    memset(image, 7, 1 << 16);
    ck_assert_int_eq(weight_arena_publish(arena, slot, 5, XXH3_64bits(image, 1 << 16)), RL_OK);
    ck_assert(!weight_arena_is_verified(arena, 5));
    while (weight_source_latest(source, &version, &coming) == RL_AGAIN) {
        rl_clock_sleep_s(NULL, 1e-4);
    }
    ck_assert_uint_eq(version, 5);
    ck_assert(!coming && weight_arena_is_verified(arena, 5));
    ck_assert_int_eq(weight_source_acquire(source, 5, &view), RL_OK);
    ck_assert_int_eq(weight_arena_begin_write(arena, 0, &slot, &image), RL_OK);
    memset(image, 8, 1 << 16);
    ck_assert_int_eq(weight_arena_publish(arena, slot, 6, 12345), RL_OK);
    rl_status status = RL_OK;
    while ((status = weight_source_latest(source, &version, &coming)) == RL_OK) {
        ck_assert_uint_eq(version, 5); /* it goes on with what it has */
        rl_clock_sleep_s(NULL, 1e-4);
    }
    ck_assert_int_eq(status, RL_CORRUPT);
    ck_assert_int_eq(weight_source_acquire(source, 6, &view), RL_CORRUPT);
    weight_source_destroy(source);
    weight_arena_close(arena);
}
END_TEST

START_TEST(odd_messages)
{
    struct channel_message frame = {0};
    struct weight_message out;
    struct weight_message piece = {.type = WEIGHT_PIECE,
                                   .form = WEIGHT_DELTA,
                                   .total_bytes = 10,
                                   .offset = 6,
                                   .data = "abcdefgh",
                                   .bytes = 4};
    ck_assert_int_eq(weight_message_encode(&piece, &frame), RL_OK);
    ck_assert_int_eq(weight_message_decode(&frame, &out), RL_OK);
    ck_assert_mem_eq(out.data, "abcd", 4);
    channel_message_fini(&frame);
    piece.bytes = 5; /* beyond the end */
    ck_assert_int_eq(weight_message_encode(&piece, &frame), RL_OK);
    ck_assert_int_eq(weight_message_decode(&frame, &out), RL_CORRUPT);
    channel_message_fini(&frame);
    ck_assert_int_eq(wire_encode_bytes("other", 5, &frame), RL_OK);
    ck_assert_int_eq(weight_message_decode(&frame, &out), RL_CORRUPT);
    channel_message_fini(&frame);
}
END_TEST

int main(void)
{
    rl_log_set_level((enum rl_log_level) - 1);
    Suite *suite = suite_create("weight_path");
    TCase *tests = tcase_create("path");
    tcase_set_timeout(tests, 200);
    tcase_add_test(tests, images_then_deltas);
    tcase_add_test(tests, damage_is_never_published);
    tcase_add_test(tests, every_version_in_turn);
    tcase_add_test(tests, dead_readers_are_cleared);
    tcase_add_test(tests, sources_verify);
    tcase_add_test(tests, odd_messages);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
