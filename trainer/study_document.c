/* What a report claims: chosen on split A, measured on split B. See study_report.h. */
#include "trainer/study_report.h"

#include "core/log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

json_t *study_number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

json_t *study_interval(const struct eval_interval *interval)
{
    return json_pack("{s:o, s:o, s:o}", "mean", study_number(interval->mean), "low",
                     study_number(interval->low), "high", study_number(interval->high));
}

/* Everything that claims are made from. */
struct claims {
    const struct study_cells *cells;
    const struct study_choice *choice;
    uint32_t k;
};

static struct study_ask ask_b(uint32_t k)
{
    return (struct study_ask){.scope = {0, COUNT_SPLIT_B}, .k = k, .difficulty = STUDY_ANY_CLASS};
}

static const char *cell_label(const struct study_cells *cells, uint32_t cell)
{
    int32_t setting = cells->items[cell].setting;
    return setting < 0 ? cells->study->bases[STUDY_BASE - setting].label
                       : cells->study->settings[setting].label;
}

static json_t *cell_json(const struct study_cells *cells, uint32_t cell)
{
    const struct study_cell *c = &cells->items[cell];
    return json_pack("{s:s, s:I, s:f, s:I}", "setting", cell_label(cells, cell), "step",
                     (json_int_t)study_cell_step(cells, cell), "t_eval",
                     study_counts(cells->study)->temperatures[c->temperature], "seeds",
                     (json_int_t)c->seeds);
}

static rl_status set_figure(json_t *object, const char *name, const struct study_cells *cells,
                            uint32_t cell, const struct study_ask *ask)
{
    struct eval_interval figure;
    uint32_t count = 0;
    RL_TRY(study_figure(cells, cell, ask, &figure, &count));
    json_object_set_new(object, name, study_interval(&figure));
    json_object_set_new(object, "problems", json_integer((json_int_t)count));
    return RL_OK;
}

/* Difference of a cell from another one, under `name`. Nothing if either is not there, or both are
 * one. */
static rl_status set_difference(json_t *object, const char *name, const struct claims *claims,
                                int32_t from, int32_t cell, const struct study_ask *ask)
{
    struct study_difference difference;
    if (from < 0 || cell < 0 || from == cell) {
        return RL_OK;
    }
    RL_TRY(study_compare(claims->cells, (uint32_t)from, (uint32_t)cell, ask, &difference));
    json_object_set_new(object, name,
                        json_pack("{s:o, s:o}", "problems", study_interval(&difference.problems),
                                  "seeds", study_interval(&difference.seeds)));
    return RL_OK;
}

/* A cell, its figures and its differences from both bases, all over what `ask` is about. */
static rl_status claim(const struct claims *claims, int32_t cell, const struct study_ask *ask,
                       json_t **out)
{
    struct study_ask at_k = *ask;
    struct study_ask majority = *ask;
    json_t *object = cell_json(claims->cells, (uint32_t)cell);
    rl_status status = object != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "report: out of memory");
    at_k.k = claims->k;
    majority.figure = EVAL_MAJORITY;
    uint32_t base = study_cell_base(claims->cells, (uint32_t)cell);
    int32_t usual = study_base_default(claims->cells, base);
    RL_TRY_GOTO(status, status, fail);
    RL_TRY_GOTO(set_figure(object, "pass_at_1", claims->cells, (uint32_t)cell, ask), status, fail);
    RL_TRY_GOTO(set_figure(object, "pass_at_k", claims->cells, (uint32_t)cell, &at_k), status,
                fail);
    RL_TRY_GOTO(set_figure(object, "majority", claims->cells, (uint32_t)cell, &majority), status,
                fail);
    RL_TRY_GOTO(set_difference(object, "against_base", claims, usual, cell, ask), status, fail);
    RL_TRY_GOTO(set_difference(object, "against_tuned_base", claims,
                               claims->choice->base_tuned[base], cell, ask),
                status, fail);
    *out = object;
    return RL_OK;
fail:
    json_decref(object);
    return status;
}

/* Append the claim about a cell, with a name; nothing if the cell is not there. */
static rl_status add_claim(json_t *array, const char *name, const struct claims *claims,
                           int32_t cell, const struct study_ask *ask)
{
    json_t *object = NULL;
    if (cell < 0) {
        return RL_OK;
    }
    RL_TRY(claim(claims, cell, ask, &object));
    json_object_set_new(object, "name", json_string(name));
    json_array_append_new(array, object);
    return RL_OK;
}

