/* The scoring pool: every sample is scored once, a full pool says so without blocking, a function
 * that hangs costs its own sample and nothing else, and what it holds stays sound until it wakes.
 */
#include "core/clock.h"
#include "core/log.h"
#include "rewards/reward.h"
#include "rewards/reward_ops.h"

#include <check.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GROUP_SAMPLES = 4 };

static atomic_bool let_go;      /* hanging functions return once this is set */
static atomic_int hanging;      /* threads inside the hanging branch */
static atomic_int woken_length; /* bytes of input that woken threads still read correctly */

/* The test's own reward: "hang" waits for let_go, anything else is worth its number. */
static void scripted_score(const void *state, const struct reward_input *input,
                           struct reward_output *out)
{
    (void)state;
    if (strncmp(input->completion, "hang", 4) == 0) {
        atomic_fetch_add(&hanging, 1);
        while (!atomic_load(&let_go)) {
            rl_clock_sleep_s(NULL, 0.001);
        }
        atomic_fetch_add(&woken_length, (int)strlen(input->completion));
        atomic_fetch_sub(&hanging, 1);
    }
    out->valid = true;
    out->value = strtod(input->completion, NULL);
}

static const struct reward_ops scripted_ops = {.name = "scripted", .score = scripted_score};
static const struct reward_ops *const scripted_table[] = {&scripted_ops};

/* Texts: a sample whose prompt_count is 1 hangs, 2 has no text, else its value is its index. */
static rl_status make_text(void *arg, const struct trajectory_group *group, uint32_t index,
                           struct reward_input *input)
{
    atomic_int *open = arg;
    if (group->samples[index].prompt_count == 2) {
        return rl_fail(RL_INVALID, "test: sample %u has no text", index);
    }
    char *text = malloc(64);
    ck_assert_ptr_nonnull(text);
    if (group->samples[index].prompt_count == 1) {
        snprintf(text, 64, "hang");
    } else {
        snprintf(text, 64, "%llu", (unsigned long long)group->ticket * 10 + index);
    }
    atomic_fetch_add(open, 1);
    input->completion = text;
    return RL_OK;
}

static void drop_text(void *arg, struct reward_input *input)
{
    atomic_int *open = arg;
    atomic_fetch_sub(open, 1);
    free((char *)(uintptr_t)input->completion);
}

struct fixture {
    struct rl_config config;
    struct reward_set *set;
    struct reward_pool *pool;
    atomic_int open_texts;
};

static void fixture_init(struct fixture *fixture, int threads, int timeout_ms)
{
    memset(fixture, 0, sizeof(*fixture));
    atomic_store(&let_go, false);
    atomic_store(&hanging, 0);
    atomic_store(&woken_length, 0);
    rl_log_set_level(RL_LOG_ERROR);
    fixture->config.rewards.functions = "scripted";
    fixture->config.rewards.threads = threads;
    fixture->config.rewards.timeout_ms = timeout_ms;
    fixture->config.rollout.max_completion_length = 100;
    fixture->config.transport.ring_groups = 16;
    ck_assert_int_eq(reward_set_create_from_ops(scripted_table, 1, &fixture->config, &fixture->set),
                     RL_OK);
    struct reward_text_ops text = {make_text, drop_text, &fixture->open_texts};
    ck_assert_int_eq(reward_pool_create(fixture->set, &fixture->config, text, &fixture->pool),
                     RL_OK);
}

/* Let the hanging threads go only after everything else is gone, and see them end. */
static void fixture_fini(struct fixture *fixture, int expected_hanging)
{
    reward_pool_destroy(fixture->pool);
    reward_set_destroy(fixture->set);
    ck_assert_int_eq(atomic_load(&hanging), expected_hanging);
    atomic_store(&let_go, true);
    double started = rl_clock_now_s(NULL);
    while (atomic_load(&hanging) > 0 && rl_clock_now_s(NULL) - started < 60.0) {
        rl_clock_sleep_s(NULL, 0.001);
    }
    ck_assert_int_eq(atomic_load(&hanging), 0);
    ck_assert_int_eq(atomic_load(&woken_length), 4 * expected_hanging);
    ck_assert_int_eq(atomic_load(&fixture->open_texts), 0);
    rl_clock_sleep_s(NULL, 0.05); /* the woken threads free what they hold: leaks would show */
}

static struct trajectory_group *make_group(uint64_t ticket)
{
    struct trajectory_group *group = NULL;
    ck_assert_int_eq(trajectory_group_create(GROUP_SAMPLES, &group), RL_OK);
    group->ticket = ticket;
    return group;
}

