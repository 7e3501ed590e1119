/* Weight slots in a GPU's memory: the writer is one process, readers are others, on the same GPU or
 * on another. Each version fills its slot with words that only it has, on the host's side with
 * others: a reader that saw two kinds of words, or the host's, would have been given a slot in use,
 * or the wrong one. Built twice: for the machine's GPUs, as many as there are, and for two emulated
 * ones. */
#include "core/pool.h"
#include "kernels/device.h"
#include "transport/weight_arena.h"

#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#if SUPPORT_EMULATED
#include "tests/emulation/emulation.h"
#else
#define SUPPORT_EMULATED 0
#endif

enum { WORDS = 700, VERSIONS = 40, READERS = 2 };

START_TEST(without_a_device_nothing_changes)
{
    struct weight_arena_options options = {.slots = 2, .slot_bytes = WORDS * 4, .readers = 1};
    struct weight_arena *arena = NULL;
    struct weight_view view;
    int slot = -1;
    void *image = NULL;
    ck_assert_int_eq(weight_arena_create(&options, &arena), RL_OK);
    ck_assert_int_eq(weight_arena_add_device(arena, NULL), RL_OK);
    ck_assert_int_eq(weight_arena_begin_write(arena, 0, &slot, &image), RL_OK);
    ck_assert_ptr_null(weight_arena_device_slot(arena, slot));
    ck_assert_int_eq(weight_arena_publish(arena, slot, 1, 0), RL_OK);
    weight_arena_map_device(arena, NULL, 0);
    ck_assert_int_eq(weight_arena_acquire(arena, 0, &view), RL_OK);
    ck_assert_ptr_eq(view.nearest.data, view.image);
    ck_assert_int_eq(view.nearest.place, DEVICE_PLACE_HOST);
    ck_assert_int_eq(weight_arena_place(arena), DEVICE_PLACE_HOST);
    weight_arena_close(arena);
}
END_TEST

/* Buffers of device memory that exist, where that is known. */
static size_t buffers(void)
{
#if SUPPORT_EMULATED
    return emulation_buffers();
#else
    return 0;
#endif
}

/* GPUs that there are, found out by another process: who has used CUDA cannot fork any more. */
static int count_gpus(void)
{
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        struct device_survey survey;
        device_gpu_survey(&survey);
        _exit(survey.count);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status)
                                                                           : 0;
}

/* A process's GPU and its arena. */
struct side {
    struct device *device;
    struct rl_pool *pool;
    struct weight_arena *arena;
    void *copy; /* [WORDS] of a reader on another GPU */
};

static void side_open(struct side *s, int gpu)
{
    *s = (struct side){0};
    ck_assert_int_eq(device_gpu_open(gpu, &s->device), RL_OK);
    ck_assert_int_eq(rl_pool_create(1, &s->pool), RL_OK);
    ck_assert_int_eq(device_stream_start(s->device, s->pool), RL_OK);
    ck_assert_int_eq(device_buffer_alloc(s->device, WORDS * 4, "copy", &s->copy), RL_OK);
}

/* `left`: buffers that stay. */
static void side_close_but(struct side *s, size_t left)
{
    weight_arena_close(s->arena);
    device_buffer_free(s->device, s->copy);
    device_stream_stop(s->pool);
    rl_pool_destroy(s->pool);
    device_close(s->device);
    ck_assert_uint_eq(buffers(), left);
}

static void side_close(struct side *s)
{
    side_close_but(s, 0);
}

static void writer_open(struct side *s, bool shared)
{
    struct weight_arena_options options = {
        .shared = shared, .slots = 3, .slot_bytes = WORDS * 4, .readers = READERS};
    side_open(s, 0);
    ck_assert_int_eq(weight_arena_create(&options, &s->arena), RL_OK);
    ck_assert_int_eq(weight_arena_add_device(s->arena, s->device), RL_OK);
}

/* On the device the version's words, on the host their complements. */
static void publish(struct side *s, uint32_t version)
{
    uint32_t words[WORDS];
    int slot = -1;
    void *image = NULL;
    ck_assert_int_eq(weight_arena_begin_write(s->arena, 60, &slot, &image), RL_OK);
    for (uint32_t i = 0; i < WORDS; i++) {
        words[i] = ~(1000 * version + i);
    }
    memcpy(image, words, sizeof words);
    for (uint32_t i = 0; i < WORDS; i++) {
        words[i] = ~words[i];
    }
    device_write(s->pool, weight_arena_device_slot(s->arena, slot), words, sizeof words);
    ck_assert_int_eq(device_wait(s->pool), RL_OK);
    ck_assert_int_eq(weight_arena_publish(s->arena, slot, version, 0), RL_OK);
}

