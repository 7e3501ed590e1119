/* `foresight simulate`: throughput, idle time and staleness of a run that nobody has to pay for:
 * given options, a sweep over one of them, or published systems beside their published figures. */
#include "app/app.h"
#include "app/commands.h"
#include "app/simulate.h"

#include "core/log.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIMULATE_SWEEP_MAX = 64 };

/* Which result a preset's published figures are compared with. */
enum preset_figure { FIGURE_TOKENS_PER_SECOND, FIGURE_STEP_S };

struct preset_point {
    const char *name, *options;
    double published;
    bool fitted; /* parameters were chosen by it */
};

struct preset {
    const char *name, *title, *options;
    enum preset_figure figure;
    const struct preset_point *points; /* up to one without name */
};

#define PRESET(id, name, title, figure, options) static const struct preset_point points_##id[] = {
#define POINT(name, options, published, fitted) {name, options, published, fitted},
#define PRESET_END                                                                                 \
    {                                                                                              \
        NULL, NULL, 0, false                                                                       \
    }                                                                                              \
    }                                                                                              \
    ;
#include "app/simulate_presets.def"
#undef PRESET
#undef POINT
#undef PRESET_END

#define PRESET(id, name, title, figure, options) {name, title, options, figure, points_##id},
#define POINT(name, options, published, fitted)
#define PRESET_END
static const struct preset presets[] = {
#include "app/simulate_presets.def"
};
#undef PRESET
#undef POINT
#undef PRESET_END
enum { PRESETS = sizeof presets / sizeof presets[0] };

struct simulate_request {
    const struct preset *preset; /* NULL: none */
    const char *sweep;           /* "name=a,b,c" or NULL */
    bool json;
    json_t *rows;
};

/* --- one row -----------------------------------------------------------------------------------
 */

static void print_heading(const struct preset *preset)
{
    if (preset != NULL) {
        printf("%s\n", preset->title);
    }
    printf("%-22s %12s %9s %8s %8s %7s %7s %6s", "", "tokens/s", "step s", "learner", "rollout",
           "paused", "running", "stale");
    printf(preset != NULL ? " %11s %6s\n" : "\n", "published", "ratio");
    printf("%-22s %12s %9s %8s %8s\n", "", "", "", "idle", "idle");
}

static void print_row(const char *name, const struct simulate_result *r)
{
    printf("%-22s %12.1f %9.2f %6.1f %% %6.1f %% %5.1f %% %7.1f %6.2f", name, r->tokens_per_second,
           r->step_s, 100 * r->learner_idle, 100 * r->rollout_idle, 100 * r->rollout_paused,
           r->running_mean, r->staleness_mean);
}

static double figure_of(enum preset_figure figure, const struct simulate_result *result)
{
    return figure == FIGURE_STEP_S ? result->step_s : result->tokens_per_second;
}

static json_t *json_row(const char *name, const struct simulate_result *r)
{
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I}", "row", name,
                     "tokens_per_second", r->tokens_per_second, "step_seconds", r->step_s,
                     "learner_idle", r->learner_idle, "rollout_idle", r->rollout_idle,
                     "rollout_paused", r->rollout_paused, "running_mean", r->running_mean,
                     "staleness_mean", r->staleness_mean, "staleness_max", r->staleness_max,
                     "length_mean", r->length_mean, "dropped", (json_int_t)r->dropped);
}

static rl_status run_row(const struct simulate_request *request, const char *name,
                         const struct simulate_options *options, const struct preset_point *point)
{
    struct simulate_result result;
    RL_TRY(simulate_run(options, &result));
    json_t *row = json_row(name, &result);
    if (row == NULL || json_array_append_new(request->rows, row) != 0) {
        return rl_fail(RL_NO_MEMORY, "simulate: no memory for the results");
    }
    if (!request->json) {
        print_row(name, &result);
    }
    if (point != NULL) {
        double ratio = figure_of(request->preset->figure, &result) / point->published;
        json_object_set_new(row, "published", json_real(point->published));
        json_object_set_new(row, "ratio", json_real(ratio));
        json_object_set_new(row, "fitted", json_boolean(point->fitted));
        if (!request->json) {
            printf(" %11.1f %6.2f%s", point->published, ratio, point->fitted ? " fitted" : "");
        }
    }
    if (!request->json) {
        putchar('\n');
        fflush(stdout);
    }
    return RL_OK;
}

/* --- what is asked for -------------------------------------------------------------------------
 */

