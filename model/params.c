/* Parameter tables, random weights and the image. Owns the layout of slabs and images. Invariant:
 * offsets depend on the architecture alone (image offsets on the dtype too), so slabs and images
 * can travel between processes as plain bytes. */
#include "model/params.h"

#include "core/log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { SCOPE_GLOBAL, SCOPE_LAYER };

enum { SLAB_ALIGN_FLOATS = 16, IMAGE_ALIGN_BYTES = 64 };

/* More than any machine of this program's kind can hold; keeps every product far from overflow. */
static const int64_t params_max = INT64_C(1) << 40;

struct param_rule {
    int scope;
    const char *pattern;
    enum model_param_kind kind;
};

#define PARAM(id, scope, name, rows, cols, kind, present) {SCOPE_##scope, name, MODEL_KIND_##kind},
static const struct param_rule rules[] = {
#include "model/params.def"
};

struct param_shape {
    int64_t rows, cols;
    bool present;
};

static struct param_shape param_shape(enum model_param param, const struct model_architecture *a)
{
#define PARAM(id, scope, name, rows, cols, kind, present) {rows, cols, present},
    const struct param_shape shapes[] = {
#include "model/params.def"
    };
    return shapes[param];
}

static int64_t align_up(int64_t value, int64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

/* The patterns hold at most one %d; the format is chosen here so that it stays a literal. */
static void name_tensor(struct model_tensor *tensor, const char *pattern)
{
    const char *hole = strstr(pattern, "%d");
    if (hole == NULL) {
        snprintf(tensor->name, sizeof tensor->name, "%s", pattern);
        return;
    }
    snprintf(tensor->name, sizeof tensor->name, "%.*s%d%s", (int)(hole - pattern), pattern,
             tensor->layer, hole + 2);
}

static void place_tensor(struct model_layout *layout, enum model_param param, int32_t layer)
{
    struct param_shape shape = param_shape(param, &layout->arch);
    if (!shape.present) {
        return;
    }
    struct model_tensor *tensor = &layout->tensors[layout->tensor_count];
    tensor->param = param;
    tensor->kind = rules[param].kind;
    tensor->layer = layer;
    tensor->rows = shape.rows;
    tensor->cols = shape.cols;
    tensor->matrix = tensor->kind == MODEL_KIND_MATRIX;
    name_tensor(tensor, rules[param].pattern);
    int64_t count = shape.rows * shape.cols;
    size_t bytes = tensor->matrix
                       ? kernel_packed_bytes(shape.rows, shape.cols, layout->dtype)
                       : (size_t)align_up(count * (int64_t)sizeof(float), IMAGE_ALIGN_BYTES);
    tensor->offset = layout->master_count;
    tensor->image_offset = layout->image_bytes;
    layout->master_count += align_up(count, SLAB_ALIGN_FLOATS);
    layout->param_count += count;
    layout->image_bytes += (size_t)align_up((int64_t)bytes, IMAGE_ALIGN_BYTES);
    int32_t row = layer < 0 ? layout->arch.layers : layer;
    layout->index[row * MODEL_PARAM_COUNT + (int)param] = layout->tensor_count++;
}

/* Table order is file order: global parameters before the layers, the layers, those after. */
static void place_all(struct model_layout *layout)
{
    int param = 0;
    for (; rules[param].scope == SCOPE_GLOBAL; param++) {
        place_tensor(layout, (enum model_param)param, -1);
    }
    int first = param;
    for (int32_t layer = 0; layer < layout->arch.layers; layer++) {
        for (param = first; rules[param].scope == SCOPE_LAYER; param++) {
            place_tensor(layout, (enum model_param)param, layer);
        }
    }
    for (; param < MODEL_PARAM_COUNT; param++) {
        place_tensor(layout, (enum model_param)param, -1);
    }
}

static rl_status check_size(const struct model_architecture *arch)
{
    int64_t total = 0;
    for (int param = 0; param < MODEL_PARAM_COUNT; param++) {
        struct param_shape shape = param_shape((enum model_param)param, arch);
        int64_t copies = rules[param].scope == SCOPE_LAYER ? arch->layers : 1;
        if (shape.rows > params_max / shape.cols / copies) {
            return rl_fail(RL_INVALID, "%s: a model of this size is beyond the limit of %lld",
                           arch->name, (long long)params_max);
        }
        total += shape.present ? shape.rows * shape.cols * copies : 0;
    }
    if (total > params_max) {
        return rl_fail(RL_INVALID, "%s: %lld parameters are beyond the limit of %lld", arch->name,
                       (long long)total, (long long)params_max);
    }
    return RL_OK;
}

static rl_status check_inputs(const struct model_layout *layout)
{
    for (int32_t i = 0; i < layout->tensor_count && layout->dtype == KERNEL_INT8; i++) {
        const struct model_tensor *tensor = &layout->tensors[i];
        if (tensor->matrix && tensor->cols > KERNEL_INT8_INPUTS) {
            return rl_fail(RL_INVALID, "%s has %lld inputs, at most %d fit int8 weights",
                           tensor->name, (long long)tensor->cols, KERNEL_INT8_INPUTS);
        }
    }
    return RL_OK;
}

static rl_status make_rope(struct model_layout *layout, int32_t max_positions, struct rl_pool *pool)
{
    size_t floats = (size_t)max_positions * (size_t)(layout->arch.head_dim / 2);
    void *tables = NULL;
    float *made = malloc(2 * floats * sizeof(float));
    if (made == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory to make rope tables of %d positions",
                       max_positions);
    }
    model_rope_tables(&layout->arch, max_positions, made, made + floats);
    rl_status status =
        device_buffer_alloc(layout->device, 2 * floats * sizeof(float), "rope tables", &tables);
    if (status == RL_OK) {
        layout->cosine = tables;
        layout->sine = layout->cosine + floats;
        layout->rope_positions = max_positions;
        device_write(pool, tables, made, 2 * floats * sizeof(float));
    }
    free(made);
    return status;
}

