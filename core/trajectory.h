/* A trajectory is one sampled completion of one prompt with what is needed to train on it: the
 * exact ids that the sampler saw, each token's behaviour log-prob and weight version, the reward.
 * A group is the G trajectories of one ticket; it is the unit of advantage, admission and
 * transport. Groups own all their memory in one block per trajectory; nobody else holds pointers
 * into it. */
#ifndef FORESIGHT_CORE_TRAJECTORY_H
#define FORESIGHT_CORE_TRAJECTORY_H

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

enum rl_finish { RL_FINISH_NONE, RL_FINISH_STOP, RL_FINISH_LENGTH, RL_FINISH_ABORTED };

enum { RL_REWARD_PARTS_MAX = 8 };

struct trajectory {
    uint32_t sample_index;     /* 0 .. G-1 in the group */
    uint32_t prompt_count;     /* tokens of the prompt */
    uint32_t completion_count; /* sampled tokens, the stop token included */
    enum rl_finish finish;     /* why sampling ended */
    bool reward_valid;         /* false: unscorable (null); excluded from the group's statistics */
    float reward;              /* weighted sum of the parts, shaping included */
    float accuracy;  /* first reward part before weights and shaping; pass@k counts >= 1 */
    float kept_mass; /* what truncation left of a token's probability, mean over the completion */
    uint32_t reward_part_count; /* reward functions in use */
    float reward_part[RL_REWARD_PARTS_MAX];
    int32_t *tokens;   /* [prompt_count + completion_count] ids as sampled, prompt first */
    float *logprob;    /* [completion_count] nats, behaviour policy, at the sampling temperature */
    uint32_t *version; /* [completion_count] weight version that produced the token */
};

struct trajectory_group {
    uint64_t ticket;    /* dispatcher's number, unique in the run */
    uint64_t prompt_id; /* row of the data set */
    uint32_t epoch;
    uint32_t sample_count;      /* G */
    int32_t worker;             /* world rank that generated it */
    double started_s;           /* worker's clock: first token; for metrics only */
    double finished_s;          /* worker's clock: scored */
    struct trajectory *samples; /* [G] */
};

/* Allocate a group with G empty samples. Caller owns *out. Errors: RL_NO_MEMORY. */
rl_status trajectory_group_create(uint32_t sample_count, struct trajectory_group **out);

/* Free the group and its samples' arrays. Takes NULL. */
void trajectory_group_destroy(struct trajectory_group *group);

/* Set one sample's token arrays by copying: `tokens` [prompt + completion], `logprob` and `version`
 * [completion]. Replaces what was there. Errors: RL_NO_MEMORY (the sample is unchanged). */
rl_status trajectory_set_tokens(struct trajectory *sample, const int32_t *tokens,
                                const float *logprob, const uint32_t *version,
                                uint32_t prompt_count, uint32_t completion_count);

/* Deep copy. Caller owns *out. Errors: RL_NO_MEMORY. */
rl_status trajectory_group_copy(const struct trajectory_group *group,
                                struct trajectory_group **out);

/* Check what must always hold: counts, finite log-probs <= 0, sample indices in order, rewards
 * finite where valid. Errors: RL_INVALID with the field named. */
rl_status trajectory_group_check(const struct trajectory_group *group);

/* Oldest and newest weight version of any token; both 0 for a group without tokens. */
void trajectory_group_versions(const struct trajectory_group *group, uint32_t *oldest,
                               uint32_t *newest);

#endif
