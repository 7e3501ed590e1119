/* `foresight eval`: pass@k, avg@n and their intervals on held-out problems. */
#include "app/app.h"
#include "app/commands.h"
#include "app/sample_set.h"
#include "app/summary.h"

#include "core/clock.h"
#include "core/log.h"
#include "trainer/eval_stats.h"
#include "transport/atomic_file.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EVAL_EPOCH = 0x3ffffe, EVAL_SHOWN_SAMPLES = 3 };

struct evaluation {
    struct eval_interval pass_at_1, pass_at_n;
    uint32_t problems, samples;
    uint64_t unscorable;
    double reward, length, truncated, tokens_per_second;
};

static bool solved(const struct trajectory *sample)
{
    return sample->reward_valid && sample->accuracy >= 1;
}

static rl_status evaluate(const struct sample_set *set, uint32_t samples, uint64_t seed,
                          struct evaluation *out)
{
    struct eval_problem *problems = calloc(set->count, sizeof(*problems));
    struct evaluation e = {.problems = (uint32_t)set->count, .samples = samples};
    double count = (double)set->count * samples;
    if (problems == NULL) {
        return rl_fail(RL_NO_MEMORY, "eval: out of memory");
    }
    for (uint64_t i = 0; i < set->count; i++) {
        problems[i].samples = samples;
        for (uint32_t s = 0; s < samples; s++) {
            const struct trajectory *sample = &set->groups[i]->samples[s];
            problems[i].correct += solved(sample);
            e.unscorable += !sample->reward_valid;
            e.reward += sample->reward_valid ? sample->reward : 0;
            e.length += sample->completion_count;
            e.truncated += sample->finish == RL_FINISH_LENGTH;
        }
    }
    e.reward /= count > (double)e.unscorable ? count - (double)e.unscorable : 1;
    e.length /= count;
    e.truncated /= count;
    e.tokens_per_second = set->wall_s > 0 ? (double)set->sampled_tokens / set->wall_s : 0;
    rl_status status = eval_pass_at_k_interval(problems, e.problems, 1, seed, &e.pass_at_1);
    if (status == RL_OK) {
        status = eval_pass_at_k_interval(problems, e.problems, samples, seed, &e.pass_at_n);
    }
    free(problems);
    if (status == RL_OK) {
        *out = e;
    }
    return status;
}

static json_t *to_json(const struct evaluation *e, const struct sample_set *set)
{
    char pass_n[32];
    char pass_n_ci[48];
    char avg_n[32];
    snprintf(pass_n, sizeof(pass_n), "pass@%u", e->samples);
    snprintf(pass_n_ci, sizeof(pass_n_ci), "pass@%u_ci95", e->samples);
    snprintf(avg_n, sizeof(avg_n), "avg@%u", e->samples);
    json_t *object = json_pack("{s:f, s:[f,f], s:f}", "pass@1", e->pass_at_1.mean, "pass@1_ci95",
                               e->pass_at_1.low, e->pass_at_1.high, avg_n, e->pass_at_1.mean);
    json_t *rest = json_pack(
        "{s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f}", "problems", (json_int_t)e->problems,
        "samples", (json_int_t)e->samples, "unscorable", (json_int_t)e->unscorable, "reward",
        e->reward, "mean_length", e->length, "truncated", e->truncated, "tokens_per_second",
        e->tokens_per_second, "wall_seconds", set->wall_s, "cpu_seconds", set->cpu_s);
    if (object != NULL && e->samples > 1) {
        json_object_set_new(object, pass_n, json_real(e->pass_at_n.mean));
        json_object_set_new(object, pass_n_ci,
                            json_pack("[f,f]", e->pass_at_n.low, e->pass_at_n.high));
    }
    json_object_update(object, rest);
    json_decref(rest);
    return object;
}

static void print_text(const struct evaluation *e)
{
    printf("problems   %u, %u samples each\n", e->problems, e->samples);
    printf("pass@1     %.4f   95%% [%.4f, %.4f]   (avg@%u, unbiased)\n", e->pass_at_1.mean,
           e->pass_at_1.low, e->pass_at_1.high, e->samples);
    if (e->samples > 1) {
        printf("pass@%-4u  %.4f   95%% [%.4f, %.4f]\n", e->samples, e->pass_at_n.mean,
               e->pass_at_n.low, e->pass_at_n.high);
    }
    printf("length     %.1f tokens, %.1f%% cut at the limit\n", e->length, 100 * e->truncated);
    printf("speed      %.0f tokens/s\n", e->tokens_per_second);
}

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

