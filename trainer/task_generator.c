/* The task generator: see task_generator.h. Owns the splits and the files; each task's problems are
 * its own file's business. Invariant: a problem of eval.jsonl is in no other file; this is checked
 * again after all were drawn. */
#include "trainer/task_generator.h"

#include "core/log.h"
#include "trainer/task_problem.h"
#include "transport/atomic_file.h"

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { ATTEMPTS_MAX = 100000, ROWS_MAX = 100000000 };

/* Streams of the seed. */
enum { STREAM_EVAL = 1, STREAM_TRAIN, STREAM_SFT };

static const struct task_ops *const tasks[] = {&task_chain_ops, &task_countdown_ops};

/* --- a set of prompts
 * -------------------------------------------------------------------------------- */

struct prompt_set {
    char **slots; /* [capacity], owned strings or NULL; open addressing */
    size_t capacity;
    size_t count;
};

static uint64_t prompt_hash(const char *text)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325); /* FNV-1a */
    for (; *text != '\0'; text++) {
        hash = (hash ^ (unsigned char)*text) * UINT64_C(0x100000001b3);
    }
    return hash ^ (hash >> 32);
}

static rl_status set_init(struct prompt_set *set, uint64_t most)
{
    size_t capacity = 16;
    while (capacity < most * 2) {
        capacity *= 2;
    }
    *set = (struct prompt_set){calloc(capacity, sizeof(*set->slots)), capacity, 0};
    if (set->slots == NULL) {
        return rl_fail(RL_NO_MEMORY, "set of %llu problems", (unsigned long long)most);
    }
    return RL_OK;
}

static void set_fini(struct prompt_set *set)
{
    for (size_t i = 0; i < set->capacity && set->slots != NULL; i++) {
        free(set->slots[i]);
    }
    free(set->slots);
}

/* Slot of the text, or the empty one where it would go. */
static char **set_slot(const struct prompt_set *set, const char *text)
{
    size_t at = (size_t)prompt_hash(text) & (set->capacity - 1);
    while (set->slots[at] != NULL && strcmp(set->slots[at], text) != 0) {
        at = (at + 1) & (set->capacity - 1);
    }
    return &set->slots[at];
}

static bool set_has(const struct prompt_set *set, const char *text)
{
    return *set_slot(set, text) != NULL;
}

static rl_status set_add(struct prompt_set *set, const char *text)
{
    char **slot = set_slot(set, text);
    *slot = strdup(text);
    if (*slot == NULL) {
        return rl_fail(RL_NO_MEMORY, "problem \"%s\"", text);
    }
    set->count++;
    return RL_OK;
}

/* --- options
 * -------------------------------------------------------------------------------------------- */

static const struct task_ops *find_task(const char *name)
{
    for (size_t i = 0; i < sizeof(tasks) / sizeof(tasks[0]); i++) {
        if (strcmp(tasks[i]->name, name) == 0) {
            return tasks[i];
        }
    }
    return NULL;
}

rl_status task_options_default(const char *name, struct task_options *options)
{
    const struct task_ops *task = find_task(name);
    if (task == NULL) {
        return rl_fail(RL_INVALID, "no task \"%s\"; expected chain or countdown", name);
    }
    *options = (struct task_options){.name = task->name,
                                     .seed = 1,
                                     .train_count = 20000,
                                     .eval_count = 500,
                                     .sft_count = 60000,
                                     .chain_fraction = 0.4,
                                     .noise = 0.0,
                                     .operands_min = 3,
                                     .operands_max = task == &task_chain_ops ? 6 : 4,
                                     .modulus = 10,
                                     .number_max = 20,
                                     .target_max = 99,
                                     .operators = "+-*"};
    return RL_OK;
}

static rl_status check_count(const char *what, uint64_t count)
{
    return count >= 1 && count <= ROWS_MAX
               ? RL_OK
               : rl_fail(RL_INVALID, "task: --%s %llu; expected 1 to %d rows", what,
                         (unsigned long long)count, ROWS_MAX);
}

static rl_status check_share(const char *what, double share)
{
    return share >= 0.0 && share <= 1.0
               ? RL_OK
               : rl_fail(RL_INVALID, "task: --%s %g; expected 0 to 1", what, share);
}

