/* A seeded mutation driver for fuzz_targets, for compilers without libFuzzer. The same seed makes
 * the same inputs; what was accepted joins the pool that further inputs are made from. The input in
 * work lies in a file that survives a crash. */
#ifndef FORESIGHT_TESTS_FUZZ_DRIVER_H
#define FORESIGHT_TESTS_FUZZ_DRIVER_H

#include "core/clock.h"
#include "core/rng.h"
#include "tests/fuzz_seeds.h"

#include <fcntl.h>
#include <sys/mman.h>

enum { FUZZ_BYTES_MAX = 8192, FUZZ_POOL = 128 };

struct fuzz_input {
    size_t bytes;
    uint8_t data[FUZZ_BYTES_MAX];
};

struct fuzz_pool {
    struct fuzz_input inputs[FUZZ_POOL];
    size_t count, seeds;
};

static inline void fuzz_pool_add(struct fuzz_pool *pool, struct rl_rng *rng, const void *data,
                                 size_t bytes)
{
    size_t at = pool->count;
    if (bytes > FUZZ_BYTES_MAX) {
        return;
    }
    if (at == FUZZ_POOL) { /* replace one that is no seed */
        at = pool->seeds + rl_rng_next_below(rng, FUZZ_POOL - pool->seeds);
    } else {
        pool->count++;
    }
    pool->inputs[at].bytes = bytes;
    memcpy(pool->inputs[at].data, data, bytes);
}

/* Replace input[at, at + cut) by `put` [put_bytes], cut at the size limit. Not inlined: the
 * compiler would guess at sizes that cannot be. */
static __attribute__((noinline, unused)) void
fuzz_splice(struct fuzz_input *input, size_t at, size_t cut, const void *put, size_t put_bytes)
{
    size_t tail = input->bytes - at - cut;
    put_bytes = at + put_bytes > FUZZ_BYTES_MAX ? FUZZ_BYTES_MAX - at : put_bytes;
    tail = at + put_bytes + tail > FUZZ_BYTES_MAX ? FUZZ_BYTES_MAX - at - put_bytes : tail;
    memmove(input->data + at + put_bytes, input->data + at + cut, tail);
    memmove(input->data + at, put, put_bytes);
    input->bytes = at + put_bytes + tail;
}

static inline void fuzz_mutate_once(struct fuzz_input *input, struct rl_rng *rng,
                                    const struct fuzz_pool *pool, const char *const *words)
{
    static const uint64_t numbers[] = {0,          1,          0x7f,       0xff, 0x7fffffff,
                                       0x80000000, 0xffffffff, UINT64_MAX, 100,  INT64_MAX};
    size_t at = rl_rng_next_below(rng, input->bytes + 1);
    size_t left = input->bytes - at;
    size_t run = left > 0 ? 1 + rl_rng_next_below(rng, left < 64 ? left : 64) : 0;
    uint8_t piece[256] = {0};
    size_t word_count = 0;
    while (words[word_count] != NULL) {
        word_count++;
    }
    switch (rl_rng_next_below(rng, word_count > 0 ? 8 : 6)) {
    case 0:
        if (left > 0) {
            input->data[at] ^= (uint8_t)(1U << rl_rng_next_below(rng, 8));
        }
        return;
    case 1:
        if (left > 0) {
            input->data[at] = (uint8_t)rl_rng_next_bits(rng);
        }
        return;
    case 2:
        fuzz_splice(input, at, run, piece, 0);
        return;
    case 3: /* the same again, elsewhere */
        memcpy(piece, input->data + at, run);
        fuzz_splice(input, rl_rng_next_below(rng, input->bytes + 1), 0, piece, run);
        return;
    case 4: { /* a number where one may be */
        size_t width = (size_t)1 << rl_rng_next_below(rng, 4);
        uint64_t number = numbers[rl_rng_next_below(rng, sizeof(numbers) / sizeof(numbers[0]))];
        memcpy(piece, &number, sizeof(number));
        fuzz_splice(input, at, width <= left ? width : left, piece, width <= left ? width : left);
        return;
    }
    case 5: { /* a piece of another input */
        const struct fuzz_input *other = &pool->inputs[rl_rng_next_below(rng, pool->count)];
        size_t from = rl_rng_next_below(rng, other->bytes + 1);
        size_t most = other->bytes - from;
        fuzz_splice(input, at, run, other->data + from,
                    most > 0 ? rl_rng_next_below(rng, most) : 0);
        return;
    }
    default: {
        const char *word = words[rl_rng_next_below(rng, word_count)];
        size_t length = strlen(word);
        fuzz_splice(input, at, rl_rng_next_below(rng, 2) == 0 ? 0 : run, word, length);
        return;
    }
    }
}

