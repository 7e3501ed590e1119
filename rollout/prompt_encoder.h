/* From a row to the ids that the model sees: prompt template, chat template or the text alone.
 * Special tokens' spellings inside the user's text stay ordinary text unless the options say so. */
#ifndef FORESIGHT_ROLLOUT_PROMPT_ENCODER_H
#define FORESIGHT_ROLLOUT_PROMPT_ENCODER_H

#include "core/config.h"
#include "rollout/prompt_row.h"

struct prompt_encoder;

/* `config`, `tokenizer` and `chat` (may be NULL) are borrowed for life. Caller owns *out.
 * Errors: RL_INVALID (a template without {prompt}, a system prompt that has no place to go),
 * RL_NO_MEMORY. */
rl_status prompt_encoder_create(const struct rl_config *config, const struct tokenizer *tokenizer,
                                const struct chat_template *chat, struct prompt_encoder **out);

/* Takes NULL. */
void prompt_encoder_destroy(struct prompt_encoder *encoder);

/* True if rows whose prompt is a list of messages can be encoded: there is a template for them. */
bool prompt_encoder_takes_messages(const struct prompt_encoder *encoder);

/* Replace the contents of `ids` by the row's. Messages only where they are taken. Errors:
 * RL_INVALID (a role that the template refuses), RL_NO_MEMORY; logged. */
rl_status prompt_encoder_run(const struct prompt_encoder *encoder, const struct prompt_row *row,
                             struct token_buffer *ids);

#endif
