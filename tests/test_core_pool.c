/* Every index runs exactly once, whatever the number of threads and however short the work. */
#include "core/cores.h"
#include "core/pool.h"

#include <check.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

enum { INDICES = 1000 };

struct tally {
    atomic_int runs[INDICES];
    int plain[INDICES]; /* written without atomics: the pool must order it */
};

static void count_one(void *arg, int index)
{
    struct tally *tally = arg;
    atomic_fetch_add(&tally->runs[index], 1);
    tally->plain[index] += index;
}

static void run_and_check(struct rl_pool *pool, struct tally *tally, int count, int rounds)
{
    for (int i = 0; i < INDICES; i++) {
        atomic_store(&tally->runs[i], 0);
        tally->plain[i] = 0;
    }
    for (int round = 1; round <= rounds; round++) {
        rl_pool_run(pool, count, count_one, tally);
        int wrong = 0;
        for (int i = 0; i < INDICES; i++) {
            int expected = i < count ? round : 0;
            wrong += atomic_load(&tally->runs[i]) != expected;
            wrong += tally->plain[i] != expected * i;
        }
        ck_assert_int_eq(wrong, 0);
    }
}

START_TEST(every_index_once)
{
    static struct tally tally;
    static const int counts[] = {0, 1, 2, 3, 7, 64, INDICES};
    for (int threads = 1; threads <= 5; threads++) {
        struct rl_pool *pool = NULL;
        ck_assert_int_eq(rl_pool_create(threads, &pool), RL_OK);
        ck_assert_int_eq(rl_pool_threads(pool), threads);
        for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
            run_and_check(pool, &tally, counts[i], 20);
        }
        rl_pool_destroy(pool);
    }
}
END_TEST

/* Many tiny jobs of changing size: a late helper must never run an index of the wrong job. */
START_TEST(short_jobs_do_not_mix)
{
    static struct tally tally;
    struct rl_pool *pool = NULL;
    ck_assert_int_eq(rl_pool_create(4, &pool), RL_OK);
    for (int round = 0; round < 2000; round++) {
        run_and_check(pool, &tally, 2 + round % 9, 1);
    }
    rl_pool_destroy(pool);
}
END_TEST

/* Helpers that have gone to sleep wake up for the next job. */
START_TEST(sleeping_helpers_wake)
{
    static struct tally tally;
    struct rl_pool *pool = NULL;
    ck_assert_int_eq(rl_pool_create(3, &pool), RL_OK);
    for (int round = 0; round < 5; round++) {
        struct timespec pause = {0, 20 * 1000 * 1000};
        nanosleep(&pause, NULL);
        run_and_check(pool, &tally, 100, 1);
    }
    rl_pool_destroy(pool);
}
END_TEST

/* Helpers may be bound, the caller never is; a second pool does not get cores that are claimed. */
START_TEST(threads_on_cores)
{
    int cores = rl_cores_allowed();
    ck_assert_int_ge(cores, 1);
    cpu_set_t before, after;
    struct rl_pool *pool = NULL;
    struct rl_cores *first = NULL;
    struct rl_cores *second = NULL;
    ck_assert_int_eq(pthread_getaffinity_np(pthread_self(), sizeof before, &before), 0);
    ck_assert_int_eq(rl_pool_create(cores + 1, &pool), RL_OK);
    ck_assert_int_eq(rl_cores_bind(pool, &first), RL_OK);
    ck_assert_ptr_null(first); /* more threads than cores */
    rl_pool_destroy(pool);
    ck_assert_int_eq(rl_pool_create(2, &pool), RL_OK);
    ck_assert_int_eq(rl_cores_bind(pool, &first), RL_OK);
    if (first != NULL) {
        cpu_set_t set;
        ck_assert_int_eq(pthread_getaffinity_np(rl_pool_helper(pool, 0), sizeof set, &set), 0);
        CPU_AND(&after, &set, &before);
        ck_assert(CPU_EQUAL(&after, &set));
        ck_assert_int_eq(rl_cores_bind(pool, &second), RL_OK);
        ck_assert(second == NULL || cores >= 4);
    }
    ck_assert_int_eq(pthread_getaffinity_np(pthread_self(), sizeof after, &after), 0);
    ck_assert(CPU_EQUAL(&before, &after));
    rl_cores_release(second);
    rl_cores_release(first);
    rl_pool_destroy(pool);
}
END_TEST

START_TEST(no_pool_and_bad_arguments)
{
    static struct tally tally;
    run_and_check(NULL, &tally, 10, 3);
    ck_assert_int_eq(rl_pool_threads(NULL), 1);
    rl_pool_destroy(NULL);
    struct rl_pool *pool = (struct rl_pool *)&tally;
    ck_assert_int_ne(rl_pool_create(0, &pool), RL_OK);
    ck_assert_ptr_eq(pool, (struct rl_pool *)&tally);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("pool");
    tcase_add_test(tcase, every_index_once);
    tcase_add_test(tcase, short_jobs_do_not_mix);
    tcase_add_test(tcase, sleeping_helpers_wake);
    tcase_add_test(tcase, threads_on_cores);
    tcase_add_test(tcase, no_pool_and_bad_arguments);
    Suite *suite = suite_create("core pool");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
