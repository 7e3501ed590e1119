/* `foresight eval`: pass@k, avg@n, maj@n and their intervals on held-out problems, at one or
 * several temperatures, and the counts they are made of. Under mpirun all ranks sample, each its
 * share of the problems; rank 0 counts and writes. */
#include "app/app.h"
#include "app/commands.h"
#include "app/eval_counts.h"
#include "app/rank_team.h"
#include "app/summary.h"

#include "core/log.h"
#include "kernels/device.h"
#include "transport/atomic_file.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EVAL_EPOCH = 0x3ffffe, EVAL_SHOWN_SAMPLES = 3 };

static json_t *sample_json(const struct session *session, const struct prompts *prompts,
                           const struct trajectory_group *group, uint32_t index)
{
    char *text = NULL;
    const struct trajectory *sample = &group->samples[index];
    if (sample_set_text(session, sample, &text) != RL_OK) {
        return NULL;
    }
    json_t *object =
        json_pack("{s:s, s:s+, s:f}", "prompt", prompts_at(prompts, group->prompt_id)->text,
                  "completion", text, "", "reward", (double)sample->reward);
    free(text);
    return object;
}

static rl_status append_row(FILE *out, const struct session *session, const struct prompts *prompts,
                            const struct trajectory_group *group, double temperature)
{
    json_t *completions = json_array();
    uint32_t correct = 0;
    bool ok = true;
    for (uint32_t s = 0; s < group->sample_count && ok; s++) {
        correct += eval_sample_solved(&group->samples[s]);
        json_t *entry = sample_json(session, prompts, group, s);
        ok = entry != NULL && json_object_del(entry, "prompt") == 0 &&
             json_array_append_new(completions, entry) == 0;
    }
    const struct prompt *prompt = prompts_at(prompts, group->prompt_id);
    json_t *row =
        json_pack("{s:s, s:s, s:f, s:i, s:i, s:o}", "prompt", prompt->text, "ground_truth",
                  prompt->ground_truth, "temperature", temperature, "n", (int)group->sample_count,
                  "c", (int)correct, "completions", completions);
    ok = ok && row != NULL && json_dumpf(row, out, JSON_COMPACT | JSON_ENSURE_ASCII) == 0 &&
         fputc('\n', out) != EOF;
    json_decref(row);
    return ok ? RL_OK : rl_fail(RL_NO_MEMORY, "eval.output: out of memory");
}

/* Merge the figures under `label` into a run's summary, with a few samples to read. */
static rl_status write_summary(const char *path, const char *label, json_t *figures,
                               json_t *samples)
{
    char wall[64];
    snprintf(wall, sizeof(wall), "eval_%s", label);
    json_t *part = json_pack("{s:O, s:{s:O}, s:{s:O}, s:O}", label, figures, "wall_seconds", wall,
                             json_object_get(figures, "wall_seconds"), "cpu_seconds", wall,
                             json_object_get(figures, "cpu_seconds"), "samples", samples);
    if (part == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: out of memory", path);
    }
    rl_status status = summary_merge(path, part);
    json_decref(part);
    return status;
}

struct eval_output {
    const char *summary, *label;
    bool json;
};

/* One evaluation on its way. */
struct eval_run {
    const struct eval_output *output;
    struct collective *collective; /* borrowed */
    struct session session;
    struct eval_sets sets;
    struct reward_set *rewards;
    struct count_table *counts;
    void *image;
    FILE *rows; /* memory; NULL: not asked for */
    char *row_text;
    size_t row_bytes;
    json_t *temperatures, *guards, *shown;
    json_t *figures; /* of data.eval at eval.temperature, else at the first temperature */
};

