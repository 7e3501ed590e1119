/* Files of counts: round trips, order, every field out of its range, truncation at many places. */
#include "transport/count_file.h"

#include "core/log.h"
#include "transport/h5_file.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[64];

static void path_make(void)
{
    snprintf(path, sizeof path, "/tmp/fs-test-counts-XXXXXX");
    int fd = mkstemp(path);
    ck_assert_int_ge(fd, 0);
    close(fd);
}

static void path_remove(void)
{
    unlink(path);
}

static struct count_table *make_table(void)
{
    struct count_table *table = NULL;
    ck_assert_int_eq(count_table_create(30, 3, &table), RL_OK);
    table->seed = 7;
    table->top_k = 20;
    table->top_p = 0.95;
    table->default_temperature = 0.7;
    table->sets = strdup("eval\nother");
    table->difficulties = strdup("easy\nhard");
    for (uint32_t t = 0; t < 3; t++) {
        table->temperatures[t] = 0.5 * t;
    }
    for (uint32_t p = 0; p < 30; p++) {
        char prompt[16];
        snprintf(prompt, sizeof prompt, "%u+1=", p);
        uint64_t id = count_problem_id(prompt, "9");
        table->problems[p] = (struct count_problem){.id = id,
                                                    .set = p % 2,
                                                    .split = count_problem_split(id),
                                                    .difficulty = p % 2 ? 255 : 1};
        for (uint32_t t = 0; t < 3; t++) {
            *count_table_at(table, t, p) = (struct count_cell){.samples = 8,
                                                               .correct = (p + t) % 8,
                                                               .finished = 6,
                                                               .truncated = 2,
                                                               .unscorable = p % 2,
                                                               .tokens = 1000 * p + t,
                                                               .majority = 0.25,
                                                               .logprob = -1.5 * p};
        }
    }
    ck_assert_int_eq(count_table_sort(table), RL_OK);
    return table;
}

START_TEST(round_trip)
{
    struct count_table *table = make_table();
    struct count_table *back = NULL;
    ck_assert_int_eq(count_file_write(path, table), RL_OK);
    ck_assert_int_eq(count_file_read(path, &back), RL_OK);
    ck_assert_uint_eq(back->problem_count, 30);
    ck_assert_uint_eq(back->temperature_count, 3);
    ck_assert_str_eq(back->sets, table->sets);
    ck_assert_str_eq(back->difficulties, table->difficulties);
    ck_assert(back->seed == 7 && back->top_k == 20 && back->top_p == 0.95);
    ck_assert(back->default_temperature == 0.7);
    ck_assert_mem_eq(back->temperatures, table->temperatures, 3 * sizeof(double));
    for (uint32_t p = 0; p < 30; p++) {
        const struct count_problem *a = &table->problems[p];
        const struct count_problem *b = &back->problems[p];
        ck_assert(a->id == b->id && a->set == b->set && a->split == b->split &&
                  a->difficulty == b->difficulty);
        for (uint32_t t = 0; t < 3; t++) {
            const struct count_cell *x = count_table_at(table, t, p);
            const struct count_cell *y = count_table_at(back, t, p);
            ck_assert(x->samples == y->samples && x->correct == y->correct &&
                      x->finished == y->finished && x->truncated == y->truncated &&
                      x->unscorable == y->unscorable && x->tokens == y->tokens &&
                      x->majority == y->majority && x->logprob == y->logprob);
        }
    }
    count_table_destroy(back);
    count_table_destroy(table);
}
END_TEST

START_TEST(sorting_moves_cells_with_their_problems)
{
    struct count_table *table = make_table();
    for (uint32_t p = 0; p < 30; p++) {
        uint64_t number = count_table_at(table, 0, p)->tokens / 1000;
        char prompt[16];
        snprintf(prompt, sizeof prompt, "%u+1=", (unsigned)number);
        ck_assert_uint_eq(table->problems[p].id, count_problem_id(prompt, "9"));
        ck_assert_uint_eq(table->problems[p].set, number % 2);
        ck_assert_uint_eq(count_table_at(table, 2, p)->tokens, 1000 * number + 2);
    }
    count_table_destroy(table);
}
END_TEST

START_TEST(ids_and_splits)
{
    ck_assert_uint_ne(count_problem_id("ab", "c"), count_problem_id("a", "bc"));
    ck_assert_uint_ne(count_problem_id("a", "1"), count_problem_id("a", "2"));
    int b = 0;
    for (uint64_t id = 0; id < 10000; id++) {
        b += count_problem_split(id) == COUNT_SPLIT_B;
    }
    ck_assert_int_lt(abs(b - 5000), 250); /* five standard deviations */
    ck_assert_uint_eq(count_problem_split(1), count_problem_split(1));
}
END_TEST

/* Break one thing of a sound table. */
static void spoil(struct count_table *table, int what)
{
    struct count_cell *cell = count_table_at(table, 1, 4);
    struct count_problem swap = table->problems[0];
    switch (what) {
    case 0:
        cell->samples = 0;
        break;
    case 1:
        cell->correct = 9;
        break;
    case 2:
        cell->unscorable = 9;
        break;
    case 3:
        cell->finished = 9;
        break;
    case 4:
        cell->truncated = 3;
        break;
    case 5:
        cell->majority = 1.5;
        break;
    case 6:
        cell->majority = NAN;
        break;
    case 7:
        cell->logprob = -INFINITY;
        break;
    case 8:
        cell->logprob = 1;
        break;
    case 9:
        table->problems[3].split ^= 1;
        break;
    case 10:
        table->problems[29].set = 2;
        break;
    case 11:
        table->problems[3].difficulty = 2;
        break;
    case 12:
        table->problems[0] = table->problems[1];
        table->problems[1] = swap;
        break;
    case 13:
        table->temperatures[2] = table->temperatures[1];
        break;
    case 14:
        table->temperatures[2] = NAN;
        break;
    case 15:
        table->temperatures[0] = -1;
        break;
    case 16:
        table->top_p = NAN;
        break;
    default:
        table->sets[0] = '\0';
        break;
    }
}

