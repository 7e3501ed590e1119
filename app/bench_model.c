/* See bench_model.h. */
#include "app/bench_model.h"

#include "app/app.h"

#include "core/log.h"
#include "kernels/device.h"
#include "model/slab.h"

#include <string.h>
#include <sys/stat.h>

enum { BENCH_POSITIONS = 32768, BENCH_VOCAB_MAX = 1 << 20 };

static const struct {
    const char *name;
    int32_t layers, width, heads, kv_heads, ffn, vocab;
} shapes[] = {
#define SHAPE(name, layers, width, heads, kv_heads, ffn, vocab)                                    \
    {#name, layers, width, heads, kv_heads, ffn, vocab},
#include "app/bench_shapes.def"
#undef SHAPE
};
enum { SHAPE_COUNT = sizeof shapes / sizeof shapes[0] };

static struct model_architecture shape_architecture(int index)
{
    return (struct model_architecture){.name = "Qwen2ForCausalLM",
                                       .layers = shapes[index].layers,
                                       .width = shapes[index].width,
                                       .heads = shapes[index].heads,
                                       .kv_heads = shapes[index].kv_heads,
                                       .head_dim = shapes[index].width / shapes[index].heads,
                                       .ffn = shapes[index].ffn,
                                       .vocab = shapes[index].vocab,
                                       .max_position = BENCH_POSITIONS,
                                       .tied = true,
                                       .qkv_bias = true,
                                       .norm_epsilon = 1e-6F,
                                       .initializer_range = 0.02,
                                       .rope_theta = 10000.0,
                                       .rope_factor = 1.0,
                                       .rope_attention_factor = 1.0,
                                       .rope_original_max_position = BENCH_POSITIONS,
                                       .bos_id = -1,
                                       .pad_id = -1};
}

/* -1: no shape has that name. */
static int shape_index(const char *name)
{
    int index = SHAPE_COUNT - 1;
    while (index >= 0 && strcmp(shapes[index].name, name) != 0) {
        index--;
    }
    return index;
}

static rl_status find_architecture(const char *name, struct model_architecture *arch)
{
    static const char names[] =
#define SHAPE(name, layers, width, heads, kv_heads, ffn, vocab) #name ", "
#include "app/bench_shapes.def"
#undef SHAPE
        ;
    struct stat info;
    int index = shape_index(name);
    if (index >= 0) {
        *arch = shape_architecture(index);
        return RL_OK;
    }
    if (stat(name, &info) != 0 || !S_ISDIR(info.st_mode)) {
        return rl_fail(RL_INVALID, "bench: --model %s: expected %sor a model's folder", name,
                       names);
    }
    return model_architecture_load(name, arch);
}

static const char *const dtype_names[BENCH_DTYPES] = {
    [KERNEL_FP32] = "fp32", [KERNEL_BF16] = "bf16", [KERNEL_INT8] = "int8"};

/* BENCH_DTYPES: no such name. */
static int dtype_index(const char *name, size_t length)
{
    int index = 0;
    while (index < BENCH_DTYPES && (strlen(dtype_names[index]) != length ||
                                    strncmp(name, dtype_names[index], length) != 0)) {
        index++;
    }
    return index;
}

static rl_status read_dtypes(const char *text, struct bench_model_choice *out)
{
    const char *at = text;
    size_t length = 0;
    do {
        length = strcspn(at, ",");
        int index = dtype_index(at, length);
        if (index == BENCH_DTYPES || out->dtype_count == BENCH_DTYPES) {
            return rl_fail(RL_INVALID,
                           "bench: --dtype %s: expected fp32, bf16, int8 or some of them with "
                           "commas between",
                           text);
        }
        out->dtypes[out->dtype_count++] = (enum kernel_dtype)index;
        at += length + 1;
    } while (at[-1] == ',');
    return RL_OK;
}

rl_status bench_model_choose(int *argc, char **argv, struct bench_model_choice *out)
{
    const char *dtype = "fp32";
    int64_t vocab = 0;
    *out = (struct bench_model_choice){.name = "m1"};
    RL_TRY(app_take_value(argc, argv, "--model", &out->name));
    RL_TRY(app_take_value(argc, argv, "--dtype", &dtype));
    RL_TRY(read_dtypes(dtype, out));
    RL_TRY(bench_take_count(argc, argv, "--vocab", BENCH_VOCAB_MAX, &vocab));
    RL_TRY(find_architecture(out->name, &out->arch));
    if (vocab > 0 && shape_index(out->name) < 0) {
        return rl_fail(RL_INVALID, "bench: --vocab: of a shape, not of a model's folder");
    }
    out->arch.vocab = vocab > 0 ? (int32_t)vocab : out->arch.vocab;
    return RL_OK;
}

rl_status bench_take_kv(int *argc, char **argv, enum kernel_dtype *kv_dtype)
{
    const char *text = bench_dtype_name(KERNEL_FP32);
    RL_TRY(app_take_value(argc, argv, "--kv", &text));
    *kv_dtype = strcmp(text, bench_dtype_name(KERNEL_BF16)) == 0 ? KERNEL_BF16 : KERNEL_FP32;
    if (strcmp(text, bench_dtype_name(*kv_dtype)) != 0) {
        return rl_fail(RL_INVALID, "bench: --kv %s: expected fp32 or bf16", text);
    }
    return RL_OK;
}

rl_status bench_model_layout(const struct bench_model_choice *choice,
                             const struct bench_machine *machine, enum kernel_dtype dtype,
                             int64_t length, struct model_layout **out)
{
    if (machine->device != NULL && dtype == KERNEL_INT8) {
        return rl_fail(RL_UNSUPPORTED, "bench: --dtype int8: on the CPU only");
    }
    return model_layout_create_on(machine->device, machine->pool, &choice->arch, dtype,
                                  (int32_t)length, out);
}

const char *bench_dtype_name(enum kernel_dtype dtype)
{
    return dtype_names[dtype];
}

rl_status bench_model_master(const struct bench_model_choice *choice,
                             const struct model_layout *layout, const struct bench_machine *machine,
                             float **out)
{
    void *memory = NULL;
    rl_status status = RL_OK;
    RL_TRY(device_alloc((size_t)layout->master_count * sizeof(float), "weights", &memory));
    if (shape_index(choice->name) >= 0) {
        model_params_init(layout, BENCH_WEIGHT_SEED, memory, machine->pool);
    } else {
        status = model_params_load(layout, choice->name, memory, NULL);
    }
    if (status != RL_OK) {
        device_free(memory);
        return status;
    }
    *out = memory;
    return RL_OK;
}

static rl_status make_image(const struct bench_model_choice *choice,
                            const struct model_layout *layout, const struct bench_machine *machine,
                            void **out)
{
    struct model_slab slab = {0};
    float *master = NULL;
    RL_TRY(bench_model_master(choice, layout, machine, &master));
    RL_TRY(model_slab_take(layout, master, layout->master_count, "weights", &slab));
    rl_status status =
        device_buffer_alloc(layout->device, layout->image_bytes, "weight image", out);
    if (status == RL_OK) {
        model_slab_push(&slab, machine->pool);
        model_params_publish(layout, machine->table, slab.data, *out, machine->pool);
        status = device_wait(machine->pool);
    }
    model_slab_fini(layout, &slab);
    return status;
}

/* From one in fp32, which is gone afterwards. */
static rl_status make_image_int8(const struct bench_model_choice *choice,
                                 const struct model_layout *layout,
                                 const struct bench_machine *machine, void **out)
{
    struct model_quantize_args to = {.layout = layout, .kernels = machine->table};
    struct model_layout *wide = NULL;
    void *image = NULL;
    rl_status status = RL_OK;
    RL_TRY(model_layout_create(&layout->arch, KERNEL_FP32, 1, &wide));
    RL_TRY_GOTO(make_image(choice, wide, machine, &image), status, out);
    RL_TRY_GOTO(device_alloc(layout->image_bytes, "weight image", &to.image), status, out);
    model_image_quantize(wide, image, &to, machine->pool);
    *out = to.image;
out:
    device_free(image);
    model_layout_destroy(wide);
    return status;
}

rl_status bench_model_image(const struct bench_model_choice *choice,
                            const struct model_layout *layout, const struct bench_machine *machine,
                            void **out)
{
    return layout->dtype == KERNEL_INT8 ? make_image_int8(choice, layout, machine, out)
                                        : make_image(choice, layout, machine, out);
}

void bench_model_image_free(const struct model_layout *layout, void *image)
{
    device_buffer_free(layout->device, image);
}

static double idle_embedding(const struct model_layout *layout)
{
    return layout->arch.tied ? 0 : (double)layout->arch.vocab * (double)layout->arch.width;
}

double bench_model_pass_bytes(const struct model_layout *layout)
{
    const struct model_architecture *arch = &layout->arch;
    return (double)layout->image_bytes -
           (arch->tied ? 0 : (double)kernel_packed_bytes(arch->vocab, arch->width, layout->dtype));
}

double bench_model_active(const struct model_layout *layout)
{
    return (double)layout->param_count - idle_embedding(layout);
}

double bench_model_attention_flop(const struct model_layout *layout, double keys)
{
    const struct model_architecture *arch = &layout->arch;
    return 4.0 * keys * (double)arch->layers * (double)arch->heads * (double)arch->head_dim;
}
