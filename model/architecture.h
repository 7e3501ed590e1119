/* Architecture of a decoder as read from Hugging Face config.json. Plain data, immutable. */
#ifndef FORESIGHT_MODEL_ARCHITECTURE_H
#define FORESIGHT_MODEL_ARCHITECTURE_H

#include "core/status.h"
#include "kernels/kernels.h"

#include <stdbool.h>
#include <stdint.h>

enum { MODEL_EOS_MAX = 8 };
enum model_rope_type { MODEL_ROPE_DEFAULT, MODEL_ROPE_LINEAR, MODEL_ROPE_LLAMA3, MODEL_ROPE_YARN };

struct model_architecture {
    char name[64]; /* "Qwen3ForCausalLM" */
    int32_t layers, width, heads, kv_heads, head_dim, ffn, vocab;
    int32_t max_position;
    bool tied;                  /* lm_head is the embedding */
    bool qkv_bias;              /* biases on q, k, v */
    bool o_bias;                /* bias on the attention output */
    bool mlp_bias;              /* biases on gate, up, down */
    bool qk_norm;               /* per-head RMSNorm on q and k (Qwen3) */
    int32_t window;             /* sliding window, 0: none */
    int32_t window_first_layer; /* layers below this one attend to everything */
    float norm_epsilon;
    double initializer_range; /* standard deviation of random matrices */
    enum kernel_activation activation;
    enum model_rope_type rope_type;
    double rope_theta, rope_factor, rope_low_freq_factor, rope_high_freq_factor;
    double rope_beta_fast, rope_beta_slow, rope_attention_factor; /* yarn */
    bool rope_truncate;                                           /* yarn */
    int32_t rope_original_max_position;
    int32_t bos_id, pad_id; /* -1: none */
    int32_t eos_ids[MODEL_EOS_MAX];
    int32_t eos_count;
};

/* Read DIR/config.json and DIR/generation_config.json (eos, bos, pad).
 * Errors: RL_IO, RL_INVALID (field named), RL_UNSUPPORTED (architecture or feature named). */
rl_status model_architecture_load(const char *dir, struct model_architecture *out);

/* Write DIR/config.json and DIR/generation_config.json that transformers loads. `torch_dtype` is
 * "float32" or "bfloat16". */
rl_status model_architecture_save(const struct model_architecture *arch, const char *dir,
                                  const char *torch_dtype);

/* cos and sin tables [positions, D/2] (attention factor included). Sources: transformers'
 * modeling_rope_utils; Llama 3; YaRN (arXiv 2309.00071). */
void model_rope_tables(const struct model_architecture *arch, int32_t positions, float *cosine,
                       float *sine);

#endif
