/* The emulated GPU finds what it is for: each mistake that it looks for is made by a kernel here.
 */
#include "kernels/cuda/cuda_kernel.h"

#include "core/pool.h"

#include <check.h>
#include <signal.h>
#include <stdlib.h>

static struct device *gpu;
static struct rl_pool *gpu_pool;
static struct cuda_stream *stream;
static float *cells; /* [CELLS], the device's */
enum { CELLS = 256 };

static void setup(void)
{
    void *data = nullptr;
    ck_assert_int_eq(device_gpu_open(0, &gpu), RL_OK);
    ck_assert_int_eq(rl_pool_create(1, &gpu_pool), RL_OK);
    ck_assert_int_eq(device_stream_start(gpu, gpu_pool), RL_OK);
    ck_assert_int_eq(device_buffer_alloc(gpu, CELLS * sizeof(float), "cells", &data), RL_OK);
    cells = static_cast<float *>(data);
    stream = cuda_op_begin(gpu_pool, "test");
}

static void teardown(void)
{
    device_buffer_free(gpu, cells);
    device_stream_stop(gpu_pool);
    rl_pool_destroy(gpu_pool);
    device_close(gpu);
}

static float cell(int index)
{
    float value = 0;
    ck_assert_int_eq(device_read(gpu_pool, &value, cells + index, sizeof value), RL_OK);
    return value;
}

/* --- what is right ---------------------------------------------------------------------------- */

/* Sum of 0 .. blockDim.x - 1 by shuffles and shared memory. */
template <int STEP> static __global__ void sum_kernel(float *out)
{
    __shared__ float parts[32];
    float value = (float)threadIdx.x;
    for (int bits = 16; bits > 0; bits /= STEP) {
        value += __shfl_xor_sync(0xffffffffu, value, bits);
    }
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = value;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        float total = 0;
        for (unsigned i = 0; i < blockDim.x / 32; i++) {
            total += parts[i];
        }
        out[blockIdx.x] = total;
    }
}

START_TEST(threads_meet)
{
    for (uint64_t order = 0; order < 4; order++) {
        emulation_set_order(order);
        CUDA_LAUNCH(sum_kernel<2>, 3, 128, 0, stream, cells);
        ck_assert(cell(0) == 8128 && cell(2) == 8128);
    }
}
END_TEST

static __global__ void vote_kernel(float *out)
{
    unsigned odd = __ballot_sync(0xffffffffu, threadIdx.x % 2);
    float third = __shfl_down_sync(0xffffffffu, (float)threadIdx.x, 3, 8);
    if (threadIdx.x < 16) {
        out[threadIdx.x] = third + (float)__shfl_sync(0xffffu, (int)threadIdx.x, 5);
    }
    out[32 + threadIdx.x] = (float)(odd >> threadIdx.x & 1);
    out[64] = (float)(__any_sync(0xffffffffu, threadIdx.x == 9) + __all_sync(0xffffffffu, 1));
}

START_TEST(lanes_exchange)
{
    CUDA_LAUNCH(vote_kernel, 1, 32, 0, stream, cells);
    ck_assert(cell(0) == 3 + 5 && cell(4) == 7 + 5 && cell(5) == 5 + 5);
    ck_assert(cell(32) == 0 && cell(33) == 1 && cell(64) == 2);
}
END_TEST

static __global__ void room_kernel(float *out, int count)
{
    CUDA_SHARED(float, room);
    room[threadIdx.x] = (float)threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = room[count - 1 - (int)threadIdx.x];
}

START_TEST(large_shared_memory_is_asked_for)
{
    CUDA_LAUNCH(room_kernel, 1, 64, 100 * 1024, stream, cells, 64);
    ck_assert(cell(0) == 63 && cell(63) == 0);
    CUDA_LAUNCH(room_kernel, 1, 64, 300 * 1024, stream, cells, 64);
    ck_assert_int_ne(device_wait(gpu_pool), RL_OK);
}
END_TEST

START_TEST(results_come_with_waiting)
{
    float one = 1;
    cuda_fetch(stream, &one, cells, sizeof one);
    ck_assert(one == 1);
    cuda_wait(stream);
    ck_assert(one == 0);
}
END_TEST

