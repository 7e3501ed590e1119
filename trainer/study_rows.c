/* Tables of a sweep: every cell, every setting, what was spent, what failed. See study_report.h. */
#include "trainer/study_report.h"

#include "core/log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIGURES_MAX = 64, NAME_BYTES = 128 };

/* --- every cell ------------------------------------------------------------------------------- */

struct sums {
    double pass_at_1, pass_at_n, majority, tokens, logprob, kept_mass, truncated, samples;
    uint32_t problems;
};

static void add_problem(struct sums *s, const struct count_cell *cell)
{
    s->pass_at_1 += eval_pass_at_k(cell->samples, cell->correct, 1);
    s->pass_at_n += eval_pass_at_k(cell->samples, cell->correct, cell->samples);
    s->majority += cell->majority;
    s->tokens += (double)cell->tokens;
    s->logprob += cell->logprob;
    s->kept_mass += cell->kept_mass;
    s->truncated += cell->truncated;
    s->samples += cell->samples;
    s->problems++;
}

static void set_split(json_t *row, const char *split, const struct sums *s)
{
    static const char *const names[] = {"problems", "pass_at_1", "pass_at_n", "majority"};
    double values[] = {s->problems, s->pass_at_1 / s->problems, s->pass_at_n / s->problems,
                       s->majority / s->problems};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char name[NAME_BYTES];
        snprintf(name, sizeof name, "%s_%s", names[i], split);
        json_object_set_new(row, name,
                            i == 0 ? json_integer(s->problems) : study_number(values[i]));
    }
}

static json_t *row_of(const struct count_table *table, uint32_t t, uint32_t set)
{
    struct sums halves[2] = {{0}};
    for (uint32_t p = 0; p < table->problem_count; p++) {
        if (table->problems[p].set == set) {
            add_problem(&halves[table->problems[p].split], count_table_at(table, t, p));
        }
    }
    double samples = halves[0].samples + halves[1].samples;
    double tokens = halves[0].tokens + halves[1].tokens;
    json_t *row =
        json_pack("{s:f, s:o, s:o, s:o, s:o}", "t_eval", table->temperatures[t], "mean_tokens",
                  study_number(tokens / samples), "truncated",
                  study_number((halves[0].truncated + halves[1].truncated) / samples),
                  "nats_per_token", study_number(-(halves[0].logprob + halves[1].logprob) / tokens),
                  "kept_mass", study_number((halves[0].kept_mass + halves[1].kept_mass) / tokens));
    set_split(row, "A", &halves[0]);
    set_split(row, "B", &halves[1]);
    return row;
}

/* Whose rows they are: a trial's, or a base model's. */
struct row_owner {
    const struct study_trial *trial; /* NULL: a base */
    const char *name, *setting;
    double train_temperature;
};

static void add_rows(json_t *rows, const struct row_owner *owner, int64_t step,
                     const struct count_table *table)
{
    bool trial = owner->trial != NULL;
    const char *name = table->sets;
    for (uint32_t set = 0; *name != '\0'; set++) {
        size_t bytes = strcspn(name, "\n");
        for (uint32_t t = 0; t < table->temperature_count; t++) {
            json_t *row = row_of(table, t, set);
            json_t *more =
                json_pack("{s:s%, s:s, s:s, s:o, s:o, s:I}", "set", name, bytes, "trial",
                          owner->name, "setting", owner->setting, "seed",
                          trial ? json_integer(owner->trial->seed) : json_null(), "t_train",
                          trial ? json_real(owner->train_temperature) : json_null(), "step",
                          (json_int_t)step);
            (void)json_object_update(row, more);
            json_decref(more);
            json_array_append_new(rows, row);
        }
        name += bytes + (name[bytes] == '\n' ? 1 : 0);
    }
}

json_t *study_rows_make(const struct study_cells *cells)
{
    const struct study *study = cells->study;
    json_t *rows = json_array();
    for (uint32_t b = 0; b < study->base_count; b++) {
        struct row_owner owner = {.name = study->bases[b].name, .setting = study->bases[b].label};
        if (study->bases[b].counts != NULL) {
            add_rows(rows, &owner, 0, study->bases[b].counts);
        }
    }
    for (uint32_t i = 0; i < study->trial_count; i++) {
        const struct study_trial *trial = &study->trials[i];
        const struct study_setting *setting = &study->settings[trial->setting];
        struct row_owner owner = {trial, trial->name, setting->label, setting->train_temperature};
        for (uint32_t k = 0; k < trial->evaluation_count; k++) {
            add_rows(rows, &owner, trial->evaluations[k].step, trial->evaluations[k].counts);
        }
    }
    return rows;
}

