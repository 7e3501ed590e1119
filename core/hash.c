#include "core/hash.h"

#include <xxhash.h>

uint64_t rl_hash(const void *data, size_t bytes)
{
    return XXH3_64bits(data, bytes);
}
