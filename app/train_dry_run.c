/* What a run would do and need, from its configuration alone: `train --dry-run`. */
#include "app/footprint.h"
#include "app/train.h"
#include "app/weight_window.h"
#include "kernels/device.h"
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
    struct footprint_microbatch largest = footprint_largest_microbatch(config);
    return model_workspace_bytes(layout, largest.tokens, optimizer_keep(config)) +
           (size_t)largest.pages * model_kv_page_bytes(layout);
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
    session_training_options(config, together, &options);
    struct arithmetic a = {
        .prompts = config->rollout.prompts_per_step,
        .samples = config->rollout.samples_per_prompt,
        .steps = config->run.steps,
        .updates = config->run.steps * config->optimizer.updates_per_step,
        .learners = learners,
        .learner_gib = gib(bytes.all),
        .moments_gib = gib(bytes.moments),
        .arena_gib = gib((size_t)(together ? 2 : weight_window_slots(config)) * image),
        .worker_gib = gib(rollout_generator_bytes(session->layout, &options).all),
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

/* `gpus`: taken; NULL: no GPU is asked for. */
static void print_json(const struct arithmetic *a, const struct session *session, uint64_t prompts,
                       json_t *gpus)
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
    if (gpus != NULL) {
        json_object_set_new(object, "gpus", gpus);
    }
    char *text = object != NULL ? json_dumps(object, JSON_COMPACT) : NULL;
    if (text != NULL) {
        printf("%s\n", text);
    }
    free(text);
    json_decref(object);
}

/* A GPU is asked for, and there is none: the plan is made as if there were one. */
static bool lacks_gpu(const struct rl_config *config)
{
    struct device_survey survey = {0};
    if (config->kernels.device == CONFIG_DEVICE_CUDA) {
        device_gpu_survey(&survey);
    }
    return config->kernels.device == CONFIG_DEVICE_CUDA && survey.count == 0;
}

static rl_status print_all(const struct rl_config *config, const struct session *session,
                           const struct prompts *prompts, int ranks, bool json)
{
    struct arithmetic a = compute_arithmetic(config, session, prompts_count(prompts), ranks);
    struct footprint_run run = {.config = config,
                                .layout = session->layout,
                                .ranks = ranks,
                                .learners = (int)a.learners,
                                .gpus = session->gpus > 0 ? session->gpus : 1};
    bool gpu = session->device != NULL || config->kernels.device == CONFIG_DEVICE_CUDA;
    rl_status status = RL_OK;
    print_text(&a, session, prompts_count(prompts));
    if (gpu) {
        status = footprint_print(&run, session->device);
    }
    if (json) {
        print_json(&a, session, prompts_count(prompts),
                   gpu ? footprint_json(&run, session->device) : NULL);
    }
    return status;
}

rl_status train_dry_run(const struct rl_config *config, int ranks, bool json)
{
    struct session session;
    struct rl_config planned = *config; /* its strings are the other's */
    struct prompts *prompts = NULL;
    struct reward_set *rewards = NULL;
    struct objective_options objective;
    if (lacks_gpu(config)) {
        planned.kernels.device = CONFIG_DEVICE_CPU;
    }
    rl_status status = session_open(&planned, session_learner_length(config), 0, &session);
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
        status = print_all(config, &session, prompts, ranks, json);
    }
    reward_set_destroy(rewards);
    prompts_destroy(prompts);
    session_close(&session);
    return status;
}
