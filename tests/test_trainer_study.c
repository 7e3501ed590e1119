/* Reports of sweeps: folders made here with known counts. What is chosen follows from split A
 * alone, what is claimed from split B; the same folder gives the same bytes; damaged folders are
 * refused. */
#include "trainer/study_report.h"

#include "core/folder_make.h"
#include "core/log.h"
#include "core/rng.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PROBLEMS = 60, GUARDS = 10, SAMPLES = 8, TEMPERATURES = 3, SEEDS = 2, PATH = 512 };

static const double train_temperatures[] = {0.6, 1, 1.6};
static const double eval_temperatures[TEMPERATURES] = {0.5, 1, 1.5};

static char folder[PATH];

static void folder_make(void)
{
    snprintf(folder, sizeof folder, "/tmp/fs-test-study-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void folder_remove(void)
{
    char command[PATH + 16];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    ck_assert_int_eq(system(command), 0);
}

static const char *in_folder(const char *format, const char *name)
{
    static char path[PATH * 2];
    int used = snprintf(path, sizeof path, "%s/", folder);
    snprintf(path + used, sizeof path - (size_t)used, format, name);
    return path;
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(text, 1, strlen(text), file), strlen(text));
    fclose(file);
}

static char *read_text(const char *path)
{
    char *text = NULL;
    ck_assert_int_eq(rl_file_read(path, 1 << 26, &text, NULL), RL_OK);
    return text;
}

/* Counts of a model whose pass rate is largest where temperature x T_eval is 1.2. */
static struct count_table *make_counts(double temperature, double bonus, uint64_t seed)
{
    struct count_table *table = NULL;
    ck_assert_int_eq(count_table_create(PROBLEMS + GUARDS, TEMPERATURES, &table), RL_OK);
    table->sets = strdup("eval\nother & more");
    table->difficulties = strdup("");
    table->default_temperature = 1;
    table->top_p = 1;
    memcpy(table->temperatures, eval_temperatures, sizeof eval_temperatures);
    for (uint32_t p = 0; p < PROBLEMS + GUARDS; p++) {
        char prompt[16];
        snprintf(prompt, sizeof prompt, "%u", p);
        uint64_t id = count_problem_id(prompt, "");
        table->problems[p] =
            (struct count_problem){id, p >= PROBLEMS, count_problem_split(id), COUNT_NO_CLASS};
        for (uint32_t t = 0; t < TEMPERATURES; t++) {
            double off = temperature * eval_temperatures[t] - 1.2;
            double rate = 0.2 + 0.5 * (p % 7) / 7.0 + bonus - 0.15 * off * off;
            struct count_cell *cell = count_table_at(table, t, p);
            *cell = (struct count_cell){.samples = SAMPLES, .finished = SAMPLES, .tokens = 100};
            for (uint32_t s = 0; s < SAMPLES; s++) {
                struct rl_rng_key key = rl_rng_key_make(seed, p, s);
                cell->correct += rl_rng_uniform(key, t) < rate ? 1 : 0;
            }
            cell->majority = cell->correct * 2 > SAMPLES ? 1 : 0;
            cell->logprob = -50;
        }
    }
    ck_assert_int_eq(count_table_sort(table), RL_OK);
    return table;
}

static void write_counts(const char *trial, int step, struct count_table *table)
{
    char path[PATH * 2];
    snprintf(path, sizeof path, "%s/%s/eval", folder, trial);
    ck_assert_int_eq(rl_folder_make(path), RL_OK);
    snprintf(path, sizeof path, "%s/%s/eval/step_%06d.h5", folder, trial, step);
    ck_assert_int_eq(count_file_write(path, table), RL_OK);
    count_table_destroy(table);
}

static void write_trial(const char *name, json_t *options, double temperature, int64_t seed)
{
    char trial[128];
    bool fails = strcmp(name, "T1.6-k20-seed2") == 0;
    bool truncated = json_integer_value(json_object_get(options, "rollout.top_k")) > 0;
    snprintf(trial, sizeof trial, "trials/%s", name);
    for (int step = 10; step <= 20; step += 10) {
        write_counts(
            trial, step,
            make_counts(temperature, (truncated ? 0.1 : 0) + 0.002 * step, (uint64_t)seed));
    }
    char corpus[64];
    snprintf(corpus, sizeof corpus, "%g-%d", temperature, truncated);
    json_t *result =
        json_pack("{s:s, s:O, s:i, s:s, s:{s:f}}", "state", fails ? "failed" : "done", "options",
                  options, "attempts", 1, "reason", fails ? "died <of> \"memory\"" : "", "summary",
                  "loss", 0.5 + (double)seed);
    json_t *summary = json_pack("{s:{s:s, s:i, s:i, s:i}}", "corpus", "key", corpus, "samples", 100,
                                "generated", seed == 1 ? 100 : 0, "served", seed == 1 ? 0 : 100);
    ck_assert_ptr_nonnull(result);
    char path[PATH * 2];
    snprintf(path, sizeof path, "%s/%s/result.json", folder, trial);
    ck_assert_int_eq(json_dump_file(result, path, 0), 0);
    json_decref(result);
    snprintf(path, sizeof path, "%s/%s/summary.json", folder, trial);
    ck_assert_int_eq(json_dump_file(summary, path, 0), 0);
    json_decref(summary);
    snprintf(path, sizeof path, "%s/%s/timing.json", folder, trial);
    write_text(path, "{\"host\": \"here\", \"train_seconds\": 2.5, \"seconds\": 3.0}");
}

static json_t *make_trials(void)
{
    json_t *trials = json_array();
    for (size_t t = 0; t < 3; t++) {
        for (int truncated = 0; truncated < 2; truncated++) {
            for (int64_t seed = 1; seed <= SEEDS; seed++) {
                char name[64];
                snprintf(name, sizeof name, "T%g-%s-seed%d", train_temperatures[t],
                         truncated ? "k20" : "none", (int)seed);
                json_t *options =
                    json_pack("{s:f, s:i, s:f, s:I}", "rollout.temperature", train_temperatures[t],
                              "rollout.top_k", truncated ? 20 : 0, "rollout.top_p",
                              truncated ? 0.95 : 1.0, "run.seed", (json_int_t)seed);
                write_trial(name, options, train_temperatures[t], seed);
                json_array_append_new(trials, json_pack("{s:s, s:s, s:o, s:I, s:i}", "key", name,
                                                        "name", name, "options", options, "seed",
                                                        (json_int_t)seed, "cell", 0));
            }
        }
    }
    return trials;
}

static void make_sweep(void)
{
    json_t *axes = json_pack(
        "[{s:[s], s:[[f],[f],[f]], s:[]}, {s:[s,s], s:[[i,f],[i,f]], s:[s,s]}]", "keys",
        "rollout.temperature", "values", 0.6, 1.0, 1.6, "labels", "keys", "rollout.top_k",
        "rollout.top_p", "values", 0, 1.0, 20, 0.95, "labels", "no truncation", "k20/p0.95");
    json_t *plan = json_pack("{s:i, s:s, s:s, s:s, s:{}, s:o, s:o}", "format", 1, "name",
                             "toy <sweep>", "command", "distill", "config", "run: {steps: 20}\n",
                             "options", "axes", axes, "trials", make_trials());
    ck_assert_ptr_nonnull(plan);
    write_counts("base", 0, make_counts(1.6, -0.05, 9));
    ck_assert_int_eq(json_dump_file(plan, in_folder("%s", "sweep.json"), 0), 0);
    json_decref(plan);
}

static json_t *report(bool timings)
{
    ck_assert_int_eq(study_report_write(folder, NULL, timings, NULL), RL_OK);
    json_t *document = json_load_file(in_folder("%s", "cells.json"), 0, NULL);
    ck_assert_ptr_nonnull(document);
    return document;
}

static const json_t *claim_of(const json_t *document, const char *name)
{
    const json_t *claims = json_object_get(document, "claims");
    for (size_t i = 0; i < json_array_size(claims); i++) {
        const json_t *claim = json_array_get(claims, i);
        if (strcmp(json_string_value(json_object_get(claim, "name")), name) == 0) {
            return claim;
        }
    }
    ck_abort_msg("no claim about the %s", name);
    return NULL;
}

static double mean_of(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(json_object_get(object, name), "mean"));
}

