/* Forward products on the emulated GPU: which way is chosen for many and for few rows, and that a
 * row has the same bits whatever way it takes. */
#include "kernels/cuda/cuda_kernel.h"
#include "kernels/cuda/matmul_choose_cuda.h"

#include "core/pool.h"
#include "core/rng.h"
#include "kernels/bf16.h"

#include "tests/emulation/emulation_cublas_lt.h"

#include <check.h>
#include <cmath>
#include <stdlib.h>
#include <vector>

enum { ROWS = 70, MAPS = KERNEL_SET_MAPS };
static const size_t LITTLE_SHARED = 64 * 1024;

static struct device *gpu;
static struct rl_pool *gpu_pool;
static std::vector<void *> buffers;

static void setup(void)
{
    ck_assert_int_eq(device_gpu_open(0, &gpu), RL_OK);
    ck_assert_int_eq(rl_pool_create(1, &gpu_pool), RL_OK);
    ck_assert_int_eq(device_stream_start(gpu, gpu_pool), RL_OK);
}

static void teardown(void)
{
    for (void *buffer : buffers) {
        device_buffer_free(gpu, buffer);
    }
    buffers.clear();
    emulation_set_orders(EMULATION_ORDERS_ONE);
    emulation_set_order(0);
    device_stream_stop(gpu_pool);
    rl_pool_destroy(gpu_pool);
    device_close(gpu);
}

template <typename T> static T *to_device(const std::vector<T> &from)
{
    void *data = nullptr;
    ck_assert_int_eq(device_buffer_alloc(gpu, from.size() * sizeof(T), "test", &data), RL_OK);
    buffers.push_back(data);
    device_write(gpu_pool, data, from.data(), from.size() * sizeof(T));
    return static_cast<T *>(data);
}

static std::vector<float> from_device(const float *from, size_t count)
{
    std::vector<float> to(count);
    ck_assert_int_eq(device_read(gpu_pool, to.data(), from, count * sizeof(float)), RL_OK);
    return to;
}

/* Numbers of magnitudes that show the order of a sum. */
static std::vector<float> numbers(size_t count, uint32_t seed)
{
    std::vector<float> out(count);
    for (size_t i = 0; i < count; i++) {
        uint32_t bits = ((uint32_t)i + seed * 977u) * 0x9E3779B9u;
        bits = (bits ^ bits >> 15) * 0x85EBCA6Bu;
        bits ^= bits >> 13;
        out[i] = ((float)(bits >> 8) / 8388608.0f - 1.0f) * (float)(1u << bits % 5);
    }
    return out;
}

static std::vector<uint16_t> weights(int64_t n, int64_t k, uint32_t seed)
{
    const int64_t padded = (n + KERNEL_PANEL - 1) / KERNEL_PANEL * KERNEL_PANEL;
    std::vector<uint16_t> out((size_t)(padded * k), 0);
    const std::vector<float> wide = numbers((size_t)(n * k), seed);
    for (size_t i = 0; i < wide.size(); i++) {
        out[i] = kernel_bf16_from_float(wide[i]);
    }
    return out;
}

/* --- the choice ------------------------------------------------------------------------------- */

static struct matmul_choice choice_of(int64_t depth)
{
    struct cuda_stream *stream = cuda_op_begin(gpu_pool, "test");
    struct matmul_args a = {};
    a.kind = MATMUL_FORWARD;
    a.dtype = KERNEL_BF16;
    a.depth = depth;
    const struct matmul_choice *choice = matmul_choose(stream, &a);
    ck_assert_ptr_nonnull(choice);
    const struct matmul_choice out = *choice;
    cuda_op_end(stream);
    return out;
}

static bool same_algorithm(const cublasLtMatmulAlgo_t *x, const cublasLtMatmulAlgo_t *y)
{
    return memcmp(x, y, sizeof *x) == 0;
}

START_TEST(an_algorithm_with_the_kernels_bits_is_preferred)
{
    const struct matmul_choice one = choice_of(72);
    ck_assert(one.kernel && !same_algorithm(&one.algorithm, &one.few_rows));
    emulation_set_orders(EMULATION_ORDERS_TWO);
    const struct matmul_choice two = choice_of(136);
    ck_assert(two.kernel && same_algorithm(&two.algorithm, &one.algorithm));
    emulation_set_orders(EMULATION_ORDERS_FOREIGN);
    const struct matmul_choice foreign = choice_of(200);
    ck_assert(!foreign.kernel && !same_algorithm(&foreign.algorithm, &one.algorithm));
}
END_TEST

