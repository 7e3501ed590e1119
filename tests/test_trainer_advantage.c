/* Advantages against published vectors, and what must be exactly zero. */
#include "trainer/advantage.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>

static const double rewards_one[4] = {1, -1, -1, 0.4};
static const double rewards_two[8] = {1, -1, -1, 0.4, 0, 0, 1, 0};

static void check_vector(struct advantage_options options, const double *reward,
                         uint32_t group_count, const double *wanted)
{
    const uint32_t size[2] = {4, 4};
    float got[8];
    struct advantage_input input = {
        .group_count = group_count, .group_size = size, .reward = reward};
    advantage_compute(&options, &input, got, NULL);
    for (uint32_t i = 0; i < 4 * group_count; i++) {
        ck_assert_double_eq_tol((double)got[i], wanted[i], 2e-7);
    }
}

START_TEST(vectors)
{
    static const struct {
        struct advantage_options options;
        double wanted[4];
    } rows[] = {
        {{.mode = CONFIG_ADV_GROUP, .ddof = 1, .epsilon = 1e-6},
         {1.136812527, -0.840252737, -0.840252737, 0.543692948}},
        {{.mode = CONFIG_ADV_GROUP, .ddof = 1, .epsilon = 1e-4},
         {1.136701284, -0.840170514, -0.840170514, 0.543639745}},
        {{.mode = CONFIG_ADV_GROUP, .ddof = 0, .epsilon = 0},
         {1.312679335, -0.970241247, -0.970241247, 0.627803160}},
        {{.mode = CONFIG_ADV_GROUP_NO_STD, .ddof = 1, .epsilon = 1e-6}, {1.15, -0.85, -0.85, 0.55}},
        {{.mode = CONFIG_ADV_RLOO, .ddof = 1, .epsilon = 1e-6},
         {1.533333333, -1.133333333, -1.133333333, 0.733333333}},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        check_vector(rows[i].options, rewards_one, 1, rows[i].wanted);
    }
    /* TRL's batch std has eps 1e-4 */
    static const double batch[8] = {1.495168785,  -1.105124754, -1.105124754, 0.715080723,
                                    -0.325036692, -0.325036692, 0.975110077,  -0.325036692};
    check_vector((struct advantage_options){.mode = CONFIG_ADV_BATCH, .ddof = 1, .epsilon = 1e-4},
                 rewards_two, 2, batch);
}
END_TEST

START_TEST(maxrl_divides_by_the_mean)
{
    static const double reward[8] = {1, 0, 0, 1, -1, 0, 0, 0};
    static const double wanted[8] = {1, -1, -1, 1, 0, 0, 0, 0}; /* no mean above 0: nothing */
    check_vector((struct advantage_options){.mode = CONFIG_ADV_MAXRL}, reward, 2, wanted);
}
END_TEST

START_TEST(equal_rewards_are_exactly_zero)
{
    /* the mean of seven times 0.1 is not 0.1 in floating point */
    static const double reward[10] = {0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 5, 1, 0};
    const uint32_t size[3] = {7, 1, 2};
    for (int mode = CONFIG_ADV_GROUP; mode <= CONFIG_ADV_MAXRL; mode++) {
        struct advantage_options options = {
            .mode = (enum config_advantage)mode, .ddof = 1, .epsilon = 1e-6};
        struct advantage_input input = {.group_count = 3, .group_size = size, .reward = reward};
        struct advantage_stats stats;
        float got[10];
        advantage_compute(&options, &input, got, &stats);
        for (int i = 0; i < 8; i++) {
            ck_assert_float_eq(got[i], 0.0f);
        }
        ck_assert_float_gt(got[8], 0.1f);
        ck_assert_float_eq(got[8], -got[9]);
        ck_assert_uint_eq(stats.zero_std_groups, 2);
    }
}
END_TEST

START_TEST(unscorable_samples_take_no_part)
{
    static const double reward[7] = {1, NAN, -1, -1, 99, 0.4, INFINITY};
    static const uint8_t valid[7] = {1, 1, 1, 1, 0, 1, 1};
    const uint32_t size[1] = {7};
    struct advantage_options options = {.mode = CONFIG_ADV_GROUP, .ddof = 1, .epsilon = 1e-6};
    struct advantage_input input = {
        .group_count = 1, .group_size = size, .reward = reward, .valid = valid};
    struct advantage_stats stats;
    float got[7];
    advantage_compute(&options, &input, got, &stats);
    static const double wanted[7] = {1.136812527, 0, -0.840252737, -0.840252737, 0, 0.543692948, 0};
    for (int i = 0; i < 7; i++) {
        ck_assert_double_eq_tol((double)got[i], wanted[i], 2e-7);
    }
    ck_assert_uint_eq(stats.valid_count, 4);
    ck_assert_uint_eq(stats.sample_count, 7);
    ck_assert_double_eq_tol(stats.reward_mean, -0.15, 1e-12);
    ck_assert_double_eq_tol(stats.reward_std, 1.011599394, 1e-9);
    ck_assert_double_eq(stats.reward_min, -1);
    ck_assert_double_eq(stats.reward_max, 1);
}
END_TEST