static void print_text(const char *set, int set_bytes, const struct evaluation *e)
{
    printf("%.*s at temperature %g: %u problems, %u samples each\n", set_bytes, set, e->temperature,
           e->problems, e->samples);
    printf("pass@1     %.4f   95%% [%.4f, %.4f]   (avg@%u, unbiased)\n", e->pass_at_1.mean,
           e->pass_at_1.low, e->pass_at_1.high, e->samples);
    if (e->samples > 1) {
        printf("pass@%-4u  %.4f   95%% [%.4f, %.4f]\n", e->samples, e->pass_at_n.mean,
               e->pass_at_n.low, e->pass_at_n.high);
        printf("maj@%-4u   %.4f   95%% [%.4f, %.4f]\n", e->samples, e->majority.mean,
               e->majority.low, e->majority.high);
    }
    printf("length     %.1f tokens, %.1f%% cut at the limit\n", e->length, 100 * e->truncated);
    printf("speed      %.0f tokens/s\n", e->tokens_per_second);
}

/* Keep the figures of one set at one temperature, and with data.eval a few samples to read. */
static rl_status keep_figures(struct eval_run *run, const struct sample_set *groups, uint32_t set,
                              uint32_t temperature)
{
    struct evaluation e;
    int bytes = 0;
    const char *name = eval_sets_name(&run->sets, set, &bytes);
    RL_TRY(eval_figures(run->counts, groups, run->sets.first[set], temperature, &e));
    json_t *figures = eval_figures_json(&e);
    bool is_default = e.temperature == run->session.config->eval.temperature;
    print_text(name, bytes, &e);
    if (figures == NULL) {
        return rl_fail(RL_NO_MEMORY, "eval: out of memory");
    }
    if (set > 0) {
        json_object_set_new(figures, "set", json_stringn(name, (size_t)bytes));
        json_array_append_new(run->guards, figures);
        return RL_OK;
    }
    if (temperature == 0 || is_default) {
        json_decref(run->figures);
        run->figures = json_copy(figures);
        json_array_clear(run->shown);
        for (uint64_t i = 0; i < EVAL_SHOWN_SAMPLES && i < groups->count; i++) {
            json_array_append_new(
                run->shown, sample_json(&run->session, run->sets.prompts[0], groups->groups[i], 0));
        }
    }
    json_array_append_new(run->temperatures, figures);
    return RL_OK;
}

static rl_status take_groups(struct eval_run *run, const struct sample_set *groups, uint32_t set,
                             uint32_t temperature)
{
    RL_TRY(eval_counts_fill(run->counts, &run->session, groups, run->sets.first[set], temperature));
    for (uint64_t i = 0; i < groups->count && run->rows != NULL && set == 0; i++) {
        RL_TRY(append_row(run->rows, &run->session, run->sets.prompts[0], groups->groups[i],
                          run->counts->temperatures[temperature]));
    }
    return keep_figures(run, groups, set, temperature);
}

/* Sample one set at one temperature. The random numbers' keys do not depend on the temperature or
 * the model, so that differences between evaluations are less noisy than their figures. */
static rl_status evaluate(struct eval_run *run, uint32_t set, uint32_t temperature)
{
    const struct rl_config *config = run->session.config;
    struct sample_set groups = {0};
    struct sample_set_args args = {.session = &run->session,
                                   .prompts = run->sets.prompts[set],
                                   .rewards = run->rewards,
                                   .collective = run->collective,
                                   .label = run->collective->rank == 0 ? "eval" : NULL,
                                   .limit = run->sets.limits[set],
                                   .samples = (uint32_t)config->eval.samples,
                                   .epoch = EVAL_EPOCH};
    session_sampling_options(config, args.samples, &args.options);
    args.options.int8_weights = false; /* the model itself is what is evaluated */
    args.options.sampling =
        (struct kernel_sampling){.temperature = (float)run->counts->temperatures[temperature],
                                 .top_p = (float)config->eval.top_p,
                                 .top_k = (int32_t)config->eval.top_k};
    RL_TRY(sample_set_run(&args, run->image, &groups));
    rl_status status =
        run->collective->rank == 0 ? take_groups(run, &groups, set, temperature) : RL_OK;
    sample_set_fini(&groups);
    return status;
}

