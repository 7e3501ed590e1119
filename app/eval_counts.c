/* See eval_counts.h. */
#include "app/eval_counts.h"

#include "core/log.h"
#include "core/text.h"
#include "rewards/answer_key.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 64, NAMES_LIMIT = 65536 };

/* --- sets and temperatures -------------------------------------------------------------------- */

/* File name without folders and ending: what a guard is called. */
static rl_status append_stem(struct rl_text *names, const char *path, size_t bytes)
{
    size_t start = bytes;
    while (start > 0 && path[start - 1] != '/') {
        start--;
    }
    size_t end = start;
    while (end < bytes && path[end] != '.') {
        end++;
    }
    return rl_text_append(names, path + start, end - start);
}

static rl_status add_set(const struct session *session, const char *paths, struct eval_sets *sets)
{
    const struct rl_config *config = session->config;
    if (sets->count == COUNT_SETS_MAX) {
        return rl_fail(RL_INVALID, "eval.guards: more than %d files", COUNT_SETS_MAX - 1);
    }
    RL_TRY(prompts_load(paths, config, session->tokenizer, session->chat,
                        &sets->prompts[sets->count]));
    uint64_t limit = prompts_count(sets->prompts[sets->count]);
    if (config->eval.limit > 0 && (uint64_t)config->eval.limit < limit) {
        limit = (uint64_t)config->eval.limit;
    }
    if (limit > UINT32_MAX - sets->problems) {
        return rl_fail(RL_INVALID, "%s: too many problems for one evaluation", paths);
    }
    sets->limits[sets->count] = limit;
    sets->first[sets->count++] = sets->problems;
    sets->problems += (uint32_t)limit;
    return RL_OK;
}

static rl_status add_guards(const struct session *session, struct eval_sets *sets,
                            struct rl_text *names)
{
    const char *at = session->config->eval.guards;
    while (*at != '\0') {
        size_t bytes = strcspn(at, ",");
        char *path = strndup(at, bytes);
        if (path == NULL) {
            return rl_fail(RL_NO_MEMORY, "eval.guards: out of memory");
        }
        rl_status status = bytes > 0 ? add_set(session, path, sets) : RL_OK;
        free(path);
        RL_TRY(status);
        if (bytes > 0) {
            RL_TRY(rl_text_append_byte(names, '\n'));
            RL_TRY(append_stem(names, at, bytes));
        }
        at += bytes + (at[bytes] == ',' ? 1 : 0);
    }
    return RL_OK;
}

rl_status eval_sets_open(const struct session *session, struct eval_sets *sets)
{
    struct rl_text names;
    size_t bytes = 0;
    *sets = (struct eval_sets){0};
    if (session->config->data.eval[0] == '\0') {
        return rl_fail(RL_INVALID, "data.eval is not set: the held-out problems");
    }
    rl_text_init(&names, NAMES_LIMIT);
    rl_status status = rl_text_append_str(&names, "eval");
    if (status == RL_OK) {
        status = add_set(session, session->config->data.eval, sets);
    }
    if (status == RL_OK) {
        status = add_guards(session, sets, &names);
    }
    if (status == RL_OK) {
        status = rl_text_take(&names, &sets->names, &bytes);
    }
    rl_text_fini(&names);
    return status;
}

void eval_sets_close(struct eval_sets *sets)
{
    for (uint32_t i = 0; i < COUNT_SETS_MAX; i++) {
        prompts_destroy(sets->prompts[i]);
    }
    free(sets->names);
    *sets = (struct eval_sets){0};
}

const char *eval_sets_name(const struct eval_sets *sets, uint32_t set, int *bytes)
{
    const char *name = sets->names;
    for (uint32_t i = 0; i < set; i++) {
        name += strcspn(name, "\n") + 1;
    }
    *bytes = (int)strcspn(name, "\n");
    return name;
}

static rl_status add_temperature(const char *text, size_t bytes, double *out, uint32_t *count)
{
    char number[NAME_BYTES];
    char *end = number;
    if (bytes < sizeof number) {
        memcpy(number, text, bytes);
        number[bytes] = '\0';
        out[*count] = strtod(number, &end);
    }
    if (end == number || *end != '\0' || !(out[*count] >= 0 && out[*count] <= 100)) {
        return rl_fail(RL_INVALID, "eval.temperatures: '%.*s' is not a number from 0 to 100",
                       (int)bytes, text);
    }
    for (uint32_t i = 0; i < *count; i++) {
        if (out[i] == out[*count]) {
            return rl_fail(RL_INVALID, "eval.temperatures: %s twice", number);
        }
    }
    (*count)++;
    return RL_OK;
}

