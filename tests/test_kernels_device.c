/* Memory, streams and errors of devices. Built twice: without a GPU it tests the CPU and the
 * refusal of a GPU; on the emulated GPU, everything. */
#include "core/log.h"
#include "core/pool.h"
#include "kernels/device.h"
#include "kernels/kernels.h"

#include <check.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if SUPPORT_EMULATED
#include "kernels/cuda/ops_cuda.h"
#include "tests/emulation/emulation.h"
#endif

START_TEST(cpu_is_the_device_without_one)
{
    struct rl_pool *pool = NULL;
    void *data = NULL;
    char out[3] = "ab";
    ck_assert_int_eq(rl_pool_create(1, &pool), RL_OK);
    ck_assert_int_eq(device_stream_start(NULL, pool), RL_OK);
    ck_assert_ptr_null(rl_pool_device(pool));
    ck_assert_int_eq(device_buffer_alloc(NULL, 100, "test", &data), RL_OK);
    device_write(pool, data, "xyz", 4);
    device_copy(pool, (char *)data + 50, data, 2);
    device_clear(pool, data, 2);
    ck_assert_int_eq(device_read(pool, out, (char *)data + 1, 3), RL_OK);
    ck_assert_int_eq(memcmp(out, "\0z", 3), 0);
    ck_assert_int_eq(memcmp((char *)data + 50, "xy", 2), 0);
    ck_assert_int_eq(device_wait(NULL), RL_OK);
    ck_assert_str_eq(device_name(NULL), device_cpu_name());
    device_buffer_free(NULL, data);
    device_stream_stop(pool);
    device_close(NULL);
    rl_pool_destroy(pool);
}
END_TEST

START_TEST(forgotten_memory_is_given_back)
{
    enum { BYTES = 5 << 20, PAGE = 4096 };
    unsigned char resident[BYTES / PAGE + 1];
    char *data = NULL;
    void *memory = NULL;
    size_t held = 0;
    ck_assert_int_eq(device_alloc(BYTES, "test", &memory), RL_OK);
    data = memory;
    memset(data, 7, BYTES);
    device_forget(data);
    ck_assert_int_eq(mincore(data, BYTES, resident), 0);
    for (size_t i = 0; i < BYTES / PAGE; i++) {
        held += resident[i] & 1;
    }
    ck_assert_uint_eq(held, 0);
    memset(data, 8, BYTES);
    ck_assert_int_eq(data[BYTES - 1], 8);
    device_free(data);
}
END_TEST

START_TEST(a_gpu_that_is_not_there_is_refused)
{
    struct device_survey survey;
    struct device *device = NULL;
    device_gpu_survey(&survey);
    ck_assert_int_eq(device_gpu_open(survey.count, &device), RL_UNSUPPORTED);
    ck_assert_ptr_null(device);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "GPU"));
    ck_assert(survey.count > 0 || survey.problem[0] != '\0');
}
END_TEST

#if SUPPORT_EMULATED

static struct device *gpu;
static struct rl_pool *gpu_pool;

static void gpu_setup(void)
{
    ck_assert_int_eq(device_gpu_open(0, &gpu), RL_OK);
    ck_assert_int_eq(rl_pool_create(1, &gpu_pool), RL_OK);
    ck_assert_int_eq(device_stream_start(gpu, gpu_pool), RL_OK);
}

/* Everything that was taken is given back. */
static void gpu_teardown(void)
{
    device_stream_stop(gpu_pool);
    rl_pool_destroy(gpu_pool);
    device_close(gpu);
    ck_assert_uint_eq(emulation_buffers(), 0);
}

static float *gpu_floats(const float *host, size_t count)
{
    void *data = NULL;
    ck_assert_int_eq(device_buffer_alloc(gpu, count * sizeof *host, "test", &data), RL_OK);
    device_write(gpu_pool, data, host, count * sizeof *host);
    return data;
}

START_TEST(survey_names_the_gpu)
{
    struct device_survey survey;
    device_gpu_survey(&survey);
    ck_assert(survey.built);
    ck_assert_int_eq(survey.count, 1);
    ck_assert_str_eq(survey.problem, "");
    ck_assert_ptr_nonnull(strstr(survey.name, "emulated GPU"));
    ck_assert_ptr_nonnull(strstr(device_name(gpu), "GPU 0"));
    size_t free_bytes = 0;
    size_t total = 0;
    device_gpu_memory(gpu, &free_bytes, &total);
    ck_assert_uint_gt(free_bytes, 0);
    ck_assert_uint_le(free_bytes, total);
    emulation_set_devices(0);
    device_gpu_survey(&survey);
    ck_assert_int_eq(survey.count, 0);
    ck_assert_ptr_nonnull(strstr(survey.problem, "no NVIDIA driver"));
    emulation_set_devices(1);
}
END_TEST

