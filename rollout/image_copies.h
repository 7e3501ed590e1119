/* Copies of weight images that the host or another GPU holds: in a device's memory, or with int8
 * weights. They are made by a thread of their own (on a stream of its own), so decoding goes on
 * meanwhile with the images that are there. One thread calls; the images it hands over must stay as
 * they are until their copy is made. */
#ifndef FORESIGHT_ROLLOUT_IMAGE_COPIES_H
#define FORESIGHT_ROLLOUT_IMAGE_COPIES_H

#include "kernels/device.h"
#include "model/params.h"

struct image_copies;

/* Is a copy of `version` still of use? Others are overwritten. */
typedef bool (*image_copies_fn)(void *arg, uint32_t version);

/* What copies are like; borrowed for life. */
struct image_copies_kind {
    const struct model_layout *layout; /* of copies: on a device, or of KERNEL_INT8 on the CPU */
    const struct model_layout
        *source; /* of the images, where copies have int8 weights; NULL: same */
    const struct kernel_table *kernels; /* which make them, then */
};

/* Memory is taken as versions come, and kept. Caller owns *out. Errors: RL_NO_MEMORY, RL_INTERNAL.
 */
rl_status image_copies_create(const struct image_copies_kind *kind, image_copies_fn needed,
                              void *arg, struct image_copies **out);

/* Ends the thread, after the copy at work. Takes NULL. */
void image_copies_destroy(struct image_copies *copies);

/* *out = the copy of the image of `version`, which is at `image`. RL_AGAIN (not logged):
 * it is being made, or will be when the one at work is; ask again, with the same image. Errors:
 * RL_NO_MEMORY, the device's. */
rl_status image_copies_get(struct image_copies *copies, uint32_t version,
                           struct device_source image, const void **out);

/* Sleep until no copy is being made. */
void image_copies_wait(struct image_copies *copies);

#endif
