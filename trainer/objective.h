/* Policy objectives: from the log-probs of one sequence to dL/dlogprob of each of its tokens.
 * Pure. One call sees one whole sequence, which is all that any of these losses needs, so that
 * micro-batches need no second forward pass: gradients come out UNNORMALISED, the denominator's
 * parts add up in the stats, and the optimizer multiplies by 1 / objective_denominator() once,
 * after gradients and stats were summed over micro-batches and ranks. A sequence that is dropped
 * leaves numerator and denominator alike, exactly.
 *
 * Masked positions are skipped before anything there is read: they may hold NaN. A value that is
 * not finite where the mask is set rejects the whole sequence, which is counted.
 *
 * Three policies: behaviour (the sampler's, several versions in one sequence), old (what ratios are
 * taken against), current. A correction weighs or masks by rho = exp(old - behaviour), detached; it
 * multiplies token losses and leaves the denominator alone. At zero staleness each weight is
 * exactly 1 and the loss has the same bits as without.
 *
 * Sources: PPO clip and dual clip; GRPO arXiv 2402.03300, DAPO 2503.14476, Dr.GRPO 2503.20783,
 * FIPO 2603.19835, GSPO 2507.18071, CISPO 2506.13585, RLOO 2402.14740, decoupled PPO 2505.24298,
 * A-3PO 2512.06547, M2PO 2510.01161, IcePop 2510.18855, sequence masking 2512.02556. Log-ratios are
 * clamped to +-20 before exp, with gradient 0 beyond. */
#ifndef FORESIGHT_TRAINER_OBJECTIVE_H
#define FORESIGHT_TRAINER_OBJECTIVE_H

#include "core/config.h"

#include <stddef.h>
#include <stdint.h>

/* How token losses l[i,t] of B sequences with n_i tokens each add up. */
enum objective_aggregation {
    OBJECTIVE_TOKEN_MEAN,              /* sum l / sum n_i */
    OBJECTIVE_SEQ_MEAN_TOKEN_SUM,      /* sum l / B */
    OBJECTIVE_SEQ_MEAN_TOKEN_MEAN,     /* sum_i (sum_t l / n_i) / B */
    OBJECTIVE_SEQ_SUM_NORM,            /* sum l / scale: verl's seq-mean-token-sum-norm, no 1/B */
    OBJECTIVE_SEQ_MEAN_TOKEN_SUM_NORM, /* sum l / (B * scale): TRL's dr_grpo */
};

/* On-policy distillation: the loss's use of the teacher's log-probs (RLSD arXiv 2604.03128, SDPO
 * 2601.20802, OPD, SDAR). Sequences without a teacher are as with NONE, but that SDPO's policy loss
 * keeps its share. */
struct objective_teacher {
    enum config_teacher_loss loss;
    bool by_logits; /* SDPO: tokens get a weight for model_divergence instead of a gradient */
    double weight;
    double lambda, ratio_clip; /* RLSD; lambda of the step */
    bool negative_only;
    double is_clip; /* ratio; 0: off */
    double gate;
};

struct objective_options {
    enum config_loss_type loss_type;
    enum objective_aggregation aggregation;
    double loss_scale; /* tokens; used by the two _NORM aggregations, > 0 */
    double epsilon_low, epsilon_high;
    double delta;           /* dual clip and participation limit c > 1; 0: off */
    double fipo_decay_rate; /* tokens: half-life, > 0 */
    double fipo_clip_range;
    bool fipo_clip_high_only;
    double fipo_safety_threshold; /* ratio; 0: off */
    bool fipo_drop_sequences;
    bool fipo_decay_over_masked;
    double beta; /* KL in the loss; 0 where it goes into the reward */
    enum config_kl_type kl_type;
    double entropy_coef;
    double sapo_positive, sapo_negative; /* steepness of the gate, > 0 */
    double dppo_low, dppo_high, dppo_kl; /* probabilities; coefficient */
    double vespo_k_positive, vespo_lambda_positive, vespo_k_negative, vespo_lambda_negative;
    bool loglinear;                    /* old lies between behaviour and current, by versions */
    enum config_correction correction; /* NONE or a row of RL_CORRECTIONS */
    double correction_low, correction_high;
    bool correction_normalize;
    double veto_threshold; /* ratio; 0: off */
    double opsm_delta;     /* nats; 0: off */
    double m2po_threshold; /* squared nats; 0: off */
    struct objective_teacher teacher;
};

