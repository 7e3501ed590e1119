/* What the op hash_words adds up, in C. */
#ifndef FORESIGHT_KERNELS_HASH_WORD_H
#define FORESIGHT_KERNELS_HASH_WORD_H

#include <stdint.h>

/* The finalizer of splitmix64 over a word and its place. */
static inline uint64_t kernel_hash_word(uint64_t place, uint32_t word)
{
    uint64_t x = ((place << 32 | place >> 32) ^ word) + UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

#endif
