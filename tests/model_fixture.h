/* What tests of the model share: a model with its slab and image, packed random sequences. On the
 * CPU or, with KERNEL_ISA_CUDA, on the first GPU, which is the emulated one in programs built with
 * SUPPORT_EMULATED. */
#ifndef FORESIGHT_TESTS_MODEL_FIXTURE_H
#define FORESIGHT_TESTS_MODEL_FIXTURE_H

#include "core/rng.h"
#include "kernels/device.h"
#include "model/forward.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef SUPPORT_EMULATED
#define SUPPORT_EMULATED 0
#endif

static const char *const fixture_isa_names[] = {"ref", "avx2", "avx512", "cuda"};

struct model_fixture {
    struct model_layout *layout;
    const struct kernel_table *kernels;
    struct device *device; /* NULL: the CPU */
    struct rl_pool *pool;
    float *master; /* the host's */
    void *image;   /* the device's */
    struct model_context context;
};

/* False if this machine has no such instruction set, or no GPU; or if FORESIGHT_TEST_TABLE names
 * another one. */
static inline bool fixture_has_isa(enum kernel_isa isa)
{
    struct device_survey survey;
    const char *only = getenv("FORESIGHT_TEST_TABLE");
    if (only != NULL && strcmp(only, fixture_isa_names[isa]) != 0) {
        return false;
    }
    if (isa != KERNEL_ISA_CUDA) {
        return !SUPPORT_EMULATED && isa <= kernel_isa_best();
    }
    device_gpu_survey(&survey);
    return survey.count > 0;
}

static inline void fixture_publish_device(struct model_fixture *f)
{
    size_t bytes = (size_t)f->layout->master_count * sizeof(float);
    void *master = NULL;
    ck_assert_int_eq(device_buffer_alloc(f->device, bytes, "weights", &master), RL_OK);
    device_write(f->pool, master, f->master, bytes);
    model_params_publish(f->layout, f->kernels, master, f->image, f->pool);
    ck_assert_int_eq(device_wait(f->pool), RL_OK);
    device_buffer_free(f->device, master);
}

static inline void fixture_publish(struct model_fixture *f)
{
    if (f->device != NULL) {
        fixture_publish_device(f);
        return;
    }
    struct model_quantize_args to = {f->layout, f->kernels, f->image};
    struct model_layout *wide = NULL;
    void *image = NULL;
    if (f->layout->dtype != KERNEL_INT8) {
        model_params_publish(f->layout, f->kernels, f->master, f->image, f->pool);
        return;
    }
    ck_assert_int_eq(model_layout_create(&f->layout->arch, KERNEL_FP32, 1, &wide), RL_OK);
    ck_assert_int_eq(device_alloc(wide->image_bytes, "image", &image), RL_OK);
    model_params_publish(wide, f->kernels, f->master, image, f->pool);
    model_image_quantize(wide, image, &to, f->pool);
    device_free(image);
    model_layout_destroy(wide);
}

struct fixture_options {
    enum kernel_isa isa;
    enum kernel_dtype dtype;
    int threads;
};

static inline void fixture_create(struct model_fixture *f, const struct model_architecture *arch,
                                  const struct fixture_options *options)
{
    void *data = NULL;
    memset(f, 0, sizeof *f);
    ck_assert_int_eq(kernel_table_get(options->isa, &f->kernels), RL_OK);
    bool gpu = options->isa == KERNEL_ISA_CUDA;
    if (options->threads > 1 || gpu) {
        ck_assert_int_eq(rl_pool_create(options->threads, &f->pool), RL_OK);
    }
    if (gpu) {
        ck_assert_int_eq(device_gpu_open(0, &f->device), RL_OK);
        ck_assert_int_eq(device_stream_start(f->device, f->pool), RL_OK);
    }
    ck_assert_int_eq(
        model_layout_create_on(f->device, f->pool, arch, options->dtype, 512, &f->layout), RL_OK);
    size_t bytes = (size_t)f->layout->master_count * sizeof(float);
    ck_assert_int_eq(device_alloc(bytes, "weights", &data), RL_OK);
    f->master = data;
    ck_assert_int_eq(device_buffer_alloc(f->device, f->layout->image_bytes, "image", &f->image),
                     RL_OK);
    f->context =
        (struct model_context){.layout = f->layout, .kernels = f->kernels, .pool = f->pool};
}

