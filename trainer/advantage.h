/* Advantages of sequences from scalar rewards, group by group. Pure: no model, no file, no clock.
 * Statistics are taken in double over the valid rewards of a group; a group whose valid rewards are
 * all equal (a group with a single valid reward included) gives exactly 0, never a rounding error
 * divided by a tiny epsilon. An unscorable sample takes no part and has advantage 0.
 * Formulas: GRPO (arXiv 2402.03300), Dr.GRPO (2503.20783), RLOO (2402.14740), batch std as in TRL's
 * scale_rewards="batch", MaxRL (R - mean)/mean for rewards >= 0 (0 where the mean is not above 0).
 */
#ifndef FORESIGHT_TRAINER_ADVANTAGE_H
#define FORESIGHT_TRAINER_ADVANTAGE_H

#include "core/config.h"
#include "core/trajectory.h"

struct advantage_options {
    enum config_advantage mode;
    int ddof;              /* 0 or 1: taken off the count in the standard deviation */
    double epsilon;        /* added to the standard deviation */
    double gamma;          /* discount of REINFORCE++'s returns */
    double rho_max, c_max; /* V-trace's bounds, >= 1 */
    bool mask_truncated;   /* what was cut at the limit carries no loss: not whitened with */
};

/* Rewards of all groups, one after the other. Borrowed. */
struct advantage_input {
    uint32_t group_count;
    const uint32_t *group_size; /* [group_count] samples in each group */
    const double *reward;       /* [sum of group_size] */
    const uint8_t *valid;       /* same length, 0: unscorable; NULL: all valid. A reward that is not
                                   finite counts as unscorable whatever this says */
};

/* What the batch looked like; means over valid samples (0 where there are none). */
struct advantage_stats {
    uint32_t sample_count, valid_count;
    uint32_t group_count;
    uint32_t
        zero_std_groups; /* groups without any signal: all valid rewards equal, or none valid */
    double reward_mean, reward_std; /* over all valid samples; std with the options' ddof */
    double reward_min, reward_max;
    double group_std_mean; /* mean of the groups' standard deviations */
};

/* Options from loss.advantage*, or what loss_type is known for. */
void advantage_options_from_config(const struct rl_config *config, struct advantage_options *out);

/* advantage [sum of group_size]. `stats` may be NULL. */
void advantage_compute(const struct advantage_options *options, const struct advantage_input *input,
                       float *advantage, struct advantage_stats *stats);

/* The same for groups of trajectories. `penalty` [samples of all groups, group by group] is taken
 * off each reward first (KL in the reward; NaN makes the sample unscorable); NULL: none.
 * `advantage` has the same order. `stats` may be NULL. Errors: RL_NO_MEMORY. */
rl_status advantage_of_groups(const struct advantage_options *options,
                              struct trajectory_group *const *groups, uint32_t group_count,
                              const double *penalty, float *advantage,
                              struct advantage_stats *stats);

/* True for advantages that differ from token to token: REINFORCE++, its baseline form, V-trace.
 * Then advantage_of_groups gives R - mean of the group, and advantage_of_tokens or advantage_vtrace
 * what to train with. */
bool advantage_by_token(const struct advantage_options *options);

/* Completion tokens of all groups: the length of what advantage_of_tokens writes. */
size_t advantage_token_count(struct trajectory_group *const *groups, uint32_t group_count);

/* REINFORCE++ (arXiv 2501.03262): returns G_t = r_t + gamma G_{t+1}, where r is the reward at the
 * last token less `penalty` of each token [tokens] (KL in the reward; NULL: none). The baseline
 * form: `sample` [samples], which advantage_of_groups gave, at each token. Either is whitened over
 * all tokens of all groups, (x - mean) / sqrt(var + 1e-8), so that long answers weigh more. Every
 * learner holds all groups (and all penalties, once summed), so all compute the same bits without
 * asking each other. 0 for tokens of unscorable samples, of masked ones, of samples with a penalty
 * that is not finite, and where all values are equal. `advantage` [tokens], group by group, sample
 * by sample. */
void advantage_of_tokens(const struct advantage_options *options,
                         struct trajectory_group *const *groups, uint32_t group_count,
                         const float *sample, const float *penalty, float *advantage);

/* V-trace (IMPALA, arXiv 1802.01561) without a critic: the value of every token is the mean reward
 * of the group, the reward comes at the end, nothing is discounted. With rho = exp(old -
 * behaviour), the last token has min(rho, rho_max) (R - mean); one before it min(rho, rho_max)
 * times the product of the later tokens' min(rho, c_max), the last one's bounded by rho_max, times
 * (R - mean). `advantage` [count]; where the policies agree it is `sample` exactly. */
void advantage_vtrace(const struct advantage_options *options, float sample, const float *old,
                      const float *behaviour, uint32_t count, float *advantage);

#endif
