/* `foresight sweep`: a plan of trials, carried out. */
#include "app/app.h"
#include "app/commands.h"
#include "app/signals.h"
#include "app/sweep.h"

#include "core/folder_make.h"
#include "core/log.h"
#include "transport/channel_mpi.h"
#include "transport/world.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static const double close_timeout_s = 60;

struct sweep_arguments {
    const char *path;
    bool dry_run, json, retry_failed;
};

/* What the plan names must be there before anything runs; a path of an axis is its trial's own. */
static rl_status need(const struct sweep_plan *plan, const char *option, const char *paths)
{
    while (*paths != '\0') {
        char path[SWEEP_PATH_BYTES];
        size_t bytes = strcspn(paths, ",");
        snprintf(path, sizeof path, "%.*s", (int)bytes, paths);
        if (access(path, R_OK) != 0) {
            return rl_fail(RL_INVALID, "sweep %s: %s: %s: %s", plan->name, option, path,
                           strerror(errno));
        }
        paths += bytes + (paths[bytes] == ',');
    }
    return RL_OK;
}

static rl_status check_inputs(const struct sweep_plan *plan)
{
    if (plan->base_count == 1) {
        RL_TRY(need(plan, "model.path", plan->bases[0].model));
    }
    RL_TRY(need(plan, "data.eval", plan->base.data.eval));
    return need(plan, "data.train", plan->base.data.train);
}

static void print_plan(const struct sweep_plan *plan)
{
    double tokens = 0;
    printf("sweep %s: %zu trials in %zu cells, %zu seeds\n", plan->name, plan->trial_count,
           plan->cell_count, plan->seed_count);
    for (size_t i = 0; i < plan->trial_count; i++) {
        const struct sweep_trial *trial = &plan->trials[i];
        tokens += trial->units;
        printf("  %-60s %10.0f tokens  ", trial->name, trial->units);
        for (size_t k = 0; k < trial->options.count; k++) {
            printf(" %s=%s", trial->options.items[k].key, trial->options.items[k].value);
        }
        printf("\n");
    }
    for (size_t i = 0; i < plan->base_count; i++) {
        printf("  and %s, %s, as control\n", plan->bases[i].name, plan->bases[i].model);
    }
    printf("at most %.3g tokens\n", tokens);
}

/* Only one sweep at a time works on a folder's shard. Closed, and so released, at the end. */
static rl_status lock_folder(const struct sweep *sweep, int *fd)
{
    char path[SWEEP_PATH_BYTES + 32];
    snprintf(path, sizeof path, "%s/lock_%lld", sweep->folder,
             (long long)sweep->plan->settings.sweep.shard);
    RL_TRY(rl_folder_make(sweep->folder));
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (*fd < 0) {
        return rl_fail(RL_IO, "%s: cannot be opened: %s", path, strerror(errno));
    }
    if (flock(*fd, LOCK_EX | LOCK_NB) != 0) {
        return rl_fail(RL_INVALID, "%s: another process works on this sweep", path);
    }
    return RL_OK;
}

static rl_status forget_failures(const struct sweep *sweep)
{
    char state[32];
    for (size_t i = 0; i < sweep_count(sweep); i++) {
        if (!sweep_is_own(sweep, i)) {
            continue; /* another shard may be at it */
        }
        RL_TRY(sweep_result_state(sweep, i, state));
        if (strcmp(state, "failed") == 0) {
            RL_TRY(sweep_forget_failure(sweep, i));
        }
    }
    return RL_OK;
}

/* How many trials came to which end, and why those that failed did, base models among them. */
static json_t *outcome_json(const struct sweep *sweep)
{
    static const char *const names[] = {"done", "failed", "stopped_early"};
    json_int_t counts[3] = {0};
    json_t *failures = json_array();
    for (size_t i = 0; i < sweep_count(sweep); i++) {
        char state[32];
        char path[SWEEP_PATH_BYTES];
        if (sweep_result_state(sweep, i, state) != RL_OK ||
            sweep_path(sweep, i, "result.json", path) != RL_OK) {
            continue;
        }
        for (size_t s = 0; i < sweep->plan->trial_count && s < 3; s++) {
            counts[s] += strcmp(state, names[s]) == 0;
        }
        json_t *result = strcmp(state, "failed") == 0 ? json_load_file(path, 0, NULL) : NULL;
        const char *reason = json_string_value(json_object_get(result, "reason"));
        if (reason != NULL) {
            (void)json_array_append_new(
                failures,
                json_pack("{s:s, s:s}", "name", sweep_trial_name(sweep, i), "reason", reason));
        }
        json_decref(result);
    }
    return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:o}", "name", sweep->plan->name, "folder",
                     sweep->folder, "trials", (json_int_t)sweep->plan->trial_count, names[0],
                     counts[0], names[1], counts[1], names[2], counts[2], "failures", failures);
}

