/* See sampler.h. */
#include "app/sampler.h"
#include "app/footprint.h"

#include "core/clock.h"
#include "core/log.h"

#include <stdlib.h>

struct sampler {
    struct sampler_args args;
    struct session_texts texts;
    struct rollout_generator *generator;
    struct reward_pool *pool;          /* NULL: no scoring */
    struct trajectory_group *to_score; /* held because the pool is full */
    uint32_t pending;
    uint64_t submitted_samples;
    double busy_s;
};

/* KV pages on a GPU, if the caller has not said how many: nothing but this sampler is on it. */
static rl_status size_pages(struct sampler *s)
{
    struct footprint_run alone = {.config = s->args.config,
                                  .layout = s->args.session->layout,
                                  .ranks = 1,
                                  .options = &s->args.options};
    return s->args.options.max_pages > 0
               ? RL_OK
               : footprint_settle(&alone, s->args.session, 0, &s->args.options);
}

rl_status sampler_create(const struct sampler_args *args, struct sampler **out)
{
    struct sampler *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        return rl_fail(RL_NO_MEMORY, "sampler: out of memory");
    }
    rl_status status = RL_OK;
    s->args = *args;
    s->texts =
        (struct session_texts){.tokenizer = args->session->tokenizer, .prompts = args->prompts};
    RL_TRY_GOTO(size_pages(s), status, fail);
    RL_TRY_GOTO(rollout_generator_create(&args->session->context, args->session->tokenizer,
                                         &s->args.options, &s->generator),
                status, fail);
    if (args->rewards != NULL) {
        RL_TRY_GOTO(reward_pool_create(args->rewards, args->config, session_reward_texts(&s->texts),
                                       &s->pool),
                    status, fail);
    }
    *out = s;
    return RL_OK;
fail:
    sampler_destroy(s);
    return status;
}

void sampler_destroy(struct sampler *sampler)
{
    if (sampler == NULL) {
        return;
    }
    reward_pool_destroy(sampler->pool);
    rollout_generator_destroy(sampler->generator);
    trajectory_group_destroy(sampler->to_score);
    free(sampler);
}

rl_status sampler_load_weights(struct sampler *sampler, struct device_source image,
                               uint32_t version)
{
    rl_status status = rollout_generator_load_weights(sampler->generator, image, version);
    while (status == RL_AGAIN) {
        rollout_generator_await_weights(sampler->generator);
        status = rollout_generator_load_weights(sampler->generator, image, version);
    }
    return status;
}

rl_status sampler_submit(struct sampler *sampler, uint64_t ticket, uint64_t prompt_id,
                         uint32_t epoch, uint32_t samples)
{
    return sampler_submit_scheduled(sampler, ticket, prompt_id, epoch, samples, NULL);
}

rl_status sampler_submit_scheduled(struct sampler *sampler, uint64_t ticket, uint64_t prompt_id,
                                   uint32_t epoch, uint32_t samples,
                                   const struct rollout_schedule *schedule)
{
    const struct prompt *prompt = prompts_at(sampler->args.prompts, prompt_id);
    struct rollout_request request = {.ticket = ticket,
                                      .prompt_id = prompt_id,
                                      .epoch = epoch,
                                      .samples = samples,
                                      .prompt = prompt->tokens,
                                      .prompt_count = prompt->token_count,
                                      .schedule = schedule};
    RL_TRY(rollout_generator_submit(sampler->generator, &request));
    sampler->pending++;
    sampler->submitted_samples += samples;
    return RL_OK;
}

void sampler_set_image_source(struct sampler *sampler, rollout_image_fn source, void *arg)
{
    rollout_generator_set_image_source(sampler->generator, source, arg);
}

/* Hand finished groups to the pool as far as it takes them. */
static rl_status score_finished(struct sampler *s)
{
    while (s->pool != NULL) {
        if (s->to_score == NULL && rollout_generator_take(s->generator, &s->to_score) == RL_AGAIN) {
            return RL_OK;
        }
        rl_status status = reward_pool_submit(s->pool, s->to_score);
        if (status == RL_AGAIN) {
            return RL_OK;
        }
        RL_TRY(status);
        s->to_score = NULL;
    }
    return RL_OK;
}

rl_status sampler_step(struct sampler *sampler)
{
    bool busy = false;
    double start = rl_clock_now_s(NULL);
    RL_TRY(rollout_generator_tick(sampler->generator, &busy));
    if (busy) {
        sampler->busy_s += rl_clock_now_s(NULL) - start;
    } else {
        rl_clock_sleep_s(NULL, 0.0002);
    }
    return score_finished(sampler);
}

rl_status sampler_take(struct sampler *sampler, struct trajectory_group **group)
{
    rl_status status = sampler->pool != NULL ? reward_pool_take(sampler->pool, group)
                                             : rollout_generator_take(sampler->generator, group);
    if (status == RL_OK) {
        (*group)->finished_s = rl_clock_now_s(NULL);
        sampler->pending--;
    }
    return status;
}

uint32_t sampler_pending(const struct sampler *sampler)
{
    return sampler->pending;
}

uint64_t sampler_unfinished(const struct sampler *sampler)
{
    return sampler->submitted_samples - sampler_counters(sampler)->finished_samples;
}

uint64_t sampler_reward_timeouts(const struct sampler *sampler)
{
    return sampler->pool != NULL ? reward_pool_timeouts(sampler->pool) : 0;
}

const struct rollout_counters *sampler_counters(const struct sampler *sampler)
{
    return rollout_generator_counters(sampler->generator);
}

double sampler_busy_s(const struct sampler *sampler)
{
    return sampler->busy_s;
}
