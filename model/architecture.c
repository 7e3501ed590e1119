/* config.json and generation_config.json -> struct model_architecture. Owns the list of what is
 * understood. Invariant: whatever would change the numbers and is not understood is refused by
 * name; nothing of that kind is skipped silently. */
#include "model/architecture.h"

#include "core/log.h"
#include "model/folder.h"
#include "model/json_fields.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    CONFIG_BYTES_MAX = 16 << 20,
    LAYERS_MAX = 1024,
    WIDTH_MAX = 1 << 17,
    HEADS_MAX = 1024,
    HEAD_DIM_MAX = KERNEL_HEAD_DIM_MAX,
    FFN_MAX = 1 << 20,
    VOCAB_MAX = 1 << 22,
    POSITION_MAX = 1 << 24
};

enum family { FAMILY_LLAMA, FAMILY_QWEN2, FAMILY_QWEN3 };

static const struct {
    const char *name;
    enum family family;
} families[] = {
    {"LlamaForCausalLM", FAMILY_LLAMA},
    {"Qwen2ForCausalLM", FAMILY_QWEN2},
    {"Qwen3ForCausalLM", FAMILY_QWEN3},
};

static rl_status read_family(const struct json_fields *fields, struct model_architecture *arch,
                             enum family *family)
{
    const json_t *list = json_fields_get(fields, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    if (json_array_size(list) != 1 || name == NULL) {
        return rl_fail(RL_INVALID, "%s: architectures must be a list of one name", fields->path);
    }
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        if (strcmp(name, families[i].name) == 0) {
            snprintf(arch->name, sizeof arch->name, "%s", name);
            *family = families[i].family;
            return RL_OK;
        }
    }
    return rl_fail(RL_UNSUPPORTED,
                   "%s: architecture %.80s is not supported (LlamaForCausalLM, Qwen2ForCausalLM "
                   "and Qwen3ForCausalLM are)",
                   fields->path, name);
}

static rl_status require_all(const struct json_fields *fields)
{
    static const char *const keys[] = {"hidden_size", "intermediate_size", "num_attention_heads",
                                       "num_hidden_layers", "vocab_size"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        RL_TRY(json_fields_require(fields, keys[i]));
    }
    return RL_OK;
}

/* Where a field may be left out, the default is that of the family's class in transformers. */
static rl_status read_sizes(const struct json_fields *fields, enum family family,
                            struct model_architecture *arch)
{
    RL_TRY(require_all(fields));
    RL_TRY(json_fields_int(fields, "num_hidden_layers", 1, LAYERS_MAX, &arch->layers));
    RL_TRY(json_fields_int(fields, "hidden_size", 1, WIDTH_MAX, &arch->width));
    RL_TRY(json_fields_int(fields, "intermediate_size", 1, FFN_MAX, &arch->ffn));
    RL_TRY(json_fields_int(fields, "vocab_size", 1, VOCAB_MAX, &arch->vocab));
    RL_TRY(json_fields_int(fields, "num_attention_heads", 1, HEADS_MAX, &arch->heads));
    bool stated = json_object_get(fields->object, "num_key_value_heads") != NULL;
    arch->kv_heads = stated || family == FAMILY_LLAMA ? arch->heads : 32;
    RL_TRY(json_fields_int(fields, "num_key_value_heads", 1, HEADS_MAX, &arch->kv_heads));
    if (arch->heads % arch->kv_heads != 0) {
        return rl_fail(RL_INVALID,
                       "%s: num_attention_heads (%d) must be a multiple of num_key_value_heads "
                       "(%d)",
                       fields->path, arch->heads, arch->kv_heads);
    }
    arch->max_position = family == FAMILY_LLAMA ? 2048 : 32768;
    return json_fields_int(fields, "max_position_embeddings", 1, POSITION_MAX, &arch->max_position);
}

static rl_status read_head_dim(const struct json_fields *fields, enum family family,
                               struct model_architecture *arch)
{
    bool stated = json_fields_get(fields, "head_dim") != NULL;
    if (!stated && family != FAMILY_QWEN3 && arch->width % arch->heads != 0) {
        return rl_fail(RL_INVALID,
                       "%s: without head_dim, hidden_size (%d) must be a multiple of "
                       "num_attention_heads (%d)",
                       fields->path, arch->width, arch->heads);
    }
    arch->head_dim = family == FAMILY_QWEN3 ? 128 : arch->width / arch->heads;
    RL_TRY(json_fields_int(fields, "head_dim", 2, HEAD_DIM_MAX, &arch->head_dim));
    if (arch->head_dim % 2 != 0 || arch->head_dim < 2 || arch->head_dim > HEAD_DIM_MAX) {
        return rl_fail(RL_INVALID, "%s: head_dim is %d, must be even and in [2, %d]", fields->path,
                       arch->head_dim, HEAD_DIM_MAX);
    }
    return RL_OK;
}