START_TEST(work_of_a_stream_is_ordered)
{
    float host[3] = {1, 2, 3};
    float *a = gpu_floats(host, 3);
    float *b = gpu_floats(host, 3);
    memset(host, 0, sizeof host); /* device_write has taken it */
    add_cuda(&(struct kernel_add_args){.y = a, .x = b, .count = 3}, gpu_pool);
    device_copy(gpu_pool, b, a, sizeof host);
    add_cuda(&(struct kernel_add_args){.y = a, .x = b, .count = 2}, gpu_pool);
    device_clear(gpu_pool, b, sizeof host);
    ck_assert_int_eq(device_read(gpu_pool, host, a, sizeof host), RL_OK);
    ck_assert(host[0] == 4 && host[1] == 8 && host[2] == 6);
    ck_assert_int_eq(device_read(gpu_pool, host, b, sizeof host), RL_OK);
    ck_assert(host[0] == 0 && host[1] == 0 && host[2] == 0);
    device_buffer_free(gpu, a);
    device_buffer_free(gpu, b);
}
END_TEST

START_TEST(buffers_are_zero_at_first)
{
    void *data = NULL;
    char host[1000];
    memset(host, 1, sizeof host);
    ck_assert_int_eq(device_buffer_alloc(gpu, sizeof host, "test", &data), RL_OK);
    ck_assert_int_eq(device_read(gpu_pool, host, data, sizeof host), RL_OK);
    for (size_t i = 0; i < sizeof host; i++) {
        ck_assert_int_eq(host[i], 0);
    }
    device_buffer_free(gpu, data);
}
END_TEST

START_TEST(no_memory_is_said_with_its_size)
{
    void *data = NULL;
    emulation_fail_memory_after(0);
    ck_assert_int_eq(device_buffer_alloc(gpu, 12345, "key pages", &data), RL_NO_MEMORY);
    ck_assert_ptr_null(data);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "key pages: no room for 12345 bytes"));
    emulation_fail_memory_after(-1);
    ck_assert_int_eq(device_buffer_alloc(gpu, 12345, "key pages", &data), RL_OK);
    device_buffer_free(gpu, data);
}
END_TEST

/* The first fault stays; later ops do nothing; the text names the op. */
START_TEST(a_fault_is_kept_and_reported_once)
{
    float host[3] = {1, 2, 3};
    float *a = gpu_floats(host, 3);
    ck_assert_int_eq(device_wait(gpu_pool), RL_OK);
    emulation_break();
    add_cuda(&(struct kernel_add_args){.y = a, .x = a, .count = 3}, gpu_pool);
    ck_assert_int_eq(device_wait(gpu_pool), RL_INTERNAL);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "op add"));
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "illegal memory access"));
    rl_fail(RL_INVALID, "another error");
    uint64_t kernels = emulation_kernels();
    add_cuda(&(struct kernel_add_args){.y = a, .x = a, .count = 3}, gpu_pool);
    ck_assert_int_eq(device_read(gpu_pool, host, a, sizeof host), RL_INTERNAL);
    ck_assert_str_eq(rl_log_last_error(), "another error");
    ck_assert_uint_eq(emulation_kernels(), kernels);
    emulation_heal();
    device_buffer_free(gpu, a);
}
END_TEST

/* An array of no elements is no kernel at all. */
START_TEST(nothing_to_do_is_no_error)
{
    add_cuda(&(struct kernel_add_args){.count = 0}, gpu_pool);
    ck_assert_int_eq(device_wait(gpu_pool), RL_OK);
    ck_assert_uint_eq(emulation_kernels(), 0);
}
END_TEST

START_TEST(passes_of_any_size_follow_one_another)
{
    int32_t ids[5000] = {0};
    struct kernel_pass_array array = {ids, 0};
    for (size_t i = 1; i <= 5000; i = 3 * i + 1) {
        array.bytes = i * sizeof *ids;
        pass_begin_cuda(&(struct kernel_pass_args){.arrays = &array, .count = 1}, gpu_pool);
        ids[0]++; /* the pass before has its own copy */
    }
    ck_assert_int_eq(device_wait(gpu_pool), RL_OK);
}
END_TEST

