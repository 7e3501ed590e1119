/* Learners' sums by NCCL. Built twice: with a GPU and NCCL, one learner alone goes the way of many;
 * on emulated GPUs with an emulated NCCL (tests/emulation/emulation_nccl.cpp, which says how it is
 * told to fail) there are several, and things go wrong. Those cases run this very program again
 * under mpirun (rank_launch.h). */
#include "core/clock.h"
#include "core/pool.h"
#include "kernels/device.h"
#include "tests/rank_launch.h"
#include "transport/channel_mpi.h"
#include "transport/collective_gpu.h"
#include "transport/collective_nccl.h"
#include "transport/world.h"

#include <check.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RANKS_MAX = 3, STAGED = COLLECTIVE_NCCL_STAGING / sizeof(float) };

static float value_of(int rank, int64_t i)
{
    return (float)((i * 7919 + rank * 104729) % 1000003) * 1e-3F;
}

/* --- one learner ----------------------------------------------------------------------------- */

/* Alone, summing and gathering change nothing. */
static void check_alone(struct collective *c, struct device *device, struct rl_pool *pool,
                        int64_t count)
{
    const size_t bytes = (size_t)count * sizeof(float);
    float *host = malloc(bytes);
    void *data = NULL;
    ck_assert_ptr_nonnull(host);
    for (int64_t i = 0; i < count; i++) {
        host[i] = value_of(0, i);
    }
    ck_assert_int_eq(device_buffer_alloc(device, bytes, "values", &data), RL_OK);
    device_write(pool, data, host, bytes);
    ck_assert_int_eq(c->device->ops->sum_share(c->device, data, (int64_t[]){0, count}), RL_OK);
    ck_assert_int_eq(c->device->ops->gather(c->device, (int64_t[]){0, (int64_t)bytes}, data),
                     RL_OK);
    memset(host, 0, bytes);
    ck_assert_int_eq(device_read(pool, host, data, bytes), RL_OK);
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; i++) {
        wrong += host[i] != value_of(0, i);
    }
    ck_assert_int_eq(wrong, 0);
    device_buffer_free(device, data);
    free(host);
}

START_TEST(one_learner)
{
    struct device_survey gpus;
    struct collective_nccl_survey nccl;
    struct device *device = NULL;
    struct rl_pool *pool = NULL;
    struct collective *c = NULL;
    device_gpu_survey(&gpus);
    collective_nccl_survey(&nccl);
    if (gpus.count == 0 || nccl.version == 0) {
        printf("one_learner: nothing tried: %s %s\n", gpus.problem, nccl.problem);
        return;
    }
    ck_assert_int_eq(device_gpu_open(0, &device), RL_OK);
    ck_assert_int_eq(rl_pool_create(1, &pool), RL_OK);
    ck_assert_int_eq(device_stream_start(device, pool), RL_OK);
    ck_assert_int_eq(collective_local_create(&c), RL_OK);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(collective_nccl_connect(c, device, pool, 60, &c->device), RL_OK);
        check_alone(c, device, pool, i == 0 ? STAGED + 1000 : 1000);
        collective_gpu_stop(c);
    }
    collective_destroy(c);
    device_stream_stop(pool);
    rl_pool_destroy(pool);
    device_close(device);
}
END_TEST

#if SUPPORT_EMULATED

/* --- the ranks' side ------------------------------------------------------------------------- */

struct rank {
    const char *name;
    struct world *world;
    struct channel *channel;
    struct collective *collective; /* NULL on the last rank, which is no learner */
    struct device *device;
    struct rl_pool *pool;
    int code; /* that it ends with */
    atomic_bool finished;
};

/* The sum at element i of what `value_of` gives, begun at `first` and going round. */
static float sum_from(int first, int size, int64_t i)
{
    float sum = value_of(first % size, i);
    for (int step = 1; step < size; step++) {
        sum += value_of((first + step) % size, i);
    }
    return sum;
}

