/* See study_cells.h. */
#include "trainer/study_cells.h"

#include "core/log.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TERCILES = 3 };

/* --- cells ------------------------------------------------------------------------------------ */

static const struct count_table *counts_at(const struct study_trial *trial, int64_t step)
{
    if (step == STUDY_LAST && trial->evaluation_count > 0) {
        return trial->evaluations[trial->evaluation_count - 1].counts;
    }
    for (uint32_t i = 0; i < trial->evaluation_count; i++) {
        if (trial->evaluations[i].step == step) {
            return trial->evaluations[i].counts;
        }
    }
    return NULL;
}

static uint32_t seeds_at(const struct study *study, uint32_t setting, int64_t step)
{
    uint32_t seeds = 0;
    for (uint32_t i = 0; i < study->trial_count; i++) {
        const struct study_trial *trial = &study->trials[i];
        seeds += trial->setting == setting && counts_at(trial, step) != NULL ? 1 : 0;
    }
    return seeds;
}

/* The smallest evaluated step of a setting above `after` that is not its trial's last; then
 * STUDY_LAST, then -1. */
static int64_t next_step(const struct study *study, uint32_t setting, int64_t after)
{
    int64_t next = -1;
    bool any = false;
    for (uint32_t i = 0; i < study->trial_count; i++) {
        const struct study_trial *trial = &study->trials[i];
        bool of_setting = trial->setting == setting;
        any = any || (of_setting && trial->evaluation_count > 0);
        for (uint32_t k = 0; of_setting && k + 1 < trial->evaluation_count; k++) {
            int64_t step = trial->evaluations[k].step;
            next = step > after && (next < 0 || step < next) ? step : next;
        }
    }
    return next >= 0 || !any || after == STUDY_LAST ? next : STUDY_LAST;
}

int64_t study_cell_step(const struct study_cells *cells, uint32_t cell)
{
    const struct study_cell *c = &cells->items[cell];
    int64_t step = c->step == STUDY_LAST ? 0 : c->step;
    for (uint32_t i = 0; i < cells->study->trial_count && c->step == STUDY_LAST; i++) {
        const struct study_trial *trial = &cells->study->trials[i];
        if ((int32_t)trial->setting == c->setting && trial->evaluation_count > 0) {
            int64_t last = trial->evaluations[trial->evaluation_count - 1].step;
            step = last > step ? last : step;
        }
    }
    return step;
}

/* Add the cells of one checkpoint; items NULL: only count them. */
static void add_cells(struct study_cells *cells, struct study_cell cell)
{
    uint32_t temperatures = study_counts(cells->study)->temperature_count;
    for (uint32_t t = 0; t < temperatures; t++) {
        cell.temperature = t;
        if (cells->items != NULL) {
            cells->items[cells->count] = cell;
        }
        cells->count++;
    }
}

static void enumerate(struct study_cells *cells)
{
    const struct study *study = cells->study;
    cells->count = 0;
    for (uint32_t b = 0; b < study->base_count; b++) {
        if (study->bases[b].counts != NULL) {
            add_cells(cells, (struct study_cell){.setting = STUDY_BASE - (int32_t)b,
                                                 .step = STUDY_LAST,
                                                 .seeds = 1});
        }
    }
    for (uint32_t s = 0; s < study->setting_count; s++) {
        for (int64_t step = next_step(study, s, -1); step >= 0; step = next_step(study, s, step)) {
            add_cells(cells, (struct study_cell){.setting = (int32_t)s,
                                                 .step = step,
                                                 .seeds = seeds_at(study, s, step)});
        }
    }
}

/* --- difficulty ------------------------------------------------------------------------------- */

struct ranked {
    double rate;
    uint64_t id;
    uint32_t problem;
};

static int compare_ranked(const void *left, const void *right)
{
    const struct ranked *a = left;
    const struct ranked *b = right;
    if (a->rate != b->rate) {
        return a->rate > b->rate ? -1 : 1;
    }
    return (a->id > b->id) - (a->id < b->id);
}

