/* Copies, in a device's memory, of weight images that the host holds. They are made by a thread of
 * their own on a stream of its own, so decoding goes on meanwhile with the images that are there.
 * One thread calls; the images it hands over must stay as they are until their copy is made. */
#ifndef FORESIGHT_ROLLOUT_IMAGE_COPIES_H
#define FORESIGHT_ROLLOUT_IMAGE_COPIES_H

#include "model/params.h"

struct image_copies;

/* Is a copy of `version` still of use? Others are overwritten. */
typedef bool (*image_copies_fn)(void *arg, uint32_t version);

/* Memory is taken as versions come, and kept. `layout` (on a device) is borrowed for life. Caller
 * owns *out. Errors: RL_NO_MEMORY, RL_INTERNAL. */
rl_status image_copies_create(const struct model_layout *layout, image_copies_fn needed, void *arg,
                              struct image_copies **out);

/* Ends the thread, after the copy at work. Takes NULL. */
void image_copies_destroy(struct image_copies *copies);

/* *out = the copy of the image of `version`, which the host has at `image`. RL_AGAIN (not logged):
 * it is being made, or will be when the one at work is; ask again, with the same image. Errors:
 * RL_NO_MEMORY, the device's. */
rl_status image_copies_get(struct image_copies *copies, uint32_t version, const void *image,
                           const void **out);

/* Sleep until no copy is being made. */
void image_copies_wait(struct image_copies *copies);

#endif
