/* The ring keeps order, loses nothing, doubles nothing, and wakes whoever waits. */
#include "core/log.h"
#include "core/ring.h"

#include <check.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static int items[8];

START_TEST(first_in_first_out)
{
    struct rl_ring *ring = NULL;
    void *item = NULL;
    ck_assert_int_eq(rl_ring_create("groups", 3, NULL, &ring), RL_OK);
    ck_assert_uint_eq(rl_ring_capacity(ring), 3);
    ck_assert_int_eq(rl_ring_try_pop(ring, &item), RL_AGAIN);
    for (int lap = 0; lap < 5; lap++) {
        for (int i = 0; i < 3; i++) {
            ck_assert_int_eq(rl_ring_try_push(ring, &items[i]), RL_OK);
        }
        ck_assert_int_eq(rl_ring_try_push(ring, &items[3]), RL_AGAIN);
        ck_assert_uint_eq(rl_ring_depth(ring), 3);
        for (int i = 0; i < 3; i++) {
            ck_assert_int_eq(rl_ring_pop(ring, 1.0, &item), RL_OK);
            ck_assert_ptr_eq(item, &items[i]);
        }
        ck_assert_int_eq(rl_ring_try_push(ring, &items[0]), RL_OK); /* moves the head */
        ck_assert_int_eq(rl_ring_try_pop(ring, &item), RL_OK);
    }
    ck_assert_uint_eq(rl_ring_depth_max(ring), 3);
    rl_ring_destroy(ring, NULL);
    rl_ring_destroy(NULL, NULL);
    ck_assert_int_eq(rl_ring_create("none", 0, NULL, &ring), RL_INVALID);
}
END_TEST

START_TEST(deadlines_and_names)
{
    struct rl_waits *waits = NULL;
    struct rl_ring *ring = NULL;
    void *item = &items[7];
    ck_assert_int_eq(rl_waits_create(NULL, &waits), RL_OK);
    ck_assert_int_eq(rl_ring_create("scored groups", 1, waits, &ring), RL_OK);
    ck_assert_int_eq(rl_ring_pop(ring, 0.02, &item), RL_TIMEOUT);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "scored groups: empty"));
    ck_assert_ptr_eq(item, &items[7]);
    ck_assert_int_eq(rl_ring_poll(ring, 0.02, &item), RL_AGAIN);
    ck_assert_int_eq(rl_ring_poll(ring, 0.0, &item), RL_AGAIN);
    ck_assert_int_eq(rl_ring_push(ring, &items[0], 0.02), RL_OK);
    ck_assert_int_eq(rl_ring_push(ring, &items[1], 0.02), RL_TIMEOUT);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "scored groups: full"));
    struct rl_wait_stats stats[RL_WAIT_SITES_MAX];
    ck_assert_uint_eq(rl_waits_snapshot(waits, stats), 2);
    ck_assert_str_eq(stats[0].name, "scored groups: empty");
    ck_assert_uint_eq(stats[0].count, 2);
    ck_assert_uint_eq(stats[0].timeouts, 2);
    ck_assert_double_ge(stats[0].total_s, 0.035);
    rl_ring_destroy(ring, NULL);
    rl_waits_destroy(waits);
}
END_TEST

static int freed;

static void count_freed(void *item)
{
    ck_assert_ptr_nonnull(item);
    freed++;
}

START_TEST(closed_ring_gives_out_what_it_holds)
{
    struct rl_ring *ring = NULL;
    void *item = NULL;
    ck_assert_int_eq(rl_ring_create("r", 4, NULL, &ring), RL_OK);
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(rl_ring_push(ring, &items[i], -1.0), RL_OK);
    }
    rl_ring_close(ring);
    rl_ring_close(ring);
    ck_assert_int_eq(rl_ring_push(ring, &items[4], -1.0), RL_CLOSED);
    ck_assert_int_eq(rl_ring_try_push(ring, &items[4]), RL_CLOSED);
    ck_assert_int_eq(rl_ring_pop(ring, -1.0, &item), RL_OK);
    ck_assert_ptr_eq(item, &items[0]);
    ck_assert_int_eq(rl_ring_try_pop(ring, &item), RL_OK);
    freed = 0;
    rl_ring_destroy(ring, count_freed);
    ck_assert_int_eq(freed, 2);
    ck_assert_int_eq(rl_ring_create("r", 4, NULL, &ring), RL_OK);
    rl_ring_close(ring);
    ck_assert_int_eq(rl_ring_pop(ring, -1.0, &item), RL_CLOSED);
    ck_assert_int_eq(rl_ring_poll(ring, 1.0, &item), RL_CLOSED);
    rl_ring_destroy(ring, NULL);
}
END_TEST