/* What corrections know of the whole minibatch, over all ranks: objective_minibatch_measure. */
struct objective_minibatch {
    float gap_limit;     /* M2PO: largest squared gap that keeps its loss; +inf: all */
    double weight_scale; /* multiplies the correction's weights; 1 unless they are normalised */
};

/* One sequence's completion tokens. All borrowed, all arrays [count]. */
struct objective_sequence {
    uint32_t count;         /* n */
    const uint8_t *mask;    /* 0: no loss here; NULL: all ones */
    const float *logprob;   /* nats, current weights: the only input with a gradient */
    const float *old;       /* nats, policy that ratios are taken against; loglinear: not read */
    const float *behaviour; /* nats, sampler; NULL: no mismatch metrics and no correction */
    const float *proximal;  /* nats, learner at the start of the step, for M2PO; NULL: old */
    const float *reference; /* nats, frozen model; needed if beta > 0 */
    const float *entropy;   /* nats, current weights; NULL: not measured */
    const float *teacher;   /* nats, told more; NULL: the sequence has no teacher */
    float *g_divergence;    /* SDPO by logits: written, what dL/d(divergence) is; else not read */
    double advantage;
    const float *token_advantage; /* NULL: `advantage` for every token */
    const uint32_t *version;      /* weight version that sampled the token; NULL: not measured */
    uint32_t version_now;         /* learner's version at the start of the step */
    bool on_version; /* logprob was computed with exactly version_now's weights: tokens of that
                        version then measure logprob_mismatch */
    const struct objective_minibatch *minibatch; /* NULL: nothing was measured, nothing is cut */
};

/* Running sums, all double so that they can be reduced over ranks as one array. "tokens" below are
 * unmasked tokens of sequences that were not rejected (dropped ones are included). */
#define OBJECTIVE_SUMS(X)                                                                          \
    X(policy_loss)        /* numerators: weighted by aggregation, kept sequences only */           \
    X(kl_loss)            /* beta * kl */                                                          \
    X(entropy_loss)       /* -entropy_coef * entropy */                                            \
    X(distill_loss)       /* the teacher's: SDPO's (by logits: added by the caller) or SDAR's */   \
    X(denominator)        /* tokens or sequences, as the aggregation counts */                     \
    X(sequences)          /* seen */                                                               \
    X(sequences_kept)     /* in the loss */                                                        \
    X(sequences_dropped)  /* by FIPO's rule */                                                     \
    X(sequences_rejected) /* a value was not finite */                                             \
    X(sequences_empty)    /* no unmasked token */                                                  \
    X(tokens)                                                                                      \
    X(tokens_kept)                                                                                 \
    X(tokens_masked)                                                                               \
    X(tokens_with_gradient)                                                                        \
    X(policy_kl)    /* old - logprob */                                                            \
    X(reference_kl) /* by the estimator of kl_type */                                              \
    X(entropy)                                                                                     \
    X(advantage) /* length-weighted */                                                             \
    X(ratio)                                                                                       \
    X(ratio_squared)                                                                               \
    X(clip_low)   /* tokens: A < 0, ratio < 1 - epsilon_low */                                     \
    X(clip_high)  /* tokens: A > 0, ratio > 1 + epsilon_high */                                    \
    X(clip_dual)  /* tokens: A < 0, ratio > delta */                                               \
    X(rho_tokens) /* tokens whose rho was measured */                                              \
    X(rho)                                                                                         \
    X(rho_squared)                                                                                 \
    X(rho_sequences)                                                                               \
    X(sequence_rho) /* product of a sequence's rho, log bounded by 20 */                           \
    X(sequence_rho_squared)                                                                        \
    X(weight) /* of the loss, whatever made it; over tokens */                                     \
    X(weight_squared)                                                                              \
    X(weight_clipped)   /* tokens whose weight the correction cut to a bound */                    \
    X(weight_masked)    /* tokens whose weight the correction made 0 */                            \
    X(sequences_masked) /* by a correction that judges whole sequences */                          \
    X(sequences_vetoed)                                                                            \
    X(tokens_vetoed)                                                                               \
    X(tokens_opsm)                                                                                 \
    X(tokens_m2po)                                                                                 \
    X(behaviour_kl)  /* behaviour - old */                                                         \
    X(behaviour_kl3) /* k3 of the same */                                                          \
    X(future_kl)                                                                                   \
    X(influence)                                                                                   \
    X(influence_raw)   /* before the clip; exp of at most 20 */                                    \
    X(influence_upper) /* tokens at the upper bound */                                             \
    X(influence_lower)                                                                             \
    X(taught_sequences) /* with a teacher */                                                       \
    X(taught_tokens)                                                                               \
    X(teacher_gap)        /* teacher - logprob */                                                  \
    X(teacher_gate)       /* SDAR */                                                               \
    X(influence_safety)   /* tokens where the safety rule lowered or raised the weight */          \
    X(influence_filtered) /* tokens that do not participate */                                     \
    X(staleness)          /* version_now - version, summed over staleness_tokens */                \
    X(staleness_tokens)                                                                            \
    X(staleness_0) /* tokens of that staleness; the last is 15 and more */                         \
    X(staleness_1)                                                                                 \
    X(staleness_2)                                                                                 \
    X(staleness_3)                                                                                 \
    X(staleness_4)                                                                                 \
    X(staleness_5)                                                                                 \
    X(staleness_6)                                                                                 \
    X(staleness_7)                                                                                 \
    X(staleness_8)                                                                                 \
    X(staleness_9)                                                                                 \
    X(staleness_10)                                                                                \
    X(staleness_11)                                                                                \
    X(staleness_12)                                                                                \
    X(staleness_13)                                                                                \
    X(staleness_14)                                                                                \
    X(staleness_15)                                                                                \
    X(mismatch) /* |logprob - behaviour|, summed over mismatch_tokens */                           \
    X(mismatch_tokens)
