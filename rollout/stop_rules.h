/* When a completion ends: ids that stop it, strings that stop it. Immutable after init. */
#ifndef FORESIGHT_ROLLOUT_STOP_RULES_H
#define FORESIGHT_ROLLOUT_STOP_RULES_H

#include "model/architecture.h"
#include "model/tokenizer.h"

enum { STOP_IDS_MAX = 32, STOP_STRINGS_MAX = 16 };

struct stop_rules {
    int32_t ids[STOP_IDS_MAX];
    int32_t id_count;
    char *strings[STOP_STRINGS_MAX]; /* owned */
    int32_t string_count;
    size_t longest_bytes;              /* of the strings */
    const struct tokenizer *tokenizer; /* borrowed; needed for strings */
};

/* The architecture's eos ids, the tokenizer's eos (if there is one), `token_ids` and `strings`
 * (both comma-separated). Release with stop_rules_fini.
 * Errors: RL_INVALID (not a number, too many, strings without tokenizer), RL_NO_MEMORY. */
rl_status stop_rules_init(struct stop_rules *rules, const struct model_architecture *arch,
                          const struct tokenizer *tokenizer, const char *token_ids,
                          const char *strings);
void stop_rules_fini(struct stop_rules *rules);

/* True if the completion [count >= 1] ends with its last token. Errors: RL_NO_MEMORY. */
rl_status stop_rules_check(const struct stop_rules *rules, const int32_t *completion, int32_t count,
                           bool *stop);

#endif
