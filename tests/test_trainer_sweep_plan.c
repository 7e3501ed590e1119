/* Plans of sweeps: which trials a file comes to, their names and keys, what is refused, the order
 * by cost, and which cells are kept. */
#include "trainer/sweep_plan.h"

#include "core/log.h"
#include "core/yaml_tree.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/foresight_sweep_XXXXXX";

#define HEAD "sweep: {command: train, evaluate: none, config: %s/config.yaml}\n"
static const char config_text[] = "model: {path: base}\n"
                                  "data: {train: t.jsonl, eval: e.jsonl}\n"
                                  "run: {steps: 8, seed: 7}\n"
                                  "rollout: {prompts_per_step: 4, max_completion_length: 16}\n";

static void put(const char *name, const char *text)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_ge(fputs(text, file), 0);
    ck_assert_int_eq(fclose(file), 0);
}

/* Read a sweep of the usual head and `body`. */
static rl_status read_plan(const char *body, struct sweep_plan **out)
{
    char path[256];
    char text[4096];
    int used = snprintf(text, sizeof text, HEAD, folder);
    snprintf(text + used, sizeof text - (size_t)used, "%s", body);
    put("config.yaml", config_text);
    put("some.sweep.yaml", text);
    snprintf(path, sizeof path, "%s/some.sweep.yaml", folder);
    return sweep_plan_read(path, NULL, 0, out);
}

static struct sweep_plan *plan_of(const char *body)
{
    struct sweep_plan *plan = NULL;
    ck_assert_int_eq(read_plan(body, &plan), RL_OK);
    return plan;
}

static const char *value_of(const struct sweep_trial *trial, const char *key)
{
    for (size_t i = 0; i < trial->options.count; i++) {
        if (strcmp(trial->options.items[i].key, key) == 0) {
            return trial->options.items[i].value;
        }
    }
    return "";
}

START_TEST(grids_links_seeds_and_exclusions)
{
    struct sweep_plan *plan = plan_of("axes:\n"
                                      "  - rollout.temperature: [0.6, 1e0]\n"
                                      "  - {rollout.top_k: [0, 20], rollout.top_p: [1, 0.80]}\n"
                                      "seeds: [1, 2]\n"
                                      "exclude:\n"
                                      "  - {rollout.temperature: 1, rollout.top_k: [20]}\n"
                                      "  - {run.seed: 2, rollout.top_k: 20}\n");
    static const char *const names[] = {
        "temperature0.6-top_k0-top_p1-seed1", "temperature0.6-top_k0-top_p1-seed2",
        "temperature0.6-top_k20-top_p0.8-seed1", "temperature1-top_k0-top_p1-seed1",
        "temperature1-top_k0-top_p1-seed2"};
    static const size_t cells[] = {0, 0, 1, 2, 2};
    ck_assert_str_eq(plan->name, "some");
    ck_assert_uint_eq(plan->trial_count, 5);
    ck_assert_uint_eq(plan->cell_count, 3);
    for (size_t i = 0; i < 5; i++) {
        ck_assert_str_eq(plan->trials[i].name, names[i]);
        ck_assert_uint_eq(plan->trials[i].cell, cells[i]);
        ck_assert_int_eq(plan->trials[i].steps, 8);
    }
    ck_assert_str_eq(value_of(&plan->trials[2], "rollout.top_p"), "0.8");
    ck_assert_str_eq(value_of(&plan->trials[1], "run.seed"), "2");
    sweep_plan_destroy(plan);
}
END_TEST

START_TEST(no_axes_is_one_trial_with_the_configured_seed)
{
    struct sweep_plan *plan = plan_of("");
    ck_assert_uint_eq(plan->trial_count, 1);
    ck_assert_str_eq(plan->trials[0].name, "trial");
    ck_assert_int_eq(plan->trials[0].seed, 7);
    sweep_plan_destroy(plan);
}
END_TEST

START_TEST(names_are_labels_values_and_unique)
{
    struct sweep_plan *plan = plan_of("axes:\n"
                                      "  - {async.max_staleness: [0, 8], name: [sync, eta 8]}\n"
                                      "  - loss.loss_type: [fipo]\n"
                                      "  - data.shuffle: [true]\n"
                                      "  - model.path: [some/where/model/, other/model, \"\"]\n");
    ck_assert_str_eq(plan->trials[2].name, "sync-fipo-shuffle_true-path_none");
    ck_assert_str_eq(plan->trials[5].name, "eta_8-fipo-shuffle_true-path_none");
    /* Both end in "model": told apart by their keys. */
    ck_assert_int_eq(strncmp(plan->trials[0].name, "sync-fipo-shuffle_true-model-", 29), 0);
    ck_assert_str_ne(plan->trials[0].name, plan->trials[1].name);
    ck_assert_ptr_nonnull(strstr(plan->trials[0].name, plan->trials[0].key));
    sweep_plan_destroy(plan);
}
END_TEST

