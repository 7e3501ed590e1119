/* The guard's rules, alone; and a learner whose numbers stop being finite. */
#include "trainer/guard.h"

#include "core/hash.h"
#include "tests/model_fixture.h"
#include "trainer/alarms.h"
#include "trainer/learner.h"

#include <math.h>

static const struct guard_options plain = {.lag = 2};

static struct guard_state fresh(void)
{
    struct guard_state state;
    guard_init(&state);
    ck_assert_int_eq(guard_check(&state), RL_OK);
    return state;
}

static enum guard_action end(struct guard_state *state, uint64_t step, int64_t updates,
                             int64_t skipped, uint32_t faults)
{
    struct guard_step facts = {
        .step = step, .updates = updates, .skipped = skipped, .faults = faults};
    return guard_end_step(state, &facts);
}

/* --- rules
 * ------------------------------------------------------------------------------------------- */

START_TEST(three_in_a_row_roll_back_once)
{
    struct guard_state state = fresh();
    ck_assert_int_eq(end(&state, 1, 1, 0, 0), GUARD_GO_ON);
    ck_assert_int_eq(end(&state, 2, 0, 1, GUARD_GRADIENT), GUARD_GO_ON);
    ck_assert_int_eq(end(&state, 3, 0, 1, GUARD_GRADIENT), GUARD_GO_ON);
    ck_assert_int_eq(end(&state, 4, 1, 1, GUARD_GRADIENT), GUARD_GO_ON); /* one update was sound */
    ck_assert_uint_eq(state.sound_step, 1);
    for (uint64_t step = 5; step < 7; step++) {
        ck_assert_int_eq(end(&state, step, 0, 2, GUARD_LOGPROB), GUARD_GO_ON);
        ck_assert_int_eq(end(&state, step, 0, 0, 0),
                         GUARD_GO_ON); /* nothing to learn: no verdict */
    }
    ck_assert_int_eq(end(&state, 7, 0, 1, GUARD_SAMPLER), GUARD_ROLL_BACK);
    guard_rolled_back(&state, &plain, 7, 3, 9);
    ck_assert_double_eq(state.rate_scale, 0.5);
    ck_assert_int_eq(end(&state, 8, 0, 1, GUARD_REVOKED), GUARD_GO_ON); /* does not count */
    for (uint64_t step = 9; step < 11; step++) {
        ck_assert_int_eq(end(&state, step, 0, 1, GUARD_GRADIENT), GUARD_GO_ON);
    }
    ck_assert_int_eq(end(&state, 11, 0, 1, GUARD_GRADIENT), GUARD_STOP);
}
END_TEST

START_TEST(bad_weights_do_not_wait)
{
    struct guard_state state = fresh();
    ck_assert_int_eq(end(&state, 1, 1, 0, GUARD_WEIGHTS), GUARD_ROLL_BACK);
    guard_rolled_back(&state, &plain, 1, 0, 1);
    ck_assert_int_eq(end(&state, 2, 1, 0, GUARD_WEIGHTS), GUARD_STOP);
}
END_TEST

/* A group of one sample with one token of `version`, or aborted without any. */
static struct trajectory_group *one_token(uint32_t version, bool aborted)
{
    struct trajectory_group *group = NULL;
    int32_t tokens[2] = {1, 2};
    float logprob = -1;
    ck_assert_int_eq(trajectory_group_create(1, &group), RL_OK);
    ck_assert_int_eq(
        trajectory_set_tokens(&group->samples[0], tokens, &logprob, &version, 1, aborted ? 0 : 1),
        RL_OK);
    group->samples[0].finish = aborted ? RL_FINISH_ABORTED : RL_FINISH_STOP;
    return group;
}

START_TEST(samples_of_weights_given_up)
{
    struct guard_state state = fresh();
    struct trajectory_group *aborted = one_token(0, true);
    ck_assert_uint_eq(guard_examine(&state, &aborted, 1, 1), GUARD_SAMPLER);
    guard_rolled_back(&state, &plain, 10, 4, 7);
    for (uint32_t version = 3; version < 9; version++) {
        struct trajectory_group *group = one_token(version, false);
        uint32_t expected = version == 5 || version == 6 ? GUARD_REVOKED : 0;
        ck_assert_uint_eq(guard_examine(&state, &group, 1, 11), expected);
        trajectory_group_destroy(group);
    }
    ck_assert_uint_eq(guard_examine(&state, &aborted, 1, 13), GUARD_REVOKED);
    ck_assert_uint_eq(guard_examine(&state, &aborted, 1, 14), GUARD_SAMPLER);
    trajectory_group_destroy(aborted);
}
END_TEST