#define OBJECTIVE_MAXIMA(X)                                                                        \
    X(ratio_max)                                                                                   \
    X(influence_max)                                                                               \
    X(weight_max)                                                                                  \
    X(rho_max)                                                                                     \
    X(staleness_max)                                                                               \
    X(mismatch_max)                                                                                \
    X(gradient_max) /* |dL/dlogprob| before the division */
#define OBJECTIVE_MINIMA(X)                                                                        \
    X(ratio_min)                                                                                   \
    X(weight_min)                                                                                  \
    X(rho_min)                                                                                     \
    X(influence_min)

#define OBJECTIVE_FIELD(name) double name;
struct objective_sums {
    OBJECTIVE_SUMS(OBJECTIVE_FIELD)
};
struct objective_maxima {
    OBJECTIVE_MAXIMA(OBJECTIVE_FIELD)
};
struct objective_minima {
    OBJECTIVE_MINIMA(OBJECTIVE_FIELD)
};
#undef OBJECTIVE_FIELD

struct objective_stats {
    struct objective_sums sum;
    struct objective_maxima max; /* -inf: nothing measured */
    struct objective_minima min; /* +inf: nothing measured */
};

enum {
    OBJECTIVE_SUM_COUNT = sizeof(struct objective_sums) / sizeof(double),
    OBJECTIVE_MAX_COUNT = sizeof(struct objective_maxima) / sizeof(double),
    OBJECTIVE_MIN_COUNT = sizeof(struct objective_minima) / sizeof(double),
    OBJECTIVE_STALENESS_BUCKETS = 16
};

/* Options from loss.*, by rl_config_loss_settings. The KL coefficient is 0 here if kl_in is reward.
 * Errors: RL_INVALID (delta in (0, 1]). */
rl_status objective_options_from_config(const struct rl_config *config,
                                        struct objective_options *out);

/* True if a reference model is needed (KL in the loss or in the reward). */
bool objective_needs_reference(const struct rl_config *config);

/* True if the log-probs of the step's start are needed: recomputed, or for M2PO. */
bool objective_needs_proximal(const struct rl_config *config);

/* Sums 0, maxima -inf, minima +inf. */
void objective_stats_init(struct objective_stats *stats);

/* into += from. Order of calls decides the last bits of the sums. */
void objective_stats_merge(struct objective_stats *into, const struct objective_stats *from);

/* Flat views for an all-reduce: [OBJECTIVE_SUM_COUNT] sum, [OBJECTIVE_MAX_COUNT] max,
 * [OBJECTIVE_MIN_COUNT] min. Borrowed. */