/* The host may not touch the device's memory. */
START_TEST(host_access_faults)
{
    float host = 1;
    float *a = gpu_floats(&host, 1);
    ck_assert_int_eq(device_wait(gpu_pool), RL_OK);
    *(volatile float *)a = 2;
}
END_TEST

/* --- work that comes again
 * ----------------------------------------------------------------------------------- */

/* y += x and, with `rows`, z[i] = x[rows[i]]. */
struct again {
    struct kernel_add_args add;
    struct kernel_gather_args gather;
    double *sum; /* of squares of x, which waits; NULL: none */
    double *sums;
    int calls;
};

static void again_queue(void *arg)
{
    struct again *work = arg;
    work->calls++;
    device_mark(gpu_pool, DEVICE_MARK_BEGIN);
    add_cuda(&work->add, gpu_pool);
    if (work->gather.rows != NULL) {
        gather_rows_cuda(&work->gather, gpu_pool);
    }
    if (work->sum != NULL) {
        sum_squares_cuda(
            &(struct kernel_sum_squares_args){work->add.x, work->add.count, work->sum, work->sums},
            gpu_pool);
    }
    device_mark(gpu_pool, DEVICE_MARK_END);
}

static void again_run(struct again *work, int key)
{
    struct device_work device_work = {again_queue, work, &key, sizeof key};
    device_replay(gpu_pool, &device_work);
}

static void again_make(struct again *work)
{
    const float x[4] = {1, 2, 3, 4};
    *work = (struct again){.add = {.y = gpu_floats(x, 4), .x = gpu_floats(x, 4), .count = 4}};
    ck_assert_uint_eq(emulation_graphs(), 0);
}

/* y is x so many times. */
static void again_expect(const struct again *work, float times)
{
    float y[4];
    ck_assert_int_eq(device_read(gpu_pool, y, work->add.y, sizeof y), RL_OK);
    for (int i = 0; i < 4; i++) {
        ck_assert_float_eq(y[i], times * (float)(i + 1));
    }
}

static void again_free(struct again *work)
{
    device_buffer_free(gpu, work->add.y);
    device_buffer_free(gpu, (void *)work->add.x);
}

/* First as it is, then recorded and launched, then launched; work without a key always as it is. */
START_TEST(work_is_recorded_when_it_comes_again)
{
    struct again work;
    again_make(&work);
    for (int i = 0; i < 5; i++) {
        again_run(&work, 7);
    }
    ck_assert_int_eq(work.calls, 2);
    ck_assert_uint_eq(emulation_graph_launches(), 4);
    ck_assert_uint_eq(emulation_graphs(), 1);
    again_expect(&work, 6);
    ck_assert_double_gt(device_marked_s(gpu_pool, DEVICE_MARK_BEGIN, DEVICE_MARK_END), 0);
    ck_assert_double_eq(device_marked_s(gpu_pool, DEVICE_MARK_BEGIN, DEVICE_MARK_MIDDLE), 0);
    device_replay(gpu_pool, &(struct device_work){.queue = again_queue, .arg = &work});
    ck_assert_int_eq(work.calls, 3);
    again_free(&work);
}
END_TEST

START_TEST(records_are_bounded)
{
    struct again work;
    again_make(&work);
    for (int key = 0; key < 100; key++) {
        again_run(&work, key);
        again_run(&work, key);
    }
    ck_assert_uint_eq(emulation_graphs(), 64);
    again_run(&work, 99);
    ck_assert_int_eq(work.calls, 200);
    again_run(&work, 0); /* has given way */
    ck_assert_int_eq(work.calls, 201);
    again_expect(&work, 203);
    again_free(&work);
}
END_TEST

/* What a record was made with may be elsewhere: memory given back, the stream's own that grew. */
START_TEST(moved_memory_makes_records_void)
{
    struct again work;
    int32_t ids[3000] = {0};
    struct kernel_pass_array array = {ids, sizeof ids};
    const float one = 1;
    again_make(&work);
    again_run(&work, 1);
    again_run(&work, 1);
    ck_assert_uint_eq(emulation_graphs(), 1);
    device_buffer_free(gpu, gpu_floats(&one, 1));
    again_run(&work, 1);
    ck_assert_uint_eq(emulation_graphs(), 0);
    again_run(&work, 1);
    ck_assert_uint_eq(emulation_graphs(), 1);
    pass_begin_cuda(&(struct kernel_pass_args){.arrays = &array, .count = 1}, gpu_pool);
    again_run(&work, 1);
    ck_assert_uint_eq(emulation_graphs(), 0);
    again_expect(&work, 6);
    again_free(&work);
}
END_TEST

