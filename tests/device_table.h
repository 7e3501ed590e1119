/* The CUDA table as the programs that test kernels see it: each op takes the host's buffers of
 * kernel_support.h, copies those that a GPU owns to the device (guard zones and all, packed weights
 * in the device's order), runs there, and copies back. The device is a GPU, or the emulated one in
 * programs built with SUPPORT_EMULATED. Included by kernel_support.h. */
#ifndef FORESIGHT_TESTS_DEVICE_TABLE_H
#define FORESIGHT_TESTS_DEVICE_TABLE_H

#include "kernels/device.h"

#include <unistd.h>

#if SUPPORT_EMULATED
#include "tests/emulation/emulation.h"
#endif

enum { MIRROR_AREAS = 16 };

/* An area on the device while an op runs. */
struct mirror {
    struct area *area;
    char *block; /* device: guard, data, guard */
};

static struct {
    pid_t owner; /* a GPU's context does not survive fork() */
    struct device *device;
    struct rl_pool *pool;
    struct mirror mirrors[MIRROR_AREAS];
    int count;
} support_gpu;

/* In the order of the other layout: packed panels to rows, or back. */
static void mirror_permute(const struct area *a, const char *from, char *to, bool to_rows)
{
    for (int64_t n = 0; n < (a->packed_n + 31) / 32 * 32; n++) {
        for (int64_t k = 0; k < a->packed_k; k++) {
            int64_t panel = (n / 32 * a->packed_k + k) * 32 + n % 32;
            int64_t row = n * a->packed_k + k;
            size_t source = (size_t)(to_rows ? panel : row);
            size_t target = (size_t)(to_rows ? row : panel);
            if (a->packed_width > 0) {
                memcpy(to + target * a->packed_width, from + source * a->packed_width,
                       a->packed_width);
            } else if ((from[source / 8] >> (source % 8) & 1) != 0) { /* a mask of bits */
                to[target / 8] = (char)(to[target / 8] | 1 << (target % 8));
            } else {
                to[target / 8] = (char)(to[target / 8] & ~(1 << (target % 8)));
            }
        }
    }
}

static size_t mirror_guard(const struct area *a)
{
    return a->written ? SUPPORT_GUARD : 0;
}

static void mirror_copy(const struct mirror *m, bool up)
{
    const struct area *a = m->area;
    size_t bytes = a->bytes + 2 * mirror_guard(a);
    char *block = malloc(bytes + 1);
    if (block == NULL) {
        abort();
    }
    memcpy(block, a->block, bytes);
    char *data = block + mirror_guard(a);
    if (up) {
        if (a->packed_n > 0) {
            mirror_permute(a, a->data, data, true);
        }
        device_write(support_gpu.pool, m->block, block, bytes);
    } else if (device_read(support_gpu.pool, block, m->block, bytes) != RL_OK) {
        abort();
    } else {
        memcpy(a->block, block, bytes);
        if (a->packed_n > 0) {
            mirror_permute(a, data, a->data, false);
        }
    }
    free(block);
}

/* The device's counterpart of a pointer into some area. */
static void *mirror_pointer(void *host)
{
    struct area *area = support_find_area(host);
    if (area == NULL) {
        fprintf(stderr, "an op's array is in no test buffer\n");
        abort();
    }
    ptrdiff_t offset = (char *)host - area->data + (ptrdiff_t)mirror_guard(area);
    for (int i = 0; i < support_gpu.count; i++) {
        if (support_gpu.mirrors[i].area == area) {
            return support_gpu.mirrors[i].block + offset;
        }
    }
    void *block = NULL;
    if (support_gpu.count == MIRROR_AREAS ||
        device_buffer_alloc(support_gpu.device, area->bytes + 2 * mirror_guard(area), "test buffer",
                            &block) != RL_OK) {
        abort();
    }
    struct mirror *m = &support_gpu.mirrors[support_gpu.count++];
    *m = (struct mirror){.area = area, .block = block};
    mirror_copy(m, true);
    return m->block + offset;
}

/* Replace the pointers at `members` (offsets into the args) by the device's. */
static void mirror_begin(void *args, const size_t *members, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        void *host = NULL;
        memcpy(&host, (char *)args + members[i], sizeof host);
        if (host != NULL) {
            void *device = mirror_pointer(host);
            memcpy((char *)args + members[i], &device, sizeof device);
        }
    }
}

