/* Groups own their memory, copies are deep, and a broken group is refused by name of the field. */
#include "core/log.h"
#include "core/trajectory.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct trajectory_group *group;

static void set_up(void)
{
    static const int32_t tokens[5] = {3, 1, 4, 1, 5};
    static const float logprob[3] = {-0.5f, 0.0f, -2.0f};
    ck_assert_int_eq(trajectory_group_create(2, &group), RL_OK);
    group->ticket = 77;
    group->worker = -1;
    for (uint32_t i = 0; i < 2; i++) {
        uint32_t version[3] = {7 + i, 8 + i, 8 + i};
        ck_assert_int_eq(trajectory_set_tokens(&group->samples[i], tokens, logprob, version, 2, 3),
                         RL_OK);
        group->samples[i].finish = RL_FINISH_STOP;
        group->samples[i].reward_valid = true;
        group->samples[i].reward = 0.25f;
        group->samples[i].reward_part_count = 1;
    }
}

static void tear_down(void)
{
    trajectory_group_destroy(group);
}

START_TEST(fresh_group_is_empty)
{
    struct trajectory_group *fresh = NULL;
    uint32_t oldest = 9;
    uint32_t newest = 9;
    ck_assert_int_eq(trajectory_group_create(3, &fresh), RL_OK);
    ck_assert_uint_eq(fresh->sample_count, 3);
    ck_assert_uint_eq(fresh->samples[2].sample_index, 2);
    ck_assert(!fresh->samples[2].reward_valid);
    ck_assert_int_eq(trajectory_group_check(fresh), RL_OK);
    trajectory_group_versions(fresh, &oldest, &newest);
    ck_assert_uint_eq(oldest, 0);
    ck_assert_uint_eq(newest, 0);
    trajectory_group_destroy(fresh);
    trajectory_group_destroy(NULL);
}
END_TEST

START_TEST(tokens_are_copied_and_replaced)
{
    struct trajectory *sample = &group->samples[0];
    ck_assert_int_eq(sample->tokens[4], 5);
    ck_assert_uint_eq(sample->version[0], 7);
    const int32_t one = 42;
    ck_assert_int_eq(trajectory_set_tokens(sample, &one, NULL, NULL, 1, 0), RL_OK);
    ck_assert_uint_eq(sample->prompt_count, 1);
    ck_assert_uint_eq(sample->completion_count, 0);
    ck_assert_int_eq(sample->tokens[0], 42);
    ck_assert_int_eq(trajectory_set_tokens(sample, NULL, NULL, NULL, 0, 0), RL_OK);
    ck_assert_int_eq(trajectory_group_check(group), RL_OK);
    /* From its own arrays: the old block must live until the copy is done. */
    sample = &group->samples[1];
    ck_assert_int_eq(
        trajectory_set_tokens(sample, sample->tokens, sample->logprob, sample->version, 2, 2),
        RL_OK);
    ck_assert_int_eq(sample->tokens[3], 1);
    ck_assert_float_eq(sample->logprob[0], -0.5f);
}
END_TEST

START_TEST(copy_is_deep)
{
    struct trajectory_group *copy = NULL;
    ck_assert_int_eq(trajectory_group_copy(group, &copy), RL_OK);
    ck_assert_ptr_ne(copy->samples, group->samples);
    ck_assert_ptr_ne(copy->samples[1].tokens, group->samples[1].tokens);
    ck_assert_uint_eq(copy->ticket, 77);
    ck_assert_mem_eq(copy->samples[1].tokens, group->samples[1].tokens, 5 * sizeof(int32_t));
    ck_assert_mem_eq(copy->samples[1].logprob, group->samples[1].logprob, 3 * sizeof(float));
    ck_assert_mem_eq(copy->samples[1].version, group->samples[1].version, 3 * sizeof(uint32_t));
    ck_assert_float_eq(copy->samples[1].reward, 0.25f);
    group->samples[1].tokens[0] = 99;
    ck_assert_int_eq(copy->samples[1].tokens[0], 3);
    trajectory_group_destroy(copy);
}
END_TEST

START_TEST(versions_span_all_samples)
{
    uint32_t oldest = 0;
    uint32_t newest = 0;
    trajectory_group_versions(group, &oldest, &newest);
    ck_assert_uint_eq(oldest, 7);
    ck_assert_uint_eq(newest, 9);
}
END_TEST

static void refused(const char *field)
{
    ck_assert_int_eq(trajectory_group_check(group), RL_INVALID);
    ck_assert_msg(strstr(rl_log_last_error(), field) != NULL, "%s not named in: %s", field,
                  rl_log_last_error());
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "ticket 77"));
}

START_TEST(broken_numbers_are_refused)
{
    struct trajectory *sample = &group->samples[1];
    ck_assert_int_eq(trajectory_group_check(group), RL_OK);
    static const float bad[] = {NAN, INFINITY, -INFINITY, 0.001f};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        sample->logprob[1] = bad[i];
        refused("logprob[1]");
    }
    sample->logprob[1] = -0.0f;
    ck_assert_int_eq(trajectory_group_check(group), RL_OK);
    sample->reward = NAN;
    refused("reward");
    sample->reward_valid = false; /* an unscorable sample's reward is never looked at */
    ck_assert_int_eq(trajectory_group_check(group), RL_OK);
    sample->reward_valid = true;
    sample->reward = 0.0f;
    sample->reward_part[0] = INFINITY;
    refused("reward_part[0]");
    sample->reward_part[0] = 0.0f;
    sample->accuracy = NAN;
    refused("accuracy");
}
END_TEST

START_TEST(broken_shapes_are_refused)
{
    struct trajectory *sample = &group->samples[1];
    sample->sample_index = 0;
    refused("sample_index");
    sample->sample_index = 1;
    sample->reward_part_count = RL_REWARD_PARTS_MAX + 1;
    refused("reward_part_count");
    sample->reward_part_count = 0;
    sample->finish = (enum rl_finish)17;
    refused("finish");
    sample->finish = RL_FINISH_LENGTH;
    sample->tokens[2] = -1;
    refused("tokens[2]");
    sample->tokens[2] = 0;
    float *logprob = sample->logprob;
    sample->logprob = NULL;
    refused("logprob");
    sample->logprob = logprob;
    group->sample_count = 0;
    refused("sample_count");
    group->sample_count = 2;
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("trajectory");
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, fresh_group_is_empty);
    tcase_add_test(tcase, tokens_are_copied_and_replaced);
    tcase_add_test(tcase, copy_is_deep);
    tcase_add_test(tcase, versions_span_all_samples);
    tcase_add_test(tcase, broken_numbers_are_refused);
    tcase_add_test(tcase, broken_shapes_are_refused);
    Suite *suite = suite_create("core trajectory");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
