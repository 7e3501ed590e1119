/* XXH3 from libxxhash, so that no other layer needs the library. No state. */
#include "core/hash.h"

#include <xxhash.h>

uint64_t rl_hash(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}

uint64_t rl_hash_seeded(const void *data, size_t bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, bytes, seed);
}
