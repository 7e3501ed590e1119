/* Collectives over arrays in a device's memory, by way of the host's: the bits of the host's own,
 * whatever the parts and however many windows they take. */
#include "core/pool.h"
#include "kernels/device.h"
#include "tests/collective_threads.h"
#include "tests/walled_device.h"

#include <check.h>
#include <stdio.h>

enum { RANKS = 3, COUNT = 5 << 20 /* floats: two windows */ };

static const int64_t parts[][RANKS + 1] = {
    {0, COUNT / 3, 2 * (COUNT / 3), COUNT}, {0, 0, COUNT - 5, COUNT}, {0, 3, 3, 3}, {0, 0, 0, 0}};

struct rank {
    struct team *team;
    int rank;
    const int64_t *bounds;
    bool walled;
};

static float value_of(int rank, int64_t i)
{
    return (float)((i * 7919 + rank * 104729) % 1000003) * 1e-3F;
}

/* The same operations on the host's memory and on the device's. */
static void compare(const struct rank *r, struct collective *c, struct rl_pool *pool, float *data)
{
    int64_t count = r->bounds[RANKS];
    size_t bytes = (size_t)count * sizeof(float);
    int64_t byte_bounds[RANKS + 1];
    float *host = malloc(bytes + 1);
    float *back = malloc(bytes + 1);
    for (int64_t i = 0; i < count; i++) {
        host[i] = value_of(r->rank, i);
    }
    for (int i = 0; i <= RANKS; i++) {
        byte_bounds[i] = r->bounds[i] * (int64_t)sizeof(float);
    }
    device_write(pool, data, host, bytes);
    MUST(collective_sum_share(c, host, r->bounds) == RL_OK);
    MUST(collective_device_sum_share(c, pool, data, r->bounds) == RL_OK);
    MUST(device_read(pool, back, data, bytes) == RL_OK);
    MUST(memcmp(host, back, bytes) == 0); /* the other parts as they were, too */
    MUST(collective_gather(c, (char *)host + byte_bounds[r->rank], byte_bounds, host,
                           COLLECTIVE_ALL) == RL_OK);
    MUST(collective_device_gather(c, pool, byte_bounds, data) == RL_OK);
    MUST(device_read(pool, back, data, bytes) == RL_OK);
    MUST(memcmp(host, back, bytes) == 0);
    free(back);
    free(host);
}

static void *rank_main(void *arg)
{
    const struct rank *r = arg;
    struct device *device = r->walled ? walled_device() : NULL;
    struct collective *c = team_join(r->team, r->rank);
    struct rl_pool *pool = NULL;
    void *data = NULL;
    MUST(rl_pool_create(1, &pool) == RL_OK);
    MUST(device_stream_start(device, pool) == RL_OK);
    MUST(device_buffer_alloc(device, COUNT * sizeof(float), "values", &data) == RL_OK);
    compare(r, c, pool, data);
    device_buffer_free(device, data);
    device_stream_stop(pool);
    rl_pool_destroy(pool);
    collective_destroy(c);
    return NULL;
}

START_TEST(by_way_of_the_host)
{
    struct team team = {.size = RANKS};
    struct rank ranks[RANKS];
    ck_assert_int_eq(pthread_barrier_init(&team.barrier, NULL, RANKS), 0);
    for (int i = 0; i < RANKS; i++) {
        ranks[i] = (struct rank){&team, i, parts[_i / 2], _i % 2 == 1};
    }
    team_run(RANKS, rank_main, ranks, sizeof(ranks[0]));
    pthread_barrier_destroy(&team.barrier);
    ck_assert_int_eq(walled_held(), 0);
}
END_TEST

/* Alone there is nothing to sum. */
START_TEST(alone)
{
    struct collective *c = NULL;
    float values[2] = {1, 2};
    ck_assert_int_eq(collective_local_create(&c), RL_OK);
    ck_assert_int_eq(collective_device_sum_share(c, NULL, values, (int64_t[]){0, 2}), RL_OK);
    ck_assert_int_eq(collective_device_gather(c, NULL, (int64_t[]){0, 8}, values), RL_OK);
    ck_assert(values[0] == 1 && values[1] == 2);
    collective_destroy(c);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("collectives on devices");
    TCase *tests = tcase_create("all");
    tcase_add_loop_test(tests, by_way_of_the_host, 0, 2 * (int)(sizeof(parts) / sizeof(parts[0])));
    tcase_add_test(tests, alone);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