static void set_bounds(int kind, int64_t count, int size, int64_t *bounds)
{
    for (int rank = 0; rank <= size; rank++) {
        bounds[rank] = rank == 0 ? 0 : count; /* all is the first one's */
    }
    for (int rank = 1; rank < size && kind > 0; rank++) {
        bounds[rank] = kind == 1 ? count / size * rank : rank; /* alike, or mostly the last one's */
    }
}

/* Sum by shares and gather, as learners do; returns the first failure. */
static rl_status sum_and_gather(struct rank *r, int64_t count, int kind, float *host)
{
    int size = r->collective->size;
    size_t bytes = (size_t)count * sizeof(float);
    int64_t bounds[RANKS_MAX + 1];
    int64_t byte_bounds[RANKS_MAX + 1];
    void *data = NULL;
    set_bounds(kind, count, size, bounds);
    for (int rank = 0; rank <= size; rank++) {
        byte_bounds[rank] = bounds[rank] * (int64_t)sizeof(float);
    }
    for (int64_t i = 0; i < count; i++) {
        host[i] = value_of(r->collective->rank, i);
    }
    RANK_CHECK(device_buffer_alloc(r->device, bytes, "values", &data) == RL_OK);
    device_write(r->pool, data, host, bytes);
    rl_status status = collective_device_sum_share(r->collective, r->pool, data, bounds);
    if (status == RL_OK) {
        status = collective_device_gather(r->collective, r->pool, byte_bounds, data);
    }
    if (status == RL_OK) {
        status = device_read(r->pool, host, data, bytes);
    }
    device_buffer_free(r->device, data);
    return status;
}

/* Every element is the sum in the order of the way that was to be taken. */
static void check_sums(struct rank *r, int64_t count, int kind, bool nccl)
{
    float *host = malloc((size_t)count * sizeof(float));
    int64_t bounds[RANKS_MAX + 1];
    int size = r->collective->size;
    RANK_CHECK(host != NULL && sum_and_gather(r, count, kind, host) == RL_OK);
    set_bounds(kind, count, size, bounds);
    for (int owner = 0; owner < size; owner++) {
        for (int64_t i = bounds[owner]; i < bounds[owner + 1]; i++) {
            RANK_CHECK(host[i] == sum_from(nccl ? owner + 1 : 0, size, i));
        }
    }
    free(host);
}

static void case_sums(struct rank *r)
{
    RANK_CHECK(r->collective->device != NULL);
    for (int kind = 0; kind < 3; kind++) {
        check_sums(r, 100003, kind, true);
    }
    check_sums(r, STAGED / 3 + 1000, 0, true); /* a window and a little more, of one rank */
}

/* By way of the host: something was in the way, on one rank or on all. */
static void case_host(struct rank *r)
{
    RANK_CHECK(r->collective->device == NULL);
    check_sums(r, 100003, 1, false);
}

/* An operation fails in the end, here and everywhere, and none is begun after it. */
static void case_broken(struct rank *r)
{
    float host[1000];
    rl_status status = RL_OK;
    RANK_CHECK(r->collective->device != NULL);
    double started_s = rl_clock_now_s(NULL);
    for (int i = 0; i < 4 && status == RL_OK; i++) {
        status = sum_and_gather(r, 1000, 1, host);
    }
    RANK_CHECK(status != RL_OK && rl_clock_now_s(NULL) - started_s < 60);
    RANK_CHECK(collective_barrier(r->collective) != RL_OK);
    RANK_CHECK(sum_and_gather(r, 1000, 1, host) != RL_OK);
    RANK_CHECK(device_wait(r->pool) == RL_OK); /* its GPU is as good as ever */
}

/* As above; who is left knows that it was a loss. */
static void case_death(struct rank *r)
{
    case_broken(r);
    RANK_CHECK(collective_mpi_health(r->collective) == RL_PEER_LOST);
    r->code = 5;
}