static void print_outcome(const struct sweep *sweep, bool json)
{
    size_t i = 0;
    json_t *failure = NULL;
    json_t *outcome = outcome_json(sweep);
    json_array_foreach(json_object_get(outcome, "failures"), i, failure)
    {
        printf("failed: %s: %s\n", json_string_value(json_object_get(failure, "name")),
               json_string_value(json_object_get(failure, "reason")));
    }
    printf("sweep %s: %lld of %zu trials done, %lld failed, %lld stopped early; %s\n",
           sweep->plan->name, json_integer_value(json_object_get(outcome, "done")),
           sweep->plan->trial_count, json_integer_value(json_object_get(outcome, "failed")),
           json_integer_value(json_object_get(outcome, "stopped_early")), sweep->folder);
    char *text = json && outcome != NULL ? json_dumps(outcome, JSON_COMPACT) : NULL;
    if (text != NULL) {
        printf("%s\n", text);
    }
    free(text);
    json_decref(outcome);
}

static rl_status head(const struct sweep *sweep, struct world *world, struct channel *channel,
                      const struct sweep_arguments *arguments)
{
    int lock = -1;
    size_t failed = 0;
    rl_status status = lock_folder(sweep, &lock);
    if (status == RL_OK) {
        status = sweep_folder_open(sweep);
    }
    if (status == RL_OK && arguments->retry_failed) {
        status = forget_failures(sweep);
    }
    if (status == RL_OK) {
        status = sweep_head_run(sweep, world, channel, &failed);
        print_outcome(sweep, arguments->json);
    }
    if (lock >= 0) {
        close(lock);
    }
    if (status == RL_INTERRUPTED) {
        rl_log(RL_LOG_INFO, "stopped by signal %d; the same command goes on",
               signals_stop_requested());
    }
    return status == RL_OK && failed > 0 ? RL_NOT_FOUND : status;
}

static rl_status run_in_world(const struct sweep *sweep, struct world *world,
                              const struct sweep_arguments *arguments)
{
    struct channel *channel = NULL;
    struct channel_mpi_options options = {
        .ring_messages = 1024, .credits = 64, .heartbeat_s = 0.5, .dead_after_s = 30};
    RL_TRY(signals_install());
    if (world_size(world) > 1) {
        RL_TRY(world_form(world, 1));
        RL_TRY(channel_mpi_create(world, &options, &channel));
    }
    rl_log_identify("sweep", world_rank(world));
    rl_status status = world_rank(world) == 0 ? head(sweep, world, channel, arguments)
                                              : sweep_helper_run(sweep, world, channel);
    if (channel != NULL) {
        channel_close(channel);
    }
    return status;
}

static rl_status open_sweep(const struct sweep_arguments *arguments, char **overrides, int count,
                            struct sweep *sweep)
{
    RL_TRY(sweep_plan_read(arguments->path, overrides, count, &sweep->plan));
    int length = snprintf(sweep->folder, sizeof sweep->folder - 64, "%s/%s",
                          sweep->plan->settings.sweep.dir, sweep->plan->name);
    if (length >= (int)sizeof sweep->folder - 64) {
        return rl_fail(RL_TOO_LONG, "sweep.dir %s: too long", sweep->plan->settings.sweep.dir);
    }
    RL_TRY(child_program(sweep->program, sizeof sweep->program));
    return arguments->dry_run ? RL_OK : check_inputs(sweep->plan);
}

static int run(const struct sweep_arguments *arguments, int *argc, char ***argv,
               const struct sweep *sweep)
{
    struct world *world = NULL;
    rl_status status = world_open(argc, argv, &world);
    if (status == RL_OK) {
        status = run_in_world(sweep, world, arguments);
    }
    int exit_code = status == RL_OK            ? APP_OK
                    : status == RL_INTERRUPTED ? APP_INTERRUPTED
                                               : APP_FAILED;
    fflush(stdout);
    world_close(world, exit_code, close_timeout_s);
    return exit_code;
}

int cmd_sweep(int argc, char **argv)
{
    struct sweep sweep = {0};
    struct sweep_arguments arguments = {.dry_run = app_take_flag(&argc, argv, "--dry-run"),
                                        .json = app_take_flag(&argc, argv, "--json"),
                                        .retry_failed =
                                            app_take_flag(&argc, argv, "--retry-failed")};
    if (argc < 2 || argv[1][0] == '-' || strchr(argv[1], '=') != NULL) {
        (void)rl_fail(RL_INVALID, "foresight sweep needs SWEEP.yaml: docs/sweep.md shows one");
        return APP_USAGE;
    }
    arguments.path = argv[1];
    int exit_code = APP_FAILED;
    if (open_sweep(&arguments, argv + 2, argc - 2, &sweep) == RL_OK) {
        exit_code = APP_OK;
        if (arguments.dry_run) {
            print_plan(sweep.plan);
        } else {
            exit_code = run(&arguments, &argc, &argv, &sweep);
        }
    }
    sweep_plan_destroy(sweep.plan);
    return exit_code;
}
