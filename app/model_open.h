/* Open a model folder for reading only: weights as an image, nothing to train. For the commands
 * that look at a model without a configuration. */
#ifndef FORESIGHT_APP_MODEL_OPEN_H
#define FORESIGHT_APP_MODEL_OPEN_H

#include "model/forward.h"

struct app_model {
    struct model_layout *layout;
    const struct kernel_table *kernels;
    struct rl_pool *pool;
    void *image; /* fp32 */
    struct model_context context;
};

/* `max_length` 0: the smaller of config.json's max_position_embeddings and 32,768. Release with
 * app_model_close (also after an error). Errors: those of loading, named. */
rl_status app_model_open(const char *dir, int threads, int32_t max_length, struct app_model *out);
void app_model_close(struct app_model *model);

#endif
