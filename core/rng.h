/* Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random
 * numbers: as easy as 1, 2, 3", SC11). A number is a pure function of (key, counter), so a sample
 * does not depend on who draws it, when, or with whom it shares a batch. No state but what the
 * caller holds; every function may be called from any thread.
 *
 * Layout of the 128-bit counter: words 0-1 the caller's 64-bit counter, word 2 the kind of draw
 * (so that uniform, below, normal and permutation of one key never share bits), word 3 the attempt
 * of draws that may reject. */
#ifndef FORESIGHT_CORE_RNG_H
#define FORESIGHT_CORE_RNG_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct rl_rng_key {
    uint32_t k[2];
};

/* The raw generator: ten rounds. `out` may be `counter`. */
void rl_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* Key of one stream: the first 64 bits of Philox with `seed` as its key and (a, b) as its counter.
 * By convention `seed` is the run's, `a` names the prompt and epoch, `b` the sample; other users
 * put a tag of their own in the top byte of `b`. */
struct rl_rng_key rl_rng_key_make(uint64_t seed, uint64_t a, uint64_t b);

/* 64 uniform bits. */
uint64_t rl_rng_bits(struct rl_rng_key key, uint64_t counter);

/* Uniform in [0, 1): 53 bits. */
double rl_rng_uniform(struct rl_rng_key key, uint64_t counter);

/* Uniform in [0, 1): 24 bits, exact in a float. */
float rl_rng_uniform_float(struct rl_rng_key key, uint64_t counter);

/* Unbiased integer in [0, limit); limit >= 1 (0 is taken as 1). */
uint64_t rl_rng_below(struct rl_rng_key key, uint64_t counter, uint64_t limit);

/* Standard normal (Box-Muller in double, one value per counter). Uses log, sqrt and cos of the C
 * library: bits are the same for one library, not across libraries. */
double rl_rng_normal(struct rl_rng_key key, uint64_t counter);

/* Keyed Fisher-Yates shuffle of 0 .. n-1 into out [n]. */
void rl_rng_permutation(struct rl_rng_key key, uint64_t n, uint64_t *out);

/* A sequence: the same draws with a counter that advances by one a draw. Plain data: copy it to
 * fork, store both fields to resume. One thread at a time. */
struct rl_rng {
    struct rl_rng_key key;
    uint64_t counter; /* of the next draw */
};

/* Start stream `stream` of `seed`. */
struct rl_rng rl_rng_make(uint64_t seed, uint64_t stream);

/* Next draw of the sequence: 64 bits; [0, 1); [0, limit); standard normal. */
uint64_t rl_rng_next_bits(struct rl_rng *rng);
double rl_rng_next_uniform(struct rl_rng *rng);
uint64_t rl_rng_next_below(struct rl_rng *rng, uint64_t limit);
double rl_rng_next_normal(struct rl_rng *rng);

#ifdef __cplusplus
}
#endif

#endif
