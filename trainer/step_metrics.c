/* See step_metrics.h. */
#include "trainer/step_metrics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static void one_sample(struct rl_metrics *metrics, const struct trajectory *sample)
{
    double length = sample->completion_count;
    bool cut = sample->finish == RL_FINISH_LENGTH;
    rl_metrics_add(metrics, RL_METRIC_LENGTH_MEAN, length);
    rl_metrics_add(metrics, RL_METRIC_LENGTH_MIN, length);
    rl_metrics_add(metrics, RL_METRIC_LENGTH_MAX, length);
    rl_metrics_add(metrics, RL_METRIC_LENGTH_HISTOGRAM, length);
    rl_metrics_add(metrics, RL_METRIC_CLIPPED_RATIO, cut);
    if (!cut) {
        rl_metrics_add(metrics, RL_METRIC_LENGTH_TERMINATED, length);
    }
    rl_metrics_add(metrics, RL_METRIC_NUM_TOKENS,
                   (double)sample->prompt_count + (double)sample->completion_count);
    if (!sample->reward_valid) {
        rl_metrics_add(metrics, RL_METRIC_UNSCORABLE, 1);
        return;
    }
    bool solved = sample->accuracy >= 1;
    rl_metrics_add(metrics, RL_METRIC_REWARD, sample->reward);
    rl_metrics_add(metrics, RL_METRIC_ACCURACY, solved);
    rl_metrics_add(metrics, solved ? RL_METRIC_LENGTH_SOLVED : RL_METRIC_LENGTH_UNSOLVED, length);
}

/* Standard deviation of the group's valid rewards with ddof 1, and whether any sample is right. */
static void one_group(struct rl_metrics *metrics, const struct trajectory_group *group)
{
    double sum = 0;
    double squares = 0;
    double count = 0;
    bool solved = false;
    for (uint32_t i = 0; i < group->sample_count; i++) {
        const struct trajectory *sample = &group->samples[i];
        one_sample(metrics, sample);
        if (sample->reward_valid) {
            sum += sample->reward;
            squares += (double)sample->reward * (double)sample->reward;
            count += 1;
            solved = solved || sample->accuracy >= 1;
        }
    }
    rl_metrics_add(metrics, RL_METRIC_PASS_AT_K, solved);
    if (count > 1) {
        double variance = (squares - sum * sum / count) / (count - 1);
        rl_metrics_add(metrics, RL_METRIC_REWARD_STD, sqrt(variance > 0 ? variance : 0));
    }
}

static void one_part(struct rl_metrics *metrics, struct trajectory_group *const *groups,
                     uint32_t count, const char *name, uint32_t part)
{
    double sum = 0;
    double samples = 0;
    char key[RL_METRIC_NAME_BYTES];
    for (uint32_t g = 0; g < count; g++) {
        for (uint32_t i = 0; i < groups[g]->sample_count; i++) {
            const struct trajectory *sample = &groups[g]->samples[i];
            if (sample->reward_valid && part < sample->reward_part_count &&
                isfinite(sample->reward_part[part])) {
                sum += sample->reward_part[part];
                samples += 1;
            }
        }
    }
    if (samples > 0) {
        snprintf(key, sizeof(key), "rewards/%s/mean", name);
        rl_metrics_set_named(metrics, key, sum / samples);
    }
}

void step_metrics_groups(struct rl_metrics *metrics, struct trajectory_group *const *groups,
                         uint32_t count, const char *const *reward_names, uint32_t reward_count)
{
    for (uint32_t i = 0; i < count; i++) {
        one_group(metrics, groups[i]);
    }
    for (uint32_t i = 0; i < reward_count; i++) {
        one_part(metrics, groups, count, reward_names[i], i);
    }
}

static void token_mean(struct rl_metrics *metrics, enum rl_metric_id id, double sum, double tokens)
{
    rl_metrics_add_sum(metrics, id, sum, tokens);
}

static void extreme(struct rl_metrics *metrics, enum rl_metric_id id, double value)
{
    if (isfinite(value)) {
        rl_metrics_add(metrics, id, value);
    }
}

/* Sampler against learner by the same version. Where they are to agree only the largest difference
 * matters; int8 weights are another policy. */
static void mismatch_metrics(struct rl_metrics *metrics, const struct rl_config *config,
                             const struct objective_stats *stats)
{
    const bool quantized = config->rollout.quantize == CONFIG_QUANTIZE_INT8;
    if (stats->sum.mismatch_tokens == 0) {
        return;
    }
    if (quantized) {
        token_mean(metrics, RL_METRIC_QUANTIZATION_GAP_MEAN, stats->sum.mismatch,
                   stats->sum.mismatch_tokens);
    }
    extreme(metrics, quantized ? RL_METRIC_QUANTIZATION_GAP_MAX : RL_METRIC_LOGPROB_MISMATCH,
            stats->max.mismatch_max);
}

