/* The in-process channel: order, bounds, deaths, and the simulated network on a virtual clock. */
#include "transport/channel_local.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/rng.h"

#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static struct channel_hub *hub_make(int size, int credits)
{
    struct channel_hub_options options = {.size = size, .credits = credits};
    struct channel_hub *hub = NULL;
    ck_assert_int_eq(channel_hub_create(&options, &hub), RL_OK);
    return hub;
}

static struct channel *end_open(struct channel_hub *hub, int rank)
{
    struct channel *channel = NULL;
    ck_assert_int_eq(channel_local_open(hub, rank, &channel), RL_OK);
    return channel;
}

static rl_status send_number(struct channel *channel, int peer, uint64_t number)
{
    struct channel_message message = {
        .peer = peer, .kind = 6, .bytes = sizeof number, .data = malloc(sizeof number)};
    ck_assert_ptr_nonnull(message.data);
    memcpy(message.data, &number, sizeof number);
    rl_status status = channel_send(channel, &message);
    ck_assert(status != RL_OK || message.data == NULL);
    channel_message_fini(&message);
    return status;
}

/* Number in the next message, or UINT64_MAX where there is none. */
static uint64_t take_number(struct channel *channel, double timeout_s, int *peer)
{
    struct channel_message message = {0};
    uint64_t number = UINT64_MAX;
    if (channel_receive(channel, timeout_s, &message) == RL_OK) {
        *peer = message.peer;
        if (message.bytes == sizeof number) {
            memcpy(&number, message.data, sizeof number);
        } else {
            number = message.kind;
        }
        channel_message_fini(&message);
    }
    return number;
}

START_TEST(order_credits_and_self)
{
    struct channel_hub *hub = hub_make(2, 3);
    struct channel *a = end_open(hub, 0);
    struct channel *b = end_open(hub, 1);
    int peer = -1;
    for (uint64_t i = 0; i < 3; i++) {
        ck_assert_int_eq(send_number(a, 1, i), RL_OK);
    }
    ck_assert_int_eq(send_number(a, 1, 3), RL_AGAIN);
    ck_assert_uint_eq(take_number(b, 0, &peer), 0);
    ck_assert_int_eq(send_number(a, 1, 3), RL_OK);
    for (uint64_t i = 1; i < 4; i++) {
        ck_assert_uint_eq(take_number(b, 0, &peer), i);
        ck_assert_int_eq(peer, 0);
    }
    ck_assert_uint_eq(take_number(b, 0, &peer), UINT64_MAX);
    ck_assert_int_eq(send_number(a, 0, 42), RL_OK);
    ck_assert_uint_eq(take_number(a, 0, &peer), 42);
    ck_assert_int_eq(peer, 0);
    struct channel_counters counters;
    channel_counters(a, &counters);
    ck_assert_uint_eq(counters.sent_messages, 5);
    ck_assert_uint_eq(counters.credit_waits, 1);
    struct channel_message bad = {.peer = 2, .kind = 1};
    ck_assert_int_eq(channel_send(a, &bad), RL_INVALID);
    bad = (struct channel_message){.peer = 1, .kind = CHANNEL_PEER_LOST};
    ck_assert_int_eq(channel_send(a, &bad), RL_INVALID);
    channel_close(a);
    channel_close(b);
    channel_hub_destroy(hub);
}
END_TEST

START_TEST(send_wait_times_out)
{
    struct channel_hub *hub = hub_make(2, 1);
    struct channel *a = end_open(hub, 0);
    struct channel *b = end_open(hub, 1);
    struct channel_message message = {.peer = 1, .kind = 1};
    ck_assert_int_eq(channel_send_wait(a, &message, 0.05), RL_OK);
    message = (struct channel_message){.peer = 1, .kind = 1};
    double started_s = rl_clock_now_s(NULL);
    ck_assert_int_eq(channel_send_wait(a, &message, 0.05), RL_TIMEOUT);
    ck_assert(rl_clock_now_s(NULL) - started_s >= 0.05);
    started_s = rl_clock_now_s(NULL);
    ck_assert_int_eq(channel_receive(a, 0.05, &message), RL_AGAIN);
    ck_assert(rl_clock_now_s(NULL) - started_s >= 0.045);
    channel_close(a);
    channel_close(b);
    channel_hub_destroy(hub);
}
END_TEST

START_TEST(death_is_announced_once)
{
    struct channel_hub *hub = hub_make(3, 8);
    struct channel *a = end_open(hub, 0);
    struct channel *b = end_open(hub, 1);
    struct channel *c = end_open(hub, 2);
    int peer = -1;
    ck_assert_int_eq(send_number(b, 0, 5), RL_OK); /* was on its way: still counts */
    channel_hub_kill(hub, 1, 0.0);
    channel_hub_kill(hub, 1, 0.0);
    ck_assert_uint_eq(take_number(a, 0, &peer), 5);
    ck_assert_uint_eq(take_number(a, 0, &peer), CHANNEL_PEER_LOST);
    ck_assert_int_eq(peer, 1);
    ck_assert_uint_eq(take_number(a, 0, &peer), UINT64_MAX);
    ck_assert_uint_eq(take_number(c, 0, &peer), CHANNEL_PEER_LOST);
    ck_assert_int_eq(send_number(a, 1, 6), RL_PEER_LOST);
    ck_assert(!channel_peer_alive(a, 1) && channel_peer_alive(a, 2));
    ck_assert_int_eq(send_number(b, 0, 7), RL_CLOSED);
    struct channel_message message;
    ck_assert_int_eq(channel_receive(b, 1.0, &message), RL_CLOSED);
    ck_assert_int_eq(send_number(a, 2, 8), RL_OK);
    ck_assert_uint_eq(take_number(c, 0, &peer), 8);
    channel_close(a);
    channel_close(b);
    channel_close(c);
    channel_hub_destroy(hub);
}
END_TEST

