/* Parameters: names, shapes and places. The master copy is one fp32 slab in Hugging Face's raw
 * [out, in] layout (gradients and Adam moments are slabs of the same layout). The image is what
 * forward passes read: matrices packed for the kernels in fp32 or bf16, vectors in fp32; it is made
 * from the master by model_params_publish and is never written otherwise. Generation and training
 * read images only, so both see the very same bytes; generation with int8 weights reads an image of
 * its own, made from that one by model_image_quantize. */
#ifndef FORESIGHT_MODEL_PARAMS_H
#define FORESIGHT_MODEL_PARAMS_H

#include "kernels/device.h"
#include "model/architecture.h"

/* What a tensor is, from params.def: MODEL_PARAM_EMBEDDING, MODEL_PARAM_INPUT_NORM, ... */
#define PARAM(id, scope, name, rows, cols, kind, present) MODEL_PARAM_##id,
enum model_param {
#include "model/params.def"
    MODEL_PARAM_COUNT
};

enum model_param_kind { MODEL_KIND_MATRIX, MODEL_KIND_SCALE, MODEL_KIND_BIAS };

struct model_tensor {
    char name[128]; /* Hugging Face name */
    enum model_param param;
    enum model_param_kind kind;
    int32_t layer;       /* -1: not of a layer */
    int64_t rows, cols;  /* matrix [rows, cols]; vector: rows 1 */
    bool matrix;         /* packed in the image, decayed by the optimizer */
    int64_t offset;      /* floats, into master, gradient and moment slabs; multiple of 16 */
    size_t image_offset; /* bytes, into the image; multiple of 64 */
};

/* Tensor table made from params.def and the architecture. */
struct model_layout {
    struct model_architecture arch;
    enum kernel_dtype dtype; /* of matrices in the image */
    /* Of keys and values in KV caches. Created as fp32; the owner may set another before the first
     * cache is made. Part of what the model computes: the same in generation and training (P1). */
    enum kernel_dtype kv_dtype;
    int32_t tensor_count;
    struct model_tensor *tensors;
    int32_t *index; /* [L + 1][MODEL_PARAM_COUNT] -> tensor or -1; row L: tensors of no layer */
    int64_t master_count; /* floats in a slab, padding included (padding stays 0) */
    int64_t param_count;  /* real parameters */
    size_t image_bytes;
    struct device *device; /* in whose memory slabs and images lie, NULL: the CPU; borrowed */
    float *cosine, *sine;  /* [rope_positions, D/2], the device's */
    int32_t rope_positions;
};

/* `max_positions` bounds sequences (rope tables). On the CPU, or on `device`, whose stream `pool`
 * has (NULL: the CPU again). Caller owns *out. Errors: RL_NO_MEMORY, RL_INVALID (also a
 * matrix with too many inputs for KERNEL_INT8). */
rl_status model_layout_create(const struct model_architecture *arch, enum kernel_dtype dtype,
                              int32_t max_positions, struct model_layout **out);
rl_status model_layout_create_on(struct device *device, struct rl_pool *pool,
                                 const struct model_architecture *arch, enum kernel_dtype dtype,
                                 int32_t max_positions, struct model_layout **out);
void model_layout_destroy(struct model_layout *layout);

/* Index of a tensor by name, -1 if there is none. */
int32_t model_layout_find(const struct model_layout *layout, const char *name);

/* The tensor of a role in a layer (-1: of no layer), NULL if the architecture has none. In a tied
 * model MODEL_PARAM_HEAD gives the embedding. Borrowed. */
const struct model_tensor *model_layout_tensor(const struct model_layout *layout,
                                               enum model_param param, int32_t layer);

/* Fill a master slab with random weights (normal with the architecture's initializer_range, 0.02
 * where config.json has none; norms 1; biases 0; padding 0), keyed by seed and tensor name. `pool`
 * may be NULL; it changes no bit. */
void model_params_init(const struct model_layout *layout, uint64_t seed, float *master,
                       struct rl_pool *pool);

/* Read DIR/model.safetensors or the sharded index into a master slab [master_count]; F32, F16,
 * BF16. Wrong, missing or left-over tensors are errors that name them (lm_head.weight may be
 * present in tied models; it is ignored if equal, refused otherwise). `pool` may be NULL. */
rl_status model_params_load(const struct model_layout *layout, const char *dir, float *master,
                            struct rl_pool *pool);

/* The image of what model_params_load would read, without a master slab between. The same errors.
 */
rl_status model_image_load(const struct model_layout *layout, const struct kernel_table *kernels,
                           const char *dir, void *image, struct rl_pool *pool);

/* Write a Hugging Face model folder: config.json, generation_config.json, model.safetensors in fp32
 * or bf16. Atomic per file. The folder must exist. */
rl_status model_params_save(const struct model_layout *layout, const float *master,
                            enum kernel_dtype dtype, const char *dir);

/* image [image_bytes] = packed, cast master. */
void model_params_publish(const struct model_layout *layout, const struct kernel_table *kernels,
                          const float *master, void *image, struct rl_pool *pool);

/* Which elements of an image differ from those of another: bit i % 8 of byte i / 8 for element i.
 * An element is 2 bytes of a bf16 image (so that one of its fp32 vectors' counts as two), 4 of an
 * fp32 one. */
struct model_image_diff {
    const void *previous; /* image [image_bytes] to compare with */
    uint8_t *changed;     /* [image_bytes / model_image_element_bytes / 8] overwritten */
};

/* The same, comparing as it writes. */
void model_params_publish_diff(const struct model_layout *layout,
                               const struct kernel_table *kernels, const float *master, void *image,
                               const struct model_image_diff *diff, struct rl_pool *pool);

/* One tensor of it, for a caller that changes masters and makes their image in one pass: what the
 * kernel packs a matrix with (linear_pack), or a vector (vector_pack). `diff` may be NULL. */
struct kernel_linear_pack_args model_params_pack_args(const struct model_layout *layout,
                                                      const struct model_tensor *tensor,
                                                      const float *master, void *image,
                                                      const struct model_image_diff *diff);
struct kernel_vector_pack_args model_params_vector_args(const struct model_layout *layout,
                                                        const struct model_tensor *tensor,
                                                        const float *master, void *image,
                                                        const struct model_image_diff *diff);

/* Bytes of an element in the sense of model_image_diff. */
size_t model_image_element_bytes(const struct model_layout *layout);

/* Where an image with int8 weights goes. */
struct model_quantize_args {
    const struct model_layout *layout; /* of the same architecture, with KERNEL_INT8 */
    const struct kernel_table *kernels;
    void *image; /* [layout->image_bytes] */
};

/* The image with int8 weights (kernels/int8.h) of an image with others. Vectors stay fp32. It is
 * another policy: log-probs by it are its own. */
void model_image_quantize(const struct model_layout *layout, const void *image,
                          const struct model_quantize_args *to, struct rl_pool *pool);

/* xxh3 of an image. */
uint64_t model_image_hash(const struct model_layout *layout, const void *image);

#endif