static inline void fixture_destroy(struct model_fixture *f)
{
    device_buffer_free(f->device, f->image);
    device_free(f->master);
    model_layout_destroy(f->layout);
    device_stream_stop(f->pool);
    rl_pool_destroy(f->pool);
    device_close(f->device);
}

/* A small model in which everything matters: norms and biases random too. */
static inline void fixture_randomise(struct model_fixture *f, uint64_t seed)
{
    struct rl_rng rng = rl_rng_make(seed, 7);
    for (int32_t i = 0; i < f->layout->tensor_count; i++) {
        const struct model_tensor *t = &f->layout->tensors[i];
        for (int64_t j = 0; j < t->rows * t->cols; j++) {
            double scale = t->matrix ? 0.15 : 0.1;
            double base = t->kind == MODEL_KIND_SCALE ? 1.0 : 0.0;
            f->master[t->offset + j] = (float)(base + scale * rl_rng_next_normal(&rng));
        }
    }
    fixture_publish(f);
}

static inline float *fixture_floats(int64_t count)
{
    void *data = NULL;
    ck_assert_int_eq(device_alloc((size_t)count * sizeof(float), "test", &data), RL_OK);
    return data;
}

/* Zeros in the memory of the fixture's device; a copy of such memory in the host's. Freed with
 * device_buffer_free and device_free. */
static inline float *fixture_device_floats(const struct model_fixture *f, int64_t count)
{
    void *data = NULL;
    ck_assert_int_eq(device_buffer_alloc(f->device, (size_t)count * sizeof(float), "test", &data),
                     RL_OK);
    return data;
}

static inline float *fixture_download(const struct model_fixture *f, const float *from,
                                      int64_t count)
{
    float *data = fixture_floats(count);
    ck_assert_int_eq(device_read(f->pool, data, from, (size_t)count * sizeof(float)), RL_OK);
    return data;
}

/* The fixture's weights as an image in the memory of the context's device. Caller frees it with
 * device_buffer_free. */
static inline void *fixture_image_on(const struct model_fixture *f,
                                     const struct model_context *context)
{
    const struct model_layout *layout = context->layout;
    const size_t bytes = (size_t)layout->master_count * sizeof(float);
    void *master = NULL;
    void *image = NULL;
    ck_assert_int_eq(device_buffer_alloc(layout->device, bytes, "weights", &master), RL_OK);
    ck_assert_int_eq(device_buffer_alloc(layout->device, layout->image_bytes, "image", &image),
                     RL_OK);
    device_write(context->pool, master, f->master, bytes);
    model_params_publish(layout, context->kernels, master, image, context->pool);
    ck_assert_int_eq(device_wait(context->pool), RL_OK);
    device_buffer_free(layout->device, master);
    return image;
}

/* Tiny architectures: 0 Qwen3 (per-head norms, GQA, tied), 1 Qwen2 (biases, window), 2 Llama,
 * 3 the first one wider: several panels, and a vocabulary of several head chunks. */
static inline struct model_architecture fixture_architecture(int which)
{
    struct model_architecture a = {
        .name = "Qwen3ForCausalLM",
        .layers = 2,
        .width = 48,
        .heads = 4,
        .kv_heads = 2,
        .head_dim = 16,
        .ffn = 56,
        .vocab = 90,
        .max_position = 512,
        .tied = true,
        .qk_norm = true,
        .norm_epsilon = 1e-6F,
        .initializer_range = 0.02,
        .rope_theta = 10000.0,
        .rope_factor = 1.0,
        .rope_attention_factor = 1.0,
        .rope_original_max_position = 512,
        .bos_id = -1,
        .pad_id = -1,
    };
    if (which == 1) {
        snprintf(a.name, sizeof a.name, "Qwen2ForCausalLM");
        a.qk_norm = false;
        a.qkv_bias = true;
        a.window = 21;
        a.window_first_layer = 1;
    } else if (which == 2) {
        snprintf(a.name, sizeof a.name, "LlamaForCausalLM");
        a.qk_norm = a.tied = false;
        a.kv_heads = 1;
        a.qkv_bias = a.o_bias = a.mlp_bias = true;
        a.activation = KERNEL_GELU_TANH;
    } else if (which == 3) {
        a.width = 160;
        a.head_dim = 64;
        a.ffn = 300;
        a.vocab = 2 * KERNEL_HEAD_CHUNK + 77;
    }
    return a;
}

#endif
