/* What changed between two weight images, as bytes that can travel: positions and new values, so
 * that applying is an overwrite and doing it twice does no harm. Owns the format and its checks.
 * Invariant: weight_delta_apply says RL_OK only if the whole resulting image has the hash that its
 * maker wrote down; lossless, therefore, whatever happened on the way. Pure; any thread. */
#ifndef FORESIGHT_TRANSPORT_WEIGHT_DELTA_H
#define FORESIGHT_TRANSPORT_WEIGHT_DELTA_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

enum { WEIGHT_DELTA_HEADER_BYTES = 88 };

struct weight_delta_info {
    uint32_t base_version, version;
    uint32_t element_bytes; /* 2 or 4 */
    uint64_t image_bytes;   /* multiple of 8 elements */
    uint64_t count;         /* elements that changed */
    uint64_t base_hash;     /* xxh3 of the whole image of base_version */
    uint64_t hash;          /* of version */
};

/* Encode `image` [info->image_bytes] where `changed` (one bit an element, as
 * model_params_publish_diff writes it) has a bit set. info->count is not read. The caller frees
 * *out. Errors: RL_INVALID, RL_NO_MEMORY. */
rl_status weight_delta_encode(const struct weight_delta_info *info, const uint8_t *changed,
                              const void *image, void **out, size_t *bytes);

/* Check the header and the checksum over all bytes, and read the header. Errors: RL_CORRUPT. */
rl_status weight_delta_inspect(const void *data, size_t bytes, struct weight_delta_info *out);

/* What a delta is applied to. */
struct weight_delta_base {
    const void *image;
    size_t image_bytes;
    uint32_t version;
    uint64_t hash; /* as published; compared, not computed */
};

/* image [image_bytes] = base with the delta's elements overwritten; may be the base's own memory.
 * No more memory is asked for than the image's size and a header that has been checked allow.
 * After an error `image` holds rubbish and must not be used.
 * Errors: RL_INVALID (made for another base or another model), RL_CORRUPT, RL_NO_MEMORY. */
rl_status weight_delta_apply(const void *data, size_t bytes, const struct weight_delta_base *base,
                             void *image);

#endif
