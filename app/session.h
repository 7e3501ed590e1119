/* What most commands set up first, from a configuration: tokenizer, chat template, architecture,
 * parameter layout, kernels, threads. Owns them; weights are loaded on request. */
#ifndef FORESIGHT_APP_SESSION_H
#define FORESIGHT_APP_SESSION_H

#include "core/config.h"
#include "core/cores.h"
#include "core/pool.h"
#include "model/chat.h"
#include "model/forward.h"
#include "model/tokenizer.h"
#include "rewards/reward.h"
#include "rollout/generator.h"
#include "rollout/prompts.h"

struct session {
    const struct rl_config *config; /* borrowed */
    struct tokenizer *tokenizer;
    struct chat_template *chat; /* NULL: none */
    struct model_layout *layout;
    const struct kernel_table *kernels;
    struct device *device;  /* a GPU, or NULL: the CPU */
    int gpus;               /* of this machine, if one is used */
    struct rl_pool *pool;   /* with a stream of the GPU */
    struct rl_cores *cores; /* claimed for the pool, or NULL */
    struct model_context context;
};

/* Set up from model.path, model.tokenizer, kernels.*, run.threads. `max_length`: longest sequence
 * that will be used, tokens. `local_rank`: this rank's number on its machine, which chooses among
 * several GPUs. Release with session_close (also after an error).
 * Errors: RL_INVALID if the tokenizer has ids that the model lacks; RL_UNSUPPORTED if the GPU or
 * the kernels asked for are not there; those of the loaders. */
rl_status session_open(const struct rl_config *config, int64_t max_length, int local_rank,
                       struct session *session);
void session_close(struct session *session);

/* What all ranks of a run must have in common, as one number: the prompts, the kind of device,
 * whose order of packed weights is its own, and how GPUs add up. Waits for the pool's stream.
 * Errors: those of session_numerics. */
rl_status session_agreement(const struct session *session, const struct prompts *prompts,
                            uint64_t *out);

/* Prompt + completion limit of the configuration: model.max_length, or the two limits added. */
int64_t session_max_length(const struct rl_config *config);

/* The same for a learner, whose teacher's prompts may be longer than the run's own. */
int64_t session_learner_length(const struct rl_config *config);

/* Load weights of the folder `dir` into a new master slab. Caller frees with device_free. */
rl_status session_load_master(const struct session *session, const char *dir, float **master);

/* The image of the weights in the folder `dir`, in the host's memory and the order of the session's
 * kernels, without a master slab. Caller frees with device_free. */
rl_status session_load_image(const struct session *session, const char *dir, void **image);

/* A new image of a master slab. Caller frees with device_free. */
rl_status session_make_image(const struct session *session, const float *master, void **image);

/* Options of the rollout engine from rollout.*, for training: of the one process that learns too
 * (`together`), or of a rollout rank. */
void session_training_options(const struct rl_config *config, bool together,
                              struct rollout_generator_options *out);

/* The same for sampling many groups of so many samples without pause: with room for groups of which
 * only the longest samples still run. */
void session_sampling_options(const struct rl_config *config, uint32_t samples,
                              struct rollout_generator_options *out);

/* Text of a scored sample for the reward pool; `arg` is a struct session_texts. */
struct session_texts {
    const struct tokenizer *tokenizer;
    const struct prompts *prompts;
};
struct reward_text_ops session_reward_texts(struct session_texts *texts);

#endif