static rl_status append_csv_value(struct rl_text *out, const json_t *value)
{
    if (json_is_integer(value)) {
        return rl_text_printf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    }
    if (json_is_real(value)) {
        return rl_text_printf(out, "%.10g", json_real_value(value));
    }
    if (!json_is_string(value)) {
        return RL_OK;
    }
    RL_TRY(rl_text_append_byte(out, '"'));
    for (const char *at = json_string_value(value); *at != '\0'; at++) {
        RL_TRY(*at == '"' ? rl_text_append_str(out, "\"\"") : rl_text_append_byte(out, *at));
    }
    return rl_text_append_byte(out, '"');
}

rl_status study_csv_append(struct rl_text *out, const json_t *rows)
{
    static const char *const columns[] = {
        "trial",       "setting",    "seed",           "step",        "t_train",
        "t_eval",      "set",        "problems_A",     "pass_at_1_A", "pass_at_n_A",
        "majority_A",  "problems_B", "pass_at_1_B",    "pass_at_n_B", "majority_B",
        "mean_tokens", "truncated",  "nats_per_token", "kept_mass"};
    size_t count = sizeof columns / sizeof *columns;
    for (size_t c = 0; c < count; c++) {
        RL_TRY(rl_text_printf(out, "%s%s", columns[c], c + 1 < count ? "," : "\n"));
    }
    for (size_t i = 0; i < json_array_size(rows); i++) {
        for (size_t c = 0; c < count; c++) {
            RL_TRY(append_csv_value(out, json_object_get(json_array_get(rows, i), columns[c])));
            RL_TRY(rl_text_append_byte(out, c + 1 < count ? ',' : '\n'));
        }
    }
    return RL_OK;
}

/* --- what was spent --------------------------------------------------------------------------- */

static double number_in(const json_t *object, const char *name)
{
    return json_number_value(json_object_get(object, name));
}

/* What trials drew from corpora: samples, and those that were made for it. A corpus knows which
 * trial made each of its parts, so that the sum over trials does not depend on who came first. */
struct corpus_sums {
    json_t *keys; /* a set */
    double samples, generated;
};

static void count_corpus(const struct study_trial *trial, struct corpus_sums *sums)
{
    const json_t *corpus = json_object_get(trial->summary, "corpus");
    const char *key = json_string_value(json_object_get(corpus, "key"));
    if (key != NULL) {
        sums->samples += number_in(corpus, "samples");
        sums->generated += number_in(corpus, "generated");
        json_object_set_new(sums->keys, key, json_true());
    }
}

static void count_evaluation(const struct count_table *table, double *samples, double *tokens)
{
    for (uint64_t i = 0; i < (uint64_t)table->problem_count * table->temperature_count; i++) {
        *samples += table->cells[i].samples;
        *tokens += (double)table->cells[i].tokens;
    }
}

json_t *study_spent_make(const struct study *study)
{
    struct corpus_sums corpora = {.keys = json_object()};
    double samples = 0;
    double tokens = 0;
    json_int_t states[4] = {0};
    static const char *const names[] = {"done", "failed", "stopped_early"};
    for (uint32_t b = 0; b < study->base_count; b++) {
        if (study->bases[b].counts != NULL) {
            count_evaluation(study->bases[b].counts, &samples, &tokens);
        }
    }
    for (uint32_t i = 0; i < study->trial_count; i++) {
        const struct study_trial *trial = &study->trials[i];
        int state = 0;
        while (state < 3 && strcmp(trial->state, names[state]) != 0) {
            state++;
        }
        states[state]++;
        count_corpus(trial, &corpora);
        for (uint32_t k = 0; k < trial->evaluation_count; k++) {
            count_evaluation(trial->evaluations[k].counts, &samples, &tokens);
        }
    }
    json_t *spent = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:I, s:I}", "trials",
        (json_int_t)study->trial_count, "settings", (json_int_t)study->setting_count, "done",
        states[0], "failed", states[1], "stopped_early", states[2], "not_ended", states[3],
        "corpora", (json_int_t)json_object_size(corpora.keys), "training_samples",
        (json_int_t)corpora.samples, "generated_samples", (json_int_t)corpora.generated,
        "served_share",
        study_number(corpora.samples > 0 ? 1 - corpora.generated / corpora.samples : NAN),
        "evaluation_samples", (json_int_t)samples, "evaluation_tokens", (json_int_t)tokens);
    json_decref(corpora.keys);
    return spent;
}