START_TEST(the_same_files_give_the_same_plan)
{
    static const char body[] = "axes: [{optimizer.learning_rate: [1e-5, 0.00002]}]\nseeds: [3]\n"
                               "eval: {temperatures: [0.5, 1.0]}\n";
    struct sweep_plan *a = plan_of(body);
    struct sweep_plan *b = plan_of(body);
    char *text_a = NULL;
    char *text_b = NULL;
    ck_assert_int_eq(sweep_plan_json(a, &text_a), RL_OK);
    ck_assert_int_eq(sweep_plan_json(b, &text_b), RL_OK);
    ck_assert_str_eq(text_a, text_b);
    json_t *root = json_loads(text_a, 0, NULL);
    const json_t *trial = json_array_get(json_object_get(root, "trials"), 1);
    const json_t *rate =
        json_object_get(json_object_get(trial, "options"), "optimizer.learning_rate");
    ck_assert(json_real_value(rate) == 2e-5);
    ck_assert_uint_eq(json_array_size(json_object_get(root, "eval_temperatures")), 2);
    ck_assert_str_eq(json_string_value(json_object_get(trial, "key")), a->trials[1].key);
    json_decref(root);
    free(text_a);
    free(text_b);
    sweep_plan_destroy(a);
    sweep_plan_destroy(b);
}
END_TEST

/* What is refused, and a word of the reason. */
static const struct {
    const char *body, *reason;
} refusals[] = {
    {"axes: [{loss.los_type: [fipo]}]\n", "did you mean loss.loss_type"},
    {"axes: [{lost.loss_type: [fipo]}]\n", "did you mean loss"},
    {"axes: [{loss.loss_type: [fippo]}]\n", "did you mean fipo"},
    {"axes: [{loss.loss_type: []}]\n", "is empty"},
    {"axes: [{loss.loss_type: fipo}]\n", "expected a list"},
    {"axes: [{rollout.top_p: [0.5, 1.5]}]\n", "out of range"},
    {"axes: [{rollout.top_p: [0.5, 0.50]}]\n", "two trials are the same"},
    {"axes: [{rollout.top_p: [1, 0.5], rollout.top_k: [1]}]\n", "must be as many"},
    {"axes: [{rollout.top_p: [1]}, {rollout.top_p: [0.5]}]\n", "on two axes"},
    {"axes: [{run.seed: [1]}]\n", "seeds"},
    {"axes: [{run.dir: [a]}]\n", "set by the sweep"},
    {"axes: [{sweep.parallel: [1]}]\n", "not of its trials"},
    {"axes: [{eval.top_k: [1]}]\n", "belongs under `eval:`"},
    {"axes: [{loss.gamma: [0.5, 1], name: [a, a]}]\n", "given twice"},
    {"axes: {loss.gamma: [1]}\n", "expected a list"},
    {"axes: [{name: [a]}]\n", "without an option"},
    {"seeds: []\n", "at least one seed"},
    {"seeds: [1, 1]\n", "given twice"},
    {"axis: []\n", "did you mean axes"},
    {"seeds: [1]\nexclude: [{run.seed: 1}]\n", "leaves none"},
    {"axes: [{rollout.top_k: [1]}]\nexclude: [{rollout.top_k: 2}]\n", "no trial has"},
    {"exclude: [{rollout.top_k: 2}]\n", "on no axis"},
    {"halving: {steps: [4, 2]}\n", "ascending"},
    {"halving: {steps: [2]}\n", "evaluated"},
    {"options: {rollout: {top_p: 7}}\n", "out of range"},
    {"options: 7\n", "options: expected `section: {name: value}`"},
    {"options: {sweep: {parallel: 2}}\n", "not of its trials"},
    {"eval: {sample: 3}\n", "did you mean eval.samples"},
    {"axes: [{async.order: [fixed_lag]}, {async.max_staleness: [1, 100]}]\n", "cannot run"},
};

START_TEST(mistakes_are_named)
{
    struct sweep_plan *plan = NULL;
    rl_log_set_level(RL_LOG_ERROR);
    ck_assert_int_eq(read_plan(refusals[_i].body, &plan), RL_INVALID);
    ck_assert_msg(strstr(rl_log_last_error(), refusals[_i].reason) != NULL, "%s: %s",
                  refusals[_i].body, rl_log_last_error());
}
END_TEST

