/* XXH3 from libxxhash, so that no other layer needs the library. No state. */
#include "core/hash.h"

#include <stdio.h>
#include <xxhash.h>

uint64_t rl_hash(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}

uint64_t rl_hash_seeded(const void *data, size_t bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, bytes, seed);
}

void rl_hash_text(const void *data, size_t bytes, char out[RL_HASH_TEXT_BYTES])
{
    XXH128_hash_t hash = XXH3_128bits(data, bytes);
    snprintf(out, RL_HASH_TEXT_BYTES, "%016llx%016llx", (unsigned long long)hash.high64,
             (unsigned long long)hash.low64);
}
