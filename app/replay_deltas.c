/* See replay.h: versions of the weights read from what each changed of the one before. */
#include "app/replay.h"

#include "core/log.h"
#include "kernels/device.h"
#include "transport/weight_delta.h"

#include <inttypes.h>
#include <unistd.h>

/* The image hash that events.bin names for a version. */
static bool recorded_hash(const struct replay *r, uint32_t version, uint64_t *hash)
{
    for (size_t i = 0; i < r->index.count; i++) {
        if (r->index.steps[i].version == version) {
            *hash = r->index.steps[i].image_hash;
            return true;
        }
    }
    return false;
}

/* Make the version that one delta leads to. */
static rl_status apply(struct replay *r, const struct event_delta *delta,
                       const struct weight_delta_info *info)
{
    const struct model_layout *layout = r->session.layout;
    struct weight_delta_base base = {.image = replay_image(r, info->base_version),
                                     .image_bytes = layout->image_bytes,
                                     .version = info->base_version};
    uint64_t recorded = 0;
    void *image = NULL;
    if (!recorded_hash(r, info->version, &recorded) || recorded != info->hash) {
        return rl_fail(RL_CORRUPT,
                       "deltas.bin: version %" PRIu32 " is not the one that events.bin names",
                       info->version);
    }
    base.hash = model_image_hash(layout, base.image);
    RL_TRY(device_alloc(layout->image_bytes, "weight image", &image));
    rl_status status = weight_delta_apply(delta->data, delta->bytes, &base, image);
    if (status == RL_OK) {
        status = replay_images_add(&r->images, info->version, image);
    }
    if (status != RL_OK) {
        device_free(image);
    }
    return status;
}

static rl_status follow(struct replay *r, struct event_file *file, uint32_t newest)
{
    uint32_t version = learner_version(r->learner);
    while (version < newest) {
        struct weight_delta_info info;
        struct event event = {0};
        rl_status status = event_file_next(file, &event);
        if (status == RL_END) {
            return RL_NOT_FOUND;
        }
        RL_TRY(status);
        if (event.kind != EVENT_DELTA) {
            continue;
        }
        RL_TRY(weight_delta_inspect(event.delta.data, event.delta.bytes, &info));
        if (info.base_version > version) {
            return RL_NOT_FOUND;
        }
        if (info.base_version == version) {
            RL_TRY(apply(r, &event.delta, &info));
            version = info.version;
            r->totals.deltas++;
            if (version <= r->options.keep) {
                replay_images_drop(&r->images, version);
            }
        }
    }
    return RL_OK;
}

rl_status replay_deltas_apply(struct replay *r, uint32_t newest)
{
    char path[CHECKPOINT_PATH_MAX];
    struct event_file *file = NULL;
    snprintf(path, sizeof(path), "%s/deltas.bin", r->options.run_dir);
    if (access(path, F_OK) != 0) {
        return RL_NOT_FOUND;
    }
    RL_TRY(event_file_open(path, &file));
    rl_status status = follow(r, file, newest);
    event_file_close(file);
    return status;
}