json_t *study_failures_make(const struct study *study)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < study->trial_count; i++) {
        const struct study_trial *trial = &study->trials[i];
        if (strcmp(trial->state, "failed") == 0) {
            json_array_append_new(
                list, json_pack("{s:s, s:s}", "trial", trial->name, "reason", trial->reason));
        }
    }
    return list;
}

/* --- settings beside each other --------------------------------------------------------------- */

struct figure_names {
    const char *items[FIGURES_MAX]; /* borrowed from the results */
    uint32_t count;
};

/* Numeric members of the results' summaries that vary or are there at all, in order of meeting. */
static void collect_names(const struct study *study, struct figure_names *names)
{
    for (uint32_t i = 0; i < study->trial_count; i++) {
        const char *key = NULL;
        json_t *value = NULL;
        json_object_foreach(json_object_get(study->trials[i].result, "summary"), key, value)
        {
            bool known = !json_is_number(value) || names->count == FIGURES_MAX;
            for (uint32_t n = 0; n < names->count && !known; n++) {
                known = strcmp(names->items[n], key) == 0;
            }
            if (!known) {
                names->items[names->count++] = key;
            }
        }
    }
}

/* Values of one figure over the seeds of a setting, done ones only. */
static uint32_t seed_figures(const struct study *study, uint32_t setting, const char *name,
                             double *values)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < study->trial_count; i++) {
        const struct study_trial *trial = &study->trials[i];
        const json_t *value = json_object_get(json_object_get(trial->result, "summary"), name);
        if (trial->setting == setting && strcmp(trial->state, "done") == 0 &&
            json_is_number(value)) {
            values[count++] = json_number_value(value);
        }
    }
    return count;
}

/* Pass rate of a setting over its seeds, and the difference from the first one. Nothing was chosen
 * by it, so all problems count. */
static rl_status set_pass(const struct study_cells *cells, uint32_t setting, uint32_t first,
                          double *values, json_t *object)
{
    struct study_ask ask = {.scope = {0, -1}, .k = 1, .difficulty = STUDY_ANY_CLASS};
    int32_t usual = study_default_temperature(cells->study);
    uint32_t t = usual >= 0 ? (uint32_t)usual : 0;
    int32_t cell = study_last_cell(cells, (int32_t)setting, t);
    int32_t reference = study_last_cell(cells, (int32_t)first, t);
    struct eval_interval pass;
    struct study_difference difference;
    uint32_t count = 0;
    if (cell < 0) {
        return RL_OK;
    }
    RL_TRY(study_seed_values(cells, (uint32_t)cell, &ask, values, &count));
    RL_TRY(eval_t_interval(values, count, &pass));
    json_object_set_new(object, "pass_at_1", study_interval(&pass));
    json_t *seeds = json_array();
    json_object_set_new(object, "over_seeds", seeds);
    for (uint32_t i = 0; i < count; i++) {
        json_array_append_new(seeds, json_real(values[i]));
    }
    if (reference >= 0 && setting != first) {
        RL_TRY(study_compare(cells, (uint32_t)reference, (uint32_t)cell, &ask, &difference));
        json_object_set_new(object, "difference",
                            json_pack("{s:o, s:o}", "problems",
                                      study_interval(&difference.problems), "seeds",
                                      study_interval(&difference.seeds)));
    }
    return RL_OK;
}

static rl_status add_setting(const struct study_cells *cells, uint32_t setting,
                             const struct figure_names *names, double *values, json_t *list)
{
    const struct study *study = cells->study;
    json_t *figures = json_object();
    json_t *object =
        json_pack("{s:s, s:o}", "setting", study->settings[setting].label, "figures", figures);
    json_array_append_new(list, object);
    for (uint32_t n = 0; n < names->count; n++) {
        struct eval_interval interval;
        uint32_t count = seed_figures(study, setting, names->items[n], values);
        if (count > 0 && eval_t_interval(values, count, &interval) == RL_OK) {
            json_object_set_new(figures, names->items[n], study_interval(&interval));
        }
    }
    return cells->count > 0 ? set_pass(cells, setting, 0, values, object) : RL_OK;
}

rl_status study_settings_make(const struct study_cells *cells, json_t **out)
{
    const struct study *study = cells->study;
    struct figure_names names = {.count = 0};
    json_t *list = json_array();
    double *values = calloc((size_t)study->trial_count + 1, sizeof *values);
    rl_status status = values != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "report: out of memory");
    collect_names(study, &names);
    for (uint32_t s = 0; s < study->setting_count && status == RL_OK; s++) {
        status = add_setting(cells, s, &names, values, list);
    }
    free(values);
    if (status != RL_OK) {
        json_decref(list);
        return status;
    }
    *out = list;
    return RL_OK;
}
