/* Weight deltas and the history of masks, as pure functions: lossless over random changes, refused
 * when cut, flipped, or meant for something else; unions that lead from any recent version. */
#include "transport/weight_delta.h"
#include "transport/weight_history.h"

#include "core/log.h"
#include "core/rng.h"

#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { IMAGE_BYTES = 64 * 96, VERSIONS = 12, DEPTH = 4 };

/* Version 0 .. VERSIONS-1 of an image, and the mask from each to the next. */
struct chain {
    uint32_t width;
    unsigned char images[VERSIONS][IMAGE_BYTES];
    uint8_t masks[VERSIONS][IMAGE_BYTES / 16]; /* masks[v]: from v-1 */
    uint64_t hash[VERSIONS];
};

/* Every element changes with probability `share` from version to version. */
static void chain_make(struct chain *chain, uint32_t width, double share, uint64_t seed)
{
    struct rl_rng rng = rl_rng_make(seed, 5);
    memset(chain, 0, sizeof *chain);
    chain->width = width;
    for (size_t i = 0; i < IMAGE_BYTES; i++) {
        chain->images[0][i] = (unsigned char)rl_rng_next_bits(&rng);
    }
    for (int v = 1; v < VERSIONS; v++) {
        memcpy(chain->images[v], chain->images[v - 1], IMAGE_BYTES);
        for (size_t e = 0; e < IMAGE_BYTES / width; e++) {
            if ((double)rl_rng_next_below(&rng, 1 << 20) < share * (1 << 20)) {
                chain->images[v][e * width + rl_rng_next_below(&rng, width)] ^=
                    (unsigned char)(1 + rl_rng_next_below(&rng, 255));
                chain->masks[v][e / 8] |= (uint8_t)(1U << (e % 8));
            }
        }
    }
    for (int v = 0; v < VERSIONS; v++) {
        chain->hash[v] = XXH3_64bits(chain->images[v], IMAGE_BYTES);
    }
}

static struct weight_delta_info chain_info(const struct chain *chain, int base, int version)
{
    return (struct weight_delta_info){.base_version = (uint32_t)base,
                                      .version = (uint32_t)version,
                                      .element_bytes = chain->width,
                                      .image_bytes = IMAGE_BYTES,
                                      .base_hash = chain->hash[base],
                                      .hash = chain->hash[version]};
}

static struct weight_delta_base chain_base(const struct chain *chain, int version)
{
    return (struct weight_delta_base){.image = chain->images[version],
                                      .image_bytes = IMAGE_BYTES,
                                      .version = (uint32_t)version,
                                      .hash = chain->hash[version]};
}

/* Delta from version base to base + 1; the caller frees it. */
static void *chain_encode(const struct chain *chain, int base, size_t *bytes)
{
    void *delta = NULL;
    struct weight_delta_info info = chain_info(chain, base, base + 1);
    ck_assert_int_eq(
        weight_delta_encode(&info, chain->masks[base + 1], chain->images[base + 1], &delta, bytes),
        RL_OK);
    return delta;
}

static struct chain chain;
static unsigned char result[IMAGE_BYTES];

START_TEST(lossless)
{
    static const double shares[] = {0.0, 0.0005, 0.02, 0.5, 1.0};
    double share = shares[_i / 2];
    chain_make(&chain, _i % 2 == 0 ? 2 : 4, share, (uint64_t)_i);
    for (int v = 0; v + 1 < VERSIONS; v++) {
        size_t bytes = 0;
        struct weight_delta_info info;
        struct weight_delta_base base = chain_base(&chain, v);
        void *delta = chain_encode(&chain, v, &bytes);
        ck_assert_int_eq(weight_delta_inspect(delta, bytes, &info), RL_OK);
        ck_assert_uint_eq(info.version, (uint32_t)v + 1);
        ck_assert_uint_eq(info.hash, chain.hash[v + 1]);
        memset(result, 0x33, sizeof result);
        ck_assert_int_eq(weight_delta_apply(delta, bytes, &base, result), RL_OK);
        ck_assert_mem_eq(result, chain.images[v + 1], IMAGE_BYTES);
        base.image = result; /* in place, and idempotent */
        ck_assert_int_eq(weight_delta_apply(delta, bytes, &base, result), RL_OK);
        ck_assert_mem_eq(result, chain.images[v + 1], IMAGE_BYTES);
        ck_assert_uint_lt(bytes, 400 + (size_t)((share + 0.05) * IMAGE_BYTES * 1.6));
        free(delta);
    }
}
END_TEST

START_TEST(wrong_bases_are_refused)
{
    chain_make(&chain, 2, 0.02, 7);
    size_t bytes = 0;
    void *delta = chain_encode(&chain, 3, &bytes);
    struct weight_delta_base other = chain_base(&chain, 2);
    ck_assert_int_eq(weight_delta_apply(delta, bytes, &other, result), RL_INVALID);
    other.version = 3; /* the right number, other weights */
    ck_assert_int_eq(weight_delta_apply(delta, bytes, &other, result), RL_INVALID);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "hash"));
    other.hash = chain.hash[3]; /* a base whose bytes are not what its hash says */
    ck_assert_int_eq(weight_delta_apply(delta, bytes, &other, result), RL_CORRUPT);
    other = chain_base(&chain, 3);
    other.image_bytes -= 64;
    ck_assert_int_eq(weight_delta_apply(delta, bytes, &other, result), RL_INVALID);
    free(delta);
    struct weight_delta_info odd = chain_info(&chain, 0, 1);
    odd.image_bytes = 24;
    ck_assert_int_eq(weight_delta_encode(&odd, chain.masks[1], chain.images[1], &delta, &bytes),
                     RL_INVALID);
}
END_TEST