rl_status model_layout_create_on(struct device *device, struct rl_pool *pool,
                                 const struct model_architecture *arch, enum kernel_dtype dtype,
                                 int32_t max_positions, struct model_layout **out)
{
    if (max_positions < 1) {
        return rl_fail(RL_INVALID, "longest sequence is %d, must be at least 1", max_positions);
    }
    RL_TRY(check_size(arch));
    size_t rows = (size_t)arch->layers + 1;
    struct model_layout *layout = calloc(1, sizeof(*layout));
    if (layout == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for the tensor table");
    }
    layout->arch = *arch;
    layout->dtype = dtype;
    layout->device = device;
    layout->tensors = calloc(rows * MODEL_PARAM_COUNT, sizeof(*layout->tensors));
    layout->index = malloc(rows * MODEL_PARAM_COUNT * sizeof(*layout->index));
    rl_status status = RL_OK;
    if (layout->tensors == NULL || layout->index == NULL) {
        status = rl_fail(RL_NO_MEMORY, "no memory for the tensor table");
    } else {
        memset(layout->index, 0xff, rows * MODEL_PARAM_COUNT * sizeof(*layout->index));
        place_all(layout);
        status = check_inputs(layout);
    }
    if (status == RL_OK) {
        status = make_rope(layout, max_positions, pool);
    }
    if (status != RL_OK) {
        model_layout_destroy(layout);
        return status;
    }
    *out = layout;
    return RL_OK;
}

rl_status model_layout_create(const struct model_architecture *arch, enum kernel_dtype dtype,
                              int32_t max_positions, struct model_layout **out)
{
    return model_layout_create_on(NULL, NULL, arch, dtype, max_positions, out);
}

void model_layout_destroy(struct model_layout *layout)
{
    if (layout == NULL) {
        return;
    }
    device_buffer_free(layout->device, layout->cosine);
    free(layout->index);
    free(layout->tensors);
    free(layout);
}