static rl_status check_options(const struct task_options *options, const struct task_ops *task)
{
    RL_TRY(check_count("train", options->train_count));
    RL_TRY(check_count("eval", options->eval_count));
    RL_TRY(check_count("sft", options->sft_count));
    RL_TRY(check_share("chain-fraction", options->chain_fraction));
    RL_TRY(check_share("noise", options->noise));
    RL_TRY(task->check(options));
    uint64_t larger =
        options->train_count > options->sft_count ? options->train_count : options->sft_count;
    double wanted = (double)(options->eval_count + larger);
    double space = task->space(options);
    if (wanted > space * 0.9) {
        return rl_fail(RL_INVALID,
                       "task %s: about %.0f distinct problems exist with these options, %.0f are "
                       "wanted; raise the number of operands or ask for fewer rows",
                       task->name, space, wanted);
    }
    return RL_OK;
}

/* --- rows
 * ------------------------------------------------------------------------------------------------
 */

struct split {
    const char *file;
    uint64_t count;
    uint64_t stream;
    bool demonstrations;
    struct prompt_set prompts; /* what this file holds */
};

struct generator {
    const struct task_options *options;
    const struct task_ops *task;
    const char *dir;
    struct split eval;
    struct split train;
    struct split sft;
    struct task_report report;
};

static json_t *problem_row(const struct generator *generator, const struct task_problem *problem)
{
    json_t *row = json_pack("{s:s,s:s,s:s}", "prompt", problem->prompt, "answer", problem->answer,
                            "data_source", generator->task->name);
    int failed = row == NULL;
    if (problem->number_count > 0 && !failed) {
        json_t *numbers = json_array();
        for (int i = 0; i < problem->number_count && !failed; i++) {
            failed = json_array_append_new(numbers, json_integer(problem->numbers[i]));
        }
        failed = json_object_set_new(row, "numbers", numbers) || failed ||
                 json_object_set_new(row, "target", json_integer(problem->target)) ||
                 json_object_set_new(row, "solution", json_string(problem->solution));
    }
    if (failed) {
        json_decref(row);
        return NULL;
    }
    return row;
}

/* One demonstration; counts what it is. */
static json_t *demonstration_row(struct generator *generator, const struct task_problem *problem,
                                 struct rl_rng *rng)
{
    struct task_report *report = &generator->report;
    bool chain = rl_rng_next_uniform(rng) < generator->options->chain_fraction;
    const char *completion = chain ? problem->chain : problem->guess;
    report->sft_chains += chain;
    report->sft_in_train += set_has(&generator->train.prompts, problem->prompt);
    report->sft_tokens += strlen(problem->prompt) + strlen(completion);
    report->prompt_tokens += (double)strlen(problem->prompt);
    *(chain ? &report->chain_tokens : &report->guess_tokens) += (double)strlen(completion);
    return json_pack("{s:s,s:s}", "prompt", problem->prompt, "completion", completion);
}

static rl_status write_row(struct atomic_file *file, json_t *row)
{
    char *text = row != NULL ? json_dumps(row, JSON_COMPACT) : NULL;
    json_decref(row);
    if (text == NULL) {
        return rl_fail(RL_NO_MEMORY, "row of a task");
    }
    rl_status status = atomic_file_write(file, text, strlen(text));
    free(text);
    RL_TRY(status);
    return atomic_file_write(file, "\n", 1);
}

/* Draw until the problem is new to the split and not held out. */
static rl_status draw_new(const struct generator *generator, const struct split *split,
                          struct rl_rng *rng, struct task_problem *problem)
{
    for (int attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
        generator->task->draw(generator->options, rng, problem);
        if (!set_has(&generator->eval.prompts, problem->prompt) &&
            !set_has(&split->prompts, problem->prompt)) {
            return RL_OK;
        }
    }
    return rl_fail(RL_INVALID,
                   "task %s: no new problem for %s in %d draws after %zu rows; there are too few "
                   "distinct problems: raise the number of operands or ask for fewer rows",
                   generator->task->name, split->file, ATTEMPTS_MAX, split->prompts.count);
}

static rl_status write_rows(struct generator *generator, struct split *split,
                            struct atomic_file *file)
{
    struct rl_rng rng = rl_rng_make(generator->options->seed, split->stream);
    for (uint64_t i = 0; i < split->count; i++) {
        struct task_problem problem = {.prompt = ""};
        RL_TRY(draw_new(generator, split, &rng, &problem));
        RL_TRY(set_add(&split->prompts, problem.prompt));
        RL_TRY(write_row(file, split->demonstrations ? demonstration_row(generator, &problem, &rng)
                                                     : problem_row(generator, &problem)));
    }
    return RL_OK;
}

