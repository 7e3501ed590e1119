/* See sweep_plan.h: from axes, seeds and exclusions to trials. */
#include "trainer/sweep_plan_internal.h"

#include "core/hash.h"
#include "core/log.h"
#include "core/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PLAN_KEY_BYTES = 17, PLAN_TEXT_BYTES = 1 << 20 };
static const size_t plan_arena_bytes = (size_t)1 << 30; /* addresses, not memory */

void sweep_plan_destroy(struct sweep_plan *plan)
{
    if (plan == NULL) {
        return;
    }
    rl_config_fini(&plan->settings);
    rl_config_fini(&plan->base);
    rl_config_fini(&plan->evaluated);
    rl_arena_destroy(plan->arena);
    free(plan);
}

static rl_status assign_all(struct rl_config *config, const struct sweep_options *options)
{
    for (size_t i = 0; i < options->count; i++) {
        const struct sweep_option *option = &options->items[i];
        RL_TRY(rl_config_assign(config, option->where, option->key, option->value));
    }
    return RL_OK;
}

rl_status sweep_config_of(const struct sweep_plan *plan, const struct sweep_options *more,
                          struct rl_config *config)
{
    RL_TRY(rl_config_init(config));
    RL_TRY(rl_config_load_text(config, plan->settings.sweep.config, plan->config_text,
                               strlen(plan->config_text)));
    RL_TRY(assign_all(config, &plan->options));
    return more != NULL ? assign_all(config, more) : RL_OK;
}

bool sweep_plan_evaluates(const struct sweep_plan *plan)
{
    return plan->settings.sweep.command != CONFIG_SWEEP_EVAL &&
           plan->settings.sweep.evaluate != CONFIG_SWEEP_NONE;
}

static bool term_holds(const struct sweep_term *term, const struct sweep_options *options)
{
    for (size_t i = 0; i < options->count; i++) {
        for (size_t v = 0; v < term->value_count; v++) {
            if (strcmp(options->items[i].key, term->key) == 0 &&
                strcmp(options->items[i].value, term->values[v]) == 0) {
                return true;
            }
        }
    }
    return false;
}

static bool is_excluded(const struct sweep_plan *plan, const struct sweep_options *options)
{
    for (size_t e = 0; e < plan->exclusion_count; e++) {
        const struct sweep_exclusion *exclusion = &plan->exclusions[e];
        bool holds = true;
        for (size_t t = 0; t < exclusion->term_count && holds; t++) {
            holds = term_holds(&exclusion->terms[t], options);
        }
        if (holds) {
            return true;
        }
    }
    return false;
}

/* Options and seed of the trial that `entries` and `seed` name. */
static rl_status fill_options(const struct sweep_plan *plan, struct sweep_trial *trial)
{
    char seed[32];
    void *items = NULL;
    size_t count = 1;
    for (size_t a = 0; a < plan->axis_count; a++) {
        count += plan->axes[a].key_count;
    }
    RL_TRY(rl_arena_calloc(plan->arena, count, sizeof *trial->options.items, &items));
    trial->options = (struct sweep_options){.items = items};
    for (size_t a = 0; a < plan->axis_count; a++) {
        const struct sweep_axis *axis = &plan->axes[a];
        for (size_t k = 0; k < axis->key_count; k++) {
            trial->options.items[trial->options.count++] = (struct sweep_option){
                .key = axis->keys[k],
                .value = axis->values[trial->entries[a] * axis->key_count + k],
                .where = axis->where};
        }
    }
    struct sweep_option *last = &trial->options.items[trial->options.count++];
    snprintf(seed, sizeof seed, "%" PRId64, trial->seed);
    *last = (struct sweep_option){.key = "run.seed", .where = "seeds"};
    return sweep_copy(plan, seed, &last->value);
}

/* Hash of all options, as text, in the order of the axes. */
static rl_status make_key(const struct sweep_plan *plan, struct sweep_trial *trial)
{
    struct rl_text text;
    char key[PLAN_KEY_BYTES];
    rl_text_init(&text, PLAN_TEXT_BYTES);
    rl_status status = RL_OK;
    for (size_t i = 0; status == RL_OK && i < trial->options.count; i++) {
        status = rl_text_printf(&text, "%s=%s\n", trial->options.items[i].key,
                                trial->options.items[i].value);
    }
    snprintf(key, sizeof key, "%016" PRIx64, rl_hash(rl_text_str(&text), text.bytes));
    rl_text_fini(&text);
    RL_TRY(status);
    return sweep_copy(plan, key, &trial->key);
}

/* Next combination, the last axis fastest; false after the last. */
static bool next_entries(const struct sweep_plan *plan, size_t *entries)
{
    for (size_t a = plan->axis_count; a-- > 0;) {
        if (++entries[a] < plan->axes[a].entry_count) {
            return true;
        }
        entries[a] = 0;
    }
    return false;
}