START_TEST(what_is_out_of_range_is_not_written)
{
    struct count_table *table = make_table();
    unlink(path);
    spoil(table, _i);
    ck_assert_int_eq(count_file_write(path, table), RL_INVALID);
    ck_assert_int_ne(access(path, F_OK), 0);
    count_table_destroy(table);
}
END_TEST

/* A file as the writer makes it, with one column of the wrong length or content. */
static void write_by_hand(int what)
{
    static const double temperatures[2] = {0.5, 1};
    static const uint64_t ids[2] = {3, 4};
    static const uint32_t zeros[4] = {0};
    static const uint32_t ones[4] = {1, 1, 1, 1};
    static const uint64_t tokens[4] = {0};
    static const double reals[4] = {0};
    static const uint8_t classes[2] = {255, 255};
    uint8_t splits[2] = {count_problem_split(3), count_problem_split(4)};
    struct h5_file *file = NULL;
    uint64_t cells = what == 1 ? 3 : 4;
    splits[0] ^= what == 2 ? 1 : 0;
    ck_assert_int_eq(h5_file_create(path, &file), RL_OK);
    h5_file_write_u64(file, "format", what == 3 ? 1 : 2);
    h5_file_write_u64(file, "seed", 1);
    h5_file_write_u64(file, "top_k", 0);
    h5_file_write_f64(file, "top_p", 1);
    h5_file_write_f64(file, "default_temperature", 1);
    h5_file_write_text(file, "sets", "eval");
    if (what != 4) {
        h5_file_write_text(file, "difficulties", "");
    }
    h5_file_write(file, "temperatures", H5_F64, temperatures, what == 5 ? 0 : 2, 0);
    h5_file_write(file, "problems/id", H5_U64, ids, 2, 0);
    h5_file_write(file, "problems/set", H5_U32, zeros, 2, 0);
    h5_file_write(file, "problems/split", H5_U8, splits, 2, 0);
    h5_file_write(file, "problems/difficulty", H5_U8, classes, 2, 0);
    h5_file_write(file, "cells/samples", H5_U32, ones, 4, 0);
    h5_file_write(file, "cells/correct", H5_U32, ones, cells, 0);
    h5_file_write(file, "cells/finished", H5_U32, zeros, 4, 0);
    h5_file_write(file, "cells/truncated", H5_U32, zeros, 4, 0);
    h5_file_write(file, "cells/unscorable", H5_U32, zeros, 4, 0);
    h5_file_write(file, "cells/tokens", what == 6 ? H5_I64 : H5_U64, tokens, 4, 0);
    h5_file_write(file, "cells/majority", H5_F64, reals, 4, 0);
    h5_file_write(file, "cells/kept_mass", H5_F64, reals, 4, 0);
    if (what != 7) {
        h5_file_write(file, "cells/logprob", H5_F64, reals, 4, 0);
    }
    ck_assert_int_eq(h5_file_commit(file), RL_OK);
}

START_TEST(what_does_not_fit_is_not_read)
{
    struct count_table *table = NULL;
    write_by_hand(_i);
    ck_assert_int_eq(count_file_read(path, &table), _i == 0 ? RL_OK : RL_CORRUPT);
    ck_assert(_i == 0 || table == NULL);
    count_table_destroy(table);
}
END_TEST

START_TEST(truncated_files_are_refused)
{
    struct count_table *table = make_table();
    ck_assert_int_eq(count_file_write(path, table), RL_OK);
    FILE *file = fopen(path, "rb");
    ck_assert_ptr_nonnull(file);
    static char bytes[65536];
    size_t count = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    ck_assert_uint_lt(count, sizeof bytes);
    for (size_t kept = 0; kept < count; kept += 97) {
        struct count_table *back = NULL;
        file = fopen(path, "wb");
        ck_assert_uint_eq(fwrite(bytes, 1, kept, file), kept);
        fclose(file);
        ck_assert_int_ne(count_file_read(path, &back), RL_OK);
        ck_assert_ptr_null(back);
    }
    unlink(path);
    struct count_table *back = NULL;
    ck_assert_int_eq(count_file_read(path, &back), RL_IO);
    count_table_destroy(table);
}
END_TEST

START_TEST(sizes_are_bounded)
{
    struct count_table *table = NULL;
    ck_assert_int_eq(count_table_create(0, 1, &table), RL_INVALID);
    ck_assert_int_eq(count_table_create(1, 0, &table), RL_INVALID);
    ck_assert_int_eq(count_table_create(1, 257, &table), RL_INVALID);
    ck_assert_int_eq(count_table_create(UINT32_MAX, 200, &table), RL_INVALID);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("counts");
    TCase *tests = tcase_create("all");
    rl_log_set_level(RL_LOG_ERROR);
    tcase_add_checked_fixture(tests, path_make, path_remove);
    tcase_add_test(tests, round_trip);
    tcase_add_test(tests, sorting_moves_cells_with_their_problems);
    tcase_add_test(tests, ids_and_splits);
    tcase_add_loop_test(tests, what_is_out_of_range_is_not_written, 0, 18);
    tcase_add_loop_test(tests, what_does_not_fit_is_not_read, 0, 8);
    tcase_add_test(tests, truncated_files_are_refused);
    tcase_add_test(tests, sizes_are_bounded);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
