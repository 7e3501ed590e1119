/* The report: reading of whole, short and broken metrics, escaping, and a page that stands alone.
 */
#include "core/log.h"
#include "trainer/report.h"
#include "trainer/report_svg.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[64];

static void folder_make(void)
{
    snprintf(folder, sizeof folder, "/tmp/foresight_report_XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void folder_remove(void)
{
    static const char *const names[] = {"metrics.jsonl", "summary.json", "config.yaml",
                                        "report.html", "curve.svg"};
    char path[128];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

static const char *path_of(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void put(const char *name, const char *text)
{
    FILE *file = fopen(path_of(name), "w");
    ck_assert_ptr_nonnull(file);
    ck_assert_int_ge(fputs(text, file), 0);
    ck_assert_int_eq(fclose(file), 0);
}

static rl_status load(const char *lines, struct report_table *table)
{
    put("metrics.jsonl", lines);
    return report_table_load(path_of("metrics.jsonl"), table);
}

/* --- reading ---------------------------------------------------------------------------------- */

START_TEST(columns_have_a_value_for_each_row)
{
    struct report_table table;
    ck_assert_int_eq(load("{\"step\":1,\"a\":0.5}\n\n{\"step\":2,\"b\":{\"c\":3},\"a\":null,"
                          "\"t\":\"text\",\"f\":true}\n",
                          &table),
                     RL_OK);
    ck_assert_uint_eq(table.row_count, 2);
    const double *a = report_table_find(&table, "a");
    const double *c = report_table_find(&table, "b/c");
    const double *f = report_table_find(&table, "f");
    ck_assert(a[0] == 0.5 && isnan(a[1]));
    ck_assert(isnan(c[0]) && c[1] == 3);
    ck_assert(isnan(f[0]) && f[1] == 1);
    ck_assert_ptr_null(report_table_find(&table, "t"));
    report_table_fini(&table);
}
END_TEST

START_TEST(torn_last_line_is_noted)
{
    struct report_table table;
    ck_assert_int_eq(load("{\"step\":1,\"a\":1}\n{\"step\":2,\"a\"", &table), RL_OK);
    ck_assert_uint_eq(table.row_count, 1);
    ck_assert(table.torn_tail);
    report_table_fini(&table);
    ck_assert_int_eq(load("{\"step\":1,\"a\":1}\n{\"step\":2,\"a\":2}", &table), RL_OK);
    ck_assert_uint_eq(table.row_count, 2); /* only the newline is missing */
    ck_assert(!table.torn_tail);
    report_table_fini(&table);
}
END_TEST

START_TEST(nothing_is_no_error)
{
    struct report_table table;
    ck_assert_int_eq(load("", &table), RL_OK);
    ck_assert_uint_eq(table.row_count, 0);
    report_table_fini(&table);
    ck_assert_int_eq(report_table_load(path_of("absent.jsonl"), &table), RL_OK);
    report_table_fini(&table);
}
END_TEST

static const char *const broken[] = {"{\"step\":1}\nnot json\n{\"step\":2}\n",
                                     "{\"step\":1}\n[1]\n",
                                     "{\"step\":1}\n{\"stop\":2}\n",
                                     "{\"step\":1}\n{\"step\":\"2\"}\n",
                                     "{\"step\":1}\n{\"step\":-1}\n",
                                     "{\"step\":1}\n{\"step\":1e300}\n",
                                     "{\"step\":1}\n{\"step\":2,\"a\":\n",
                                     "{\"step\":1}\n{\"step\":2,\"step\":3}\n",
                                     "{\"step\":1}\n{\"step\":9007199254740993}\n"};

START_TEST(broken_line_is_named)
{
    struct report_table table;
    ck_assert_int_eq(load(broken[_i], &table), RL_INVALID);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "line 2"));
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "metrics.jsonl"));
    report_table_fini(&table);
}
END_TEST

START_TEST(later_account_of_a_step_stands)
{
    struct report_table table;
    ck_assert_int_eq(load("{\"step\":1,\"a\":1}\n{\"step\":2,\"a\":2}\n{\"step\":3,\"a\":3}\n"
                          "{\"step\":2,\"a\":20}\n",
                          &table),
                     RL_OK);
    ck_assert_uint_eq(table.row_count, 2);
    ck_assert_uint_eq(table.rows_replaced, 2);
    ck_assert_double_eq(report_table_find(&table, "a")[1], 20);
    report_table_fini(&table);
}
END_TEST