/* Trials of one combination, one a seed. */
static rl_status add_cell(struct sweep_plan *plan, const size_t *entries)
{
    size_t before = plan->trial_count;
    for (size_t s = 0; s < plan->seed_count; s++) {
        struct sweep_trial *trial = &plan->trials[plan->trial_count];
        void *copy = NULL;
        *trial = (struct sweep_trial){.seed = plan->seeds[s], .cell = plan->cell_count};
        RL_TRY(rl_arena_calloc(plan->arena, plan->axis_count + 1, sizeof *entries, &copy));
        trial->entries = copy;
        memcpy(trial->entries, entries, plan->axis_count * sizeof *entries);
        RL_TRY(fill_options(plan, trial));
        if (!is_excluded(plan, &trial->options)) {
            RL_TRY(make_key(plan, trial));
            plan->trial_count++;
        }
    }
    plan->cell_count += plan->trial_count > before;
    return RL_OK;
}

static rl_status make_trials(struct sweep_plan *plan)
{
    size_t most = plan->seed_count;
    void *trials = NULL;
    void *entries = NULL;
    for (size_t a = 0; a < plan->axis_count && most <= SWEEP_TRIALS_MAX; a++) {
        most *= plan->axes[a].entry_count;
    }
    if (most > SWEEP_TRIALS_MAX) {
        return rl_fail(RL_INVALID, "sweep %s: more than %d trials", plan->name, SWEEP_TRIALS_MAX);
    }
    RL_TRY(rl_arena_calloc(plan->arena, most, sizeof *plan->trials, &trials));
    RL_TRY(rl_arena_calloc(plan->arena, plan->axis_count + 1, sizeof(size_t), &entries));
    plan->trials = trials;
    do {
        RL_TRY(add_cell(plan, entries));
    } while (next_entries(plan, entries));
    if (plan->trial_count == 0) {
        return rl_fail(RL_INVALID, "sweep %s: `exclude` leaves none of %zu trials", plan->name,
                       most);
    }
    return RL_OK;
}

/* Tokens at most; what an option costs beyond that shows in the measured times. */
static double units_of(const struct sweep_plan *plan, const struct rl_config *c)
{
    double tokens = (double)c->rollout.max_completion_length;
    if (plan->settings.sweep.command == CONFIG_SWEEP_EVAL) {
        return tokens * (double)c->eval.samples;
    }
    if (plan->settings.sweep.command == CONFIG_SWEEP_DISTILL) {
        return tokens * (double)c->distill.rounds * (double)c->distill.samples;
    }
    return tokens * (double)c->run.steps * (double)c->rollout.prompts_per_step *
           (double)c->rollout.samples_per_prompt;
}

static rl_status resolve_trial(const struct sweep_plan *plan, struct sweep_trial *trial)
{
    struct rl_config config = {0};
    rl_status status = sweep_config_of(plan, &trial->options, &config);
    if (status == RL_OK) {
        status = rl_config_validate(&config);
    }
    if (status == RL_OK) {
        bool parallel = plan->settings.sweep.command == CONFIG_SWEEP_TRAIN && config.async.enabled;
        trial->ranks = parallel ? (int)plan->settings.sweep.ranks_per_trial : 1;
        bool trains = plan->settings.sweep.command == CONFIG_SWEEP_TRAIN;
        trial->steps = trains ? config.run.steps : 0;
        trial->units = units_of(plan, &config);
    }
    rl_config_fini(&config);
    return status;
}

static rl_status resolve_trials(struct sweep_plan *plan)
{
    for (size_t i = 0; i < plan->trial_count; i++) {
        rl_status status = resolve_trial(plan, &plan->trials[i]);
        if (status != RL_OK) {
            return rl_fail(status, "sweep %s: trial %s cannot run: see above", plan->name,
                           plan->trials[i].name);
        }
    }
    return RL_OK;
}

static rl_status read_rungs(struct sweep_plan *plan)
{
    const char *text = plan->settings.halving.steps;
    while (*text != '\0') {
        char *end = NULL;
        int64_t steps = strtoll(text, &end, 10);
        int64_t last = plan->rung_count > 0 ? plan->rungs[plan->rung_count - 1] : 0;
        if (end == text || (*end != '\0' && *end != ',') || steps <= last ||
            steps >= plan->base.run.steps || plan->rung_count == SWEEP_RUNGS_MAX) {
            return rl_fail(RL_INVALID,
                           "halving.steps \"%s\": expected at most %d ascending numbers below "
                           "run.steps, %" PRId64,
                           plan->settings.halving.steps, SWEEP_RUNGS_MAX, plan->base.run.steps);
        }
        plan->rungs[plan->rung_count++] = steps;
        text = *end == ',' ? end + 1 : end;
    }
    bool trains = plan->settings.sweep.command == CONFIG_SWEEP_TRAIN;
    if (plan->rung_count > 0 && (!trains || !sweep_plan_evaluates(plan))) {
        return rl_fail(RL_INVALID, "halving.steps needs trials that are evaluated: sweep.command "
                                   "train, sweep.evaluate last or every");
    }
    return RL_OK;
}