static void add_rates(const struct count_table *counts, struct ranked *ranks)
{
    for (uint32_t p = 0; p < counts->problem_count; p++) {
        for (uint32_t t = 0; t < counts->temperature_count; t++) {
            const struct count_cell *cell = count_table_at(counts, t, p);
            ranks[p].rate += (double)cell->correct / cell->samples;
        }
    }
}

/* Terciles of the pass rate over the base and all trials together: no single model's luck decides
 * the class of a problem, which would make that model look better or worse than it is. */
static rl_status measure_classes(struct study_cells *cells, const struct count_table *table)
{
    static const char *const names[TERCILES] = {"easy", "medium", "hard"};
    struct ranked *ranks = calloc(table->problem_count, sizeof *ranks);
    if (ranks == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: out of memory");
    }
    uint32_t count = 0;
    for (uint32_t p = 0; p < table->problem_count; p++) {
        ranks[p] = (struct ranked){0, table->problems[p].id, p};
        count += table->problems[p].set == 0 ? 1 : 0; /* the first ones: problems are in order */
    }
    for (uint32_t b = 0; b < cells->study->base_count; b++) {
        if (cells->study->bases[b].counts != NULL) {
            add_rates(cells->study->bases[b].counts, ranks);
        }
    }
    for (uint32_t i = 0; i < cells->study->trial_count; i++) {
        const struct study_trial *trial = &cells->study->trials[i];
        for (uint32_t k = 0; k < trial->evaluation_count; k++) {
            add_rates(trial->evaluations[k].counts, ranks);
        }
    }
    qsort(ranks, count, sizeof *ranks, compare_ranked);
    for (uint32_t i = 0; i < count; i++) {
        cells->classes[ranks[i].problem] = (uint8_t)((uint64_t)i * TERCILES / count);
    }
    for (int i = 0; i < TERCILES; i++) {
        snprintf(cells->class_names[i], sizeof cells->class_names[i], "%s", names[i]);
    }
    cells->class_count = TERCILES;
    cells->classes_measured = true;
    free(ranks);
    return RL_OK;
}

static rl_status make_classes(struct study_cells *cells, const struct count_table *table)
{
    cells->classes = calloc(table->problem_count, 1);
    if (cells->classes == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: out of memory");
    }
    if (table->difficulties[0] == '\0') {
        return measure_classes(cells, table);
    }
    const char *at = table->difficulties;
    while (*at != '\0' && cells->class_count < COUNT_CLASSES_MAX) {
        int bytes = (int)strcspn(at, "\n");
        snprintf(cells->class_names[cells->class_count++], sizeof cells->class_names[0], "%.*s",
                 bytes, at);
        at += bytes + (at[bytes] == '\n' ? 1 : 0);
    }
    for (uint32_t p = 0; p < table->problem_count; p++) {
        cells->classes[p] = table->problems[p].difficulty;
    }
    return RL_OK;
}

rl_status study_cells_make(const struct study *study, struct study_cells *out)
{
    const struct count_table *table = study_counts(study);
    struct study_cells cells = {.study = study};
    if (table == NULL) {
        *out = cells;
        return RL_OK;
    }
    enumerate(&cells);
    cells.items = calloc(cells.count, sizeof *cells.items);
    if (cells.items == NULL) {
        return rl_fail(RL_NO_MEMORY, "report: no memory for %" PRIu32 " cells", cells.count);
    }
    enumerate(&cells);
    rl_status status = make_classes(&cells, table);
    if (status != RL_OK) {
        study_cells_fini(&cells);
        return status;
    }
    *out = cells;
    return RL_OK;
}

void study_cells_fini(struct study_cells *cells)
{
    free(cells->items);
    free(cells->classes);
    *cells = (struct study_cells){0};
}

/* --- split A ---------------------------------------------------------------------------------- */

int32_t study_default_temperature(const struct study *study)
{
    const struct count_table *table = study_counts(study);
    return table != NULL ? eval_find_temperature(table, table->default_temperature) : STUDY_NONE;
}

