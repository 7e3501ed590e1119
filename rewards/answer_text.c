/* Finding the answer in a completion: see answer_text.h. All scans are linear in the text. */
#include "rewards/answer_text.h"

#include <ctype.h>
#include <string.h>

static const struct answer_span nothing = {NULL, 0};

struct answer_span answer_span_of(const char *text)
{
    return (struct answer_span){text, strlen(text)};
}

struct answer_span answer_span_trim(struct answer_span span)
{
    while (span.bytes > 0 && isspace((unsigned char)span.text[0])) {
        span.text++;
        span.bytes--;
    }
    while (span.bytes > 0 && isspace((unsigned char)span.text[span.bytes - 1])) {
        span.bytes--;
    }
    return span;
}

bool answer_span_equals(struct answer_span span, const char *text)
{
    return span.bytes == strlen(text) && memcmp(span.text, text, span.bytes) == 0;
}

/* What follows the last `mark` in the text, nothing if there is none. */
static struct answer_span after_last(struct answer_span text, const char *mark)
{
    size_t mark_bytes = strlen(mark);
    for (size_t at = text.bytes; at >= mark_bytes; at--) {
        if (text.text[at - mark_bytes] == mark[0] &&
            memcmp(text.text + at - mark_bytes, mark, mark_bytes) == 0) {
            return (struct answer_span){text.text + at, text.bytes - at};
        }
    }
    return nothing;
}

static struct answer_span before_first(struct answer_span text, const char *mark)
{
    const char *at = memmem(text.text, text.bytes, mark, strlen(mark));
    if (at == NULL) {
        return nothing;
    }
    return (struct answer_span){text.text, (size_t)(at - text.text)};
}

struct answer_span answer_after_reasoning(struct answer_span text)
{
    struct answer_span rest = after_last(text, "</think>");
    if (rest.text == NULL) {
        rest = text;
    }
    return after_last(rest, "<think>").text != NULL ? nothing : rest;
}

struct answer_span answer_last_tag(struct answer_span text)
{
    struct answer_span rest = after_last(text, "<answer>");
    return rest.text == NULL ? nothing : before_first(rest, "</answer>");
}

static struct answer_span first_line(struct answer_span text)
{
    text = answer_span_trim(text);
    const char *end = memchr(text.text, '\n', text.bytes);
    if (end != NULL) {
        text.bytes = (size_t)(end - text.text);
    }
    return answer_span_trim(text);
}

struct answer_span answer_after_hashes(struct answer_span text, bool *marked)
{
    struct answer_span rest = after_last(text, "####");
    *marked = rest.text != NULL;
    return *marked ? first_line(rest) : nothing;
}

/* Content up to the brace that closes the one just before `text`. */
static struct answer_span balanced_braces(struct answer_span text)
{
    size_t depth = 1;
    for (size_t i = 0; i < text.bytes; i++) {
        if (text.text[i] == '\\') {
            i++; /* an escaped brace does not count */
        } else if (text.text[i] == '{') {
            depth++;
        } else if (text.text[i] == '}' && --depth == 0) {
            return (struct answer_span){text.text, i};
        }
    }
    return nothing;
}

static struct answer_span unbraced_word(struct answer_span text)
{
    text = answer_span_trim(text);
    size_t bytes = 0;
    while (bytes < text.bytes && !isspace((unsigned char)text.text[bytes]) &&
           text.text[bytes] != '$') {
        bytes++;
    }
    return (struct answer_span){text.text, bytes};
}

struct answer_span answer_last_box(struct answer_span text, bool *marked)
{
    struct answer_span boxed = after_last(text, "\\boxed");
    struct answer_span fboxed = after_last(text, "\\fbox");
    struct answer_span rest = boxed;
    if (boxed.text == NULL || (fboxed.text != NULL && fboxed.bytes < boxed.bytes)) {
        rest = fboxed;
    }
    *marked = rest.text != NULL;
    if (!*marked || rest.bytes == 0) {
        return nothing;
    }
    struct answer_span inner = answer_span_trim(rest);
    if (inner.bytes > 0 && inner.text[0] == '{') {
        inner.text++;
        inner.bytes--;
        return balanced_braces(inner);
    }
    return unbraced_word(rest);
}

struct answer_span answer_last_line(struct answer_span text)
{
    text = answer_span_trim(text);
    const char *newline = text.bytes > 0 ? memrchr(text.text, '\n', text.bytes) : NULL;
    if (newline != NULL) {
        text.bytes -= (size_t)(newline + 1 - text.text);
        text.text = newline + 1;
    }
    return answer_span_trim(text);
}
