/* struct model_architecture -> config.json and generation_config.json. Owns the spelling: the names
 * that both old and new versions of transformers read (rope_theta beside rope_scaling). Invariant:
 * reading what was written gives the same struct. */
#include "model/architecture.h"

#include "core/text.h"
#include "model/folder.h"
#include "transport/atomic_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_TEXT_MAX = 1 << 16 };

/* Shortest decimal that reads back to the same value, so that 1e-6 stays 1e-06; with a point or an
 * exponent, since strict readers refuse "5" for a real. */
static void format_real(double value, bool single, char out[40])
{
    if (value == floor(value) && fabs(value) < 1e15) {
        snprintf(out, 40, "%.1f", value);
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(out, 40, "%.*g", digits, value);
        double back = strtod(out, NULL);
        if (single ? (float)back == (float)value : back == value) {
            break;
        }
    }
}

static rl_status put_real(struct rl_text *text, const char *key, double value)
{
    char number[40];
    format_real(value, false, number);
    return rl_text_printf(text, "  \"%s\": %s,\n", key, number);
}

static rl_status put_int(struct rl_text *text, const char *key, int32_t value)
{
    return rl_text_printf(text, "  \"%s\": %d,\n", key, value);
}

static rl_status put_bool(struct rl_text *text, const char *key, bool value)
{
    return rl_text_printf(text, "  \"%s\": %s,\n", key, value ? "true" : "false");
}

static rl_status put_id(struct rl_text *text, const char *key, int32_t id)
{
    return id < 0 ? rl_text_printf(text, "  \"%s\": null,\n", key) : put_int(text, key, id);
}

static rl_status put_special_ids(struct rl_text *text, const struct model_architecture *arch)
{
    RL_TRY(put_id(text, "bos_token_id", arch->bos_id));
    RL_TRY(put_id(text, "pad_token_id", arch->pad_id));
    if (arch->eos_count <= 1) {
        return put_id(text, "eos_token_id", arch->eos_count == 0 ? -1 : arch->eos_ids[0]);
    }
    RL_TRY(rl_text_append_str(text, "  \"eos_token_id\": ["));
    for (int32_t i = 0; i < arch->eos_count; i++) {
        RL_TRY(rl_text_printf(text, "%s%d", i == 0 ? "" : ", ", arch->eos_ids[i]));
    }
    return rl_text_append_str(text, "],\n");
}

static rl_status put_rope(struct rl_text *text, const struct model_architecture *arch)
{
    RL_TRY(put_real(text, "rope_theta", arch->rope_theta));
    if (arch->rope_type == MODEL_ROPE_DEFAULT) {
        return rl_text_append_str(text, "  \"rope_scaling\": null,\n");
    }
    static const char *const names[] = {"default", "linear", "llama3", "yarn"};
    RL_TRY(rl_text_append_str(text, "  \"rope_scaling\": {\n"));
    RL_TRY(put_real(text, "factor", arch->rope_factor));
    if (arch->rope_type == MODEL_ROPE_LLAMA3) {
        RL_TRY(put_real(text, "low_freq_factor", arch->rope_low_freq_factor));
        RL_TRY(put_real(text, "high_freq_factor", arch->rope_high_freq_factor));
    }
    if (arch->rope_type == MODEL_ROPE_YARN) {
        RL_TRY(put_real(text, "beta_fast", arch->rope_beta_fast));
        RL_TRY(put_real(text, "beta_slow", arch->rope_beta_slow));
        RL_TRY(put_real(text, "attention_factor", arch->rope_attention_factor));
        RL_TRY(put_bool(text, "truncate", arch->rope_truncate));
    }
    if (arch->rope_type != MODEL_ROPE_LINEAR) {
        RL_TRY(put_int(text, "original_max_position_embeddings", arch->rope_original_max_position));
    }
    return rl_text_printf(text, "  \"rope_type\": \"%s\"\n  },\n", names[arch->rope_type]);
}