/* Every cut and every flipped bit is seen. */
START_TEST(damage_is_refused)
{
    chain_make(&chain, 2, 0.02, 8);
    size_t bytes = 0;
    unsigned char *delta = chain_encode(&chain, 0, &bytes);
    struct weight_delta_base base = chain_base(&chain, 0);
    for (size_t length = 0; length < bytes; length++) {
        unsigned char *cut = malloc(length + 1); /* exactly as long: nothing is read beyond */
        memcpy(cut, delta, length);
        ck_assert_int_eq(weight_delta_apply(cut, length, &base, result), RL_CORRUPT);
        free(cut);
    }
    for (size_t i = 0; i < bytes; i++) {
        delta[i] ^= (unsigned char)(1U << (i % 8));
        rl_status status = weight_delta_apply(delta, bytes, &base, result);
        ck_assert_msg(status == RL_CORRUPT, "byte %zu: %s", i, rl_status_name(status));
        delta[i] ^= (unsigned char)(1U << (i % 8));
    }
    ck_assert_int_eq(weight_delta_apply(delta, bytes, &base, result), RL_OK);
    free(delta);
}
END_TEST

START_TEST(unions)
{
    struct weight_history *history = NULL;
    uint8_t mask[IMAGE_BYTES / 16];
    chain_make(&chain, 2, 0.01, 9);
    ck_assert_int_eq(weight_history_create(sizeof mask, 0, &history), RL_INVALID);
    ck_assert_int_eq(weight_history_create(sizeof mask, DEPTH, &history), RL_OK);
    ck_assert_int_eq(weight_history_union(history, 0, 1, mask), RL_NOT_FOUND);
    memset(weight_history_pending(history), 0xff, sizeof mask); /* leads from nowhere */
    weight_history_commit(history, 0);
    ck_assert_int_eq(weight_history_union(history, 0, 0, mask), RL_OK);
    for (int v = 1; v < VERSIONS; v++) {
        memset(weight_history_pending(history), 0x77, sizeof mask); /* an earlier update's */
        memcpy(weight_history_pending(history), chain.masks[v], sizeof mask);
        weight_history_commit(history, (uint32_t)v);
        for (int base = 0; base <= v; base++) {
            rl_status status = weight_history_union(history, (uint32_t)base, (uint32_t)v, mask);
            ck_assert_int_eq(status, v - base <= DEPTH ? RL_OK : RL_NOT_FOUND);
            if (status != RL_OK) {
                continue;
            }
            struct weight_delta_info info = chain_info(&chain, base, v);
            struct weight_delta_base from = chain_base(&chain, base);
            void *delta = NULL;
            size_t bytes = 0;
            ck_assert_int_eq(weight_delta_encode(&info, mask, chain.images[v], &delta, &bytes),
                             RL_OK);
            ck_assert_int_eq(weight_delta_apply(delta, bytes, &from, result), RL_OK);
            free(delta);
        }
        ck_assert_int_eq(weight_history_union(history, (uint32_t)v, 0, mask), RL_NOT_FOUND);
        ck_assert_int_eq(weight_history_union(history, 0, (uint32_t)v + 1, mask), RL_NOT_FOUND);
    }
    memset(weight_history_pending(history), 0, sizeof mask);
    weight_history_pending(history)[7] = 0x15;
    ck_assert_uint_eq(weight_history_pending_count(history), 3);
    weight_history_destroy(history);
}
END_TEST

struct asker {
    struct weight_history *history;
    atomic_uint newest;
    atomic_bool stop;
    uint64_t whole;
    bool failed;
};

/* Mask v has every byte equal to v's bit: a union of the last two is their OR, everywhere. */
static void *ask(void *arg)
{
    enum { BYTES = 3 << 20 };
    struct asker *asker = arg;
    uint8_t *mask = malloc(BYTES);
    while (!atomic_load(&asker->stop)) {
        uint32_t newest = atomic_load(&asker->newest);
        if (newest < 2 || weight_history_union(asker->history, newest - 2, newest, mask) != RL_OK) {
            continue;
        }
        uint8_t expected = (uint8_t)(1U << (newest % 8) | 1U << ((newest - 1) % 8));
        for (size_t i = 0; i < BYTES; i += 4093) {
            asker->failed = asker->failed || mask[i] != expected;
        }
        asker->whole++;
    }
    free(mask);
    return NULL;
}

/* The writer goes on while unions are made in pieces: each is whole or refused. */
START_TEST(unions_beside_commits)
{
    enum { BYTES = 3 << 20 };
    struct asker asker = {0};
    pthread_t thread;
    ck_assert_int_eq(weight_history_create(BYTES, DEPTH, &asker.history), RL_OK);
    ck_assert_int_eq(pthread_create(&thread, NULL, ask, &asker), 0);
    for (uint32_t v = 0; v < 300; v++) {
        memset(weight_history_pending(asker.history), 1 << (v % 8), BYTES);
        weight_history_commit(asker.history, v);
        atomic_store(&asker.newest, v);
    }
    atomic_store(&asker.stop, true);
    pthread_join(thread, NULL);
    ck_assert(!asker.failed);
    weight_history_destroy(asker.history);
}
END_TEST

int main(void)
{
    rl_log_set_level((enum rl_log_level) - 1);
    Suite *suite = suite_create("weight_delta");
    TCase *tests = tcase_create("deltas");
    tcase_set_timeout(tests, 60);
    tcase_add_loop_test(tests, lossless, 0, 10);
    tcase_add_test(tests, wrong_bases_are_refused);
    tcase_add_test(tests, damage_is_refused);
    tcase_add_test(tests, unions);
    tcase_add_test(tests, unions_beside_commits);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
