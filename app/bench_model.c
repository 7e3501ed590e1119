/* See bench_model.h. */
#include "app/bench_model.h"

#include "app/app.h"

#include "core/log.h"
#include "kernels/device.h"

#include <string.h>
#include <sys/stat.h>

enum { BENCH_POSITIONS = 32768 };

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
    *out = (struct bench_model_choice){.name = "m1"};
    RL_TRY(app_take_value(argc, argv, "--model", &out->name));
    RL_TRY(app_take_value(argc, argv, "--dtype", &dtype));
    RL_TRY(read_dtypes(dtype, out));
    return find_architecture(out->name, &out->arch);
}

const char *bench_dtype_name(enum kernel_dtype dtype)
{
    return dtype_names[dtype];
}

rl_status bench_model_master(const struct bench_model_choice *choice,
                             const struct model_layout *layout, float **out)
{
    void *memory = NULL;
    rl_status status = RL_OK;
    RL_TRY(device_alloc((size_t)layout->master_count * sizeof(float), "weights", &memory));
    if (shape_index(choice->name) >= 0) {
        model_params_init(layout, BENCH_WEIGHT_SEED, memory);
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
    float *master = NULL;
    RL_TRY(bench_model_master(choice, layout, &master));
    rl_status status = device_alloc(layout->image_bytes, "weight image", out);
    if (status == RL_OK) {
        model_params_publish(layout, machine->table, master, *out, machine->pool);
    }
    device_free(master);
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
