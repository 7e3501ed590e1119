/* See study_data.h. */
#include "trainer/study_data.h"

#include "core/config.h"
#include "core/log.h"
#include "core/text.h"
#include "trainer/eval_compare.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STUDY_PATH_BYTES = 4096, STUDY_TRIALS_MAX = 100000 };

static const char seed_key[] = "run.seed";
static const char temperature_key[] = "rollout.temperature";
static const char model_key[] = "model.path";

static rl_status path_of(const char *dir, const char *trial, const char *name,
                         char out[STUDY_PATH_BYTES])
{
    int length = snprintf(out, STUDY_PATH_BYTES, "%s/%s%s%s%s", dir, trial != NULL ? "trials/" : "",
                          trial != NULL ? trial : "", trial != NULL ? "/" : "", name);
    return length < STUDY_PATH_BYTES ? RL_OK
                                     : rl_fail(RL_TOO_LONG, "%s: a path below is too long", dir);
}

bool study_is_sweep(const char *dir)
{
    char path[STUDY_PATH_BYTES];
    return snprintf(path, sizeof path, "%s/sweep.json", dir) < STUDY_PATH_BYTES &&
           access(path, F_OK) == 0;
}

/* --- labels and keys -------------------------------------------------------------------------- */

/* A JSON value as an option's text. */
static void value_text(const json_t *value, char *out, size_t bytes)
{
    if (json_is_integer(value)) {
        snprintf(out, bytes, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    } else if (json_is_real(value)) {
        snprintf(out, bytes, "%.15g", json_real_value(value));
    } else if (json_is_boolean(value)) {
        snprintf(out, bytes, "%s", json_is_true(value) ? "true" : "false");
    } else {
        const char *text = json_string_value(value);
        snprintf(out, bytes, "%s", text != NULL ? text : "");
    }
}

static bool same_value(const json_t *left, const json_t *right)
{
    char a[512];
    char b[512];
    value_text(left, a, sizeof a);
    value_text(right, b, sizeof b);
    return strcmp(a, b) == 0;
}

/* Is `key` left out of a label or key? */
static bool left_out(const char *key, const char *also)
{
    return strcmp(key, seed_key) == 0 || (also != NULL && strcmp(key, also) == 0);
}

/* All options but the seed and `also`, as text that tells settings (or groups) apart. */
static char *options_key(const json_t *options, const char *also)
{
    json_t *copy = json_copy((json_t *)(uintptr_t)options);
    json_object_del(copy, seed_key);
    if (also != NULL) {
        json_object_del(copy, also);
    }
    char *text = json_dumps(copy, JSON_SORT_KEYS | JSON_COMPACT | JSON_REAL_PRECISION(15));
    json_decref(copy);
    return text;
}

/* Entry of an axis whose values the options have; -1: none. */
static int axis_entry(const json_t *axis, const json_t *options)
{
    const json_t *keys = json_object_get(axis, "keys");
    const json_t *values = json_object_get(axis, "values");
    for (size_t v = 0; v < json_array_size(values); v++) {
        bool same = json_array_size(keys) > 0;
        for (size_t k = 0; k < json_array_size(keys); k++) {
            const char *key = json_string_value(json_array_get(keys, k));
            same = same && key != NULL &&
                   same_value(json_object_get(options, key),
                              json_array_get(json_array_get(values, v), k));
        }
        if (same) {
            return (int)v;
        }
    }
    return -1;
}

static void label_add(char *label, const char *name, const char *value)
{
    size_t used = strlen(label);
    snprintf(label + used, STUDY_LABEL_BYTES - used, "%s%s%s%s", used > 0 ? ", " : "", name,
             name[0] != '\0' ? " " : "", value);
}

/* The part of a label that one axis gives. */
static void label_axis(char *label, const json_t *axis, const json_t *options, const char *also)
{
    const json_t *keys = json_object_get(axis, "keys");
    int entry = axis_entry(axis, options);
    const json_t *given = json_array_get(json_object_get(axis, "labels"), (size_t)entry);
    if (entry < 0) {
        return;
    }
    if (json_is_string(given)) {
        label_add(label, "", json_string_value(given));
        return;
    }
    for (size_t k = 0; k < json_array_size(keys); k++) {
        const char *key = json_string_value(json_array_get(keys, k));
        const char *dot = key != NULL ? strchr(key, '.') : NULL;
        char value[128];
        if (key == NULL || left_out(key, also)) {
            continue;
        }
        value_text(json_object_get(options, key), value, sizeof value);
        label_add(label, dot != NULL ? dot + 1 : key, value[0] != '\0' ? value : "none");
    }
}

static void make_label(const json_t *plan, const json_t *options, const char *also, char *label)
{
    const json_t *axes = json_object_get(plan, "axes");
    label[0] = '\0';
    for (size_t a = 0; a < json_array_size(axes); a++) {
        label_axis(label, json_array_get(axes, a), options, also);
    }
    if (label[0] == '\0') {
        snprintf(label, STUDY_LABEL_BYTES, "%s", "as configured");
    }
}

/* --- settings and groups ---------------------------------------------------------------------- */

static rl_status apply_options(struct rl_config *config, const json_t *options)
{
    const char *key = NULL;
    json_t *value = NULL;
    json_object_foreach((json_t *)(uintptr_t)options, key, value)
    {
        char assignment[4096];
        char text[3800];
        value_text(value, text, sizeof text);
        snprintf(assignment, sizeof assignment, "%s=%s", key, text);
        RL_TRY(rl_config_override(config, assignment));
    }
    return RL_OK;
}

/* What a setting samples, and whether it keeps all of it. */
static rl_status read_sampler(const struct study *study, const json_t *options,
                              struct study_setting *setting)
{
    struct rl_config config;
    const char *text = json_string_value(json_object_get(study->plan, "config"));
    rl_status status = rl_config_init(&config);
    if (status == RL_OK && text != NULL) {
        status = rl_config_load_text(&config, "sweep.json: config", text, strlen(text));
    }
    if (status == RL_OK) {
        status = apply_options(&config, json_object_get(study->plan, "options"));
    }
    if (status == RL_OK) {
        status = apply_options(&config, options);
    }
    if (status == RL_OK) {
        setting->train_temperature = config.rollout.temperature;
        setting->truncated =
            config.rollout.top_k > 0 || config.rollout.top_p < 1 || config.rollout.min_p > 0;
        setting->unfiltered = config.distill.select == CONFIG_SELECT_NONE &&
                              config.distill.weight == CONFIG_WEIGHT_ONE &&
                              config.distill.max_per_prompt == 0 &&
                              config.distill.drop_shortest <= 0;
    }
    rl_config_fini(&config);
    return status;
}

static rl_status find_group(struct study *study, const json_t *options, uint32_t *out)
{
    char *key = options_key(options, temperature_key);
    if (key == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: out of memory");
    }
    for (uint32_t i = 0; i < study->group_count; i++) {
        if (strcmp(study->groups[i].key, key) == 0) {
            free(key);
            *out = i;
            return RL_OK;
        }
    }
    struct study_group *group = &study->groups[study->group_count];
    group->key = key;
    make_label(study->plan, options, temperature_key, group->label);
    *out = study->group_count++;
    return RL_OK;
}

/* The base of trials with these options: the only one, or that of their model.path. */
static uint32_t find_base(const struct study *study, const json_t *options)
{
    const char *model = json_string_value(json_object_get(options, model_key));
    for (uint32_t b = 0; b < study->base_count && model != NULL; b++) {
        if (strcmp(study->bases[b].model, model) == 0) {
            return b;
        }
    }
    return 0;
}

static rl_status find_setting(struct study *study, const json_t *options, uint32_t *out)
{
    char *key = options_key(options, NULL);
    if (key == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: out of memory");
    }
    for (uint32_t i = 0; i < study->setting_count; i++) {
        if (strcmp(study->settings[i].key, key) == 0) {
            free(key);
            *out = i;
            return RL_OK;
        }
    }
    struct study_setting *setting = &study->settings[study->setting_count];
    *out = study->setting_count++;
    setting->key = key;
    setting->base = find_base(study, options);
    make_label(study->plan, options, NULL, setting->label);
    RL_TRY(read_sampler(study, options, setting));
    return find_group(study, options, &setting->group);
}

/* --- files ------------------------------------------------------------------------------------ */

static rl_status check_counts(const struct study *study, const struct count_table *counts,
                              const char *path)
{
    const struct count_table *first = study_counts(study);
    if (first == NULL) {
        return RL_OK;
    }
    if (counts->temperature_count != first->temperature_count ||
        memcmp(counts->temperatures, first->temperatures,
               first->temperature_count * sizeof *first->temperatures) != 0 ||
        strcmp(counts->sets, first->sets) != 0) {
        return rl_fail(RL_INVALID, "%s: other temperatures or guards than the rest of the sweep",
                       path);
    }
    rl_status status = eval_same_problems(first, counts);
    return status == RL_OK ? RL_OK
                           : rl_fail(status, "%s: not the problems of the rest of the sweep", path);
}

static int64_t step_of(const char *name)
{
    char *end = NULL;
    if (strncmp(name, "step_", 5) != 0 || name[5] < '0' || name[5] > '9') {
        return -1;
    }
    long long step = strtoll(name + 5, &end, 10);
    return strcmp(end, ".h5") == 0 ? step : -1;
}

static int compare_steps(const void *left, const void *right)
{
    const struct study_evaluation *a = left;
    const struct study_evaluation *b = right;
    return (a->step > b->step) - (a->step < b->step);
}

static rl_status list_steps(const char *folder, struct study_trial *trial)
{
    DIR *list = opendir(folder);
    uint32_t room = 0;
    rl_status status = RL_OK;
    for (struct dirent *entry = list != NULL ? readdir(list) : NULL;
         entry != NULL && status == RL_OK; entry = readdir(list)) {
        int64_t step = step_of(entry->d_name);
        if (step >= 0 && trial->evaluation_count == room) {
            room = room * 2 + 8;
            struct study_evaluation *more =
                realloc(trial->evaluations, room * sizeof *trial->evaluations);
            status = more != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "report: out of memory");
            trial->evaluations = more != NULL ? more : trial->evaluations;
        }
        if (step >= 0 && status == RL_OK) {
            trial->evaluations[trial->evaluation_count++] = (struct study_evaluation){step, NULL};
        }
    }
    if (list != NULL) {
        closedir(list);
    }
    if (trial->evaluation_count > 1) {
        qsort(trial->evaluations, trial->evaluation_count, sizeof *trial->evaluations,
              compare_steps);
    }
    return status;
}

