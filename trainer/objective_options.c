/* From the options table to what the objective computes with. Owns what each loss_type stands for.
 */
#include "core/log.h"
#include "trainer/objective.h"

static enum objective_aggregation objective_auto_aggregation(int loss_type)
{
#define OBJECTIVE_AGGREGATION(id, name, form, ratio, aggregation, ...)                             \
    [CONFIG_LOSS_##id] = OBJECTIVE_##aggregation,
    static const enum objective_aggregation known[CONFIG_LOSS_COUNT] = {
        RL_OBJECTIVES(OBJECTIVE_AGGREGATION)};
    return known[loss_type];
#undef OBJECTIVE_AGGREGATION
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
        return objective_auto_aggregation(config->loss.loss_type);
    }
}

static void objective_fill_options(const struct rl_config *config, struct objective_options *out)
{
    int64_t scale = config->loss.loss_scale_factor > 0 ? config->loss.loss_scale_factor
                                                       : config->rollout.max_completion_length;
    struct rl_loss_settings loss;
    rl_config_loss_settings(config, &loss);
    *out = (struct objective_options){
        .loss_type = (enum config_loss_type)config->loss.loss_type,
        .aggregation = objective_aggregation_of(config),
        .loss_scale = (double)scale,
        .epsilon_low = loss.epsilon_low,
        .epsilon_high = loss.epsilon_high,
        .delta = loss.delta,
        .fipo_decay_rate = config->loss.fipo_decay_rate,
        .fipo_clip_range = config->loss.fipo_clip_range,
        .fipo_clip_high_only = config->loss.fipo_clip_high_only,
        .fipo_safety_threshold = config->loss.fipo_safety_threshold,
        .fipo_drop_sequences = config->loss.fipo_drop_sequences,
        .fipo_decay_over_masked = config->loss.fipo_decay_over_masked,
        .beta = config->loss.kl_in == CONFIG_KL_IN_LOSS ? config->loss.beta : 0,
        .kl_type = (enum config_kl_type)config->loss.kl_type,
        .entropy_coef = config->loss.entropy_coef,
        .sapo_positive = config->loss.sapo_temperature_pos,
        .sapo_negative = config->loss.sapo_temperature_neg,
        .dppo_low = config->loss.dppo_mask_low,
        .dppo_high = config->loss.dppo_mask_high,
        .dppo_kl = config->loss.dppo_kl_coef,
        .vespo_k_positive = config->loss.vespo_k_pos,
        .vespo_lambda_positive = config->loss.vespo_lambda_pos,
        .vespo_k_negative = config->loss.vespo_k_neg,
        .vespo_lambda_negative = config->loss.vespo_lambda_neg,
        .loglinear = config->loss.old_logprob == CONFIG_OLD_LOGLINEAR,
        .correction = loss.correction,
        .correction_low = loss.correction_low,
        .correction_high = loss.correction_high,
        .correction_normalize = config->loss.correction_normalize,
        .veto_threshold = config->loss.veto_threshold,
        .opsm_delta = config->loss.opsm_delta,
        .m2po_threshold = config->loss.m2po_threshold,
        .teacher = {.loss = (enum config_teacher_loss)config->teacher.loss,
                    .by_logits = config->teacher.loss == CONFIG_TEACHER_SDPO &&
                                 config->teacher.logits != CONFIG_TEACHER_SAMPLED_TOKEN,
                    .weight = config->teacher.weight,
                    .lambda = config->teacher.lambda,
                    .ratio_clip = config->teacher.ratio_clip,
                    .negative_only = config->teacher.negative_only,
                    .is_clip = config->teacher.is_clip,
                    .gate = config->teacher.gate},
    };
}

rl_status objective_options_from_config(const struct rl_config *config,
                                        struct objective_options *out)
{
    struct objective_options options;
    objective_fill_options(config, &options);
    if (options.delta > 0 && options.delta <= 1) {
        return rl_fail(RL_INVALID, "loss.delta is %g: the dual clip must be above 1, or 0 (off)",
                       options.delta);
    }
    *out = options;
    return RL_OK;
}

bool objective_needs_proximal(const struct rl_config *config)
{
    return config->loss.old_logprob == CONFIG_OLD_RECOMPUTE || config->loss.m2po_threshold > 0;
}

bool objective_needs_reference(const struct rl_config *config)
{
    return config->loss.beta > 0;
}
