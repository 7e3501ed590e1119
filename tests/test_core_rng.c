/* Philox against its published vectors, and the draws against their definitions. */
#include "core/rng.h"

#include <check.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Random123's known-answer file, lines "philox4x32 10". */
START_TEST(philox_known_answers)
{
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } cases[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint32_t out[4];
        rl_philox4x32(cases[i].counter, cases[i].key, out);
        ck_assert_mem_eq(out, cases[i].out, sizeof out);
        memcpy(out, cases[i].counter, sizeof out);
        rl_philox4x32(out, cases[i].key, out);
        ck_assert_mem_eq(out, cases[i].out, sizeof out);
    }
}
END_TEST

START_TEST(key_is_philox_of_its_parts)
{
    uint32_t counter[4] = {0x55667788, 0x11223344, 0xddeeff00, 0x99aabbcc};
    uint32_t key[2] = {0x89abcdef, 0x01234567};
    uint32_t out[4];
    rl_philox4x32(counter, key, out);
    struct rl_rng_key made =
        rl_rng_key_make(0x0123456789abcdef, 0x1122334455667788, 0x99aabbccddeeff00);
    ck_assert_uint_eq(made.k[0], out[0]);
    ck_assert_uint_eq(made.k[1], out[1]);
}
END_TEST

/* Chi-squared over 64 cells of 2^16 draws; 63 degrees of freedom, mean 63, deviation 11.2. */
static double chi_squared(double (*draw)(struct rl_rng_key, uint64_t), struct rl_rng_key key)
{
    enum { CELLS = 64, DRAWS = 1 << 16 };
    int count[CELLS] = {0};
    for (uint64_t i = 0; i < DRAWS; i++) {
        double value = draw(key, i);
        ck_assert(value >= 0.0 && value < 1.0);
        count[(int)(value * CELLS)]++;
    }
    double sum = 0.0;
    for (int i = 0; i < CELLS; i++) {
        double off = count[i] - (double)DRAWS / CELLS;
        sum += off * off / ((double)DRAWS / CELLS);
    }
    return sum;
}

static double draw_float(struct rl_rng_key key, uint64_t counter)
{
    return (double)rl_rng_uniform_float(key, counter);
}

START_TEST(uniform_is_uniform)
{
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct rl_rng_key key = rl_rng_key_make(seed, 7, 9);
        double x = chi_squared(rl_rng_uniform, key);
        double y = chi_squared(draw_float, key);
        ck_assert_msg(x > 25.0 && x < 120.0, "chi squared %g", x);
        ck_assert_msg(y > 25.0 && y < 120.0, "chi squared %g", y);
    }
}
END_TEST

/* Neighbouring keys (next prompt, next sample) must not be correlated. */
START_TEST(neighbouring_keys_are_independent)
{
    enum { DRAWS = 20000 };
    struct rl_rng_key a = rl_rng_key_make(1, 5, 0);
    struct rl_rng_key b = rl_rng_key_make(1, 5, 1);
    double sum = 0.0;
    for (uint64_t i = 0; i < DRAWS; i++) {
        sum += (rl_rng_uniform(a, i) - 0.5) * (rl_rng_uniform(b, i) - 0.5);
    }
    ck_assert_double_lt(fabs(sum / DRAWS * 12.0), 5.0 / sqrt(DRAWS));
}
END_TEST

START_TEST(below_is_fair_and_in_range)
{
    struct rl_rng_key key = rl_rng_key_make(3, 0, 0);
    int count[6] = {0};
    for (uint64_t i = 0; i < 60000; i++) {
        uint64_t value = rl_rng_below(key, i, 6);
        ck_assert_uint_lt(value, 6);
        count[value]++;
    }
    for (int i = 0; i < 6; i++) {
        ck_assert_int_lt(abs(count[i] - 10000), 500);
    }
    /* A limit just above 2^63 rejects half of all words; the result must still be in range. */
    uint64_t limit = (UINT64_C(1) << 63) + 1;
    int high = 0;
    for (uint64_t i = 0; i < 1000; i++) {
        uint64_t value = rl_rng_below(key, i, limit);
        ck_assert_uint_lt(value, limit);
        high += value > limit / 2;
    }
    ck_assert_int_lt(abs(high - 500), 100);
    ck_assert_uint_eq(rl_rng_below(key, 0, 1), 0);
    ck_assert_uint_eq(rl_rng_below(key, 0, 0), 0);
}
END_TEST

