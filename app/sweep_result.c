/* What a trial leaves behind: result.json holds only what another run of the same sweep gives
 * again; whatever depends on time or on order of trials is in timing.json. */
#include "app/sweep.h"

#include "app/run_tail.h"
#include "app/summary.h"
#include "core/log.h"
#include "core/text.h"
#include "transport/atomic_file.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RESULT_LOG_BYTES = 1 << 16 };

int64_t sweep_attempts(const struct sweep *sweep, size_t trial)
{
    char path[SWEEP_PATH_BYTES];
    long long attempts = 0;
    if (sweep_path(sweep, trial, "attempts", path) != RL_OK) {
        return 0;
    }
    FILE *file = fopen(path, "re");
    if (file != NULL) {
        attempts = fscanf(file, "%lld", &attempts) == 1 ? attempts : 0;
        fclose(file);
    }
    return attempts;
}

rl_status sweep_note_attempt(const struct sweep *sweep, size_t trial, int64_t attempts)
{
    char path[SWEEP_PATH_BYTES];
    char text[32];
    RL_TRY(sweep_path(sweep, trial, "attempts", path));
    snprintf(text, sizeof text, "%" PRId64 "\n", attempts);
    return atomic_file_write_all(path, text, strlen(text));
}

/* summary_merge into a file of the trial; takes `part`. */
static rl_status merge(const struct sweep *sweep, size_t trial, const char *name, json_t *part)
{
    char path[SWEEP_PATH_BYTES];
    rl_status status = part != NULL ? sweep_path(sweep, trial, name, path)
                                    : rl_fail(RL_NO_MEMORY, "%s: out of memory", name);
    if (status == RL_OK) {
        status = summary_merge(path, part);
    }
    json_decref(part);
    return status;
}

static json_t *load(const struct sweep *sweep, size_t trial, const char *name)
{
    char path[SWEEP_PATH_BYTES];
    return sweep_path(sweep, trial, name, path) == RL_OK ? json_load_file(path, 0, NULL) : NULL;
}

rl_status sweep_note_time(const struct sweep *sweep, size_t trial, double train_s, double eval_s)
{
    char host[128] = "";
    json_t *timing = load(sweep, trial, "timing.json");
    double train = train_s + json_number_value(json_object_get(timing, "train_seconds"));
    double eval = eval_s + json_number_value(json_object_get(timing, "eval_seconds"));
    json_decref(timing);
    (void)gethostname(host, sizeof host - 1);
    return merge(sweep, trial, "timing.json",
                 json_pack("{s:s, s:f, s:f, s:f}", "host", host, "train_seconds", train,
                           "eval_seconds", eval, "seconds", train + eval));
}

double sweep_seconds(const struct sweep *sweep, size_t trial)
{
    json_t *timing = load(sweep, trial, "timing.json");
    json_t *seconds = json_object_get(timing, "seconds");
    double value = json_is_number(seconds) ? json_number_value(seconds) : NAN;
    json_decref(timing);
    return value;
}

static const struct sweep_options *options_of(const struct sweep *sweep, size_t trial)
{
    static const struct sweep_options none;
    return trial < sweep->plan->trial_count ? &sweep->plan->trials[trial].options : &none;
}

/* Copy a member, if it is there, under the name `as`. */
static void copy_member(json_t *to, const char *as, const json_t *from, const char *name)
{
    json_t *value = json_object_get(from, name);
    if (value != NULL) {
        (void)json_object_set(to, as, value);
    }
}

static void copy_members(json_t *to, const json_t *from, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        copy_member(to, names[i], from, names[i]);
    }
}

/* Hash of the weights after the last step, by which two runs of a trial are compared. */
static json_t *weights_json(const struct sweep *sweep, size_t trial, int64_t step)
{
    char name[64];
    size_t i = 0;
    json_t *entry = NULL;
    json_t *found = NULL;
    snprintf(name, sizeof name, "checkpoints/step_%06" PRId64 "/MANIFEST.json", step);
    json_t *manifest = load(sweep, trial, name);
    json_array_foreach(json_object_get(manifest, "files"), i, entry)
    {
        const char *file = json_string_value(json_object_get(entry, "name"));
        if (file != NULL && strcmp(file, "model.safetensors") == 0) {
            found = json_incref(json_object_get(entry, "xxh3"));
        }
    }
    json_decref(manifest);
    return found;
}