START_TEST(overrides_go_where_they_belong)
{
    char path[256];
    char *overrides[] = {"sweep.evaluate=last", "eval.samples=9", "optimizer.learning_rate=1e-3"};
    struct sweep_plan *plan = plan_of("");
    sweep_plan_destroy(plan);
    snprintf(path, sizeof path, "%s/some.sweep.yaml", folder);
    ck_assert_int_eq(sweep_plan_read(path, overrides, 3, &plan), RL_OK);
    ck_assert(sweep_plan_evaluates(plan));
    ck_assert_int_eq(plan->evaluated.eval.samples, 9);
    ck_assert_int_eq(plan->base.eval.samples, 4);
    ck_assert(plan->base.optimizer.learning_rate == 1e-3);
    sweep_plan_destroy(plan);
}
END_TEST

START_TEST(estimates_follow_what_was_measured)
{
    struct sweep_plan *plan = plan_of("axes:\n"
                                      "  - run.steps: [10, 20]\n"
                                      "  - loss.loss_type: [fipo, grpo]\n");
    double seconds[4] = {NAN, NAN, NAN, NAN};
    double estimates[4];
    sweep_plan_estimate(plan, seconds, estimates);
    ck_assert(estimates[0] == estimates[1] && estimates[2] == 2 * estimates[0]);
    seconds[0] = 10; /* fipo, 10 steps */
    seconds[1] = 30; /* grpo, 10 steps */
    sweep_plan_estimate(plan, seconds, estimates);
    ck_assert(estimates[0] == 10 && estimates[1] == 30);
    ck_assert_double_eq_tol(estimates[2], 20, 1e-9);
    ck_assert_double_eq_tol(estimates[3], 60, 1e-9);
    sweep_plan_destroy(plan);
}
END_TEST

START_TEST(the_better_cells_go_on)
{
    struct sweep_plan *plan = plan_of("axes: [{rollout.top_k: [1, 2, 3, 4, 5]}]\nseeds: [1, 2]\n"
                                      "halving: {keep: 0.5}\n");
    static const double scores[] = {0.2, NAN, 0.5, 0.2, 0.1};
    static const bool expected[] = {true, false, true, false, false};
    bool goes_on[5];
    sweep_plan_halve(plan, scores, goes_on); /* two of four; of equals the first */
    for (size_t i = 0; i < 5; i++) {
        ck_assert_int_eq(goes_on[i], expected[i]);
    }
    static const double all_out[] = {NAN, NAN, NAN, NAN, NAN};
    sweep_plan_halve(plan, all_out, goes_on);
    for (size_t i = 0; i < 5; i++) {
        ck_assert(!goes_on[i]);
    }
    sweep_plan_destroy(plan);
}
END_TEST

START_TEST(yaml_trees)
{
    static const char good[] = "a: [1, {b: ~}]\n\"c\": 'd'\n";
    static const char *const bad[] = {"a: 1\na: 2\n", "a: &x 1\n", "a: [", "a: 1\n---\nb: 2\n",
                                      "[[[[[[[[[1]]]]]]]]]"};
    struct rl_yaml_node *root = NULL;
    ck_assert_int_eq(rl_yaml_tree_parse("good", good, strlen(good), &root), RL_OK);
    ck_assert_uint_eq(rl_yaml_count(root), 2);
    ck_assert_int_eq(root->first->kind, RL_YAML_NODE_LIST);
    ck_assert_str_eq(root->first->first->text, "1");
    ck_assert_int_eq(root->first->first->next->first->kind, RL_YAML_NODE_NULL);
    ck_assert_str_eq(root->first->next->key, "c");
    ck_assert_str_eq(root->first->next->where, "good:2");
    rl_yaml_tree_free(root);
    ck_assert_int_eq(rl_yaml_tree_parse("empty", "", 0, &root), RL_OK);
    ck_assert_uint_eq(rl_yaml_count(root), 0);
    rl_yaml_tree_free(root);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        ck_assert_int_eq(rl_yaml_tree_parse("bad", bad[i], strlen(bad[i]), &root), RL_INVALID);
    }
}
END_TEST

static void make_folder(void)
{
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void remove_folder(void)
{
    static const char *const names[] = {"config.yaml", "some.sweep.yaml"};
    char path[256];
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

int main(void)
{
    Suite *suite = suite_create("sweep_plan");
    TCase *tests = tcase_create("all");
    tcase_add_unchecked_fixture(tests, make_folder, remove_folder);
    tcase_add_test(tests, grids_links_seeds_and_exclusions);
    tcase_add_test(tests, no_axes_is_one_trial_with_the_configured_seed);
    tcase_add_test(tests, names_are_labels_values_and_unique);
    tcase_add_test(tests, the_same_files_give_the_same_plan);
    tcase_add_loop_test(tests, mistakes_are_named, 0, sizeof refusals / sizeof refusals[0]);
    tcase_add_test(tests, overrides_go_where_they_belong);
    tcase_add_test(tests, estimates_follow_what_was_measured);
    tcase_add_test(tests, the_better_cells_go_on);
    tcase_add_test(tests, yaml_trees);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