rl_status eval_temperatures(const struct rl_config *config, double *out, uint32_t *count)
{
    const char *at = config->eval.temperatures;
    *count = 0;
    while (*at != '\0') {
        at += strspn(at, " ");
        size_t bytes = strcspn(at, ", ");
        if (*count == COUNT_TEMPERATURES_MAX) {
            return rl_fail(RL_INVALID, "eval.temperatures: more than %d", COUNT_TEMPERATURES_MAX);
        }
        RL_TRY(add_temperature(at, bytes, out, count));
        at += bytes;
        at += strspn(at, " ");
        at += *at == ',' ? 1 : 0;
    }
    if (*count == 0) {
        out[0] = config->eval.temperature;
        *count = 1;
    }
    return RL_OK;
}

/* --- difficulty classes ----------------------------------------------------------------------- */

struct class_names {
    char names[COUNT_CLASSES_MAX][NAME_BYTES];
    uint32_t count;
    bool too_many;
};

/* The row's field `difficulty` as text; "" if it has none. */
static void row_difficulty(const struct prompt *prompt, char out[NAME_BYTES])
{
    json_t *row = json_loads(prompt->row_json, 0, NULL);
    const json_t *value = json_object_get(row, "difficulty");
    out[0] = '\0';
    if (json_is_string(value)) {
        snprintf(out, NAME_BYTES, "%s", json_string_value(value));
        out[strcspn(out, "\n")] = '\0';
    } else if (json_is_number(value)) {
        snprintf(out, NAME_BYTES, "%g", json_number_value(value));
    }
    json_decref(row);
}

static int compare_classes(const void *left, const void *right)
{
    static const char *const known[] = {"easy", "medium", "hard"};
    const char *names[2] = {left, right};
    double ranks[2] = {0, 0};
    bool numbers = true;
    for (int i = 0; i < 2; i++) {
        char *end = NULL;
        ranks[i] = strtod(names[i], &end);
        numbers = numbers && end != names[i] && *end == '\0';
    }
    for (int i = 0; i < 2 && !numbers; i++) {
        ranks[i] = 3;
        for (int k = 0; k < 3; k++) {
            ranks[i] = strcmp(names[i], known[k]) == 0 ? k : ranks[i];
        }
    }
    if (ranks[0] != ranks[1]) {
        return ranks[0] < ranks[1] ? -1 : 1;
    }
    return strcmp(left, right);
}

static void add_class(struct class_names *classes, const char *name)
{
    for (uint32_t i = 0; i < classes->count; i++) {
        if (strcmp(classes->names[i], name) == 0) {
            return;
        }
    }
    if (name[0] == '\0' || classes->count == COUNT_CLASSES_MAX) {
        classes->too_many = classes->too_many || name[0] != '\0';
        return;
    }
    snprintf(classes->names[classes->count++], NAME_BYTES, "%s", name);
}

static uint8_t class_of(const struct class_names *classes, const char *name)
{
    for (uint32_t i = 0; i < classes->count; i++) {
        if (strcmp(classes->names[i], name) == 0) {
            return (uint8_t)i;
        }
    }
    return COUNT_NO_CLASS;
}

static rl_status join_classes(const struct class_names *classes, char **out)
{
    struct rl_text text;
    size_t bytes = 0;
    rl_text_init(&text, NAMES_LIMIT);
    rl_status status = RL_OK;
    for (uint32_t i = 0; i < classes->count && status == RL_OK; i++) {
        status = rl_text_printf(&text, "%s%s", i > 0 ? "\n" : "", classes->names[i]);
    }
    if (status == RL_OK) {
        status = rl_text_take(&text, out, &bytes);
    }
    rl_text_fini(&text);
    return status;
}

/* --- counting --------------------------------------------------------------------------------- */