static void learn(struct rank *r)
{
    struct device_survey survey;
    device_gpu_survey(&survey);
    RANK_CHECK(device_gpu_open(world_local_rank(r->world) % survey.count, &r->device) == RL_OK);
    RANK_CHECK(rl_pool_create(1, &r->pool) == RL_OK);
    RANK_CHECK(device_stream_start(r->device, r->pool) == RL_OK);
    bool fails = strcmp(r->name, "broken") == 0 || strcmp(r->name, "host") == 0;
    RANK_CHECK(collective_gpu_start(r->collective, r->device, r->pool, fails ? 3 : 60) == RL_OK);
    if (strcmp(r->name, "sums") == 0) {
        case_sums(r);
    } else if (strcmp(r->name, "host") == 0) {
        case_host(r);
    } else if (strcmp(r->name, "death") == 0) {
        case_death(r);
    } else {
        case_broken(r);
    }
    collective_gpu_stop(r->collective);
    device_stream_stop(r->pool);
    rl_pool_destroy(r->pool);
    device_close(r->device);
}

static void *compute(void *arg)
{
    struct rank *r = arg;
    if (r->collective != NULL) {
        learn(r);
    }
    atomic_store(&r->finished, true);
    return NULL;
}

static bool rank_is_finished(void *arg)
{
    return atomic_load(&((struct rank *)arg)->finished);
}

static int rank_main(const char *name)
{
    struct rank r = {.name = name};
    struct channel_mpi_options options = {.ring_messages = 4,
                                          .credits = 4,
                                          .heartbeat_s = 0.05,
                                          .dead_after_s = 30,
                                          .first_contact_s = 60};
    pthread_t thread;
    RANK_CHECK(world_open(NULL, NULL, &r.world) == RL_OK);
    int learners = world_size(r.world) - 1;
    RANK_CHECK(world_form(r.world, learners) == RL_OK);
    if (world_rank(r.world) < learners) {
        RANK_CHECK(collective_mpi_create(r.world, 60, &r.collective) == RL_OK);
    }
    RANK_CHECK(channel_mpi_create(r.world, &options, &r.channel) == RL_OK);
    RANK_CHECK(pthread_create(&thread, NULL, compute, &r) == 0);
    RANK_CHECK(channel_mpi_pump(r.channel, r.collective, rank_is_finished, &r, 100) == RL_OK);
    pthread_join(thread, NULL);
    if (r.collective != NULL) {
        puts("done");
        fflush(stdout);
    }
    channel_close(r.channel);
    collective_destroy(r.collective);
    world_close(r.world, r.code, 30);
    return r.code;
}

/* --- the test's side ------------------------------------------------------------------------- */

#define GPUS "FORESIGHT_EMULATED_GPUS="
#define TROUBLE "FORESIGHT_EMULATED_NCCL="

START_TEST(cases)
{
    static const struct rank_launch launches[] = {
        {"sums", "4", {GPUS "3"}, false, 3, 0},
        {"host", "3", {GPUS "1"}, false, 2, 0},                       /* both on one GPU */
        {"host", "3", {GPUS "2", TROUBLE "none:0:1"}, false, 2, 0},   /* one has no NCCL */
        {"host", "3", {GPUS "2", TROUBLE "fail:0:1"}, false, 2, 0},   /* they cannot meet */
        {"broken", "3", {GPUS "2", TROUBLE "hang:3:1"}, false, 2, 0}, /* a GPU does not come back */
        {"broken", "3", {GPUS "2", TROUBLE "fail:2:1"}, false, 2, 0},
        {"death", "3", {GPUS "2", TROUBLE "die:2:1"}, true, 1, 1},
    };
    rank_launch_check(&launches[_i]);
}
END_TEST

#endif

static int check_main(void)
{
    Suite *suite = suite_create("nccl");
    TCase *tests = tcase_create("ranks");
    tcase_set_timeout(tests, 250);
    tcase_add_test(tests, one_learner);
#if SUPPORT_EMULATED
    tcase_add_loop_test(tests, cases, 0, 7);
#endif
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}

#if SUPPORT_EMULATED
int main(int argc, char **argv)
{
    return argc == 3 && strcmp(argv[1], "--rank") == 0 ? rank_main(argv[2]) : check_main();
}
#else
int main(void)
{
    return check_main();
}
#endif
