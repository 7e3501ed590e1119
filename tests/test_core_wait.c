/* Waits end at their deadline, are counted under their name, and run on a virtual clock. */
#include "core/log.h"
#include "core/wait.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct virtual_time {
    double now_s;
    double ready_at_s;
    int polls;
};

static double virtual_now_s(void *arg)
{
    return ((struct virtual_time *)arg)->now_s;
}

static void virtual_sleep_s(void *arg, double time_s)
{
    ((struct virtual_time *)arg)->now_s += time_s;
}

static bool virtual_ready(void *arg)
{
    struct virtual_time *time = arg;
    time->polls++;
    return time->now_s >= time->ready_at_s;
}

START_TEST(condition_on_a_virtual_clock)
{
    struct virtual_time time = {.now_s = 100.0, .ready_at_s = 130.0};
    struct rl_clock clock = {virtual_now_s, virtual_sleep_s, &time};
    struct rl_waits *waits = NULL;
    ck_assert_int_eq(rl_waits_create(&clock, &waits), RL_OK);
    ck_assert_int_eq(
        rl_wait_condition(waits, "learner waits for samples", virtual_ready, &time, 60.0), RL_OK);
    ck_assert_double_ge(time.now_s, 130.0);
    ck_assert_double_lt(time.now_s, 130.01);
    time.ready_at_s = 1e9;
    ck_assert_int_eq(
        rl_wait_condition(waits, "learner waits for samples", virtual_ready, &time, 45.0),
        RL_TIMEOUT);
    ck_assert_double_lt(time.now_s, 175.02);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "learner waits for samples"));
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "45.000 s"));
    struct rl_wait_stats stats[RL_WAIT_SITES_MAX];
    ck_assert_uint_eq(rl_waits_snapshot(waits, stats), 1);
    ck_assert_str_eq(stats[0].name, "learner waits for samples");
    ck_assert_uint_eq(stats[0].count, 2);
    ck_assert_uint_eq(stats[0].timeouts, 1);
    ck_assert_uint_eq(stats[0].active, 0);
    ck_assert_double_eq_tol(stats[0].total_s, 75.0, 0.02);
    ck_assert_double_eq_tol(stats[0].max_s, 45.0, 0.02);
    rl_waits_destroy(waits);
    rl_waits_destroy(NULL);
}
END_TEST

START_TEST(ready_at_once_is_no_wait)
{
    struct virtual_time time = {.ready_at_s = -1.0};
    struct rl_waits *waits = NULL;
    struct rl_wait_stats stats[RL_WAIT_SITES_MAX];
    ck_assert_int_eq(rl_waits_create(NULL, &waits), RL_OK);
    ck_assert_int_eq(rl_wait_condition(waits, "x", virtual_ready, &time, 0.0), RL_OK);
    ck_assert_int_eq(time.polls, 1);
    ck_assert_uint_eq(rl_waits_snapshot(waits, stats), 0);
    time.ready_at_s = 1.0;
    ck_assert_int_eq(rl_wait_condition(NULL, "uncounted", virtual_ready, &time, 0.005), RL_TIMEOUT);
    rl_waits_destroy(waits);
}
END_TEST

START_TEST(many_names_share_the_last_row)
{
    struct rl_waits *waits = NULL;
    struct rl_wait_stats stats[RL_WAIT_SITES_MAX];
    ck_assert_int_eq(rl_waits_create(NULL, &waits), RL_OK);
    for (int i = 0; i < 100; i++) {
        char name[32];
        snprintf(name, sizeof name, "wait %d", i);
        struct rl_wait wait = rl_wait_begin(waits, name);
        ck_assert_double_ge(rl_wait_end(&wait), 0.0);
    }
    ck_assert_uint_eq(rl_waits_snapshot(waits, stats), RL_WAIT_SITES_MAX);
    ck_assert_str_eq(stats[62].name, "wait 62");
    ck_assert_str_eq(stats[63].name, "other");
    ck_assert_uint_eq(stats[63].count, 37);
    /* A name longer than the table's column is still one name. */
    char name[200];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    rl_waits_destroy(waits);
    ck_assert_int_eq(rl_waits_create(NULL, &waits), RL_OK);
    for (int i = 0; i < 2; i++) {
        struct rl_wait wait = rl_wait_begin(waits, name);
        rl_wait_end(&wait);
    }
    ck_assert_uint_eq(rl_waits_snapshot(waits, stats), 1);
    ck_assert_uint_eq(stats[0].count, 2);
    rl_waits_destroy(waits);
}
END_TEST

struct flag {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool raised;
};

static bool flag_raised(void *arg)
{
    return ((struct flag *)arg)->raised;
}

static void *raise_later(void *arg)
{
    struct flag *flag = arg;
    rl_clock_sleep_s(NULL, 0.03);
    pthread_mutex_lock(&flag->lock);
    flag->raised = true;
    pthread_cond_signal(&flag->cond);
    pthread_mutex_unlock(&flag->lock);
    return NULL;
}

START_TEST(signal_with_and_without_rescue)
{
    struct flag flag = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct rl_wait_signal signal = {&flag.cond, &flag.lock, flag_raised, &flag};
    ck_assert_int_eq(rl_wait_cond_init(&flag.cond), RL_OK);
    pthread_mutex_lock(&flag.lock);
    double started_s = rl_clock_now_s(NULL);
    ck_assert_int_eq(rl_wait_signal(NULL, "flag", &signal, 0.03), RL_TIMEOUT);
    ck_assert_double_ge(rl_clock_now_s(NULL) - started_s, 0.029);
    ck_assert_int_eq(rl_wait_signal_poll(NULL, "flag", &signal, 0.005), RL_AGAIN);
    pthread_t thread;
    ck_assert_int_eq(pthread_create(&thread, NULL, raise_later, &flag), 0);
    ck_assert_int_eq(rl_wait_signal(NULL, "flag", &signal, -1.0), RL_OK);
    ck_assert_int_eq(rl_wait_signal(NULL, "flag", &signal, 0.0), RL_OK);
    pthread_mutex_unlock(&flag.lock);
    pthread_join(thread, NULL);
    pthread_cond_destroy(&flag.cond);
}
END_TEST

START_TEST(clocks_run)
{
    const struct rl_clock *clock = rl_clock_monotonic();
    double before_s = rl_clock_now_s(clock);
    double cpu_s = rl_clock_process_cpu_s();
    rl_clock_sleep_s(clock, 0.01);
    rl_clock_sleep_s(clock, -5.0);
    ck_assert_double_ge(rl_clock_now_s(clock) - before_s, 0.0099);
    volatile double sink = 0.0;
    while (rl_clock_process_cpu_s() - cpu_s < 0.002) {
        sink += 1.0;
    }
    ck_assert_double_gt(sink, 0.0);
    ck_assert_double_gt(rl_clock_wall_s(), 1.6e9);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("wait");
    tcase_add_test(tcase, condition_on_a_virtual_clock);
    tcase_add_test(tcase, ready_at_once_is_no_wait);
    tcase_add_test(tcase, many_names_share_the_last_row);
    tcase_add_test(tcase, signal_with_and_without_rescue);
    tcase_add_test(tcase, clocks_run);
    Suite *suite = suite_create("core wait");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