static rl_status put_family(struct rl_text *text, const struct model_architecture *arch)
{
    bool llama = strcmp(arch->name, "LlamaForCausalLM") == 0;
    const char *type = llama ? "llama" : arch->qk_norm ? "qwen3" : "qwen2";
    RL_TRY(rl_text_printf(text, "  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n",
                          arch->name, type));
    if (llama || arch->qk_norm) {
        RL_TRY(put_bool(text, "attention_bias", arch->o_bias));
    }
    if (llama) {
        return put_bool(text, "mlp_bias", arch->mlp_bias);
    }
    RL_TRY(put_bool(text, "use_sliding_window", arch->window > 0));
    RL_TRY(put_id(text, "sliding_window", arch->window > 0 ? arch->window : -1));
    return put_int(text, "max_window_layers",
                   arch->window > 0 ? arch->window_first_layer : arch->layers);
}

static rl_status put_sizes(struct rl_text *text, const struct model_architecture *arch)
{
    RL_TRY(put_int(text, "num_hidden_layers", arch->layers));
    RL_TRY(put_int(text, "hidden_size", arch->width));
    RL_TRY(put_int(text, "intermediate_size", arch->ffn));
    RL_TRY(put_int(text, "num_attention_heads", arch->heads));
    RL_TRY(put_int(text, "num_key_value_heads", arch->kv_heads));
    RL_TRY(put_int(text, "head_dim", arch->head_dim));
    RL_TRY(put_int(text, "vocab_size", arch->vocab));
    return put_int(text, "max_position_embeddings", arch->max_position);
}

static rl_status put_config(struct rl_text *text, const struct model_architecture *arch,
                            const char *torch_dtype)
{
    char epsilon[40];
    format_real((double)arch->norm_epsilon, true, epsilon);
    RL_TRY(rl_text_append_str(text, "{\n"));
    RL_TRY(put_family(text, arch));
    RL_TRY(put_sizes(text, arch));
    RL_TRY(rl_text_printf(text, "  \"hidden_act\": \"%s\",\n  \"rms_norm_eps\": %s,\n",
                          arch->activation == KERNEL_SILU ? "silu" : "gelu_pytorch_tanh", epsilon));
    RL_TRY(put_real(text, "initializer_range", arch->initializer_range));
    RL_TRY(put_bool(text, "tie_word_embeddings", arch->tied));
    RL_TRY(put_rope(text, arch));
    RL_TRY(put_special_ids(text, arch));
    return rl_text_printf(text,
                          "  \"attention_dropout\": 0.0,\n  \"use_cache\": true,\n"
                          "  \"torch_dtype\": \"%s\"\n}\n",
                          torch_dtype);
}

static rl_status put_generation(struct rl_text *text, const struct model_architecture *arch)
{
    RL_TRY(rl_text_append_str(text, "{\n"));
    RL_TRY(put_special_ids(text, arch));
    return rl_text_append_str(text, "  \"do_sample\": true\n}\n");
}

static rl_status write_text(const char *dir, const char *name, const struct rl_text *text)
{
    char path[MODEL_PATH_BYTES];
    RL_TRY(model_folder_path(dir, name, path));
    return atomic_file_write_all(path, rl_text_str(text), text->bytes);
}

rl_status model_architecture_save(const struct model_architecture *arch, const char *dir,
                                  const char *torch_dtype)
{
    struct rl_text text;
    rl_text_init(&text, CONFIG_TEXT_MAX);
    rl_status status = RL_OK;
    RL_TRY_GOTO(put_config(&text, arch, torch_dtype), status, done);
    RL_TRY_GOTO(write_text(dir, "config.json", &text), status, done);
    rl_text_clear(&text);
    RL_TRY_GOTO(put_generation(&text, arch), status, done);
    RL_TRY_GOTO(write_text(dir, "generation_config.json", &text), status, done);
done:
    rl_text_fini(&text);
    return status;
}
