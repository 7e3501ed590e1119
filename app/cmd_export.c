/* `foresight export MODEL OUT`: a Hugging Face model folder out of a model folder or a checkpoint
 * of a run (a checkpoint is a model folder too). With --random SEED only MODEL's config.json is
 * read and the weights are drawn: a model to start from. */
#include "app/app.h"
#include "app/commands.h"

#include "core/clock.h"
#include "core/log.h"
#include "kernels/device.h"
#include "model/folder.h"
#include "model/params.h"
#include "model/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct export_options {
    const char *from, *to;
    enum kernel_dtype dtype;
    bool random;
    uint64_t seed;
    bool json;
};

static rl_status parse_seed(const char *text, uint64_t *out)
{
    char *end = NULL;
    errno = 0;
    unsigned long long seed = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0) {
        return rl_fail(RL_INVALID, "--random %s: the seed must be an integer >= 0", text);
    }
    *out = seed;
    return RL_OK;
}

static rl_status parse_options(int argc, char **argv, struct export_options *options)
{
    const char *dtype = "fp32";
    const char *seed = NULL;
    options->json = app_take_flag(&argc, argv, "--json");
    RL_TRY(app_take_value(&argc, argv, "--dtype", &dtype));
    RL_TRY(app_take_value(&argc, argv, "--random", &seed));
    if (strcmp(dtype, "fp32") != 0 && strcmp(dtype, "bf16") != 0) {
        return rl_fail(RL_INVALID, "--dtype %s: must be fp32 or bf16", dtype);
    }
    options->dtype = strcmp(dtype, "bf16") == 0 ? KERNEL_BF16 : KERNEL_FP32;
    options->random = seed != NULL;
    if (seed != NULL) {
        RL_TRY(parse_seed(seed, &options->seed));
    }
    if (argc != 3 || argv[1][0] == '-' || argv[2][0] == '-') {
        return rl_fail(RL_INVALID, "usage: foresight export MODEL OUT [--dtype fp32|bf16] "
                                   "[--random SEED] [--json]");
    }
    options->from = argv[1];
    options->to = argv[2];
    return RL_OK;
}

/* A new folder, or one that is there but holds no model yet: nothing is overwritten by accident. */
static rl_status prepare_folder(const struct export_options *options)
{
    if (mkdir(options->to, 0777) == 0) {
        return RL_OK;
    }
    if (errno != EEXIST) {
        return rl_fail(RL_IO, "%s: cannot create the folder: %s", options->to, strerror(errno));
    }
    if (model_folder_has(options->to, "config.json") ||
        model_folder_has(options->to, "model.safetensors")) {
        return rl_fail(RL_INVALID, "%s: holds a model already; choose another folder", options->to);
    }
    return RL_OK;
}

static rl_status copy_tokenizer(const struct export_options *options)
{
    if (!model_folder_has(options->from, "tokenizer.json")) {
        rl_log(RL_LOG_WARN, "%s: no tokenizer.json to copy", options->from);
        return RL_OK;
    }
    struct tokenizer *tokenizer = NULL;
    RL_TRY(tokenizer_load(options->from, &tokenizer));
    rl_status status = tokenizer_copy_files(tokenizer, options->to);
    tokenizer_destroy(tokenizer);
    return status;
}

static rl_status export_weights(const struct export_options *options,
                                const struct model_layout *layout)
{
    void *master = NULL;
    RL_TRY(device_alloc((size_t)layout->master_count * sizeof(float), "model weights", &master));
    rl_status status = RL_OK;
    if (options->random) {
        model_params_init(layout, options->seed, master, NULL);
    } else {
        status = model_params_load(layout, options->from, master, NULL);
    }
    if (status == RL_OK) {
        status = prepare_folder(options);
    }
    if (status == RL_OK) {
        status = model_params_save(layout, master, options->dtype, options->to);
    }
    device_free(master);
    return status;
}

static rl_status open_layout(const struct export_options *options, struct model_layout **out)
{
    struct model_architecture arch;
    if (!model_folder_has(options->from, "config.json") &&
        model_folder_has(options->from, "checkpoints")) {
        return rl_fail(RL_INVALID,
                       "%s: is a run; name one of its checkpoints, e.g. "
                       "%s/checkpoints/step_000100",
                       options->from, options->from);
    }
    RL_TRY(model_architecture_load(options->from, &arch));
    return model_layout_create(&arch, options->dtype, 1, out);
}

static rl_status export_model(const struct export_options *options)
{
    double start = rl_clock_now_s(NULL);
    struct model_layout *layout = NULL;
    RL_TRY(open_layout(options, &layout));
    int64_t params = layout->param_count;
    rl_status status = export_weights(options, layout);
    model_layout_destroy(layout);
    RL_TRY(status);
    RL_TRY(copy_tokenizer(options));
    double seconds = rl_clock_now_s(NULL) - start;
    const char *dtype = options->dtype == KERNEL_BF16 ? "bf16" : "fp32";
    if (options->json) {
        printf("{\"parameters\":%lld,\"dtype\":\"%s\",\"seconds\":%.3f}\n", (long long)params,
               dtype, seconds);
    } else {
        printf("%s: %lld parameters in %s, %.1f s\n", options->to, (long long)params, dtype,
               seconds);
    }
    return RL_OK;
}

int cmd_export(int argc, char **argv)
{
    struct export_options options = {0};
    if (parse_options(argc, argv, &options) != RL_OK) {
        return APP_USAGE;
    }
    return export_model(&options) == RL_OK ? APP_OK : APP_FAILED;
}