START_TEST(normal_has_its_moments)
{
    enum { DRAWS = 200000 };
    struct rl_rng_key key = rl_rng_key_make(11, 0, 0);
    double moment[5] = {0};
    for (uint64_t i = 0; i < DRAWS; i++) {
        double value = rl_rng_normal(key, i);
        ck_assert(isfinite(value));
        for (int p = 1; p <= 4; p++) {
            moment[p] += pow(value, p) / DRAWS;
        }
    }
    ck_assert_double_lt(fabs(moment[1]), 0.01);
    ck_assert_double_lt(fabs(moment[2] - 1.0), 0.02);
    ck_assert_double_lt(fabs(moment[3]), 0.04);
    ck_assert_double_lt(fabs(moment[4] - 3.0), 0.1);
}
END_TEST

START_TEST(permutation_is_one_and_is_fair)
{
    enum { N = 1000 };
    uint64_t order[N];
    bool seen[N] = {false};
    rl_rng_permutation(rl_rng_key_make(5, 1, 0), N, order);
    int fixed = 0;
    for (uint64_t i = 0; i < N; i++) {
        ck_assert_uint_lt(order[i], N);
        ck_assert(!seen[order[i]]);
        seen[order[i]] = true;
        fixed += order[i] == i;
    }
    ck_assert_int_lt(fixed, 10);
    /* All six orders of three things, equally often. */
    int count[27] = {0};
    for (uint64_t trial = 0; trial < 12000; trial++) {
        rl_rng_permutation(rl_rng_key_make(5, trial, 1), 3, order);
        count[order[0] * 9 + order[1] * 3 + order[2]]++;
    }
    int kinds = 0;
    for (int i = 0; i < 27; i++) {
        kinds += count[i] > 0;
        ck_assert(count[i] == 0 || abs(count[i] - 2000) < 250);
    }
    ck_assert_int_eq(kinds, 6);
    order[0] = 77;
    rl_rng_permutation(rl_rng_key_make(5, 1, 0), 0, order);
    ck_assert_uint_eq(order[0], 77);
}
END_TEST

START_TEST(sequence_is_its_key_and_counter)
{
    struct rl_rng rng = rl_rng_make(9, 2);
    struct rl_rng_key key = rng.key;
    ck_assert_double_eq(rl_rng_next_uniform(&rng), rl_rng_uniform(key, 0));
    ck_assert_uint_eq(rl_rng_next_bits(&rng), rl_rng_bits(key, 1));
    ck_assert_uint_eq(rl_rng_next_below(&rng, 100), rl_rng_below(key, 2, 100));
    struct rl_rng resumed = rng;
    ck_assert_double_eq(rl_rng_next_normal(&rng), rl_rng_normal(key, 3));
    ck_assert_double_eq(rl_rng_next_normal(&resumed), rl_rng_normal(key, 3));
    ck_assert_uint_ne(rl_rng_bits(key, 0), rl_rng_bits(rl_rng_make(9, 3).key, 0));
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("rng");
    tcase_add_test(tcase, philox_known_answers);
    tcase_add_test(tcase, key_is_philox_of_its_parts);
    tcase_add_test(tcase, uniform_is_uniform);
    tcase_add_test(tcase, neighbouring_keys_are_independent);
    tcase_add_test(tcase, below_is_fair_and_in_range);
    tcase_add_test(tcase, normal_has_its_moments);
    tcase_add_test(tcase, permutation_is_one_and_is_fair);
    tcase_add_test(tcase, sequence_is_its_key_and_counter);
    Suite *suite = suite_create("core rng");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
