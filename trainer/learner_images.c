/* See learner_internal.h: where the weight image lies that passes read, how it gets into the arena
 * and from a device's memory, and when a version of it is published. */
#include "trainer/learner_internal.h"

#include "core/log.h"
#include "kernels/device.h"

#include <limits.h>

static const double publish_timeout_s = 60;

size_t learner_mask_bytes(const struct model_layout *layout)
{
    return layout->image_bytes / model_image_element_bytes(layout) / CHAR_BIT;
}

size_t learner_image_bytes(const struct model_layout *layout, int slots)
{
    return slots > 0
               ? weight_arena_device_bytes(slots, layout->image_bytes) + learner_mask_bytes(layout)
               : layout->image_bytes;
}

rl_status learner_frozen_image(struct learner *l, const void *image, void **out)
{
    const struct model_layout *layout = l->args.layout;
    if (image == NULL || layout->device == NULL) {
        *out = (void *)(uintptr_t)image; /* only read */
        return RL_OK;
    }
    RL_TRY(device_buffer_alloc(layout->device, layout->image_bytes, "frozen weights", out));
    model_upload(l->args.pool, *out, image, layout->image_bytes);
    return RL_OK;
}

void learner_frozen_free(struct learner *l, void *image)
{
    if (l->args.layout->device != NULL) {
        device_buffer_free(l->args.layout->device, image);
    }
}

const struct model_image_diff *learner_image_diff(const struct learner *l,
                                                  struct model_image_diff *diff)
{
    uint8_t *pending = l->args.history != NULL ? weight_history_pending(l->args.history) : NULL;
    if (pending == NULL || l->published == NULL) {
        return NULL;
    }
    diff->previous = l->published;
    diff->changed = l->own_changed != NULL ? l->own_changed : pending;
    return diff;
}

rl_status learner_begin_image(struct learner *l, void **image, double *slot_wait_s)
{
    *slot_wait_s = 0;
    if (l->own_image != NULL) {
        *image = l->own_image;
        l->host_image = l->args.layout->device == NULL ? l->own_image : NULL;
        return RL_OK;
    }
    /* It is the same slot until it is published, and nobody else reads it before. */
    struct rl_wait wait = rl_wait_begin(l->args.waits, "learner waits for a weight slot");
    rl_status status =
        weight_arena_begin_write(l->args.arena, publish_timeout_s, &l->slot, &l->host_image);
    *slot_wait_s = rl_wait_end(&wait);
    RL_TRY(status);
    void *on_device = weight_arena_device_slot(l->args.arena, l->slot);
    *image = on_device != NULL ? on_device : l->host_image;
    return RL_OK;
}

rl_status learner_settle_image(struct learner *l)
{
    const struct model_layout *layout = l->args.layout;
    if (layout->device == NULL || l->args.arena == NULL) {
        return RL_OK;
    }
    struct model_image_diff diff;
    RL_TRY(model_download(l->args.pool, l->host_image, l->image, layout->image_bytes));
    if (learner_image_diff(l, &diff) != NULL) {
        RL_TRY(model_download(l->args.pool, weight_history_pending(l->args.history), l->own_changed,
                              learner_mask_bytes(layout)));
    }
    return RL_OK;
}

rl_status learner_refresh_image(struct learner *l, double *slot_wait_s)
{
    void *image;
    struct model_image_diff diff;
    RL_TRY(learner_begin_image(l, &image, slot_wait_s));
    model_params_publish_diff(l->args.layout, l->args.kernels, l->master.data, image,
                              learner_image_diff(l, &diff), l->args.pool);
    l->image = image;
    return learner_settle_image(l);
}

double learner_changed_fraction(const struct learner *l)
{
    const struct model_layout *layout = l->args.layout;
    double elements = (double)layout->image_bytes / (double)model_image_element_bytes(layout);
    return (double)weight_history_pending_count(l->args.history) / elements;
}

uint64_t learner_version_hash(const struct learner *l)
{
    return l->args.arena != NULL ? model_image_hash(l->args.layout, l->host_image) : 0;
}

static rl_status publish(struct learner *l, uint32_t version, uint64_t hash)
{
    if (l->args.arena != NULL) {
        if (l->args.history != NULL) {
            weight_history_commit(l->args.history, version); /* before anybody sees the version */
        }
        RL_TRY(weight_arena_publish(l->args.arena, l->slot, version, hash));
        l->slot = -1;
        l->published = l->image;
    }
    l->version = version;
    return RL_OK;
}

void learner_push(const struct learner *l)
{
    model_slab_push(&l->master, l->args.pool);
    optimizer_push(l->optimizer, l->args.pool);
}

rl_status learner_pull(struct learner *learner)
{
    RL_TRY(model_slab_pull(&learner->master, learner->args.pool));
    RL_TRY(model_slab_pull(&learner->teaching.average, learner->args.pool));
    return optimizer_pull(learner->optimizer, learner->args.pool);
}

void learner_forget(struct learner *learner)
{
    model_slab_forget(&learner->master);
    model_slab_forget(&learner->teaching.average);
    optimizer_forget(learner->optimizer);
}

/* Learners change their own masters alike, which takes the same kind of kernels. */
static rl_status check_devices(const struct learner *l)
{
    double kinds[] = {l->args.layout->device == NULL, l->args.layout->device != NULL};
    RL_TRY(collective_max_double(l->args.collective, kinds, 2));
    return kinds[0] > 0 && kinds[1] > 0
               ? rl_fail(RL_UNSUPPORTED, "some learners compute on a GPU and some do not: their "
                                         "weights would part; set kernels.device for all ranks")
               : RL_OK;
}

rl_status learner_publish_first(struct learner *learner, uint32_t version)
{
    double slot_wait_s;
    RL_TRY(check_devices(learner));
    learner_push(learner);
    model_slab_push(&learner->teaching.average, learner->args.pool);
    learner_forget(learner);
    learner_teacher_start(learner, version);
    RL_TRY(learner_refresh_image(learner, &slot_wait_s));
    return publish(learner, version, learner_version_hash(learner));
}

rl_status learner_publish(struct learner *learner, const struct learner_report *report)
{
    if (report->version == learner->version) {
        return RL_OK;
    }
    if (report->version != learner->version + 1) {
        return rl_fail(RL_INVALID, "learner: version %u cannot follow %u", report->version,
                       learner->version);
    }
    return publish(learner, report->version, report->hash);
}

const void *learner_image(const struct learner *learner)
{
    return learner->host_image;
}

uint64_t learner_image_hash(const struct learner *learner)
{
    const void *image = learner->host_image;
    return image != NULL ? model_image_hash(learner->args.layout, image) : 0;
}