/* Arrays of a pass are read anew by a record; others cannot be, nor can an op wait in one. */
START_TEST(what_cannot_be_recorded_is_queued_as_it_is)
{
    struct again work;
    int32_t rows[2] = {0, 3};
    int32_t other[2] = {1, 2};
    double sum = 0;
    float z[2];
    struct kernel_pass_array array = {rows, sizeof rows};
    again_make(&work);
    work.gather = (struct kernel_gather_args){
        .x = work.add.x, .rows = rows, .y = gpu_floats(z, 2), .m = 2, .c = 1};
    work.sums = (double *)gpu_floats(z, 2);
    for (int i = 0; i < 4; i++) {
        rows[0] = i;
        pass_begin_cuda(&(struct kernel_pass_args){.arrays = &array, .count = 1}, gpu_pool);
        again_run(&work, 1);
        ck_assert_int_eq(device_read(gpu_pool, z, work.gather.y, sizeof z), RL_OK);
        ck_assert(z[0] == (float)(i + 1) && z[1] == 4);
    }
    ck_assert_uint_eq(emulation_graph_launches(), 3);
    work.gather.rows = _i == 0 ? other : rows;
    work.sum = _i == 1 ? &sum : NULL;
    for (int i = 0; i < 3; i++) {
        other[0] = i;
        again_run(&work, 2);
        ck_assert_int_eq(device_read(gpu_pool, z, work.gather.y, sizeof z), RL_OK);
        ck_assert(_i == 1 || (z[0] == (float)(i + 1) && z[1] == 3));
        ck_assert(_i == 0 || sum == 30);
    }
    ck_assert_uint_eq(emulation_graph_launches(), 3);
    ck_assert_uint_eq(emulation_graphs(), 0); /* for good */
    again_expect(&work, 8);
    device_buffer_free(gpu, work.gather.y);
    device_buffer_free(gpu, work.sums);
    again_free(&work);
}
END_TEST

START_TEST(work_goes_on_without_graphs)
{
    struct again work;
    again_make(&work);
    emulation_fail_graphs(1);
    for (int i = 0; i < 4; i++) {
        again_run(&work, 1);
    }
    emulation_fail_graphs(0);
    ck_assert_uint_eq(emulation_graph_launches(), 0);
    again_expect(&work, 5);
    again_free(&work);
}
END_TEST

START_TEST(a_fault_in_a_record_is_reported)
{
    struct again work;
    again_make(&work);
    again_run(&work, 1);
    again_run(&work, 1);
    ck_assert_int_eq(device_wait(gpu_pool), RL_OK);
    emulation_break();
    again_run(&work, 1);
    ck_assert_int_eq(device_wait(gpu_pool), RL_INTERNAL);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "illegal memory access"));
    again_run(&work, 1);
    ck_assert_int_eq(device_wait(gpu_pool), RL_INTERNAL);
    emulation_heal();
    again_free(&work);
}
END_TEST
#endif

static Suite *device_suite(void)
{
    Suite *suite = suite_create("kernels_device");
    TCase *cpu = tcase_create("cpu");
    tcase_add_test(cpu, cpu_is_the_device_without_one);
    tcase_add_test(cpu, a_gpu_that_is_not_there_is_refused);
    tcase_add_test(cpu, forgotten_memory_is_given_back);
    suite_add_tcase(suite, cpu);
#if SUPPORT_EMULATED
    TCase *all = tcase_create("gpu");
    tcase_add_checked_fixture(all, gpu_setup, gpu_teardown);
    tcase_add_test(all, survey_names_the_gpu);
    tcase_add_test(all, work_of_a_stream_is_ordered);
    tcase_add_test(all, buffers_are_zero_at_first);
    tcase_add_test(all, no_memory_is_said_with_its_size);
    tcase_add_test(all, a_fault_is_kept_and_reported_once);
    tcase_add_test(all, nothing_to_do_is_no_error);
    tcase_add_test(all, passes_of_any_size_follow_one_another);
    tcase_add_test(all, work_is_recorded_when_it_comes_again);
    tcase_add_test(all, records_are_bounded);
    tcase_add_test(all, moved_memory_makes_records_void);
    tcase_add_loop_test(all, what_cannot_be_recorded_is_queued_as_it_is, 0, 2);
    tcase_add_test(all, work_goes_on_without_graphs);
    tcase_add_test(all, a_fault_in_a_record_is_reported);
    tcase_add_test_raise_signal(all, host_access_faults, SIGSEGV);
    suite_add_tcase(suite, all);
#endif
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(device_suite());
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
