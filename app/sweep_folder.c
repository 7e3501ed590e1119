/* The sweep's folder (docs/sweep.md): which files say that something is done. */
#include "app/sweep.h"

#include "core/folder_make.h"
#include "core/log.h"
#include "core/text.h"
#include "transport/atomic_file.h"
#include "transport/count_file.h"

#include <dirent.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FOLDER_FILE_BYTES = 1 << 26 };

size_t sweep_count(const struct sweep *sweep)
{
    return sweep->plan->trial_count + sweep->plan->base_count;
}

const char *sweep_trial_name(const struct sweep *sweep, size_t trial)
{
    const struct sweep_plan *plan = sweep->plan;
    return trial < plan->trial_count ? plan->trials[trial].name
                                     : plan->bases[trial - plan->trial_count].name;
}

rl_status sweep_path(const struct sweep *sweep, size_t trial, const char *name, char *path)
{
    int length = snprintf(path, SWEEP_PATH_BYTES, "%s/%s%s/%s", sweep->folder,
                          trial < sweep->plan->trial_count ? "trials/" : "",
                          sweep_trial_name(sweep, trial), name);
    return length < SWEEP_PATH_BYTES
               ? RL_OK
               : rl_fail(RL_TOO_LONG, "%s: a path below it is too long", sweep->folder);
}

/* Line and beginning of the first place where two texts differ. */
static rl_status refuse_difference(const char *path, const char *there, const char *now)
{
    size_t line = 1;
    size_t start = 0;
    size_t at = 0;
    while (there[at] == now[at] && there[at] != '\0') {
        line += there[at] == '\n';
        start = there[at] == '\n' ? at + 1 : start;
        at++;
    }
    return rl_fail(RL_INVALID,
                   "%s is of another plan: line %zu is `%.*s` there and `%.*s` now; a sweep is not "
                   "changed half-way: give it another sweep.name, or remove the folder",
                   path, line, (int)strcspn(there + start, "\n"), there + start,
                   (int)strcspn(now + start, "\n"), now + start);
}

/* The file holds `text`, or is written. */
static rl_status keep_text(const char *path, const char *text)
{
    char *there = NULL;
    if (access(path, F_OK) != 0) {
        return atomic_file_write_all(path, text, strlen(text));
    }
    RL_TRY(rl_file_read(path, FOLDER_FILE_BYTES, &there, NULL));
    rl_status status = strcmp(there, text) == 0 ? RL_OK : refuse_difference(path, there, text);
    free(there);
    return status;
}

rl_status sweep_folder_open(const struct sweep *sweep)
{
    char path[SWEEP_PATH_BYTES + 32];
    char *plan = NULL;
    snprintf(path, sizeof path, "%s/trials", sweep->folder);
    RL_TRY(rl_folder_make(path));
    RL_TRY(sweep_plan_json(sweep->plan, &plan));
    snprintf(path, sizeof path, "%s/sweep.json", sweep->folder);
    rl_status status = keep_text(path, plan);
    free(plan);
    RL_TRY(status);
    snprintf(path, sizeof path, "%s/config.yaml", sweep->folder);
    return keep_text(path, sweep->plan->config_text);
}

rl_status sweep_result_state(const struct sweep *sweep, size_t trial, char *state)
{
    static const char *const known[] = {"done", "failed", "stopped_early"};
    char path[SWEEP_PATH_BYTES];
    json_error_t error;
    state[0] = '\0';
    RL_TRY(sweep_path(sweep, trial, "result.json", path));
    if (access(path, F_OK) != 0) {
        return RL_OK;
    }
    json_t *result = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    const char *text = json_string_value(json_object_get(result, "state"));
    for (size_t i = 0; text != NULL && i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(text, known[i]) == 0) {
            snprintf(state, 32, "%s", known[i]);
        }
    }
    bool parsed = result != NULL;
    json_decref(result);
    return state[0] != '\0'
               ? RL_OK
               : rl_fail(RL_CORRUPT,
                         "%s is damaged: %s; remove it, and the trial's result is written again",
                         path, parsed ? "no state of a trial" : error.text);
}

bool sweep_is_own(const struct sweep *sweep, size_t trial)
{
    const struct rl_config *settings = &sweep->plan->settings;
    return (int64_t)trial % settings->sweep.shards == settings->sweep.shard;
}

int64_t sweep_summary_step(const json_t *summary)
{
    int64_t step = -1;
    const char *checkpoint = json_string_value(json_object_get(summary, "checkpoint"));
    if (checkpoint == NULL) {
        return json_integer_value(json_object_get(summary, "steps"));
    }
    return sscanf(checkpoint, "checkpoints/step_%" SCNd64, &step) == 1 ? step : -1;
}

static bool is_committed(const struct sweep *sweep, size_t trial, int64_t steps)
{
    char path[SWEEP_PATH_BYTES];
    char name[64];
    snprintf(name, sizeof name, "checkpoints/step_%06" PRId64 "/MANIFEST.json", steps);
    return sweep_path(sweep, trial, name, path) == RL_OK && access(path, F_OK) == 0;
}

/* Where the counts of a step are, and whether they are there. */
static bool counts_of(const struct sweep *sweep, size_t trial, int64_t step, char *path)
{
    char name[64];
    snprintf(name, sizeof name, "eval/step_%06" PRId64 ".h5", step);
    return sweep_path(sweep, trial, name, path) == RL_OK && access(path, F_OK) == 0;
}

