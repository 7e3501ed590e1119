/* Linear maps on int8 weights: the same bits on every table, alone or in a batch, on the whole
 * range of sums; what is not finite stays in its row; and how far off they are. */
#include "kernels/int8.h"
#include "tests/kernel_support.h"

#include <check.h>

struct map {
    struct memory memory;
    struct kernel_linear_args args;
    const float *raw; /* [n, k] */
};

/* GPUs have no int8 weights. */
static bool cpu_table(int index, const struct kernel_table **out)
{
    return index <= (int)KERNEL_ISA_AVX512 && support_table(index, out);
}

static void map_create(struct map *map, uint64_t seed, int64_t m, int64_t n, int64_t k)
{
    memory_init(&map->memory, seed, FLAVOUR_PLAIN);
    struct memory *memory = &map->memory;
    map->raw = memory_floats(memory, n * k, 1.0 / sqrt((double)k));
    void *wide = memory_area(memory, kernel_packed_bytes(n, k, KERNEL_FP32), false);
    void *narrow = memory_area(memory, kernel_packed_bytes(n, k, KERNEL_INT8), false);
    support_ref()->linear_pack(
        &(struct kernel_linear_pack_args){.w = map->raw, .packed = wide, .n = n, .k = k}, NULL);
    support_ref()->linear_quantize(
        &(struct kernel_linear_quantize_args){.w = wide, .packed = narrow, .n = n, .k = k}, NULL);
    map->args = (struct kernel_linear_args){.w = narrow,
                                            .dtype = KERNEL_INT8,
                                            .bias = memory_floats(memory, n, 1.0),
                                            .x = memory_floats(memory, m * k, 1.0),
                                            .y = memory_floats(memory, m * n, 1.0),
                                            .m = m,
                                            .n = n,
                                            .k = k,
                                            .x_stride = k,
                                            .y_stride = n,
                                            .accumulate = true};
}

/* y of the map on a table, from the same old y, `rows` rows a call. */
static void map_run(const struct map *map, const struct kernel_table *table, int64_t rows, float *y)
{
    struct kernel_linear_args args = map->args;
    memcpy(y, args.y, (size_t)(args.m * args.n) * sizeof *y);
    for (int64_t m = 0; m < map->args.m; m += rows) {
        args.m = map->args.m - m < rows ? map->args.m - m : rows;
        args.x = map->args.x + m * args.k;
        args.y = y + m * args.n;
        table->linear_forward(&args, NULL);
    }
}

START_TEST(every_table_and_batch_gives_the_same_bits)
{
    static const int64_t shapes[][3] = {{1, 32, 4},   {5, 33, 7},     {14, 70, 64}, {29, 100, 131},
                                        {64, 96, 48}, {70, 257, 300}, {3, 5, 1}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct map map;
        const struct kernel_table *table = NULL;
        map_create(&map, 11 + i, shapes[i][0], shapes[i][1], shapes[i][2]);
        int64_t count = map.args.m * map.args.n;
        float *want = memory_floats(&map.memory, count, 1.0);
        float *got = memory_floats(&map.memory, count, 1.0);
        map_run(&map, support_ref(), map.args.m, want);
        for (int index = 0; cpu_table(index, &table); index++) {
            for (int64_t rows = 1; rows <= map.args.m; rows += rows < 16 ? 1 : 9) {
                map_run(&map, table, rows, got);
                ck_assert_msg(memcmp(want, got, (size_t)count * sizeof *got) == 0,
                              "%s: shape %zu, %lld rows a call", table->name, i, (long long)rows);
            }
        }
        memory_fini(&map.memory);
    }
}
END_TEST

/* Half a step of each factor: about 1 / 254 of the largest times the other's mean, many times. */
START_TEST(products_are_near_those_of_fp32)
{
    struct map map;
    map_create(&map, 3, 20, 40, 200);
    const struct kernel_linear_args *a = &map.args;
    float *y = memory_floats(&map.memory, a->m * a->n, 1.0);
    double error = 0;
    double norm = 0;
    map_run(&map, support_ref(), a->m, y);
    for (int64_t m = 0; m < a->m; m++) {
        for (int64_t n = 0; n < a->n; n++) {
            double sum = 0;
            for (int64_t k = 0; k < a->k; k++) {
                sum += (double)a->x[m * a->k + k] * (double)map.raw[n * a->k + k];
            }
            double rest = (double)y[m * a->n + n] - (double)a->bias[n] - (double)a->y[m * a->n + n];
            error += (rest - sum) * (rest - sum);
            norm += sum * sum;
        }
    }
    ck_assert_msg(error < 4e-4 * norm, "relative error %g", sqrt(error / norm));
    memory_fini(&map.memory);
}
END_TEST

