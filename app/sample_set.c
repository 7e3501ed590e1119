/* See sample_set.h. */
#include "app/sample_set.h"

#include "app/signals.h"
#include "core/clock.h"
#include "core/log.h"
#include "kernels/device.h"
#include "trainer/progress.h"

#include <stdlib.h>

struct feed {
    const struct sample_set_args *args;
    struct sampler *sampler;
    struct sample_set *set;
    uint64_t submitted, taken;
};

static rl_status submit_some(struct feed *f)
{
    while (f->submitted < f->set->count) {
        rl_status status = sampler_submit(f->sampler, f->submitted, f->submitted, f->args->epoch,
                                          f->args->samples);
        if (status == RL_AGAIN) {
            return RL_OK;
        }
        RL_TRY(status);
        f->submitted++;
    }
    return RL_OK;
}

static rl_status run_all(struct feed *f)
{
    struct progress_bar bar =
        progress_bar_start(stderr, f->args->label, "prompts", (double)f->set->count);
    while (f->taken < f->set->count) {
        struct trajectory_group *group = NULL;
        if (signals_stop_requested() != 0) {
            return RL_INTERRUPTED;
        }
        RL_TRY(submit_some(f));
        RL_TRY(sampler_step(f->sampler));
        while (sampler_take(f->sampler, &group) == RL_OK) {
            f->set->groups[group->prompt_id] = group;
            f->taken++;
        }
        progress_bar_update(&bar, (double)f->taken, NULL);
    }
    progress_bar_finish(&bar);
    return RL_OK;
}

static rl_status generate(const struct sample_set_args *args, const void *image,
                          struct sample_set *set)
{
    struct feed feed = {.args = args, .set = set};
    struct sampler_args sampler = {.session = args->session,
                                   .config = args->session->config,
                                   .prompts = args->prompts,
                                   .rewards = args->rewards,
                                   .options = args->options};
    double start = rl_clock_now_s(NULL);
    double cpu = rl_clock_process_cpu_s();
    RL_TRY(sampler_create(&sampler, &feed.sampler));
    sampler_set_weights(feed.sampler, image, 0);
    rl_status status = run_all(&feed);
    set->sampled_tokens = sampler_counters(feed.sampler)->sampled_tokens;
    set->timeouts = sampler_reward_timeouts(feed.sampler);
    set->busy_s = sampler_busy_s(feed.sampler);
    set->wall_s = rl_clock_now_s(NULL) - start;
    set->cpu_s = rl_clock_process_cpu_s() - cpu;
    sampler_destroy(feed.sampler);
    return status;
}

rl_status sample_set_load(const struct session *session, void **image)
{
    return session_load_image(session, session->config->model.path, image);
}

rl_status sample_set_run(const struct sample_set_args *args, const void *image,
                         struct sample_set *out)
{
    struct sample_set set = {.count = prompts_count(args->prompts)};
    rl_status status = RL_OK;
    if (args->limit > 0 && args->limit < set.count) {
        set.count = args->limit;
    }
    set.groups = calloc(set.count, sizeof(*set.groups));
    if (set.groups == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: out of memory", args->label);
    }
    RL_TRY_GOTO(signals_install(), status, done);
    RL_TRY_GOTO(generate(args, image, &set), status, done);
    *out = set;
    set = (struct sample_set){0};
done:
    sample_set_fini(&set);
    return status;
}

void sample_set_fini(struct sample_set *set)
{
    for (uint64_t i = 0; set->groups != NULL && i < set->count; i++) {
        trajectory_group_destroy(set->groups[i]);
    }
    free(set->groups);
    *set = (struct sample_set){0};
}

rl_status sample_set_text(const struct session *session, const struct trajectory *sample,
                          char **text)
{
    size_t bytes = 0;
    return tokenizer_decode(session->tokenizer, sample->tokens + sample->prompt_count,
                            sample->completion_count, true, text, &bytes);
}