START_TEST(outliers_stand_out_only_at_first)
{
    struct guard_state state = fresh();
    struct guard_options options = {.norm_score_max = 6};
    for (int i = 0; i < GUARD_WINDOW_LEAST; i++) {
        ck_assert_double_eq(guard_norm_score(&state, 1000), 0);
        ck_assert_int_eq(guard_judge(&state, &options, 0, 1 + 0.1 * (i % 3)), GUARD_APPLY);
    }
    ck_assert_double_gt(guard_norm_score(&state, 5), 6);
    ck_assert_int_eq(guard_judge(&state, &plain, 0, 5), GUARD_APPLY); /* off */
    state = fresh();
    for (int i = 0; i < GUARD_WINDOW_LEAST; i++) {
        (void)guard_judge(&state, &options, 0, 1 + 0.1 * (i % 3));
    }
    ck_assert_int_eq(guard_judge(&state, &options, 0, 5), GUARD_SKIP_OUTLIER);
    ck_assert_int_eq(guard_judge(&state, &options, 0, 1.1), GUARD_APPLY);
    ck_assert_uint_eq(state.norm_count, GUARD_WINDOW_LEAST + 1); /* the outlier is not in it */
    for (int i = 1; i < GUARD_OUTLIERS; i++) {
        ck_assert_int_eq(guard_judge(&state, &options, 0, 5), GUARD_SKIP_OUTLIER);
    }
    ck_assert_int_eq(guard_judge(&state, &options, 0, 5), GUARD_APPLY); /* a new level */
    ck_assert_int_eq(guard_judge(&state, &options, 0, 5), GUARD_APPLY);
    ck_assert_int_eq(guard_judge(&state, &options, GUARD_LOGPROB, 5), GUARD_SKIP);
}
END_TEST

START_TEST(a_state_of_nonsense_is_refused)
{
    struct guard_state state = fresh();
    state.norm_count = GUARD_WINDOW + 1;
    ck_assert_int_eq(guard_check(&state), RL_CORRUPT);
    state = fresh();
    state.rate_scale = NAN;
    ck_assert_int_eq(guard_check(&state), RL_CORRUPT);
    state = fresh();
    state.norm_next = GUARD_WINDOW;
    ck_assert_int_eq(guard_check(&state), RL_CORRUPT);
}
END_TEST

/* --- a learner
 * ----------------------------------------------------------------------------------------- */

enum { GROUPS = 2, SAMPLES = 4, PROMPT = 3, TOKENS = 6 };

struct bench {
    struct model_fixture model;
    struct rl_config config;
    struct collective *collective;
    struct weight_arena *arena;
    struct learner *learner;
    struct trajectory_group *groups[GROUPS];
    uint64_t step;
};

static void bench_start(struct bench *b)
{
    struct model_architecture arch = fixture_architecture(0);
    struct fixture_options options = {.isa = KERNEL_ISA_REF, .dtype = KERNEL_FP32, .threads = 1};
    memset(b, 0, sizeof(*b));
    fixture_create(&b->model, &arch, &options);
    fixture_randomise(&b->model, 5);
    ck_assert_int_eq(rl_config_init(&b->config), RL_OK);
    ck_assert_int_eq(rl_config_override(&b->config, "optimizer.learning_rate=1e-3"), RL_OK);
    ck_assert_int_eq(collective_local_create(&b->collective), RL_OK);
    struct weight_arena_options arena = {
        .slots = 2, .slot_bytes = b->model.layout->image_bytes, .readers = 1};
    ck_assert_int_eq(weight_arena_create(&arena, &b->arena), RL_OK);
    size_t bytes = (size_t)b->model.layout->master_count * sizeof(float);
    float *master = fixture_floats(b->model.layout->master_count);
    memcpy(master, b->model.master, bytes);
    struct learner_args args = {.config = &b->config,
                                .layout = b->model.layout,
                                .kernels = b->model.kernels,
                                .collective = b->collective,
                                .arena = b->arena,
                                .master = master};
    ck_assert_int_eq(learner_create(&args, &b->learner), RL_OK);
    ck_assert_int_eq(learner_publish_first(b->learner, 0), RL_OK);
}