static rl_status read_evaluations(const struct study *study, struct study_trial *trial)
{
    char folder[STUDY_PATH_BYTES];
    RL_TRY(path_of(study->dir, trial->name, "eval", folder));
    RL_TRY(list_steps(folder, trial));
    for (uint32_t i = 0; i < trial->evaluation_count; i++) {
        char path[STUDY_PATH_BYTES];
        char name[64];
        snprintf(name, sizeof name, "eval/step_%06" PRId64 ".h5", trial->evaluations[i].step);
        RL_TRY(path_of(study->dir, trial->name, name, path));
        struct count_table *counts = NULL;
        RL_TRY(count_file_read(path, &counts));
        rl_status status = check_counts(study, counts, path);
        if (status != RL_OK) {
            count_table_destroy(counts);
            return status;
        }
        trial->evaluations[i].counts = counts;
    }
    return RL_OK;
}

/* A JSON object from a file of a trial; *out NULL if there is no such file. */
static rl_status read_object(const struct study *study, const struct study_trial *trial,
                             const char *name, json_t **out)
{
    char path[STUDY_PATH_BYTES];
    json_error_t error;
    RL_TRY(path_of(study->dir, trial->name, name, path));
    if (access(path, F_OK) != 0) {
        return RL_OK;
    }
    json_t *object = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(object)) {
        json_decref(object);
        return rl_fail(RL_CORRUPT, "%s:%d: %s", path, error.line,
                       object == NULL ? error.text : "not an object");
    }
    *out = object;
    return RL_OK;
}

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "";
}