static struct trajectory_group *take_group(struct reward_pool *pool, double timeout_s)
{
    struct trajectory_group *group = NULL;
    double started = rl_clock_now_s(NULL);
    rl_status status;
    while ((status = reward_pool_take(pool, &group)) == RL_AGAIN) {
        ck_assert_msg(rl_clock_now_s(NULL) - started < timeout_s, "no group within %.1f s",
                      timeout_s);
        rl_clock_sleep_s(NULL, 0.0005);
    }
    ck_assert_int_eq(status, RL_OK);
    return group;
}

static void check_scores(const struct trajectory_group *group)
{
    for (uint32_t i = 0; i < GROUP_SAMPLES; i++) {
        ck_assert(group->samples[i].reward_valid);
        ck_assert_float_eq(group->samples[i].reward, (float)(group->ticket * 10 + i));
        ck_assert_float_eq(group->samples[i].accuracy, (float)(group->ticket * 10 + i));
        ck_assert_uint_eq(group->samples[i].reward_part_count, 1);
    }
}

START_TEST(scores_everything_once)
{
    enum { GROUPS = 500 };
    struct fixture fixture;
    fixture_init(&fixture, 3, 60000);
    bool seen[GROUPS] = {false};
    uint64_t submitted = 0;
    for (uint64_t taken = 0; taken < GROUPS; taken++) {
        struct trajectory_group *group = submitted < GROUPS ? make_group(submitted) : NULL;
        while (group != NULL && reward_pool_submit(fixture.pool, group) == RL_OK) {
            submitted++;
            group = submitted < GROUPS ? make_group(submitted) : NULL;
        }
        trajectory_group_destroy(group);
        group = take_group(fixture.pool, 60.0);
        check_scores(group);
        ck_assert(!seen[group->ticket]);
        seen[group->ticket] = true;
        trajectory_group_destroy(group);
    }
    ck_assert_uint_eq(reward_pool_timeouts(fixture.pool), 0);
    ck_assert_uint_eq(reward_pool_pending(fixture.pool), 0);
    fixture_fini(&fixture, 0);
}
END_TEST

START_TEST(full_pool_refuses)
{
    struct fixture fixture;
    fixture_init(&fixture, 1, 60000);
    for (uint64_t i = 0; i < 16; i++) {
        ck_assert_int_eq(reward_pool_submit(fixture.pool, make_group(i)), RL_OK);
    }
    struct trajectory_group *extra = make_group(16);
    ck_assert_int_eq(reward_pool_submit(fixture.pool, extra), RL_AGAIN);
    ck_assert_uint_eq(reward_pool_pending(fixture.pool), 16);
    trajectory_group_destroy(take_group(fixture.pool, 20.0));
    ck_assert_int_eq(reward_pool_submit(fixture.pool, extra), RL_OK);
    fixture_fini(&fixture, 0); /* destroys what is inside */
}
END_TEST

START_TEST(hanging_function)
{
    struct fixture fixture;
    fixture_init(&fixture, 1, 2000); /* and those that do not hang are not held up for so long */
    struct trajectory_group *group = make_group(1);
    group->samples[1].prompt_count = 1;
    group->samples[3].prompt_count = 1;
    ck_assert_int_eq(reward_pool_submit(fixture.pool, group), RL_OK);
    ck_assert_int_eq(reward_pool_submit(fixture.pool, make_group(2)), RL_OK);
    group = take_group(fixture.pool, 60.0);
    ck_assert_uint_eq(group->ticket, 1);
    ck_assert(group->samples[0].reward_valid);
    ck_assert(!group->samples[1].reward_valid);
    ck_assert(group->samples[2].reward_valid);
    ck_assert(!group->samples[3].reward_valid);
    ck_assert_float_eq(group->samples[1].reward, 0.0F);
    ck_assert_uint_eq(group->samples[1].reward_part_count, 1);
    trajectory_group_destroy(group);
    group = take_group(fixture.pool, 60.0);
    check_scores(group);
    trajectory_group_destroy(group);
    ck_assert_uint_eq(reward_pool_timeouts(fixture.pool), 2);
    fixture_fini(&fixture, 2);
}
END_TEST

START_TEST(destroy_while_hanging)
{
    struct fixture fixture;
    fixture_init(&fixture, 2, 1000);
    struct trajectory_group *group = make_group(1);
    group->samples[0].prompt_count = 1;
    group->samples[1].prompt_count = 1;
    ck_assert_int_eq(reward_pool_submit(fixture.pool, group), RL_OK);
    while (atomic_load(&hanging) < 2) {
        rl_clock_sleep_s(NULL, 0.001);
    }
    double started = rl_clock_now_s(NULL);
    fixture_fini(&fixture, 2);
    ck_assert_double_lt(rl_clock_now_s(NULL) - started, 45.0);
}
END_TEST

