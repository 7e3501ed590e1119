/* What tests of the model share: a model with its slab and image, packed random sequences. */
#ifndef FORESIGHT_TESTS_MODEL_FIXTURE_H
#define FORESIGHT_TESTS_MODEL_FIXTURE_H

#include "core/rng.h"
#include "kernels/device.h"
#include "model/forward.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const fixture_isa_names[] = {"ref", "avx2", "avx512"};

struct model_fixture {
    struct model_layout *layout;
    const struct kernel_table *kernels;
    struct rl_pool *pool;
    float *master;
    void *image;
    struct model_context context;
};

/* False if this machine has no such instruction set. */
static inline bool fixture_has_isa(enum kernel_isa isa)
{
    return isa <= kernel_isa_best();
}

static inline void fixture_publish(struct model_fixture *f)
{
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
    ck_assert_int_eq(model_layout_create(arch, options->dtype, 512, &f->layout), RL_OK);
    ck_assert_int_eq(kernel_table_get(options->isa, &f->kernels), RL_OK);
    if (options->threads > 1) {
        ck_assert_int_eq(rl_pool_create(options->threads, &f->pool), RL_OK);
    }
    size_t bytes = (size_t)f->layout->master_count * sizeof(float);
    ck_assert_int_eq(device_alloc(bytes, "weights", &data), RL_OK);
    f->master = data;
    ck_assert_int_eq(device_alloc(f->layout->image_bytes, "image", &f->image), RL_OK);
    f->context =
        (struct model_context){.layout = f->layout, .kernels = f->kernels, .pool = f->pool};
}

static inline void fixture_destroy(struct model_fixture *f)
{
    device_free(f->image);
    device_free(f->master);
    rl_pool_destroy(f->pool);
    model_layout_destroy(f->layout);
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
