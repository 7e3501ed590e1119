/* Aligned, disjoint, bounded, reusable. */
#include "core/arena.h"
#include "core/log.h"

#include <check.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

START_TEST(allocations_are_aligned_and_disjoint)
{
    struct rl_arena *arena = NULL;
    unsigned char *blocks[50];
    ck_assert_int_eq(rl_arena_create("step", 1 << 20, &arena), RL_OK);
    for (size_t i = 0; i < 50; i++) {
        void *block = NULL;
        ck_assert_int_eq(rl_arena_alloc(arena, i + 1, 7, &block), RL_OK);
        ck_assert_uint_eq((uintptr_t)block % RL_ARENA_ALIGN_BYTES, 0);
        blocks[i] = block;
        memset(block, (int)i, (i + 1) * 7);
    }
    for (size_t i = 0; i < 50; i++) {
        for (size_t j = 0; j < (i + 1) * 7; j++) {
            ck_assert_uint_eq(blocks[i][j], i);
        }
    }
    rl_arena_destroy(arena);
    rl_arena_destroy(NULL);
}
END_TEST

START_TEST(marks_free_what_came_later)
{
    struct rl_arena *arena = NULL;
    void *first = NULL;
    void *second = NULL;
    ck_assert_int_eq(rl_arena_create("step", 4096, &arena), RL_OK);
    ck_assert_int_eq(rl_arena_alloc(arena, 1, 100, &first), RL_OK);
    memset(first, 5, 100);
    size_t mark = rl_arena_mark(arena);
    for (int round = 0; round < 1000; round++) {
        ck_assert_int_eq(rl_arena_alloc(arena, 1, 3000, &second), RL_OK);
        memset(second, 9, 3000);
        rl_arena_release(arena, mark);
    }
    ck_assert_uint_eq(((unsigned char *)first)[99], 5);
    void *zeroed = NULL;
    ck_assert_int_eq(rl_arena_calloc(arena, 30, 100, &zeroed), RL_OK);
    for (size_t i = 0; i < 3000; i++) {
        ck_assert_uint_eq(((unsigned char *)zeroed)[i], 0);
    }
    ck_assert_uint_ge(rl_arena_peak_bytes(arena), 3100);
    ck_assert_uint_le(rl_arena_peak_bytes(arena), rl_arena_limit_bytes(arena));
    rl_arena_release(arena, 0);
    ck_assert_uint_eq(rl_arena_mark(arena), 0);
    rl_arena_destroy(arena);
}
END_TEST

START_TEST(limit_is_kept)
{
    struct rl_arena *arena = NULL;
    void *block = &arena;
    ck_assert_int_eq(rl_arena_create("small one", 1000, &arena), RL_OK);
    ck_assert_uint_eq(rl_arena_limit_bytes(arena), 1024);
    ck_assert_int_eq(rl_arena_alloc(arena, 1, 1025, &block), RL_NO_MEMORY);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "small one"));
    ck_assert_int_eq(rl_arena_alloc(arena, SIZE_MAX, SIZE_MAX, &block), RL_NO_MEMORY);
    ck_assert_int_eq(rl_arena_alloc(arena, SIZE_MAX / 2, 3, &block), RL_NO_MEMORY);
    ck_assert_int_eq(rl_arena_calloc(arena, 2, SIZE_MAX / 2 + 1, &block), RL_NO_MEMORY);
    ck_assert_ptr_eq(block, &arena);
    ck_assert_int_eq(rl_arena_alloc(arena, 1, 1024, &block), RL_OK);
    memset(block, 1, 1024);
    ck_assert_int_eq(rl_arena_alloc(arena, 1, 1, &block), RL_NO_MEMORY);
    ck_assert_int_eq(rl_arena_alloc(arena, 0, 8, &block), RL_OK);
    ck_assert_int_eq(rl_arena_calloc(arena, 8, 0, &block), RL_OK);
    rl_arena_destroy(arena);
    ck_assert_int_eq(rl_arena_create("none", 0, &arena), RL_INVALID);
    ck_assert_int_eq(rl_arena_create("huge", SIZE_MAX, &arena), RL_INVALID);
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("arena");
    tcase_add_test(tcase, allocations_are_aligned_and_disjoint);
    tcase_add_test(tcase, marks_free_what_came_later);
    tcase_add_test(tcase, limit_is_kept);
    Suite *suite = suite_create("core arena");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
