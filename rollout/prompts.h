/* The prompts of a data set: JSONL rows read, aliased, templated and tokenised once at start; and
 * the order in which an epoch visits them. */
#ifndef FORESIGHT_ROLLOUT_PROMPTS_H
#define FORESIGHT_ROLLOUT_PROMPTS_H

#include "core/config.h"
#include "model/chat.h"
#include "model/tokenizer.h"

struct prompt {
    const char *text;         /* the prompt as given (last user message for message lists) */
    const char *ground_truth; /* "" if none */
    const char *data_source;  /* "" if none */
    const char *row_json;     /* the row */
    const int32_t *tokens;    /* [token_count] as the model will see it */
    uint32_t token_count;
    int64_t line; /* 1-based line in its file */
};

struct prompts;

/* Read `paths` (comma-separated JSONL).
 * Prompt: prompt (string or messages) | question | messages | input. Ground truth: answer |
 * solution | ground_truth | reward_model.ground_truth | output | target; one that is no string is
 * kept as compact JSON. Also data_source. The first field that is there and not null counts. GSM8K
 * answers keep their whole text as ground truth (`numeric` finds "#### N"). Text:
 * data.prompt_template if set, else the chat template (with data.system_prompt), else the prompt
 * alone encoded with the tokenizer's special tokens. Prompts over data.max_prompt_length are
 * dropped and counted; so are rows that cannot be used if data.bad_rows says so. `chat` may be
 * NULL. Prompts keep the order of the files. Caller owns *out. Errors: RL_IO, RL_INVALID naming
 * file, line and field; an empty result is an error. */
rl_status prompts_load(const char *paths, const struct rl_config *config,
                       const struct tokenizer *tokenizer, const struct chat_template *chat,
                       struct prompts **out);

/* Takes NULL. */
void prompts_destroy(struct prompts *prompts);

/* Prompts kept, and rows left out (over-long or skipped). Any thread. */
uint64_t prompts_count(const struct prompts *prompts);
uint64_t prompts_dropped(const struct prompts *prompts);

/* One prompt, index < count; borrowed for the life of the set. Any thread. */
const struct prompt *prompts_at(const struct prompts *prompts, uint64_t index);

/* Hash of all token ids in order, so that a resumed run can tell that its data has changed. */
uint64_t prompts_hash(const struct prompts *prompts);

#endif
