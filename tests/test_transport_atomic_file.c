/* Atomic files: whole or not at all, also when the disk is full or the writer gives up. */
#include "core/log.h"
#include "core/text.h"
#include "transport/atomic_file.h"

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static char folder[] = "atomic_file_XXXXXX";
static char path[128];

static void setup(void)
{
    snprintf(folder, sizeof folder, "atomic_file_XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/target", folder);
}

static void teardown(void)
{
    unlink(path);
    ck_assert_int_eq(rmdir(folder), 0); /* fails if a temporary file was left behind */
}

static int count_files(void)
{
    int count = 0;
    DIR *handle = opendir(folder);
    for (struct dirent *entry = readdir(handle); entry != NULL; entry = readdir(handle)) {
        count += entry->d_name[0] != '.' ? 1 : 0;
    }
    closedir(handle);
    return count;
}

static void expect_content(const char *expected)
{
    char *data = NULL;
    ck_assert_int_eq(rl_file_read(path, 1 << 20, &data, NULL), RL_OK);
    ck_assert_str_eq(data, expected);
    free(data);
}

START_TEST(content_appears_on_commit_only)
{
    struct atomic_file *file = NULL;
    ck_assert_int_eq(atomic_file_write_all(path, "old", 3), RL_OK);
    ck_assert_int_eq(atomic_file_open(path, &file), RL_OK);
    ck_assert_int_eq(atomic_file_write(file, "new ", 4), RL_OK);
    ck_assert_int_eq(atomic_file_write(file, "words", 5), RL_OK);
    expect_content("old");
    ck_assert_uint_eq(atomic_file_bytes(file), 9);
    ck_assert_uint_eq(atomic_file_hash(file), XXH3_64bits("new words", 9));
    ck_assert_int_eq(atomic_file_commit(file), RL_OK);
    expect_content("new words");
    ck_assert_int_eq(count_files(), 1);
}
END_TEST

START_TEST(abort_leaves_nothing)
{
    struct atomic_file *file = NULL;
    ck_assert_int_eq(atomic_file_open(path, &file), RL_OK);
    ck_assert_int_eq(atomic_file_write(file, "x", 1), RL_OK);
    ck_assert_int_eq(count_files(), 1);
    atomic_file_abort(file);
    atomic_file_abort(NULL);
    ck_assert_int_eq(count_files(), 0);
}
END_TEST

START_TEST(large_writes_keep_their_order)
{
    enum { BYTES = 5 << 20 };
    struct atomic_file *file = NULL;
    unsigned char *data = malloc(BYTES);
    char *back = NULL;
    size_t bytes = 0;
    for (size_t i = 0; i < BYTES; i++) {
        data[i] = (unsigned char)(i * 2654435761U >> 13);
    }
    ck_assert_int_eq(atomic_file_open(path, &file), RL_OK);
    for (size_t at = 0, step = 1; at < BYTES; at += step, step = step * 3 + 1) {
        step = step > BYTES - at ? BYTES - at : step;
        ck_assert_int_eq(atomic_file_write(file, data + at, step), RL_OK);
    }
    ck_assert_uint_eq(atomic_file_hash(file), XXH3_64bits(data, BYTES));
    ck_assert_int_eq(atomic_file_commit(file), RL_OK);
    ck_assert_int_eq(rl_file_read(path, BYTES, &back, &bytes), RL_OK);
    ck_assert_uint_eq(bytes, BYTES);
    ck_assert_mem_eq(back, data, BYTES);
    free(back);
    free(data);
}
END_TEST

/* A limit on the size of files stands in for a full disk. */
START_TEST(no_room_leaves_the_target_alone)
{
    enum { BYTES = 3 << 20 };
    struct rlimit before;
    char *data = calloc(1, BYTES);
    signal(SIGXFSZ, SIG_IGN);
    ck_assert_int_eq(atomic_file_write_all(path, "old", 3), RL_OK);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
    struct rlimit small = {1 << 20, before.rlim_max};
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    rl_status status = atomic_file_write_all(path, data, BYTES);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
    ck_assert_int_eq(status, RL_IO);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), path));
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "no room"));
    expect_content("old");
    ck_assert_int_eq(count_files(), 1);
    free(data);
}
END_TEST

START_TEST(errors_name_the_path)
{
    struct atomic_file *file = NULL;
    ck_assert_int_eq(atomic_file_open("nowhere/at/all", &file), RL_IO);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "nowhere/at/all"));
    ck_assert_int_eq(mkdir(path, 0700), 0);
    ck_assert_int_eq(atomic_file_write_all(path, "x", 1), RL_IO); /* a folder has that name */
    ck_assert_int_eq(count_files(), 1);
    ck_assert_int_eq(rmdir(path), 0);
}
END_TEST

/* What a killed process left behind under the first temporary name is stepped over. */
START_TEST(stale_temporary_files_are_no_obstacle)
{
    char stale[256];
    snprintf(stale, sizeof stale, "%s.tmp.%ld.0", path, (long)getpid());
    FILE *file = fopen(stale, "w");
    ck_assert_ptr_nonnull(file);
    fclose(file);
    ck_assert_int_eq(atomic_file_write_all(path, "fresh", 5), RL_OK);
    expect_content("fresh");
    ck_assert_int_eq(unlink(stale), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("transport_atomic_file");
    TCase *tcase = tcase_create("files");
    tcase_add_checked_fixture(tcase, setup, teardown);
    tcase_add_test(tcase, content_appears_on_commit_only);
    tcase_add_test(tcase, abort_leaves_nothing);
    tcase_add_test(tcase, large_writes_keep_their_order);
    tcase_add_test(tcase, no_room_leaves_the_target_alone);
    tcase_add_test(tcase, errors_name_the_path);
    tcase_add_test(tcase, stale_temporary_files_are_no_obstacle);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