static void mirror_end(void)
{
    if (device_wait(support_gpu.pool) != RL_OK) {
        abort();
    }
    for (int i = 0; i < support_gpu.count; i++) {
        mirror_copy(&support_gpu.mirrors[i], false);
        device_buffer_free(support_gpu.device, support_gpu.mirrors[i].block);
    }
    support_gpu.count = 0;
}

/* The members of each args struct that are device memory. */
#define AT(args, member) offsetof(struct args, member)
static const size_t members_kernel_pass_args[1] = {SIZE_MAX}; /* none */
static const size_t members_kernel_linear_pack_args[] = {
    AT(kernel_linear_pack_args, w), AT(kernel_linear_pack_args, packed),
    AT(kernel_linear_pack_args, previous), AT(kernel_linear_pack_args, changed)};
static const size_t members_kernel_linear_quantize_args[] = {
    AT(kernel_linear_quantize_args, w), AT(kernel_linear_quantize_args, packed)};
static const size_t members_kernel_linear_args[] = {
    AT(kernel_linear_args, w), AT(kernel_linear_args, bias), AT(kernel_linear_args, x),
    AT(kernel_linear_args, y), AT(kernel_linear_args, dw),   AT(kernel_linear_args, dbias)};
static const size_t members_kernel_linear_set_args[] = {
    AT(kernel_linear_set_args, maps[0].w),  AT(kernel_linear_set_args, maps[0].bias),
    AT(kernel_linear_set_args, maps[0].x),  AT(kernel_linear_set_args, maps[0].y),
    AT(kernel_linear_set_args, maps[0].dw), AT(kernel_linear_set_args, maps[0].dbias),
    AT(kernel_linear_set_args, maps[1].w),  AT(kernel_linear_set_args, maps[1].bias),
    AT(kernel_linear_set_args, maps[1].x),  AT(kernel_linear_set_args, maps[1].y),
    AT(kernel_linear_set_args, maps[1].dw), AT(kernel_linear_set_args, maps[1].dbias),
    AT(kernel_linear_set_args, maps[2].w),  AT(kernel_linear_set_args, maps[2].bias),
    AT(kernel_linear_set_args, maps[2].x),  AT(kernel_linear_set_args, maps[2].y),
    AT(kernel_linear_set_args, maps[2].dw), AT(kernel_linear_set_args, maps[2].dbias),
    AT(kernel_linear_set_args, dx)};
static const size_t members_kernel_embedding_args[] = {
    AT(kernel_embedding_args, w), AT(kernel_embedding_args, y), AT(kernel_embedding_args, dw)};
static const size_t members_kernel_rmsnorm_args[] = {
    AT(kernel_rmsnorm_args, x),       AT(kernel_rmsnorm_args, weight), AT(kernel_rmsnorm_args, y),
    AT(kernel_rmsnorm_args, inv_rms), AT(kernel_rmsnorm_args, dy),     AT(kernel_rmsnorm_args, dx),
    AT(kernel_rmsnorm_args, dweight),
};
static const size_t members_kernel_rope_args[] = {
    AT(kernel_rope_args, x), AT(kernel_rope_args, cosine), AT(kernel_rope_args, sine)};
static const size_t members_kernel_glu_args[] = {
    AT(kernel_glu_args, gate), AT(kernel_glu_args, up),    AT(kernel_glu_args, y),
    AT(kernel_glu_args, dy),   AT(kernel_glu_args, dgate), AT(kernel_glu_args, dup)};
static const size_t members_kernel_kv_args[] = {AT(kernel_kv_args, k), AT(kernel_kv_args, v),
                                                AT(kernel_kv_args, k_pages),
                                                AT(kernel_kv_args, v_pages)};
static const size_t members_kernel_attention_args[] = {
    AT(kernel_attention_args, q),       AT(kernel_attention_args, k_pages),
    AT(kernel_attention_args, v_pages), AT(kernel_attention_args, out),
    AT(kernel_attention_args, lse),     AT(kernel_attention_args, dout),
    AT(kernel_attention_args, dq),      AT(kernel_attention_args, dk),
    AT(kernel_attention_args, dv)};
