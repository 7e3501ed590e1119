/* What a teacher's log-probs do to the loss. Owns the formulas of RLSD, SDPO by the sampled token,
 * OPD and SDAR; divergences of whole distributions are model/divergence.h's. The teacher is
 * detached, and so are gates and weights: gradients flow through the new log-prob alone. */
#include "trainer/objective_internal.h"

#include <math.h>

double objective_taught_advantage(const struct objective_options *options,
                                  const struct objective_sequence *sequence, uint32_t t,
                                  double advantage)
{
    const struct objective_teacher *o = &options->teacher;
    if (sequence->teacher == NULL ||
        (o->loss != CONFIG_TEACHER_RLSD && o->loss != CONFIG_TEACHER_OPD)) {
        return advantage;
    }
    double gap = (double)sequence->teacher[t] - objective_old_at(options, sequence, t);
    if (o->loss == CONFIG_TEACHER_OPD) {
        return advantage + o->weight * gap;
    }
    if (o->negative_only && advantage >= 0) {
        return advantage;
    }
    double factor = exp(objective_bounded(advantage < 0 ? -gap : gap));
    factor = fmin(fmax(factor, 1 - o->ratio_clip), 1 + o->ratio_clip);
    return advantage * (1 - o->lambda + o->lambda * factor);
}

double objective_policy_share(const struct objective_options *options)
{
    const struct objective_teacher *o = &options->teacher;
    return o->loss == CONFIG_TEACHER_SDPO ? 1 - o->weight : 1;
}

struct objective_lesson objective_teach(const struct objective_teacher *options,
                                        const struct objective_token *token, double teacher,
                                        struct objective_sums *sum)
{
    struct objective_lesson lesson = {0};
    double gap = teacher - token->logprob;
    sum->taught_tokens++;
    sum->teacher_gap += gap;
    if (options->loss == CONFIG_TEACHER_SDAR) {
        double gate = 1 / (1 + exp(-options->gate * gap));
        sum->teacher_gate += gate;
        lesson.loss = options->weight * gate * gap;
        lesson.gradient = -options->weight * gate;
    } else if (options->loss == CONFIG_TEACHER_SDPO) {
        double weight = options->weight;
        weight *= options->is_clip > 0 ? fmin(exp(token->log_ratio), options->is_clip) : 1;
        lesson.divergence = options->by_logits ? weight : 0;
        lesson.gradient = options->by_logits ? 0 : -weight * gap;
        lesson.loss = lesson.gradient * token->logprob;
    }
    return lesson;
}