static rl_status read_features(const struct json_fields *fields, enum family family,
                               struct model_architecture *arch)
{
    bool attention_bias = false;
    if (family != FAMILY_QWEN2) {
        RL_TRY(json_fields_bool(fields, "attention_bias", &attention_bias));
    }
    if (family == FAMILY_LLAMA) {
        RL_TRY(json_fields_bool(fields, "mlp_bias", &arch->mlp_bias));
    }
    arch->qkv_bias = attention_bias || family == FAMILY_QWEN2;
    arch->o_bias = attention_bias;
    arch->qk_norm = family == FAMILY_QWEN3;
    RL_TRY(json_fields_bool(fields, "tie_word_embeddings", &arch->tied));

    double epsilon = 1e-6;
    RL_TRY(json_fields_real(fields, "rms_norm_eps", 0.0, 1.0, &epsilon));
    arch->norm_epsilon = (float)epsilon;
    arch->initializer_range = 0.02;
    RL_TRY(json_fields_real(fields, "initializer_range", 0.0, 1e3, &arch->initializer_range));

    const char *activation = "silu";
    RL_TRY(json_fields_string(fields, "hidden_act", &activation));
    if (strcmp(activation, "silu") == 0 || strcmp(activation, "swish") == 0) {
        arch->activation = KERNEL_SILU;
    } else if (strcmp(activation, "gelu_pytorch_tanh") == 0) {
        arch->activation = KERNEL_GELU_TANH;
    } else {
        return rl_fail(RL_UNSUPPORTED,
                       "%s: hidden_act %.60s is not supported (silu and gelu_pytorch_tanh are)",
                       fields->path, activation);
    }
    return RL_OK;
}

static rl_status refuse_unknown(const struct json_fields *fields)
{
    static const char *const refused[] = {"quantization_config", "compression_config",
                                          "attn_logit_softcapping", "final_logit_softcapping",
                                          "logit_scale"};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        if (json_fields_get(fields, refused[i]) != NULL) {
            return rl_fail(RL_UNSUPPORTED, "%s: %s is not supported", fields->path, refused[i]);
        }
    }
    double dropout = 0.0;
    RL_TRY(json_fields_real(fields, "attention_dropout", 0.0, 1.0, &dropout));
    if (dropout != 0.0) {
        return rl_fail(RL_UNSUPPORTED, "%s: attention_dropout %g is not supported, must be 0",
                       fields->path, dropout);
    }
    return RL_OK;
}

/* layer_types may be any mixture in theory; models of these families have full layers below and
 * sliding ones above, which is what window_first_layer can say. */
static rl_status read_layer_types(const struct json_fields *fields, const json_t *types,
                                  struct model_architecture *arch)
{
    if (!json_is_array(types) || json_array_size(types) != (size_t)arch->layers) {
        return rl_fail(RL_INVALID, "%s: layer_types must be a list of num_hidden_layers (%d) names",
                       fields->path, arch->layers);
    }
    int32_t first = arch->layers;
    for (int32_t i = 0; i < arch->layers; i++) {
        const char *type = json_string_value(json_array_get(types, (size_t)i));
        bool sliding = type != NULL && strcmp(type, "sliding_attention") == 0;
        if (!sliding && (type == NULL || strcmp(type, "full_attention") != 0)) {
            return rl_fail(RL_UNSUPPORTED,
                           "%s: layer_types[%d] is not full_attention or sliding_attention",
                           fields->path, i);
        }
        if (sliding && first == arch->layers) {
            first = i;
        } else if (!sliding && first < arch->layers) {
            return rl_fail(RL_UNSUPPORTED,
                           "%s: layer_types[%d] is full_attention above a sliding layer; only "
                           "full layers below and sliding layers above are supported",
                           fields->path, i);
        }
    }
    arch->window_first_layer = first;
    return RL_OK;
}

static rl_status read_window(const struct json_fields *fields, enum family family,
                             struct model_architecture *arch)
{
    if (family == FAMILY_LLAMA) {
        return RL_OK;
    }
    bool use = false;
    RL_TRY(json_fields_bool(fields, "use_sliding_window", &use));
    int32_t window = json_object_get(fields->object, "sliding_window") == NULL ? 4096 : 0;
    RL_TRY(json_fields_int(fields, "sliding_window", 0, POSITION_MAX, &window));
    arch->window_first_layer = 28;
    RL_TRY(
        json_fields_int(fields, "max_window_layers", 0, POSITION_MAX, &arch->window_first_layer));
    const json_t *types = json_fields_get(fields, "layer_types");
    if (types != NULL) {
        RL_TRY(read_layer_types(fields, types, arch));
    }
    bool slides = use && window > 0;
    if (types != NULL && !slides && arch->window_first_layer < arch->layers) {
        return rl_fail(RL_INVALID,
                       "%s: layer_types has sliding layers but use_sliding_window or "
                       "sliding_window is not set",
                       fields->path);
    }
    arch->window = slides && arch->window_first_layer < arch->layers ? window : 0;
    arch->window_first_layer = arch->window > 0 ? arch->window_first_layer : 0;
    return RL_OK;
}