static rl_status describe_problems(const struct eval_sets *sets, struct count_table *table)
{
    struct class_names classes = {.count = 0};
    char name[NAME_BYTES];
    for (uint64_t i = 0; i < sets->limits[0]; i++) {
        row_difficulty(prompts_at(sets->prompts[0], i), name);
        add_class(&classes, name);
    }
    if (classes.too_many) {
        rl_log(RL_LOG_WARN, "data.eval: more than %d values of difficulty; they are left aside",
               COUNT_CLASSES_MAX);
        classes.count = 0;
    }
    qsort(classes.names, classes.count, NAME_BYTES, compare_classes);
    for (uint32_t s = 0; s < sets->count; s++) {
        for (uint64_t i = 0; i < sets->limits[s]; i++) {
            const struct prompt *prompt = prompts_at(sets->prompts[s], i);
            struct count_problem *problem = &table->problems[sets->first[s] + i];
            row_difficulty(prompt, name);
            problem->id = count_problem_id(prompt->text, prompt->ground_truth);
            problem->set = s;
            problem->split = count_problem_split(problem->id);
            problem->difficulty = s == 0 ? class_of(&classes, name) : COUNT_NO_CLASS;
        }
    }
    return join_classes(&classes, &table->difficulties);
}

rl_status eval_counts_create(const struct rl_config *config, const struct eval_sets *sets,
                             const double *temperatures, uint32_t count, struct count_table **out)
{
    struct count_table *table = NULL;
    RL_TRY(count_table_create(sets->problems, count, &table));
    memcpy(table->temperatures, temperatures, count * sizeof *temperatures);
    table->seed = (uint64_t)config->run.seed;
    table->top_k = (uint64_t)config->eval.top_k;
    table->top_p = config->eval.top_p;
    table->default_temperature = config->eval.temperature;
    rl_status status = rl_text_copy(sets->names, &table->sets);
    if (status == RL_OK) {
        status = describe_problems(sets, table);
    }
    if (status != RL_OK) {
        count_table_destroy(table);
        return status;
    }
    *out = table;
    return RL_OK;
}

bool eval_sample_solved(const struct trajectory *sample)
{
    return sample->reward_valid && sample->accuracy >= 1;
}

/* Majority figure of a group: `keys` and `correct` are scratch [sample_count]. A right answer has
 * one key however it is written. */
static rl_status group_majority(const struct session *session, const struct trajectory_group *group,
                                uint64_t *keys, uint8_t *correct, double *out)
{
    for (uint32_t i = 0; i < group->sample_count; i++) {
        char *text = NULL;
        correct[i] = eval_sample_solved(&group->samples[i]);
        keys[i] = 1;
        if (correct[i] == 0) {
            RL_TRY(sample_set_text(session, &group->samples[i], &text));
            keys[i] = answer_key(text) | 2; /* never the right answers' key */
            free(text);
        }
    }
    *out = eval_majority(keys, correct, group->sample_count);
    return RL_OK;
}

static void count_group(const struct trajectory_group *group, struct count_cell *cell)
{
    cell->samples = group->sample_count;
    for (uint32_t i = 0; i < group->sample_count; i++) {
        const struct trajectory *sample = &group->samples[i];
        cell->correct += eval_sample_solved(sample);
        cell->unscorable += !sample->reward_valid;
        cell->finished += sample->finish == RL_FINISH_STOP;
        cell->truncated += sample->finish == RL_FINISH_LENGTH;
        cell->tokens += sample->completion_count;
        cell->kept_mass += (double)sample->kept_mass * sample->completion_count;
        for (uint32_t t = 0; t < sample->completion_count; t++) {
            cell->logprob += (double)sample->logprob[t];
        }
    }
}

rl_status eval_counts_fill(struct count_table *table, const struct session *session,
                           const struct sample_set *groups, uint32_t first, uint32_t temperature)
{
    uint32_t most = groups->count > 0 ? groups->groups[0]->sample_count : 0;
    uint64_t *keys = calloc((size_t)most + 1, sizeof *keys);
    uint8_t *correct = calloc((size_t)most + 1, sizeof *correct);
    rl_status status =
        keys != NULL && correct != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "eval: out of memory");
    for (uint64_t i = 0; i < groups->count && status == RL_OK; i++) {
        struct count_cell *cell = count_table_at(table, temperature, first + (uint32_t)i);
        count_group(groups->groups[i], cell);
        status = group_majority(session, groups->groups[i], keys, correct, &cell->majority);
    }
    free(keys);
    free(correct);
    return status;
}

