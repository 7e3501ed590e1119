/* A slab of floats that kernels work on, and its mirror in the host's memory, which files, messages
 * and checkpoints are made from and read into. On the CPU they are one and the same; on a device
 * each is brought up to date with the other when somebody says so. */
#ifndef FORESIGHT_MODEL_SLAB_H
#define FORESIGHT_MODEL_SLAB_H

#include "model/params.h"

struct model_slab {
    float *data; /* [count] the device's */
    float *host; /* [count]; `data` on the CPU; pages of it that nobody has touched cost nothing */
    size_t bytes;
};

/* Zeros on the layout's device and in the mirror. `what` names it in errors. Release with
 * model_slab_fini. Errors: RL_NO_MEMORY. */
rl_status model_slab_create(const struct model_layout *layout, int64_t count, const char *what,
                            struct model_slab *out);

/* The same with `host` [count], made by device_alloc, as the mirror: taken, also on failure. A
 * device's side is not up to date yet. */
rl_status model_slab_take(const struct model_layout *layout, float *host, int64_t count,
                          const char *what, struct model_slab *out);

/* Takes a zeroed struct. */
void model_slab_fini(const struct model_layout *layout, struct model_slab *slab);

/* The mirror to the device, and back. `pool` has the device's stream. Errors: the device's. */
void model_slab_push(const struct model_slab *slab, struct rl_pool *pool);
rl_status model_slab_pull(const struct model_slab *slab, struct rl_pool *pool);

/* The mirror's contents are of no more use: its memory is given back until it is written to again.
 */
void model_slab_forget(const struct model_slab *slab);

/* device_write and device_read in pieces, for many bytes. */
void model_upload(struct rl_pool *pool, void *to, const void *host, size_t bytes);
rl_status model_download(struct rl_pool *pool, void *host, const void *from, size_t bytes);

#endif
