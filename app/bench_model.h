/* The model that a benchmark runs: one of bench_shapes.def with random weights made in memory, or a
 * Hugging Face folder's. */
#ifndef FORESIGHT_APP_BENCH_MODEL_H
#define FORESIGHT_APP_BENCH_MODEL_H

#include "app/bench_machine.h"
#include "model/params.h"

enum { BENCH_DTYPES = 3, BENCH_WEIGHT_SEED = 1 };

/* What --model and --dtype say. */
struct bench_model_choice {
    const char *name; /* of a shape, or a folder; borrowed from argv */
    struct model_architecture arch;
    enum kernel_dtype dtypes[BENCH_DTYPES];
    int dtype_count;
};

/* Take --model (default m1), --vocab (of a shape; its own) and --dtype, some of fp32, bf16 and int8
 * (default fp32), out of argv. Errors: RL_INVALID (neither a shape nor a folder), those of
 * model_architecture_load. */
rl_status bench_model_choose(int *argc, char **argv, struct bench_model_choice *out);

/* Take --kv fp32|bf16 (fp32) out of argv. Errors: RL_INVALID. */
rl_status bench_take_kv(int *argc, char **argv, enum kernel_dtype *kv_dtype);

/* The layout of such a model on the machine. Errors: those of model_layout_create_on;
 * RL_UNSUPPORTED (int8 weights on a GPU). */
rl_status bench_model_layout(const struct bench_model_choice *choice,
                             const struct bench_machine *machine, enum kernel_dtype dtype,
                             int64_t length, struct model_layout **out);

/* "fp32", "bf16" or "int8". */
const char *bench_dtype_name(enum kernel_dtype dtype);

/* The master weights in a new slab of the host's: random, or the folder's. Caller frees with
 * device_free. Errors: RL_NO_MEMORY, those of model_params_load. */
rl_status bench_model_master(const struct bench_model_choice *choice,
                             const struct model_layout *layout, const struct bench_machine *machine,
                             float **out);

/* The image alone in the memory of the layout's device, the master only as long as it takes. Caller
 * frees with bench_model_image_free. */
rl_status bench_model_image(const struct bench_model_choice *choice,
                            const struct model_layout *layout, const struct bench_machine *machine,
                            void **out);
void bench_model_image_free(const struct model_layout *layout, void *image);

/* Bytes of weights that every pass reads whole: all but the rows of an embedding that is no head.
 */
double bench_model_pass_bytes(const struct model_layout *layout);

/* Weights that multiply each token: parameters less an embedding that is no head. */
double bench_model_active(const struct model_layout *layout);

/* Floating-point operations of attention for one token that attends to `keys`. */
double bench_model_attention_flop(const struct model_layout *layout, double keys);

#endif
