/* What a step collects is what its JSON line says; the file survives torn lines and resumes. */
#include "core/metrics.h"

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct rl_metrics *metrics;
static char path[64];

static void set_up(void)
{
    ck_assert_int_eq(rl_metrics_create(&metrics), RL_OK);
    snprintf(path, sizeof path, "/tmp/foresight_metrics_XXXXXX");
    int file = mkstemp(path);
    ck_assert_int_ge(file, 0);
    close(file);
}

static void tear_down(void)
{
    rl_metrics_destroy(metrics);
    unlink(path);
}

static json_t *print_and_parse(int64_t step)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    ck_assert_ptr_nonnull(out);
    ck_assert_int_eq(rl_metrics_print(metrics, step, out), RL_OK);
    fclose(out);
    json_error_t error;
    json_t *object = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    ck_assert_msg(object != NULL, "%s in %s", error.text, text);
    free(text);
    return object;
}

static double number(const json_t *object, const char *name)
{
    const json_t *value = json_object_get(object, name);
    ck_assert_msg(json_is_number(value), "%s is no number", name);
    return json_number_value(value);
}

START_TEST(kinds_do_what_they_say)
{
    rl_metrics_add(metrics, RL_METRIC_LEARNING_RATE, 1.0);
    rl_metrics_add(metrics, RL_METRIC_LEARNING_RATE, 3e-4);
    rl_metrics_add(metrics, RL_METRIC_REWARD, 1.0);
    rl_metrics_add_sum(metrics, RL_METRIC_REWARD, 2.0, 3.0);
    rl_metrics_add_sum(metrics, RL_METRIC_REWARD, 100.0, 0.0);
    rl_metrics_add(metrics, RL_METRIC_LENGTH_MAX, -7.0);
    rl_metrics_add(metrics, RL_METRIC_LENGTH_MAX, -9.0);
    rl_metrics_add(metrics, RL_METRIC_LENGTH_MIN, 7.0);
    rl_metrics_add(metrics, RL_METRIC_LENGTH_MIN, 9.0);
    rl_metrics_add(metrics, RL_METRIC_NUM_TOKENS, 9007199254740000.0);
    rl_metrics_add(metrics, RL_METRIC_NUM_TOKENS, 1.0);
    json_t *object = print_and_parse(12);
    ck_assert_double_eq(number(object, "step"), 12.0);
    ck_assert_double_eq(number(object, "learning_rate"), 3e-4);
    ck_assert_double_eq(number(object, "reward"), 0.75);
    ck_assert_double_eq(number(object, "completions/max_length"), -7.0);
    ck_assert_double_eq(number(object, "completions/min_length"), 7.0);
    ck_assert_int_eq(json_integer_value(json_object_get(object, "num_tokens")), 9007199254740001);
    ck_assert_uint_eq(json_object_size(object), 6);
    json_decref(object);
    rl_metrics_reset(metrics);
    object = print_and_parse(13);
    ck_assert_uint_eq(json_object_size(object), 2); /* the counter's total stays */
    json_decref(object);
}
END_TEST

START_TEST(not_finite_is_null)
{
    rl_metrics_add(metrics, RL_METRIC_LOSS, 1.0);
    rl_metrics_add(metrics, RL_METRIC_LOSS, (double)NAN);
    rl_metrics_add(metrics, RL_METRIC_RATIO_MAX, (double)INFINITY);
    rl_metrics_add(metrics, RL_METRIC_RATIO_MAX, 1.0);
    rl_metrics_add(metrics, RL_METRIC_RATIO_MIN, (double)NAN);
    rl_metrics_add(metrics, RL_METRIC_RATIO_MIN, 1.0);
    rl_metrics_set_named(metrics, "rewards/numeric/mean", (double)-INFINITY);
    json_t *object = print_and_parse(1);
    ck_assert(json_is_null(json_object_get(object, "loss")));
    ck_assert(json_is_null(json_object_get(object, "importance_ratio/max")));
    ck_assert(json_is_null(json_object_get(object, "importance_ratio/min")));
    ck_assert(json_is_null(json_object_get(object, "rewards/numeric/mean")));
    json_decref(object);
}
END_TEST

