/* See session_numerics.h. */
#include "app/session_numerics.h"

#include "core/hash.h"
#include "core/log.h"
#include "core/rng.h"
#include "kernels/device.h"

#include <stdlib.h>

/* Rows that are not few (kernels/cuda): few ones have the same bits or another way is taken. */
enum { PROBE_OUTPUTS = 64, PROBE_ROWS = 80 };
enum probe_array { PROBE_W, PROBE_PACKED, PROBE_X, PROBE_Y, PROBE_ARRAYS };

/* A linear map of fixed numbers, in the device's memory. */
struct numerics_probe {
    const struct session *session;
    int64_t depth;
    void *arrays[PROBE_ARRAYS];
};

/* A new array [count] of numbers of magnitudes so different that the order of a sum shows. */
static rl_status make_numbers(struct numerics_probe *probe, enum probe_array which, int64_t count)
{
    const size_t bytes = (size_t)count * sizeof(float);
    const struct rl_rng_key key = rl_rng_key_make(1, (uint64_t)which, 0);
    float *data = malloc(bytes);
    if (data == NULL) {
        return rl_fail(RL_NO_MEMORY, "%zu bytes to compare GPUs with", bytes);
    }
    for (int64_t i = 0; i < count; i++) {
        const float size = (float)(1U << (i * 7 % 5));
        data[i] = (rl_rng_uniform_float(key, (uint64_t)i) - 0.5f) * size;
    }
    rl_status status = device_buffer_alloc(probe->session->device, bytes, "numbers to compare GPUs",
                                           &probe->arrays[which]);
    if (status == RL_OK) {
        device_write(probe->session->pool, probe->arrays[which], data, bytes);
    }
    free(data);
    return status;
}

static rl_status probe_make(struct numerics_probe *probe)
{
    const struct session *session = probe->session;
    const size_t packed = kernel_packed_bytes(PROBE_OUTPUTS, probe->depth, session->layout->dtype);
    RL_TRY(make_numbers(probe, PROBE_W, PROBE_OUTPUTS * probe->depth));
    RL_TRY(make_numbers(probe, PROBE_X, PROBE_ROWS * probe->depth));
    RL_TRY(make_numbers(probe, PROBE_Y, PROBE_ROWS * PROBE_OUTPUTS));
    return device_buffer_alloc(session->device, packed, "weights to compare GPUs",
                               &probe->arrays[PROBE_PACKED]);
}

/* *hash is chained on. */
static rl_status probe_run(const struct numerics_probe *probe, uint64_t *hash)
{
    const struct session *session = probe->session;
    const enum kernel_dtype dtype = session->layout->dtype;
    float y[PROBE_ROWS * PROBE_OUTPUTS];
    const struct kernel_linear_pack_args pack = {.w = probe->arrays[PROBE_W],
                                                 .packed = probe->arrays[PROBE_PACKED],
                                                 .dtype = dtype,
                                                 .n = PROBE_OUTPUTS,
                                                 .k = probe->depth};
    const struct kernel_linear_args linear = {.w = probe->arrays[PROBE_PACKED],
                                              .dtype = dtype,
                                              .x = probe->arrays[PROBE_X],
                                              .y = probe->arrays[PROBE_Y],
                                              .m = PROBE_ROWS,
                                              .n = PROBE_OUTPUTS,
                                              .k = probe->depth,
                                              .x_stride = probe->depth,
                                              .y_stride = PROBE_OUTPUTS,
                                              .accumulate = true};
    session->kernels->linear_pack(&pack, session->pool);
    session->kernels->linear_forward(&linear, session->pool);
    RL_TRY(device_read(session->pool, y, probe->arrays[PROBE_Y], sizeof(y)));
    *hash = rl_hash_seeded(y, sizeof(y), *hash);
    return RL_OK;
}

static rl_status numerics_of_depth(const struct session *session, int64_t depth, uint64_t *hash)
{
    struct numerics_probe probe = {.session = session, .depth = depth};
    rl_status status = probe_make(&probe);
    if (status == RL_OK) {
        status = probe_run(&probe, hash);
    }
    for (int i = 0; i < PROBE_ARRAYS; i++) {
        device_buffer_free(session->device, probe.arrays[i]);
    }
    return status;
}

rl_status session_numerics(const struct session *session, uint64_t *out)
{
    const struct model_architecture *a = &session->layout->arch;
    const int64_t depths[] = {a->width, (int64_t)a->heads * a->head_dim, a->ffn};
    uint64_t hash = 0;
    for (size_t i = 0; session->device != NULL && i < sizeof(depths) / sizeof(depths[0]); i++) {
        RL_TRY(numerics_of_depth(session, depths[i], &hash));
    }
    *out = hash;
    return RL_OK;
}