static rl_status run_preset(const struct simulate_request *request, int argc, char **argv)
{
    const struct preset *preset = request->preset;
    for (const struct preset_point *point = preset->points; point->name != NULL; point++) {
        struct simulate_options options;
        simulate_options_init(&options);
        RL_TRY(simulate_options_set_all(&options, preset->options));
        RL_TRY(simulate_options_set_all(&options, point->options));
        for (int i = 1; i < argc; i++) {
            RL_TRY(simulate_options_set(&options, argv[i]));
        }
        RL_TRY(run_row(request, point->name, &options, point));
    }
    return RL_OK;
}

/* "name=a,b,c": one row for each value. */
static rl_status run_sweep(const struct simulate_request *request,
                           const struct simulate_options *base)
{
    const char *equals = strchr(request->sweep, '=');
    if (equals == NULL) {
        return rl_fail(RL_INVALID, "simulate: --sweep %s: expected name=value,value,...",
                       request->sweep);
    }
    int name_length = (int)(equals - request->sweep) + 1;
    const char *at = equals + 1;
    for (int i = 0; i < SIMULATE_SWEEP_MAX; i++) {
        char assignment[128];
        struct simulate_options options = *base;
        int length = (int)strcspn(at, ",");
        snprintf(assignment, sizeof assignment, "%.*s%.*s", name_length, request->sweep, length,
                 at);
        RL_TRY(simulate_options_set(&options, assignment));
        RL_TRY(run_row(request, assignment, &options, NULL));
        at += length;
        if (*at == '\0') {
            return RL_OK;
        }
        at++;
    }
    return rl_fail(RL_INVALID, "simulate: --sweep takes %d values at most", SIMULATE_SWEEP_MAX);
}

static rl_status run_given(const struct simulate_request *request, int argc, char **argv)
{
    struct simulate_options options;
    simulate_options_init(&options);
    for (int i = 1; i < argc; i++) {
        RL_TRY(simulate_options_set(&options, argv[i]));
    }
    if (request->sweep != NULL) {
        return run_sweep(request, &options);
    }
    return run_row(request, simulate_mode_name(options.mode), &options, NULL);
}

static rl_status find_preset(const char *name, const struct preset **out)
{
    for (int i = 0; i < PRESETS; i++) {
        if (strcmp(presets[i].name, name) == 0) {
            *out = &presets[i];
            return RL_OK;
        }
    }
    char names[256] = "";
    size_t used = 0;
    for (int i = 0; i < PRESETS && used < sizeof names; i++) {
        used += (size_t)snprintf(names + used, sizeof names - used, " %s", presets[i].name);
    }
    return rl_fail(RL_INVALID, "simulate: no preset '%s'; there are:%s", name, names);
}

static rl_status print_json(const struct simulate_request *request)
{
    json_t *out =
        json_pack("{s:s?, s:O}", "preset", request->preset != NULL ? request->preset->name : NULL,
                  "rows", request->rows);
    bool written = out != NULL && json_dumpf(out, stdout, JSON_COMPACT) == 0;
    json_decref(out);
    if (!written) {
        return rl_fail(RL_IO, "simulate: cannot write the results");
    }
    putchar('\n');
    return RL_OK;
}

static rl_status parse(struct simulate_request *request, int *argc, char **argv)
{
    const char *preset = NULL;
    request->json = app_take_flag(argc, argv, "--json");
    RL_TRY(app_take_value(argc, argv, "--preset", &preset));
    RL_TRY(app_take_value(argc, argv, "--sweep", &request->sweep));
    if (preset != NULL && request->sweep != NULL) {
        return rl_fail(RL_INVALID, "simulate: --preset has rows of its own; leave --sweep out");
    }
    return preset != NULL ? find_preset(preset, &request->preset) : RL_OK;
}

int cmd_simulate(int argc, char **argv)
{
    struct simulate_request request = {0};
    if (app_take_flag(&argc, argv, "--options")) {
        simulate_options_help(stdout);
        return APP_OK;
    }
    if (parse(&request, &argc, argv) != RL_OK) {
        return APP_USAGE;
    }
    request.rows = json_array();
    if (!request.json) {
        print_heading(request.preset);
    }
    rl_status status =
        request.preset != NULL ? run_preset(&request, argc, argv) : run_given(&request, argc, argv);
    if (status == RL_OK && request.json) {
        status = print_json(&request);
    }
    json_decref(request.rows);
    return status == RL_OK ? APP_OK : status == RL_INVALID ? APP_USAGE : APP_FAILED;
}