double *objective_stats_sums(struct objective_stats *stats);
double *objective_stats_maxima(struct objective_stats *stats);
double *objective_stats_minima(struct objective_stats *stats);

/* First of the OBJECTIVE_STALENESS_BUCKETS counts staleness_0 ... Borrowed. */
const double *objective_stats_staleness(const struct objective_stats *stats);

/* How the minibatch's parts on other ranks are added to this one's; as collective_sum_double and
 * its like. */
struct objective_reduce {
    rl_status (*sum)(void *arg, double *values, int64_t count);
    rl_status (*max)(void *arg, double *values, int64_t count);
    void *arg;
};

/* What corrections need of a whole minibatch, before its gradients: of the sequences are read
 * count, mask, old, proximal and behaviour, all known from the start of the step. M2PO: the largest
 * squared gap up to which the mean of the squared gaps (old or proximal less behaviour) stays below
 * the threshold; the smallest gap always passes. It is found by halving the range of float bits, so
 * that ranks exchange three sums a round and no token. `reduce` NULL: one rank. Collective if
 * given, and only if the options need it. Errors: reduce's. */
rl_status objective_minibatch_measure(const struct objective_options *options,
                                      const struct objective_sequence *sequences, uint32_t count,
                                      const struct objective_reduce *reduce,
                                      struct objective_minibatch *out);

/* True if the options need objective_minibatch_measure. */
bool objective_needs_measure(const struct objective_options *options);

/* Unnormalised gradients of one sequence, and its contribution to `stats`. g_logprob [n] and
 * g_entropy [n] are overwritten, 0 wherever nothing flows; g_entropy may be NULL if entropy_coef
 * is 0. Any thread (stats: one at a time). */
void objective_sequence(const struct objective_options *options,
                        const struct objective_sequence *sequence, float *g_logprob,
                        float *g_entropy, struct objective_stats *stats);

/* D, by which gradients and numerators are divided; 0 if nothing was kept (then make no update). */
double objective_denominator(const struct objective_options *options,
                             const struct objective_stats *stats);

/* (policy + kl + entropy + distillation numerators) / D; 0 if D is 0. */
double objective_loss(const struct objective_options *options, const struct objective_stats *stats);

/* A whole batch at once, division included: for tests and small tools. Adds to `stats`, which the
 * caller has initialised. Returns the loss. */
double objective_batch(const struct objective_options *options,
                       const struct objective_sequence *sequences, uint32_t count,
                       float *const *g_logprob, float *const *g_entropy,
                       struct objective_stats *stats);

/* Sum over unmasked tokens of k1 = logprob - reference, times beta: what KL in the reward takes off
 * a sample's reward. NaN if an unmasked value is not finite. mask may be NULL. */
double objective_kl_penalty(double beta, const float *logprob, const float *reference,
                            const uint8_t *mask, uint32_t count);

/* KL estimate of one token and its derivative with respect to logprob; gap = logprob - reference,
 * log_ratio = logprob - old within +-20, which only k3_unbiased reads and differentiates (0 at the
 * bounds). k3 is expm1(-gap) + gap with -gap clamped to +-20 and the value to +-10 (gradient 0
 * beyond). */
double objective_kl(enum config_kl_type type, double gap, double log_ratio, double *derivative);

/* --- FIPO's weights, one token at a time from the last to the first ------------------------------
 */
struct objective_fipo {
    double gamma;     /* 2^(-1/decay_rate) */
    double log_delta; /* participation: log-ratio <= this; +inf if off */
    double influence_low, influence_high;
    double safety; /* ratio; +inf if off */
    bool decay_over_masked;
    double accumulator; /* F of the token to the right */
};

struct objective_influence {
    double weight;     /* f, clipped and made safe */
    double future_kl;  /* F */
    bool participates; /* false: filtered */
    bool safety;       /* the safety rule changed the weight */
};

/* Start at the end of a sequence. */
void objective_fipo_start(const struct objective_options *options, struct objective_fipo *fipo);

/* Step left over a masked token. */
void objective_fipo_masked(struct objective_fipo *fipo);

/* Step left over a token with this clamped log-ratio and advantage; O(1), so a sequence is O(T). */
void objective_fipo_token(struct objective_fipo *fipo, double log_ratio, double advantage,
                          struct objective_influence *out);

#endif