static rl_status read_rope_type(const struct json_fields *rope, struct model_architecture *arch)
{
    const char *type = "default";
    RL_TRY(json_fields_string(rope, "type", &type));
    RL_TRY(json_fields_string(rope, "rope_type", &type));
    static const char *const names[] = {"default", "linear", "llama3", "yarn"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(type, names[i]) == 0) {
            arch->rope_type = (enum model_rope_type)i;
            return RL_OK;
        }
    }
    return rl_fail(RL_UNSUPPORTED,
                   "%s: %srope_type %.60s is not supported (default, linear, llama3 and yarn are)",
                   rope->path, rope->prefix, type);
}

static double yarn_scale(double factor, double mscale)
{
    return factor <= 1.0 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

static rl_status read_yarn(const struct json_fields *rope, struct model_architecture *arch)
{
    arch->rope_beta_fast = 32.0;
    arch->rope_beta_slow = 1.0;
    arch->rope_truncate = true;
    RL_TRY(json_fields_real(rope, "beta_fast", 1e-6, 1e6, &arch->rope_beta_fast));
    RL_TRY(json_fields_real(rope, "beta_slow", 1e-6, 1e6, &arch->rope_beta_slow));
    RL_TRY(json_fields_bool(rope, "truncate", &arch->rope_truncate));
    double mscale = 0.0;
    double mscale_all_dim = 0.0;
    RL_TRY(json_fields_real(rope, "mscale", 0.0, 1e3, &mscale));
    RL_TRY(json_fields_real(rope, "mscale_all_dim", 0.0, 1e3, &mscale_all_dim));
    arch->rope_attention_factor = yarn_scale(arch->rope_factor, 1.0);
    if (mscale > 0.0 && mscale_all_dim > 0.0) {
        arch->rope_attention_factor =
            yarn_scale(arch->rope_factor, mscale) / yarn_scale(arch->rope_factor, mscale_all_dim);
    }
    return json_fields_real(rope, "attention_factor", 1e-6, 1e6, &arch->rope_attention_factor);
}

static rl_status read_llama3(const struct json_fields *rope, struct model_architecture *arch)
{
    RL_TRY(json_fields_require(rope, "low_freq_factor"));
    RL_TRY(json_fields_require(rope, "high_freq_factor"));
    RL_TRY(json_fields_real(rope, "low_freq_factor", 1e-6, 1e6, &arch->rope_low_freq_factor));
    RL_TRY(json_fields_real(rope, "high_freq_factor", 1e-6, 1e6, &arch->rope_high_freq_factor));
    if (arch->rope_high_freq_factor <= arch->rope_low_freq_factor) {
        return rl_fail(RL_INVALID, "%s: %shigh_freq_factor must be greater than low_freq_factor",
                       rope->path, rope->prefix);
    }
    return RL_OK;
}

static rl_status refuse_partial_rotary(const struct json_fields *fields)
{
    double partial = 1.0;
    RL_TRY(json_fields_real(fields, "partial_rotary_factor", 0.0, 1.0, &partial));
    if (partial != 1.0) {
        return rl_fail(RL_UNSUPPORTED, "%s: %spartial_rotary_factor %g is not supported, must be 1",
                       fields->path, fields->prefix, partial);
    }
    return RL_OK;
}

/* Newer files have everything in rope_parameters; older ones have rope_theta beside rope_scaling.
 */
static rl_status read_rope(const struct json_fields *fields, struct model_architecture *arch)
{
    arch->rope_theta = 10000.0;
    arch->rope_factor = 1.0;
    arch->rope_attention_factor = 1.0;
    arch->rope_original_max_position = arch->max_position;
    RL_TRY(json_fields_real(fields, "rope_theta", 1.0001, 1e15, &arch->rope_theta));
    RL_TRY(refuse_partial_rotary(fields));
    const char *key = "rope_parameters";
    if (json_fields_get(fields, key) == NULL) {
        key = "rope_scaling";
    }
    const json_t *object = json_fields_get(fields, key);
    if (object == NULL) {
        return RL_OK;
    }
    if (!json_is_object(object)) {
        return rl_fail(RL_INVALID, "%s: %s must be an object or null", fields->path, key);
    }
    struct json_fields rope = {fields->path, key[5] == 'p' ? "rope_parameters." : "rope_scaling.",
                               object};
    if (json_fields_get(&rope, "full_attention") != NULL) {
        return rl_fail(RL_UNSUPPORTED, "%s: %s by layer type is not supported", fields->path, key);
    }
    RL_TRY(refuse_partial_rotary(&rope));
    RL_TRY(json_fields_real(&rope, "rope_theta", 1.0001, 1e15, &arch->rope_theta));
    RL_TRY(read_rope_type(&rope, arch));
    if (arch->rope_type == MODEL_ROPE_DEFAULT) {
        return RL_OK;
    }
    RL_TRY(json_fields_require(&rope, "factor"));
    RL_TRY(json_fields_real(&rope, "factor", 1e-3, 1e6, &arch->rope_factor));
    RL_TRY(json_fields_int(&rope, "original_max_position_embeddings", 1, POSITION_MAX,
                           &arch->rope_original_max_position));
    RL_TRY(json_fields_int(fields, "original_max_position_embeddings", 1, POSITION_MAX,
                           &arch->rope_original_max_position));
    if (arch->rope_type == MODEL_ROPE_LLAMA3) {
        return read_llama3(&rope, arch);
    }
    return arch->rope_type == MODEL_ROPE_YARN ? read_yarn(&rope, arch) : RL_OK;
}

static rl_status read_eos(const struct json_fields *fields, struct model_architecture *arch)
{
    const json_t *eos = json_fields_get(fields, "eos_token_id");
    if (eos == NULL) {
        return RL_OK;
    }
    size_t count = json_is_array(eos) ? json_array_size(eos) : 1;
    if (count > MODEL_EOS_MAX) {
        return rl_fail(RL_INVALID, "%s: eos_token_id has %zu ids, at most %d are supported",
                       fields->path, count, MODEL_EOS_MAX);
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_is_array(eos) ? json_array_get(eos, i) : eos;
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) > VOCAB_MAX) {
            return rl_fail(RL_INVALID,
                           "%s: eos_token_id must be an integer in [0, %d] or a list of such",
                           fields->path, VOCAB_MAX);
        }
        arch->eos_ids[i] = (int32_t)json_integer_value(id);
    }
    arch->eos_count = (int32_t)count;
    return RL_OK;
}

