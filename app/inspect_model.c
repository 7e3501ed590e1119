/* Inspection of weights and tokenizers. */
#include "app/inspect.h"

#include "core/hash.h"
#include "core/log.h"
#include "model/folder.h"
#include "model/params.h"
#include "model/safetensors.h"
#include "model/tokenizer.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { ROPE_POSITIONS = 16 /* the tables are not used here */ };

static void set_text(json_t *object, const char *key, const char *text)
{
    json_object_set_new(object, key, json_string(text == NULL ? "" : text));
}

static void set_int(json_t *object, const char *key, int64_t value)
{
    json_object_set_new(object, key, json_integer(value));
}

/* --- safetensors ------------------------------------------------------------------------------ */

static json_t *tensor_line(const struct safetensors_entry *entry)
{
    json_t *line = json_object();
    json_t *shape = json_array();
    char hash[24];
    for (int i = 0; i < entry->rank; i++) {
        json_array_append_new(shape, json_integer(entry->shape[i]));
    }
    snprintf(hash, sizeof hash, "%016" PRIx64, rl_hash(entry->data, entry->bytes));
    set_text(line, "name", entry->name);
    set_text(line, "dtype", entry->dtype);
    json_object_set_new(line, "shape", shape);
    set_int(line, "bytes", (int64_t)entry->bytes);
    set_text(line, "xxh3", hash);
    return line;
}

static void list_tensors(const struct safetensors *file, json_t *out)
{
    int64_t elements = 0;
    int64_t bytes = 0;
    json_t *tensors = json_array();
    for (int64_t i = 0; i < safetensors_count(file); i++) {
        const struct safetensors_entry *entry = safetensors_at(file, i);
        uint64_t count = 1; /* unsigned: a product that wraps is no trap */
        for (int k = 0; k < entry->rank; k++) {
            count *= (uint64_t)entry->shape[k];
        }
        elements += (int64_t)count;
        bytes += (int64_t)entry->bytes;
        json_array_append_new(tensors, tensor_line(entry));
    }
    set_int(out, "tensor_count", safetensors_count(file));
    set_int(out, "elements", elements);
    set_int(out, "tensor_bytes", bytes);
    json_object_set_new(out, "tensors", tensors);
}

rl_status inspect_safetensors(const char *path, json_t *out)
{
    struct safetensors *file = NULL;
    set_text(out, "kind", "safetensors");
    RL_TRY(safetensors_open(path, &file));
    if (safetensors_metadata(file, "format") != NULL) {
        set_text(out, "format", safetensors_metadata(file, "format"));
    }
    list_tensors(file, out);
    safetensors_close(file);
    return RL_OK;
}

/* --- model folder ----------------------------------------------------------------------------- */

static void describe_architecture(const struct model_architecture *arch, json_t *out)
{
    set_text(out, "architecture", arch->name);
    set_int(out, "layers", arch->layers);
    set_int(out, "width", arch->width);
    set_int(out, "heads", arch->heads);
    set_int(out, "kv_heads", arch->kv_heads);
    set_int(out, "head_dim", arch->head_dim);
    set_int(out, "ffn", arch->ffn);
    set_int(out, "vocabulary", arch->vocab);
    set_int(out, "max_position", arch->max_position);
    json_object_set_new(out, "tied_embeddings", json_boolean(arch->tied));
}

static bool shape_matches(const struct model_tensor *tensor, const struct safetensors_entry *entry)
{
    if (tensor->matrix) {
        return entry->rank == 2 && entry->shape[0] == tensor->rows &&
               entry->shape[1] == tensor->cols;
    }
    return entry->rank == 1 && entry->shape[0] == tensor->cols;
}

/* Every tensor of the layout is there with its shape. */
static rl_status check_tensors(const struct model_layout *layout, const struct safetensors *file,
                               const char *dir)
{
    for (int32_t i = 0; i < layout->tensor_count; i++) {
        const struct model_tensor *tensor = &layout->tensors[i];
        const struct safetensors_entry *entry = safetensors_find(file, tensor->name);
        if (entry == NULL) {
            return rl_fail(RL_CORRUPT, "%s: tensor %s is missing", dir, tensor->name);
        }
        if (!shape_matches(tensor, entry)) {
            return rl_fail(RL_CORRUPT,
                           "%s: tensor %s: wrong shape, expected [%" PRId64 ", %" PRId64
                           "] of config.json",
                           dir, tensor->name, tensor->rows, tensor->cols);
        }
    }
    return RL_OK;
}

/* No tensor is there that the architecture does not have. */
static rl_status check_strangers(const struct model_layout *layout, const struct safetensors *file,
                                 const char *dir)
{
    for (int64_t i = 0; i < safetensors_count(file); i++) {
        const char *name = safetensors_at(file, i)->name;
        bool tied_head = layout->arch.tied && strcmp(name, "lm_head.weight") == 0;
        if (model_layout_find(layout, name) < 0 && !tied_head) {
            return rl_fail(RL_CORRUPT, "%s: tensor %s does not belong to %s", dir, name,
                           layout->arch.name);
        }
    }
    return RL_OK;
}

static rl_status inspect_weights(const char *dir, const struct model_architecture *arch,
                                 json_t *out)
{
    struct model_layout *layout = NULL;
    struct safetensors *file = NULL;
    RL_TRY(model_layout_create(arch, KERNEL_FP32, ROPE_POSITIONS, &layout));
    set_int(out, "parameters", layout->param_count);
    rl_status status = safetensors_open_folder(dir, &file);
    if (status == RL_OK) {
        list_tensors(file, out);
        status = check_tensors(layout, file, dir);
    }
    if (status == RL_OK) {
        status = check_strangers(layout, file, dir);
    }
    safetensors_close(file);
    model_layout_destroy(layout);
    return status;
}

static rl_status inspect_vocabulary(const char *dir, const struct model_architecture *arch,
                                    json_t *out)
{
    json_t *inner = json_object();
    rl_status status = inspect_tokenizer(dir, inner);
    int64_t count = json_integer_value(json_object_get(inner, "vocabulary"));
    json_object_del(inner, "kind");
    json_object_set_new(out, "tokenizer", inner);
    RL_TRY(status);
    if (count > arch->vocab) {
        return rl_fail(RL_CORRUPT,
                       "%s: the tokenizer has ids up to %" PRId64 ", the model only %d rows", dir,
                       count - 1, arch->vocab);
    }
    return RL_OK;
}

rl_status inspect_model(const char *dir, json_t *out)
{
    struct model_architecture arch;
    set_text(out, "kind", "model");
    RL_TRY(model_architecture_load(dir, &arch));
    describe_architecture(&arch, out);
    if (model_folder_has(dir, "tokenizer.json")) {
        RL_TRY(inspect_vocabulary(dir, &arch, out));
    }
    return inspect_weights(dir, &arch, out);
}

/* --- tokenizer -------------------------------------------------------------------------------- */

rl_status inspect_tokenizer(const char *dir, json_t *out)
{
    struct tokenizer *tokenizer = NULL;
    set_text(out, "kind", "tokenizer");
    RL_TRY(tokenizer_load(dir, &tokenizer));
    set_int(out, "vocabulary", tokenizer_vocab_count(tokenizer));
    set_int(out, "bos_id", tokenizer_bos_id(tokenizer));
    set_int(out, "eos_id", tokenizer_eos_id(tokenizer));
    set_int(out, "pad_id", tokenizer_pad_id(tokenizer));
    tokenizer_destroy(tokenizer);
    return RL_OK;
}
