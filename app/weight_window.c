/* See weight_window.h. */
#include "app/weight_window.h"

#include "core/log.h"
#include "kernels/device.h"
#include "model/slab.h"
#include "transport/weight_delta.h"

#include <stdlib.h>
#include <string.h>

static const double publish_timeout_s = 60;

int weight_window_slots(const struct rl_config *config)
{
    bool fixed = config->async.order == CONFIG_ORDER_FIXED_LAG;
    return 3 + (fixed ? (int)config->async.max_staleness : 0);
}

/* --- into a checkpoint
 * ----------------------------------------------------------------------------------------- */

/* One bit an element where the images differ. */
static void compare(const struct model_layout *layout, const unsigned char *a,
                    const unsigned char *b, uint8_t *changed)
{
    size_t element = model_image_element_bytes(layout);
    size_t count = layout->image_bytes / element;
    memset(changed, 0, count / 8);
    for (size_t i = 0; i < count; i++) {
        bool differs = memcmp(a + i * element, b + i * element, element) != 0;
        changed[i / 8] = (uint8_t)(changed[i / 8] | (unsigned)differs << (i % 8));
    }
}

/* The delta from version to version - 1. */
static rl_status encode(const struct weight_window *w, uint32_t version, uint8_t *changed,
                        struct checkpoint_blob *out)
{
    const struct model_layout *layout = w->session->layout;
    struct weight_view from;
    struct weight_view to;
    RL_TRY(weight_arena_pin(w->arena, w->reader, version, &from));
    rl_status status = weight_arena_pin(w->arena, w->reader, version - 1, &to);
    if (status == RL_OK) {
        struct weight_delta_info info = {.base_version = version,
                                         .version = version - 1,
                                         .element_bytes =
                                             (uint32_t)model_image_element_bytes(layout),
                                         .image_bytes = layout->image_bytes,
                                         .base_hash = from.hash,
                                         .hash = to.hash};
        compare(layout, from.image, to.image, changed);
        status = weight_delta_encode(&info, changed, to.image, &out->data, &out->bytes);
        weight_arena_unpin(w->arena, w->reader, version - 1);
    }
    weight_arena_unpin(w->arena, w->reader, version);
    return status;
}

rl_status weight_window_save(const struct weight_window *window, struct checkpoint_blob **images,
                             size_t *count)
{
    const struct model_layout *layout = window->session->layout;
    size_t wanted = window->newest - window->oldest;
    struct checkpoint_blob *made = calloc(wanted + 1, sizeof(*made));
    uint8_t *changed = malloc(layout->image_bytes / model_image_element_bytes(layout) / 8);
    rl_status status = RL_OK;
    size_t done = 0;
    if (made == NULL || changed == NULL) {
        status =
            rl_fail(RL_NO_MEMORY, "checkpoint: no memory for the weights of %zu versions", wanted);
    }
    while (status == RL_OK && done < wanted) {
        status = encode(window, window->newest - (uint32_t)done, changed, &made[done]);
        done += status == RL_OK;
    }
    free(changed);
    if (status != RL_OK) {
        for (size_t i = 0; i < done; i++) {
            free(made[i].data);
        }
        free(made);
        return status == RL_AGAIN || status == RL_NOT_FOUND
                   ? rl_fail(RL_NOT_FOUND, "checkpoint: version %u of the weights is gone",
                             window->newest - (uint32_t)done)
                   : status;
    }
    *images = made;
    *count = wanted;
    return RL_OK;
}

/* --- and back --- */

/* images[i] leads from one version to the one before: apply the first `steps` of them to `image`,
 * which holds the newest. *hash is of the result. */
static rl_status walk_back(const struct weight_window *w, const struct checkpoint_blob *images,
                           size_t steps, void *image, uint64_t *hash)
{
    size_t bytes = w->session->layout->image_bytes;
    uint64_t at_hash = model_image_hash(w->session->layout, image);
    for (size_t i = 0; i < steps; i++) {
        struct weight_delta_info info;
        struct weight_delta_base base = {.image = image,
                                         .image_bytes = bytes,
                                         .version = w->newest - (uint32_t)i,
                                         .hash = at_hash};
        RL_TRY(weight_delta_inspect(images[i].data, images[i].bytes, &info));
        if (i == 0 && info.base_hash != at_hash) {
            return rl_fail(RL_INVALID,
                           "the weights of version %u come out otherwise here than in the run that "
                           "made the checkpoint: go on with its kernels.isa and kernels.weights on "
                           "such a machine, or in another async.order",
                           w->newest);
        }
        RL_TRY(weight_delta_apply(images[i].data, images[i].bytes, &base, image));
        at_hash = info.hash;
    }
    *hash = at_hash;
    return RL_OK;
}

static rl_status publish(const struct weight_window *w, uint32_t version, const void *image,
                         uint64_t hash)
{
    int slot = -1;
    void *target = NULL;
    RL_TRY(weight_arena_begin_write(w->arena, publish_timeout_s, &slot, &target));
    size_t bytes = w->session->layout->image_bytes;
    memcpy(target, image, bytes);
    void *on_device = weight_arena_device_slot(w->arena, slot);
    if (on_device != NULL) {
        model_upload(w->session->pool, on_device, image, bytes);
        RL_TRY(device_wait(w->session->pool)); /* no other process knows what is under way */
    }
    return weight_arena_publish(w->arena, slot, version, hash);
}

rl_status weight_window_restore(const struct weight_window *window, const float *master,
                                const struct checkpoint_blob *images, size_t count)
{
    void *newest = NULL;
    void *image = NULL;
    size_t bytes = window->session->layout->image_bytes;
    rl_status status = RL_OK;
    if (count != window->newest - window->oldest) {
        return rl_fail(RL_CORRUPT, "checkpoint: %zu older versions of the weights, expected %u",
                       count, window->newest - window->oldest);
    }
    if (count == 0) {
        return RL_OK;
    }
    RL_TRY(session_make_image(window->session, master, &newest));
    RL_TRY_GOTO(device_alloc(bytes, "weight image", &image), status, done);
    for (size_t steps = count; steps > 0; steps--) { /* versions are published in their order */
        uint64_t hash = 0;
        memcpy(image, newest, bytes);
        RL_TRY_GOTO(walk_back(window, images, steps, image, &hash), status, done);
        RL_TRY_GOTO(publish(window, window->newest - (uint32_t)steps, image, hash), status, done);
    }
done:
    device_free(image);
    device_free(newest);
    return status;
}