/* Rewrite one trial's (or the base's) counts: problems of `split` get `correct` right samples at
 * all temperatures; at one only if `temperature` >= 0. */
static void rewrite(const char *trial, int step, int split, int temperature, uint32_t correct)
{
    char path[PATH * 2];
    struct count_table *table = NULL;
    snprintf(path, sizeof path, "%s/%s/eval/step_%06d.h5", folder, trial, step);
    ck_assert_int_eq(count_file_read(path, &table), RL_OK);
    for (uint32_t p = 0; p < table->problem_count; p++) {
        for (int t = 0; t < TEMPERATURES && table->problems[p].split == split; t++) {
            if (temperature < 0 || t == temperature) {
                count_table_at(table, (uint32_t)t, p)->correct = correct;
            }
        }
    }
    ck_assert_int_eq(count_file_write(path, table), RL_OK);
    count_table_destroy(table);
}

START_TEST(folder_is_read)
{
    struct study *study = NULL;
    make_sweep();
    ck_assert_int_eq(study_load(folder, &study), RL_OK);
    ck_assert_uint_eq(study->trial_count, 12);
    ck_assert_uint_eq(study->setting_count, 6);
    ck_assert_uint_eq(study->group_count, 2);
    ck_assert_str_eq(study->settings[0].label, "temperature 0.6, no truncation");
    ck_assert_str_eq(study->groups[1].label, "k20/p0.95");
    ck_assert(!study->settings[0].truncated && study->settings[1].truncated);
    ck_assert_double_eq(study->settings[4].train_temperature, 1.6);
    ck_assert_str_eq(study->trials[11].state, "failed");
    ck_assert_uint_eq(study->trials[11].evaluation_count, 0);
    ck_assert_int_eq(study->trials[0].evaluations[1].step, 20);
    struct study_cells cells;
    ck_assert_int_eq(study_cells_make(study, &cells), RL_OK);
    ck_assert_uint_eq(cells.count, TEMPERATURES * (1 + 6 * 2));
    ck_assert_uint_eq(cells.items[cells.count - 1].seeds, 1); /* the other one failed */
    ck_assert_uint_eq(cells.items[3].seeds, SEEDS);
    study_cells_fini(&cells);
    study_destroy(study);
}
END_TEST