static rl_status write_split(struct generator *generator, struct split *split)
{
    char path[PATH_MAX];
    struct atomic_file *file = NULL;
    int bytes = snprintf(path, sizeof(path), "%s/%s", generator->dir, split->file);
    if (bytes < 0 || (size_t)bytes >= sizeof(path)) {
        return rl_fail(RL_TOO_LONG, "path of %s in %s", split->file, generator->dir);
    }
    RL_TRY(atomic_file_open(path, &file));
    rl_status status = write_rows(generator, split, file);
    if (status != RL_OK) {
        atomic_file_abort(file);
        return status;
    }
    return atomic_file_commit(file);
}

static rl_status check_disjoint(const struct prompt_set *held_out, const struct prompt_set *other)
{
    for (size_t i = 0; i < held_out->capacity; i++) {
        if (held_out->slots[i] != NULL && set_has(other, held_out->slots[i])) {
            return rl_fail(RL_INTERNAL, "task: held-out problem \"%s\" is in a training file",
                           held_out->slots[i]);
        }
    }
    return RL_OK;
}

/* --- the whole
 * -----------------------------------------------------------------------------------------------
 */

/* Make the folder and those above it. */
static rl_status make_folders(const char *dir)
{
    char path[PATH_MAX];
    size_t bytes = strlen(dir);
    if (bytes == 0 || bytes >= sizeof(path)) {
        return rl_fail(RL_INVALID,
                       "task: output folder \"%.64s\"; expected a path of 1 to %d bytes", dir,
                       PATH_MAX - 1);
    }
    for (size_t i = 1; i <= bytes; i++) {
        if (dir[i] != '/' && dir[i] != '\0') {
            continue;
        }
        memcpy(path, dir, i);
        path[i] = '\0';
        if (mkdir(path, 0777) != 0 && errno != EEXIST) {
            return rl_fail(RL_IO, "cannot make folder %s: %s", path, strerror(errno));
        }
    }
    return RL_OK;
}

static rl_status write_all(struct generator *generator)
{
    RL_TRY(set_init(&generator->eval.prompts, generator->eval.count));
    RL_TRY(set_init(&generator->train.prompts, generator->train.count));
    RL_TRY(set_init(&generator->sft.prompts, generator->sft.count));
    RL_TRY(make_folders(generator->dir));
    RL_TRY(write_split(generator, &generator->eval));
    RL_TRY(write_split(generator, &generator->train));
    RL_TRY(write_split(generator, &generator->sft));
    RL_TRY(check_disjoint(&generator->eval.prompts, &generator->train.prompts));
    RL_TRY(check_disjoint(&generator->eval.prompts, &generator->sft.prompts));
    return task_tokenizer_write(generator->dir, &generator->report.vocabulary);
}

static void finish_report(const struct generator *generator, struct task_report *out)
{
    struct task_report report = generator->report;
    uint64_t guesses = generator->sft.count - report.sft_chains;
    report.prompt_tokens /= (double)generator->sft.count;
    report.chain_tokens /= report.sft_chains > 0 ? (double)report.sft_chains : 1.0;
    report.guess_tokens /= guesses > 0 ? (double)guesses : 1.0;
    *out = report;
}

rl_status task_generate(const struct task_options *options, const char *dir,
                        struct task_report *report)
{
    struct generator generator = {
        .options = options,
        .task = find_task(options->name),
        .dir = dir,
        .eval = {"eval.jsonl", options->eval_count, STREAM_EVAL, false, {NULL, 0, 0}},
        .train = {"train.jsonl", options->train_count, STREAM_TRAIN, false, {NULL, 0, 0}},
        .sft = {"sft.jsonl", options->sft_count, STREAM_SFT, true, {NULL, 0, 0}}};
    if (generator.task == NULL) {
        return rl_fail(RL_INVALID, "no task \"%s\"; expected chain or countdown", options->name);
    }
    RL_TRY(check_options(options, generator.task));
    rl_status status = write_all(&generator);
    if (status == RL_OK && report != NULL) {
        finish_report(&generator, report);
    }
    set_fini(&generator.sft.prompts);
    set_fini(&generator.train.prompts);
    set_fini(&generator.eval.prompts);
    return status;
}