/* --- figures ---------------------------------------------------------------------------------- */

static double mean_reward(const struct sample_set *set)
{
    double sum = 0;
    uint64_t valid = 0;
    for (uint64_t i = 0; i < set->count; i++) {
        for (uint32_t s = 0; s < set->groups[i]->sample_count; s++) {
            const struct trajectory *sample = &set->groups[i]->samples[s];
            sum += sample->reward_valid ? (double)sample->reward : 0;
            valid += sample->reward_valid ? 1 : 0;
        }
    }
    return valid > 0 ? sum / (double)valid : 0;
}

static rl_status intervals(const struct eval_problem *problems, const double *majority,
                           uint64_t seed, struct evaluation *e)
{
    RL_TRY(eval_pass_at_k_interval(problems, e->problems, 1, seed, &e->pass_at_1));
    RL_TRY(eval_pass_at_k_interval(problems, e->problems, e->samples, seed, &e->pass_at_n));
    return eval_mean_interval(majority, e->problems, seed, &e->majority);
}

rl_status eval_figures(const struct count_table *table, const struct sample_set *groups,
                       uint32_t first, uint32_t temperature, struct evaluation *out)
{
    uint32_t count = (uint32_t)groups->count;
    struct eval_problem *problems = calloc((size_t)count + 1, sizeof *problems);
    double *majority = calloc((size_t)count + 1, sizeof *majority);
    struct evaluation e = {.problems = count,
                           .samples = count_table_at(table, temperature, first)->samples,
                           .temperature = table->temperatures[temperature],
                           .reward = mean_reward(groups),
                           .wall_s = groups->wall_s,
                           .cpu_s = groups->cpu_s};
    double total = (double)count * e.samples;
    rl_status status =
        problems != NULL && majority != NULL ? RL_OK : rl_fail(RL_NO_MEMORY, "eval: out of memory");
    for (uint32_t i = 0; i < count && status == RL_OK; i++) {
        const struct count_cell *cell = count_table_at(table, temperature, first + i);
        problems[i] = (struct eval_problem){cell->samples, cell->correct};
        majority[i] = cell->majority;
        e.unscorable += cell->unscorable;
        e.length += (double)cell->tokens / total;
        e.truncated += cell->truncated / total;
    }
    e.tokens_per_second = e.wall_s > 0 ? groups->sampled_tokens / e.wall_s : 0;
    if (status == RL_OK) {
        status = intervals(problems, majority, table->seed, &e);
    }
    free(problems);
    free(majority);
    if (status == RL_OK) {
        *out = e;
    }
    return status;
}

static int set_interval(json_t *object, const char *name, uint32_t k,
                        const struct eval_interval *value)
{
    char key[48];
    char bounds[56];
    snprintf(key, sizeof key, "%s@%u", name, k);
    snprintf(bounds, sizeof bounds, "%s_ci95", key);
    int failed = json_object_set_new(object, key, json_real(value->mean));
    return failed |
           json_object_set_new(object, bounds, json_pack("[f,f]", value->low, value->high));
}

json_t *eval_figures_json(const struct evaluation *e)
{
    char avg[32];
    json_t *object = json_object();
    int failed = set_interval(object, "pass", 1, &e->pass_at_1);
    snprintf(avg, sizeof avg, "avg@%u", e->samples);
    failed |= json_object_set_new(object, avg, json_real(e->pass_at_1.mean));
    if (e->samples > 1) {
        failed |= set_interval(object, "pass", e->samples, &e->pass_at_n);
        failed |= set_interval(object, "maj", e->samples, &e->majority);
    }
    json_t *rest = json_pack("{s:f, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f}", "temperature",
                             e->temperature, "problems", (json_int_t)e->problems, "samples",
                             (json_int_t)e->samples, "unscorable", (json_int_t)e->unscorable,
                             "reward", e->reward, "mean_length", e->length, "truncated",
                             e->truncated, "tokens_per_second", e->tokens_per_second,
                             "wall_seconds", e->wall_s, "cpu_seconds", e->cpu_s);
    failed |= json_object_update(object, rest);
    json_decref(rest);
    if (failed != 0) {
        json_decref(object);
        return NULL;
    }
    return object;
}