/* The winner's claim against counting by hand. */
START_TEST(claims_are_of_split_b)
{
    make_sweep();
    json_t *document = report(true);
    const json_t *winner = claim_of(document, "winner");
    const char *setting = json_string_value(json_object_get(winner, "setting"));
    double t_eval = json_number_value(json_object_get(winner, "t_eval"));
    json_int_t step = json_integer_value(json_object_get(winner, "step"));
    const json_t *rows = json_object_get(document, "cells");
    double best_a[2] = {0};
    double sums[4] = {0};
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        if (strcmp(json_string_value(json_object_get(row, "set")), "eval") == 0 &&
            strcmp(json_string_value(json_object_get(row, "setting")), setting) == 0 &&
            json_number_value(json_object_get(row, "t_eval")) == t_eval &&
            json_integer_value(json_object_get(row, "step")) == step) {
            sums[0] += 1;
            sums[1] += json_number_value(json_object_get(row, "pass_at_1_A"));
            sums[2] += json_number_value(json_object_get(row, "pass_at_1_B"));
            sums[3] += json_number_value(json_object_get(row, "pass_at_n_B"));
        }
        best_a[0] = fmax(best_a[0], json_number_value(json_object_get(row, "pass_at_1_A")));
    }
    ck_assert_double_eq(sums[0], json_number_value(json_object_get(winner, "seeds")));
    ck_assert_double_eq_tol(mean_of(winner, "pass_at_1"), sums[2] / sums[0], 1e-9);
    ck_assert_double_eq_tol(mean_of(winner, "pass_at_k"), sums[3] / sums[0], 1e-9);
    ck_assert_str_eq(setting + strlen(setting) - 9, "k20/p0.95"); /* it has the bonus */
    const json_t *usual = claim_of(document, "base, default decoding");
    const json_t *tuned = claim_of(document, "base, best T_eval");
    ck_assert_double_eq(json_number_value(json_object_get(usual, "t_eval")), 1);
    ck_assert_double_eq_tol(mean_of(json_object_get(winner, "against_tuned_base"), "problems"),
                            mean_of(winner, "pass_at_1") - mean_of(tuned, "pass_at_1"), 1e-9);
    ck_assert_double_eq_tol(mean_of(json_object_get(winner, "against_base"), "problems"),
                            mean_of(winner, "pass_at_1") - mean_of(usual, "pass_at_1"), 1e-9);
    ck_assert_uint_eq(json_array_size(json_object_get(document, "null_cells")), TEMPERATURES);
    ck_assert_uint_eq(json_array_size(json_object_get(document, "fits")), 2);
    ck_assert_uint_eq(json_array_size(json_object_get(document, "difficulty")), 3);
    ck_assert_uint_eq(json_array_size(json_object_get(document, "guards")), 1);
    json_decref(document);
}
END_TEST

