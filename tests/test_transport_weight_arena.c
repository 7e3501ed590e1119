/* Weight slots: the protocol by hand, then under stress. Each version fills its image with words
 * that only this version has; a reader that ever saw two kinds of words in what it pinned would
 * have caught the writer in a slot in use. Between threads (TSan watches) and between processes. */
#include "transport/weight_arena.h"

#include "core/clock.h"
#include "core/log.h"

#include <check.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { IMAGE_WORDS = 512, LAST_VERSION = 1000000000, READERS = 3 };
static const double stress_s = 2.5;

static struct weight_arena *arena_make(bool shared, int slots, size_t bytes, int readers)
{
    struct weight_arena_options options = {
        .shared = shared, .slots = slots, .slot_bytes = bytes, .readers = readers};
    struct weight_arena *arena = NULL;
    ck_assert_int_eq(weight_arena_create(&options, &arena), RL_OK);
    return arena;
}

static void publish_filled(struct weight_arena *arena, uint32_t version, double timeout_s)
{
    int slot = -1;
    void *image = NULL;
    ck_assert_int_eq(weight_arena_begin_write(arena, timeout_s, &slot, &image), RL_OK);
    uint32_t *words = image;
    for (int i = 0; i < IMAGE_WORDS; i++) {
        words[i] = version;
    }
    ck_assert_int_eq(weight_arena_publish(arena, slot, version, version * 3u), RL_OK);
}

/* Version after version, as fast as slots come free, from `first` on; returns the next. */
static uint32_t publish_for(struct weight_arena *arena, uint32_t first, double time_s)
{
    uint32_t version = first;
    double end_s = rl_clock_now_s(NULL) + time_s;
    for (; version == first || rl_clock_now_s(NULL) < end_s; version++) {
        publish_filled(arena, version, 30.0);
    }
    return version;
}

/* True if everything in the view is of its version. */
static bool view_is_whole(const struct weight_view *view)
{
    const uint32_t *words = view->image;
    for (int i = 0; i < IMAGE_WORDS; i++) {
        if (words[i] != view->version) {
            return false;
        }
    }
    return view->hash == view->version * 3u;
}

START_TEST(protocol)
{
    bool shared = _i == 1;
    struct weight_arena *arena = arena_make(shared, 3, IMAGE_WORDS * 4, READERS);
    struct weight_view view;
    uint32_t version = 0;
    ck_assert(!weight_arena_latest(arena, &version));
    ck_assert_int_eq(weight_arena_acquire(arena, 0, &view), RL_AGAIN);
    publish_filled(arena, 0, 0.0);
    ck_assert(weight_arena_latest(arena, &version));
    ck_assert_uint_eq(version, 0);
    ck_assert_int_eq(weight_arena_acquire(arena, 0, &view), RL_OK);
    ck_assert_uint_eq((uintptr_t)view.image % 4096, 0);
    publish_filled(arena, 1, 0.0);
    publish_filled(arena, 2, 0.0);
    ck_assert(view_is_whole(&view)); /* version 0 is still pinned */
    struct weight_view other;
    ck_assert_int_eq(weight_arena_acquire(arena, 1, &other), RL_OK);
    ck_assert_uint_eq(other.version, 2);
    publish_filled(arena, 3, 0.0);
    int slot = -1;
    void *image = NULL; /* slots hold 0 (pinned), 2 (pinned), 3 (newest) */
    ck_assert_int_eq(weight_arena_begin_write(arena, 0.02, &slot, &image), RL_TIMEOUT);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), " 0(slot"));
    weight_arena_clear_reader(arena, 0);
    publish_filled(arena, 4, 0.0);
    ck_assert(view_is_whole(&other));
    weight_arena_release(arena, 1);
    ck_assert_int_eq(weight_arena_begin_write(arena, 0.0, &slot, &image), RL_OK);
    int again = -1;
    ck_assert_int_eq(weight_arena_begin_write(arena, 0.0, &again, &image), RL_OK);
    ck_assert_int_eq(slot, again);
    ck_assert_int_eq(weight_arena_publish(arena, slot, 4, 0), RL_INVALID);
    ck_assert_int_eq(weight_arena_publish(arena, (slot + 1) % 3, 9, 0), RL_INVALID);
    ck_assert_int_eq(weight_arena_acquire(arena, READERS, &view), RL_INVALID);
    ck_assert_int_eq(weight_arena_wait(arena, 4, 0.0), RL_OK);
    ck_assert_int_eq(weight_arena_wait(arena, 5, 0.02), RL_TIMEOUT);
    weight_arena_close(arena);
}
END_TEST