struct network {
    double now_s;
    struct rl_rng rng;
    int lost, twice;
};

static double network_now(void *context)
{
    return ((struct network *)context)->now_s;
}

static enum channel_fate network_fate(void *context, int from,
                                      const struct channel_message *message, double *delay_s)
{
    struct network *network = context;
    (void)from;
    (void)message;
    *delay_s = rl_rng_next_uniform(&network->rng) * 2.0;
    double dice = rl_rng_next_uniform(&network->rng);
    if (dice < 0.1) {
        network->lost++;
        return CHANNEL_LOSE;
    }
    if (dice < 0.2) {
        network->twice++;
        return CHANNEL_DUPLICATE;
    }
    return CHANNEL_DELIVER;
}

/* Send 1000 numbers through a bad network; returns a digest of what arrived and when. */
static uint64_t network_run(uint64_t seed, int *received, struct network *network)
{
    *network = (struct network){.rng = rl_rng_make(seed, 0)};
    struct channel_hub_options options = {
        .size = 2, .credits = 16, .context = network, .now_s = network_now, .fate = network_fate};
    struct channel_hub *hub = NULL;
    ck_assert_int_eq(channel_hub_create(&options, &hub), RL_OK);
    struct channel *a = end_open(hub, 0);
    struct channel *b = end_open(hub, 1);
    uint64_t digest = 0;
    uint64_t sent = 0;
    int peer = -1;
    *received = 0;
    while (sent < 1000 || channel_hub_next_due_s(hub) >= 0.0) {
        while (sent < 1000 && send_number(a, 1, sent) == RL_OK) {
            sent++;
        }
        double due_s = channel_hub_next_due_s(hub);
        ck_assert_msg(due_s >= 0.0, "the sender is out of credits and nothing is on its way");
        network->now_s = due_s > network->now_s ? due_s : network->now_s;
        uint64_t number = take_number(b, 1.0, &peer);
        while (number != UINT64_MAX) {
            digest = digest * 31 + number + (uint64_t)(network->now_s * 1e6);
            ++*received;
            number = take_number(b, 0, &peer);
        }
    }
    channel_close(a);
    channel_close(b);
    channel_hub_destroy(hub);
    return digest;
}

START_TEST(network_is_deterministic)
{
    struct network first;
    struct network second;
    int received = 0;
    uint64_t digest = network_run(7, &received, &first);
    ck_assert_int_eq(received, 1000 - first.lost + first.twice);
    ck_assert_int_gt(first.lost, 50);
    ck_assert_int_gt(first.twice, 50);
    ck_assert_uint_eq(network_run(7, &received, &second), digest);
    ck_assert_uint_ne(network_run(8, &received, &second), digest);
}
END_TEST

enum { CROWD_SENDERS = 4, CROWD_MESSAGES = 2000 };

static void *crowd_send(void *arg)
{
    struct channel *channel = arg;
    for (uint64_t i = 0; i < CROWD_MESSAGES; i++) {
        uint64_t *data = malloc(sizeof *data);
        *data = i;
        struct channel_message message = {
            .peer = 0, .kind = 6, .bytes = sizeof *data, .data = data};
        if (channel_send_wait(channel, &message, 50.0) != RL_OK) {
            channel_message_fini(&message);
            return NULL;
        }
    }
    return channel;
}

START_TEST(threads_keep_order)
{
    struct channel_hub *hub = hub_make(CROWD_SENDERS + 1, 5);
    struct channel *ends[CROWD_SENDERS + 1];
    pthread_t threads[CROWD_SENDERS + 1];
    uint64_t next[CROWD_SENDERS + 1] = {0};
    for (int i = 0; i <= CROWD_SENDERS; i++) {
        ends[i] = end_open(hub, i);
    }
    for (int i = 1; i <= CROWD_SENDERS; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, crowd_send, ends[i]), 0);
    }
    for (int i = 0; i < CROWD_SENDERS * CROWD_MESSAGES; i++) {
        int peer = -1;
        uint64_t number = take_number(ends[0], 50.0, &peer);
        ck_assert_int_ge(peer, 1);
        ck_assert_uint_eq(number, next[peer]);
        next[peer]++;
    }
    for (int i = 1; i <= CROWD_SENDERS; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        ck_assert_ptr_nonnull(result);
    }
    for (int i = 0; i <= CROWD_SENDERS; i++) {
        channel_close(ends[i]);
    }
    channel_hub_destroy(hub);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("channel");
    TCase *tests = tcase_create("local");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, order_credits_and_self);
    tcase_add_test(tests, send_wait_times_out);
    tcase_add_test(tests, death_is_announced_once);
    tcase_add_test(tests, network_is_deterministic);
    tcase_add_test(tests, threads_keep_order);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
