/* Text buffers, whole-file reading, nearest names, status codes and the log. */
#include "core/log.h"
#include "core/text.h"

#include <check.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

START_TEST(text_grows_to_its_limit)
{
    struct rl_text text;
    rl_text_init(&text, 1000);
    ck_assert_str_eq(rl_text_str(&text), "");
    for (int i = 0; i < 100; i++) {
        ck_assert_int_eq(rl_text_printf(&text, "%09d", i), RL_OK);
        ck_assert_int_eq(rl_text_append_byte(&text, '.'), RL_OK);
    }
    ck_assert_uint_eq(text.bytes, 1000);
    ck_assert_int_eq(rl_text_append(&text, "x", 1), RL_TOO_LONG);
    ck_assert_int_eq(rl_text_printf(&text, "%s", "x"), RL_TOO_LONG);
    ck_assert_int_eq(rl_text_append(&text, "", 0), RL_OK);
    ck_assert_uint_eq(text.bytes, 1000);
    ck_assert_uint_eq(strlen(text.data), 1000);
    ck_assert_str_eq(text.data + 990, "000000099.");
    rl_text_clear(&text);
    ck_assert_str_eq(rl_text_str(&text), "");
    ck_assert_int_eq(rl_text_append_str(&text, "again"), RL_OK);
    char *taken = NULL;
    size_t bytes = 0;
    ck_assert_int_eq(rl_text_take(&text, &taken, &bytes), RL_OK);
    ck_assert_str_eq(taken, "again");
    ck_assert_uint_eq(bytes, 5);
    ck_assert_ptr_null(text.data);
    free(taken);
    ck_assert_int_eq(rl_text_take(&text, &taken, &bytes), RL_OK);
    ck_assert_str_eq(taken, "");
    free(taken);
    rl_text_fini(&text);
    rl_text_fini(&text);
}
END_TEST

START_TEST(huge_requests_fail_cleanly)
{
    struct rl_text text;
    rl_text_init(&text, SIZE_MAX);
    ck_assert_int_ne(rl_text_reserve(&text, SIZE_MAX), RL_OK);
    ck_assert_int_eq(rl_text_append_str(&text, "ab"), RL_OK);
    ck_assert_int_ne(rl_text_reserve(&text, SIZE_MAX - 1), RL_OK);
    ck_assert_str_eq(text.data, "ab");
    rl_text_fini(&text);
}
END_TEST

static char folder[64];

static void make_folder(void)
{
    snprintf(folder, sizeof folder, "/tmp/foresight_text_XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void write_file(const char *path, const char *data, size_t bytes)
{
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

START_TEST(files_are_read_whole_and_bounded)
{
    char path[128];
    char *data = NULL;
    size_t bytes = 99;
    make_folder();
    snprintf(path, sizeof path, "%s/file", folder);
    write_file(path, "a\0bc", 4);
    ck_assert_int_eq(rl_file_read(path, 4, &data, &bytes), RL_OK);
    ck_assert_uint_eq(bytes, 4);
    ck_assert_mem_eq(data, "a\0bc\0", 5);
    free(data);
    data = folder;
    ck_assert_int_eq(rl_file_read(path, 3, &data, &bytes), RL_TOO_LONG);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), path));
    ck_assert_ptr_eq(data, folder);
    write_file(path, "", 0);
    ck_assert_int_eq(rl_file_read(path, 0, &data, NULL), RL_OK);
    ck_assert_str_eq(data, "");
    free(data);
    unlink(path);
    ck_assert_int_eq(rl_file_read(path, 10, &data, &bytes), RL_IO);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), path));
    ck_assert_int_eq(rl_file_read(folder, 10, &data, &bytes), RL_IO);
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    ck_assert_int_eq(rl_file_read(path, 10, &data, &bytes), RL_IO); /* must not hang */
    unlink(path);
    rmdir(folder);
}
END_TEST

/* A file that says 0 bytes and has some. */
START_TEST(files_of_unknown_size)
{
    char *data = NULL;
    size_t bytes = 0;
    if (access("/proc/self/status", R_OK) != 0) {
        return;
    }
    ck_assert_int_eq(rl_file_read("/proc/self/status", 1 << 20, &data, &bytes), RL_OK);
    ck_assert_uint_gt(bytes, 100);
    ck_assert_uint_eq(strlen(data), bytes);
    free(data);
    ck_assert_int_eq(rl_file_read("/proc/self/status", 100, &data, &bytes), RL_TOO_LONG);
}
END_TEST

