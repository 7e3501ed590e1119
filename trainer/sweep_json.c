/* sweep.json: the resolved plan, for the report and for a resumed sweep to compare itself with. */
#include "trainer/sweep_plan.h"

#include "core/log.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

/* Numbers and truth values as such, anything else as a string. */
static json_t *value_json(const char *value)
{
    json_t *parsed = json_loads(value, JSON_DECODE_ANY, NULL);
    if (json_is_number(parsed) || json_is_boolean(parsed)) {
        return parsed;
    }
    json_decref(parsed);
    return json_string(value);
}

json_t *sweep_plan_options_json(const struct sweep_options *options)
{
    json_t *object = json_object();
    for (size_t i = 0; i < options->count; i++) {
        (void)json_object_set_new(object, options->items[i].key,
                                  value_json(options->items[i].value));
    }
    return object;
}

static json_t *axis_json(const struct sweep_axis *axis)
{
    json_t *keys = json_array();
    json_t *values = json_array();
    json_t *labels = json_array();
    for (size_t k = 0; k < axis->key_count; k++) {
        (void)json_array_append_new(keys, json_string(axis->keys[k]));
    }
    for (size_t v = 0; v < axis->entry_count; v++) {
        json_t *row = json_array();
        for (size_t k = 0; k < axis->key_count; k++) {
            (void)json_array_append_new(row, value_json(axis->values[v * axis->key_count + k]));
        }
        (void)json_array_append_new(values, row);
        if (axis->labels != NULL) {
            (void)json_array_append_new(labels, json_string(axis->labels[v]));
        }
    }
    return json_pack("{s:o, s:o, s:o}", "keys", keys, "values", values, "labels", labels);
}

static json_t *trials_json(const struct sweep_plan *plan)
{
    json_t *trials = json_array();
    for (size_t i = 0; i < plan->trial_count; i++) {
        const struct sweep_trial *t = &plan->trials[i];
        (void)json_array_append_new(
            trials, json_pack("{s:s, s:s, s:o, s:I, s:I}", "key", t->key, "name", t->name,
                              "options", sweep_plan_options_json(&t->options), "seed",
                              (json_int_t)t->seed, "cell", (json_int_t)t->cell));
    }
    return trials;
}

/* The controls, where there are several. */
static json_t *bases_json(const struct sweep_plan *plan)
{
    json_t *bases = json_array();
    for (size_t i = 0; i < plan->base_count; i++) {
        (void)json_array_append_new(bases, json_pack("{s:s, s:s}", "name", plan->bases[i].name,
                                                     "model", plan->bases[i].model));
    }
    return bases;
}

/* eval.temperatures, or eval.temperature alone, as the evaluation of a trial resolves them. */
static json_t *temperatures_json(const struct sweep_plan *plan)
{
    const char *text = plan->evaluated.eval.temperatures;
    json_t *list = json_array();
    if (text[0] == '\0') {
        (void)json_array_append_new(list, json_real(plan->evaluated.eval.temperature));
    }
    while (text[0] != '\0') {
        char part[64];
        size_t bytes = strcspn(text, ",");
        snprintf(part, sizeof part, "%.*s", (int)bytes, text);
        (void)json_array_append_new(list, value_json(part));
        text += bytes + (text[bytes] == ',');
    }
    return list;
}

static json_t *rungs_json(const struct sweep_plan *plan)
{
    json_t *rungs = json_array();
    for (size_t i = 0; i < plan->rung_count; i++) {
        (void)json_array_append_new(rungs, json_integer((json_int_t)plan->rungs[i]));
    }
    return rungs;
}

rl_status sweep_plan_json(const struct sweep_plan *plan, char **out)
{
    static const char *const commands[] = {"train", "distill", "eval"};
    static const char *const evaluates[] = {"last", "every", "none"};
    json_t *axes = json_array();
    for (size_t a = 0; a < plan->axis_count; a++) {
        (void)json_array_append_new(axes, axis_json(&plan->axes[a]));
    }
    json_t *root = json_pack(
        "{s:i, s:s, s:s, s:s, s:s, s:o, s:o, s:o, s:o, s:{s:o, s:f}, s:i, s:o}", "format", 1,
        "name", plan->name, "command", commands[plan->settings.sweep.command], "evaluate",
        evaluates[plan->settings.sweep.evaluate], "config", plan->config_text, "options",
        sweep_plan_options_json(&plan->options), "eval", sweep_plan_options_json(&plan->eval),
        "eval_temperatures", temperatures_json(plan), "axes", axes, "halving", "steps",
        rungs_json(plan), "keep", plan->settings.halving.keep, "ranks_per_trial",
        (int)plan->settings.sweep.ranks_per_trial, "trials", trials_json(plan));
    if (plan->base_count > 1) {
        (void)json_object_set_new(root, "bases", bases_json(plan));
    }
    char *text = root != NULL ? json_dumps(root, JSON_INDENT(1) | JSON_REAL_PRECISION(15)) : NULL;
    json_decref(root);
    if (text == NULL) {
        return rl_fail(RL_NO_MEMORY, "sweep.json: out of memory or text that is not UTF-8");
    }
    *out = text;
    return RL_OK;
}
