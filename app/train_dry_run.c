/* What a run would do and need, from its configuration alone: `train --dry-run`. */
#include "app/train.h"
#include "app/weight_window.h"
#include "trainer/learner.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

struct arithmetic {
    int64_t prompts, samples, completions, updates, steps, epochs_milli;
    int64_t learners, workers;
    double learner_gib, moments_gib, arena_gib, worker_gib, activation_gib;
};

static double gib(size_t bytes)
{
    return (double)bytes / (1024.0 * 1024.0 * 1024.0);
}

/* Activations of the largest micro-batch that can come, and its keys and values. */
static size_t activation_bytes(const struct rl_config *config, const struct model_layout *layout)
{
    int64_t longest = session_learner_length(config);
    int64_t completions = config->rollout.prompts_per_step * config->rollout.samples_per_prompt;
    int64_t tokens = config->optimizer.max_tokens_per_microbatch;
    tokens = tokens < completions * longest ? tokens : completions * longest;
    tokens = tokens > longest ? tokens : longest;
    int64_t pages = model_packing_pages(tokens, completions < tokens ? completions : tokens);
    return model_workspace_bytes(layout, tokens, optimizer_keep(config)) +
           (size_t)pages * model_kv_page_bytes(layout);
}

static struct arithmetic compute_arithmetic(const struct rl_config *config,
                                            const struct session *session, uint64_t prompts,
                                            int ranks)
{
    struct rollout_generator_options options;
    bool together = ranks == 1;
    size_t image = session->layout->image_bytes;
    int learners = together ? 1 : (int)config->cluster.learners;
    struct learner_bytes bytes = learner_bytes(session->layout, config, learners);
    session_generator_options(config, (int32_t)config->rollout.prompts_per_step + 1, &options);
    struct arithmetic a = {.prompts = config->rollout.prompts_per_step,
                           .samples = config->rollout.samples_per_prompt,
                           .steps = config->run.steps,
                           .updates = config->run.steps * config->optimizer.updates_per_step,
                           .learners = learners,
                           .learner_gib = gib(bytes.all),
                           .moments_gib = gib(bytes.moments),
                           .arena_gib =
                               gib((size_t)(together ? 2 : weight_window_slots(config)) * image),
                           .worker_gib = gib(rollout_generator_bytes(session->layout, &options)),
                           .activation_gib = gib(activation_bytes(config, session->layout))};
    a.completions = a.prompts * a.samples;
    a.workers = together ? 1 : ranks - a.learners;
    a.epochs_milli = (int64_t)(1000.0 * (double)(a.prompts * a.steps) / (double)prompts);
    return a;
}

static void print_text(const struct arithmetic *a, const struct session *session, uint64_t prompts)
{
    printf("model       %s, %lld parameters\n", session->layout->arch.name,
           (long long)session->layout->param_count);
    printf("ranks       %lld learner(s), %lld rollout rank(s)\n", (long long)a->learners,
           (long long)a->workers);
    printf("batch       %lld prompts x %lld samples = %lld completions a step, in %lld update(s)\n",
           (long long)a->prompts, (long long)a->samples, (long long)a->completions,
           (long long)(a->updates / a->steps));
    printf(
        "run         %lld steps = %lld updates = %lld completions = %.3f epochs of %llu prompts\n",
        (long long)a->steps, (long long)a->updates, (long long)(a->steps * a->completions),
        (double)a->epochs_milli / 1000.0, (unsigned long long)prompts);
    printf(
        "memory      learner %.2f GiB (weights, gradients, moments of %.2f GiB), activations up to "
        "%.2f GiB a micro-batch,\n            weight slots %.2f GiB a node, rollout rank %.2f "
        "GiB\n",
        a->learner_gib, a->moments_gib, a->activation_gib, a->arena_gib, a->worker_gib);
}

static void print_json(const struct arithmetic *a, const struct session *session, uint64_t prompts)
{
    json_t *object = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f}",
        "architecture", session->layout->arch.name, "parameters",
        (json_int_t)session->layout->param_count, "learners", (json_int_t)a->learners, "workers",
        (json_int_t)a->workers, "prompts_per_step", (json_int_t)a->prompts, "samples_per_prompt",
        (json_int_t)a->samples, "completions_per_step", (json_int_t)a->completions, "steps",
        (json_int_t)a->steps, "updates", (json_int_t)a->updates, "prompts", (json_int_t)prompts,
        "learner_gib", a->learner_gib, "moments_gib", a->moments_gib, "activation_gib",
        a->activation_gib, "weight_slots_gib", a->arena_gib, "rollout_gib", a->worker_gib);
    char *text = object != NULL ? json_dumps(object, JSON_COMPACT) : NULL;
    if (text != NULL) {
        printf("%s\n", text);
    }
    free(text);
    json_decref(object);
}

rl_status train_dry_run(const struct rl_config *config, int ranks, bool json)
{
    struct session session;
    struct prompts *prompts = NULL;
    struct reward_set *rewards = NULL;
    struct objective_options objective;
    rl_status status = session_open(config, session_learner_length(config), 0, &session);
    if (status == RL_OK) {
        status =
            prompts_load(config->data.train, config, session.tokenizer, session.chat, &prompts);
    }
    if (status == RL_OK) {
        status = reward_set_create(config, &rewards);
    }
    if (status == RL_OK) {
        status = objective_options_from_config(config, &objective);
    }
    if (status == RL_OK) {
        struct arithmetic a = compute_arithmetic(config, &session, prompts_count(prompts), ranks);
        print_text(&a, &session, prompts_count(prompts));
        if (json) {
            print_json(&a, &session, prompts_count(prompts));
        }
    }
    reward_set_destroy(rewards);
    prompts_destroy(prompts);
    session_close(&session);
    return status;
}
