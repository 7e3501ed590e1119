/* The `format` reward: 1 if the completion matches rewards.format_pattern anywhere, else 0. The
 * only file that sees pcre2.h here. Matching is bounded by PCRE2's own limits, so a pattern that
 * explodes makes the sample unscorable instead of holding a thread. */
#define PCRE2_CODE_UNIT_WIDTH 8

#include "core/log.h"
#include "rewards/reward_ops.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

enum { MATCH_LIMIT = 1000000, DEPTH_LIMIT = 10000, HEAP_LIMIT_KIB = 16384, ERROR_BYTES = 160 };

struct format_state {
    pcre2_code *code;
    pcre2_match_context *limits;
};

static void format_destroy(void *state)
{
    struct format_state *format = state;
    if (format == NULL) {
        return;
    }
    pcre2_match_context_free(format->limits);
    pcre2_code_free(format->code);
    free(format);
}

static rl_status compile_pattern(const char *pattern, pcre2_code **out)
{
    int error = 0;
    PCRE2_SIZE offset = 0;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_MATCH_INVALID_UTF | PCRE2_NEVER_BACKSLASH_C,
                                     &error, &offset, NULL);
    if (code == NULL) {
        char text[ERROR_BYTES] = "";
        pcre2_get_error_message(error, (PCRE2_UCHAR *)text, sizeof(text));
        return rl_fail(RL_INVALID, "rewards.format_pattern: %s at offset %zu of \"%s\"", text,
                       (size_t)offset, pattern);
    }
    *out = code;
    return RL_OK;
}

static rl_status format_create(const struct rl_config *config, void **state)
{
    const char *pattern = config->rewards.format_pattern;
    if (pattern[0] == '\0') {
        return rl_fail(RL_INVALID, "rewards.functions names `format` but rewards.format_pattern "
                                   "is empty; expected a PCRE2 pattern");
    }
    pcre2_code *code = NULL;
    RL_TRY(compile_pattern(pattern, &code));
    struct format_state *format = calloc(1, sizeof(*format));
    pcre2_match_context *limits = pcre2_match_context_create(NULL);
    if (format == NULL || limits == NULL) {
        pcre2_match_context_free(limits);
        free(format);
        pcre2_code_free(code);
        return rl_fail(RL_NO_MEMORY, "rewards.format_pattern: no memory for the match limits");
    }
    pcre2_set_match_limit(limits, MATCH_LIMIT);
    pcre2_set_depth_limit(limits, DEPTH_LIMIT);
    pcre2_set_heap_limit(limits, HEAP_LIMIT_KIB);
    *format = (struct format_state){code, limits};
    *state = format;
    return RL_OK;
}

static void format_score(const void *state, const struct reward_input *input,
                         struct reward_output *out)
{
    const struct format_state *format = state;
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(format->code, NULL);
    if (match == NULL) {
        out->reason = "no memory for matching the format pattern";
        return;
    }
    int rc = pcre2_match(format->code, (PCRE2_SPTR)input->completion, strlen(input->completion), 0,
                         0, match, format->limits);
    pcre2_match_data_free(match);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) {
        out->reason = "matching the format pattern passed its limits";
        return;
    }
    out->valid = true;
    out->value = rc >= 0 ? 1.0 : 0.0;
    out->reason = rc >= 0 ? "the format pattern matches" : "the format pattern does not match";
}

const struct reward_ops reward_format_ops = {
    .name = "format", .create = format_create, .destroy = format_destroy, .score = format_score};