START_TEST(the_choice_is_the_same_in_every_process)
{
    emulation_set_orders(EMULATION_ORDERS_TWO);
    const struct matmul_choice first = choice_of(104);
    teardown();
    setup();
    emulation_set_order(3);
    const struct matmul_choice second = choice_of(104);
    ck_assert(same_algorithm(&first.algorithm, &second.algorithm));
    ck_assert(same_algorithm(&first.few_rows, &second.few_rows));
    ck_assert(first.kernel == second.kernel);
}
END_TEST

START_TEST(a_depth_without_fellow_has_no_kernel)
{
    struct cuda_stream *stream = cuda_op_begin(gpu_pool, "test");
    ck_assert(matmul_has_few(stream, KERNEL_BF16, 64));
    ck_assert(!matmul_has_few(stream, KERNEL_BF16, 65) && !matmul_has_few(stream, KERNEL_FP32, 64));
    cuda_op_end(stream);
}
END_TEST

START_TEST(long_depths_have_few_segments)
{
    ck_assert_int_eq(matmul_segment(KERNEL_BF16, 896), 896);
    ck_assert_int_eq(matmul_segment(KERNEL_BF16, 2560), 2560);
    ck_assert_int_eq(matmul_segment(KERNEL_BF16, 4864), 2432);
    ck_assert_int_eq(matmul_segment(KERNEL_BF16, 8960), 2240);
    ck_assert_int_eq(matmul_segment(KERNEL_BF16, 18944), 4736);
    ck_assert_int_eq(matmul_segment(KERNEL_BF16, 2568), 1344);
    ck_assert_int_eq(matmul_segment(KERNEL_FP32, 8960), 8960);
}
END_TEST

/* --- bits ------------------------------------------------------------------------------------- */

struct shape {
    int64_t n, k;
    bool bias, accumulate;
};

enum { SHORT, WIDE, ONE, FEW_OUTPUTS, TWO_SEGMENTS, FOUR_SEGMENTS, SHAPES };
static const struct shape shapes[SHAPES] = {
    {17, 72, true, true},   {150, 200, false, false}, {1, 8, true, false},
    {33, 500, false, true}, {21, 2600, true, true},   {9, 7936, true, false},
};

/* ROWS rows of y in batches of at most m, strides as given. */
static std::vector<float> forward(const struct shape *shape, int64_t m, int64_t x_more,
                                  int64_t y_more)
{
    struct kernel_linear_args a = {};
    a.k = shape->k;
    a.n = shape->n;
    a.x_stride = a.k + x_more;
    a.y_stride = a.n + y_more;
    a.dtype = KERNEL_BF16;
    a.accumulate = shape->accumulate;
    a.w = to_device(weights(a.n, a.k, 3));
    a.bias = shape->bias ? to_device(numbers((size_t)a.n, 4)) : NULL;
    const std::vector<float> rows = numbers((size_t)(ROWS * a.k), 1);
    std::vector<float> x((size_t)(ROWS * a.x_stride), NAN);
    std::vector<float> y((size_t)(ROWS * a.y_stride), NAN);
    const std::vector<float> old = numbers((size_t)(ROWS * a.n), 2);
    for (int64_t r = 0; r < ROWS; r++) {
        memcpy(&x[(size_t)(r * a.x_stride)], &rows[(size_t)(r * a.k)], (size_t)a.k * sizeof x[0]);
        memcpy(&y[(size_t)(r * a.y_stride)], &old[(size_t)(r * a.n)], (size_t)a.n * sizeof y[0]);
    }
    float *x_device = to_device(x);
    float *y_device = to_device(y);
    for (int64_t first = 0; first < ROWS; first += m) {
        a.m = ROWS - first < m ? ROWS - first : m;
        a.x = x_device + first * a.x_stride;
        a.y = y_device + first * a.y_stride;
        linear_forward_cuda(&a, gpu_pool);
    }
    const std::vector<float> all = from_device(y_device, y.size());
    std::vector<float> out((size_t)(ROWS * a.n));
    int spoilt = 0; /* between rows of y */
    for (int64_t r = 0; r < ROWS; r++) {
        memcpy(&out[(size_t)(r * a.n)], &all[(size_t)(r * a.y_stride)],
               (size_t)a.n * sizeof out[0]);
        for (int64_t i = a.n; i < a.y_stride; i++) {
            spoilt += std::isnan(all[(size_t)(r * a.y_stride + i)]) ? 0 : 1;
        }
    }
    ck_assert_int_eq(spoilt, 0);
    return out;
}