static rl_status read_trial(struct study *study, const json_t *plan, struct study_trial *trial)
{
    trial->name = json_string_value(json_object_get(plan, "name"));
    trial->options = json_object_get(plan, "options");
    trial->seed = json_integer_value(json_object_get(plan, "seed"));
    trial->state = "";
    trial->reason = "";
    if (trial->name == NULL || strchr(trial->name, '/') != NULL ||
        !json_is_object(trial->options)) {
        return rl_fail(RL_CORRUPT, "%s/sweep.json: a trial without name or options", study->dir);
    }
    RL_TRY(find_setting(study, trial->options, &trial->setting));
    RL_TRY(read_object(study, trial, "result.json", &trial->result));
    RL_TRY(read_object(study, trial, "summary.json", &trial->summary));
    RL_TRY(read_object(study, trial, "timing.json", &trial->timing));
    trial->state = text_of(trial->result, "state");
    trial->reason = text_of(trial->result, "reason");
    bool counts = strcmp(trial->state, "done") == 0 || strcmp(trial->state, "stopped_early") == 0;
    return counts ? read_evaluations(study, trial) : RL_OK;
}

static rl_status read_plan(struct study *study)
{
    char path[STUDY_PATH_BYTES];
    json_error_t error;
    RL_TRY(path_of(study->dir, NULL, "sweep.json", path));
    study->plan = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (study->plan == NULL) {
        return rl_fail(RL_CORRUPT, "%s:%d: %s", path, error.line, error.text);
    }
    size_t trials = json_array_size(json_object_get(study->plan, "trials"));
    study->name = text_of(study->plan, "name");
    study->command = text_of(study->plan, "command");
    if (trials == 0 || trials > STUDY_TRIALS_MAX) {
        return rl_fail(RL_CORRUPT, "%s: %zu trials", path, trials);
    }
    study->trials = calloc(trials, sizeof *study->trials);
    study->settings = calloc(trials, sizeof *study->settings);
    study->groups = calloc(trials, sizeof *study->groups);
    if (study->trials == NULL || study->settings == NULL || study->groups == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: no memory for %zu trials", trials);
    }
    return RL_OK;
}