int32_t model_layout_find(const struct model_layout *layout, const char *name)
{
    for (int32_t i = 0; i < layout->tensor_count; i++) {
        if (strcmp(layout->tensors[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

const struct model_tensor *model_layout_tensor(const struct model_layout *layout,
                                               enum model_param param, int32_t layer)
{
    if (param == MODEL_PARAM_HEAD && layout->arch.tied) {
        param = MODEL_PARAM_EMBEDDING;
    }
    int32_t row = layer < 0 ? layout->arch.layers : layer;
    int32_t at = layout->index[row * MODEL_PARAM_COUNT + (int)param];
    return at < 0 ? NULL : &layout->tensors[at];
}

/* Four normal numbers from one block of Philox: two Box-Muller pairs, in fp32 because a large model
 * draws half a billion of them. 32 bits end the tails at 6.7 standard deviations. */
static void four_normals(struct rl_rng_key key, uint64_t block, float out[4])
{
    const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), 0, 0};
    uint32_t bits[4];
    rl_philox4x32(counter, key.k, bits);
    for (int i = 0; i < 4; i += 2) {
        float radius = sqrtf(-2.0F * logf(((float)bits[i] + 1.0F) * 0x1p-32F));
        float angle = (float)bits[i + 1] * (6.2831853F * 0x1p-32F);
        out[i] = radius * cosf(angle);
        out[i + 1] = radius * sinf(angle);
    }
}

/* A piece of a matrix's numbers, for one thread. */
enum { NORMAL_PIECE = 1 << 16 };

struct normal_job {
    struct rl_rng_key key;
    float deviation;
    float *values;
    int64_t count;
};

static void fill_piece(void *arg, int index)
{
    const struct normal_job *job = arg;
    int64_t first = (int64_t)index * NORMAL_PIECE;
    int64_t end = first + NORMAL_PIECE < job->count ? first + NORMAL_PIECE : job->count;
    for (int64_t i = first; i < end; i += 4) {
        float normals[4];
        four_normals(job->key, (uint64_t)i / 4, normals);
        for (int64_t j = i; j < end && j < i + 4; j++) {
            job->values[j] = job->deviation * normals[j - i];
        }
    }
}

/* The stream is the tensor's name: a tensor keeps its numbers when others come or go. */
static void fill_normal(const struct model_tensor *tensor, struct normal_job *job, uint64_t seed,
                        struct rl_pool *pool)
{
    uint64_t stream = XXH3_64bits(tensor->name, strlen(tensor->name));
    job->key = rl_rng_key_make(seed, stream, UINT64_C(0x57) << 56);
    job->count = tensor->rows * tensor->cols;
    rl_pool_run(pool, (int)((job->count + NORMAL_PIECE - 1) / NORMAL_PIECE), fill_piece, job);
}

void model_params_init(const struct model_layout *layout, uint64_t seed, float *master,
                       struct rl_pool *pool)
{
    struct normal_job job = {.deviation = (float)layout->arch.initializer_range};
    memset(master, 0, (size_t)layout->master_count * sizeof(float));
    for (int32_t i = 0; i < layout->tensor_count; i++) {
        const struct model_tensor *tensor = &layout->tensors[i];
        job.values = master + tensor->offset;
        if (tensor->kind == MODEL_KIND_MATRIX) {
            fill_normal(tensor, &job, seed, pool);
        } else if (tensor->kind == MODEL_KIND_SCALE) {
            for (int64_t j = 0; j < tensor->cols; j++) {
                job.values[j] = 1.0F;
            }
        }
    }
}

/* Image offsets are multiples of 64 bytes, so every tensor's bits start in a byte of their own. */
static uint8_t *changed_bits(const struct model_layout *layout, const struct model_tensor *tensor,
                             const struct model_image_diff *diff)
{
    return diff->changed + tensor->image_offset / model_image_element_bytes(layout) / 8;
}

struct kernel_linear_pack_args model_params_pack_args(const struct model_layout *layout,
                                                      const struct model_tensor *tensor,
                                                      const float *master, void *image,
                                                      const struct model_image_diff *diff)
{
    struct kernel_linear_pack_args pack = {.w = master + tensor->offset,
                                           .packed = (unsigned char *)image + tensor->image_offset,
                                           .dtype = layout->dtype,
                                           .n = tensor->rows,
                                           .k = tensor->cols};
    if (diff != NULL) {
        pack.previous = (const unsigned char *)diff->previous + tensor->image_offset;
        pack.changed = changed_bits(layout, tensor, diff);
    }
    return pack;
}

struct kernel_vector_pack_args model_params_vector_args(const struct model_layout *layout,
                                                        const struct model_tensor *tensor,
                                                        const float *master, void *image,
                                                        const struct model_image_diff *diff)
{
    struct kernel_vector_pack_args pack = {.w = master + tensor->offset,
                                           .packed = (unsigned char *)image + tensor->image_offset,
                                           .count = tensor->cols,
                                           .dtype = layout->dtype};
    if (diff != NULL) {
        pack.previous = (const unsigned char *)diff->previous + tensor->image_offset;
        pack.changed = changed_bits(layout, tensor, diff);
    }
    return pack;
}

void model_params_publish_diff(const struct model_layout *layout,
                               const struct kernel_table *kernels, const float *master, void *image,
                               const struct model_image_diff *diff, struct rl_pool *pool)
{
    for (int32_t i = 0; i < layout->tensor_count; i++) {
        const struct model_tensor *tensor = &layout->tensors[i];
        if (tensor->matrix) {
            struct kernel_linear_pack_args pack =
                model_params_pack_args(layout, tensor, master, image, diff);
            kernels->linear_pack(&pack, pool);
        } else {
            struct kernel_vector_pack_args pack =
                model_params_vector_args(layout, tensor, master, image, diff);
            kernels->vector_pack(&pack, pool);
        }
    }
}

void model_params_publish(const struct model_layout *layout, const struct kernel_table *kernels,
                          const float *master, void *image, struct rl_pool *pool)
{
    model_params_publish_diff(layout, kernels, master, image, NULL, pool);
}

size_t model_image_element_bytes(const struct model_layout *layout)
{
    return layout->dtype == KERNEL_BF16 ? sizeof(uint16_t) : sizeof(float);
}

uint64_t model_image_hash(const struct model_layout *layout, const void *image)
{
    return XXH3_64bits(image, layout->image_bytes);
}