START_TEST(what_happens_on_split_b_chooses_nothing)
{
    make_sweep();
    json_t *before = report(true);
    rewrite("trials/T0.6-none-seed1", 10, COUNT_SPLIT_B, -1, SAMPLES);
    rewrite("trials/T0.6-none-seed2", 10, COUNT_SPLIT_B, -1, SAMPLES);
    rewrite("base", 0, COUNT_SPLIT_B, 2, SAMPLES);
    json_t *after = report(true);
    static const char *const names[] = {"winner", "base, best T_eval"};
    for (int i = 0; i < 2; i++) {
        const json_t *a = claim_of(before, names[i]);
        const json_t *b = claim_of(after, names[i]);
        ck_assert(json_equal(json_object_get(a, "setting"), json_object_get(b, "setting")));
        ck_assert(json_equal(json_object_get(a, "step"), json_object_get(b, "step")));
        ck_assert(json_equal(json_object_get(a, "t_eval"), json_object_get(b, "t_eval")));
    }
    json_decref(before);
    /* the same on split A decides, and the claim is still split B's */
    rewrite("trials/T0.6-none-seed1", 10, COUNT_SPLIT_A, 1, SAMPLES);
    rewrite("trials/T0.6-none-seed2", 10, COUNT_SPLIT_A, 1, SAMPLES);
    rewrite("trials/T0.6-none-seed1", 10, COUNT_SPLIT_B, 1, 1);
    rewrite("trials/T0.6-none-seed2", 10, COUNT_SPLIT_B, 1, 1);
    json_t *chosen = report(true);
    const json_t *winner = claim_of(chosen, "winner");
    ck_assert_str_eq(json_string_value(json_object_get(winner, "setting")),
                     "temperature 0.6, no truncation");
    ck_assert_int_eq(json_integer_value(json_object_get(winner, "step")), 10);
    ck_assert_double_eq(json_number_value(json_object_get(winner, "t_eval")), 1);
    ck_assert_double_eq_tol(mean_of(winner, "pass_at_1"), 1.0 / SAMPLES, 1e-9);
    json_decref(after);
    json_decref(chosen);
}
END_TEST

START_TEST(ties_go_to_the_first)
{
    double score[] = {0.2, 0.3, 0.3, 0.9, 0.5, 0.5, 0.4};
    int32_t group[] = {STUDY_BASE, STUDY_BASE, STUDY_BASE, STUDY_BASE - 1, 1, 0, 0};
    struct study_half_a half = {7, 3, 2, score, group};
    struct study_choice choice;
    ck_assert_int_eq(study_choose(&half, &choice), RL_OK);
    ck_assert_int_eq(choice.winner, 4);
    ck_assert_int_eq(choice.base_tuned[0], 1);
    ck_assert_int_eq(choice.base_tuned[1], 3);
    ck_assert_int_eq(choice.of_group[0], 5);
    ck_assert_int_eq(choice.of_group[1], 4);
    ck_assert_int_eq(choice.of_group[2], STUDY_NONE);
    study_choice_fini(&choice);
}
END_TEST

/* What the page says, with the section of timings or without. */
static char *page(bool timings)
{
    json_decref(report(timings));
    return read_text(in_folder("%s", "report.html"));
}

START_TEST(same_folder_same_bytes)
{
    make_sweep();
    char *first = page(true);
    char *table = read_text(in_folder("%s", "cells.csv"));
    char *again = page(true);
    char *plain = page(false);
    ck_assert_str_eq(first, again);
    ck_assert_str_ne(first, plain);
    ck_assert_ptr_nonnull(strstr(first, "died &lt;of&gt; &quot;memory&quot;"));
    ck_assert_ptr_nonnull(strstr(first, "toy &lt;sweep&gt;"));
    ck_assert_ptr_nonnull(strstr(first, "other &amp; more"));
    ck_assert_ptr_null(strstr(plain, "nan"));
    write_text(in_folder("trials/%s/timing.json", "T1-none-seed1"),
               "{\"host\": \"elsewhere\", \"seconds\": 77.5}");
    char *slower = page(false);
    char *told = page(true);
    ck_assert_str_eq(slower, plain);
    ck_assert_str_ne(told, first);
    int lines = 0;
    for (const char *at = table; *at != '\0'; at++) {
        lines += *at == '\n' ? 1 : 0;
    }
    ck_assert_int_eq(lines, 1 + 2 * TEMPERATURES * (1 + 11 * 2)); /* sets x temperatures x models */
    free(first);
    free(again);
    free(plain);
    free(slower);
    free(told);
    free(table);
}
END_TEST