/* Kernels that are recorded run as often as the graph is launched. */
START_TEST(graphs_repeat_work)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStream_t handle = cuda_stream_handle(stream);
    CUDA_LAUNCH(sum_kernel<2>, 1, 128, 0, stream, cells);
    ck_assert_int_eq(cudaStreamBeginCapture(handle, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    const struct kernel_add_args twice = {cells, cells, 1};
    add_cuda(&twice, gpu_pool);
    ck_assert_int_eq(cudaStreamEndCapture(handle, &graph), cudaSuccess);
    ck_assert(cell(0) == 8128);
    ck_assert_int_eq(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    ck_assert_int_eq(cudaGraphLaunch(exec, handle), cudaSuccess);
    ck_assert_int_eq(cudaGraphLaunch(exec, handle), cudaSuccess);
    ck_assert(cell(0) == 4 * 8128);
    cudaGraphDestroy(graph);
    cudaGraphExecDestroy(exec);
}
END_TEST

/* --- what is wrong ---------------------------------------------------------------------------- */

static __global__ void late_kernel(float *out)
{
    if (threadIdx.x < 40) {
        return; /* and never comes to the barrier */
    }
    __syncthreads();
    out[0] = 1;
}

static __global__ void split_kernel(float *out)
{
    if (threadIdx.x % 2 == 0) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[0] = 1;
}

static __global__ void lanes_kernel(float *out)
{
    if (threadIdx.x < 8) { /* the others of the mask do not come */
        out[0] = __shfl_sync(0xffffffffu, out[0], 0);
    }
}

static __global__ void mask_kernel(float *out)
{
    out[0] = __shfl_sync(0xffu, out[0], 0); /* lanes 8 .. are not in it */
}

static __global__ void beyond_kernel(float *out)
{
    out[CELLS] = 1;
}

static __global__ void shared_beyond_kernel(float *out)
{
    CUDA_SHARED(float, room);
    out[0] = room[threadIdx.x + 4];
}

static const struct {
    void (*kernel)(float *);
    unsigned threads;
    size_t shared_bytes;
} mistakes[] = {
    {late_kernel, 64, 0}, {split_kernel, 64, 0},  {lanes_kernel, 32, 0},
    {mask_kernel, 32, 0}, {beyond_kernel, 32, 0}, {shared_beyond_kernel, 1, 16},
};
enum { MISTAKES = sizeof mistakes / sizeof mistakes[0] };

/* beyond_kernel writes into the gap that is checked when the buffer is freed, or past its page. */
START_TEST(mistakes_end_the_program)
{
    CUDA_LAUNCH(mistakes[_i].kernel, 1, mistakes[_i].threads, mistakes[_i].shared_bytes, stream,
                cells);
    (void)device_wait(gpu_pool);
    device_buffer_free(gpu, cells);
    cells = nullptr;
}
END_TEST

static __global__ void unset_kernel(float *out)
{
    __shared__ float set[64];
    CUDA_SHARED(float, room);
    out[threadIdx.x] = set[threadIdx.x];
    out[64 + threadIdx.x] = room[threadIdx.x];
    set[threadIdx.x] = room[threadIdx.x] = 1; /* is gone in the next block */
}

START_TEST(unset_shared_memory_is_nan)
{
    CUDA_LAUNCH(unset_kernel, 2, 64, 64 * sizeof(float), stream, cells);
    ck_assert(std::isnan(cell(0)) && std::isnan(cell(63)));
    ck_assert(std::isnan(cell(64)) && std::isnan(cell(127)));
}
END_TEST

static __global__ void race_kernel(float *out)
{
    __shared__ float turn[64];
    turn[threadIdx.x] = (float)threadIdx.x; /* a barrier is missing here */
    out[threadIdx.x] = turn[threadIdx.x == 0 ? 63 : threadIdx.x - 1];
}

START_TEST(a_missing_barrier_shows_in_some_order)
{
    CUDA_LAUNCH(race_kernel, 1, 64, 0, stream, cells);
    float forwards = cell(5);
    emulation_set_order(1);
    CUDA_LAUNCH(race_kernel, 1, 64, 0, stream, cells);
    ck_assert(forwards == 4 && std::isnan(cell(5)));
}
END_TEST

static Suite *threads_suite(void)
{
    Suite *suite = suite_create("threads_emulated");
    TCase *all = tcase_create("right");
    tcase_add_checked_fixture(all, setup, teardown);
    tcase_add_test(all, threads_meet);
    tcase_add_test(all, lanes_exchange);
    tcase_add_test(all, large_shared_memory_is_asked_for);
    tcase_add_test(all, results_come_with_waiting);
    tcase_add_test(all, graphs_repeat_work);
    tcase_add_test(all, unset_shared_memory_is_nan);
    tcase_add_test(all, a_missing_barrier_shows_in_some_order);
    suite_add_tcase(suite, all);
    TCase *wrong = tcase_create("wrong");
    tcase_add_checked_fixture(wrong, setup, teardown);
    tcase_add_loop_test_raise_signal(wrong, mistakes_end_the_program, SIGABRT, 0, 4);
    tcase_add_loop_test_raise_signal(wrong, mistakes_end_the_program, SIGSEGV, 4, MISTAKES);
    suite_add_tcase(suite, wrong);
    return suite;
}

int main(void)
{
    SRunner *runner = srunner_create(threads_suite());
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
