/* Signs of life of processes, messages over a socket, and the start of a process for a seat. */
#include "transport/process_life.h"
#include "transport/seat.h"
#include "transport/socket_stream.h"

#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LARGE_BYTES = 3000000, LIMIT_BYTES = 4000000 };

static struct socket_stream *ends[2];
static int raw[2];

static void open_pair(uint32_t first, uint32_t second)
{
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, raw), 0);
    ck_assert_int_eq(socket_stream_create(raw[0], first, LIMIT_BYTES, &ends[0]), RL_OK);
    ck_assert_int_eq(socket_stream_create(raw[1], second, LIMIT_BYTES, &ends[1]), RL_OK);
}

static void close_pair(void)
{
    socket_stream_destroy(ends[0]);
    socket_stream_destroy(ends[1]);
}

static void queue(struct socket_stream *stream, uint32_t kind, size_t bytes)
{
    struct channel_message message = {.kind = kind, .bytes = bytes};
    message.data = bytes > 0 ? malloc(bytes) : NULL;
    for (size_t i = 0; i < bytes; i++) {
        ((unsigned char *)message.data)[i] = (unsigned char)(i * 7 + kind);
    }
    ck_assert_int_eq(socket_stream_send(stream, &message), RL_OK);
    ck_assert_ptr_null(message.data);
}

static void expect(uint32_t kind, size_t bytes)
{
    struct channel_message message = {0};
    rl_status status = RL_AGAIN;
    while (status == RL_AGAIN) { /* larger than the socket's buffer: both ends take turns */
        socket_stream_flush(ends[0]);
        status = socket_stream_receive(ends[1], &message);
    }
    ck_assert_int_eq(status, RL_OK);
    ck_assert_uint_eq(message.kind, kind);
    ck_assert_uint_eq(message.bytes, bytes);
    size_t wrong = 0;
    for (size_t i = 0; i < bytes; i++) {
        wrong += ((unsigned char *)message.data)[i] != (unsigned char)(i * 7 + kind);
    }
    ck_assert_uint_eq(wrong, 0);
    channel_message_fini(&message);
}

START_TEST(stream_keeps_order_and_bytes)
{
    struct channel_message message = {0};
    open_pair(3, 3);
    ck_assert_int_eq(socket_stream_receive(ends[1], &message), RL_AGAIN);
    queue(ends[0], 5, 0);
    queue(ends[0], 6, LARGE_BYTES);
    queue(ends[0], 7, 1);
    ck_assert_uint_eq(socket_stream_queued(ends[0]), 3);
    expect(5, 0);
    expect(6, LARGE_BYTES);
    expect(7, 1);
    ck_assert_uint_eq(socket_stream_queued(ends[0]), 0);
    ck_assert_int_eq(socket_stream_receive(ends[1], &message), RL_AGAIN);
    close_pair();
}
END_TEST

START_TEST(stream_refuses_another_incarnation_and_too_much)
{
    struct channel_message message = {0};
    open_pair(2, 3);
    queue(ends[0], 5, 10);
    socket_stream_flush(ends[0]);
    ck_assert_int_eq(socket_stream_receive(ends[1], &message), RL_CORRUPT);
    close_pair();
    open_pair(3, 3);
    queue(ends[0], 5, LIMIT_BYTES + 1);
    socket_stream_flush(ends[0]);
    ck_assert_int_eq(socket_stream_receive(ends[1], &message), RL_CORRUPT);
    close_pair();
}
END_TEST

/* What was sent before the end is received first; a part of a message is not. */
START_TEST(stream_ends_after_its_last_message)
{
    struct channel_message message = {0};
    open_pair(1, 1);
    queue(ends[0], 5, 100);
    queue(ends[0], 6, LARGE_BYTES);
    socket_stream_flush(ends[0]);
    socket_stream_destroy(ends[0]);
    ck_assert_int_eq(socket_stream_receive(ends[1], &message), RL_OK);
    channel_message_fini(&message);
    ck_assert_int_eq(socket_stream_receive(ends[1], &message), RL_CLOSED);
    queue(ends[1], 5, 10);
    socket_stream_flush(ends[1]); /* no SIGPIPE */
    socket_stream_destroy(ends[1]);
}
END_TEST