uint32_t study_cell_base(const struct study_cells *cells, uint32_t cell)
{
    int32_t setting = cells->items[cell].setting;
    return setting < 0 ? (uint32_t)(STUDY_BASE - setting) : cells->study->settings[setting].base;
}

int32_t study_base_default(const struct study_cells *cells, uint32_t base)
{
    int32_t usual = study_default_temperature(cells->study);
    return usual >= 0 ? study_last_cell(cells, STUDY_BASE - (int32_t)base, (uint32_t)usual)
                      : STUDY_NONE;
}

rl_status study_half_a_make(const struct study_cells *cells, struct study_half_a *out)
{
    static const struct study_ask ask = {
        .scope = {0, COUNT_SPLIT_A}, .k = 1, .difficulty = STUDY_ANY_CLASS};
    struct study_half_a half = {.count = cells->count,
                                .group_count = cells->study->group_count,
                                .base_count = cells->study->base_count};
    half.score = calloc((size_t)cells->count + 1, sizeof *half.score);
    half.group = calloc((size_t)cells->count + 1, sizeof *half.group);
    rl_status status = half.score != NULL && half.group != NULL
                           ? RL_OK
                           : rl_fail(RL_NO_MEMORY, "report: out of memory");
    for (uint32_t c = 0; c < cells->count && status == RL_OK; c++) {
        uint32_t count = 0;
        const struct study_cell *cell = &cells->items[c];
        status = study_mean(cells, c, &ask, &half.score[c], &count);
        if (status == RL_OK && count == 0) {
            status = rl_fail(RL_INVALID, "report: no problem falls into split A");
        }
        half.group[c] = cell->setting < 0 ? cell->setting
                                          : (int32_t)cells->study->settings[cell->setting].group;
    }
    if (status != RL_OK) {
        study_half_a_fini(&half);
        return status;
    }
    *out = half;
    return RL_OK;
}

void study_half_a_fini(struct study_half_a *half)
{
    free(half->score);
    free(half->group);
    *half = (struct study_half_a){0};
}

/* Keep the better of a cell and the best so far. */
static void keep_best(const struct study_half_a *half, uint32_t cell, int32_t *best)
{
    if (*best == STUDY_NONE || half->score[cell] > half->score[*best]) {
        *best = (int32_t)cell;
    }
}

rl_status study_choose(const struct study_half_a *half, struct study_choice *out)
{
    struct study_choice choice = {
        .winner = STUDY_NONE, .group_count = half->group_count, .base_count = half->base_count};
    choice.of_group = calloc((size_t)half->group_count + 1, sizeof *choice.of_group);
    choice.base_tuned = calloc((size_t)half->base_count + 1, sizeof *choice.base_tuned);
    if (choice.of_group == NULL || choice.base_tuned == NULL) {
        study_choice_fini(&choice);
        return rl_fail(RL_NO_MEMORY, "report: out of memory");
    }
    for (uint32_t g = 0; g < half->group_count; g++) {
        choice.of_group[g] = STUDY_NONE;
    }
    for (uint32_t b = 0; b < half->base_count; b++) {
        choice.base_tuned[b] = STUDY_NONE;
    }
    for (uint32_t c = 0; c < half->count; c++) {
        if (half->group[c] < 0) {
            keep_best(half, c, &choice.base_tuned[STUDY_BASE - half->group[c]]);
            continue;
        }
        keep_best(half, c, &choice.winner);
        keep_best(half, c, &choice.of_group[half->group[c]]);
    }
    *out = choice;
    return RL_OK;
}

void study_choice_fini(struct study_choice *choice)
{
    free(choice->of_group);
    free(choice->base_tuned);
    *choice = (struct study_choice){0};
}

/* --- figures ---------------------------------------------------------------------------------- */

uint32_t study_samples(const struct study *study)
{
    const struct count_table *table = study_counts(study);
    uint32_t samples = UINT32_MAX;
    for (uint32_t p = 0; table != NULL && p < table->problem_count; p++) {
        uint32_t found = count_table_at(table, 0, p)->samples;
        samples = found < samples ? found : samples;
    }
    return table != NULL ? samples : 0;
}

