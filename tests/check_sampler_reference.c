/* The sampler of all rollouts on 16-token rows against a plain reference in long double: scale by
 * the temperature, keep the k most probable, of these the smallest set that holds the share p,
 * draw. Three ways: the probabilities that the draw's inverse CDF realises, to 1e-12; a million
 * draws of the whole op from logits, by chi-squared; what any other order of the steps would keep.
 */
#include "kernels/sampling.h"
#include "tests/kernel_support.h"

#include <check.h>
#include <math.h>

enum { V = 16, ROWS = 500, SETTINGS = 20, C = 16 };
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { DRAWS = 50000 }; /* instrumented code is slow, and what it looks for does not need more */
#else
enum { DRAWS = 1000000 };
#endif

struct setting {
    float temperature;
    int32_t top_k;
    float top_p;
};

static const struct setting settings[SETTINGS] = {
    {1.0f, 0, 1.0f},   {0.639f, 0, 0.8f}, {0.9f, 0, 0.85f},  {2.09f, 0, 0.8f}, {0.6f, 0, 1.0f},
    {1.6f, 0, 1.0f},   {1.0f, 5, 1.0f},   {0.7f, 1, 1.0f},   {1.6f, 20, 0.8f}, {1.6f, 10, 0.8f},
    {1.2f, 10, 0.95f}, {0.8f, 8, 0.95f},  {2.0f, 10, 1.0f},  {0.3f, 4, 0.9f},  {1.5f, 3, 0.5f},
    {1.0f, 0, 0.1f},   {5.0f, 0, 0.99f},  {0.05f, 0, 0.97f}, {1.0f, 15, 0.9f}, {3.0f, 12, 0.7f},
};

/* --- reference
 * -------------------------------------------------------------------------------------- */

static void order_of(const long double *p, int *order)
{
    for (int i = 0; i < V; i++) {
        int at = i;
        for (; at > 0 && p[order[at - 1]] < p[i]; at--) {
            order[at] = order[at - 1];
        }
        order[at] = i;
    }
}

/* Zero all but the `top_k` largest; among equals the lower id stays. */
static void keep_top_k(long double *p, int32_t top_k)
{
    int order[V];
    order_of(p, order);
    for (int i = 0; i < V; i++) {
        if (top_k > 0 && i >= top_k) {
            p[order[i]] = 0;
        }
    }
}

static void normalise(long double *p)
{
    long double total = 0;
    for (int i = 0; i < V; i++) {
        total += p[i];
    }
    for (int i = 0; i < V; i++) {
        p[i] /= total;
    }
}

/* Take away from the smallest upward while what is kept stays >= top_p; the first always stays. */
static void keep_top_p(long double *p, float top_p)
{
    int order[V];
    long double kept = 1;
    normalise(p);
    order_of(p, order);
    for (int i = V - 1; i > 0 && top_p < 1.0f; i--) {
        if (kept - p[order[i]] < (long double)top_p) {
            break;
        }
        kept -= p[order[i]];
        p[order[i]] = 0;
    }
    normalise(p);
}

static void scale(long double *p, long double temperature)
{
    for (int i = 0; i < V; i++) {
        p[i] = p[i] > 0 ? powl(p[i], 1 / temperature) : 0;
    }
}

static void softmax(const float *logits, long double temperature, long double *p)
{
    long double top = -INFINITY;
    for (int i = 0; i < V; i++) {
        top = fmaxl(top, (long double)logits[i]);
    }
    for (int i = 0; i < V; i++) {
        p[i] = expl(((long double)logits[i] - top) / temperature);
    }
}

static void reference(const float *logits, const struct setting *s, long double *p)
{
    softmax(logits, (long double)s->temperature, p);
    keep_top_k(p, s->top_k);
    keep_top_p(p, s->top_p);
}

/* --- probabilities of the draw
 * ------------------------------------------------------------------------ */

/* Least u in [0, 1] (to 2^-60 or so) at which the draw gives more than `id`. */
static double boundary(struct kernel_sampling_row *row, int32_t id)
{
    double low = 0;
    double high = 1;
    for (int i = 0; i < 80; i++) {
        row->u = low + (high - low) / 2;
        if (kernel_sampling_draw(row) > id) {
            high = row->u;
        } else {
            low = row->u;
        }
    }
    return high;
}