static void objective_metrics(struct rl_metrics *metrics, const struct objective_stats *stats)
{
    const struct objective_sums *sum = &stats->sum;
    double n = sum->tokens;
    token_mean(metrics, RL_METRIC_ENTROPY, sum->entropy, n);
    token_mean(metrics, RL_METRIC_POLICY_KL, sum->policy_kl, n);
    token_mean(metrics, RL_METRIC_CLIP_LOW, sum->clip_low, n);
    token_mean(metrics, RL_METRIC_CLIP_HIGH, sum->clip_high, n);
    token_mean(metrics, RL_METRIC_CLIP_REGION, sum->clip_low + sum->clip_high, n);
    token_mean(metrics, RL_METRIC_RATIO_MEAN, sum->ratio, n);
    token_mean(metrics, RL_METRIC_ADVANTAGE_LENGTH_WEIGHTED, sum->advantage, n);
    token_mean(metrics, RL_METRIC_FIPO_DUAL_CLIP, sum->clip_dual, n);
    token_mean(metrics, RL_METRIC_STALENESS_MEAN, sum->staleness, sum->staleness_tokens);
    extreme(metrics, RL_METRIC_STALENESS_MAX, stats->max.staleness_max);
    extreme(metrics, RL_METRIC_RATIO_MAX, stats->max.ratio_max);
    extreme(metrics, RL_METRIC_RATIO_MIN, stats->min.ratio_min);
    if (n > 0 && sum->ratio_squared > 0) {
        rl_metrics_add(metrics, RL_METRIC_ESS, sum->ratio * sum->ratio / (n * sum->ratio_squared));
    }
}

static void fipo_metrics(struct rl_metrics *metrics, const struct objective_stats *stats)
{
    const struct objective_sums *sum = &stats->sum;
    double n = sum->tokens;
    if (!isfinite(stats->max.influence_max)) {
        return; /* another objective: no influence weights were made */
    }
    token_mean(metrics, RL_METRIC_FIPO_FUTURE_KL, sum->future_kl, n);
    token_mean(metrics, RL_METRIC_FIPO_WEIGHT_MEAN, sum->influence, n);
    token_mean(metrics, RL_METRIC_FIPO_CLIP_HIGH, sum->influence_upper, n);
    token_mean(metrics, RL_METRIC_FIPO_CLIP_LOW, sum->influence_lower, n);
    token_mean(metrics, RL_METRIC_FIPO_SAFETY, sum->influence_safety, n);
    token_mean(metrics, RL_METRIC_FIPO_DROPPED, sum->sequences_dropped, sum->sequences);
    extreme(metrics, RL_METRIC_FIPO_WEIGHT_MIN, stats->min.influence_min);
    extreme(metrics, RL_METRIC_FIPO_WEIGHT_MAX, stats->max.influence_max);
}

/* E[rho^2] - 1: how far the learner's policy is from what sampled, as chi-squared. */
static void chi_squared(struct rl_metrics *metrics, enum rl_metric_id id, double squares, double n)
{
    if (n > 0) {
        rl_metrics_add(metrics, id, squares / n - 1);
    }
}