enum { PRODUCERS = 3, CONSUMERS = 3, PER_PRODUCER = 3000 };

struct traffic {
    struct rl_ring *ring;
    int numbers[PRODUCERS][PER_PRODUCER]; /* plain: ownership moves with the pointer */
    atomic_int taken;
    atomic_int wrong;
};

struct producer {
    struct traffic *traffic;
    int index;
};

static void *produce(void *arg)
{
    struct producer *producer = arg;
    for (int i = 0; i < PER_PRODUCER; i++) {
        int *number = &producer->traffic->numbers[producer->index][i];
        *number = i + 1;
        if (rl_ring_push(producer->traffic->ring, number, 30.0) != RL_OK) {
            atomic_fetch_add(&producer->traffic->wrong, 1);
        }
    }
    return NULL;
}

/* Items of one producer must reach one consumer in order. */
static void *consume(void *arg)
{
    struct traffic *traffic = arg;
    int last[PRODUCERS] = {0};
    void *item = NULL;
    while (rl_ring_pop(traffic->ring, 30.0, &item) == RL_OK) {
        int *number = item;
        size_t producer = (size_t)(number - &traffic->numbers[0][0]) / PER_PRODUCER;
        if (*number <= last[producer]) {
            atomic_fetch_add(&traffic->wrong, 1);
        }
        last[producer] = *number;
        *number = -*number;
        atomic_fetch_add(&traffic->taken, 1);
    }
    return NULL;
}

static void start_all(struct traffic *traffic, struct producer *producers, pthread_t *threads)
{
    for (int i = 0; i < CONSUMERS; i++) {
        ck_assert_int_eq(pthread_create(&threads[PRODUCERS + i], NULL, consume, traffic), 0);
    }
    for (int i = 0; i < PRODUCERS; i++) {
        producers[i] = (struct producer){traffic, i};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, produce, &producers[i]), 0);
    }
}

START_TEST(many_threads_lose_nothing)
{
    static struct traffic traffic;
    struct producer producers[PRODUCERS];
    pthread_t threads[PRODUCERS + CONSUMERS];
    ck_assert_int_eq(rl_ring_create("traffic", 5, NULL, &traffic.ring), RL_OK);
    start_all(&traffic, producers, threads);
    for (int i = 0; i < PRODUCERS; i++) {
        pthread_join(threads[i], NULL);
    }
    rl_ring_close(traffic.ring);
    for (int i = 0; i < CONSUMERS; i++) {
        pthread_join(threads[PRODUCERS + i], NULL);
    }
    ck_assert_int_eq(atomic_load(&traffic.wrong), 0);
    ck_assert_int_eq(atomic_load(&traffic.taken), PRODUCERS * PER_PRODUCER);
    for (int p = 0; p < PRODUCERS; p++) {
        for (int i = 0; i < PER_PRODUCER; i++) {
            ck_assert_int_eq(traffic.numbers[p][i], -(i + 1));
        }
    }
    ck_assert_uint_le(rl_ring_depth_max(traffic.ring), 5);
    rl_ring_destroy(traffic.ring, NULL);
}
END_TEST

static void *close_later(void *arg)
{
    rl_clock_sleep_s(NULL, 0.05);
    rl_ring_close(arg);
    return NULL;
}

START_TEST(close_wakes_waiters)
{
    struct rl_ring *ring = NULL;
    void *item = NULL;
    pthread_t thread;
    ck_assert_int_eq(rl_ring_create("r", 1, NULL, &ring), RL_OK);
    ck_assert_int_eq(pthread_create(&thread, NULL, close_later, ring), 0);
    ck_assert_int_eq(rl_ring_pop(ring, 60.0, &item), RL_CLOSED);
    pthread_join(thread, NULL);
    rl_ring_destroy(ring, NULL);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("ring");
    tcase_add_test(tcase, first_in_first_out);
    tcase_add_test(tcase, deadlines_and_names);
    tcase_add_test(tcase, closed_ring_gives_out_what_it_holds);
    tcase_add_test(tcase, many_threads_lose_nothing);
    tcase_add_test(tcase, close_wakes_waiters);
    Suite *suite = suite_create("core ring");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