START_TEST(probabilities_of_the_draw_are_those_of_the_reference)
{
    struct rl_rng rng = rl_rng_make(11, (uint64_t)_i);
    double worst = 0;
    for (int round = 0; round < 50; round++) {
        float p[V];
        int32_t order[V];
        long double expected[V];
        for (int i = 0; i < V; i++) {
            p[i] = expf((float)(3 * rl_rng_next_normal(&rng)));
        }
        float top = 0;
        for (int i = 0; i < V; i++) {
            top = fmaxf(top, p[i]);
        }
        for (int i = 0; i < V; i++) {
            p[i] /= top;
            expected[i] = (long double)p[i];
        }
        keep_top_k(expected, settings[_i].top_k);
        keep_top_p(expected, settings[_i].top_p);
        struct kernel_sampling s = {
            .temperature = 1.0f, .top_k = settings[_i].top_k, .top_p = settings[_i].top_p};
        struct kernel_sampling_row row = {p, order, V, &s, 0, NULL};
        double before = 0;
        for (int i = 0; i < V; i++) {
            double after = i + 1 < V ? boundary(&row, i) : 1;
            worst = fmax(worst, fabs(after - before - (double)expected[i]));
            before = after;
        }
    }
    ck_assert_double_lt(worst, 1e-12);
}
END_TEST

/* --- draws
 * ------------------------------------------------------------------------------------------ */

/* P(chi-squared with `freedom` degrees > x): regularised upper gamma by series or fraction. */
static double chi_squared_tail(double x, double freedom)
{
    double a = freedom / 2;
    double z = x / 2;
    double front = exp(a * log(z) - z - lgamma(a));
    if (z < a + 1) {
        double term = 1 / a;
        double sum = term;
        for (int n = 1; n < 500; n++) {
            term *= z / (a + n);
            sum += term;
        }
        return 1 - front * sum;
    }
    double b = z + 1 - a;
    double c = 1e300;
    double d = 1 / b;
    double h = d;
    for (int n = 1; n < 500; n++) {
        double step = -n * (n - a);
        b += 2;
        d = 1 / (step * d + b);
        c = b + step / c;
        h *= d * c;
    }
    return front * h;
}

/* A head of one input: logits are what its weights say. */
struct sampler {
    struct memory memory;
    struct kernel_sampling sampling;
    struct kernel_decode_args args;
    struct rl_rng_key *keys;
    uint64_t *counters;
};

static void sampler_open(struct sampler *s, const float *logits, const struct setting *setting)
{
    struct kernel_table const *ref = NULL;
    memory_init(&s->memory, 1, FLAVOUR_PLAIN);
    ck_assert_int_eq(kernel_table_get(KERNEL_ISA_REF, &ref), RL_OK);
    float *w = memory_area(&s->memory, (size_t)V * C * sizeof(float), false);
    float *x = memory_area(&s->memory, (size_t)ROWS * C * sizeof(float), false);
    void *packed = memory_area(&s->memory, kernel_packed_bytes(V, C, KERNEL_FP32), true);
    for (int i = 0; i < V; i++) {
        w[i * C] = logits[i];
    }
    ref->linear_pack(&(struct kernel_linear_pack_args){w, packed, KERNEL_FP32, V, C, NULL, NULL},
                     NULL);
    s->keys = memory_area(&s->memory, ROWS * sizeof(*s->keys), true);
    s->counters = memory_area(&s->memory, ROWS * sizeof(*s->counters), true);
    for (int i = 0; i < ROWS; i++) {
        x[i * C] = 1;
        s->keys[i] = rl_rng_key_make(20261121, 1, (uint64_t)i);
    }
    s->sampling = (struct kernel_sampling){
        .temperature = setting->temperature, .top_k = setting->top_k, .top_p = setting->top_p};
    s->args = (struct kernel_decode_args){
        .x = x,
        .w = packed,
        .sampling = &s->sampling,
        .keys = s->keys,
        .counters = s->counters,
        .ids = memory_area(&s->memory, ROWS * sizeof(int32_t), true),
        .logprob = memory_area(&s->memory, ROWS * sizeof(float), true),
        .columns = KERNEL_PANEL,
        .chunks = memory_chunks(&s->memory, ROWS, V),
        .logits = memory_area(&s->memory, (size_t)ROWS * KERNEL_PANEL * sizeof(float), true),
        .order = memory_area(&s->memory, (size_t)ROWS * V * sizeof(int32_t), true),
        .m = ROWS,
        .v = V,
        .c = C};
}

static void sampler_next(struct sampler *s, const struct kernel_table *table, uint64_t round)
{
    for (int i = 0; i < ROWS; i++) {
        s->counters[i] = round;
    }
    table->head_decode(&s->args, NULL);
}

static void random_logits(uint64_t stream, float *logits)
{
    struct rl_rng rng = rl_rng_make(5, stream);
    for (int i = 0; i < V; i++) {
        logits[i] = (float)(1.5 * rl_rng_next_normal(&rng));
    }
}