static rl_status evaluate_all(struct eval_run *run)
{
    for (uint32_t set = 0; set < run->sets.count; set++) {
        for (uint32_t t = 0; t < run->counts->temperature_count; t++) {
            RL_TRY(evaluate(run, set, t));
        }
    }
    if (run->counts->temperature_count > 1) {
        json_object_set(run->figures, "temperatures", run->temperatures);
    }
    if (run->sets.count > 1) {
        json_object_set(run->figures, "guards", run->guards);
    }
    return RL_OK;
}

static rl_status write_results(struct eval_run *run)
{
    const struct rl_config *config = run->session.config;
    const struct eval_output *output = run->output;
    if (config->eval.counts[0] != '\0') {
        RL_TRY(count_table_sort(run->counts));
        RL_TRY(count_file_write(config->eval.counts, run->counts));
    }
    if (run->rows != NULL) {
        if (fflush(run->rows) != 0) {
            return rl_fail(RL_NO_MEMORY, "%s: out of memory", config->eval.output);
        }
        RL_TRY(atomic_file_write_all(config->eval.output, run->row_text, run->row_bytes));
    }
    if (output->summary != NULL) {
        RL_TRY(write_summary(output->summary, output->label, run->figures, run->shown));
    }
    char *text = output->json ? json_dumps(run->figures, JSON_COMPACT) : NULL;
    if (text != NULL) {
        printf("%s\n", text);
    }
    free(text);
    return RL_OK;
}

static rl_status open_run(struct eval_run *run, const struct rl_config *config, int local_rank)
{
    double temperatures[COUNT_TEMPERATURES_MAX];
    uint32_t count = 0;
    run->temperatures = json_array();
    run->guards = json_array();
    run->shown = json_array();
    RL_TRY(eval_temperatures(config, temperatures, &count));
    RL_TRY(session_open(config, session_max_length(config), local_rank, &run->session));
    RL_TRY(eval_sets_open(&run->session, &run->sets));
    RL_TRY(reward_set_create(config, &run->rewards));
    RL_TRY(eval_counts_create(config, &run->sets, temperatures, count, &run->counts));
    if (config->eval.output[0] != '\0') {
        run->rows = open_memstream(&run->row_text, &run->row_bytes);
        if (run->rows == NULL) {
            return rl_fail(RL_NO_MEMORY, "%s: out of memory", config->eval.output);
        }
    }
    return sample_set_load(&run->session, &run->image);
}

static void close_run(struct eval_run *run)
{
    if (run->rows != NULL) {
        fclose(run->rows);
    }
    free(run->row_text);
    json_decref(run->temperatures);
    json_decref(run->guards);
    json_decref(run->shown);
    json_decref(run->figures);
    device_free(run->image);
    count_table_destroy(run->counts);
    reward_set_destroy(run->rewards);
    eval_sets_close(&run->sets);
    session_close(&run->session);
}

struct command {
    struct rl_config config;
    struct eval_output output;
};

/* On every rank. */
static rl_status work(void *arg, const struct rank_team *team)
{
    const struct command *command = arg;
    struct eval_run run = {.output = &command->output, .collective = team->collective};
    rl_status status = open_run(&run, &command->config, team->local_rank);
    if (status == RL_OK) {
        status = evaluate_all(&run);
    }
    if (status == RL_OK && team->collective->rank == 0) {
        status = write_results(&run);
    }
    close_run(&run);
    return status;
}

int cmd_eval(int argc, char **argv)
{
    struct command command = {.output = {.label = "eval"}};
    int exit_code = APP_FAILED;
    command.output.json = app_take_flag(&argc, argv, "--json");
    if (app_take_value(&argc, argv, "--summary", &command.output.summary) != RL_OK ||
        app_take_value(&argc, argv, "--label", &command.output.label) != RL_OK) {
        return APP_USAGE;
    }
    if (app_config_from_args(&argc, argv, &command.config) == RL_OK) {
        double timeout_s = (double)command.config.async.wait_timeout_ms / 1000.0;
        rl_log_set_level((enum rl_log_level)command.config.run.log_level);
        exit_code = rank_team_run(argc, argv, timeout_s, work, &command);
    }
    rl_config_fini(&command.config);
    return exit_code;
}