/* Steps that a finished training came to, by its summary; -1 if it is not finished. */
static int64_t finished_steps(const struct sweep *sweep, size_t trial)
{
    char path[SWEEP_PATH_BYTES];
    if (sweep_path(sweep, trial, "summary.json", path) != RL_OK) {
        return -1;
    }
    json_t *summary = json_load_file(path, 0, NULL);
    bool completed = json_is_true(json_object_get(summary, "completed"));
    int64_t steps = completed ? sweep_summary_step(summary) : -1;
    json_decref(summary);
    return steps >= 0 && is_committed(sweep, trial, steps) ? steps : -1;
}

/* A checkpoint that was evaluated may have made room for later ones since, and the summary may be
 * of a later rung. */
bool sweep_is_trained(const struct sweep *sweep, size_t trial, int64_t steps)
{
    char path[SWEEP_PATH_BYTES];
    if (steps > 0 && counts_of(sweep, trial, steps, path)) {
        return true;
    }
    int64_t finished = finished_steps(sweep, trial);
    return finished >= 0 && finished >= steps && (steps == 0 || is_committed(sweep, trial, steps));
}

/* The lowest step of a committed checkpoint without counts, in 1 .. `most`; -1 if there is none. */
static int64_t next_step(const struct sweep *sweep, size_t trial, int64_t most)
{
    char path[SWEEP_PATH_BYTES];
    int64_t next = -1;
    if (sweep_path(sweep, trial, "checkpoints", path) != RL_OK) {
        return next;
    }
    DIR *folder = opendir(path);
    for (struct dirent *entry = folder != NULL ? readdir(folder) : NULL; entry != NULL;
         entry = readdir(folder)) {
        int64_t step = 0;
        if (sscanf(entry->d_name, "step_%" SCNd64, &step) == 1 && step <= most &&
            (next < 0 || step < next) && is_committed(sweep, trial, step) &&
            !counts_of(sweep, trial, step, path)) {
            next = step;
        }
    }
    if (folder != NULL) {
        closedir(folder);
    }
    return next;
}

bool sweep_next_evaluation(const struct sweep *sweep, const struct sweep_job *job, char *model,
                           char *counts)
{
    const struct rl_config *settings = &sweep->plan->settings;
    char name[64];
    bool trains = settings->sweep.command != CONFIG_SWEEP_EVAL;
    size_t trials = sweep->plan->trial_count;
    if (job->trial >= trials || !trains) {
        snprintf(model, SWEEP_PATH_BYTES, "%s",
                 job->trial >= trials ? sweep->plan->bases[job->trial - trials].model
                                      : sweep->plan->base.model.path);
        return !counts_of(sweep, job->trial, 0, counts);
    }
    if (settings->sweep.evaluate == CONFIG_SWEEP_NONE) {
        return false;
    }
    int64_t step = job->steps > 0 ? job->steps : finished_steps(sweep, job->trial);
    if (settings->sweep.evaluate == CONFIG_SWEEP_EVERY) {
        step = next_step(sweep, job->trial, step);
    }
    snprintf(name, sizeof name, "checkpoints/step_%06" PRId64, step);
    return step > 0 && !counts_of(sweep, job->trial, step, counts) &&
           sweep_path(sweep, job->trial, name, model) == RL_OK;
}

static rl_status check_counts_file(const char *path)
{
    struct count_table *table = NULL;
    rl_status status = count_file_read(path, &table);
    count_table_destroy(table);
    return status == RL_OK
               ? RL_OK
               : rl_fail(status, "%s cannot be used; remove it, and it is counted again", path);
}

rl_status sweep_check_counts(const struct sweep *sweep, size_t trial)
{
    char path[SWEEP_PATH_BYTES];
    rl_status status = RL_OK;
    RL_TRY(sweep_path(sweep, trial, "eval", path));
    DIR *folder = opendir(path);
    for (struct dirent *entry = folder != NULL ? readdir(folder) : NULL;
         entry != NULL && status == RL_OK; entry = readdir(folder)) {
        int64_t step = 0;
        if (sscanf(entry->d_name, "step_%" SCNd64, &step) == 1 &&
            counts_of(sweep, trial, step, path)) {
            status = check_counts_file(path);
        }
    }
    if (folder != NULL) {
        closedir(folder);
    }
    return status;
}

/* Mean of c / n over split A of data.eval at one temperature; 0 without problems. */
static double score_at(const struct count_table *table, uint32_t temperature)
{
    double sum = 0;
    uint32_t problems = 0;
    for (uint32_t i = 0; i < table->problem_count; i++) {
        const struct count_cell *cell = count_table_at(table, temperature, i);
        if (table->problems[i].set == 0 && table->problems[i].split == COUNT_SPLIT_A) {
            sum += cell->samples > 0 ? (double)cell->correct / cell->samples : 0;
            problems++;
        }
    }
    return problems > 0 ? sum / problems : 0;
}

rl_status sweep_score(const struct sweep *sweep, size_t trial, int64_t steps, double *score)
{
    char path[SWEEP_PATH_BYTES];
    struct count_table *table = NULL;
    (void)counts_of(sweep, trial, steps, path);
    RL_TRY(count_file_read(path, &table));
    *score = 0;
    for (uint32_t t = 0; t < table->temperature_count; t++) {
        double here = score_at(table, t);
        *score = here > *score ? here : *score;
    }
    count_table_destroy(table);
    return RL_OK;
}