/* Groups whose tokens are of `version`; `poison` is the first behaviour log-prob. */
static void bench_groups(struct bench *b, uint32_t version, float poison)
{
    for (uint32_t g = 0; g < GROUPS; g++) {
        trajectory_group_destroy(b->groups[g]);
        ck_assert_int_eq(trajectory_group_create(SAMPLES, &b->groups[g]), RL_OK);
        for (uint32_t s = 0; s < SAMPLES; s++) {
            struct trajectory *sample = &b->groups[g]->samples[s];
            int32_t tokens[PROMPT + TOKENS];
            float logprob[TOKENS];
            uint32_t versions[TOKENS];
            for (uint32_t i = 0; i < PROMPT + TOKENS; i++) {
                tokens[i] = (int32_t)(7 * g + 5 * s + 3 * i) % 90;
            }
            for (uint32_t i = 0; i < TOKENS; i++) {
                logprob[i] = -4.5F;
                versions[i] = version;
            }
            logprob[0] = g == 1 && s == 2 ? poison : logprob[0];
            ck_assert_int_eq(
                trajectory_set_tokens(sample, tokens, logprob, versions, PROMPT, TOKENS), RL_OK);
            sample->sample_index = s;
            sample->finish = RL_FINISH_STOP;
            sample->reward_valid = true;
            sample->reward = sample->accuracy = (float)(s % 2);
        }
    }
}

static void bench_stop(struct bench *b)
{
    for (uint32_t g = 0; g < GROUPS; g++) {
        trajectory_group_destroy(b->groups[g]);
    }
    learner_destroy(b->learner);
    weight_arena_close(b->arena);
    collective_destroy(b->collective);
    rl_config_fini(&b->config);
    fixture_destroy(&b->model);
}

static struct learner_report bench_step(struct bench *b)
{
    struct learner_report report;
    ck_assert_int_eq(learner_step(b->learner, b->groups, GROUPS, ++b->step, &report), RL_OK);
    return report;
}

/* Everything that an update may change. */
static uint64_t bench_hash(struct bench *b)
{
    struct optimizer_state *state = learner_optimizer(b->learner);
    size_t bytes = (size_t)state->count * sizeof(float);
    uint64_t parts[4] = {rl_hash(learner_master(b->learner), bytes), rl_hash(state->m, bytes),
                         rl_hash(state->v, bytes), (uint64_t)state->step};
    return rl_hash(parts, sizeof(parts));
}

START_TEST(a_skipped_update_changes_nothing)
{
    static const float poison[3] = {NAN, -INFINITY, INFINITY};
    struct bench b;
    bench_start(&b);
    bench_groups(&b, 0, -4.5F);
    struct learner_report report = bench_step(&b);
    ck_assert_int_eq(report.updates, 1);
    ck_assert_int_eq(learner_publish(b.learner, &report), RL_OK);
    uint64_t before = bench_hash(&b);
    for (int i = 0; i < 3; i++) {
        bench_groups(&b, 1, poison[i]);
        report = bench_step(&b);
        ck_assert_int_eq(report.skipped, 1);
        ck_assert_int_eq(report.updates, 0);
        ck_assert_uint_eq(report.faults, GUARD_LOGPROB);
        ck_assert_int_eq(report.action, i < 2 ? GUARD_GO_ON : GUARD_ROLL_BACK);
        ck_assert_uint_eq(report.version, 1);
        ck_assert_uint_eq(bench_hash(&b), before);
        ck_assert_int_eq(learner_publish(b.learner, &report), RL_OK);
    }
    bench_groups(&b, 1, -4.5F);
    report = bench_step(&b);
    ck_assert_int_eq(report.updates, 1);
    ck_assert_uint_eq(report.version, 2);
    ck_assert_uint_ne(bench_hash(&b), before);
    bench_stop(&b);
}
END_TEST

/* Every matrix times `factor`: the numbers stay finite, what is computed with them does not. */
static void scale_weights(struct bench *b, float factor)
{
    float *master = learner_master(b->learner);
    for (int64_t i = 0; i < b->model.layout->master_count; i++) {
        master[i] *= factor;
    }
}

