/* Master slabs to and from model folders. Owns the rules of what a folder must hold. Invariant: a
 * load either fills every parameter from exactly one tensor of the right shape, or fails. */
#include "model/params.h"

#include "core/log.h"
#include "kernels/bf16.h"
#include "model/folder.h"
#include "model/safetensors.h"
#include "transport/atomic_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CAST_CHUNK = 1 << 16 };

static rl_status check_shape(const char *dir, const struct model_tensor *tensor,
                             const struct safetensors_entry *entry)
{
    bool fits = tensor->matrix ? entry->rank == 2 && entry->shape[0] == tensor->rows &&
                                     entry->shape[1] == tensor->cols
                               : entry->rank == 1 && entry->shape[0] == tensor->cols;
    if (fits) {
        return RL_OK;
    }
    char found[128] = "";
    for (int i = 0; i < entry->rank; i++) {
        size_t used = strlen(found);
        snprintf(found + used, sizeof found - used, "%s%lld", i == 0 ? "" : ", ",
                 (long long)entry->shape[i]);
    }
    if (tensor->matrix) {
        return rl_fail(RL_INVALID, "%s: tensor %s has shape [%s], config.json wants [%lld, %lld]",
                       dir, tensor->name, found, (long long)tensor->rows, (long long)tensor->cols);
    }
    return rl_fail(RL_INVALID, "%s: tensor %s has shape [%s], config.json wants [%lld]", dir,
                   tensor->name, found, (long long)tensor->cols);
}

static rl_status load_tensor(const char *dir, const struct safetensors *file,
                             const struct model_tensor *tensor, float *values)
{
    const struct safetensors_entry *entry = safetensors_find(file, tensor->name);
    if (entry == NULL) {
        return rl_fail(RL_INVALID, "%s: tensor %s is missing", dir, tensor->name);
    }
    RL_TRY(check_shape(dir, tensor, entry));
    RL_TRY(safetensors_to_fp32(entry, values));
    int64_t count = tensor->rows * tensor->cols;
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(values[i])) {
            return rl_fail(RL_NONFINITE, "%s: tensor %s: element %lld is not finite", dir,
                           tensor->name, (long long)i);
        }
    }
    return RL_OK;
}

/* Some tied checkpoints carry the head as well; it must then say the same as the embedding. */
static rl_status check_tied_head(const char *dir, const struct model_layout *layout,
                                 const struct safetensors_entry *entry, const float *master)
{
    const struct model_tensor *embedding = model_layout_tensor(layout, MODEL_PARAM_HEAD, -1);
    RL_TRY(check_shape(dir, embedding, entry));
    size_t bytes = (size_t)(embedding->rows * embedding->cols) * sizeof(float);
    float *head = malloc(bytes);
    if (head == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory to compare lm_head.weight", dir);
    }
    rl_status status = safetensors_to_fp32(entry, head);
    if (status == RL_OK && memcmp(head, master + embedding->offset, bytes) != 0) {
        status = rl_fail(RL_INVALID,
                         "%s: tie_word_embeddings is true but lm_head.weight differs from the "
                         "embedding",
                         dir);
    }
    free(head);
    return status;
}

static rl_status check_left_over(const char *dir, const struct model_layout *layout,
                                 const struct safetensors_entry *entry, const float *master)
{
    static const char buffer[] = ".rotary_emb.inv_freq"; /* written by old versions; not a weight */
    size_t length = strlen(entry->name);
    if (model_layout_find(layout, entry->name) >= 0 ||
        (length >= sizeof buffer &&
         strcmp(entry->name + length - sizeof buffer + 1, buffer) == 0)) {
        return RL_OK;
    }
    if (layout->arch.tied && strcmp(entry->name, "lm_head.weight") == 0) {
        return check_tied_head(dir, layout, entry, master);
    }
    return rl_fail(RL_INVALID, "%s: tensor %.200s does not belong to %s with this config.json", dir,
                   entry->name, layout->arch.name);
}