/* Several versions held by one reader, one gone, one to come. */
START_TEST(pins)
{
    struct weight_arena *arena = arena_make(_i == 1, 4, IMAGE_WORDS * 4, READERS);
    struct weight_view first, second, other;
    ck_assert_int_eq(weight_arena_pin(arena, 0, 0, &first), RL_AGAIN);
    publish_filled(arena, 5, 0.0);
    ck_assert_int_eq(weight_arena_pin(arena, 0, 5, &first), RL_OK);
    ck_assert_int_eq(weight_arena_pin(arena, 0, 6, &second), RL_AGAIN);
    ck_assert_int_eq(weight_arena_pin(arena, 0, 4, &second), RL_NOT_FOUND);
    publish_filled(arena, 6, 0.0);
    ck_assert_int_eq(weight_arena_pin(arena, 0, 6, &second), RL_OK);
    ck_assert_int_eq(weight_arena_pin(arena, 0, 6, &second), RL_OK); /* does not count */
    publish_filled(arena, 7, 0.0);
    publish_filled(arena, 8, 0.0);
    ck_assert_int_eq(weight_arena_pin(arena, 1, 7, &other), RL_OK);
    ck_assert(view_is_whole(&first) && view_is_whole(&second) && view_is_whole(&other));
    int slot = -1;
    void *image = NULL;
    ck_assert_int_eq(weight_arena_begin_write(arena, 0.02, &slot, &image), RL_TIMEOUT);
    weight_arena_unpin(arena, 0, 6);
    weight_arena_unpin(arena, 0, 6);
    weight_arena_unpin(arena, 0, 1000);
    publish_filled(arena, 9, 0.0);
    ck_assert_int_eq(weight_arena_pin(arena, 0, 6, &second), RL_NOT_FOUND);
    ck_assert(view_is_whole(&first) && view_is_whole(&other));
    ck_assert_int_eq(weight_arena_acquire(arena, 1, &second), RL_OK);
    weight_arena_release(arena, 1);
    ck_assert_int_eq(weight_arena_pin(arena, 1, 7, &other), RL_OK); /* release left it alone */
    weight_arena_clear_reader(arena, 1);
    publish_filled(arena, 10, 0.0);
    publish_filled(arena, 11, 0.0);
    ck_assert(view_is_whole(&first));
    ck_assert_int_eq(weight_arena_pin(arena, READERS, 11, &other), RL_INVALID);
    weight_arena_close(arena);
}
END_TEST

/* A window of versions stays though nobody pins it. */
START_TEST(kept_window)
{
    enum { WINDOW = 3 };
    struct weight_arena *arena = arena_make(false, WINDOW + 2, IMAGE_WORDS * 4, 1);
    struct weight_view view;
    for (uint32_t version = 0; version < 40; version++) {
        uint32_t first = version < WINDOW ? 0 : version - WINDOW;
        weight_arena_keep_from(arena, first);
        publish_filled(arena, version, 0.0);
        for (uint32_t kept = first; kept <= version; kept++) {
            ck_assert_int_eq(weight_arena_pin(arena, 0, kept, &view), RL_OK);
            ck_assert(view_is_whole(&view));
            weight_arena_unpin(arena, 0, kept);
        }
    }
    int slot = -1;
    void *image = NULL;
    ck_assert_int_eq(weight_arena_begin_write(arena, 0.0, &slot, &image), RL_OK);
    ck_assert_int_eq(weight_arena_publish(arena, slot, 40, 0), RL_OK);
    ck_assert_int_eq(weight_arena_begin_write(arena, 0.02, &slot, &image), RL_TIMEOUT);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "window"));
    weight_arena_close(arena);
}
END_TEST

START_TEST(bad_requests)
{
    struct weight_arena *arena = NULL;
    struct weight_arena_options options = {.slots = 1, .slot_bytes = 64, .readers = 1};
    ck_assert_int_eq(weight_arena_create(&options, &arena), RL_INVALID);
    options = (struct weight_arena_options){
        .shared = true, .slots = 3, .slot_bytes = (size_t)1 << 45, .readers = 1};
    ck_assert_int_eq(weight_arena_create(&options, &arena), RL_IO);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "free"));
    ck_assert_int_eq(weight_arena_attach("/foresight-1-999", 64, &arena), RL_NOT_FOUND);
    ck_assert_int_eq(weight_arena_attach("/etc/passwd", 64, &arena), RL_NOT_FOUND);
    struct weight_arena *real = arena_make(true, 2, 8192, 1);
    ck_assert_int_eq(weight_arena_attach(weight_arena_name(real), 4096, &arena), RL_INVALID);
    ck_assert_int_eq(weight_arena_attach(weight_arena_name(real), 8192, &arena), RL_OK);
    int slot = -1;
    void *image = NULL;
    ck_assert_int_eq(weight_arena_begin_write(arena, 0, &slot, &image), RL_INVALID);
    weight_arena_unlink(real);
    struct weight_arena *late = NULL;
    ck_assert_int_eq(weight_arena_attach(weight_arena_name(real), 8192, &late), RL_NOT_FOUND);
    weight_arena_close(arena);
    weight_arena_close(real);
    ck_assert_ptr_null(late);
}
END_TEST

