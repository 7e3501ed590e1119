/* All prompts of a set sampled n times each and scored, by one process or shared among ranks: what
 * eval and generate do before they print. */
#ifndef FORESIGHT_APP_SAMPLE_SET_H
#define FORESIGHT_APP_SAMPLE_SET_H

#include "app/sampler.h"
#include "transport/collective.h"

struct sample_set_args {
    const struct session *session;
    const struct prompts *prompts;
    const struct reward_set *rewards; /* NULL: unscored */
    struct collective *collective;    /* NULL: this process alone */
    const char *label;                /* of the progress bar; NULL: none */
    uint64_t limit;                   /* first so many prompts; 0: all */
    uint32_t samples;                 /* a prompt */
    uint32_t epoch;                   /* part of the random numbers' key */
    struct rollout_generator_options options;
};

struct sample_set {
    struct trajectory_group **groups; /* [count], in order of prompt */
    uint64_t count;
    double sampled_tokens, timeouts, cpu_s; /* of all ranks */
    double wall_s, busy_s;                  /* of this one */
};

/* Weights of model.path as an image for any number of sets. Caller frees with device_free. Errors:
 * those of loading. */
rl_status sample_set_load(const struct session *session, void **image);

/* Generate under the weights of `image`. With several ranks each samples every size-th prompt and
 * rank 0 gets the groups of all, the same that one process makes; elsewhere only its own are not
 * NULL. All ranks call it alike. Release with sample_set_fini. Errors: RL_INTERRUPTED by a signal
 * (to any rank); those of the engine and of the collective. */
rl_status sample_set_run(const struct sample_set_args *args, const void *image,
                         struct sample_set *out);
void sample_set_fini(struct sample_set *set);

/* Text of a completion; caller frees *text. */
rl_status sample_set_text(const struct session *session, const struct trajectory *sample,
                          char **text);

#endif