static void assert_same(const std::vector<float> &want, const std::vector<float> &got)
{
    ck_assert(want.size() == got.size());
    if (memcmp(want.data(), got.data(), want.size() * sizeof want[0]) == 0) {
        return; /* an assertion each would take longer than the products */
    }
    for (size_t i = 0; i < want.size(); i++) {
        ck_assert_msg(memcmp(&want[i], &got[i], sizeof want[i]) == 0,
                      "element %zu is %.9g, should be %.9g", i, (double)got[i], (double)want[i]);
    }
}

static void check_batches(const struct shape *shape)
{
    const std::vector<float> all = forward(shape, ROWS, 0, 0);
    const int64_t batches[] = {7, 64, 1, 13, 65};
    for (int i = 0; i < (shape->k <= 500 ? 5 : 2); i++) { /* long ones take their time */
        assert_same(all, forward(shape, batches[i], 0, 0));
    }
    assert_same(all, forward(shape, 64, 3, 0)); /* rows of x that are not aligned */
    assert_same(all, forward(shape, ROWS, 4, 1));
}

START_TEST(a_row_is_the_same_whatever_way_it_takes)
{
    check_batches(&shapes[_i]);
}
END_TEST

START_TEST(a_row_is_the_same_in_any_order_of_threads)
{
    const std::vector<float> want = forward(&shapes[TWO_SEGMENTS], 37, 0, 0);
    for (uint64_t order = 1; order < 4; order++) {
        emulation_set_order(order);
        assert_same(want, forward(&shapes[TWO_SEGMENTS], 37, 0, 0));
    }
    emulation_set_order(0);
}
END_TEST

START_TEST(a_row_is_the_same_without_the_kernel)
{
    emulation_set_orders((enum emulation_orders)_i);
    check_batches(&shapes[WIDE]);
}
END_TEST

START_TEST(little_shared_memory_leaves_the_other_way)
{
    const std::vector<float> want = forward(&shapes[FOUR_SEGMENTS], 64, 0, 0);
    emulation_set_shared_most(LITTLE_SHARED);
    assert_same(want, forward(&shapes[FOUR_SEGMENTS], 64, 0, 0));
    assert_same(want, forward(&shapes[FOUR_SEGMENTS], 8, 0, 0));
    emulation_set_shared_most(0);
}
END_TEST

/* The sum itself, in double: both ways could be wrong together. */
START_TEST(a_product_is_right)
{
    const struct shape *shape = &shapes[_i];
    const std::vector<float> y = forward(shape, 29, 0, 0);
    const std::vector<uint16_t> w = weights(shape->n, shape->k, 3);
    const std::vector<float> x = numbers((size_t)(ROWS * shape->k), 1);
    const std::vector<float> old = numbers((size_t)(ROWS * shape->n), 2);
    const std::vector<float> bias = numbers((size_t)shape->n, 4);
    double worst = 0.0;
    for (int64_t i = 0; i < ROWS * shape->n; i++) {
        const int64_t row = i / shape->n;
        const int64_t n = i % shape->n;
        double sum = (shape->accumulate ? (double)old[(size_t)i] : 0.0) +
                     (shape->bias ? (double)bias[(size_t)n] : 0.0);
        double size = 1.0;
        for (int64_t k = 0; k < shape->k; k++) {
            const double term = (double)kernel_bf16_to_float(w[(size_t)(n * shape->k + k)]) *
                                (double)kernel_bf16_to_float(
                                    kernel_bf16_from_float(x[(size_t)(row * shape->k + k)]));
            sum += term;
            size += std::fabs(term);
        }
        worst = std::fmax(worst, std::fabs(sum - (double)y[(size_t)i]) / size);
    }
    ck_assert_double_lt(worst, 1e-6);
}
END_TEST

