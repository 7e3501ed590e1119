/* Progress lines: fixed columns, missing figures, durations, bars that never break a line. */
#include "trainer/progress.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct progress_step step_sample(void)
{
    return (struct progress_step){.step = 7,
                                  .steps = 120,
                                  .reward = 0.51234,
                                  .accuracy = 0.5,
                                  .length = 23.44,
                                  .entropy = 0.8,
                                  .staleness_mean = 0.75,
                                  .staleness_max = 2,
                                  .rollout_rate = 4210.4,
                                  .learner_rate = 91234,
                                  .step_s = 1.84,
                                  .eta_s = 212};
}

START_TEST(step_line_is_readable)
{
    char line[PROGRESS_LINE_BYTES];
    struct progress_step step = step_sample();
    progress_step_format(&step, line);
    ck_assert_str_eq(line, "      7/120    0.512  0.500    23.4   0.800      0.75/2     4210 "
                           "    91.2k    1.8s   3m32s");
}
END_TEST

START_TEST(columns_stand_under_their_heads)
{
    char head[PROGRESS_LINE_BYTES];
    char line[PROGRESS_LINE_BYTES];
    struct progress_step step = step_sample();
    progress_head_format(head);
    progress_step_format(&step, line);
    ck_assert_uint_eq(strlen(head), strlen(line));
}
END_TEST

START_TEST(missing_figures_are_dashes)
{
    char line[PROGRESS_LINE_BYTES];
    double none = (double)NAN;
    struct progress_step step = {.step = 1,
                                 .steps = 2,
                                 .reward = none,
                                 .accuracy = none,
                                 .length = none,
                                 .entropy = none,
                                 .staleness_mean = none,
                                 .staleness_max = none,
                                 .rollout_rate = none,
                                 .learner_rate = INFINITY,
                                 .step_s = none,
                                 .eta_s = none};
    progress_step_format(&step, line);
    ck_assert_ptr_null(strstr(line, "nan"));
    ck_assert_ptr_null(strstr(line, "inf"));
    ck_assert_ptr_nonnull(strstr(line, "-/-"));
}
END_TEST

START_TEST(durations)
{
    static const struct {
        double seconds;
        const char *text;
    } rows[] = {{0.44, "0.4s"},      {9.96, "10s"},     {59.4, "59s"},   {59.6, "1m00s"},
                {200, "3m20s"},      {3599.6, "1h00m"}, {3900, "1h05m"}, {360000, "4d04h"},
                {1e300, "9999d00h"}, {-1, "-"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char text[16];
        progress_duration_format(rows[i].seconds, text);
        ck_assert_str_eq(text, rows[i].text);
    }
}
END_TEST

START_TEST(eta)
{
    ck_assert_double_eq_tol(progress_eta(25, 100, 10), 30, 1e-12);
    ck_assert_double_eq(progress_eta(100, 100, 10), 0);
    ck_assert(isnan(progress_eta(0, 100, 10)));
}
END_TEST

START_TEST(bar_fits_its_width)
{
    char line[PROGRESS_LINE_BYTES];
    struct progress_bar_view view = {.label = "sft",
                                     .unit = "tokens",
                                     .note = "loss 0.42",
                                     .done = 500,
                                     .total = 1000,
                                     .elapsed_s = 30};
    progress_bar_format(&view, 200, line);
    ck_assert_str_eq(line, "sft [############............]  50% 500/1000 tokens  30s, 30s to go  "
                           "loss 0.42");
    view.label = "\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4\xc3\xa4"; /* five characters, ten bytes */
    progress_bar_format(&view, 40, line);
    ck_assert_uint_eq(strlen(line), 45);
}
END_TEST

START_TEST(bar_survives_odd_numbers)
{
    char line[PROGRESS_LINE_BYTES];
    struct progress_bar_view view = {.label = "x", .unit = "", .note = "", .done = 5, .total = 0};
    progress_bar_format(&view, 80, line);
    ck_assert_ptr_nonnull(strstr(line, "  0%"));
    view.total = 1;
    progress_bar_format(&view, 80, line);
    ck_assert_ptr_nonnull(strstr(line, "100%"));
    view.done = (double)NAN;
    progress_bar_format(&view, 80, line);
    ck_assert_ptr_nonnull(strstr(line, "x ["));
}
END_TEST

START_TEST(short_phase_prints_nothing)
{
    FILE *out = tmpfile();
    ck_assert_ptr_nonnull(out);
    struct progress_bar bar = progress_bar_start(out, "load", "tensors", 10);
    progress_bar_update(&bar, 5, NULL);
    progress_bar_finish(&bar);
    ck_assert_int_eq(ftell(out), 0);
    bar.started_s -= 5; /* as if it had taken five seconds */
    progress_bar_update(&bar, 10, "note");
    progress_bar_update(&bar, 10, "too soon for a second line");
    long one = ftell(out);
    ck_assert_int_gt(one, 0);
    progress_bar_finish(&bar);
    ck_assert_int_gt(ftell(out), one);
    fclose(out);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("progress");
    TCase *tests = tcase_create("all");
    tcase_add_test(tests, step_line_is_readable);
    tcase_add_test(tests, columns_stand_under_their_heads);
    tcase_add_test(tests, missing_figures_are_dashes);
    tcase_add_test(tests, durations);
    tcase_add_test(tests, eta);
    tcase_add_test(tests, bar_fits_its_width);
    tcase_add_test(tests, bar_survives_odd_numbers);
    tcase_add_test(tests, short_phase_prints_nothing);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