struct stress {
    struct weight_arena *arena;
    int reader;
    atomic_bool *stop;
    atomic_uint_fast64_t views; /* out */
    bool failed;                /* out */
};

static void *stress_read(void *arg)
{
    struct stress *stress = arg;
    uint32_t last = 0;
    struct weight_view view;
    while (!atomic_load(stress->stop)) {
        if (weight_arena_acquire(stress->arena, stress->reader, &view) != RL_OK) {
            continue;
        }
        stress->failed = stress->failed || !view_is_whole(&view) || view.version < last;
        last = view.version;
        stress->views++;
        if (stress->views % 3 != 0) { /* sometimes move from pin to pin */
            weight_arena_release(stress->arena, stress->reader);
        }
    }
    weight_arena_release(stress->arena, stress->reader);
    return NULL;
}

/* Hold the newest two or three by pin, among them ones that the writer is about to take. */
static void *stress_pin(void *arg)
{
    enum { HELD = 3 };
    struct stress *stress = arg;
    struct weight_view held[HELD] = {0};
    bool has[HELD] = {false};
    for (uint64_t turn = 0; !atomic_load(stress->stop); turn++) {
        size_t at = turn % HELD;
        uint32_t newest = 0;
        if (has[at]) {
            stress->failed = stress->failed || !view_is_whole(&held[at]);
            weight_arena_unpin(stress->arena, stress->reader, held[at].version);
            for (size_t i = 0; i < HELD; i++) { /* it does not count: it was the others' too */
                has[i] = has[i] && held[i].version != held[at].version;
            }
        }
        if (!weight_arena_latest(stress->arena, &newest)) {
            continue;
        }
        uint32_t wanted = newest - (uint32_t)(turn / HELD % 3 < newest ? turn / HELD % 3 : 0);
        rl_status status = weight_arena_pin(stress->arena, stress->reader, wanted, &held[at]);
        has[at] = status == RL_OK;
        stress->failed = stress->failed || (has[at] && held[at].version != wanted) ||
                         (status != RL_OK && status != RL_AGAIN && status != RL_NOT_FOUND);
        stress->views += has[at] ? 1 : 0;
    }
    weight_arena_clear_reader(stress->arena, stress->reader);
    return NULL;
}

START_TEST(stress_threads)
{
    bool pinning = _i == 2;
    struct weight_arena *arena = arena_make(false, 2 + _i, IMAGE_WORDS * 4, READERS);
    atomic_bool stop = false;
    struct stress stress[READERS];
    pthread_t threads[READERS];
    for (int i = 0; i < READERS; i++) {
        stress[i] = (struct stress){.arena = arena, .reader = i, .stop = &stop};
        ck_assert_int_eq(pthread_create(&threads[i], NULL,
                                        pinning && i > 0 ? stress_pin : stress_read, &stress[i]),
                         0);
    }
    uint32_t version = publish_for(arena, 0, stress_s);
    for (int i = 0; i < READERS; i++) {
        while (atomic_load(&stress[i].views) == 0) { /* it may not have had its turn yet */
            version = publish_for(arena, version, 0.01);
        }
    }
    atomic_store(&stop, true);
    for (int i = 0; i < READERS; i++) {
        pthread_join(threads[i], NULL);
        ck_assert(!stress[i].failed);
    }
    weight_arena_close(arena);
}
END_TEST

/* A reader process: 0 if all it saw was whole until the last version. */
static int process_read(const char *name, int reader)
{
    struct weight_arena *arena = NULL;
    if (weight_arena_attach(name, IMAGE_WORDS * 4, &arena) != RL_OK) {
        return 2;
    }
    struct weight_view view = {0};
    uint64_t views = 0;
    bool whole = true;
    double deadline_s = rl_clock_now_s(NULL) + 100.0;
    while (whole && view.version < LAST_VERSION && rl_clock_now_s(NULL) < deadline_s) {
        if (weight_arena_acquire(arena, reader, &view) == RL_OK) {
            whole = view_is_whole(&view);
            views++;
        }
        if (views % 3 != 0) {
            weight_arena_release(arena, reader);
        }
    }
    weight_arena_release(arena, reader);
    weight_arena_close(arena);
    return whole && view.version == LAST_VERSION ? 0 : 1;
}