int32_t study_last_cell(const struct study_cells *cells, int32_t setting, uint32_t temperature)
{
    for (uint32_t c = 0; c < cells->count; c++) {
        const struct study_cell *cell = &cells->items[c];
        if (cell->setting == setting && cell->step == STUDY_LAST &&
            cell->temperature == temperature) {
            return (int32_t)c;
        }
    }
    return STUDY_NONE;
}

/* Values of one table in the class asked for. */
static rl_status table_values(const struct study_cells *cells, const struct count_table *table,
                              const struct study_ask *ask, uint32_t temperature, double *values,
                              uint32_t *count)
{
    struct eval_pick pick = {ask->scope, ask->figure, temperature, ask->k};
    RL_TRY(eval_counts_values(table, &pick, values, count));
    if (ask->difficulty == STUDY_ANY_CLASS) {
        return RL_OK;
    }
    uint32_t in_scope = 0;
    uint32_t kept = 0;
    for (uint32_t p = 0; p < table->problem_count; p++) {
        if (eval_scope_has(&ask->scope, &table->problems[p])) {
            if (cells->classes[p] == ask->difficulty) {
                values[kept++] = values[in_scope];
            }
            in_scope++;
        }
    }
    *count = kept;
    return RL_OK;
}

/* The counts behind a cell: number `index` of them; NULL beyond the last. */
static const struct count_table *cell_counts(const struct study_cells *cells, uint32_t cell,
                                             uint32_t index)
{
    const struct study_cell *c = &cells->items[cell];
    if (c->setting < 0) {
        return index == 0 ? cells->study->bases[STUDY_BASE - c->setting].counts : NULL;
    }
    for (uint32_t i = 0; i < cells->study->trial_count; i++) {
        const struct study_trial *trial = &cells->study->trials[i];
        const struct count_table *counts =
            trial->setting == (uint32_t)c->setting ? counts_at(trial, c->step) : NULL;
        if (counts != NULL && index-- == 0) {
            return counts;
        }
    }
    return NULL;
}

rl_status study_values(const struct study_cells *cells, uint32_t cell, const struct study_ask *ask,
                       double *values, uint32_t *count)
{
    uint32_t room = study_counts(cells->study)->problem_count;
    double *one = calloc(room, sizeof *one);
    uint32_t seeds = 0;
    rl_status status = one != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "report: out of memory");
    memset(values, 0, room * sizeof *values);
    *count = 0;
    while (status == RL_OK) {
        const struct count_table *table = cell_counts(cells, cell, seeds);
        if (table == NULL) {
            break;
        }
        status = table_values(cells, table, ask, cells->items[cell].temperature, one, count);
        for (uint32_t p = 0; p < *count && status == RL_OK; p++) {
            values[p] += one[p];
        }
        seeds++;
    }
    for (uint32_t p = 0; p < *count && seeds > 0; p++) {
        values[p] /= seeds;
    }
    free(one);
    return status;
}

rl_status study_seed_values(const struct study_cells *cells, uint32_t cell,
                            const struct study_ask *ask, double *values, uint32_t *count)
{
    double *one = calloc(study_counts(cells->study)->problem_count, sizeof *one);
    rl_status status = one != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "report: out of memory");
    *count = 0;
    while (status == RL_OK) {
        uint32_t problems = 0;
        const struct count_table *table = cell_counts(cells, cell, *count);
        if (table == NULL) {
            break;
        }
        status = table_values(cells, table, ask, cells->items[cell].temperature, one, &problems);
        values[*count] = 0;
        for (uint32_t p = 0; p < problems && status == RL_OK; p++) {
            values[*count] += one[p] / problems;
        }
        (*count)++;
    }
    free(one);
    return status;
}

rl_status study_mean(const struct study_cells *cells, uint32_t cell, const struct study_ask *ask,
                     double *mean, uint32_t *count)
{
    double *values = calloc(study_counts(cells->study)->problem_count, sizeof *values);
    rl_status status = values != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "report: out of memory");
    if (status == RL_OK) {
        status = study_values(cells, cell, ask, values, count);
    }
    double sum = 0;
    for (uint32_t p = 0; p < *count && status == RL_OK; p++) {
        sum += values[p];
    }
    *mean = *count > 0 ? sum / *count : NAN;
    free(values);
    return status;
}

