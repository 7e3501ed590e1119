/* Sampling: the kept set and the draw against a plain sort, edges, and decoding of logits that are
 * not numbers. */
#include "kernels/sampling.h"
#include "tests/kernel_support.h"

#include <check.h>

enum { V_MAX = 300 };

static const float *sort_p;

static int compare_ids(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a;
    int32_t y = *(const int32_t *)b;
    if (sort_p[x] != sort_p[y]) {
        return sort_p[x] > sort_p[y] ? -1 : 1;
    }
    return x < y ? -1 : 1;
}

/* The kept set by definition: sort, cut to top_k, renormalise, cut to top_p, then min_p. */
static void kept_set(const float *p, int64_t v, const struct kernel_sampling *s, bool *kept)
{
    int32_t order[V_MAX];
    for (int64_t i = 0; i < v; i++) {
        order[i] = (int32_t)i;
        kept[i] = false;
    }
    sort_p = p;
    qsort(order, (size_t)v, sizeof *order, compare_ids);
    int64_t count = s->top_k > 0 && s->top_k < v ? s->top_k : v;
    double total = 0.0;
    for (int64_t i = 0; i < count; i++) {
        total += (double)p[order[i]];
    }
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++) {
        kept[order[i]] = p[order[i]] >= s->min_p * p[order[0]];
        sum += (double)p[order[i]];
        if (s->top_p < 1.0f && sum >= (double)s->top_p * total) {
            break;
        }
    }
}

/* A row with many equal values; the largest is 1. */
static void random_row(struct memory *m, float *p, int64_t v)
{
    for (int64_t i = 0; i < v; i++) {
        p[i] = (float)memory_pick(m, 0, 16) / 16.0f;
    }
    p[memory_pick(m, 0, v - 1)] = 1.0f;
}

START_TEST(draw_follows_the_definition)
{
    struct memory m;
    memory_init(&m, 30, FLAVOUR_PLAIN);
    for (int round = 0; round < 3000; round++) {
        float p[V_MAX];
        bool kept[V_MAX];
        int32_t order[V_MAX];
        int64_t v = memory_pick(&m, 1, V_MAX);
        random_row(&m, p, v);
        struct kernel_sampling s = {.temperature = 1.0f, .top_p = 1.0f};
        s.top_k = memory_pick(&m, 0, 1) == 1 ? (int32_t)memory_pick(&m, 1, v + 3) : 0;
        s.top_p = memory_pick(&m, 0, 1) == 1 ? (float)memory_pick(&m, 0, 63) / 64.0f : 1.0f;
        s.min_p = memory_pick(&m, 0, 1) == 1 ? (float)memory_pick(&m, 1, 16) / 16.0f : 0.0f;
        kept_set(p, v, &s, kept);
        double total = 0.0;
        double all = 0.0;
        float mass = 0.0f;
        for (int64_t i = 0; i < v; i++) {
            total += kept[i] ? (double)p[i] : 0.0;
            all += (double)p[i];
        }
        double u = rl_rng_next_uniform(&m.rng);
        struct kernel_sampling_row row = {p, order, v, &s, u, &mass};
        int32_t id = kernel_sampling_draw(&row);
        ck_assert(mass == (float)(total / all));
        ck_assert(id >= 0 && id < v && kept[id] && p[id] > 0.0f);
        double before = 0.0;
        for (int64_t i = 0; i < id; i++) {
            before += kept[i] ? (double)p[i] : 0.0;
        }
        ck_assert(before <= u * total && u * total < before + (double)p[id]);
    }
    memory_fini(&m);
}
END_TEST

START_TEST(draw_stays_inside_at_the_edges)
{
    int32_t order[4];
    struct kernel_sampling s = {.temperature = 1.0f, .top_p = 1.0f};
    const float p[4] = {0.0f, 1.0f, 1e-30f, 0.0f};
    struct kernel_sampling_row row = {p, order, 4, &s, 0.0, NULL};
    ck_assert_int_eq(kernel_sampling_draw(&row), 1);
    row.u = 1.0; /* beyond what the generator gives: rounding must not fall off the end */
    ck_assert_int_eq(kernel_sampling_draw(&row), 2);
    s.top_p = 0.0f;
    ck_assert_int_eq(kernel_sampling_draw(&row), 1);
    s.top_p = 1.0f;
    s.top_k = 1;
    ck_assert_int_eq(kernel_sampling_draw(&row), 1);
    s.top_k = 0;
    s.min_p = 7.0f; /* more than the largest has */
    row.order = NULL;
    ck_assert_int_eq(kernel_sampling_draw(&row), 1);
}
END_TEST

START_TEST(greedy_takes_the_lowest_of_the_largest)
{
    const float z[5] = {-3.0f, 2.0f, NAN, 2.0f, -INFINITY};
    ck_assert_int_eq(kernel_sampling_greedy(z, 5), 1);
    const float none[3] = {NAN, NAN, NAN};
    ck_assert_int_eq(kernel_sampling_greedy(none, 3), 0);
}
END_TEST

/* One row of `hostile` among good ones: that row says NaN and a valid id, the others are untouched.
 */
