/* The hash that files and tensors are named by: XXH3, 64 bits. */
#ifndef FORESIGHT_CORE_HASH_H
#define FORESIGHT_CORE_HASH_H

#include <stddef.h>
#include <stdint.h>

/* xxh3 of `bytes` bytes; `data` may be NULL if there are none. Any thread. */
uint64_t rl_hash(const void *data, size_t bytes);

/* The same with a seed: with the hash of what came before as seed, a chain of hashes. */
uint64_t rl_hash_seeded(const void *data, size_t bytes, uint64_t seed);

/* xxh3, 128 bits, as 32 hexadecimal digits: names of what is found by its content. Any thread. */
enum { RL_HASH_TEXT_BYTES = 33 };
void rl_hash_text(const void *data, size_t bytes, char out[RL_HASH_TEXT_BYTES]);

#endif