/* One JSON line a problem. */
static rl_status write_rows(const char *path, const struct session *session,
                            const struct prompts *prompts, const struct sample_set *set)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *memory = open_memstream(&text, &bytes);
    bool ok = memory != NULL;
    for (uint64_t i = 0; i < set->count && ok; i++) {
        const struct trajectory_group *group = set->groups[i];
        json_t *completions = json_array();
        uint32_t correct = 0;
        for (uint32_t s = 0; s < group->sample_count && ok; s++) {
            correct += solved(&group->samples[s]);
            json_t *entry = sample_json(session, prompts, group, s);
            ok = entry != NULL && json_object_del(entry, "prompt") == 0 &&
                 json_array_append_new(completions, entry) == 0;
        }
        const struct prompt *prompt = prompts_at(prompts, group->prompt_id);
        json_t *row = json_pack("{s:s, s:s, s:i, s:i, s:o}", "prompt", prompt->text, "ground_truth",
                                prompt->ground_truth, "n", (int)group->sample_count, "c",
                                (int)correct, "completions", completions);
        ok = ok && row != NULL && json_dumpf(row, memory, JSON_COMPACT | JSON_ENSURE_ASCII) == 0 &&
             fputc('\n', memory) != EOF;
        json_decref(row);
    }
    ok = memory != NULL && fclose(memory) == 0 && ok;
    rl_status status = ok ? atomic_file_write_all(path, text, bytes)
                          : rl_fail(RL_NO_MEMORY, "%s: out of memory", path);
    free(text);
    return status;
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

static rl_status report(const struct eval_output *output, const struct session *session,
                        const struct prompts *prompts, const struct sample_set *set)
{
    struct evaluation e = {0};
    uint32_t samples = (uint32_t)session->config->eval.samples;
    const char *rows = session->config->eval.output;
    RL_TRY(evaluate(set, samples, (uint64_t)session->config->run.seed, &e));
    json_t *figures = to_json(&e, set);
    json_t *shown = json_array();
    for (uint64_t i = 0; i < EVAL_SHOWN_SAMPLES && i < set->count; i++) {
        json_array_append_new(shown, sample_json(session, prompts, set->groups[i], 0));
    }
    rl_status status = RL_OK;
    if (figures == NULL) {
        status = rl_fail(RL_NO_MEMORY, "eval: out of memory");
    }
    if (status == RL_OK && rows[0] != '\0') {
        status = write_rows(rows, session, prompts, set);
    }
    if (status == RL_OK && output->summary != NULL) {
        status = write_summary(output->summary, output->label, figures, shown);
    }
    if (status == RL_OK) {
        print_text(&e);
        char *text = output->json ? json_dumps(figures, JSON_COMPACT) : NULL;
        if (text != NULL) {
            printf("%s\n", text);
        }
        free(text);
    }
    json_decref(shown);
    json_decref(figures);
    return status;
}

static rl_status run(const struct rl_config *config, const struct eval_output *output)
{
    struct session session = {0};
    struct prompts *prompts = NULL;
    struct reward_set *rewards = NULL;
    struct sample_set set = {0};
    rl_status status = RL_OK;
    if (config->data.eval[0] == '\0') {
        return rl_fail(RL_INVALID, "data.eval is not set: the held-out problems");
    }
    RL_TRY_GOTO(session_open(config, session_max_length(config), &session), status, done);
    RL_TRY_GOTO(prompts_load(config->data.eval, config, session.tokenizer, session.chat, &prompts),
                status, done);
    RL_TRY_GOTO(reward_set_create(config, &rewards), status, done);
    struct sample_set_args args = {.session = &session,
                                   .prompts = prompts,
                                   .rewards = rewards,
                                   .label = "eval",
                                   .limit = (uint64_t)config->eval.limit,
                                   .samples = (uint32_t)config->eval.samples,
                                   .epoch = EVAL_EPOCH};
    int64_t groups = config->rollout.max_running / config->eval.samples + 2;
    session_generator_options(config, (int32_t)(2 * groups), &args.options);
    args.options.sampling = (struct kernel_sampling){.temperature = (float)config->eval.temperature,
                                                     .top_p = (float)config->eval.top_p,
                                                     .top_k = (int32_t)config->eval.top_k};
    RL_TRY_GOTO(sample_set_run(&args, &set), status, done);
    status = report(output, &session, prompts, &set);
done:
    sample_set_fini(&set);
    reward_set_destroy(rewards);
    prompts_destroy(prompts);
    session_close(&session);
    return status;
}

int cmd_eval(int argc, char **argv)
{
    struct rl_config config;
    struct eval_output output = {.label = "eval"};
    output.json = app_take_flag(&argc, argv, "--json");
    if (app_take_value(&argc, argv, "--summary", &output.summary) != RL_OK ||
        app_take_value(&argc, argv, "--label", &output.label) != RL_OK) {
        return APP_USAGE;
    }
    rl_status status = app_config_from_args(argc, argv, &config);
    if (status == RL_OK) {
        rl_log_set_level((enum rl_log_level)config.run.log_level);
        status = run(&config, &output);
    }
    rl_config_fini(&config);
    return status == RL_OK ? APP_OK : status == RL_INTERRUPTED ? APP_INTERRUPTED : APP_FAILED;
}