START_TEST(what_was_spent)
{
    make_sweep();
    json_t *document = report(true);
    const json_t *spent = json_object_get(document, "spent");
    ck_assert_int_eq(json_integer_value(json_object_get(spent, "training_samples")), 1200);
    ck_assert_int_eq(json_integer_value(json_object_get(spent, "generated_samples")), 600);
    ck_assert_double_eq_tol(json_number_value(json_object_get(spent, "served_share")), 0.5, 1e-9);
    ck_assert_int_eq(json_integer_value(json_object_get(spent, "failed")), 1);
    const json_t *failed = json_array_get(json_object_get(document, "failed"), 0);
    ck_assert_str_eq(json_string_value(json_object_get(failed, "reason")), "died <of> \"memory\"");
    const json_t *settings = json_object_get(document, "settings");
    ck_assert_uint_eq(json_array_size(settings), 6);
    const json_t *figures = json_object_get(json_array_get(settings, 0), "figures");
    ck_assert_double_eq(mean_of(figures, "loss"), 2);
    json_decref(document);
}
END_TEST

/* A sweep of training runs with one temperature, or with no evaluation at all. */
START_TEST(other_sweeps)
{
    make_sweep();
    json_t *plan = json_load_file(in_folder("%s", "sweep.json"), 0, NULL);
    json_object_set_new(plan, "command", json_string("train"));
    ck_assert_int_eq(json_dump_file(plan, in_folder("%s", "sweep.json"), 0), 0);
    json_decref(plan);
    unlink(in_folder("%s", "base/eval/step_000000.h5"));
    json_t *document = report(false);
    ck_assert_uint_eq(json_array_size(json_object_get(document, "claims")), 1);
    ck_assert_uint_eq(json_array_size(json_object_get(document, "null_cells")), 0);
    const json_t *second = json_array_get(json_object_get(document, "settings"), 1);
    ck_assert_uint_eq(json_array_size(json_object_get(second, "over_seeds")), SEEDS);
    ck_assert(json_is_number(
        json_object_get(json_object_get(json_object_get(second, "difference"), "seeds"), "low")));
    json_decref(document);
    char command[PATH * 2];
    snprintf(command, sizeof command, "rm -rf %s/trials/*/eval", folder);
    ck_assert_int_eq(system(command), 0);
    document = report(false);
    ck_assert_ptr_null(json_object_get(document, "claims"));
    ck_assert_uint_eq(json_array_size(json_object_get(document, "settings")), 6);
    json_decref(document);
}
END_TEST

START_TEST(damaged_folders_are_refused)
{
    make_sweep();
    const char *counts = in_folder("trials/%s/eval/step_000020.h5", "T1-none-seed1");
    struct count_table *table = NULL;
    ck_assert_int_eq(count_file_read(counts, &table), RL_OK);
    table->temperatures[0] = 0.25;
    ck_assert_int_eq(count_file_write(counts, table), RL_OK);
    ck_assert_int_eq(study_report_write(folder, NULL, true, NULL), RL_INVALID);
    table->temperatures[0] = eval_temperatures[0];
    table->problems[0].id--;
    table->problems[0].split = count_problem_split(table->problems[0].id);
    ck_assert_int_eq(count_file_write(counts, table), RL_OK);
    ck_assert_int_eq(study_report_write(folder, NULL, true, NULL), RL_INVALID);
    count_table_destroy(table);
    write_text(counts, "no counts");
    ck_assert_int_eq(study_report_write(folder, NULL, true, NULL), RL_CORRUPT);
    write_text(in_folder("trials/%s/result.json", "T1-none-seed1"), "[]");
    ck_assert_int_eq(study_report_write(folder, NULL, true, NULL), RL_CORRUPT);
    write_text(in_folder("%s", "sweep.json"),
               "{\"trials\": [{\"name\": \"a/b\", \"options\": {}}]}");
    ck_assert_int_eq(study_report_write(folder, NULL, true, NULL), RL_CORRUPT);
    write_text(in_folder("%s", "sweep.json"), "{\"trials\": []}");
    ck_assert_int_eq(study_report_write(folder, NULL, true, NULL), RL_CORRUPT);
    write_text(in_folder("%s", "sweep.json"), "{");
    ck_assert_int_eq(study_report_write(folder, NULL, true, NULL), RL_CORRUPT);
    ck_assert_int_ne(access(in_folder("%s", "report.html"), F_OK), 0);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("study");
    TCase *tests = tcase_create("all");
    tcase_add_checked_fixture(tests, folder_make, folder_remove);
    tcase_add_test(tests, folder_is_read);
    tcase_add_test(tests, claims_are_of_split_b);
    tcase_add_test(tests, what_happens_on_split_b_chooses_nothing);
    tcase_add_test(tests, ties_go_to_the_first);
    tcase_add_test(tests, same_folder_same_bytes);
    tcase_add_test(tests, what_was_spent);
    tcase_add_test(tests, other_sweeps);
    tcase_add_test(tests, damaged_folders_are_refused);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