START_TEST(nothing_valid_is_zero_not_nan)
{
    static const double reward[2] = {NAN, NAN};
    const uint32_t size[1] = {2};
    for (int mode = CONFIG_ADV_GROUP; mode <= CONFIG_ADV_MAXRL; mode++) {
        struct advantage_options options = {
            .mode = (enum config_advantage)mode, .ddof = 1, .epsilon = 0};
        struct advantage_input input = {.group_count = 1, .group_size = size, .reward = reward};
        struct advantage_stats stats;
        float got[2];
        advantage_compute(&options, &input, got, &stats);
        ck_assert_float_eq(got[0], 0.0f);
        ck_assert_float_eq(got[1], 0.0f);
        ck_assert_double_eq(stats.reward_mean, 0);
        ck_assert_double_eq(stats.reward_max, 0);
    }
}
END_TEST

START_TEST(groups_and_penalty)
{
    struct trajectory_group *group = NULL;
    ck_assert_int_eq(trajectory_group_create(3, &group), RL_OK);
    for (uint32_t i = 0; i < 3; i++) {
        group->samples[i].reward_valid = i != 2;
        group->samples[i].reward = 1;
    }
    static const double penalty[3] = {0.5, 0, 0};
    struct advantage_options options = {
        .mode = CONFIG_ADV_GROUP_NO_STD, .ddof = 1, .epsilon = 1e-6};
    float got[3];
    ck_assert_int_eq(advantage_of_groups(&options, &group, 1, penalty, got, NULL), RL_OK);
    ck_assert_float_eq(got[0], -0.25f);
    ck_assert_float_eq(got[1], 0.25f);
    ck_assert_float_eq(got[2], 0.0f);
    ck_assert_int_eq(advantage_of_groups(&options, &group, 1, NULL, got, NULL), RL_OK);
    ck_assert_float_eq(got[0], 0.0f);
    trajectory_group_destroy(group);
}
END_TEST

START_TEST(dr_grpo_drops_the_std_unless_told)
{
    struct rl_config config;
    struct advantage_options options;
    ck_assert_int_eq(rl_config_init(&config), RL_OK);
    advantage_options_from_config(&config, &options);
    ck_assert_int_eq(options.mode, CONFIG_ADV_GROUP);
    ck_assert_int_eq(rl_config_override(&config, "loss.loss_type=dr_grpo"), RL_OK);
    advantage_options_from_config(&config, &options);
    ck_assert_int_eq(options.mode, CONFIG_ADV_GROUP_NO_STD);
    ck_assert_int_eq(rl_config_override(&config, "loss.advantage=group"), RL_OK);
    advantage_options_from_config(&config, &options);
    ck_assert_int_eq(options.mode, CONFIG_ADV_GROUP);
    rl_config_fini(&config);
}
END_TEST

/* Groups with these rewards and completion lengths; tokens do not matter. */
static void make_groups(const double *reward, const uint32_t *length, uint32_t group_count,
                        struct trajectory_group **groups)
{
    static const int32_t tokens[64];
    static const float logprob[64];
    static const uint32_t version[64];
    for (uint32_t g = 0; g < group_count; g++) {
        ck_assert_int_eq(trajectory_group_create(4, &groups[g]), RL_OK);
        for (uint32_t s = 0; s < 4; s++) {
            struct trajectory *sample = &groups[g]->samples[s];
            ck_assert_int_eq(
                trajectory_set_tokens(sample, tokens, logprob, version, 1, length[4 * g + s]),
                RL_OK);
            sample->reward_valid = isfinite(reward[4 * g + s]);
            sample->reward = (float)reward[4 * g + s];
            sample->finish = RL_FINISH_STOP;
        }
    }
}

static const uint32_t token_lengths[8] = {3, 5, 2, 4, 2, 2, 3, 1};

/* advantage [22] of both groups' tokens */
static void token_advantages(const struct advantage_options *options, const double *reward,
                             const float *penalty, float *advantage)
{
    struct trajectory_group *groups[2];
    float sample[8];
    make_groups(reward, token_lengths, 2, groups);
    ck_assert_uint_eq(advantage_token_count(groups, 2), 22);
    ck_assert_int_eq(advantage_of_groups(options, groups, 2, NULL, sample, NULL), RL_OK);
    advantage_of_tokens(options, groups, 2, sample, penalty, advantage);
    trajectory_group_destroy(groups[0]);
    trajectory_group_destroy(groups[1]);
}

