/* The `format` reward: 1 if the completion matches rewards.format_pattern anywhere, else 0. A
 * pattern that explodes makes the sample unscorable instead of holding a thread. */
#include "core/log.h"
#include "rewards/reward_ops.h"
#include "rewards/text_pattern.h"

static void format_destroy(void *state)
{
    text_pattern_destroy(state);
}

static rl_status format_create(const struct rl_config *config, void **state)
{
    const char *pattern = config->rewards.format_pattern;
    if (pattern[0] == '\0') {
        return rl_fail(RL_INVALID, "rewards.functions names `format` but rewards.format_pattern "
                                   "is empty; expected a PCRE2 pattern");
    }
    struct text_pattern *made = NULL;
    RL_TRY(text_pattern_create("rewards.format_pattern", pattern, &made));
    *state = made;
    return RL_OK;
}

static void format_score(const void *state, const struct reward_input *input,
                         struct reward_output *out)
{
    rl_status status = text_pattern_match(state, input->completion);
    if (status == RL_NO_MEMORY) {
        out->reason = "no memory for matching the format pattern";
        return;
    }
    if (status != RL_OK && status != RL_NOT_FOUND) {
        out->reason = "matching the format pattern passed its limits";
        return;
    }
    out->valid = true;
    out->value = status == RL_OK ? 1.0 : 0.0;
    out->reason =
        status == RL_OK ? "the format pattern matches" : "the format pattern does not match";
}

const struct reward_ops reward_format_ops = {
    .name = "format", .create = format_create, .destroy = format_destroy, .score = format_score};