START_TEST(too_many_names_are_refused)
{
    struct rl_text line;
    rl_text_init(&line, 1 << 20);
    ck_assert_int_eq(rl_text_append_str(&line, "{\"step\":1"), RL_OK);
    for (int i = 0; i < REPORT_COLUMNS_MAX + 1; i++) {
        ck_assert_int_eq(rl_text_printf(&line, ",\"m%d\":1", i), RL_OK);
    }
    ck_assert_int_eq(rl_text_append_str(&line, "}\n"), RL_OK);
    struct report_table table;
    ck_assert_int_eq(load(rl_text_str(&line), &table), RL_TOO_LONG);
    report_table_fini(&table);
    rl_text_fini(&line);
}
END_TEST

START_TEST(thinning_keeps_extremes)
{
    struct rl_text lines;
    rl_text_init(&lines, 1 << 20);
    for (int i = 1; i <= 1000; i++) {
        ck_assert_int_eq(rl_text_printf(&lines,
                                        "{\"step\":%d,\"mean_terminated\":%d,\"x/max_length\":%d,"
                                        "\"w_min\":%d}\n",
                                        i, i, i == 500 ? 9000 : i, i == 501 ? -5 : i),
                         RL_OK);
    }
    struct report_table table;
    ck_assert_int_eq(load(rl_text_str(&lines), &table), RL_OK);
    ck_assert_uint_eq(report_table_thin(&table, 100), 10);
    ck_assert_uint_eq(table.row_count, 100);
    ck_assert_double_eq(table.steps[49], 500);
    ck_assert_double_eq(report_table_find(&table, "mean_terminated")[0], 5.5);
    ck_assert_double_eq(report_table_find(&table, "x/max_length")[49], 9000);
    ck_assert_double_eq(report_table_find(&table, "w_min")[50], -5);
    ck_assert_uint_eq(report_table_thin(&table, 100), 1);
    report_table_fini(&table);
    rl_text_fini(&lines);
}
END_TEST

START_TEST(summary_keys_flat_and_nested)
{
    json_t *summary = json_loads("{\"base\":{\"pass@1\":0.25,\"deep\":{\"x\":1}},"
                                 "\"trained.pass@1\":0.75}",
                                 0, NULL);
    ck_assert_double_eq(json_number_value(report_summary_find(summary, "base.pass@1")), 0.25);
    ck_assert_double_eq(json_number_value(report_summary_find(summary, "trained.pass@1")), 0.75);
    ck_assert_double_eq(json_number_value(report_summary_find(summary, "base.deep.x")), 1);
    ck_assert_ptr_null(report_summary_find(summary, "base.pass@2"));
    ck_assert_ptr_null(report_summary_find(NULL, "base"));
    json_decref(summary);
}
END_TEST

/* --- drawing ---------------------------------------------------------------------------------- */