/* Those that everything is about, over `ask`: each base in two ways, and the winner. */
static rl_status add_trio(json_t *array, const struct claims *claims, const struct study_ask *ask)
{
    for (uint32_t b = 0; b < claims->choice->base_count; b++) {
        int32_t usual = study_base_default(claims->cells, b);
        RL_TRY(add_claim(array, "base, default decoding", claims, usual, ask));
        RL_TRY(add_claim(array, "base, best T_eval", claims, claims->choice->base_tuned[b], ask));
    }
    return add_claim(array, "winner", claims, claims->choice->winner, ask);
}

static rl_status add_groups(json_t *array, const struct claims *claims)
{
    struct study_ask ask = ask_b(1);
    for (uint32_t g = 0; g < claims->choice->group_count; g++) {
        RL_TRY(add_claim(array, claims->cells->study->groups[g].label, claims,
                         claims->choice->of_group[g], &ask));
    }
    return RL_OK;
}

static rl_status add_classes(json_t *array, const struct claims *claims)
{
    for (uint32_t d = 0; d < claims->cells->class_count; d++) {
        struct study_ask ask = ask_b(1);
        json_t *entries = json_array();
        ask.difficulty = (int32_t)d;
        json_array_append_new(array, json_pack("{s:s, s:o}", "class", claims->cells->class_names[d],
                                               "cells", entries));
        RL_TRY(add_trio(entries, claims, &ask));
    }
    return RL_OK;
}

/* Other tasks. Nothing was chosen by them, so all their problems count. */
static rl_status add_guards(json_t *array, const struct claims *claims)
{
    const char *name = study_counts(claims->cells->study)->sets;
    for (uint32_t set = 0; *name != '\0'; set++) {
        size_t bytes = strcspn(name, "\n");
        struct study_ask ask = {.scope = {set, -1}, .k = 1, .difficulty = STUDY_ANY_CLASS};
        if (set > 0) {
            json_t *entries = json_array();
            json_array_append_new(array,
                                  json_pack("{s:s%, s:o}", "guard", name, bytes, "cells", entries));
            RL_TRY(add_trio(entries, claims, &ask));
        }
        name += bytes + (name[bytes] == '\n' ? 1 : 0);
    }
    return RL_OK;
}

/* A setting that in expectation changes nothing: own samples as they come. */
static bool is_null_setting(const struct study *study, const struct study_setting *setting)
{
    return strcmp(study->command, "distill") == 0 && setting->train_temperature == 1 &&
           !setting->truncated && setting->unfiltered;
}

static rl_status add_null_cells(json_t *array, const struct claims *claims, uint32_t setting)
{
    const struct study_cells *cells = claims->cells;
    struct study_ask ask = ask_b(1);
    for (uint32_t t = 0; t < study_counts(cells->study)->temperature_count; t++) {
        int32_t control = STUDY_BASE - (int32_t)cells->study->settings[setting].base;
        int32_t base = study_last_cell(cells, control, t);
        int32_t cell = study_last_cell(cells, (int32_t)setting, t);
        if (base < 0 || cell < 0) {
            continue;
        }
        json_t *object = cell_json(cells, (uint32_t)cell);
        json_array_append_new(array, object);
        RL_TRY(set_figure(object, "base", cells, (uint32_t)base, &ask));
        RL_TRY(set_figure(object, "pass_at_1", cells, (uint32_t)cell, &ask));
        RL_TRY(set_difference(object, "against_base", claims, base, cell, &ask));
    }
    return RL_OK;
}

static rl_status add_nulls(json_t *array, const struct claims *claims)
{
    const struct study *study = claims->cells->study;
    for (uint32_t s = 0; s < study->setting_count; s++) {
        if (is_null_setting(study, &study->settings[s])) {
            RL_TRY(add_null_cells(array, claims, s));
        }
    }
    return RL_OK;
}

uint32_t study_effective_points(const struct study_cells *cells, const struct study_half_a *half,
                                uint32_t group, double *x, double *y)
{
    const struct count_table *table = study_counts(cells->study);
    uint32_t count = 0;
    for (uint32_t c = 0; c < cells->count; c++) {
        const struct study_cell *cell = &cells->items[c];
        if (cell->setting >= 0 && cell->step == STUDY_LAST && half->group[c] == (int32_t)group) {
            x[count] = cells->study->settings[cell->setting].train_temperature *
                       table->temperatures[cell->temperature];
            y[count++] = half->score[c];
        }
    }
    return count;
}

bool study_group_kept_mass(const struct study *study, uint32_t group, double *low, double *high)
{
    *low = NAN;
    *high = NAN;
    for (uint32_t i = 0; i < study->trial_count; i++) {
        const struct study_trial *trial = &study->trials[i];
        const json_t *mass =
            json_object_get(json_object_get(trial->result, "summary"), "kept_mass");
        if (study->settings[trial->setting].group == group && json_is_number(mass)) {
            *low = fmin(*low, json_number_value(mass));
            *high = fmax(*high, json_number_value(mass));
        }
    }
    return !isnan(*low);
}