/* True if all that the view says is of its version and comes from `place`. */
static bool is_whole(struct side *s, const struct weight_view *view, enum device_place place)
{
    uint32_t words[WORDS];
    const void *data = view->nearest.data;
    if (view->nearest.place != place) {
        return false;
    }
    if (place == DEVICE_PLACE_PEER) {
        device_copy(s->pool, s->copy, data, WORDS * 4);
        data = s->copy;
    }
    if (place == DEVICE_PLACE_HOST) {
        memcpy(words, data, sizeof words);
    } else if (device_read(s->pool, words, data, sizeof words) != RL_OK) {
        return false;
    }
    for (uint32_t i = 0; i < WORDS; i++) {
        uint32_t expected = 1000 * view->version + i;
        if (words[i] != (place == DEVICE_PLACE_HOST ? ~expected : expected)) {
            return false;
        }
    }
    return true;
}

START_TEST(one_process_reads_where_it_writes)
{
    struct side s;
    struct weight_view view;
    struct weight_view newer;
    writer_open(&s, false);
    publish(&s, 0);
    ck_assert_int_eq(weight_arena_acquire(s.arena, 0, &view), RL_OK);
    for (uint32_t version = 1; version < 9; version++) { /* never into what is pinned */
        publish(&s, version);
        ck_assert_int_eq(weight_arena_pin(s.arena, 1, version, &newer), RL_OK);
        ck_assert(is_whole(&s, &newer, DEVICE_PLACE_HERE));
        weight_arena_unpin(s.arena, 1, version);
        ck_assert(is_whole(&s, &view, DEVICE_PLACE_HERE));
    }
    side_close(&s);
}
END_TEST

/* --- other processes
 * -------------------------------------------------------------------------------- */

/* A process that waits for an arena's name; forked before anything of CUDA is used. */
struct child {
    pid_t pid;
    int to, from;
};

struct child_task {
    int reader, gpu;
    enum device_place place;
    bool stays; /* until it is killed */
};

static int read_versions(struct side *s, const struct child_task *task)
{
    struct weight_view view = {.version = 0};
    while (view.version < VERSIONS) {
        if (weight_arena_acquire(s->arena, task->reader, &view) != RL_OK ||
            !is_whole(s, &view, task->place)) {
            return 1;
        }
    }
    weight_arena_release(s->arena, task->reader);
    return 0;
}

static void child_run(const struct child_task *task, int in, int out)
{
    char name[WEIGHT_ARENA_NAME_MAX];
    struct side s;
    if (read(in, name, sizeof name) != sizeof name) {
        _exit(9);
    }
    side_open(&s, task->gpu);
    if (weight_arena_attach(name, WORDS * 4, &s.arena) != RL_OK) {
        _exit(8);
    }
    weight_arena_map_device(s.arena, s.device, task->reader);
    if (write(out, "m", 1) != 1) {
        _exit(7);
    }
    while (task->stays) {
        pause();
    }
    int code = read_versions(&s, task);
    side_close(&s);
    _exit(code);
}

static struct child child_start(const struct child_task *task)
{
    struct child child;
    int to[2];
    int from[2];
    ck_assert(pipe(to) == 0 && pipe(from) == 0);
    child.pid = fork();
    ck_assert_int_ge(child.pid, 0);
    if (child.pid == 0) {
        child_run(task, to[0], from[1]);
    }
    close(to[0]);
    close(from[1]);
    child.to = to[1];
    child.from = from[0];
    return child;
}

/* Returns when it has the arena. */
static void child_tell(const struct child *child, const struct weight_arena *arena)
{
    char name[WEIGHT_ARENA_NAME_MAX] = "";
    char answer;
    memcpy(name, weight_arena_name(arena), strlen(weight_arena_name(arena)));
    ck_assert(write(child->to, name, sizeof name) == sizeof name);
    ck_assert(read(child->from, &answer, 1) == 1);
}

static int child_end(const struct child *child)
{
    int status = 0;
    ck_assert_int_eq(waitpid(child->pid, &status, 0), child->pid);
    close(child->to);
    close(child->from);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 100 + WTERMSIG(status);
}

static void run_readers(const struct child_task tasks[READERS])
{
    struct child children[READERS];
    struct side s;
    for (int i = 0; i < READERS; i++) {
        children[i] = child_start(&tasks[i]);
    }
    writer_open(&s, true);
    publish(&s, 1);
    for (int i = 0; i < READERS; i++) {
        child_tell(&children[i], s.arena);
    }
    for (uint32_t version = 2; version <= VERSIONS; version++) {
        publish(&s, version);
    }
    for (int i = 0; i < READERS; i++) {
        ck_assert_int_eq(child_end(&children[i]), 0);
    }
    side_close(&s);
}

