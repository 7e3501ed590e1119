/* `foresight report RUN`: draws a run folder as a page, and its reward curve as a picture; of a
 * sweep's folder a page and tables of all its cells. */
#include "app/app.h"
#include "app/commands.h"

#include "core/log.h"
#include "trainer/report.h"
#include "trainer/study_report.h"

#include <stdio.h>

static void print_facts(const struct report_facts *facts, const char *page, bool json)
{
    if (json) {
        json_t *line =
            json_pack("{s:s, s:I, s:I, s:I, s:I, s:b, s:b}", "page", page, "steps",
                      (json_int_t)facts->steps, "charts", (json_int_t)facts->charts, "bytes",
                      (json_int_t)facts->bytes, "lines_replaced", (json_int_t)facts->rows_replaced,
                      "torn_tail", facts->torn_tail, "summary", facts->has_summary);
        json_dumpf(line, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER);
        fputc('\n', stdout);
        json_decref(line);
        return;
    }
    printf("%s: %zu steps, %zu charts, %zu KB\n", page, facts->steps, facts->charts,
           facts->bytes / 1024);
}

static int report_sweep(const char *dir, const char *output, bool timings, bool json)
{
    struct study_facts facts;
    if (study_report_write(dir, output, timings, &facts) != RL_OK) {
        return APP_FAILED;
    }
    char page[4096];
    snprintf(page, sizeof page, "%s%s", output != NULL ? output : dir,
             output != NULL ? "" : "/report.html");
    if (json) {
        json_t *line = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I}", "page", page, "trials",
                                 (json_int_t)facts.trials, "done", (json_int_t)facts.done, "failed",
                                 (json_int_t)facts.failed, "cells", (json_int_t)facts.cells,
                                 "bytes", (json_int_t)facts.bytes);
        json_dumpf(line, stdout, JSON_COMPACT | JSON_PRESERVE_ORDER);
        fputc('\n', stdout);
        json_decref(line);
        return APP_OK;
    }
    printf("%s: %u trials (%u done, %u failed), %u cells, %zu KB\n", page, facts.trials, facts.done,
           facts.failed, facts.cells, facts.bytes / 1024);
    return APP_OK;
}

int cmd_report(int argc, char **argv)
{
    bool json = app_take_flag(&argc, argv, "--json");
    bool timings = !app_take_flag(&argc, argv, "--no-timings");
    const char *output = NULL;
    const char *curve = NULL;
    if (app_take_value(&argc, argv, "--output", &output) != RL_OK ||
        app_take_value(&argc, argv, "--curve", &curve) != RL_OK) {
        return APP_USAGE;
    }
    if (argc != 2 || argv[1][0] == '-') {
        rl_fail(RL_INVALID, "usage: foresight report %s", app_command_find("report")->usage);
        return APP_USAGE;
    }
    if (study_is_sweep(argv[1])) {
        return report_sweep(argv[1], output, timings, json);
    }
    struct report_facts facts;
    if (report_write(argv[1], output, curve, &facts) != RL_OK) {
        return APP_FAILED;
    }
    char page[4096];
    snprintf(page, sizeof page, "%s", output == NULL ? "" : output);
    if (output == NULL) {
        snprintf(page, sizeof page, "%s/report.html", argv[1]);
    }
    print_facts(&facts, page, json);
    return APP_OK;
}
