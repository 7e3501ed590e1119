/* See text_pattern.h. The only file that sees pcre2.h here. */
#define PCRE2_CODE_UNIT_WIDTH 8

#include "rewards/text_pattern.h"

#include "core/log.h"

#include <pcre2.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { MATCH_LIMIT = 1000000, DEPTH_LIMIT = 10000, HEAP_LIMIT_KIB = 16384, ERROR_BYTES = 160 };

struct text_pattern {
    pcre2_code *code;
    pcre2_match_context *limits;
    uint32_t groups;
};

static rl_status compile_pattern(const char *option, const char *pattern, pcre2_code **out)
{
    int error = 0;
    PCRE2_SIZE offset = 0;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_MATCH_INVALID_UTF | PCRE2_NEVER_BACKSLASH_C,
                                     &error, &offset, NULL);
    if (code == NULL) {
        char text[ERROR_BYTES] = "";
        pcre2_get_error_message(error, (PCRE2_UCHAR *)text, sizeof(text));
        return rl_fail(RL_INVALID, "%s: %s at offset %zu of \"%s\"", option, text, (size_t)offset,
                       pattern);
    }
    *out = code;
    return RL_OK;
}

rl_status text_pattern_create(const char *option, const char *pattern, struct text_pattern **out)
{
    pcre2_code *code = NULL;
    RL_TRY(compile_pattern(option, pattern, &code));
    struct text_pattern *made = calloc(1, sizeof(*made));
    pcre2_match_context *limits = pcre2_match_context_create(NULL);
    if (made == NULL || limits == NULL) {
        pcre2_match_context_free(limits);
        free(made);
        pcre2_code_free(code);
        return rl_fail(RL_NO_MEMORY, "%s: no memory for the match limits", option);
    }
    pcre2_set_match_limit(limits, MATCH_LIMIT);
    pcre2_set_depth_limit(limits, DEPTH_LIMIT);
    pcre2_set_heap_limit(limits, HEAP_LIMIT_KIB);
    made->code = code;
    made->limits = limits;
    pcre2_pattern_info(code, PCRE2_INFO_CAPTURECOUNT, &made->groups);
    *out = made;
    return RL_OK;
}

void text_pattern_destroy(struct text_pattern *pattern)
{
    if (pattern == NULL) {
        return;
    }
    pcre2_match_context_free(pattern->limits);
    pcre2_code_free(pattern->code);
    free(pattern);
}

/* A place where a match may start. */
struct match_place {
    const char *text;
    size_t bytes, at;
};

static rl_status match_at(const struct text_pattern *p, struct match_place place,
                          pcre2_match_data *match)
{
    int rc =
        pcre2_match(p->code, (PCRE2_SPTR)place.text, place.bytes, place.at, 0, match, p->limits);
    if (rc >= 0) {
        return RL_OK;
    }
    return rc == PCRE2_ERROR_NOMATCH ? RL_NOT_FOUND : RL_INVALID;
}

rl_status text_pattern_match(const struct text_pattern *pattern, const char *text)
{
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(pattern->code, NULL);
    if (match == NULL) {
        return RL_NO_MEMORY;
    }
    rl_status status = match_at(pattern, (struct match_place){text, strlen(text), 0}, match);
    pcre2_match_data_free(match);
    return status;
}

/* Append the match's piece. */
static rl_status append_piece(const struct text_pattern *p, const char *text,
                              pcre2_match_data *match, struct rl_text *found)
{
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(match);
    uint32_t piece = p->groups > 0 && ends[2] != PCRE2_UNSET ? 1 : 0;
    if (ends[2 * piece + 1] > ends[2 * piece]) {
        RL_TRY(
            rl_text_append(found, text + ends[2 * piece], ends[2 * piece + 1] - ends[2 * piece]));
    }
    return rl_text_append_byte(found, '\n');
}

/* An empty match must not repeat, and a match may not start inside of a character. */
static size_t next_character(const char *text, size_t at)
{
    if (text[at] == '\0') {
        return at + 1;
    }
    do {
        at++;
    } while (((unsigned char)text[at] & 0xc0U) == 0x80U);
    return at;
}

rl_status text_pattern_extract(const struct text_pattern *pattern, const char *text,
                               struct rl_text *found)
{
    struct match_place place = {text, strlen(text), 0};
    pcre2_match_data *match = pcre2_match_data_create_from_pattern(pattern->code, NULL);
    rl_status status = match != NULL ? RL_OK : RL_NO_MEMORY;
    uint64_t pieces = 0;
    while (status == RL_OK && place.at <= place.bytes) {
        status = match_at(pattern, place, match);
        if (status != RL_OK) {
            break;
        }
        const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(match);
        size_t end = ends[1];
        status = append_piece(pattern, text, match, found);
        place.at = end > place.at ? end : next_character(text, place.at);
        pieces++;
    }
    pcre2_match_data_free(match);
    return status == RL_NOT_FOUND && pieces > 0 ? RL_OK : status;
}
