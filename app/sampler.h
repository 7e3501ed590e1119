/* Engine and scoring side by side in one process: groups in, scored groups out. What eval, generate
 * and the synchronous trainer share; the asynchronous worker runs rollout/worker instead. */
#ifndef FORESIGHT_APP_SAMPLER_H
#define FORESIGHT_APP_SAMPLER_H

#include "app/session.h"

struct sampler;

struct sampler_args {
    const struct session *session;    /* borrowed */
    const struct rl_config *config;   /* rewards.*; borrowed */
    const struct prompts *prompts;    /* borrowed */
    const struct reward_set *rewards; /* borrowed; NULL: groups come out unscored */
    struct rollout_generator_options options;
};

/* Caller owns *out. */
rl_status sampler_create(const struct sampler_args *args, struct sampler **out);
void sampler_destroy(struct sampler *sampler);

/* Weights for the next pass, in the host's memory, valid until the next call; a GPU has a copy of
 * them on return. Errors: RL_NO_MEMORY, the device's. */
rl_status sampler_load_weights(struct sampler *sampler, struct device_source image,
                               uint32_t version);

/* Queue `samples` completions of prompt `prompt_id`. RL_AGAIN: full, call sampler_step first. */
rl_status sampler_submit(struct sampler *sampler, uint64_t ticket, uint64_t prompt_id,
                         uint32_t epoch, uint32_t samples);

/* The same by recorded versions: schedule [samples], copied, says which version samples from which
 * token on. Needs an image source. */
rl_status sampler_submit_scheduled(struct sampler *sampler, uint64_t ticket, uint64_t prompt_id,
                                   uint32_t epoch, uint32_t samples,
                                   const struct rollout_schedule *schedule);

/* Where images of scheduled versions come from; see rollout_generator_set_image_source. */
void sampler_set_image_source(struct sampler *sampler, rollout_image_fn source, void *arg);

/* One forward pass, and groups moved on to scoring. Sleeps briefly if only scoring is left. */
rl_status sampler_step(struct sampler *sampler);

/* A scored group; RL_AGAIN if none is ready. Caller owns it. */
rl_status sampler_take(struct sampler *sampler, struct trajectory_group **group);

/* Groups submitted and not yet taken. */
uint32_t sampler_pending(const struct sampler *sampler);

/* Samples submitted that the engine has not finished. As long as there are max_running of them it
 * runs full; groups pending say less, for most of their samples may be done. */
uint64_t sampler_unfinished(const struct sampler *sampler);

/* Samples whose reward ran out of time, and the counters of generation; borrowed. */
uint64_t sampler_reward_timeouts(const struct sampler *sampler);
const struct rollout_counters *sampler_counters(const struct sampler *sampler);

/* Seconds spent in forward passes. */
double sampler_busy_s(const struct sampler *sampler);

#endif
