/* Philox4x32-10 and the draws built on it. No state. The invariant: a draw reads nothing but its
 * arguments, and two kinds of draw of one key use disjoint counters. */
#include "core/rng.h"

#include <math.h>

enum rng_kind { RNG_BITS, RNG_BELOW, RNG_NORMAL, RNG_PERMUTATION };

static const uint32_t philox_multiplier[2] = {0xD2511F53u, 0xCD9E8D57u};
static const uint32_t philox_weyl[2] = {0x9E3779B9u, 0xBB67AE85u};

void rl_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0];
    uint32_t c1 = counter[1];
    uint32_t c2 = counter[2];
    uint32_t c3 = counter[3];
    uint32_t k0 = key[0];
    uint32_t k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)philox_multiplier[0] * c0;
        uint64_t product1 = (uint64_t)philox_multiplier[1] * c2;
        c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)product1;
        c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)product0;
        k0 += philox_weyl[0];
        k1 += philox_weyl[1];
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* One block as two 64-bit words. */
static void rng_block(struct rl_rng_key key, uint64_t counter, enum rng_kind kind, uint32_t attempt,
                      uint64_t words[2])
{
    uint32_t block[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), (uint32_t)kind, attempt};
    rl_philox4x32(block, key.k, block);
    words[0] = (uint64_t)block[1] << 32 | block[0];
    words[1] = (uint64_t)block[3] << 32 | block[2];
}

struct rl_rng_key rl_rng_key_make(uint64_t seed, uint64_t a, uint64_t b)
{
    uint32_t counter[4] = {(uint32_t)a, (uint32_t)(a >> 32), (uint32_t)b, (uint32_t)(b >> 32)};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t out[4];
    rl_philox4x32(counter, key, out);
    return (struct rl_rng_key){.k = {out[0], out[1]}};
}

uint64_t rl_rng_bits(struct rl_rng_key key, uint64_t counter)
{
    uint64_t words[2];
    rng_block(key, counter, RNG_BITS, 0, words);
    return words[0];
}

static double rng_unit(uint64_t bits)
{
    return (double)(bits >> 11) * 0x1.0p-53;
}

double rl_rng_uniform(struct rl_rng_key key, uint64_t counter)
{
    return rng_unit(rl_rng_bits(key, counter));
}

float rl_rng_uniform_float(struct rl_rng_key key, uint64_t counter)
{
    return (float)(rl_rng_bits(key, counter) >> 40) * 0x1.0p-24f;
}

/* Multiply-and-reject: the high half of bits * limit, unless the low half falls into the part that
 * would make some results likelier than others. */
static uint64_t rng_below_kind(struct rl_rng_key key, uint64_t counter, uint64_t limit,
                               enum rng_kind kind)
{
    if (limit <= 1) {
        return 0;
    }
    uint64_t unfair = (0 - limit) % limit;
    for (uint32_t attempt = 0;; attempt++) {
        uint64_t words[2];
        rng_block(key, counter, kind, attempt, words);
        for (int i = 0; i < 2; i++) {
            unsigned __int128 product = (unsigned __int128)words[i] * limit;
            if ((uint64_t)product >= unfair) {
                return (uint64_t)(product >> 64);
            }
        }
    }
}

uint64_t rl_rng_below(struct rl_rng_key key, uint64_t counter, uint64_t limit)
{
    return rng_below_kind(key, counter, limit, RNG_BELOW);
}

double rl_rng_normal(struct rl_rng_key key, uint64_t counter)
{
    uint64_t words[2];
    rng_block(key, counter, RNG_NORMAL, 0, words);
    double radius = sqrt(-2.0 * log(1.0 - rng_unit(words[0]))); /* 1 - u is in (0, 1] */
    return radius * cos(0x1.921fb54442d18p+2 * rng_unit(words[1]));
}

void rl_rng_permutation(struct rl_rng_key key, uint64_t n, uint64_t *out)
{
    for (uint64_t i = 0; i < n; i++) {
        out[i] = i;
    }
    for (uint64_t i = n; i > 1; i--) {
        uint64_t j = rng_below_kind(key, i - 1, i, RNG_PERMUTATION);
        uint64_t swapped = out[i - 1];
        out[i - 1] = out[j];
        out[j] = swapped;
    }
}

/* The tag keeps sequences apart from keys that callers make of prompts and samples. */
struct rl_rng rl_rng_make(uint64_t seed, uint64_t stream)
{
    return (struct rl_rng){.key = rl_rng_key_make(seed, stream, UINT64_C(0xFF) << 56)};
}

uint64_t rl_rng_next_bits(struct rl_rng *rng)
{
    return rl_rng_bits(rng->key, rng->counter++);
}

double rl_rng_next_uniform(struct rl_rng *rng)
{
    return rl_rng_uniform(rng->key, rng->counter++);
}

uint64_t rl_rng_next_below(struct rl_rng *rng, uint64_t limit)
{
    return rl_rng_below(rng->key, rng->counter++, limit);
}

double rl_rng_next_normal(struct rl_rng *rng)
{
    return rl_rng_normal(rng->key, rng->counter++);
}