static void decode_hostile(const struct kernel_table *table, float hostile, int64_t v)
{
    enum { ROWS = 4, C = 8 };
    struct memory m;
    memory_init(&m, 31, FLAVOUR_PLAIN);
    struct kernel_sampling s = {.temperature = 0.9f, .top_p = 0.9f, .top_k = 20};
    struct rl_rng_key keys[ROWS] = {{{1, 2}}, {{3, 4}}, {{5, 6}}, {{7, 8}}};
    uint64_t counters[ROWS] = {0};
    float *x = memory_floats(&m, ROWS * C, 1.0);
    x[2 * C + 3] = hostile;
    int64_t stride = (v + KERNEL_PANEL - 1) / KERNEL_PANEL * KERNEL_PANEL;
    struct kernel_decode_args a = {.x = x,
                                   .w = memory_weights(&m, v, C, KERNEL_FP32),
                                   .sampling = &s,
                                   .keys = keys,
                                   .counters = counters,
                                   .ids = memory_output_ids(&m, ROWS),
                                   .logprob = memory_output(&m, ROWS, 1.0),
                                   .columns = stride,
                                   .chunks = memory_chunks(&m, ROWS, v),
                                   .logits = memory_output(&m, ROWS * stride, 1.0),
                                   .order = memory_output_ids(&m, ROWS * v),
                                   .m = ROWS,
                                   .v = v,
                                   .c = C};
    for (int pass = 0; pass < 2; pass++) {
        table->head_decode(&a, NULL);
        for (int r = 0; r < ROWS; r++) {
            ck_assert(a.ids[r] >= 0 && a.ids[r] < v);
            ck_assert_msg(isnan(a.logprob[r]) == (r == 2), "%s row %d: logprob %g", table->name, r,
                          (double)a.logprob[r]);
        }
        s.temperature = 0.0f;
    }
    ck_assert(memory_guards_hold(&m));
    memory_fini(&m);
}

START_TEST(logits_that_are_not_numbers_are_reported)
{
    const struct kernel_table *table = NULL;
    const float hostile[] = {NAN, INFINITY, -INFINITY};
    for (int index = 0; support_table(index, &table); index++) {
        decode_hostile(table, hostile[_i], 40);
        decode_hostile(table, hostile[_i], 1500);
    }
}
END_TEST

/* Ids have the logits 0, 1, ... `levels` - 1 in turn, which are exact everywhere: of those with the
 * largest, the lowest `left` are kept. */
static void decode_ties(const struct kernel_table *table, int levels, struct kernel_sampling s,
                        int64_t v, int64_t left)
{
    enum { ROWS = 8, C = 8 };
    struct memory m;
    memory_init(&m, 32, FLAVOUR_ZEROS);
    struct rl_rng_key keys[ROWS] = {{{0, 0}}};
    uint64_t counters[ROWS];
    float *x = memory_floats(&m, ROWS * C, 0.0);
    float *w = memory_weights(&m, v, C, KERNEL_FP32);
    memset(w, 0, kernel_packed_bytes(v, C, KERNEL_FP32));
    for (int64_t id = 0; id < v; id++) {
        w[id / KERNEL_PANEL * C * KERNEL_PANEL + id % KERNEL_PANEL] = (float)(id % levels);
    }
    for (int r = 0; r < ROWS; r++) {
        x[r * C] = 1.0f;
        counters[r] = (uint64_t)r;
    }
    int64_t stride = (v + KERNEL_PANEL - 1) / KERNEL_PANEL * KERNEL_PANEL;
    struct kernel_decode_args a = {.x = x,
                                   .w = w,
                                   .sampling = &s,
                                   .keys = keys,
                                   .counters = counters,
                                   .ids = memory_output_ids(&m, ROWS),
                                   .logprob = memory_output(&m, ROWS, 1.0),
                                   .kept = memory_output(&m, ROWS, 1.0),
                                   .columns = stride,
                                   .chunks = memory_chunks(&m, ROWS, v),
                                   .logits = memory_output(&m, ROWS * stride, 1.0),
                                   .order = memory_output_ids(&m, ROWS * v),
                                   .m = ROWS,
                                   .v = v,
                                   .c = C};
    table->head_decode(&a, NULL);
    double all = 0.0;
    for (int level = 0; level < levels; level++) {
        all += (double)((v + levels - 1 - level) / levels) * exp(level - levels + 1);
    }
    for (int r = 0; r < ROWS; r++) {
        ck_assert_int_eq(a.ids[r] % levels, levels - 1);
        ck_assert_msg(a.ids[r] >= 0 && a.ids[r] / levels < left, "%s: id %d of %d at most",
                      table->name, a.ids[r], (int)left);
        ck_assert(fabs((double)a.kept[r] - (double)left / all) < 1e-5);
    }
    memory_fini(&m);
}

START_TEST(the_lowest_of_equals_are_kept)
{
    const struct kernel_table *table = NULL;
    for (int index = 0; support_table(index, &table); index++) {
        const struct kernel_sampling by_count = {.temperature = 1.0f, .top_p = 1.0f, .top_k = 7};
        const struct kernel_sampling by_mass = {.temperature = 1.0f, .top_p = 0.25f};
        const struct kernel_sampling by_least = {.temperature = 1.0f, .top_p = 1.0f, .min_p = 0.5f};
        decode_ties(table, 3, by_count, 9000, 7);
        decode_ties(table, 1, by_count, 2052, 7);
        decode_ties(table, 1, by_mass, 9216, 2304);
        decode_ties(table, 5, by_least, 10000, 2000);
        struct kernel_sampling all = {.temperature = 1.0f, .top_p = 0.9f, .min_p = 0.5f};
        all.top_k = 1500;
        decode_ties(table, 2, all, 9000, 1350);
    }
}
END_TEST

static Suite *sampling_suite(void)
{
    Suite *suite = suite_create("check_sampling");
    TCase *all = tcase_create("sampling");
    tcase_add_test(all, draw_follows_the_definition);
    tcase_add_test(all, draw_stays_inside_at_the_edges);
    tcase_add_test(all, greedy_takes_the_lowest_of_the_largest);
    tcase_add_test(all, the_lowest_of_equals_are_kept);
    tcase_add_loop_test(all, logits_that_are_not_numbers_are_reported, 0, 3);
    suite_add_tcase(suite, all);
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(sampling_suite());
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