static rl_status read_base(struct study *study, const json_t *plan, struct study_base *base)
{
    char path[STUDY_PATH_BYTES];
    char name[sizeof base->name + 32];
    struct count_table *counts = NULL;
    const char *folder = plan != NULL ? text_of(plan, "name") : "base";
    base->model = plan != NULL ? text_of(plan, "model") : "";
    if (strncmp(folder, "base", 4) != 0 || strchr(folder, '/') != NULL ||
        strlen(folder) >= sizeof base->name) {
        return rl_fail(RL_CORRUPT, "%s/sweep.json: a base model named \"%s\"", study->dir, folder);
    }
    snprintf(base->name, sizeof base->name, "%s", folder);
    snprintf(base->label, sizeof base->label, "%s%s%s", folder, plan != NULL ? ", " : "",
             base->model);
    snprintf(name, sizeof name, "%s/eval/step_000000.h5", base->name);
    RL_TRY(path_of(study->dir, NULL, name, path));
    if (access(path, F_OK) != 0) {
        return RL_OK;
    }
    RL_TRY(count_file_read(path, &counts));
    rl_status status = check_counts(study, counts, path);
    if (status != RL_OK) {
        count_table_destroy(counts);
        return status;
    }
    base->counts = counts;
    return RL_OK;
}

/* The plan names them where there are several. */
static rl_status read_bases(struct study *study)
{
    const json_t *bases = json_object_get(study->plan, "bases");
    uint32_t count = json_array_size(bases) > 0 ? (uint32_t)json_array_size(bases) : 1;
    study->bases = calloc(count, sizeof *study->bases);
    if (study->bases == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: out of memory");
    }
    for (uint32_t b = 0; b < count; b++) {
        study->base_count = b + 1;
        RL_TRY(read_base(study, json_array_get(bases, b), &study->bases[b]));
    }
    return RL_OK;
}

static rl_status read_all(struct study *study)
{
    RL_TRY(read_plan(study));
    RL_TRY(read_bases(study));
    const json_t *trials = json_object_get(study->plan, "trials");
    for (size_t i = 0; i < json_array_size(trials); i++) {
        study->trial_count = (uint32_t)i + 1;
        RL_TRY(read_trial(study, json_array_get(trials, i), &study->trials[i]));
    }
    return RL_OK;
}

rl_status study_load(const char *dir, struct study **out)
{
    struct study *study = calloc(1, sizeof *study);
    if (study == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: out of memory");
    }
    rl_status status = rl_text_copy(dir, &study->dir);
    if (status == RL_OK) {
        status = read_all(study);
    }
    if (status != RL_OK) {
        study_destroy(study);
        return status;
    }
    *out = study;
    return RL_OK;
}

void study_destroy(struct study *study)
{
    if (study == NULL) {
        return;
    }
    for (uint32_t i = 0; i < study->trial_count; i++) {
        struct study_trial *trial = &study->trials[i];
        for (uint32_t k = 0; k < trial->evaluation_count; k++) {
            count_table_destroy(trial->evaluations[k].counts);
        }
        free(trial->evaluations);
        json_decref(trial->result);
        json_decref(trial->summary);
        json_decref(trial->timing);
    }
    for (uint32_t i = 0; i < study->setting_count; i++) {
        free(study->settings[i].key);
    }
    for (uint32_t i = 0; i < study->group_count; i++) {
        free(study->groups[i].key);
    }
    free(study->trials);
    free(study->settings);
    free(study->groups);
    for (uint32_t i = 0; i < study->base_count; i++) {
        count_table_destroy(study->bases[i].counts);
    }
    free(study->bases);
    json_decref(study->plan);
    free(study->dir);
    free(study);
}

const struct count_table *study_counts(const struct study *study)
{
    for (uint32_t i = 0; i < study->base_count; i++) {
        if (study->bases[i].counts != NULL) {
            return study->bases[i].counts;
        }
    }
    for (uint32_t i = 0; i < study->trial_count; i++) {
        if (study->trials[i].evaluation_count > 0 && study->trials[i].evaluations[0].counts) {
            return study->trials[i].evaluations[0].counts;
        }
    }
    return NULL;
}
