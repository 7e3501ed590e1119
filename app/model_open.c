/* A model folder opened for reading. Owns layout, pool and image; the fp32 master copy lives only
 * while the image is made. */
#include "app/model_open.h"

#include "core/pool.h"
#include "kernels/device.h"

#include <string.h>

enum { LENGTH_DEFAULT_MAX = 32768 };

static rl_status make_image(const char *dir, struct app_model *model)
{
    void *master = NULL;
    size_t bytes = (size_t)model->layout->master_count * sizeof(float);
    RL_TRY(device_alloc(bytes, "model weights", &master));
    rl_status status = model_params_load(model->layout, dir, master);
    if (status == RL_OK) {
        status = device_alloc(model->layout->image_bytes, "model image", &model->image);
    }
    if (status == RL_OK) {
        model_params_publish(model->layout, model->kernels, master, model->image, model->pool);
    }
    device_free(master);
    return status;
}

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
    out->context = (struct model_context){out->layout, out->kernels, out->pool};
    return make_image(dir, out);
}

void app_model_close(struct app_model *model)
{
    device_free(model->image);
    rl_pool_destroy(model->pool);
    model_layout_destroy(model->layout);
    memset(model, 0, sizeof *model);
}