START_TEST(text_is_escaped)
{
    struct rl_text out;
    rl_text_init(&out, 1000);
    ck_assert_int_eq(svg_text_append(&out, "<a href='x'>&\"\x01\xff\xc3\xa4\xed\xa0\x80"), RL_OK);
    ck_assert_str_eq(rl_text_str(&out), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;\xef\xbf\xbd"
                                        "\xef\xbf\xbd\xc3\xa4\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
    rl_text_fini(&out);
}
END_TEST

START_TEST(numbers_for_people)
{
    static const struct {
        double value;
        const char *text;
    } rows[] = {{0, "0"},         {0.25, "0.25"},     {-3.14159, "-3.14"},  {4210, "4210"},
                {12345, "12.3k"}, {1234567, "1.23M"}, {0.00012, "1.2e-04"}, {1e-6, "1.0e-06"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char text[24];
        svg_number(rows[i].value, text);
        ck_assert_str_eq(text, rows[i].text);
    }
}
END_TEST

static struct svg_chart chart_of(const double *x, const double *y, size_t count)
{
    return (struct svg_chart){.title = "t",
                              .x = x,
                              .count = count,
                              .series = {{"y", y}},
                              .series_count = 1,
                              .smooth = true};
}

START_TEST(axes_cover_the_values)
{
    static const double x[] = {0, 1, 2, 3};
    static const double rows[][4] = {{0.1, 0.9, 0.4, 0.2}, {-3, 2, 0, 1},      {5, 5, 5, 5},
                                     {0, 0, 0, 0},         {1e-9, 2e-9, 0, 0}, {1e30, 2e30, 0, 0},
                                     {1e-320, 0, 0, 0},    {-7, -7, -7, -7}};
    const double *y = rows[_i];
    struct svg_chart chart = chart_of(x, y, 4);
    struct svg_frame frame = svg_frame_make(&chart);
    ck_assert(frame.y_low < frame.y_high && frame.y_step > 0);
    ck_assert((frame.y_high - frame.y_low) / frame.y_step <= 12);
    for (size_t i = 0; i < 4; i++) {
        double slack = frame.y_step * 1e-6;
        ck_assert(y[i] >= frame.y_low - slack && y[i] <= frame.y_high + slack);
    }
}
END_TEST

START_TEST(hostile_values_give_a_picture_all_the_same)
{
    static const double x[] = {1, 2, 3, 4};
    static const double rows[][4] = {{(double)NAN, (double)NAN, (double)NAN, (double)NAN},
                                     {INFINITY, -INFINITY, 1, (double)NAN},
                                     {1e308, -1e308, 1, 2},
                                     {5e-324, 1e-310, 0, 0}};
    for (int kind = 0; kind < 2; kind++) {
        struct svg_chart chart = chart_of(x, rows[_i], 4);
        chart.kind = kind == 0 ? SVG_LINES : SVG_STACK;
        struct rl_text out;
        rl_text_init(&out, 1 << 20);
        ck_assert_int_eq(svg_chart_append(&out, &chart), RL_OK);
        ck_assert_ptr_null(strstr(rl_text_str(&out), "nan"));
        ck_assert_ptr_null(strstr(rl_text_str(&out), "inf"));
        ck_assert_ptr_nonnull(strstr(rl_text_str(&out), "</svg>"));
        rl_text_fini(&out);
    }
}
END_TEST

START_TEST(single_point_is_drawn)
{
    static const double x[] = {7};
    static const double y[] = {0.5};
    struct svg_chart chart = chart_of(x, y, 1);
    struct rl_text out;
    rl_text_init(&out, 1 << 20);
    ck_assert_int_eq(svg_chart_append(&out, &chart), RL_OK);
    ck_assert_ptr_nonnull(strstr(rl_text_str(&out), "<circle"));
    rl_text_fini(&out);
}
END_TEST

/* --- page ------------------------------------------------------------------------------------- */

static char *read_back(const char *name)
{
    char *data = NULL;
    ck_assert_int_eq(rl_file_read(path_of(name), 64 << 20, &data, NULL), RL_OK);
    return data;
}

static void put_run(int steps)
{
    FILE *file = fopen(path_of("metrics.jsonl"), "w");
    ck_assert_ptr_nonnull(file);
    for (int i = 1; i <= steps; i++) {
        fprintf(file,
                "{\"step\":%d,\"reward\":%g,\"accuracy\":%g,\"entropy\":1,\"time/update\":0.5,"
                "\"wait/next <batch>/seconds\":%d,\"rewards/a/mean\":1,\"rewards/b/mean\":0,"
                "\"odd <script>\":%d}\n",
                i, i / 100.0, i / 120.0, i, i);
    }
    ck_assert_int_eq(fclose(file), 0);
    put("config.yaml", "run:\n  name: \"<script>alert(1)</script>\"\n");
    put("summary.json",
        "{\"base\":{\"pass@1\":0.25,\"pass@1_ci95\":[0.2,0.3]},\"trained\":{\"pass@1\":0.75},"
        "\"samples\":[{\"prompt\":\"</pre><script>x\",\"completion\":\"4\",\"reward\":1},7]}");
}

START_TEST(page_stands_alone_and_is_escaped)
{
    put_run(60);
    struct report_facts facts;
    char curve[128];
    snprintf(curve, sizeof curve, "%s/curve.svg", folder);
    ck_assert_int_eq(report_write(folder, NULL, curve, &facts), RL_OK);
    ck_assert_uint_eq(facts.steps, 60);
    ck_assert_uint_ge(facts.charts, 6);
    char *page = read_back("report.html");
    ck_assert_uint_eq(strlen(page), facts.bytes);
    ck_assert_ptr_null(strstr(page, "<script>alert"));
    ck_assert_ptr_null(strstr(page, "<script>x"));
    ck_assert_ptr_null(strstr(page, "odd <script>"));
    ck_assert_ptr_null(strstr(page, "src="));
    ck_assert_ptr_null(strstr(page, "@import"));
    ck_assert_ptr_null(strstr(page, "url("));
    ck_assert_ptr_nonnull(strstr(page, "0.200 &ndash; 0.300"));
    ck_assert_ptr_nonnull(strstr(page, "+0.5"));
    ck_assert_ptr_nonnull(strstr(page, "Rewards by function"));
    free(page);
    char *picture = read_back("curve.svg");
    ck_assert_ptr_nonnull(strstr(picture, "accuracy</text>"));
    free(picture);
}
END_TEST

START_TEST(page_of_a_run_without_steps)
{
    put("config.yaml", "run:\n  name: x\n");
    struct report_facts facts;
    ck_assert_int_eq(report_write(folder, NULL, NULL, &facts), RL_OK);
    ck_assert_uint_eq(facts.charts, 0);
    char *page = read_back("report.html");
    ck_assert_ptr_nonnull(strstr(page, "No finished step yet"));
    free(page);
}
END_TEST

START_TEST(what_is_no_run_is_refused)
{
    ck_assert_int_eq(report_write(folder, NULL, NULL, NULL), RL_NOT_FOUND);
    ck_assert_int_eq(report_write(path_of("absent"), NULL, NULL, NULL), RL_IO);
    put("config.yaml", "");
    ck_assert_int_eq(report_write(path_of("config.yaml"), NULL, NULL, NULL), RL_INVALID);
    put("summary.json", "{\"a\":");
    ck_assert_int_eq(report_write(folder, NULL, NULL, NULL), RL_INVALID);
    ck_assert_ptr_nonnull(strstr(rl_log_last_error(), "summary.json"));
    put("summary.json", "[]");
    ck_assert_int_eq(report_write(folder, NULL, NULL, NULL), RL_INVALID);
}
END_TEST

START_TEST(curve_needs_a_curve)
{
    put("metrics.jsonl", "{\"step\":1,\"loss\":1}\n");
    char curve[128];
    snprintf(curve, sizeof curve, "%s/curve.svg", folder);
    ck_assert_int_eq(report_write(folder, NULL, curve, NULL), RL_NOT_FOUND);
}
END_TEST

int main(void)
{
    rl_log_set_level(RL_LOG_ERROR);
    Suite *suite = suite_create("report");
    TCase *tests = tcase_create("all");
    tcase_add_checked_fixture(tests, folder_make, folder_remove);
    tcase_add_test(tests, columns_have_a_value_for_each_row);
    tcase_add_test(tests, torn_last_line_is_noted);
    tcase_add_test(tests, nothing_is_no_error);
    tcase_add_loop_test(tests, broken_line_is_named, 0, sizeof broken / sizeof broken[0]);
    tcase_add_test(tests, later_account_of_a_step_stands);
    tcase_add_test(tests, too_many_names_are_refused);
    tcase_add_test(tests, thinning_keeps_extremes);
    tcase_add_test(tests, summary_keys_flat_and_nested);
    tcase_add_test(tests, text_is_escaped);
    tcase_add_test(tests, numbers_for_people);
    tcase_add_loop_test(tests, axes_cover_the_values, 0, 8);
    tcase_add_loop_test(tests, hostile_values_give_a_picture_all_the_same, 0, 4);
    tcase_add_test(tests, single_point_is_drawn);
    tcase_add_test(tests, page_stands_alone_and_is_escaped);
    tcase_add_test(tests, page_of_a_run_without_steps);
    tcase_add_test(tests, what_is_no_run_is_refused);
    tcase_add_test(tests, curve_needs_a_curve);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