/* Figures of the last step, and of the whole run where they follow from its bits. */
static json_t *figures_json(const struct sweep *sweep, size_t trial)
{
    static const char *const of_run[] = {"steps", "completed", "updates", "tokens_trained",
                                         "rounds"};
    static const char *const of_step[] = {"reward",  "accuracy",  "loss",
                                          "entropy", "grad_norm", "completions/mean_length"};
    char path[SWEEP_PATH_BYTES];
    json_t *figures = json_object();
    json_t *summary = load(sweep, trial, "summary.json");
    json_t *last = sweep_path(sweep, trial, "metrics.jsonl", path) == RL_OK ? run_tail(path) : NULL;
    copy_members(figures, summary, of_run, sizeof of_run / sizeof of_run[0]);
    copy_members(figures, last, of_step, sizeof of_step / sizeof of_step[0]);
    copy_member(figures, "staleness/mean", json_object_get(summary, "staleness"), "mean");
    copy_member(figures, "staleness/max", json_object_get(summary, "staleness"), "max");
    json_t *rounds = json_object_get(summary, "rounds");
    size_t round_count = json_array_size(rounds);
    if (round_count > 0) {
        copy_member(figures, "kept_mass", json_array_get(rounds, round_count - 1), "kept_mass");
    }
    copy_member(figures, "logprob_mismatch", json_object_get(summary, "logprob_mismatch"), "max");
    json_t *weights = weights_json(sweep, trial, sweep_summary_step(summary));
    if (weights != NULL) {
        (void)json_object_set_new(figures, "weights_xxh3", weights);
    }
    json_decref(summary);
    json_decref(last);
    return figures;
}

rl_status sweep_write_result(const struct sweep *sweep, size_t trial, const char *state,
                             const char *reason)
{
    char path[SWEEP_PATH_BYTES];
    json_t *result =
        json_pack("{s:s, s:o, s:I, s:s, s:o}", "state", state, "options",
                  sweep_plan_options_json(options_of(sweep, trial)), "attempts",
                  (json_int_t)sweep_attempts(sweep, trial) + (strcmp(state, "failed") != 0),
                  "reason", reason, "summary", figures_json(sweep, trial));
    char *text =
        result != NULL ? json_dumps(result, JSON_INDENT(2) | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(result);
    if (text == NULL) {
        return rl_fail(RL_NO_MEMORY, "result.json: out of memory");
    }
    rl_status status = sweep_path(sweep, trial, "result.json", path);
    if (status == RL_OK) {
        status = atomic_file_write_all(path, text, strlen(text));
    }
    free(text);
    return status;
}

rl_status sweep_forget_failure(const struct sweep *sweep, size_t trial)
{
    static const char *const names[] = {"attempts", "result.json"};
    char path[SWEEP_PATH_BYTES];
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        RL_TRY(sweep_path(sweep, trial, names[i], path));
        if (unlink(path) != 0 && errno != ENOENT) {
            return rl_fail(RL_IO, "%s: cannot be removed: %s", path, strerror(errno));
        }
    }
    return RL_OK;
}

/* Text of a log line of level error, behind "HH:MM:SS.mmm ROLE RANK E "; NULL of any other. */
static const char *error_text(const char *line)
{
    const char *level = strstr(line, " E ");
    bool stamped = strlen(line) > 12 && line[2] == ':' && line[5] == ':' && line[8] == '.';
    return stamped && level != NULL && level - line < 40 ? level + 3 : NULL;
}

void sweep_last_error(const char *log_path, uint64_t offset, char *out, size_t bytes)
{
    char line[4200];
    FILE *file = fopen(log_path, "re");
    out[0] = '\0';
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
        if (file != NULL) {
            fclose(file);
        }
        return;
    }
    long end = ftell(file);
    long start = end - RESULT_LOG_BYTES > (long)offset ? end - RESULT_LOG_BYTES : (long)offset;
    (void)fseek(file, start, SEEK_SET);
    while (fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        const char *text = error_text(line);
        if (text != NULL) {
            snprintf(out, bytes, "%s", text);
        }
    }
    fclose(file);
}