START_TEST(distances_and_nearest)
{
    ck_assert_uint_eq(rl_text_distance("", ""), 0);
    ck_assert_uint_eq(rl_text_distance("abc", ""), 3);
    ck_assert_uint_eq(rl_text_distance("kitten", "sitting"), 3);
    ck_assert_uint_eq(rl_text_distance("reward", "rewrad"), 1);
    char longest[66];
    memset(longest, 'x', 65);
    longest[65] = '\0';
    ck_assert_uint_eq(rl_text_distance(longest, "x"), SIZE_MAX);
    static const char *const names[] = {"rollout", "rewards", "run", "learning_rate"};
    ck_assert_str_eq(rl_text_nearest("reward", names, 4), "rewards");
    ck_assert_str_eq(rl_text_nearest("lerning_rat", names, 4), "learning_rate");
    ck_assert_ptr_null(rl_text_nearest("optimizer", names, 4));
    ck_assert_ptr_null(rl_text_nearest("xy", names, 4));
    ck_assert_ptr_null(rl_text_nearest(longest, names, 4));
    ck_assert_ptr_null(rl_text_nearest("run", names, 0));
}
END_TEST

START_TEST(status_codes_have_names_and_scopes)
{
    ck_assert_str_eq(rl_status_name(RL_IO), "RL_IO");
    ck_assert_str_eq(rl_status_text(RL_OK), "ok");
    ck_assert_int_eq(rl_status_scope(RL_TIMEOUT), RL_SCOPE_PEER);
    ck_assert_int_eq(rl_status_scope(RL_CORRUPT), RL_SCOPE_ITEM);
    ck_assert_int_eq(rl_status_scope(RL_NONFINITE), RL_SCOPE_RUN);
    ck_assert_str_eq(rl_status_name((rl_status)1234), "RL_INTERNAL");
}
END_TEST

START_TEST(log_goes_to_a_file_in_whole_lines)
{
    char path[128];
    char *text = NULL;
    make_folder();
    snprintf(path, sizeof path, "%s/log", folder);
    rl_log_identify("learner", 3);
    ck_assert_int_eq(rl_log_open_file(path), RL_OK);
    errno = EBUSY;
    ck_assert_int_eq(rl_fail(RL_CORRUPT, "%s: two\nlines", "file.bin"), RL_CORRUPT);
    ck_assert_int_eq(errno, EBUSY);
    rl_log(RL_LOG_DEBUG, "not shown");
    rl_log_set_level(RL_LOG_DEBUG);
    rl_log(RL_LOG_DEBUG, "shown");
    char huge[10000];
    memset(huge, 'h', sizeof huge - 1);
    huge[sizeof huge - 1] = '\0';
    rl_log(RL_LOG_INFO, "%s", huge);
    rl_log_close_file();
    rl_log(RL_LOG_INFO, "after closing");
    ck_assert_str_eq(rl_log_last_error(), "file.bin: two\nlines");
    ck_assert_int_eq(rl_fail(RL_IO, "again: %s", rl_log_last_error()), RL_IO);
    ck_assert_str_eq(rl_log_last_error(), "again: file.bin: two\nlines");
    ck_assert_int_eq(rl_file_read(path, 1 << 20, &text, NULL), RL_OK);
    ck_assert_ptr_nonnull(strstr(text, "learner 3 E file.bin: two lines [corrupt data]\n"));
    ck_assert_ptr_nonnull(strstr(text, "learner 3 D shown\n"));
    ck_assert_ptr_null(strstr(text, "not shown"));
    ck_assert_ptr_null(strstr(text, "after closing"));
    int lines = 0;
    for (const char *at = text; *at != '\0'; at++) {
        lines += *at == '\n';
    }
    ck_assert_int_eq(lines, 3);
    free(text);
    ck_assert_int_eq(rl_log_open_file("/nonexistent/folder/log"), RL_IO);
    unlink(path);
    rmdir(folder);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("text");
    tcase_add_test(tcase, text_grows_to_its_limit);
    tcase_add_test(tcase, huge_requests_fail_cleanly);
    tcase_add_test(tcase, files_are_read_whole_and_bounded);
    tcase_add_test(tcase, files_of_unknown_size);
    tcase_add_test(tcase, distances_and_nearest);
    tcase_add_test(tcase, status_codes_have_names_and_scopes);
    tcase_add_test(tcase, log_goes_to_a_file_in_whole_lines);
    Suite *suite = suite_create("core text");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
