/* The audit's sums, its bottleneck and its change, from made-up runs; an analytic prediction. */
#include "trainer/audit.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEPS = 10 };

/* Seconds of each step; 48 completions of 4 to 64 tokens. */
struct made {
    double wait, learn, checkpoint;      /* learner */
    double decode, reward, full, ticket; /* all rollout ranks */
    int ranks;
};

/* Whichever side is slower decides. */
static rl_status slower_side(void *arg, const struct audit_plan *plan, double *tokens_per_second)
{
    (*(int *)arg)++;
    double tokens = 480;
    double generate = plan->token_s * tokens / plan->rollout_ranks;
    double step = plan->by_turns ? generate + plan->step_s : fmax(generate, plan->step_s);
    *tokens_per_second = tokens / step;
    return RL_OK;
}

static void write_run(const char *dir, const struct made *m)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/metrics.jsonl", dir);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    for (int step = 1; step <= STEPS; step++) {
        fprintf(file,
                "{\"step\": %d, \"step_time\": %.17g, \"time/wait_for_batch\": %.17g, "
                "\"time/forward_backward\": %.17g, \"time/checkpoint\": %.17g, "
                "\"time/rollout_decode\": %.17g, \"time/rollout_reward_wait\": %.17g, "
                "\"time/rollout_channel_full\": %.17g, \"time/rollout_ticket_wait\": %.17g, "
                "\"rollout/ranks\": %d, \"async/max_staleness\": 2, \"staleness/hist_0\": 0.25, "
                "\"staleness/hist_2\": 0.75, \"completions/mean_length\": 10, "
                "\"completions/min_length\": 4, \"completions/length/count\": 48, "
                "\"completions/length/p05\": 4, \"completions/length/p25\": 6, "
                "\"completions/length/p50\": 8, \"completions/length/p75\": 12, "
                "\"completions/length/p95\": 32, \"completions/max_length\": 64}\n",
                step, m->wait + m->learn + m->checkpoint, m->wait, m->learn, m->checkpoint,
                m->decode, m->reward, m->full, m->ticket, m->ranks);
    }
    ck_assert_int_eq(fclose(file), 0);
}

/* The audit of such a run, and how often something was predicted. */
static struct audit audit_of(const struct made *m, bool async, int *predictions)
{
    char dir[] = "/tmp/test_audit_XXXXXX";
    char path[256];
    struct report_run run;
    struct rl_config config;
    struct audit audit;
    ck_assert_ptr_nonnull(mkdtemp(dir));
    write_run(dir, m);
    *predictions = 0;
    ck_assert_int_eq(rl_config_init(&config), RL_OK);
    ck_assert_int_eq(
        rl_config_override(&config, async ? "async.enabled=true" : "async.enabled=false"), RL_OK);
    ck_assert_int_eq(report_run_load(dir, &run), RL_OK);
    ck_assert_int_eq(audit_make(&run, &config, slower_side, predictions, &audit), RL_OK);
    audit.name = "made-up";
    report_run_fini(&run);
    rl_config_fini(&config);
    snprintf(path, sizeof(path), "%s/metrics.jsonl", dir);
    unlink(path);
    rmdir(dir);
    return audit;
}

