/* Inspection of what a run writes: segments, checkpoints, metrics. */
#include "app/inspect.h"

#include "core/log.h"
#include "model/folder.h"
#include "trainer/checkpoint.h"
#include "trainer/report_data.h"
#include "transport/count_file.h"
#include "transport/segment_file.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void set_text(json_t *object, const char *key, const char *text)
{
    json_object_set_new(object, key, json_string(text));
}

static void set_int(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

/* --- segment ---------------------------------------------------------------------------------- */

rl_status inspect_counts(const char *path, json_t *out)
{
    struct count_table *table = NULL;
    set_text(out, "kind", "counts of an evaluation");
    RL_TRY(count_file_read(path, &table));
    json_t *temperatures = json_array();
    set_text(out, "sets", table->sets);
    set_int(out, "problems", table->problem_count);
    set_int(out, "samples_per_problem", table->cells[0].samples);
    for (uint32_t t = 0; t < table->temperature_count; t++) {
        json_array_append_new(temperatures, json_real(table->temperatures[t]));
    }
    json_object_set_new(out, "temperatures", temperatures);
    count_table_destroy(table);
    return RL_OK;
}

rl_status inspect_segment(const char *path, json_t *out)
{
    struct segment_summary found = {0};
    set_text(out, "kind", "rollout segment");
    RL_TRY(segment_file_verify(path, &found));
    set_int(out, "groups", found.groups);
    set_int(out, "samples", found.samples);
    set_int(out, "prompt_tokens", found.prompt_tokens);
    set_int(out, "completion_tokens", found.completion_tokens);
    set_int(out, "first_step", found.first_step);
    set_int(out, "last_step", found.last_step);
    set_int(out, "oldest_version", found.oldest_version);
    set_int(out, "newest_version", found.newest_version);
    json_object_set_new(out, "reward_mean", json_real(found.reward_mean));
    return RL_OK;
}

/* --- checkpoint ------------------------------------------------------------------------------- */

rl_status inspect_checkpoint(const char *dir, json_t *out)
{
    uint64_t step = 0;
    json_t *model = json_object();
    set_text(out, "kind", "checkpoint");
    json_object_set_new(out, "model", model);
    RL_TRY(checkpoint_verify(dir, &step));
    set_int(out, "step", step);
    set_text(out, "manifest", "every size and hash agrees");
    rl_status status = inspect_model(dir, model);
    json_object_del(model, "kind");
    return status;
}

/* --- run -------------------------------------------------------------------------------------- */

static rl_status inspect_metrics(const char *dir, json_t *out)
{
    char path[MODEL_PATH_BYTES];
    struct report_table *table = calloc(1, sizeof *table);
    if (table == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for its metrics", dir);
    }
    rl_status status = model_folder_path(dir, "metrics.jsonl", path);
    if (status == RL_OK) {
        status = report_table_load(path, table);
    }
    if (status == RL_OK) {
        json_t *metrics = json_object();
        set_int(metrics, "lines", table->row_count);
        set_int(metrics, "names", table->column_count);
        if (table->row_count > 0) {
            set_int(metrics, "last_step", (uint64_t)table->steps[table->row_count - 1]);
        }
        json_object_set_new(metrics, "torn_last_line", json_boolean(table->torn_tail));
        json_object_set_new(out, "metrics", metrics);
    }
    report_table_fini(table);
    free(table);
    return status;
}

static int visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.'; /* unfinished things start with a dot */
}

typedef rl_status (*inspect_fn)(const char *path, json_t *out);

/* One line for a checkpoint or segment. The first failure stays in *worst. */
static void inspect_item(const char *path, const char *name, inspect_fn inspect, json_t *list,
                         rl_status *worst)
{
    json_t *item = json_object();
    set_text(item, "name", name);
    rl_status status = inspect(path, item);
    json_object_del(item, "kind");
    json_object_del(item, "model"); /* look at the checkpoint itself for that */
    json_object_set_new(item, "sound", json_boolean(status == RL_OK));
    if (status != RL_OK) {
        set_text(item, "reason", rl_log_last_error());
        *worst = *worst == RL_OK ? status : *worst;
    }
    json_array_append_new(list, item);
}

static rl_status inspect_below(const char *dir, const char *folder, inspect_fn inspect,
                               const char *end, json_t *out)
{
    char path[MODEL_PATH_BYTES];
    char inner[MODEL_PATH_BYTES];
    struct dirent **names = NULL;
    RL_TRY(model_folder_path(dir, folder, path));
    json_t *list = json_array();
    json_object_set_new(out, folder, list);
    int count = model_folder_has(dir, folder) ? scandir(path, &names, visible, alphasort) : 0;
    if (count < 0) {
        return rl_fail(RL_IO, "%s: %s", path, strerror(errno));
    }
    rl_status worst = RL_OK;
    for (int i = 0; i < count; i++) {
        size_t length = strlen(names[i]->d_name);
        bool wanted =
            length >= strlen(end) && strcmp(names[i]->d_name + length - strlen(end), end) == 0;
        if (wanted && model_folder_path(path, names[i]->d_name, inner) == RL_OK) {
            inspect_item(inner, names[i]->d_name, inspect, list, &worst);
        }
        free(names[i]);
    }
    free(names);
    return worst;
}

rl_status inspect_run(const char *dir, json_t *out)
{
    set_text(out, "kind", "run");
    rl_status metrics = inspect_metrics(dir, out);
    rl_status checkpoints = inspect_below(dir, "checkpoints", inspect_checkpoint, "", out);
    rl_status segments = inspect_below(dir, "rollouts", inspect_segment, ".h5", out);
    if (metrics != RL_OK) {
        return metrics;
    }
    return checkpoints != RL_OK ? checkpoints : segments;
}