START_TEST(back_to_sound_weights_and_on)
{
    struct bench b;
    struct learner_report report;
    bench_start(&b);
    size_t bytes = (size_t)b.model.layout->master_count * sizeof(float);
    scale_weights(&b, 1e30F);
    ck_assert_int_eq(learner_publish_first(b.learner, 1), RL_OK);
    for (int i = 0; i < GUARD_SKIPS; i++) {
        bench_groups(&b, 1, -4.5F);
        uint64_t before = bench_hash(&b);
        report = bench_step(&b);
        ck_assert_int_eq(report.skipped, 1);
        ck_assert_uint_eq(bench_hash(&b), before);
        ck_assert_int_eq(report.action, i < GUARD_SKIPS - 1 ? GUARD_GO_ON : GUARD_ROLL_BACK);
    }
    scale_weights(&b, INFINITY); /* not what to go back to */
    ck_assert_int_eq(learner_roll_back(b.learner, 0, &report), RL_NONFINITE);
    memcpy(learner_master(b.learner), b.model.master, bytes);
    ck_assert_int_eq(learner_roll_back(b.learner, 0, &report), RL_OK);
    ck_assert_uint_eq(report.version, 2);
    ck_assert_uint_eq(report.hash, model_image_hash(b.model.layout, b.model.image));
    ck_assert_int_eq(learner_publish(b.learner, &report), RL_OK);

    uint64_t before = bench_hash(&b);
    bench_groups(&b, 1, -4.5F); /* of the weights given up */
    report = bench_step(&b);
    ck_assert_uint_eq(report.faults, GUARD_REVOKED);
    ck_assert_uint_eq(bench_hash(&b), before);
    bench_groups(&b, 2, -4.5F);
    report = bench_step(&b);
    ck_assert_int_eq(report.updates, 1);
    ck_assert_double_eq(report.learning_rate, 0.5e-3);
    ck_assert_uint_eq(report.version, 3);

    struct guard_state saved = *learner_guard(b.learner); /* as a checkpoint would */
    bench_stop(&b);
    bench_start(&b);
    ck_assert_int_eq(learner_restore_guard(b.learner, &saved), RL_OK);
    bench_groups(&b, 0, -4.5F);
    report = bench_step(&b);
    ck_assert_double_eq(report.learning_rate, 0.5e-3);
    bench_stop(&b);
}
END_TEST

/* --- alarms
 * --------------------------------------------------------------------------------------------- */

static uint32_t look(struct alarm_state *alarms, struct rl_metrics *metrics, uint64_t step,
                     double entropy)
{
    rl_metrics_reset(metrics);
    rl_metrics_add(metrics, RL_METRIC_ENTROPY, entropy);
    return alarms_look(alarms, metrics, step);
}

START_TEST(alarms_count_what_stays)
{
    static struct alarm_state alarms;
    struct rl_metrics *metrics = NULL;
    ck_assert_int_eq(rl_metrics_create(&metrics), RL_OK);
    for (uint64_t step = 1; step <= 60; step++) {
        double noisy = step % 7 == 0 ? 0.01 : 2; /* one bad step among good ones is none */
        ck_assert_uint_eq(look(&alarms, metrics, step, noisy), 0);
    }
    uint64_t first = 0;
    for (uint64_t step = 61; step <= 120; step++) {
        first = look(&alarms, metrics, step, 0.01) > 0 && first == 0 ? step : first;
    }
    ck_assert_uint_gt(first, 61);
    ck_assert_uint_lt(first, 75); /* falling fast; later also low */
    ck_assert_double_gt(alarms.memory[ALARM_entropy_falls].beyond, 10);
    ck_assert_double_gt(alarms.memory[ALARM_entropy_low].beyond, 10);
    ck_assert_double_eq(alarms.memory[ALARM_entropy_rises].beyond, 0);
    rl_metrics_reset(metrics);
    rl_metrics_add(metrics, RL_METRIC_LOGPROB_MISMATCH, 1e-7);
    ck_assert_uint_eq(alarms_look(&alarms, metrics, 121), 1); /* at once */
    rl_metrics_destroy(metrics);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("guard");
    TCase *rules = tcase_create("rules");
    tcase_add_test(rules, three_in_a_row_roll_back_once);
    tcase_add_test(rules, bad_weights_do_not_wait);
    tcase_add_test(rules, samples_of_weights_given_up);
    tcase_add_test(rules, outliers_stand_out_only_at_first);
    tcase_add_test(rules, a_state_of_nonsense_is_refused);
    tcase_add_test(rules, alarms_count_what_stays);
    suite_add_tcase(suite, rules);
    TCase *learner = tcase_create("learner");
    tcase_set_timeout(learner, 60);
    tcase_add_test(learner, a_skipped_update_changes_nothing);
    tcase_add_test(learner, back_to_sound_weights_and_on);
    suite_add_tcase(suite, learner);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
