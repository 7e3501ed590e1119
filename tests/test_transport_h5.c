/* HDF5 files and rollout segments: round trips, what the reader refuses, rot and truncation at
 * every place tried, a disk that is full, and two threads at once. */
#include "transport/h5_file.h"
#include "transport/segment_file.h"

#include "core/log.h"
#include "core/rng.h"

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];

static void folder_make(void)
{
    snprintf(folder, sizeof folder, "/tmp/fs-test-h5-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static int folder_count(const char *path)
{
    DIR *list = opendir(path);
    int count = 0;
    for (struct dirent *entry = list != NULL ? readdir(list) : NULL; entry != NULL;
         entry = readdir(list)) {
        count += entry->d_name[0] != '.';
    }
    closedir(list);
    return count;
}

static void folder_remove(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    ck_assert_int_eq(system(command), 0);
}

static const char *in_folder(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

START_TEST(arrays_round_trip)
{
    static const uint64_t counts[] = {0, 1, 1000, 262144, 3000001};
    uint64_t count = counts[_i];
    float *values = malloc((count + 1) * sizeof *values);
    uint8_t *bytes = malloc(count + 1);
    for (uint64_t i = 0; i < count; i++) {
        values[i] = (float)sin((double)i);
        bytes[i] = (uint8_t)(i >> 8);
    }
    const char *path = in_folder("arrays.h5");
    struct h5_file *file = NULL;
    ck_assert_int_eq(h5_file_create(path, &file), RL_OK);
    ck_assert_int_eq(access(path, F_OK), -1); /* nothing there before the commit */
    ck_assert_int_eq(h5_file_write(file, "a/b/values", H5_F32, values, count, 1), RL_OK);
    ck_assert_int_eq(h5_file_write(file, "a/raw", H5_U8, bytes, count, 0), RL_OK);
    ck_assert_int_eq(h5_file_write_u64(file, "number", UINT64_MAX), RL_OK);
    ck_assert_int_eq(h5_file_write_f64(file, "time", 0.1), RL_OK);
    ck_assert_int_eq(h5_file_write_text(file, "text", "gr\xc3\xbc\xc3\x9f"), RL_OK);
    ck_assert_int_eq(h5_file_write_text(file, "empty", ""), RL_OK);
    ck_assert_int_eq(h5_file_commit(file), RL_OK);
    ck_assert_int_eq(folder_count(folder), 1);

    ck_assert_int_eq(h5_file_open(path, &file), RL_OK);
    void *back = NULL;
    uint64_t found = 0;
    ck_assert(h5_file_has(file, "a/b/values") && !h5_file_has(file, "a/c"));
    ck_assert_int_eq(h5_file_read_new(file, "a/b/values", H5_F32, count, &back, &found), RL_OK);
    ck_assert_uint_eq(found, count);
    ck_assert_int_eq(memcmp(back, values, count * sizeof *values), 0);
    free(back);
    ck_assert_int_eq(h5_file_read(file, "a/raw", H5_U8, bytes, count), RL_OK);
    for (uint64_t i = 0; i < count; i++) {
        ck_assert_uint_eq(bytes[i], (uint8_t)(i >> 8));
    }
    uint64_t number = 0;
    double time_s = 0;
    char *text = NULL;
    ck_assert_int_eq(h5_file_read_u64(file, "number", &number), RL_OK);
    ck_assert(number == UINT64_MAX);
    ck_assert_int_eq(h5_file_read_f64(file, "time", &time_s), RL_OK);
    ck_assert(time_s == 0.1);
    ck_assert_int_eq(h5_file_read_text(file, "text", 100, &text), RL_OK);
    ck_assert_str_eq(text, "gr\xc3\xbc\xc3\x9f");
    free(text);
    ck_assert_int_eq(h5_file_read_text(file, "empty", 100, &text), RL_OK);
    ck_assert_str_eq(text, "");
    free(text);
    h5_file_close(file);
    free(values);
    free(bytes);
}
END_TEST

START_TEST(reader_refuses)
{
    const char *path = in_folder("refuse.h5");
    struct h5_file *file = NULL;
    float values[4] = {1, 2, 3, 4};
    ck_assert_int_eq(h5_file_create(path, &file), RL_OK);
    ck_assert_int_eq(h5_file_write(file, "x", H5_F32, values, 4, 1), RL_OK);
    ck_assert_int_eq(h5_file_write(file, "x", H5_F32, values, 4, 1), RL_IO); /* there already */
    h5_file_abort(file);
    ck_assert_int_eq(folder_count(folder), 0);
    ck_assert_int_eq(h5_file_create(path, &file), RL_OK);
    ck_assert_int_eq(h5_file_write(file, "x", H5_F32, values, 4, 1), RL_OK);
    ck_assert_int_eq(h5_file_write_text(file, "t", "long text"), RL_OK);
    ck_assert_int_eq(h5_file_commit(file), RL_OK);
    ck_assert_int_eq(h5_file_open(path, &file), RL_OK);
    void *back = NULL;
    char *text = NULL;
    uint64_t count = 0;
    ck_assert_int_eq(h5_file_read(file, "y", H5_F32, values, 4), RL_NOT_FOUND);
    ck_assert_int_eq(h5_file_read(file, "x", H5_F64, values, 4), RL_CORRUPT);
    ck_assert_int_eq(h5_file_read(file, "x", H5_I32, values, 4), RL_CORRUPT);
    ck_assert_int_eq(h5_file_read(file, "x", H5_F32, values, 3), RL_CORRUPT);
    ck_assert_int_eq(h5_file_read_new(file, "x", H5_F32, 3, &back, &count), RL_TOO_LONG);
    ck_assert_int_eq(h5_file_read_text(file, "t", 4, &text), RL_TOO_LONG);
    ck_assert_int_eq(h5_file_read_u64(file, "t", &count), RL_CORRUPT);
    ck_assert_int_eq(h5_file_read_u64(file, "none", &count), RL_NOT_FOUND);
    h5_file_close(file);
    ck_assert_int_eq(h5_file_open(in_folder("absent.h5"), &file), RL_IO);
    FILE *out = fopen(in_folder("text.h5"), "w");
    fputs("this is not HDF5", out);
    fclose(out);
    ck_assert_int_eq(h5_file_open(in_folder("text.h5"), &file), RL_CORRUPT);
    ck_assert_int_eq(h5_file_create("/nonexistent/x.h5", &file), RL_IO);
}
END_TEST

static struct trajectory_group *group_make(uint64_t ticket, uint32_t samples)
{
    struct rl_rng rng = rl_rng_make(ticket, 3);
    struct trajectory_group *group = NULL;
    int32_t tokens[400];
    float logprob[200];
    uint32_t version[200];
    ck_assert_int_eq(trajectory_group_create(samples, &group), RL_OK);
    group->ticket = ticket;
    group->prompt_id = ticket * 7;
    group->epoch = 2;
    group->worker = 1;
    group->started_s = 1.5;
    group->finished_s = 2.5 + (double)ticket;
    for (uint32_t i = 0; i < samples; i++) {
        uint32_t prompt = 1 + (uint32_t)rl_rng_next_below(&rng, 100);
        uint32_t completion = (uint32_t)rl_rng_next_below(&rng, 200);
        for (uint32_t t = 0; t < prompt + completion; t++) {
            tokens[t] = (int32_t)rl_rng_next_below(&rng, 1000);
        }
        for (uint32_t t = 0; t < completion; t++) {
            logprob[t] = -(float)rl_rng_next_uniform(&rng);
            version[t] = 10 + t / 50;
        }
        struct trajectory *sample = &group->samples[i];
        ck_assert_int_eq(
            trajectory_set_tokens(sample, tokens, logprob, version, prompt, completion), RL_OK);
        sample->finish = RL_FINISH_LENGTH;
        sample->reward_valid = i != 2;
        sample->reward = (float)(i % 2);
        sample->accuracy = sample->reward;
        sample->reward_part_count = 1;
        sample->reward_part[0] = sample->reward;
    }
    return group;
}

static void segment_make(const char *path, struct trajectory_group **groups, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        groups[i] = group_make(100 + i, 4);
    }
    struct segment_info info = {.first_step = 5, .last_step = 6, .run = "test"};
    ck_assert_int_eq(
        segment_file_write(path, &info, (const struct trajectory_group *const *)groups, count),
        RL_OK);
}

static bool groups_equal(const struct trajectory_group *a, const struct trajectory_group *b)
{
    bool equal = a->ticket == b->ticket && a->prompt_id == b->prompt_id && a->epoch == b->epoch &&
                 a->worker == b->worker && a->sample_count == b->sample_count &&
                 a->started_s == b->started_s && a->finished_s == b->finished_s;
    for (uint32_t i = 0; equal && i < a->sample_count; i++) {
        const struct trajectory *s = &a->samples[i];
        const struct trajectory *t = &b->samples[i];
        size_t completion = s->completion_count * sizeof(float);
        equal = s->prompt_count == t->prompt_count && s->completion_count == t->completion_count &&
                s->finish == t->finish && s->reward_valid == t->reward_valid &&
                s->reward == t->reward && s->accuracy == t->accuracy &&
                s->reward_part_count == t->reward_part_count &&
                memcmp(s->reward_part, t->reward_part, sizeof s->reward_part) == 0 &&
                memcmp(s->tokens, t->tokens, s->prompt_count * sizeof(int32_t) + completion) == 0 &&
                memcmp(s->logprob, t->logprob, completion) == 0 &&
                memcmp(s->version, t->version, completion) == 0;
    }
    return equal;
}

START_TEST(segment_round_trip)
{
    struct trajectory_group *groups[9];
    size_t count = (size_t)_i;
    const char *path = in_folder("seg.h5");
    segment_make(path, groups, count);
    struct trajectory_group **back = NULL;
    size_t found = 0;
    struct segment_summary summary;
    ck_assert_int_eq(segment_file_read(path, &back, &found, &summary), RL_OK);
    ck_assert_uint_eq(found, count);
    ck_assert_uint_eq(summary.samples, 4 * count);
    ck_assert_uint_eq(summary.first_step, 5);
    for (size_t i = 0; i < count; i++) {
        ck_assert(groups_equal(groups[i], back[i]));
        trajectory_group_destroy(groups[i]);
    }
    if (count > 0) {
        ck_assert_uint_eq(summary.oldest_version, 10);
        ck_assert(fabs(summary.reward_mean - 2.0 / 3.0) < 1e-12);
    }
    segment_groups_free(back, found);
}
END_TEST

START_TEST(segment_numbers)
{
    uint64_t number = 0;
    char path[256];
    ck_assert_int_eq(segment_file_next(folder, &number), RL_OK);
    ck_assert_uint_eq(number, 1);
    ck_assert_int_eq(segment_file_path(folder, 41, path, sizeof path), RL_OK);
    ck_assert_ptr_nonnull(strstr(path, "/rollouts/seg_000041.h5"));
    struct trajectory_group *groups[1];
    segment_make(path, groups, 1);
    trajectory_group_destroy(groups[0]);
    ck_assert_int_eq(segment_file_next(folder, &number), RL_OK);
    ck_assert_uint_eq(number, 42);
    ck_assert_int_eq(segment_file_path(folder, 1, path, 10), RL_TOO_LONG);
    struct trajectory_group *bad = group_make(1, 2);
    bad->samples[1].reward = NAN;
    struct segment_info info = {0};
    ck_assert_int_eq(segment_file_path(folder, 42, path, sizeof path), RL_OK);
    ck_assert_int_eq(
        segment_file_write(path, &info, (const struct trajectory_group *const[]){bad}, 1),
        RL_INVALID);
    trajectory_group_destroy(bad);
    ck_assert_int_eq(access(path, F_OK), -1);
}
END_TEST

static unsigned char *file_load(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    struct stat info;
    ck_assert_ptr_nonnull(file);
    ck_assert_int_eq(fstat(fileno(file), &info), 0);
    *bytes = (size_t)info.st_size;
    unsigned char *data = malloc(*bytes);
    ck_assert_uint_eq(fread(data, 1, *bytes, file), *bytes);
    fclose(file);
    return data;
}

static void file_store(const char *path, const unsigned char *data, size_t bytes)
{
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

/* A damaged segment is refused, or what was damaged did not matter: never other groups. */
static bool damage_is_seen(const char *path, struct trajectory_group **groups, size_t count)
{
    struct trajectory_group **back = NULL;
    size_t found = 0;
    if (segment_file_read(path, &back, &found, NULL) != RL_OK) {
        return true;
    }
    bool same = found == count;
    for (size_t i = 0; same && i < count; i++) {
        same = groups_equal(groups[i], back[i]);
    }
    segment_groups_free(back, found);
    ck_assert_msg(same, "a damaged segment was read as other data");
    return false;
}

START_TEST(segment_rot)
{
    struct trajectory_group *groups[3];
    const char *sound = in_folder("sound.h5");
    segment_make(sound, groups, 3);
    size_t bytes = 0;
    unsigned char *data = file_load(sound, &bytes);
    const char *path = in_folder("rotten.h5");
    struct rl_rng rng = rl_rng_make(12, 1);
    int seen = 0;
    enum { FLIPS = 1500 };
    for (int i = 0; i < FLIPS; i++) {
        size_t bit =
            i < 600 ? rl_rng_next_below(&rng, 4096 * 8) : rl_rng_next_below(&rng, bytes * 8);
        data[bit / 8] ^= (unsigned char)(1u << bit % 8);
        file_store(path, data, bytes);
        seen += damage_is_seen(path, groups, 3);
        data[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    ck_assert_int_gt(seen, FLIPS / 2); /* the others hit gaps between objects */
    for (size_t cut = 0; cut < bytes; cut += 1 + bytes / 200) {
        file_store(path, data, cut);
        ck_assert(damage_is_seen(path, groups, 3));
    }
    for (int i = 0; i < 3; i++) {
        trajectory_group_destroy(groups[i]);
    }
    free(data);
}
END_TEST

/* A file-size limit stands for a full disk: the write fails, nothing stays, and the library still
 * works afterwards. */
START_TEST(disk_full)
{
    signal(SIGXFSZ, SIG_IGN);
    size_t count = 1 << 20;
    uint64_t *values = malloc(count * sizeof *values);
    for (size_t i = 0; i < count; i++) {
        values[i] = i * UINT64_C(0x9e3779b97f4a7c15);
    }
    static const rlim_t limits[] = {0, 100, 5000, 1 << 20, 6 << 20, (8 << 20) - 100};
    struct rlimit limit = {limits[_i], RLIM_INFINITY};
    struct h5_file *file = NULL;
    const char *path = in_folder("full.h5");
    int limited = setrlimit(RLIMIT_FSIZE, &limit); /* no ck_assert until lifted: it writes a file */
    rl_status status = h5_file_create(path, &file);
    if (status == RL_OK) {
        status = h5_file_write(file, "values", H5_U64, values, count, 0);
        if (status == RL_OK) {
            status = h5_file_commit(file);
        } else {
            h5_file_abort(file);
        }
    }
    limit.rlim_cur = RLIM_INFINITY;
    int lifted = setrlimit(RLIMIT_FSIZE, &limit);
    ck_assert(limited == 0 && lifted == 0);
    ck_assert_int_eq(status, RL_IO);
    ck_assert_int_eq(folder_count(folder), 0);
    ck_assert_int_eq(h5_file_create(path, &file), RL_OK);
    ck_assert_int_eq(h5_file_write(file, "values", H5_U64, values, count, 0), RL_OK);
    ck_assert_int_eq(h5_file_commit(file), RL_OK);
    free(values);
}
END_TEST

static void *thread_write(void *arg)
{
    char name[32];
    float values[5000];
    for (int i = 0; i < 5000; i++) {
        values[i] = (float)i * 0.5f;
    }
    for (int i = 0; i < 20; i++) {
        struct h5_file *file = NULL;
        char path[256];
        snprintf(path, sizeof path, "%s/thread%d_%d.h5", folder, *(int *)arg, i);
        snprintf(name, sizeof name, "values%d", i);
        if (h5_file_create(path, &file) != RL_OK ||
            h5_file_write(file, name, H5_F32, values, 5000, 1) != RL_OK ||
            h5_file_commit(file) != RL_OK || h5_file_open(path, &file) != RL_OK ||
            h5_file_read(file, name, H5_F32, values, 5000) != RL_OK) {
            return NULL;
        }
        h5_file_close(file);
    }
    return arg;
}

START_TEST(files_in_threads)
{
    pthread_t threads[3];
    int ids[3] = {0, 1, 2};
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, thread_write, &ids[i]), 0);
    }
    for (int i = 0; i < 3; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        ck_assert_ptr_nonnull(result);
    }
}
END_TEST

int main(void)
{
    rl_log_set_level((enum rl_log_level) - 1);
    Suite *suite = suite_create("h5");
    TCase *tests = tcase_create("files");
    tcase_set_timeout(tests, 120);
    tcase_add_checked_fixture(tests, folder_make, folder_remove);
    tcase_add_loop_test(tests, arrays_round_trip, 0, 5);
    tcase_add_test(tests, reader_refuses);
    tcase_add_loop_test(tests, segment_round_trip, 0, 9);
    tcase_add_test(tests, segment_numbers);
    tcase_add_test(tests, segment_rot);
    tcase_add_loop_test(tests, disk_full, 0, 6);
    tcase_add_test(tests, files_in_threads);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