/* All factors at the end of their range, K as large as it may be. */
START_TEST(largest_sums_are_exact)
{
    struct map map;
    const struct kernel_table *table = NULL;
    map_create(&map, 5, 2, 2, KERNEL_INT8_INPUTS);
    const int64_t k = map.args.k;
    char *panel = (char *)(uintptr_t)map.args.w;
    map.args.bias = NULL;
    map.args.accumulate = false;
    for (int64_t i = 0; i < k; i++) {
        map.args.x[i] = 1.0F;
        map.args.x[k + i] = -1.0F;
        panel[kernel_int8_index(i, 0)] = 127;
        panel[kernel_int8_index(i, 1)] = -127;
    }
    for (int lane = 0; lane < 2; lane++) {
        ((float *)(void *)panel)[lane] = 1.0F;
        ((int32_t *)(void *)panel)[KERNEL_PANEL + lane] =
            (int32_t)(-128 * 127 * k) * (lane == 0 ? 1 : -1);
    }
    const float largest = (float)(127 * 127 * k) * (1.0F / 127.0F);
    const float want[4] = {largest, -largest, -largest, largest};
    for (int index = 0; cpu_table(index, &table); index++) {
        float y[4];
        map_run(&map, table, 2, y);
        ck_assert_msg(memcmp(want, y, sizeof y) == 0, "%s: %.9g %.9g %.9g %.9g", table->name,
                      (double)y[0], (double)y[1], (double)y[2], (double)y[3]);
    }
    memory_fini(&map.memory);
}
END_TEST

/* Outputs of zeros, and of weights near the ends of the range of fp32. */
START_TEST(every_table_quantises_to_the_same_bytes)
{
    static const float sizes[] = {0.0F, 3e38F, 1e-30F, 1e-38F, -2.5F};
    enum { N = 70, K = 51 };
    struct map map;
    const struct kernel_table *table = NULL;
    map_create(&map, 9, 1, N, K);
    const size_t bytes = kernel_packed_bytes(N, K, KERNEL_INT8);
    float *raw = memory_floats(&map.memory, N * K, 1.0);
    char *want = memory_area(&map.memory, bytes, false);
    char *got = memory_area(&map.memory, bytes, false);
    void *wide = memory_area(&map.memory, kernel_packed_bytes(N, K, KERNEL_FP32), false);
    for (int64_t n = 0; n < 5; n++) {
        for (int64_t k = 0; k < K; k++) {
            raw[n * 9 * K + k] = sizes[n] * ((float)(k - K / 2) / (float)K);
        }
    }
    support_ref()->linear_pack(
        &(struct kernel_linear_pack_args){.w = raw, .packed = wide, .n = N, .k = K}, NULL);
    struct kernel_linear_quantize_args args = {.w = wide, .packed = want, .n = N, .k = K};
    support_ref()->linear_quantize(&args, NULL);
    args.packed = got;
    for (int index = 0; cpu_table(index, &table); index++) {
        table->linear_quantize(&args, NULL);
        ck_assert_msg(memcmp(want, got, bytes) == 0, "%s", table->name);
    }
    memory_fini(&map.memory);
}
END_TEST

START_TEST(what_is_not_finite_stays_in_its_row)
{
    static const float flaws[] = {NAN, INFINITY, -INFINITY};
    for (int which = 0; which < 3; which++) {
        struct map map;
        const struct kernel_table *table = NULL;
        map_create(&map, 7, 20, 40, 70);
        int64_t count = map.args.m * map.args.n;
        float *want = memory_floats(&map.memory, count, 1.0);
        float *got = memory_floats(&map.memory, count, 1.0);
        map_run(&map, support_ref(), map.args.m, want);
        map.args.x[3 * map.args.k + 69] = flaws[which];
        for (int index = 0; cpu_table(index, &table); index++) {
            map_run(&map, table, map.args.m, got);
            for (int64_t i = 0; i < count; i++) {
                bool flawed = i / map.args.n == 3;
                ck_assert_msg(flawed ? isnan(got[i]) : memcmp(&got[i], &want[i], 4) == 0,
                              "%s: output %lld is %g", table->name, (long long)i, (double)got[i]);
            }
        }
        memory_fini(&map.memory);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("kernels_int8");
    TCase *tcase = tcase_create("linear");
    tcase_add_test(tcase, every_table_and_batch_gives_the_same_bits);
    tcase_add_test(tcase, every_table_quantises_to_the_same_bytes);
    tcase_add_test(tcase, products_are_near_those_of_fp32);
    tcase_add_test(tcase, largest_sums_are_exact);
    tcase_add_test(tcase, what_is_not_finite_stays_in_its_row);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
