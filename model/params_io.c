/* Master slabs to and from model folders. Owns the rules of what a folder must hold. Invariant: a
 * load either fills every parameter from exactly one tensor of the right shape, or fails. */
#include "model/params.h"

#include "core/log.h"
#include "kernels/bf16.h"
#include "model/folder.h"
#include "model/safetensors.h"
#include "transport/atomic_file.h"

#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CAST_CHUNK = 1 << 16, LOAD_BLOCK_FLOATS = 1 << 18 };

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

/* The tensor's entry, which has its shape. */
static rl_status find_entry(const char *dir, const struct safetensors *file,
                            const struct model_tensor *tensor, const struct safetensors_entry **out)
{
    const struct safetensors_entry *entry = safetensors_find(file, tensor->name);
    if (entry == NULL) {
        return rl_fail(RL_INVALID, "%s: tensor %s is missing", dir, tensor->name);
    }
    RL_TRY(check_shape(dir, tensor, entry));
    RL_TRY(safetensors_check_dtype(entry));
    *out = entry;
    return RL_OK;
}

/* Some tied checkpoints carry the head as well; it must then say the same as the embedding. */
static rl_status check_tied_head(const char *dir, const struct model_layout *layout,
                                 const struct safetensors *file,
                                 const struct safetensors_entry *head)
{
    const struct safetensors_entry *embedding = NULL;
    const struct model_tensor *tensor = model_layout_tensor(layout, MODEL_PARAM_HEAD, -1);
    static const char *const text = "tie_word_embeddings is true but lm_head.weight differs from "
                                    "the embedding";
    RL_TRY(find_entry(dir, file, tensor, &embedding));
    RL_TRY(check_shape(dir, tensor, head));
    RL_TRY(safetensors_check_dtype(head));
    float *rows = malloc((size_t)tensor->cols * 2 * sizeof(float));
    if (rows == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory to compare lm_head.weight", dir);
    }
    bool same = true;
    for (int64_t row = 0; row < tensor->rows && same; row++) {
        safetensors_to_fp32(embedding, row * tensor->cols, tensor->cols, rows);
        safetensors_to_fp32(head, row * tensor->cols, tensor->cols, rows + tensor->cols);
        same = memcmp(rows, rows + tensor->cols, (size_t)tensor->cols * sizeof(float)) == 0;
    }
    free(rows);
    return same ? RL_OK : rl_fail(RL_INVALID, "%s: %s", dir, text);
}

static rl_status check_left_over(const char *dir, const struct model_layout *layout,
                                 const struct safetensors *file,
                                 const struct safetensors_entry *entry)
{
    static const char buffer[] = ".rotary_emb.inv_freq"; /* written by old versions; not a weight */
    size_t length = strlen(entry->name);
    if (model_layout_find(layout, entry->name) >= 0 ||
        (length >= sizeof buffer &&
         strcmp(entry->name + length - sizeof buffer + 1, buffer) == 0)) {
        return RL_OK;
    }
    if (layout->arch.tied && strcmp(entry->name, "lm_head.weight") == 0) {
        return check_tied_head(dir, layout, file, entry);
    }
    return rl_fail(RL_INVALID, "%s: tensor %.200s does not belong to %s with this config.json", dir,
                   entry->name, layout->arch.name);
}

/* --- loading, in blocks of rows that threads take
 * ------------------------------------------------------------------------------------ */

/* Rows of one tensor: whole panels of the packed image. */
struct load_block {
    const struct model_tensor *tensor;
    const struct safetensors_entry *entry;
    int64_t first, rows;
};

struct load_job {
    const struct model_layout *layout;
    const struct kernel_table *kernels; /* of an image; NULL: a master slab */
    float *master;
    unsigned char *image;
    float *staged;        /* the largest block's rows on the layout's device; NULL: the host's */
    struct rl_pool *pool; /* of kernels; NULL where blocks are taken by the pool's threads */
    struct load_block *blocks; /* [count] */
    int count;
    atomic_int bad;        /* lowest block that has a number that is not finite; count: none */
    atomic_bool no_memory; /* for a block's rows in fp32 */
};

/* By bits, so that it is done for many numbers at once. */
static bool all_finite(const float *values, int64_t count)
{
    uint32_t bad = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        bad |= (uint32_t)((bits & 0x7f800000U) == 0x7f800000U);
    }
    return bad == 0;
}

static void pack_rows(const struct load_job *job, const struct load_block *block, float *values)
{
    const struct model_tensor *tensor = block->tensor;
    const struct model_layout *layout = job->layout;
    unsigned char *place = job->image + tensor->image_offset;
    if (job->staged != NULL) {
        size_t bytes = (size_t)(block->rows * tensor->cols) * sizeof(float);
        device_write(job->pool, job->staged, values, bytes);
        values = job->staged;
    }
    if (!tensor->matrix) {
        struct kernel_vector_pack_args vector = {
            .w = values, .packed = place, .count = tensor->cols, .dtype = layout->dtype};
        job->kernels->vector_pack(&vector, job->pool);
        return;
    }
    struct kernel_linear_pack_args pack = {
        .w = values,
        .packed = place + kernel_packed_bytes(block->first, tensor->cols, layout->dtype),
        .dtype = layout->dtype,
        .n = block->rows,
        .k = tensor->cols};
    job->kernels->linear_pack(&pack, job->pool);
}

static void note_bad_block(struct load_job *job, int index)
{
    int known = atomic_load(&job->bad);
    while (index < known && !atomic_compare_exchange_weak(&job->bad, &known, index)) {
    }
}

