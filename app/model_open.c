/* A model folder opened for reading. Owns layout, pool and image. */
#include "app/model_open.h"

#include "core/pool.h"
#include "kernels/device.h"

#include <string.h>

enum { LENGTH_DEFAULT_MAX = 32768 };

rl_status app_model_open(const char *dir, int threads, int32_t max_length, struct app_model *out)
{
    struct model_architecture arch;
    memset(out, 0, sizeof *out);
    RL_TRY(model_architecture_load(dir, &arch));
    if (max_length == 0) {
        max_length =
            arch.max_position < LENGTH_DEFAULT_MAX ? arch.max_position : LENGTH_DEFAULT_MAX;
    }
    RL_TRY(model_layout_create(&arch, KERNEL_FP32, max_length, &out->layout));
    RL_TRY(kernel_table_get(kernel_isa_best(), &out->kernels));
    RL_TRY(rl_pool_create(threads, &out->pool));
    out->context =
        (struct model_context){.layout = out->layout, .kernels = out->kernels, .pool = out->pool};
    RL_TRY(device_alloc(out->layout->image_bytes, "model image", &out->image));
    return model_image_load(out->layout, out->kernels, dir, out->image, out->pool);
}

void app_model_close(struct app_model *model)
{
    device_free(model->image);
    rl_pool_destroy(model->pool);
    model_layout_destroy(model->layout);
    memset(model, 0, sizeof *model);
}
