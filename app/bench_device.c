/* See bench_device.h. */
#include "app/bench_device.h"

#include "app/app.h"

#include "core/clock.h"
#include "core/log.h"

#include <math.h>
#include <string.h>

enum {
    COPY_BYTES_MIN = 1 << 20,
    COPY_BYTES_MAX = 1 << 30,
    PRODUCT_MIN = 64,
    PRODUCT_MAX = 8192,
    LIMIT_CALLS = 3
};

/* Of one call; shorter ones say more about the start of it. */
#define LIMIT_SECONDS 1e-3

static const struct {
    const char *name;
    double tflops;
} gpus[] = {
#define BENCH_GPU(name, tflops) {name, tflops},
#include "app/bench_gpus.def"
#undef BENCH_GPU
};

double bench_device_sheet_gflops(const struct device *device)
{
    for (size_t i = 0; i < sizeof gpus / sizeof gpus[0]; i++) {
        if (strstr(device_name(device), gpus[i].name) != NULL) {
            return gpus[i].tflops * 1e3;
        }
    }
    return 0;
}

size_t bench_device_used(const struct device *device)
{
    size_t free_bytes = 0;
    size_t total = 0;
    device_gpu_memory(device, &free_bytes, &total);
    return total - free_bytes;
}

rl_status bench_take_device(int *argc, char **argv, struct bench_machine *machine)
{
    const char *name = "cpu";
    struct device_survey survey;
    RL_TRY(app_take_value(argc, argv, "--device", &name));
    if (strcmp(name, "cpu") == 0) {
        return RL_OK;
    }
    if (strcmp(name, "cuda") != 0) {
        return rl_fail(RL_INVALID, "bench: --device %s: expected cpu or cuda", name);
    }
    device_gpu_survey(&survey);
    if (survey.count == 0) {
        return rl_fail(RL_UNSUPPORTED, "bench: --device is cuda, but there is no GPU: %s",
                       survey.problem);
    }
    RL_TRY(kernel_table_get(KERNEL_ISA_CUDA, &machine->table));
    RL_TRY(device_gpu_open(0, &machine->device));
    RL_TRY(device_stream_start(machine->device, machine->pool));
    machine->device_used = bench_device_used(machine->device);
    return RL_OK;
}

/* --- limits -------------------------------------------------------------------------------------
 */

/* A call that is timed: what it works on, and how large it is. */
struct limit_call {
    struct device *device;
    struct rl_pool *pool; /* with a stream of its own: its scratch is gone afterwards */
    const struct kernel_table *table;
    void *from, *to, *packed;
    int64_t size; /* bytes of a copy; M = N = K of a product */
    void (*run)(const struct limit_call *call);
};

static void run_copy(const struct limit_call *call)
{
    device_copy(call->pool, call->to, call->from, (size_t)call->size);
}

static void run_product(const struct limit_call *call)
{
    struct kernel_linear_args args = {.w = call->packed,
                                      .dtype = KERNEL_BF16,
                                      .x = call->from,
                                      .y = call->to,
                                      .m = call->size,
                                      .n = call->size,
                                      .k = call->size,
                                      .x_stride = call->size,
                                      .y_stride = call->size};
    call->table->linear_forward(&args, call->pool);
}

/* The shortest of some calls; the first one, which may choose an algorithm, does not count. */
static rl_status time_call(const struct limit_call *call, double *seconds)
{
    *seconds = INFINITY;
    for (int i = -1; i < LIMIT_CALLS; i++) {
        double begin = rl_clock_now_s(NULL);
        call->run(call);
        RL_TRY(device_wait(call->pool));
        *seconds = i < 0 ? *seconds : fmin(*seconds, rl_clock_now_s(NULL) - begin);
    }
    return RL_OK;
}

static void free_buffers(struct limit_call *call)
{
    void **buffers[] = {&call->from, &call->to, &call->packed};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++) {
        device_buffer_free(call->device, *buffers[i]);
        *buffers[i] = NULL;
    }
}

static rl_status prepare_copy(struct limit_call *call)
{
    RL_TRY(device_buffer_alloc(call->device, (size_t)call->size, "bandwidth", &call->from));
    return device_buffer_alloc(call->device, (size_t)call->size, "bandwidth", &call->to);
}

/* Random numbers, [size, size], from a few that are copied on and on: with zeros a GPU is faster
 * than it ever is in earnest. */
static void fill_inputs(const struct limit_call *call)
{
    float numbers[PRODUCT_MIN * PRODUCT_MIN];
    size_t filled = sizeof numbers;
    size_t bytes = (size_t)(call->size * call->size) * sizeof(float);
    struct rl_rng rng = rl_rng_make(1, 1);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        numbers[i] = (float)rl_rng_next_normal(&rng);
    }
    device_write(call->pool, call->from, numbers, filled);
    for (; filled < bytes; filled *= 2) { /* sizes are powers of two */
        device_copy(call->pool, (char *)call->from + filled, call->from, filled);
    }
}

static rl_status prepare_product(struct limit_call *call)
{
    size_t bytes = (size_t)(call->size * call->size) * sizeof(float);
    size_t packed = kernel_packed_bytes(call->size, call->size, KERNEL_BF16);
    RL_TRY(device_buffer_alloc(call->device, bytes, "product", &call->from));
    RL_TRY(device_buffer_alloc(call->device, bytes, "product", &call->to));
    RL_TRY(device_buffer_alloc(call->device, packed, "product", &call->packed));
    fill_inputs(call);
    struct kernel_linear_pack_args pack = {.w = call->from,
                                           .packed = call->packed,
                                           .dtype = KERNEL_BF16,
                                           .n = call->size,
                                           .k = call->size};
    call->table->linear_pack(&pack, call->pool);
    return RL_OK;
}

/* Twice as large until a call takes long enough, or `max`. */
static rl_status grow_call(struct limit_call *call, rl_status (*prepare)(struct limit_call *),
                           int64_t max, double *seconds)
{
    rl_status status = RL_OK;
    bool done = false;
    while (status == RL_OK && !done) {
        status = prepare(call);
        if (status == RL_OK) {
            status = time_call(call, seconds);
        }
        free_buffers(call);
        done = *seconds >= LIMIT_SECONDS || call->size >= max;
        call->size *= done ? 1 : 2;
    }
    return status;
}

static rl_status measure_limits(struct limit_call *call, struct bench_limits *out)
{
    double copy_s = 0;
    double product_s = 0;
    call->run = run_copy;
    call->size = COPY_BYTES_MIN;
    RL_TRY(grow_call(call, prepare_copy, COPY_BYTES_MAX, &copy_s));
    double copied = 2.0 * (double)call->size;
    call->run = run_product;
    call->size = PRODUCT_MIN;
    RL_TRY(grow_call(call, prepare_product, PRODUCT_MAX, &product_s));
    *out = (struct bench_limits){.fma_gflops = 2e-9 * pow((double)call->size, 3) / product_s,
                                 .read_gb_per_s = 1e-9 * copied / copy_s};
    return RL_OK;
}

rl_status bench_device_limits(struct device *device, struct bench_limits *out)
{
    struct limit_call call = {.device = device};
    RL_TRY(kernel_table_get(KERNEL_ISA_CUDA, &call.table));
    RL_TRY(rl_pool_create(1, &call.pool));
    rl_status status = device_stream_start(device, call.pool);
    if (status == RL_OK) {
        status = measure_limits(&call, out);
        device_stream_stop(call.pool);
    }
    rl_pool_destroy(call.pool);
    return status;
}