START_TEST(life_of_a_process)
{
    uint64_t mine = process_life_began((int64_t)getpid());
    ck_assert_uint_ne(mine, 0);
    ck_assert_uint_eq(process_life_began((int64_t)getpid()), mine);
    ck_assert_uint_eq(process_life_began(0), 0);
    ck_assert_uint_eq(process_life_began(INT64_C(1) << 40), 0);
    int before = process_life_children((int64_t)getpid());
    pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    ck_assert_uint_ge(process_life_began((int64_t)child), mine);
    ck_assert(before < 0 || process_life_children((int64_t)getpid()) == before + 1);
    kill(child, SIGKILL);
    siginfo_t info;
    ck_assert_int_eq(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT), 0);
    ck_assert_uint_eq(process_life_began((int64_t)child), 0); /* only its remains */
    ck_assert(before < 0 || process_life_children((int64_t)getpid()) == before);
    waitpid(child, NULL, 0);
    ck_assert_uint_eq(process_life_began((int64_t)child), 0);
}
END_TEST

/* The child side of the next test: this program again. */
static int seat_main(void)
{
    struct seat seat;
    if (!seat_from_environment(&seat) || seat_from_environment(&seat)) {
        return 3; /* told once, and only once */
    }
    char text[64];
    int length = snprintf(text, sizeof text, "%d %d %u %d %d", seat.rank, seat.size,
                          seat.incarnation, seat.reader, fcntl(17, F_GETFD) < 0);
    return write(seat.fd, text, (size_t)length) == length ? 0 : 4;
}

START_TEST(seat_is_taken)
{
    char self[4096];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    ck_assert_int_gt(length, 0);
    self[length] = '\0';
    char *arguments[] = {self, (char[]){"--seat"}, NULL};
    struct seat seat = {.rank = 2,
                        .size = 4,
                        .incarnation = 7,
                        .reader = 11,
                        .learner_pid = (int64_t)getpid(),
                        .learner_began = process_life_began((int64_t)getpid()),
                        .launcher_pid = (int64_t)getppid()};
    int64_t pid = 0;
    int fd = -1;
    ck_assert_int_eq(dup2(0, 17), 17); /* must not reach the child */
    ck_assert_int_eq(seat_start(&seat, arguments, NULL, &pid, &fd), RL_OK);
    char text[64] = "";
    ck_assert_int_gt(read(fd, text, sizeof text - 1), 0);
    ck_assert_str_eq(text, "2 4 7 11 1");
    ck_assert_int_eq(read(fd, text, sizeof text), 0); /* its end closes the socket */
    int status = 0;
    ck_assert_int_eq(waitpid((pid_t)pid, &status, 0), (pid_t)pid);
    ck_assert_int_eq(status, 0);
    close(fd);
    arguments[0] = (char[]){"/nonexistent"};
    ck_assert_int_eq(seat_start(&seat, arguments, NULL, &pid, &fd), RL_IO);
    ck_assert(!seat_from_environment(&seat));
    setenv("FORESIGHT_SEAT", "0 4 1 2 3 4 5", 1); /* rank 0 has no successor */
    ck_assert(!seat_from_environment(&seat));
}
END_TEST

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--seat") == 0) {
        return seat_main();
    }
    Suite *suite = suite_create("seat");
    TCase *tests = tcase_create("seat");
    tcase_set_timeout(tests, 60);
    tcase_add_test(tests, stream_keeps_order_and_bytes);
    tcase_add_test(tests, stream_refuses_another_incarnation_and_too_much);
    tcase_add_test(tests, stream_ends_after_its_last_message);
    tcase_add_test(tests, life_of_a_process);
    tcase_add_test(tests, seat_is_taken);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
