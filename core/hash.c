/* XXH3 from libxxhash, so that no other layer needs the library. No state. */
#include "core/hash.h"

#include <xxhash.h>

uint64_t rl_hash(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}