/* Some files write -1 for "none". */
static rl_status read_special_ids(const struct json_fields *fields, struct model_architecture *arch)
{
    RL_TRY(json_fields_int(fields, "bos_token_id", -1, VOCAB_MAX, &arch->bos_id));
    RL_TRY(json_fields_int(fields, "pad_token_id", -1, VOCAB_MAX, &arch->pad_id));
    return read_eos(fields, arch);
}

static rl_status read_config(const struct json_fields *fields, struct model_architecture *arch)
{
    enum family family = FAMILY_LLAMA;
    RL_TRY(read_family(fields, arch, &family));
    RL_TRY(refuse_unknown(fields));
    RL_TRY(read_sizes(fields, family, arch));
    RL_TRY(read_head_dim(fields, family, arch));
    RL_TRY(read_features(fields, family, arch));
    RL_TRY(read_window(fields, family, arch));
    RL_TRY(read_rope(fields, arch));
    arch->bos_id = -1;
    arch->pad_id = -1;
    if (family == FAMILY_LLAMA) {
        arch->bos_id = json_object_get(fields->object, "bos_token_id") == NULL ? 1 : -1;
        arch->eos_count = json_object_get(fields->object, "eos_token_id") == NULL ? 1 : 0;
        arch->eos_ids[0] = 2;
    }
    return read_special_ids(fields, arch);
}

static rl_status read_file(const char *dir, const char *name,
                           rl_status (*read)(const struct json_fields *,
                                             struct model_architecture *),
                           struct model_architecture *arch)
{
    char path[MODEL_PATH_BYTES];
    RL_TRY(model_folder_path(dir, name, path));
    json_t *root = NULL;
    RL_TRY(json_fields_load(path, CONFIG_BYTES_MAX, &root));
    struct json_fields fields = {path, "", root};
    rl_status status = read(&fields, arch);
    json_decref(root);
    return status;
}

rl_status model_architecture_load(const char *dir, struct model_architecture *out)
{
    struct model_architecture arch = {0};
    RL_TRY(read_file(dir, "config.json", read_config, &arch));
    if (model_folder_has(dir, "generation_config.json")) {
        RL_TRY(read_file(dir, "generation_config.json", read_special_ids, &arch));
    }
    *out = arch;
    return RL_OK;
}
