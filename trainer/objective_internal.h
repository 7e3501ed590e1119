/* What the objective's files share: one token and one sequence on their way through the loss. Not
 * for others. */
#ifndef FORESIGHT_TRAINER_OBJECTIVE_INTERNAL_H
#define FORESIGHT_TRAINER_OBJECTIVE_INTERNAL_H

#include "trainer/objective.h"

#define OBJECTIVE_LOG_RATIO_MAX 20.0 /* bound of a log-ratio before exp */

/* Columns of RL_OBJECTIVES and RL_CORRECTIONS. */
enum objective_form {
    OBJECTIVE_CLIP,
    OBJECTIVE_CISPO,
    OBJECTIVE_REINFORCE,
    OBJECTIVE_SAPO,
    OBJECTIVE_DPPO,
    OBJECTIVE_VESPO
};
enum objective_ratio {
    OBJECTIVE_RATIO_TOKEN,
    OBJECTIVE_RATIO_MEAN,
    OBJECTIVE_RATIO_MEAN_TOKEN,
    OBJECTIVE_RATIO_SUM,
    OBJECTIVE_RATIO_SUM_TOKEN
};

/* One token on its way through the loss. */
struct objective_token {
    double logprob, old;
    double log_ratio; /* the token's own, clamped; FIPO's d */
    double ratio;     /* what the loss takes: the token's or the sequence's */
    bool inside;      /* its log was not clamped: gradients flow */
    double advantage;
    double influence;  /* FIPO's f, else 1 */
    double correction; /* detached weight of the token's loss */
};

/* What the first pass found out about a sequence. Sums over its unmasked tokens. */
struct objective_look {
    uint32_t tokens;
    uint32_t dual; /* tokens of negative advantage beyond the dual clip */
    bool finite;
    double log_ratio;  /* sum of logprob - old */
    double drift;      /* sum of behaviour - logprob, for OPSM */
    double advantage;  /* sum */
    double log_rho;    /* sum of old - behaviour */
    double rho_excess; /* sum of rho - log rho - 1 */
    double lowest_log_rho;
};

/* A correction's judgement of a whole sequence. */
struct objective_verdict {
    double weight; /* of every token, before its own */
    bool by_token; /* a token's own rho multiplies the weight */
    bool clipped, masked, vetoed;
    bool opsm; /* tokens of negative advantage are masked */
};

/* Log-prob that the token's ratio is taken against. */
double objective_old_at(const struct objective_options *options,
                        const struct objective_sequence *sequence, uint32_t t);

/* Log of rho: step's start (or old) less behaviour. Behaviour must be there. */
double objective_gap_at(const struct objective_options *options,
                        const struct objective_sequence *sequence, uint32_t t);

/* True if token t carries no loss, so that nothing else of it may be read. */
bool objective_masked(const struct objective_sequence *sequence, uint32_t t);

/* x within [-OBJECTIVE_LOG_RATIO_MAX, OBJECTIVE_LOG_RATIO_MAX]. */
double objective_bounded(double x);

/* False where old is the sampler's policy itself, so that no weight can be other than 1. */
bool objective_corrects(const struct objective_options *options,
                        const struct objective_sequence *sequence);

/* Add a token's gap to what is known of its sequence. */
void objective_look_gap(struct objective_look *look, double gap);

/* Judge a sequence by what was seen of it. */
void objective_judge(const struct objective_options *options, const struct objective_look *look,
                     struct objective_verdict *out);

/* Weight of token t's loss; counts it in `stats` unless that is NULL. */
double objective_weight_at(const struct objective_options *options,
                           const struct objective_sequence *sequence,
                           const struct objective_verdict *verdict, uint32_t t,
                           struct objective_stats *stats);

/* Loss of a token (correction and aggregation not applied) and its derivative with respect to the
 * log of the ratio that the loss takes (or to the log-prob itself); counts clips. */
double objective_policy_loss(const struct objective_options *options,
                             const struct objective_token *token, double *gradient,
                             struct objective_sums *sum);

/* Advantage of a token as the teacher changes it: RLSD, OPD. */
double objective_taught_advantage(const struct objective_options *options,
                                  const struct objective_sequence *sequence, uint32_t t,
                                  double advantage);

/* The policy loss's share beside SDPO. */
double objective_policy_share(const struct objective_options *options);

/* What a teacher makes of a token, aggregation not applied. */
struct objective_lesson {
    double loss, gradient; /* with respect to the log-prob */
    double divergence;     /* what SDPO's divergence is multiplied with where it goes by logits */
};

/* The teacher's own loss, SDPO or SDAR; counts in `sum`. The sequence must have a teacher. */
struct objective_lesson objective_teach(const struct objective_teacher *options,
                                        const struct objective_token *token, double teacher,
                                        struct objective_sums *sum);

/* Columns of the objective's row. */
enum objective_ratio objective_ratio_of(enum config_loss_type type);

#endif