static void load_item(void *arg, int index)
{
    struct load_job *job = arg;
    const struct load_block *block = &job->blocks[index];
    const int64_t cols = block->tensor->cols;
    const int64_t count = block->rows * cols;
    float *values = job->kernels == NULL ? job->master + block->tensor->offset + block->first * cols
                                         : malloc((size_t)count * sizeof(float));
    if (values == NULL) {
        atomic_store(&job->no_memory, true);
        return;
    }
    safetensors_to_fp32(block->entry, block->first * cols, count, values);
    if (!all_finite(values, count)) {
        note_bad_block(job, index);
    } else if (job->kernels != NULL) {
        pack_rows(job, block, values);
    }
    if (job->kernels != NULL) {
        free(values);
    }
}

static int64_t rows_per_block(const struct model_tensor *tensor)
{
    int64_t rows = LOAD_BLOCK_FLOATS / tensor->cols / KERNEL_PANEL * KERNEL_PANEL;
    return tensor->matrix ? (rows > KERNEL_PANEL ? rows : KERNEL_PANEL) : 1;
}

/* Bytes of a block's rows in fp32. */
static size_t largest_block(const struct model_layout *layout)
{
    int64_t floats = 1;
    for (int32_t i = 0; i < layout->tensor_count; i++) {
        const struct model_tensor *tensor = &layout->tensors[i];
        int64_t each = rows_per_block(tensor);
        int64_t rows = each < tensor->rows ? each : tensor->rows;
        floats = rows * tensor->cols > floats ? rows * tensor->cols : floats;
    }
    return (size_t)floats * sizeof(float);
}

static int64_t count_blocks(const struct model_layout *layout)
{
    int64_t count = 0;
    for (int32_t i = 0; i < layout->tensor_count; i++) {
        int64_t each = rows_per_block(&layout->tensors[i]);
        count += (layout->tensors[i].rows + each - 1) / each;
    }
    return count;
}

static rl_status cut_blocks(const char *dir, const struct safetensors *file, struct load_job *job)
{
    for (int32_t i = 0; i < job->layout->tensor_count; i++) {
        const struct model_tensor *tensor = &job->layout->tensors[i];
        const struct safetensors_entry *entry = NULL;
        int64_t each = rows_per_block(tensor);
        RL_TRY(find_entry(dir, file, tensor, &entry));
        for (int64_t row = 0; row < tensor->rows; row += each) {
            int64_t left = tensor->rows - row;
            job->blocks[job->count++] = (struct load_block){
                .tensor = tensor, .entry = entry, .first = row, .rows = left < each ? left : each};
        }
    }
    return RL_OK;
}

/* The block's first number that is not finite. */
static rl_status fail_not_finite(const char *dir, const struct load_block *block)
{
    int64_t at = block->first * block->tensor->cols;
    float value = 0;
    do {
        safetensors_to_fp32(block->entry, at++, 1, &value);
    } while (isfinite(value));
    return rl_fail(RL_NONFINITE, "%s: tensor %s: element %lld is not finite", dir,
                   block->tensor->name, (long long)(at - 1));
}

static rl_status load_blocks(const char *dir, const struct safetensors *file, struct load_job *job,
                             struct rl_pool *pool)
{
    RL_TRY(cut_blocks(dir, file, job));
    atomic_init(&job->bad, job->count);
    atomic_init(&job->no_memory, false);
    if (job->staged == NULL) {
        rl_pool_run(pool, job->count, load_item, job);
    }
    for (int i = 0; job->staged != NULL && i < job->count; i++) {
        load_item(job, i); /* one after the other: they share the place */
    }
    if (atomic_load(&job->no_memory)) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory to read it", dir);
    }
    if (atomic_load(&job->bad) < job->count) {
        return fail_not_finite(dir, &job->blocks[atomic_load(&job->bad)]);
    }
    for (int64_t i = 0; i < safetensors_count(file); i++) {
        RL_TRY(check_left_over(dir, job->layout, file, safetensors_at(file, i)));
    }
    return RL_OK;
}

static rl_status load_folder(const char *dir, struct load_job *job, struct rl_pool *pool)
{
    struct safetensors *file = NULL;
    int64_t count = count_blocks(job->layout);
    RL_TRY(safetensors_open_folder(dir, &file));
    job->blocks = malloc((size_t)count * sizeof(*job->blocks));
    rl_status status = job->blocks != NULL && count <= INT_MAX
                           ? load_blocks(dir, file, job, pool)
                           : rl_fail(RL_NO_MEMORY, "%s: no memory to read it", dir);
    free(job->blocks);
    safetensors_close(file);
    return status;
}

rl_status model_params_load(const struct model_layout *layout, const char *dir, float *master,
                            struct rl_pool *pool)
{
    struct load_job job = {.layout = layout, .master = master};
    for (int32_t i = 0; i < layout->tensor_count; i++) { /* what lies between tensors is 0 */
        const struct model_tensor *tensor = &layout->tensors[i];
        int64_t end = tensor->offset + tensor->rows * tensor->cols;
        int64_t next = i + 1 < layout->tensor_count ? tensor[1].offset : layout->master_count;
        memset(master + end, 0, (size_t)(next - end) * sizeof(float));
    }
    return load_folder(dir, &job, pool);
}

rl_status model_image_load(const struct model_layout *layout, const struct kernel_table *kernels,
                           const char *dir, void *image, struct rl_pool *pool)
{
    struct device *device = layout->device;
    struct load_job job = {.layout = layout, .kernels = kernels, .image = image};
    void *staged = NULL;
    if (device != NULL) {
        RL_TRY(device_buffer_alloc(device, largest_block(layout), "weights being loaded", &staged));
        job.staged = staged;
        job.pool = pool;
    }
    rl_status status = load_folder(dir, &job, pool);
    if (status == RL_OK) {
        status = device_wait(pool);
    }
    device_buffer_free(device, staged);
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