/* What is not finite stays in its row. */
START_TEST(a_bad_row_spoils_no_other)
{
    enum { N = 40, K = 136, M = 9, BAD = 4 };
    std::vector<float> x = numbers((size_t)M * K, 1);
    struct kernel_linear_args a = {};
    a.w = to_device(weights(N, K, 3));
    a.dtype = KERNEL_BF16;
    a.m = M;
    a.n = a.y_stride = N;
    a.k = a.x_stride = K;
    a.x = to_device(x);
    a.y = to_device(std::vector<float>((size_t)M * N));
    linear_forward_cuda(&a, gpu_pool);
    const std::vector<float> want = from_device(a.y, (size_t)M * N);
    for (int k = 0; k < K; k++) {
        x[(size_t)(BAD * K + k)] = k % 3 == 0 ? NAN : k % 3 == 1 ? INFINITY : 3e38f;
    }
    a.x = to_device(x);
    linear_forward_cuda(&a, gpu_pool);
    const std::vector<float> got = from_device(a.y, (size_t)M * N);
    for (size_t i = 0; i < got.size(); i++) {
        ck_assert(i / N == BAD ? std::isnan(got[i])
                               : memcmp(&want[i], &got[i], sizeof want[i]) == 0);
    }
}
END_TEST

/* Maps of the same rows, in one launch and each by itself; the last accumulates. */
START_TEST(maps_together_are_the_same_as_alone)
{
    enum { K = 200, M = 19 };
    const int64_t outputs[MAPS] = {150, 33, 64};
    struct kernel_linear_set_args set = {};
    set.count = _i;
    float *x = to_device(numbers((size_t)M * K, 1));
    for (int i = 0; i < MAPS; i++) {
        struct kernel_linear_args *a = &set.maps[i];
        a->w = to_device(weights(outputs[i], K, (uint32_t)i));
        a->dtype = KERNEL_BF16;
        a->bias = i == 1 ? to_device(numbers((size_t)outputs[i], 9)) : NULL;
        a->x = x;
        a->y = to_device(numbers((size_t)(M * outputs[i]), 5));
        a->m = M;
        a->n = a->y_stride = outputs[i];
        a->k = a->x_stride = K;
        a->accumulate = i == 2;
    }
    std::vector<float> want[MAPS];
    for (int i = 0; i < set.count; i++) {
        struct kernel_linear_args alone = set.maps[i];
        alone.y = to_device(numbers((size_t)(M * outputs[i]), 5));
        linear_forward_cuda(&alone, gpu_pool);
        want[i] = from_device(alone.y, (size_t)(M * outputs[i]));
    }
    linear_forward_set_cuda(&set, gpu_pool);
    for (int i = 0; i < set.count; i++) {
        assert_same(want[i], from_device(set.maps[i].y, (size_t)(M * outputs[i])));
    }
}
END_TEST

static Suite *products_suite(void)
{
    Suite *suite = suite_create("products_emulated");
    TCase *choice = tcase_create("choice");
    tcase_set_timeout(choice, 300);
    tcase_add_checked_fixture(choice, setup, teardown);
    tcase_add_test(choice, an_algorithm_with_the_kernels_bits_is_preferred);
    tcase_add_test(choice, the_choice_is_the_same_in_every_process);
    tcase_add_test(choice, a_depth_without_fellow_has_no_kernel);
    tcase_add_test(choice, long_depths_have_few_segments);
    tcase_add_loop_test(choice, a_row_is_the_same_without_the_kernel, EMULATION_ORDERS_TWO,
                        EMULATION_ORDERS_NONE + 1);
    suite_add_tcase(suite, choice);
    TCase *bits = tcase_create("bits");
    tcase_set_timeout(bits, 300);
    tcase_add_unchecked_fixture(bits, setup, teardown); /* each depth is chosen for once */
    tcase_add_loop_test(bits, a_row_is_the_same_whatever_way_it_takes, 0, FOUR_SEGMENTS);
    tcase_add_test(bits, a_row_is_the_same_in_any_order_of_threads);
    tcase_add_test(bits, little_shared_memory_leaves_the_other_way);
    tcase_add_loop_test(bits, a_product_is_right, FEW_OUTPUTS, SHAPES);
    tcase_add_test(bits, a_bad_row_spoils_no_other);
    tcase_add_loop_test(bits, maps_together_are_the_same_as_alone, 1, MAPS + 1);
    suite_add_tcase(suite, bits);
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(products_suite());
    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