START_TEST(others_read_in_place)
{
    run_readers((const struct child_task[READERS]){{0, 0, DEVICE_PLACE_HERE, false},
                                                   {1, 0, DEVICE_PLACE_HERE, false}});
}
END_TEST

START_TEST(another_gpu_copies)
{
    run_readers((const struct child_task[READERS]){{0, 0, DEVICE_PLACE_HERE, false},
                                                   {1, 1, DEVICE_PLACE_PEER, false}});
}
END_TEST

#if SUPPORT_EMULATED
START_TEST(what_cuda_refuses_comes_from_the_host)
{
    static const char *const settings[][2] = {{"FORESIGHT_EMULATED_IPC", "unshared"},
                                              {"FORESIGHT_EMULATED_IPC", "unopened"},
                                              {"FORESIGHT_EMULATED_PEERS", "0"}};
    const enum device_place same_gpu = _i == 2 ? DEVICE_PLACE_HERE : DEVICE_PLACE_HOST;
    setenv(settings[_i][0], settings[_i][1], 1);
    run_readers((const struct child_task[READERS]){{0, 0, same_gpu, false},
                                                   {1, 1, DEVICE_PLACE_HOST, false}});
}
END_TEST
#endif

/* Nobody waits for a reader that was killed, once it is known. */
START_TEST(a_dead_reader_holds_nothing)
{
    struct child child = child_start(&(struct child_task){.stays = true});
    struct side s;
    writer_open(&s, true);
    publish(&s, 1);
    child_tell(&child, s.arena);
    kill(child.pid, SIGKILL);
    ck_assert_int_eq(child_end(&child), 100 + SIGKILL);
    weight_arena_clear_reader(s.arena, 0);
    side_close(&s); /* which sees that everything is freed */
}
END_TEST

/* One that only seems dead keeps the memory from being freed, and nothing else. */
START_TEST(what_is_mapped_is_not_freed)
{
    struct child child = child_start(&(struct child_task){.stays = true});
    struct side s;
    writer_open(&s, true);
    publish(&s, 1);
    child_tell(&child, s.arena);
    side_close_but(&s, SUPPORT_EMULATED ? 1 : 0);
    kill(child.pid, SIGKILL);
    ck_assert_int_eq(child_end(&child), 100 + SIGKILL);
}
END_TEST

static bool is_there(const char *name)
{
    char path[WEIGHT_ARENA_NAME_MAX + 16];
    snprintf(path, sizeof path, "/dev/shm%s", name);
    return access(path, F_OK) == 0;
}

static void write_and_die(int out)
{
    char name[WEIGHT_ARENA_NAME_MAX] = "";
    struct side s;
    writer_open(&s, true);
    publish(&s, 7);
    memcpy(name, weight_arena_name(s.arena), strlen(weight_arena_name(s.arena)));
    if (write(out, name, sizeof name) != sizeof name) {
        _exit(9);
    }
    for (;;) {
        pause();
    }
}

START_TEST(weights_outlive_their_writer)
{
    char name[WEIGHT_ARENA_NAME_MAX];
    struct side s;
    struct weight_view view;
    int from[2];
    int status = 0;
    ck_assert_int_eq(pipe(from), 0);
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        write_and_die(from[1]);
    }
    ck_assert(read(from[0], name, sizeof name) == sizeof name);
    side_open(&s, 0);
    ck_assert_int_eq(weight_arena_attach(name, WORDS * 4, &s.arena), RL_OK);
    weight_arena_map_device(s.arena, s.device, 0);
    kill(pid, SIGKILL);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(weight_arena_acquire(s.arena, 0, &view), RL_OK);
    ck_assert(is_whole(&s, &view, DEVICE_PLACE_HERE));
    (void)weight_arena_remove_stale();
    ck_assert(is_there(name)); /* this process has it mapped */
    side_close(&s);
    (void)weight_arena_remove_stale();
    ck_assert(!is_there(name));
    close(from[0]);
    close(from[1]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("transport_weight_device");
    TCase *all = tcase_create("slots");
    tcase_add_test(all, without_a_device_nothing_changes);
#if SUPPORT_EMULATED
    setenv("FORESIGHT_EMULATED_GPUS", "2", 1);
    tcase_add_loop_test(all, what_cuda_refuses_comes_from_the_host, 0, 3);
#endif
    int gpus = count_gpus();
    if (gpus > 0) {
        tcase_add_test(all, one_process_reads_where_it_writes);
        tcase_add_test(all, others_read_in_place);
        tcase_add_test(all, a_dead_reader_holds_nothing);
        tcase_add_test(all, what_is_mapped_is_not_freed);
        tcase_add_test(all, weights_outlive_their_writer);
    }
    if (gpus > 1) {
        tcase_add_test(all, another_gpu_copies);
    }
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
