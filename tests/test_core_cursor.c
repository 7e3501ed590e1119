/* The cursor that every decoder reads through: values, the end at every place, problems that stick.
 */
#include "core/cursor.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static const unsigned char fields[] = {0x78, 0x56, 0x34, 0x12,                /* u32 */
                                       8,    7,    6,    5,    4, 3, 2, 1,    /* u64 */
                                       0,    0,    0,    0,    0, 0, 4, 0x40, /* f64: 2.5 */
                                       0xac, 0x02,                            /* number: 300 */
                                       'e',  'n',  'd'};

/* Reads all of `fields`, of which `bytes` are there; what is not there is 0. */
static struct rl_cursor read_all(size_t bytes)
{
    struct rl_cursor c = {.at = fields, .left = bytes};
    char end[3];
    ck_assert_uint_eq(rl_cursor_u32(&c), bytes >= 4 ? 0x12345678 : 0);
    ck_assert_uint_eq(rl_cursor_u64(&c), bytes >= 12 ? UINT64_C(0x0102030405060708) : 0);
    ck_assert(rl_cursor_f64(&c) == (bytes >= 20 ? 2.5 : 0));
    ck_assert_uint_eq(rl_cursor_number(&c), bytes >= 22 ? 300 : 0);
    rl_cursor_get(&c, end, sizeof(end));
    ck_assert_mem_eq(end, bytes >= 25 ? "end" : "\0\0\0", 3);
    return c;
}

START_TEST(fields_and_ends)
{
    for (size_t bytes = 0; bytes < sizeof(fields); bytes++) {
        ck_assert_ptr_nonnull(read_all(bytes).problem);
    }
    struct rl_cursor c = read_all(sizeof(fields));
    ck_assert_ptr_null(c.problem);
    ck_assert_uint_eq(c.left, 0);
    ck_assert_ptr_nonnull(rl_cursor_view(&c, 0));
    ck_assert_ptr_null(rl_cursor_view(&c, 1));
    ck_assert_ptr_null(rl_cursor_view(&c, 0)); /* the problem sticks */
    ck_assert_ptr_null(rl_cursor_view(&(struct rl_cursor){.at = fields, .left = 25}, SIZE_MAX));
}
END_TEST

START_TEST(numbers)
{
    static const struct {
        unsigned char bytes[11];
        size_t count;
        uint64_t value;
        int sound;
    } cases[] = {{{0}, 1, 0, 1},
                 {{0x7f}, 1, 127, 1},
                 {{0x80, 0}, 2, 0, 1},
                 {{255, 255, 255, 255, 255, 255, 255, 255, 255, 1}, 10, UINT64_MAX, 1},
                 {{255, 255, 255, 255, 255, 255, 255, 255, 255, 2}, 10, 0, 0},
                 {{255, 255, 255, 255, 255, 255, 255, 255, 255, 129, 0}, 11, 0, 0},
                 {{0x80}, 1, 0, 0},
                 {{0}, 0, 0, 0}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct rl_cursor c = {.at = cases[i].bytes, .left = cases[i].count};
        ck_assert_uint_eq(rl_cursor_number(&c), cases[i].value);
        ck_assert_int_eq(c.problem == NULL, cases[i].sound);
        ck_assert(!cases[i].sound || c.left == 0);
    }
    struct rl_cursor c = {.at = (const unsigned char *)"\7\10\7", .left = 3};
    ck_assert_uint_eq(rl_cursor_bounded(&c, 7, "too large"), 7);
    ck_assert_uint_eq(rl_cursor_bounded(&c, 7, "too large"), 0);
    ck_assert_str_eq(c.problem, "too large");
    rl_cursor_spoil(&c, "another");
    ck_assert_uint_eq(rl_cursor_number(&c), 0);
    ck_assert_str_eq(c.problem, "too large"); /* the first */
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cursor");
    TCase *tests = tcase_create("all");
    tcase_add_test(tests, fields_and_ends);
    tcase_add_test(tests, numbers);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