static const size_t members_kernel_head_args[] = {
    AT(kernel_head_args, x),         AT(kernel_head_args, w),   AT(kernel_head_args, logprob),
    AT(kernel_head_args, entropy),   AT(kernel_head_args, lse), AT(kernel_head_args, g_logprob),
    AT(kernel_head_args, g_entropy), AT(kernel_head_args, dx),  AT(kernel_head_args, dw),
    AT(kernel_head_args, scratch)};
static const size_t members_kernel_decode_args[] = {
    AT(kernel_decode_args, x), AT(kernel_decode_args, w), AT(kernel_decode_args, logits),
    AT(kernel_decode_args, chunks), AT(kernel_decode_args, order)};
static const size_t members_kernel_add_args[] = {AT(kernel_add_args, y), AT(kernel_add_args, x)};
static const size_t members_kernel_blend_args[] = {AT(kernel_blend_args, y),
                                                   AT(kernel_blend_args, x)};
static const size_t members_kernel_zero_args[] = {AT(kernel_zero_args, data)};
static const size_t members_kernel_copy_args[] = {AT(kernel_copy_args, to),
                                                  AT(kernel_copy_args, from)};
static const size_t members_kernel_gather_args[] = {AT(kernel_gather_args, x),
                                                    AT(kernel_gather_args, y)};
static const size_t members_kernel_vector_pack_args[] = {
    AT(kernel_vector_pack_args, w), AT(kernel_vector_pack_args, packed),
    AT(kernel_vector_pack_args, previous), AT(kernel_vector_pack_args, changed)};
static const size_t members_kernel_hash_args[] = {AT(kernel_hash_args, words)};
static const size_t members_kernel_sum_squares_args[] = {AT(kernel_sum_squares_args, x),
                                                         AT(kernel_sum_squares_args, block_sums)};
static const size_t members_kernel_adamw_args[] = {
    AT(kernel_adamw_args, param), AT(kernel_adamw_args, m), AT(kernel_adamw_args, v),
    AT(kernel_adamw_args, grad)};
static const size_t members_kernel_adamw_pack_args[] = {
    AT(kernel_adamw_pack_args, adamw.param),   AT(kernel_adamw_pack_args, adamw.m),
    AT(kernel_adamw_pack_args, adamw.v),       AT(kernel_adamw_pack_args, adamw.grad),
    AT(kernel_adamw_pack_args, pack.w),        AT(kernel_adamw_pack_args, pack.packed),
    AT(kernel_adamw_pack_args, pack.previous), AT(kernel_adamw_pack_args, pack.changed)};
#undef AT

static const struct kernel_table *support_cuda_ops(void)
{
    const struct kernel_table *table = NULL;
    if (kernel_table_get(KERNEL_ISA_CUDA, &table) != RL_OK) {
        abort();
    }
    return table;
}

#define KERNEL_OP(name, args, tolerance)                                                           \
    static void name##_mirrored(const struct args *a, struct rl_pool *pool)                        \
    {                                                                                              \
        (void)pool;                                                                                \
        struct args copy = *a;                                                                     \
        size_t count = sizeof members_##args / sizeof members_##args[0];                           \
        mirror_begin(&copy, members_##args, members_##args[0] == SIZE_MAX ? 0 : count);            \
        support_cuda_ops()->name(&copy, support_gpu.pool);                                         \
        mirror_end();                                                                              \
    }
#include "kernels/ops.def"

static const struct kernel_table support_gpu_table = {
    .name = "cuda",
    .isa = KERNEL_ISA_CUDA,
#define KERNEL_OP(op, args, tolerance) .op = op##_mirrored,
#include "kernels/ops.def"
};

/* Open the GPU in this process; false if there is none. */
static SUPPORT_UNUSED bool support_gpu_open(void)
{
    if (support_gpu.owner != getpid()) {
        struct device_survey survey;
        device_gpu_survey(&survey);
        if (survey.count == 0 || device_gpu_open(0, &support_gpu.device) != RL_OK ||
            rl_pool_create(1, &support_gpu.pool) != RL_OK ||
            device_stream_start(support_gpu.device, support_gpu.pool) != RL_OK) {
            return false;
        }
        support_gpu.owner = getpid();
        support_gpu.count = 0;
    }
    return true;
}

#endif
