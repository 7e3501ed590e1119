/* From the options table to what the objective computes with. Owns what each loss_type stands for.
 */
#include "core/log.h"
#include "trainer/objective.h"

static enum objective_aggregation objective_auto_aggregation(enum config_loss_type type)
{
    switch (type) {
    case CONFIG_LOSS_GRPO:
        return OBJECTIVE_SEQ_MEAN_TOKEN_MEAN;
    case CONFIG_LOSS_DR_GRPO:
        return OBJECTIVE_SEQ_MEAN_TOKEN_SUM_NORM;
    case CONFIG_LOSS_FIPO:
    case CONFIG_LOSS_DAPO:
    default:
        return OBJECTIVE_TOKEN_MEAN;
    }
}

static enum objective_aggregation objective_aggregation_of(const struct rl_config *config)
{
    switch ((enum config_aggregation)config->loss.aggregation) {
    case CONFIG_AGG_TOKEN_MEAN:
        return OBJECTIVE_TOKEN_MEAN;
    case CONFIG_AGG_SEQ_MEAN_TOKEN_SUM:
        return OBJECTIVE_SEQ_MEAN_TOKEN_SUM;
    case CONFIG_AGG_SEQ_MEAN_TOKEN_MEAN:
        return OBJECTIVE_SEQ_MEAN_TOKEN_MEAN;
    case CONFIG_AGG_SEQ_MEAN_TOKEN_SUM_NORM:
        return OBJECTIVE_SEQ_SUM_NORM;
    case CONFIG_AGG_AUTO:
    default:
        return objective_auto_aggregation((enum config_loss_type)config->loss.loss_type);
    }
}

static void objective_fill_options(const struct rl_config *config, struct objective_options *out)
{
    int64_t scale = config->loss.loss_scale_factor > 0 ? config->loss.loss_scale_factor
                                                       : config->rollout.max_completion_length;
    bool recompute = config->loss.old_logprob == CONFIG_OLD_RECOMPUTE;
    *out = (struct objective_options){
        .loss_type = (enum config_loss_type)config->loss.loss_type,
        .aggregation = objective_aggregation_of(config),
        .loss_scale = (double)scale,
        .epsilon_low = config->loss.epsilon_low,
        .epsilon_high = config->loss.epsilon_high,
        .delta = config->loss.delta,
        .fipo_decay_rate = config->loss.fipo_decay_rate,
        .fipo_clip_range = config->loss.fipo_clip_range,
        .fipo_clip_high_only = config->loss.fipo_clip_high_only,
        .fipo_safety_threshold = config->loss.fipo_safety_threshold,
        .fipo_drop_sequences = config->loss.fipo_drop_sequences,
        .fipo_decay_over_masked = config->loss.fipo_decay_over_masked,
        .beta = config->loss.kl_in == CONFIG_KL_IN_LOSS ? config->loss.beta : 0,
        .kl_type = (enum config_kl_type)config->loss.kl_type,
        .entropy_coef = config->loss.entropy_coef,
        .tis_cap = recompute ? config->loss.tis_cap : 0,
    };
}

rl_status objective_options_from_config(const struct rl_config *config,
                                        struct objective_options *out)
{
    struct objective_options options;
    objective_fill_options(config, &options);
    bool classic =
        options.loss_type == CONFIG_LOSS_GRPO || options.loss_type == CONFIG_LOSS_DR_GRPO;
    if (classic && !rl_config_is_set(config, "loss.epsilon_high")) {
        options.epsilon_high = options.epsilon_low;
    }
    if (classic && !rl_config_is_set(config, "loss.delta")) {
        options.delta = 0;
    }
    if (options.delta > 0 && options.delta <= 1) {
        return rl_fail(RL_INVALID, "loss.delta is %g: the dual clip must be above 1, or 0 (off)",
                       options.delta);
    }
    *out = options;
    return RL_OK;
}

bool objective_needs_reference(const struct rl_config *config)
{
    return config->loss.beta > 0;
}
