/* A PCRE2 pattern over text, with bounds, so that one that explodes fails instead of holding a
 * thread. Immutable after creation: any thread. */
#ifndef FORESIGHT_REWARDS_TEXT_PATTERN_H
#define FORESIGHT_REWARDS_TEXT_PATTERN_H

#include "core/status.h"
#include "core/text.h"

struct text_pattern;

/* Compile; `option` is the name of the option that holds it, for messages. Caller owns *out.
 * Errors: RL_INVALID (what is wrong, and where in the pattern), RL_NO_MEMORY. */
rl_status text_pattern_create(const char *option, const char *pattern, struct text_pattern **out);

/* Takes NULL. */
void text_pattern_destroy(struct text_pattern *pattern);

/* RL_OK: the pattern matches somewhere in `text`; RL_NOT_FOUND: it does not. Neither is logged, nor
 * are the errors: RL_INVALID (matching passed its limits), RL_NO_MEMORY. */
rl_status text_pattern_match(const struct text_pattern *pattern, const char *text);

/* Append everything that the pattern finds in `text`, from left to right without overlap, each on a
 * line: its first group where it has one, else the whole match. RL_NOT_FOUND: nothing found,
 * `found` is unchanged. Errors: as text_pattern_match, and RL_TOO_LONG. */
rl_status text_pattern_extract(const struct text_pattern *pattern, const char *text,
                               struct rl_text *found);

#endif