/* Nothing is said where old is the sampler's policy: rho is 1 by definition there. */
static void correction_metrics(struct rl_metrics *metrics, const struct objective_stats *stats)
{
    const struct objective_sums *sum = &stats->sum;
    double n = sum->rho_tokens;
    if (n <= 0) {
        return;
    }
    double mean = sum->weight / n;
    double variance = fmax(0, sum->weight_squared / n - mean * mean);
    token_mean(metrics, RL_METRIC_MISMATCH_KL, sum->behaviour_kl, n);
    token_mean(metrics, RL_METRIC_MISMATCH_K3, sum->behaviour_kl3, n);
    token_mean(metrics, RL_METRIC_RHO_MEAN, sum->rho, n);
    extreme(metrics, RL_METRIC_RHO_MAX, stats->max.rho_max);
    extreme(metrics, RL_METRIC_RHO_MIN, stats->min.rho_min);
    chi_squared(metrics, RL_METRIC_RHO_CHI2, sum->rho_squared, n);
    chi_squared(metrics, RL_METRIC_RHO_CHI2_SEQUENCE, sum->sequence_rho_squared,
                sum->rho_sequences);
    token_mean(metrics, RL_METRIC_CORRECTION_MEAN, sum->weight, n);
    rl_metrics_add(metrics, RL_METRIC_CORRECTION_STD, sqrt(variance));
    extreme(metrics, RL_METRIC_CORRECTION_MAX, stats->max.weight_max);
    extreme(metrics, RL_METRIC_CORRECTION_MIN, stats->min.weight_min);
    rl_metrics_add(metrics, RL_METRIC_CORRECTION_ESS,
                   sum->weight_squared > 0 ? sum->weight * mean / sum->weight_squared : 0);
    token_mean(metrics, RL_METRIC_CORRECTION_CLIPPED, sum->weight_clipped, n);
    token_mean(metrics, RL_METRIC_CORRECTION_MASKED, sum->weight_masked, n);
    token_mean(metrics, RL_METRIC_CORRECTION_OPSM, sum->tokens_opsm, n);
    token_mean(metrics, RL_METRIC_CORRECTION_M2PO, sum->tokens_m2po, n);
    token_mean(metrics, RL_METRIC_CORRECTION_SEQUENCES, sum->sequences_masked, sum->rho_sequences);
    token_mean(metrics, RL_METRIC_CORRECTION_VETO, sum->sequences_vetoed, sum->rho_sequences);
}

/* Share of the step's tokens at each staleness that occurred. */
static void staleness_metrics(struct rl_metrics *metrics, const struct objective_stats *stats)
{
    const double *bucket = objective_stats_staleness(stats);
    char key[RL_METRIC_NAME_BYTES];
    for (int i = 0; i < OBJECTIVE_STALENESS_BUCKETS; i++) {
        if (bucket[i] > 0) {
            snprintf(key, sizeof(key), "staleness/hist_%d", i);
            rl_metrics_set_named(metrics, key, bucket[i] / stats->sum.staleness_tokens);
        }
    }
}

void step_metrics_report(struct rl_metrics *metrics, const struct rl_config *config,
                         const struct learner_report *report)
{
    const struct objective_sums *sum = &report->objective.sum;
    double learning_s =
        report->prepare_s + report->forward_backward_s + report->reduce_s + report->update_s;
    objective_metrics(metrics, &report->objective);
    mismatch_metrics(metrics, config, &report->objective);
    fipo_metrics(metrics, &report->objective);
    correction_metrics(metrics, &report->objective);
    staleness_metrics(metrics, &report->objective);
    if (sum->reference_kl != 0) {
        token_mean(metrics, RL_METRIC_KL, sum->reference_kl, sum->tokens);
    }
    rl_metrics_add_sum(metrics, RL_METRIC_FRAC_REWARD_ZERO_STD, report->advantage.zero_std_groups,
                       report->advantage.group_count);
    rl_metrics_add(metrics, RL_METRIC_LOSS, report->loss);
    rl_metrics_add(metrics, RL_METRIC_GRAD_NORM, report->grad_norm);
    rl_metrics_add(metrics, RL_METRIC_LEARNING_RATE, report->learning_rate);
    rl_metrics_add(metrics, RL_METRIC_UPDATES, (double)report->updates);
    rl_metrics_add(metrics, RL_METRIC_SKIPPED_UPDATES, (double)report->skipped);
    rl_metrics_add(metrics, RL_METRIC_OUTLIER_UPDATES, (double)report->outliers);
    rl_metrics_add(metrics, RL_METRIC_GRAD_NORM_SCORE, report->norm_score);
    rl_metrics_add(metrics, RL_METRIC_VERSION, report->version);
    if (report->updates > 0) {
        rl_metrics_add(metrics, RL_METRIC_WEIGHTS_CHANGED, report->changed_fraction);
    }
    if (learning_s > 0) {
        rl_metrics_add(metrics, RL_METRIC_LEARNER_TOKENS_PER_SECOND,
                       (double)report->tokens / learning_s);
    }
}

static bool has_success(const struct trajectory_group *group)
{
    for (uint32_t i = 0; i < group->sample_count; i++) {
        if (group->samples[i].reward_valid && group->samples[i].accuracy >= 1) {
            return true;
        }
    }
    return false;
}

