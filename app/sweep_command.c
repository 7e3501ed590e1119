/* Command lines of a trial's processes. An evaluation is the same for every trial but for the
 * model: of the trial's own options only those count that say how prompts become text. */
#include "app/sweep.h"

#include "core/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Room for every argument that can come. */
static rl_status begin(const struct sweep *sweep, const char *command, struct sweep_command *out)
{
    const struct sweep_plan *plan = sweep->plan;
    size_t options = plan->options.count + plan->eval.count;
    for (size_t a = 0; a < plan->axis_count; a++) {
        options += plan->axes[a].key_count;
    }
    char config[SWEEP_PATH_BYTES + 32];
    *out = (struct sweep_command){.capacity = options + 16};
    out->arguments = calloc(out->capacity + 1, sizeof *out->arguments);
    if (out->arguments == NULL) {
        return rl_fail(RL_NO_MEMORY, "sweep: out of memory");
    }
    snprintf(config, sizeof config, "%s/config.yaml", sweep->folder);
    const char *const first[] = {sweep->program, command, config};
    for (size_t i = 0; i < 3; i++) {
        out->arguments[out->count] = strdup(first[i]);
        if (out->arguments[out->count++] == NULL) {
            return rl_fail(RL_NO_MEMORY, "sweep: out of memory");
        }
    }
    return RL_OK;
}

static rl_status add(struct sweep_command *command, const char *key, const char *value)
{
    size_t bytes = strlen(key) + strlen(value) + 2;
    char *text = command->count < command->capacity ? malloc(bytes) : NULL;
    if (text == NULL) {
        return rl_fail(RL_NO_MEMORY, "sweep: out of memory");
    }
    snprintf(text, bytes, "%s=%s", key, value);
    command->arguments[command->count++] = text;
    return RL_OK;
}

static rl_status add_number(struct sweep_command *command, const char *key, int64_t value)
{
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, value);
    return add(command, key, text);
}

static rl_status add_all(struct sweep_command *command, const struct sweep_options *options,
                         const char *section)
{
    for (size_t i = 0; i < options->count; i++) {
        if (strncmp(options->items[i].key, section, strlen(section)) == 0) {
            RL_TRY(add(command, options->items[i].key, options->items[i].value));
        }
    }
    return RL_OK;
}

rl_status sweep_command_train(const struct sweep *sweep, const struct sweep_job *job,
                              struct sweep_command *out)
{
    char folder[SWEEP_PATH_BYTES + 32];
    const struct sweep_trial *trial = &sweep->plan->trials[job->trial];
    snprintf(folder, sizeof folder, "%s/trials", sweep->folder);
    bool distills = sweep->plan->settings.sweep.command == CONFIG_SWEEP_DISTILL;
    RL_TRY(begin(sweep, distills ? "distill" : "train", out));
    if (distills && sweep->plan->base.distill.corpora[0] == '\0') {
        char corpora[SWEEP_PATH_BYTES + 32];
        snprintf(corpora, sizeof corpora, "%s/corpora", sweep->folder);
        RL_TRY(add(out, "distill.corpora", corpora)); /* before the trial's own */
    }
    RL_TRY(add_all(out, &sweep->plan->options, ""));
    RL_TRY(add_all(out, &trial->options, ""));
    RL_TRY(add(out, "run.dir", folder));
    RL_TRY(add(out, "run.name", trial->name));
    RL_TRY(add(out, "run.resume", "auto"));
    if (sweep->plan->rung_count > 0) {
        RL_TRY(add_number(out, "run.steps", job->steps));
    }
    return sweep->plan->settings.sweep.evaluate == CONFIG_SWEEP_EVERY
               ? add_number(out, "checkpoint.keep_last", 1000000)
               : RL_OK;
}

rl_status sweep_command_eval(const struct sweep *sweep, const struct sweep_job *job,
                             const char *model, const char *counts, struct sweep_command *out)
{
    bool trial = job->trial < sweep->plan->trial_count;
    bool own = trial && sweep->plan->settings.sweep.command == CONFIG_SWEEP_EVAL;
    RL_TRY(begin(sweep, "eval", out));
    RL_TRY(add_all(out, &sweep->plan->options, ""));
    RL_TRY(add_all(out, &sweep->plan->eval, ""));
    if (trial) {
        RL_TRY(add_all(out, &sweep->plan->trials[job->trial].options, own ? "" : "data."));
    }
    if (!own) {
        RL_TRY(add(out, "model.path", model));
    }
    return add(out, "eval.counts", counts);
}

void sweep_command_fini(struct sweep_command *command)
{
    for (size_t i = 0; i < command->count; i++) {
        free(command->arguments[i]);
    }
    free(command->arguments);
    *command = (struct sweep_command){0};
}