static rl_status check_shards(const struct sweep_plan *plan)
{
    int64_t shards = plan->settings.sweep.shards;
    if (plan->settings.sweep.shard >= shards) {
        return rl_fail(RL_INVALID, "sweep.shard is %" PRId64 ", expected 0 .. %" PRId64,
                       plan->settings.sweep.shard, shards - 1);
    }
    return shards > 1 && plan->rung_count > 0
               ? rl_fail(RL_INVALID, "halving.steps and sweep.shards: a rung is decided over all "
                                     "trials, so one sweep must run them")
               : RL_OK;
}

/* model.path of a trial. */
static const char *model_of(const struct sweep_plan *plan, const struct sweep_trial *trial)
{
    for (size_t i = 0; i < trial->options.count; i++) {
        if (strcmp(trial->options.items[i].key, "model.path") == 0) {
            return trial->options.items[i].value;
        }
    }
    return plan->base.model.path;
}

static void add_base(struct sweep_plan *plan, const char *model)
{
    for (size_t b = 0; b < plan->base_count; b++) {
        if (strcmp(plan->bases[b].model, model) == 0) {
            return;
        }
    }
    plan->bases[plan->base_count++] = (struct sweep_base){.name = "base", .model = model};
}

/* One control for each model that trials start from. */
static rl_status make_bases(struct sweep_plan *plan)
{
    void *bases = NULL;
    if (!sweep_plan_evaluates(plan)) {
        return RL_OK;
    }
    RL_TRY(rl_arena_calloc(plan->arena, plan->trial_count, sizeof *plan->bases, &bases));
    plan->bases = bases;
    for (size_t i = 0; i < plan->trial_count; i++) {
        const char *model = model_of(plan, &plan->trials[i]);
        if (model[0] == '\0') {
            return rl_fail(RL_INVALID,
                           "sweep %s: model.path is not set; the base model is the control of "
                           "every sweep that evaluates",
                           plan->name);
        }
        add_base(plan, model);
    }
    for (size_t b = 0; b < plan->base_count && plan->base_count > 1; b++) {
        snprintf(plan->bases[b].name, sizeof plan->bases[b].name, "base%zu", b + 1);
    }
    return RL_OK;
}

/* The shared part of all trials; validated for itself, so that its faults are named once. */
static rl_status make_base(struct sweep_plan *plan)
{
    RL_TRY(sweep_config_of(plan, NULL, &plan->base));
    RL_TRY(rl_config_validate(&plan->base));
    if (plan->seed_count == 0) {
        void *seeds = NULL;
        RL_TRY(rl_arena_calloc(plan->arena, 1, sizeof *plan->seeds, &seeds));
        plan->seeds = seeds;
        plan->seeds[plan->seed_count++] = plan->base.run.seed;
    }
    RL_TRY(sweep_config_of(plan, &plan->eval, &plan->evaluated));
    RL_TRY(rl_config_validate(&plan->evaluated));
    if ((sweep_plan_evaluates(plan) || plan->settings.sweep.command == CONFIG_SWEEP_EVAL) &&
        plan->base.data.eval[0] == '\0') {
        return rl_fail(RL_INVALID,
                       "sweep %s: data.eval is not set, and trials are evaluated on it "
                       "(sweep.evaluate: none does without)",
                       plan->name);
    }
    return RL_OK;
}

rl_status sweep_plan_read(const char *path, char *const *overrides, int override_count,
                          struct sweep_plan **out)
{
    struct sweep_plan *plan = calloc(1, sizeof *plan);
    rl_status status = RL_OK;
    if (plan == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: out of memory", path);
    }
    RL_TRY_GOTO(rl_arena_create("sweep plan", plan_arena_bytes, &plan->arena), status, fail);
    RL_TRY_GOTO(rl_config_init(&plan->settings), status, fail);
    RL_TRY_GOTO(sweep_file_read(plan, path, overrides, override_count), status, fail);
    RL_TRY_GOTO(make_base(plan), status, fail);
    RL_TRY_GOTO(read_rungs(plan), status, fail);
    RL_TRY_GOTO(check_shards(plan), status, fail);
    RL_TRY_GOTO(make_trials(plan), status, fail);
    RL_TRY_GOTO(make_bases(plan), status, fail);
    RL_TRY_GOTO(sweep_names_make(plan), status, fail);
    RL_TRY_GOTO(resolve_trials(plan), status, fail);
    *out = plan;
    return RL_OK;
fail:
    sweep_plan_destroy(plan);
    return status;
}