static inline void fuzz_pool_fill(struct fuzz_pool *pool, const struct fuzz_target *target,
                                  struct rl_rng *rng)
{
    struct fuzz_seed frames[8];
    const struct fuzz_seed *seeds = target->seeds;
    size_t count = 0;
    if (seeds == NULL) {
        count = target->make(frames);
        seeds = frames;
    } else {
        while (seeds[count].data != NULL) {
            count++;
        }
    }
    for (size_t i = 0; i < count; i++) {
        fuzz_pool_add(pool, rng, seeds[i].data, seeds[i].bytes);
    }
    pool->seeds = pool->count;
}

struct fuzz_result {
    uint64_t runs, accepted, seeds_accepted, seeds;
    double slowest_s;
};

/* Run a target for so many seconds. `crash_path` (may be NULL): a file that always holds the input
 * in work: a struct fuzz_input. */
static inline struct fuzz_result fuzz_run(const struct fuzz_target *target, uint64_t seed,
                                          double seconds, const char *crash_path)
{
    struct fuzz_result result = {0};
    struct fuzz_pool *pool = calloc(1, sizeof(*pool));
    struct fuzz_input *input = NULL;
    struct rl_rng rng = rl_rng_make(seed, 0);
    int fd = crash_path != NULL ? open(crash_path, O_RDWR | O_CREAT | O_TRUNC, 0644) : -1;
    void *memory = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)sizeof(*input)) == 0) {
        memory = mmap(NULL, sizeof(*input), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    input = memory != MAP_FAILED ? memory : calloc(1, sizeof(*input));
    fuzz_must(pool != NULL && input != NULL, "memory");
    fuzz_pool_fill(pool, target, &rng);
    result.seeds = pool->seeds;
    double end_s = rl_clock_now_s(NULL) + seconds;
    for (double now_s = 0; now_s < end_s; result.runs++) {
        bool plain = result.runs < pool->seeds;
        size_t from = plain ? result.runs : rl_rng_next_below(&rng, pool->count);
        uint64_t edits = plain ? 0 : 1 + rl_rng_next_below(&rng, 6);
        *input = pool->inputs[from];
        while (edits-- > 0) {
            fuzz_mutate_once(input, &rng, pool, target->words);
        }
        double start_s = rl_clock_now_s(NULL);
        /* A copy of exactly its size, so that reading past the end is seen. */
        uint8_t *data = malloc(input->bytes > 0 ? input->bytes : 1);
        fuzz_must(data != NULL, "memory");
        memcpy(data, input->data, input->bytes);
        bool accepted = target->run(data, input->bytes);
        free(data);
        now_s = rl_clock_now_s(NULL);
        result.slowest_s = now_s - start_s > result.slowest_s ? now_s - start_s : result.slowest_s;
        result.accepted += accepted;
        result.seeds_accepted += plain && accepted;
        if (accepted && !plain) {
            fuzz_pool_add(pool, &rng, input->data, input->bytes);
        }
    }
    if (memory != MAP_FAILED) {
        munmap(memory, sizeof(*input));
    } else {
        free(input);
    }
    if (fd >= 0) {
        close(fd);
        unlink(crash_path);
    }
    free(pool);
    fuzz_clean();
    return result;
}

#endif