void step_metrics_teacher(struct rl_metrics *metrics, const struct rl_config *config,
                          struct trajectory_group *const *groups, uint32_t count,
                          const struct learner_report *report)
{
    const struct objective_sums *sum = &report->objective.sum;
    if (config->teacher.loss == CONFIG_TEACHER_NONE) {
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        rl_metrics_add(metrics, RL_METRIC_DISTILL_SUCCESS, has_success(groups[i]));
    }
    rl_metrics_add(metrics, RL_METRIC_DISTILL_LOSS, report->distill_loss);
    rl_metrics_add(metrics, RL_METRIC_DISTILL_POLICY_LOSS, report->policy_loss);
    token_mean(metrics, RL_METRIC_DISTILL_REPROMPTED, sum->taught_sequences, sum->sequences);
    token_mean(metrics, RL_METRIC_DISTILL_GAP, sum->teacher_gap, sum->taught_tokens);
    if (config->teacher.loss == CONFIG_TEACHER_RLSD) {
        rl_metrics_add(metrics, RL_METRIC_RLSD_LAMBDA, report->teacher_lambda);
    }
    if (config->teacher.loss == CONFIG_TEACHER_SDAR) {
        token_mean(metrics, RL_METRIC_SDAR_GATE, sum->teacher_gate, sum->taught_tokens);
        token_mean(metrics, RL_METRIC_SDAR_GAP, sum->teacher_gap, sum->taught_tokens);
    }
}

void step_metrics_weights(struct rl_metrics *metrics, const struct weight_sender_counters *sent,
                          size_t image_bytes)
{
    if (sent->sends == 0) {
        return;
    }
    rl_metrics_add(metrics, RL_METRIC_WEIGHTS_BYTES, (double)sent->bytes / (double)sent->sends);
    rl_metrics_add(metrics, RL_METRIC_WEIGHTS_FULL_IMAGE, (double)image_bytes);
    rl_metrics_add(metrics, RL_METRIC_WEIGHTS_FULL_SENDS, (double)sent->full_sends);
    rl_metrics_add(metrics, RL_METRIC_WEIGHTS_REFUSED, (double)sent->refused);
    rl_metrics_add(metrics, RL_METRIC_TIME_WEIGHT_ENCODE, sent->encode_s);
}

void step_metrics_tickets(struct rl_metrics *metrics, const struct dispatcher_counters *counters)
{
    const struct dispatcher_counters *c = counters;
    double dropped = 0;
    double live = 0;
    for (int i = 0; i < DISPATCHER_REASON_COUNT; i++) {
        dropped += (double)c->dropped[i];
    }
    for (int i = 0; i < DISPATCHER_STATE_COUNT; i++) {
        live += (double)c->live[i];
    }
    double past = (double)c->trained + dropped;
    double admitted = past + (double)c->live[DISPATCHER_ADMITTED];
    double scored = admitted + (double)c->live[DISPATCHER_SCORED];
    rl_metrics_add(metrics, RL_METRIC_TICKETS_ISSUED, (double)c->created);
    rl_metrics_add(metrics, RL_METRIC_TICKETS_GENERATED,
                   scored + (double)c->live[DISPATCHER_GENERATED]);
    rl_metrics_add(metrics, RL_METRIC_TICKETS_SCORED, scored);
    rl_metrics_add(metrics, RL_METRIC_TICKETS_ADMITTED, admitted);
    rl_metrics_add(metrics, RL_METRIC_TICKETS_TRAINED, (double)c->trained);
    rl_metrics_add(metrics, RL_METRIC_TICKETS_DROPPED, dropped);
    rl_metrics_add(metrics, RL_METRIC_TICKETS_OUTSTANDING, live);
    rl_metrics_add(metrics, RL_METRIC_TICKETS_REISSUED, (double)c->reissues);
    if (c->trained > 0) {
        rl_metrics_add(metrics, RL_METRIC_GENERATION_ROUNDS, past / (double)c->trained);
    }
}

static double get(const struct rl_metrics *metrics, enum rl_metric_id id)
{
    double value = NAN;
    (void)rl_metrics_get(metrics, id, &value);
    return value;
}

void step_metrics_progress(const struct rl_metrics *metrics, int64_t step,
                           struct progress_step *out)
{
    *out = (struct progress_step){.step = step,
                                  .reward = get(metrics, RL_METRIC_REWARD),
                                  .accuracy = get(metrics, RL_METRIC_ACCURACY),
                                  .length = get(metrics, RL_METRIC_LENGTH_MEAN),
                                  .entropy = get(metrics, RL_METRIC_ENTROPY),
                                  .staleness_mean = get(metrics, RL_METRIC_STALENESS_MEAN),
                                  .staleness_max = get(metrics, RL_METRIC_STALENESS_MAX),
                                  .rollout_rate = get(metrics, RL_METRIC_ROLLOUT_TOKENS_PER_SECOND),
                                  .learner_rate = get(metrics, RL_METRIC_LEARNER_TOKENS_PER_SECOND),
                                  .step_s = get(metrics, RL_METRIC_STEP_TIME),
                                  .eta_s = NAN};
}