START_TEST(token_vectors)
{
    static const struct {
        enum config_advantage mode;
        double wanted[8];
    } rows[] = {
        {CONFIG_ADV_REINFORCE_PLUS_PLUS_BASELINE,
         {1.466276049, -1.156331518, -1.156331518, 0.679493779, -0.369549248, -0.369549248,
          0.941754536, -0.369549248}},
        {CONFIG_ADV_REINFORCE_PLUS_PLUS,
         {1.207686510, -1.275407249, -1.275407249, 0.462758382, -0.033860369, -0.033860369,
          1.207686510, -0.033860369}},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct advantage_options options = {.mode = rows[i].mode, .ddof = 1, .gamma = 1};
        float got[22];
        ck_assert(advantage_by_token(&options));
        token_advantages(&options, rewards_two, NULL, got);
        for (uint32_t s = 0, t = 0; s < 8; s++) {
            for (uint32_t k = 0; k < token_lengths[s]; k++) {
                ck_assert_double_eq_tol((double)got[t++], rows[i].wanted[s], 2e-7);
            }
        }
    }
}
END_TEST

/* Returns fall off from the end, and a penalty counts from its token backwards. */
START_TEST(returns_are_discounted)
{
    struct advantage_options options = {
        .mode = CONFIG_ADV_REINFORCE_PLUS_PLUS, .ddof = 1, .gamma = 0.5};
    float penalty[22] = {0};
    float plain[22];
    float got[22];
    token_advantages(&options, rewards_two, NULL, plain);
    double step = (double)plain[2] - (double)plain[1]; /* returns 1 and 0.5 */
    ck_assert_double_gt(step, 0);
    ck_assert_double_eq_tol((double)plain[1] - (double)plain[0], step / 2, 1e-6);
    penalty[1] = 0.25f;
    token_advantages(&options, rewards_two, penalty, got);
    double down = (double)got[2] - (double)got[1]; /* returns 1 and 0.25 */
    double last = (double)got[1] - (double)got[0]; /* 0.25 and 0.125 */
    ck_assert_double_eq_tol(down / last, 6, 1e-4);
}
END_TEST

START_TEST(what_carries_no_loss_is_not_whitened_with)
{
    static const double broken[8] = {1, NAN, -1, 0.4, 0, 0, 1, 0};
    static const double equal[8] = {0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1};
    struct advantage_options options = {
        .mode = CONFIG_ADV_REINFORCE_PLUS_PLUS, .ddof = 1, .gamma = 1, .mask_truncated = true};
    float got[22];
    token_advantages(&options, broken, NULL, got);
    double sum = 0;
    for (int t = 0; t < 22; t++) {
        ck_assert(isfinite(got[t]));
        ck_assert(t < 3 || t >= 8 || got[t] == 0.0f);
        sum += (double)got[t];
    }
    ck_assert_double_eq_tol(sum, 0, 1e-5);
    token_advantages(&options, equal, NULL, got);
    for (int t = 0; t < 22; t++) {
        ck_assert_float_eq(got[t], 0.0f);
    }
    float penalty[22] = {0};
    penalty[3] = NAN; /* of the second sample */
    token_advantages(&options, rewards_two, penalty, got);
    ck_assert_float_eq(got[4], 0.0f);
    ck_assert_float_ne(got[0], 0.0f);
}
END_TEST

START_TEST(vtrace_vector)
{
    static const float old[3] = {-0.9f, -0.4f, -1.2f};
    static const float behaviour[3] = {-1.1f, -0.3f, -0.6f};
    static const double wanted[3] = {0.372438978, 0.372438978, 0.411608727};
    struct advantage_options options = {.mode = CONFIG_ADV_VTRACE, .rho_max = 1, .c_max = 1};
    float got[3];
    advantage_vtrace(&options, 0.75f, old, behaviour, 3, got); /* reward 1, mean 0.25 */
    for (int t = 0; t < 3; t++) {
        ck_assert_double_eq_tol((double)got[t], wanted[t], 1e-7);
    }
    advantage_vtrace(&options, 0.1f, old, old, 3, got);
    for (int t = 0; t < 3; t++) {
        ck_assert_float_eq(got[t], 0.1f);
    }
    options.rho_max = 2; /* the first token's ratio is 1.22 */
    advantage_vtrace(&options, 0.75f, old, behaviour, 3, got);
    ck_assert_double_eq_tol((double)got[0], 0.372438978 * 1.221402758, 1e-6);
    advantage_vtrace(&options, 0.75f, old, behaviour, 0, got);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("advantage");
    TCase *tests = tcase_create("all");
    tcase_add_test(tests, vectors);
    tcase_add_test(tests, equal_rewards_are_exactly_zero);
    tcase_add_test(tests, unscorable_samples_take_no_part);
    tcase_add_test(tests, nothing_valid_is_zero_not_nan);
    tcase_add_test(tests, groups_and_penalty);
    tcase_add_test(tests, dr_grpo_drops_the_std_unless_told);
    tcase_add_test(tests, maxrl_divides_by_the_mean);
    tcase_add_test(tests, token_vectors);
    tcase_add_test(tests, vtrace_vector);
    tcase_add_test(tests, returns_are_discounted);
    tcase_add_test(tests, what_carries_no_loss_is_not_whitened_with);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