rl_status study_figure(const struct study_cells *cells, uint32_t cell, const struct study_ask *ask,
                       struct eval_interval *out, uint32_t *count)
{
    const struct count_table *table = study_counts(cells->study);
    double *values = calloc(table->problem_count, sizeof *values);
    rl_status status = values != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "report: out of memory");
    if (status == RL_OK) {
        status = study_values(cells, cell, ask, values, count);
    }
    *out = (struct eval_interval){NAN, NAN, NAN};
    if (status == RL_OK && *count > 0) {
        status = eval_mean_interval(values, *count, table->seed, out);
    }
    free(values);
    return status;
}

/* Were two cells made from the same seeds, one by one? */
static bool same_seeds(const struct study_cells *cells, uint32_t left, uint32_t right)
{
    const struct study_cell *cell[2] = {&cells->items[left], &cells->items[right]};
    const struct study *study = cells->study;
    uint32_t at[2] = {0};
    while (cell[0]->setting >= 0 && cell[1]->setting >= 0) {
        for (int side = 0; side < 2; side++) {
            while (at[side] < study->trial_count &&
                   (study->trials[at[side]].setting != (uint32_t)cell[side]->setting ||
                    counts_at(&study->trials[at[side]], cell[side]->step) == NULL)) {
                at[side]++;
            }
        }
        bool ended[2] = {at[0] >= study->trial_count, at[1] >= study->trial_count};
        if (ended[0] || ended[1]) {
            return ended[0] && ended[1];
        }
        if (study->trials[at[0]++].seed != study->trials[at[1]++].seed) {
            return false;
        }
    }
    return false;
}

/* Student's t over seeds of right - left; of right against left's mean where they cannot be paired.
 */
static rl_status compare_seeds(const struct study_cells *cells, uint32_t left, uint32_t right,
                               const struct study_ask *ask, struct eval_interval *out)
{
    uint32_t trials = cells->study->trial_count + 1;
    double *a = calloc((size_t)trials * 2, sizeof *a);
    double *b = a != NULL ? a + trials : NULL;
    uint32_t counts[2] = {0};
    rl_status status = a != NULL ? study_seed_values(cells, left, ask, a, &counts[0])
                                 : rl_fail(RL_NO_MEMORY, "report: out of memory");
    if (status == RL_OK) {
        status = study_seed_values(cells, right, ask, b, &counts[1]);
    }
    double mean = 0;
    for (uint32_t i = 0; i < counts[0]; i++) {
        mean += a[i] / counts[0];
    }
    for (uint32_t i = 0; i < counts[1]; i++) {
        b[i] -= same_seeds(cells, left, right) ? a[i] : mean;
    }
    if (status == RL_OK) {
        status = eval_t_interval(b, counts[1], out);
    }
    free(a);
    return status;
}

rl_status study_compare(const struct study_cells *cells, uint32_t left, uint32_t right,
                        const struct study_ask *ask, struct study_difference *out)
{
    const struct count_table *table = study_counts(cells->study);
    double *values = calloc((size_t)table->problem_count * 2, sizeof *values);
    double *others = values != NULL ? values + table->problem_count : NULL;
    uint32_t count = 0;
    struct study_difference difference = {{NAN, NAN, NAN}, {NAN, NAN, NAN}};
    rl_status status = values != NULL ? study_values(cells, left, ask, values, &count)
                                      : rl_fail(RL_NO_MEMORY, "report: out of memory");
    if (status == RL_OK) {
        status = study_values(cells, right, ask, others, &count);
    }
    if (status == RL_OK && count > 0) {
        status = eval_paired_interval(values, others, count, table->seed, &difference.problems);
    }
    if (status == RL_OK && count > 0) {
        status = compare_seeds(cells, left, right, ask, &difference.seeds);
    }
    free(values);
    *out = difference;
    return status;
}