START_TEST(histogram_quantiles)
{
    for (int i = 0; i <= 100; i++) {
        rl_metrics_add(metrics, RL_METRIC_LENGTH_HISTOGRAM, i);
    }
    json_t *object = print_and_parse(1);
    ck_assert_double_eq(number(object, "completions/length/count"), 101.0);
    ck_assert_double_eq(number(object, "completions/length/p05"), 5.0);
    ck_assert_double_eq(number(object, "completions/length/p50"), 50.0);
    ck_assert_double_eq(number(object, "completions/length/p95"), 95.0);
    json_decref(object);
    rl_metrics_reset(metrics);
    for (int i = 1; i <= 1000; i++) {
        rl_metrics_add(metrics, RL_METRIC_LENGTH_HISTOGRAM, i % 2 == 0 ? i * 1e-3 : -i * 1e-3);
    }
    object = print_and_parse(1);
    ck_assert_double_eq_tol(number(object, "completions/length/p05"), -0.9, 0.02);
    ck_assert_double_eq_tol(number(object, "completions/length/p50"), 0.0, 0.005);
    ck_assert_double_eq_tol(number(object, "completions/length/p75"), 0.5, 0.01);
    json_decref(object);
    rl_metrics_reset(metrics);
    rl_metrics_add(metrics, RL_METRIC_LENGTH_HISTOGRAM, 1.0);
    object = print_and_parse(2);
    ck_assert_double_eq(number(object, "completions/length/count"), 1.0);
    ck_assert_double_eq(number(object, "completions/length/p05"), 1.0);
    json_decref(object);
}
END_TEST

/* Two ranks' means give the mean of their samples, not of their means. */
START_TEST(merge_is_over_samples)
{
    struct rl_metrics *other = NULL;
    static double packed[RL_METRICS_PACKED];
    double value = 0.0;
    ck_assert_int_eq(rl_metrics_create(&other), RL_OK);
    rl_metrics_add_sum(metrics, RL_METRIC_ENTROPY, 10.0, 10.0);
    rl_metrics_add(other, RL_METRIC_ENTROPY, 0.0);
    rl_metrics_add(other, RL_METRIC_RATIO_MAX, 5.0);
    rl_metrics_add(metrics, RL_METRIC_RATIO_MAX, 2.0);
    rl_metrics_add(other, RL_METRIC_UNSCORABLE, 3.0);
    for (int round = 0; round < 2; round++) {
        rl_metrics_pack(other, packed);
        rl_metrics_merge(metrics, packed);
        rl_metrics_reset(other); /* the second round has nothing new to add */
    }
    ck_assert(rl_metrics_get(metrics, RL_METRIC_ENTROPY, &value));
    ck_assert_double_eq_tol(value, 10.0 / 11.0, 1e-12);
    ck_assert(rl_metrics_get(metrics, RL_METRIC_RATIO_MAX, &value));
    ck_assert_double_eq(value, 5.0);
    ck_assert(rl_metrics_get(metrics, RL_METRIC_UNSCORABLE, &value));
    ck_assert_double_eq(value, 3.0);
    ck_assert(!rl_metrics_get(metrics, RL_METRIC_KL, &value));
    rl_metrics_restore_counter(metrics, RL_METRIC_UNSCORABLE, 40.0);
    rl_metrics_add(metrics, RL_METRIC_UNSCORABLE, 2.0);
    ck_assert(rl_metrics_get(metrics, RL_METRIC_UNSCORABLE, &value));
    ck_assert_double_eq(value, 42.0);
    rl_metrics_destroy(other);
}
END_TEST

START_TEST(names_at_run_time)
{
    rl_metrics_set_named(metrics, "odd \"name\"\\\n\xff", 1.5);
    for (int i = 0; i < 2 * RL_METRIC_NAMED_MAX; i++) {
        char name[32];
        snprintf(name, sizeof name, "many/%d", i);
        rl_metrics_set_named(metrics, name, i);
    }
    rl_metrics_set_named(metrics, "many/3", -3.0);
    json_t *object = print_and_parse(1);
    ck_assert_uint_eq(json_object_size(object), RL_METRIC_NAMED_MAX + 1);
    ck_assert_double_eq(number(object, "odd__name____"), 1.5);
    ck_assert_double_eq(number(object, "many/3"), -3.0);
    json_decref(object);
    rl_metrics_add(NULL, RL_METRIC_LOSS, 1.0);
    rl_metrics_set_named(NULL, "x", 1.0);
}
END_TEST

