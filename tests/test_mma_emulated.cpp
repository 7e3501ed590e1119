/* The emulated tensor core instructions against plain products of whole matrices. The fragments'
 * elements are written down here once more, from the tables of the PTX ISA ("Matrix Fragments for
 * mma.m16n8k16", "ldmatrix"), so that kernels and emulation cannot be wrong together. */
#include "kernels/cuda/cuda_kernel.h"
#include "kernels/cuda/mma_cuda.h"

#include <check.h>

enum { M = 16, N = 8, K = 16, LANES = 32, MATRIX = 8, UNIT = 16 };

/* What kernels read and write. Not within functions: a static variable there is shared memory. */
static float product[M * N];
static uint32_t loaded[4 * LANES];
alignas(UNIT) static unsigned char source[2 * UNIT];
static int seen_bytes[3 + UNIT];

/* Whole numbers: sums of their products are exact. */
static float number(int seed, int row, int column)
{
    return (float)((row * 7 + column * 13 + seed * 5 + row * column) % 31 - 15);
}

static void multiply(float *d)
{
    const int group = (int)threadIdx.x / 4;
    const int within = (int)threadIdx.x % 4;
    float a[8];
    float b[4];
    float c[4];
    for (int i = 0; i < 8; i++) {
        int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
        int column = within * 2 + (i & 1) + (i < 4 ? 0 : 8);
        a[i] = number(1, row, column);
    }
    for (int i = 0; i < 4; i++) {
        int row = within * 2 + (i & 1) + (i < 2 ? 0 : 8);
        b[i] = number(2, row, group);
    }
    for (int i = 0; i < 4; i++) {
        c[i] = number(3, i < 2 ? group : group + 8, within * 2 + (i & 1));
    }
    const uint32_t left[4] = {mma_bf16_pair(a[0], a[1]), mma_bf16_pair(a[2], a[3]),
                              mma_bf16_pair(a[4], a[5]), mma_bf16_pair(a[6], a[7])};
    const uint32_t right[2] = {mma_bf16_pair(b[0], b[1]), mma_bf16_pair(b[2], b[3])};
    mma_m16n8k16_bf16(c, left, right);
    for (int i = 0; i < 4; i++) {
        d[(i < 2 ? group : group + 8) * N + within * 2 + (i & 1)] = c[i];
    }
}

START_TEST(mma_is_a_product)
{
    emulation_set_order((uint64_t)_i);
    emulation_launch_with({nullptr, "multiply", 1, LANES, 0, nullptr}, nullptr, multiply, product);
    cudaDeviceSynchronize();
    for (int row = 0; row < M; row++) {
        for (int column = 0; column < N; column++) {
            float sum = number(3, row, column);
            for (int k = 0; k < K; k++) {
                sum += number(1, row, k) * number(2, k, column);
            }
            ck_assert_float_eq(product[row * N + column], sum);
        }
    }
}
END_TEST

/* Four matrices one below the other, loaded into what each lane gets. */
static void load(uint32_t *to, bool transposed)
{
    CUDA_SHARED(uint16_t, rows);
    for (int i = 0; i < MATRIX; i++) {
        rows[threadIdx.x * MATRIX + i] = (uint16_t)(threadIdx.x * MATRIX + i);
    }
    __syncthreads();
    uint32_t got[4];
    if (transposed) {
        mma_load_x4_transposed(got, rows + threadIdx.x * MATRIX);
    } else {
        mma_load_x4(got, rows + threadIdx.x * MATRIX);
    }
    for (int i = 0; i < 4; i++) {
        to[i * LANES + threadIdx.x] = got[i];
    }
}

START_TEST(ldmatrix_hands_out_rows_or_columns)
{
    const bool transposed = _i == 1;
    emulation_launch_with({nullptr, "load", 1, LANES, LANES * UNIT, nullptr}, nullptr, load, loaded,
                          transposed);
    cudaDeviceSynchronize();
    for (int i = 0; i < 4; i++) {
        for (int lane = 0; lane < LANES; lane++) {
            for (int half = 0; half < 2; half++) {
                int major = lane / 4;
                int minor = lane % 4 * 2 + half;
                int row = i * MATRIX + (transposed ? minor : major);
                int column = transposed ? major : minor;
                ck_assert_uint_eq(loaded[i * LANES + lane] >> (16 * half) & 0xffff,
                                  (unsigned)(row * MATRIX + column));
            }
        }
    }
}
END_TEST

/* Copies of two groups; `seen` [3]: the second one's first byte before any wait, after a wait that
 * leaves a group out, after all; then what the first one's partial copy left behind. */
static void copy(const unsigned char *from, int *seen)
{
    CUDA_SHARED(unsigned char, to);
    memset(to, 0x55, 2 * UNIT);
    copy_async16(to, from, 5);
    copy_async_commit();
    copy_async16(to + UNIT, from + UNIT, UNIT);
    copy_async_commit();
    seen[0] = to[UNIT];
    copy_async_wait<1>();
    seen[1] = to[UNIT];
    for (int i = 0; i < UNIT; i++) {
        seen[3 + i] = to[i];
    }
    copy_async_wait<0>();
    seen[2] = to[UNIT];
}

START_TEST(copies_arrive_when_waited_for)
{
    for (int i = 0; i < 2 * UNIT; i++) {
        source[i] = (unsigned char)(i + 1);
    }
    emulation_launch_with({nullptr, "copy", 1, 1, 2 * UNIT, nullptr}, nullptr, copy, source,
                          seen_bytes);
    cudaDeviceSynchronize();
    ck_assert_int_eq(seen_bytes[0], 0x55);
    ck_assert_int_eq(seen_bytes[1], 0x55);
    ck_assert_int_eq(seen_bytes[2], UNIT + 1);
    for (int i = 0; i < UNIT; i++) {
        ck_assert_int_eq(seen_bytes[3 + i], i < 5 ? i + 1 : 0);
    }
}
END_TEST

int main()
{
    Suite *suite = suite_create("test_mma_emulated");
    TCase *all = tcase_create("instructions");
    tcase_add_loop_test(all, mma_is_a_product, 0, 3);
    tcase_add_loop_test(all, ldmatrix_hands_out_rows_or_columns, 0, 2);
    tcase_add_test(all, copies_arrive_when_waited_for);
    suite_add_tcase(suite, all);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
