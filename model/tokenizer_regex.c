/* Compiled regular expressions: the one place that includes pcre2.h. Patterns are translated first
 * (tokenizer_regex_translate.c). A matcher walks the successive matches of one text exactly as the
 * reference's iterator does. Invariant: work per match attempt is limited; a hit limit is an error.
 */
#include "model/tokenizer_internal.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

enum { MATCH_LIMIT = 20 * 1000 * 1000, HEAP_LIMIT_KIB = 64 * 1024, JIT_STACK_BYTES = 8 << 20 };

struct tok_regex {
    pcre2_code *code;
    char *where;
};

void tok_regex_destroy(struct tok_regex *regex)
{
    if (regex == NULL) {
        return;
    }
    pcre2_code_free(regex->code);
    free(regex->where);
    free(regex);
}

static rl_status regex_compile(const struct tok_text *pattern, const char *where,
                               struct tok_regex *regex)
{
    int error;
    PCRE2_SIZE offset;
    char message[120];
    uint32_t options = PCRE2_UTF | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_UTF_CHECK;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (context == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory to compile a pattern", where);
    }
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    regex->code = pcre2_compile((PCRE2_SPTR)(pattern->data != NULL ? pattern->data : ""),
                                pattern->bytes, options, &error, &offset, context);
    pcre2_compile_context_free(context);
    if (regex->code == NULL) {
        pcre2_get_error_message(error, (PCRE2_UCHAR *)message, sizeof(message));
        return rl_fail(RL_UNSUPPORTED, "%s: regular expression not supported: %s", where, message);
    }
    /* without JIT support in the library the interpreter gives the same matches, slower */
    (void)pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE);
    return RL_OK;
}

static rl_status regex_create(const struct tok_text *pattern, const char *where,
                              struct tok_regex **out)
{
    struct tok_regex *regex = calloc(1, sizeof(*regex));
    if (regex == NULL || (regex->where = strdup(where)) == NULL) {
        free(regex);
        return rl_fail(RL_NO_MEMORY, "%s: no memory", where);
    }
    rl_status status = regex_compile(pattern, where, regex);
    if (status != RL_OK) {
        tok_regex_destroy(regex);
        return status;
    }
    *out = regex;
    return RL_OK;
}

rl_status tok_regex_create(const char *pattern, size_t bytes, const char *where,
                           struct tok_regex **out)
{
    struct tok_text translated = {0};
    rl_status status;
    RL_TRY_GOTO(tok_regex_translate(pattern, bytes, where, &translated), status, done);
    status = regex_create(&translated, where, out);
done:
    tok_text_fini(&translated);
    return status;
}

rl_status tok_regex_create_literal(const char *text, size_t bytes, const char *where,
                                   struct tok_regex **out)
{
    struct tok_text pattern = {0};
    rl_status status = RL_OK;
    for (size_t i = 0; i < bytes && status == RL_OK; i++) {
        unsigned char c = (unsigned char)text[i];
        bool plain =
            c >= 0x80 || (c >= '0' && c <= '9') || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z');
        if (!plain && c != '\0') {
            status = tok_text_append(&pattern, "\\", 1, 0);
        }
        if (status == RL_OK) {
            status = c == '\0' ? tok_regex_emit(&pattern, "\\x00")
                               : tok_text_append(&pattern, text + i, 1, 0);
        }
    }
    if (status == RL_OK) {
        status = regex_create(&pattern, where, out);
    }
    tok_text_fini(&pattern);
    return status;
}

struct matcher_context {
    pcre2_match_context *match;
    pcre2_jit_stack *stack; /* only after the small one did not suffice */
};

rl_status tok_matcher_init(struct tok_matcher *matcher, const struct tok_regex *regex,
                           struct tok_view text)
{
    memset(matcher, 0, sizeof(*matcher));
    struct matcher_context *context = calloc(1, sizeof(*context));
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    if (context != NULL) {
        context->match = pcre2_match_context_create(NULL);
    }
    if (context == NULL || data == NULL || context->match == NULL) {
        free(context);
        pcre2_match_data_free(data);
        return rl_fail(RL_NO_MEMORY, "tokenizer: no memory for a matcher");
    }
    pcre2_set_match_limit(context->match, MATCH_LIMIT);
    pcre2_set_depth_limit(context->match, MATCH_LIMIT);
    pcre2_set_heap_limit(context->match, HEAP_LIMIT_KIB);
    matcher->regex = regex;
    matcher->data = data;
    matcher->context = context;
    tok_matcher_reset(matcher, text);
    return RL_OK;
}

void tok_matcher_reset(struct tok_matcher *matcher, struct tok_view text)
{
    matcher->text = text;
    matcher->next = 0;
    matcher->last_end = 0;
    matcher->matched = false;
}

void tok_matcher_fini(struct tok_matcher *matcher)
{
    struct matcher_context *context = matcher->context;
    pcre2_match_data_free(matcher->data);
    if (context != NULL) {
        pcre2_match_context_free(context->match);
        pcre2_jit_stack_free(context->stack);
        free(context);
    }
    memset(matcher, 0, sizeof(*matcher));
}

static int matcher_search(struct tok_matcher *matcher)
{
    struct matcher_context *context = matcher->context;
    int found =
        pcre2_match(matcher->regex->code, (PCRE2_SPTR)matcher->text.data, matcher->text.bytes,
                    matcher->next, PCRE2_NO_UTF_CHECK, matcher->data, context->match);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT && context->stack == NULL) {
        context->stack = pcre2_jit_stack_create(64 * 1024, JIT_STACK_BYTES, NULL);
        if (context->stack != NULL) {
            pcre2_jit_stack_assign(context->match, NULL, context->stack);
            return matcher_search(matcher);
        }
    }
    return found;
}

rl_status tok_matcher_next(struct tok_matcher *matcher, struct tok_match *match)
{
    while (matcher->next <= matcher->text.bytes) {
        int found = matcher_search(matcher);
        if (found == PCRE2_ERROR_NOMATCH) {
            break;
        }
        if (found < 0) {
            return rl_fail(RL_TOO_LONG,
                           "%s: matching gave up at byte %zu of %zu (limit of the engine, code %d)",
                           matcher->regex->where, matcher->next, matcher->text.bytes, found);
        }
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(matcher->data);
        size_t start = range[0];
        size_t end = range[1];
        if (start == end && matcher->matched && matcher->last_end == end) {
            size_t step = 1; /* an empty match may not follow a match at the same place */
            if (matcher->next < matcher->text.bytes) {
                (void)tok_utf8_get(matcher->text.data + matcher->next, &step);
            }
            matcher->next += step;
            continue;
        }
        matcher->next = end;
        matcher->last_end = end;
        matcher->matched = true;
        match->start = start;
        match->end = end;
        return RL_OK;
    }
    return RL_END;
}