START_TEST(waits_become_metrics)
{
    struct rl_waits *waits = NULL;
    ck_assert_int_eq(rl_waits_create(NULL, &waits), RL_OK);
    struct rl_wait wait = rl_wait_begin(waits, "scored groups: empty");
    rl_wait_end(&wait);
    rl_metrics_set_waits(metrics, waits);
    json_t *object = print_and_parse(1);
    ck_assert_double_eq(number(object, "wait/scored_groups__empty/count"), 1.0);
    ck_assert_double_ge(number(object, "wait/scored_groups__empty/seconds"), 0.0);
    json_decref(object);
    rl_waits_destroy(waits);
}
END_TEST

/* Steps of the whole lines in the file; every line must parse. */
static size_t steps_in_file(int64_t *steps, size_t room)
{
    char line[65536];
    size_t count = 0;
    FILE *file = fopen(path, "r");
    ck_assert_ptr_nonnull(file);
    while (fgets(line, sizeof line, file) != NULL) {
        json_error_t error;
        json_t *object = json_loads(line, 0, &error);
        ck_assert_msg(object != NULL, "%s in %s", error.text, line);
        ck_assert_uint_lt(count, room);
        steps[count++] = json_integer_value(json_object_get(object, "step"));
        json_decref(object);
    }
    fclose(file);
    return count;
}

START_TEST(file_is_cut_at_resume)
{
    int64_t steps[16];
    ck_assert_int_eq(rl_metrics_open(metrics, path, -1), RL_OK);
    for (int64_t step = 1; step <= 10; step++) {
        rl_metrics_add(metrics, RL_METRIC_REWARD, 1.0 / (double)step);
        for (int i = 0; i < 60; i++) { /* lines longer than any read buffer */
            char name[64];
            snprintf(name, sizeof name, "a/rather/long/name/of/a/metric/%d", i);
            rl_metrics_set_named(metrics, name, i);
        }
        ck_assert_int_eq(rl_metrics_write(metrics, step), RL_OK);
    }
    ck_assert_uint_eq(steps_in_file(steps, 16), 10);
    FILE *file = fopen(path, "a");
    ck_assert_ptr_nonnull(file);
    fputs("{\"step\": 11, \"reward\": 0.", file); /* killed while it wrote */
    fclose(file);
    ck_assert_int_eq(rl_metrics_open(metrics, path, 100), RL_OK);
    ck_assert_uint_eq(steps_in_file(steps, 16), 10);
    ck_assert_int_eq(rl_metrics_open(metrics, path, 7), RL_OK);
    ck_assert_int_eq(rl_metrics_write(metrics, 8), RL_OK);
    ck_assert_uint_eq(steps_in_file(steps, 16), 8);
    ck_assert_int_eq(steps[6], 7);
    ck_assert_int_eq(steps[7], 8);
    ck_assert_int_eq(rl_metrics_open(metrics, path, -1), RL_OK);
    ck_assert_uint_eq(steps_in_file(steps, 16), 0);
    ck_assert_int_eq(rl_metrics_open(metrics, "/nonexistent/folder/m.jsonl", -1), RL_IO);
}
END_TEST

START_TEST(full_disk_is_an_error)
{
    if (access("/dev/full", W_OK) != 0) {
        return;
    }
    FILE *full = fopen("/dev/full", "w");
    ck_assert_ptr_nonnull(full);
    setvbuf(full, NULL, _IONBF, 0);
    ck_assert_int_eq(rl_metrics_print(metrics, 1, full), RL_IO);
    fclose(full);
}
END_TEST

START_TEST(names_are_unique)
{
    for (int i = 0; i < RL_METRIC_COUNT; i++) {
        for (int j = 0; j < i; j++) {
            ck_assert_str_ne(rl_metrics_name((enum rl_metric_id)i),
                             rl_metrics_name((enum rl_metric_id)j));
        }
    }
}
END_TEST

int main(void)
{
    TCase *tcase = tcase_create("metrics");
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, kinds_do_what_they_say);
    tcase_add_test(tcase, not_finite_is_null);
    tcase_add_test(tcase, histogram_quantiles);
    tcase_add_test(tcase, merge_is_over_samples);
    tcase_add_test(tcase, names_at_run_time);
    tcase_add_test(tcase, waits_become_metrics);
    tcase_add_test(tcase, file_is_cut_at_resume);
    tcase_add_test(tcase, full_disk_is_an_error);
    tcase_add_test(tcase, names_are_unique);
    Suite *suite = suite_create("core metrics");
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