START_TEST(draws_fit_the_reference)
{
    const struct setting *setting = &settings[_i];
    const struct kernel_table *table = NULL;
    struct sampler s;
    float logits[V];
    long double p[V];
    long double whole[V];
    double logprob[V];
    double count[V] = {0};
    double worst = 0;
    random_logits((uint64_t)_i, logits);
    reference(logits, setting, p);
    softmax(logits, (long double)setting->temperature, whole);
    normalise(whole);
    for (int i = 0; i < V; i++) {
        logprob[i] = (double)logl(whole[i]);
    }
    ck_assert_int_eq(kernel_table_get(kernel_isa_best(), &table), RL_OK);
    sampler_open(&s, logits, setting);
    for (int round = 0; round < DRAWS / ROWS; round++) {
        sampler_next(&s, table, (uint64_t)round);
        for (int i = 0; i < ROWS; i++) {
            int32_t id = s.args.ids[i];
            if (id < 0 || id >= V) {
                ck_abort_msg("setting %d: id %d", _i, (int)id);
            }
            double gap = fabs((double)s.args.logprob[i] - logprob[id]);
            worst = fmax(worst, gap / (1 - logprob[id]));
            count[id]++;
        }
    }
    ck_assert_double_lt(worst, 1e-5);
    ck_assert(memory_guards_hold(&s.memory));
    memory_fini(&s.memory);
    double chi = 0;
    int kept = 0;
    for (int i = 0; i < V; i++) {
        double expected = (double)p[i] * DRAWS;
        ck_assert_msg(expected > 0 || count[i] == 0, "setting %d: id %d is not kept", _i, i);
        if (expected > 0) {
            chi += (count[i] - expected) * (count[i] - expected) / expected;
            kept++;
        }
    }
    double tail = kept > 1 && chi > 0 ? chi_squared_tail(chi, kept - 1) : 1;
    ck_assert_msg(tail > 0.01, "setting %d: chi-squared %.2f of %d, p %.4f", _i, chi, kept - 1,
                  tail);
}
END_TEST

/* --- order and edges
 * -------------------------------------------------------------------------------- */

static bool same_support(const long double *a, const long double *b)
{
    for (int i = 0; i < V; i++) {
        if ((a[i] > 0) != (b[i] > 0)) {
            return false;
        }
    }
    return true;
}

/* The kept set of a million draws is the reference's (above); here: another order would keep
 * another set in some of those settings, so the draws tell the orders apart. */
START_TEST(another_order_keeps_another_set)
{
    int p_before_temperature = 0;
    int p_before_k = 0;
    for (int i = 0; i < SETTINGS; i++) {
        float logits[V];
        long double right[V];
        long double wrong[V];
        random_logits((uint64_t)i, logits);
        reference(logits, &settings[i], right);
        softmax(logits, 1, wrong);
        keep_top_k(wrong, settings[i].top_k);
        keep_top_p(wrong, settings[i].top_p);
        scale(wrong, (long double)settings[i].temperature);
        p_before_temperature += same_support(right, wrong) ? 0 : 1;
        softmax(logits, (long double)settings[i].temperature, wrong);
        keep_top_p(wrong, settings[i].top_p);
        keep_top_k(wrong, settings[i].top_k);
        p_before_k += same_support(right, wrong) ? 0 : 1;
    }
    ck_assert_int_ge(p_before_temperature, 3);
    ck_assert_int_ge(p_before_k, 1);
}
END_TEST

START_TEST(next_to_no_temperature_is_argmax)
{
    const struct kernel_table *table = NULL;
    float logits[V] = {0};
    logits[5] = 1.0f;
    logits[9] = 1.0f + 1e-6f; /* so near that a draw at 1e-6 would take either */
    long double p[V];
    softmax(logits, 1, p);
    normalise(p);
    for (int index = 0; index < 3; index++) {
        if (kernel_table_get((enum kernel_isa)index, &table) != RL_OK) {
            continue;
        }
        const float temperatures[] = {0.0f, 1e-6f, 9.9e-6f};
        for (size_t t = 0; t < sizeof(temperatures) / sizeof(*temperatures); t++) {
            struct sampler s;
            sampler_open(&s, logits, &(struct setting){temperatures[t], 0, 1.0f});
            sampler_next(&s, table, 1);
            ck_assert_int_eq(s.args.ids[ROWS - 1], 9);
            ck_assert_double_eq_tol((double)s.args.logprob[ROWS - 1], (double)logl(p[9]), 1e-5);
            memory_fini(&s.memory);
        }
    }
}
END_TEST

static Suite *reference_suite(void)
{
    Suite *suite = suite_create("check_sampler_reference");
    TCase *all = tcase_create("reference");
    tcase_add_loop_test(all, probabilities_of_the_draw_are_those_of_the_reference, 0, SETTINGS);
    tcase_add_loop_test(all, draws_fit_the_reference, 0, SETTINGS);
    tcase_add_test(all, another_order_keeps_another_set);
    tcase_add_test(all, next_to_no_temperature_is_argmax);
    suite_add_tcase(suite, all);
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(reference_suite());
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