START_TEST(sums_and_histograms)
{
    struct made m = {.wait = 1, .learn = 3, .decode = 6, .ticket = 2, .ranks = 2};
    int predictions;
    struct audit a = audit_of(&m, true, &predictions);
    ck_assert_uint_eq(a.steps, STEPS);
    ck_assert_double_eq_tol(a.wall_s, 40, 1e-9);
    ck_assert_double_eq_tol(a.tokens, 4800, 1e-9);
    ck_assert_double_eq_tol(a.learner_idle, 0.25, 1e-12);
    ck_assert_double_eq_tol(a.rollout_idle, 0.25, 1e-12);
    ck_assert_double_eq_tol(a.ages[0], 0.25, 1e-12);
    ck_assert_double_eq_tol(a.ages[2], 0.75, 1e-12);
    ck_assert_double_eq_tol(a.lengths[2], 0.05, 1e-12); /* up to 4 */
    ck_assert_double_eq_tol(a.lengths[3], 0.45, 1e-12); /* 5 to 8 */
    ck_assert_double_eq_tol(a.lengths[6], 0.05, 1e-12); /* 33 to 64 */
    ck_assert_double_eq_tol(rl_times_sum(a.lengths, AUDIT_LENGTHS), 1, 1e-12);
    ck_assert_double_eq_tol(a.length_p50, 8, 1e-3);
    ck_assert_double_eq_tol(a.length_p95, 32, 1e-3);
    ck_assert_double_eq_tol(a.plan.token_s, 6.0 / 480, 1e-12);
    ck_assert_double_eq_tol(a.plan.step_s, 3, 1e-12);
}
END_TEST

START_TEST(generation_holds_it_up)
{
    struct made m = {.wait = 6, .learn = 2, .decode = 8, .ranks = 1};
    int predictions;
    struct audit a = audit_of(&m, true, &predictions);
    ck_assert_int_eq(a.bottleneck, AUDIT_GENERATION);
    ck_assert_double_eq(a.change.rollout_ranks, 4); /* 8 s of work a step, the learner needs 2 */
    ck_assert_double_eq_tol(a.gain, 3, 1e-9);
    char text[256];
    audit_say_bottleneck(&a, text, sizeof(text));
    ck_assert_ptr_nonnull(strstr(text, "75 % of the time for samples"));
    audit_say_change(&a, text, sizeof(text));
    ck_assert_ptr_nonnull(strstr(text, "3 more (now 1)"));
    ck_assert_ptr_nonnull(strstr(text, "+300 %"));
}
END_TEST

START_TEST(others_hold_it_up)
{
    static const struct {
        struct made m;
        bool async;
        enum audit_bottleneck expected;
    } cases[] = {
        {{.wait = 0.1, .learn = 4, .decode = 2, .ticket = 6, .ranks = 2}, true, AUDIT_LEARNING},
        {{.wait = 3, .learn = 3, .decode = 2, .ticket = 6, .ranks = 2}, true, AUDIT_STALENESS},
        {{.wait = 3, .learn = 3, .decode = 2, .reward = 6, .ranks = 2}, true, AUDIT_REWARDS},
        {{.wait = 1, .learn = 1, .checkpoint = 3, .decode = 9, .ranks = 2}, true, AUDIT_CHECKPOINT},
        {{.wait = 0, .learn = 4, .decode = 2, .full = 6, .ranks = 2}, true, AUDIT_CHANNEL},
        {{.wait = 0.1, .learn = 4, .decode = 8, .ranks = 2}, true, AUDIT_BALANCED},
        {{.wait = 2, .learn = 2, .decode = 2, .ranks = 1}, false, AUDIT_BY_TURNS},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int predictions;
        struct audit a = audit_of(&cases[i].m, cases[i].async, &predictions);
        ck_assert_int_eq(a.bottleneck, cases[i].expected);
        ck_assert_int_eq(a.predicted, predictions > 0);
        char text[256] = "";
        audit_say_bottleneck(&a, text, sizeof(text));
        ck_assert_uint_gt(strlen(text), 0);
        audit_say_change(&a, text, sizeof(text));
        ck_assert_uint_gt(strlen(text), 0);
        if (cases[i].expected == AUDIT_BY_TURNS) {
            ck_assert_double_eq_tol(a.gain, 1, 1e-9); /* both at once: twice as fast */
        }
        json_t *json = audit_json(&a);
        ck_assert_ptr_nonnull(json);
        json_decref(json);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("audit");
    TCase *tests = tcase_create("audit");
    tcase_add_test(tests, sums_and_histograms);
    tcase_add_test(tests, generation_holds_it_up);
    tcase_add_test(tests, others_hold_it_up);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