static rl_status load_all(const char *dir, const struct model_layout *layout,
                          const struct safetensors *file, float *master)
{
    for (int32_t i = 0; i < layout->tensor_count; i++) {
        const struct model_tensor *tensor = &layout->tensors[i];
        RL_TRY(load_tensor(dir, file, tensor, master + tensor->offset));
    }
    for (int64_t i = 0; i < safetensors_count(file); i++) {
        RL_TRY(check_left_over(dir, layout, safetensors_at(file, i), master));
    }
    return RL_OK;
}

rl_status model_params_load(const struct model_layout *layout, const char *dir, float *master)
{
    struct safetensors *file = NULL;
    RL_TRY(safetensors_open_folder(dir, &file));
    memset(master, 0, (size_t)layout->master_count * sizeof(float));
    rl_status status = load_all(dir, layout, file, master);
    safetensors_close(file);
    return status;
}

static rl_status write_bf16(struct atomic_file *file, const float *values, int64_t count,
                            uint16_t *chunk)
{
    for (int64_t done = 0; done < count; done += CAST_CHUNK) {
        int64_t part = count - done < CAST_CHUNK ? count - done : CAST_CHUNK;
        for (int64_t i = 0; i < part; i++) {
            chunk[i] = kernel_bf16_from_float(values[done + i]);
        }
        RL_TRY(atomic_file_write(file, chunk, (size_t)part * sizeof *chunk));
    }
    return RL_OK;
}

static rl_status write_tensors(const struct model_layout *layout, const float *master,
                               enum kernel_dtype dtype, struct atomic_file *file)
{
    uint16_t *chunk = malloc(CAST_CHUNK * sizeof *chunk);
    if (chunk == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory to write the model");
    }
    rl_status status = RL_OK;
    for (int32_t i = 0; i < layout->tensor_count && status == RL_OK; i++) {
        const struct model_tensor *tensor = &layout->tensors[i];
        int64_t count = tensor->rows * tensor->cols;
        const float *values = master + tensor->offset;
        status = dtype == KERNEL_BF16
                     ? write_bf16(file, values, count, chunk)
                     : atomic_file_write(file, values, (size_t)count * sizeof(float));
    }
    free(chunk);
    return status;
}

static rl_status write_weights(const struct model_layout *layout, const float *master,
                               enum kernel_dtype dtype, const char *path)
{
    struct safetensors_entry *entries = calloc((size_t)layout->tensor_count, sizeof *entries);
    if (entries == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory to write it", path);
    }
    for (int32_t i = 0; i < layout->tensor_count; i++) {
        const struct model_tensor *tensor = &layout->tensors[i];
        size_t size = dtype == KERNEL_BF16 ? 2 : 4;
        entries[i].name = tensor->name;
        entries[i].dtype = dtype == KERNEL_BF16 ? "BF16" : "F32";
        entries[i].rank = tensor->matrix ? 2 : 1;
        entries[i].shape[0] = tensor->matrix ? tensor->rows : tensor->cols;
        entries[i].shape[1] = tensor->matrix ? tensor->cols : 0;
        entries[i].bytes = (size_t)(tensor->rows * tensor->cols) * size;
    }
    struct atomic_file *file = NULL;
    rl_status status = safetensors_write_header(path, entries, layout->tensor_count, &file);
    free(entries);
    RL_TRY(status);
    status = write_tensors(layout, master, dtype, file);
    if (status != RL_OK) {
        atomic_file_abort(file);
        return status;
    }
    return atomic_file_commit(file);
}

rl_status model_params_save(const struct model_layout *layout, const float *master,
                            enum kernel_dtype dtype, const char *dir)
{
    char path[MODEL_PATH_BYTES];
    RL_TRY(model_folder_path(dir, "model.safetensors", path));
    RL_TRY(write_weights(layout, master, dtype, path));
    return model_architecture_save(&layout->arch, dir,
                                   dtype == KERNEL_BF16 ? "bfloat16" : "float32");
}