/* More hung threads than the pool may lose: later samples are given up, not waited for; and when
 * the threads come back, the pool scores again. */
START_TEST(every_function_hangs)
{
    enum { GROUPS = 30 };
    struct fixture fixture;
    fixture_init(&fixture, 2, 5);
    for (uint64_t i = 0; i < GROUPS; i++) {
        struct trajectory_group *group = make_group(i);
        for (uint32_t j = 0; j < GROUP_SAMPLES; j++) {
            group->samples[j].prompt_count = 1;
        }
        ck_assert_int_eq(reward_pool_submit(fixture.pool, group), RL_OK);
        group = take_group(fixture.pool, 60.0);
        for (uint32_t j = 0; j < GROUP_SAMPLES; j++) {
            ck_assert(!group->samples[j].reward_valid);
        }
        trajectory_group_destroy(group);
    }
    ck_assert_uint_eq(reward_pool_timeouts(fixture.pool), GROUPS * GROUP_SAMPLES);
    ck_assert_int_le(atomic_load(&hanging), 80);
    atomic_store(&let_go, true);
    bool scored = false;
    double started = rl_clock_now_s(NULL);
    while (!scored && rl_clock_now_s(NULL) - started < 60.0) {
        ck_assert_int_eq(reward_pool_submit(fixture.pool, make_group(7)), RL_OK);
        struct trajectory_group *group = take_group(fixture.pool, 60.0);
        scored = group->samples[0].reward_valid && group->samples[3].reward_valid;
        trajectory_group_destroy(group);
    }
    ck_assert(scored);
    reward_pool_destroy(fixture.pool);
    reward_set_destroy(fixture.set);
    rl_clock_sleep_s(NULL, 0.1);
}
END_TEST

START_TEST(text_that_cannot_be_made)
{
    struct fixture fixture;
    fixture_init(&fixture, 1, 60000);
    struct trajectory_group *group = make_group(3);
    group->samples[2].prompt_count = 2;
    ck_assert_int_eq(reward_pool_submit(fixture.pool, group), RL_OK);
    group = take_group(fixture.pool, 60.0);
    ck_assert(group->samples[1].reward_valid);
    ck_assert(!group->samples[2].reward_valid);
    ck_assert(group->samples[3].reward_valid);
    ck_assert_uint_eq(reward_pool_timeouts(fixture.pool), 0);
    trajectory_group_destroy(group);
    reward_pool_destroy(NULL);
    fixture_fini(&fixture, 0);
}
END_TEST

/* Groups inside, one of which hangs: copied whatever has become of them, and still delivered. */
START_TEST(copies_what_is_inside)
{
    struct fixture fixture;
    struct trajectory_group **copies = NULL;
    struct trajectory_group *hangs = make_group(0);
    uint32_t count = 0;
    fixture_init(&fixture, 2, 300);
    ck_assert_int_eq(reward_pool_copy(fixture.pool, &copies, &count), RL_OK);
    ck_assert_uint_eq(count, 0);
    free(copies);
    hangs->samples[1].prompt_count = 1;
    ck_assert_int_eq(reward_pool_submit(fixture.pool, hangs), RL_OK);
    ck_assert_int_eq(reward_pool_submit(fixture.pool, make_group(1)), RL_OK);
    ck_assert_int_eq(reward_pool_copy(fixture.pool, &copies, &count), RL_OK);
    ck_assert_uint_eq(count, 2);
    ck_assert_uint_eq(copies[0]->ticket + copies[1]->ticket, 1);
    for (uint32_t i = 0; i < count; i++) {
        ck_assert_uint_eq(copies[i]->sample_count, GROUP_SAMPLES);
        trajectory_group_destroy(copies[i]);
        trajectory_group_destroy(take_group(fixture.pool, 20.0));
    }
    free(copies);
    fixture_fini(&fixture, 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("rewards_pool");
    TCase *tcase = tcase_create("pool");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, scores_everything_once);
    tcase_add_test(tcase, full_pool_refuses);
    tcase_add_test(tcase, hanging_function);
    tcase_add_test(tcase, destroy_while_hanging);
    tcase_add_test(tcase, every_function_hangs);
    tcase_add_test(tcase, text_that_cannot_be_made);
    tcase_add_test(tcase, copies_what_is_inside);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