START_TEST(stress_processes)
{
    struct weight_arena *arena = arena_make(true, 3, IMAGE_WORDS * 4, READERS);
    pid_t pids[READERS];
    for (int i = 0; i < READERS; i++) {
        pids[i] = fork();
        ck_assert_int_ge(pids[i], 0);
        if (pids[i] == 0) {
            _exit(process_read(weight_arena_name(arena), i));
        }
    }
    publish_for(arena, 0, stress_s);
    publish_filled(arena, LAST_VERSION, 30.0);
    for (int i = 0; i < READERS; i++) {
        int status = -1;
        ck_assert_int_eq(waitpid(pids[i], &status, 0), pids[i]);
        ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "reader %d: status %#x", i,
                      (unsigned)status);
    }
    weight_arena_close(arena);
}
END_TEST

/* A reader that dies while it holds a slot blocks it until its pin is cleared. */
START_TEST(dead_reader)
{
    struct weight_arena *arena = arena_make(true, 2, IMAGE_WORDS * 4, READERS);
    publish_filled(arena, 1, 0.0);
    int ready[2];
    ck_assert_int_eq(pipe(ready), 0);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        struct weight_arena *mine = NULL;
        struct weight_view view;
        bool fine =
            weight_arena_attach(weight_arena_name(arena), IMAGE_WORDS * 4, &mine) == RL_OK &&
            weight_arena_acquire(mine, 2, &view) == RL_OK &&
            weight_arena_pin(mine, 2, 1, &view) == RL_OK;
        ssize_t written = write(ready[1], fine ? "y" : "n", 1);
        pause();
        _exit(written == 1 ? 0 : 1);
    }
    char answer = 'n';
    ck_assert_int_eq((int)read(ready[0], &answer, 1), 1);
    ck_assert_int_eq(answer, 'y');
    publish_filled(arena, 2, 0.0);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    int slot = -1;
    void *image = NULL;
    ck_assert_int_eq(weight_arena_begin_write(arena, 0.02, &slot, &image), RL_TIMEOUT);
    weight_arena_clear_reader(arena, 2);
    publish_filled(arena, 3, 0.0);
    close(ready[0]);
    close(ready[1]);
    weight_arena_close(arena);
}
END_TEST

/* An arena whose creator was killed goes, once nobody maps it; a living one's stays. */
START_TEST(stale_arenas)
{
    struct weight_arena *living = arena_make(true, 2, 4096, 1);
    int names[2];
    ck_assert_int_eq(pipe(names), 0);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        struct weight_arena *mine = arena_make(true, 2, 4096, 1);
        char name[WEIGHT_ARENA_NAME_MAX] = "";
        snprintf(name, sizeof name, "%s", weight_arena_name(mine));
        ssize_t written = write(names[1], name, sizeof name);
        pause();
        _exit(written > 0 ? 0 : 1);
    }
    char name[WEIGHT_ARENA_NAME_MAX] = "";
    ck_assert_int_eq((int)read(names[0], name, sizeof name), (int)sizeof name);
    struct weight_arena *user = NULL;
    ck_assert_int_eq(weight_arena_attach(name, 4096, &user), RL_OK);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    weight_arena_remove_stale();
    struct weight_arena *again = NULL;
    ck_assert_int_eq(weight_arena_attach(name, 4096, &again), RL_OK); /* still mapped: stayed */
    weight_arena_close(again);
    weight_arena_close(user);
    weight_arena_remove_stale(); /* unless another program that starts has done so already */
    ck_assert_int_eq(weight_arena_attach(name, 4096, &again), RL_NOT_FOUND);
    ck_assert_int_eq(weight_arena_attach(weight_arena_name(living), 4096, &again), RL_OK);
    weight_arena_close(again);
    weight_arena_close(living);
    close(names[0]);
    close(names[1]);
}
END_TEST

int main(void)
{
    rl_log_set_level(RL_LOG_ERROR);
    Suite *suite = suite_create("weight_arena");
    TCase *tests = tcase_create("slots");
    tcase_set_timeout(tests, 120);
    tcase_add_loop_test(tests, protocol, 0, 2);
    tcase_add_test(tests, bad_requests);
    tcase_add_loop_test(tests, pins, 0, 2);
    tcase_add_test(tests, kept_window);
    tcase_add_loop_test(tests, stress_threads, 0, 3);
    tcase_add_test(tests, stress_processes);
    tcase_add_test(tests, dead_reader);
    tcase_add_test(tests, stale_arenas);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
