/* What the teacher of on-policy distillation is asked (trainer/learner.h): teacher.template with
 * the prompt's text, the row's ground truth, the sample's rewards or a right sibling in place of
 * its placeholders, and then the way of any prompt of the run: chat template or
 * data.prompt_template, tokenizer. Also holds the frozen weights of teacher.policy initial. */
#ifndef FORESIGHT_APP_TEACHER_PROMPTS_H
#define FORESIGHT_APP_TEACHER_PROMPTS_H

#include "app/session.h"
#include "trainer/learner.h"

struct teacher_prompts;

/* *out is NULL if teacher.loss is none. Everything given is borrowed for life. Caller owns *out.
 * Errors: RL_INVALID (a template without {prompt}), RL_NO_MEMORY, those of loading weights. */
rl_status teacher_prompts_create(const struct session *session, const struct prompts *prompts,
                                 struct teacher_prompts **out);

/* Takes NULL. */
void teacher_prompts_destroy(struct teacher_prompts *teacher);

/* For struct learner_args; borrowed. NULL for NULL. */
const struct learner_teacher *teacher_prompts_get(const struct teacher_prompts *teacher);

#endif