static rl_status add_fits(json_t *array, const struct study_cells *cells,
                          const struct study_half_a *half)
{
    double *x = calloc((size_t)cells->count * 2 + 1, sizeof *x);
    if (x == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: out of memory");
    }
    for (uint32_t g = 0; g < half->group_count; g++) {
        struct eval_parabola fit;
        uint32_t count = study_effective_points(cells, half, g, x, x + cells->count);
        double kept[2];
        (void)study_group_kept_mass(cells->study, g, &kept[0], &kept[1]);
        if (eval_parabola_fit(x, x + cells->count, count, &fit)) {
            json_array_append_new(
                array,
                json_pack("{s:s, s:I, s:[o,o,o], s:o, s:o, s:[o,o]}", "group",
                          cells->study->groups[g].label, "cells", (json_int_t)count, "coefficients",
                          study_number(fit.c[0]), study_number(fit.c[1]), study_number(fit.c[2]),
                          "r2", study_number(fit.r2), "peak", study_number(fit.peak), "kept_mass",
                          study_number(kept[0]), study_number(kept[1])));
        }
    }
    free(x);
    return RL_OK;
}

/* --- the document ----------------------------------------------------------------------------- */

static json_t *new_array(json_t *document, const char *name)
{
    json_t *array = json_array();
    json_object_set_new(document, name, array);
    return array;
}

static void add_problems(json_t *document, const struct study *study)
{
    const struct count_table *table = study_counts(study);
    json_int_t halves[2] = {0};
    json_t *temperatures = new_array(document, "temperatures");
    for (uint32_t p = 0; p < table->problem_count && table->problems[p].set == 0; p++) {
        halves[table->problems[p].split]++;
    }
    for (uint32_t t = 0; t < table->temperature_count; t++) {
        json_array_append_new(temperatures, json_real(table->temperatures[t]));
    }
    json_object_set_new(document, "default_temperature", json_real(table->default_temperature));
    json_object_set_new(document, "samples", json_integer((json_int_t)study_samples(study)));
    json_object_set_new(document, "problems",
                        json_pack("{s:I, s:I}", "A", halves[0], "B", halves[1]));
}

static rl_status add_claims(json_t *document, const struct study_cells *cells,
                            const struct study_half_a *half)
{
    struct study_choice choice;
    RL_TRY(study_choose(half, &choice));
    struct claims claims = {cells, &choice, study_samples(cells->study)};
    struct study_ask ask = ask_b(1);
    rl_status status = add_trio(new_array(document, "claims"), &claims, &ask);
    if (status == RL_OK) {
        status = add_groups(new_array(document, "groups"), &claims);
    }
    if (status == RL_OK) {
        status = add_nulls(new_array(document, "null_cells"), &claims);
    }
    if (status == RL_OK) {
        status = add_classes(new_array(document, "difficulty"), &claims);
    }
    if (status == RL_OK) {
        status = add_guards(new_array(document, "guards"), &claims);
    }
    study_choice_fini(&choice);
    return status;
}

static rl_status add_measured(json_t *document, const struct study_cells *cells)
{
    struct study_half_a half;
    json_t *settings = NULL;
    add_problems(document, cells->study);
    json_object_set_new(document, "difficulty_measured", json_boolean(cells->classes_measured));
    RL_TRY(study_half_a_make(cells, &half));
    rl_status status = add_claims(document, cells, &half);
    if (status == RL_OK) {
        status = add_fits(new_array(document, "fits"), cells, &half);
    }
    study_half_a_fini(&half);
    RL_TRY(status);
    RL_TRY(study_settings_make(cells, &settings));
    json_object_set_new(document, "settings", settings);
    json_object_set_new(document, "cells", study_rows_make(cells));
    return RL_OK;
}

rl_status study_document_make(const struct study_cells *cells, json_t **out)
{
    const struct study *study = cells->study;
    json_t *document =
        json_pack("{s:s, s:s, s:o, s:o}", "name", study->name, "command", study->command, "spent",
                  study_spent_make(study), "failed", study_failures_make(study));
    if (document == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: out of memory");
    }
    json_t *settings = NULL;
    rl_status status = RL_OK;
    if (cells->count > 0) {
        status = add_measured(document, cells);
    } else {
        status = study_settings_make(cells, &settings);
        json_object_set_new(document, "settings", settings);
    }
    if (status != RL_OK) {
        json_decref(document);
        return status;
    }
    *out = document;
    return RL_OK;
}
