/* Unicode canonical and compatibility forms of a text, linear in its length whatever the marks do
 * (runs of combining marks are sorted by counting, not by swapping). Uses utf8proc's tables and its
 * composition. Invariant: output is valid UTF-8. */
#include "model/tokenizer_internal.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* Code points of a stretch and the mark that each carries. */
struct code_run {
    utf8proc_int32_t *codes; /* [count] */
    unsigned char *marks;    /* [count] */
    size_t count;
    size_t capacity;
};

static void run_fini(struct code_run *run)
{
    free(run->codes);
    free(run->marks);
}

static rl_status run_reserve(struct code_run *run, size_t extra)
{
    if (run->capacity - run->count >= extra) {
        return RL_OK;
    }
    size_t capacity = run->capacity * 2 + extra + 32;
    utf8proc_int32_t *codes = realloc(run->codes, capacity * sizeof(*codes));
    if (codes != NULL) {
        run->codes = codes;
    }
    unsigned char *marks = realloc(run->marks, capacity);
    if (marks != NULL) {
        run->marks = marks;
    }
    if (codes == NULL || marks == NULL) {
        return rl_fail(RL_NO_MEMORY, "tokenizer: no memory to normalize %zu characters", capacity);
    }
    run->capacity = capacity;
    return RL_OK;
}

static int combining_class(utf8proc_int32_t code)
{
    if (code < 0x300 || tok_unicode_late((uint32_t)code, TOK_LATE_COMBINING)) {
        return 0;
    }
    return (int)utf8proc_get_property(code)->combining_class;
}

/* Stable counting sort of one run of marks by combining class (1..255). */
static rl_status sort_marks(struct code_run *run, size_t start, size_t end)
{
    size_t count = end - start;
    size_t offsets[257] = {0};
    utf8proc_int32_t *codes = malloc(count * sizeof(*codes));
    if (codes == NULL) {
        return rl_fail(RL_NO_MEMORY, "tokenizer: no memory to normalize %zu marks", count);
    }
    for (size_t i = start; i < end; i++) {
        offsets[combining_class(run->codes[i]) + 1]++;
    }
    for (int c = 1; c < 257; c++) {
        offsets[c] += offsets[c - 1];
    }
    for (size_t i = start; i < end; i++) {
        codes[offsets[combining_class(run->codes[i])]++] = run->codes[i];
    }
    memcpy(run->codes + start, codes, count * sizeof(*codes));
    free(codes);
    return RL_OK;
}

static rl_status order_marks(struct code_run *run)
{
    size_t at = 0;
    while (at < run->count) {
        size_t start = at;
        bool sorted = true;
        int before = 0;
        while (at < run->count && combining_class(run->codes[at]) != 0) {
            int now = combining_class(run->codes[at]);
            sorted = sorted && now >= before;
            before = now;
            at++;
        }
        if (!sorted) {
            RL_TRY(sort_marks(run, start, at));
        }
        at += at == start;
    }
    return RL_OK;
}

static rl_status decompose(utf8proc_int32_t code, unsigned char mark, int options,
                           struct code_run *run)
{
    utf8proc_int32_t buffer[32];
    int boundary = 0;
    utf8proc_ssize_t count =
        utf8proc_decompose_char(code, buffer, 32, (utf8proc_option_t)options, &boundary);
    if (count < 0 || count > 32) { /* cannot be: the longest decomposition has 18 code points */
        return rl_fail(RL_INTERNAL, "tokenizer: U+%04X does not decompose", (unsigned)code);
    }
    RL_TRY(run_reserve(run, (size_t)count));
    for (utf8proc_ssize_t i = 0; i < count; i++) {
        run->codes[run->count] = buffer[i];
        run->marks[run->count++] = mark;
    }
    return RL_OK;
}

/* One character for two adjacent ones; false if they do not compose. */
static bool compose_pair(utf8proc_int32_t first, utf8proc_int32_t second, utf8proc_int32_t *out)
{
    utf8proc_int32_t pair[2] = {first, second};
    utf8proc_ssize_t left =
        utf8proc_normalize_utf32(pair, 2, (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    if (left != 1) {
        return false;
    }
    *out = pair[0];
    return true;
}

/* Canonical composition in place, by the classes of combining_class() above. A composed character
 * has the marks of all that it is made of. */
static void compose(struct code_run *run)
{
    size_t kept = 0;
    size_t starter = SIZE_MAX;
    int last_class = -1; /* of what was kept since the starter; -1: nothing */
    for (size_t i = 0; i < run->count; i++) {
        int class = combining_class(run->codes[i]);
        bool open = starter != SIZE_MAX && last_class < class;
        if (open && compose_pair(run->codes[starter], run->codes[i], &run->codes[starter])) {
            run->marks[starter] |= run->marks[i] & TOK_MARK_PLAIN;
            continue;
        }
        run->codes[kept] = run->codes[i];
        run->marks[kept] = run->marks[i];
        if (class == 0) {
            starter = kept;
            last_class = -1;
        } else {
            last_class = class;
        }
        kept++;
    }
    run->count = kept;
}

/* A stretch whose marks were put in order carries the mark of data throughout if any part did. */
static rl_status flush(struct code_run *run, bool composed, struct tok_text *out)
{
    unsigned char any = 0;
    for (size_t i = 0; i < run->count; i++) {
        any |= run->marks[i] & TOK_MARK_PLAIN;
    }
    RL_TRY(order_marks(run));
    if (composed) {
        compose(run);
    }
    for (size_t i = 0; i < run->count; i++) {
        RL_TRY(tok_text_put(out, (uint32_t)run->codes[i], run->marks[i] | any));
    }
    run->count = 0;
    return RL_OK;
}

/* Characters below neither decompose under the form nor compose with what precedes them. */
static uint32_t stable_limit(enum tok_form form)
{
    return form == TOK_FORM_NFC ? 0x300 : form == TOK_FORM_NFD ? 0xC0 : 0xA0;
}

/* Length of the prefix of stable characters. A starter that nothing before it can compose with ends
 * a stretch. Hangul vowels and trailing consonants and a few Indic starters compose with what
 * precedes; those are all not below 0x300. */
static size_t stable_prefix(const char *data, size_t bytes, uint32_t limit)
{
    size_t at = 0;
    while (at < bytes) {
        if ((unsigned char)data[at] < 0x80) {
            at++;
            continue;
        }
        size_t length;
        if (tok_utf8_get(data + at, &length) >= limit) {
            break;
        }
        at += length;
    }
    return at;
}

static size_t previous_character(const char *data, size_t at)
{
    while (at > 0 && ((unsigned char)data[--at] & 0xC0) == 0x80) {
    }
    return at;
}

/* One stretch that needs work: from `at` up to a stable character followed by another one. */
static rl_status form_stretch(const struct tok_text *text, size_t *at, int options, uint32_t limit,
                              struct code_run *run)
{
    bool started = false;
    while (*at < text->bytes) {
        size_t length;
        uint32_t code = tok_utf8_get(text->data + *at, &length);
        if (started && code < limit) {
            break;
        }
        started = true;
        RL_TRY(decompose((utf8proc_int32_t)code, tok_text_mark(text, *at), options, run));
        *at += length;
    }
    return RL_OK;
}

static rl_status form_write(enum tok_form form, const struct tok_text *text, struct code_run *run,
                            struct tok_text *out)
{
    bool composed = form == TOK_FORM_NFC || form == TOK_FORM_NFKC;
    bool compat = form == TOK_FORM_NFKC || form == TOK_FORM_NFKD;
    int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compat ? UTF8PROC_COMPAT : 0);
    uint32_t limit = stable_limit(form);
    size_t at = 0;
    while (at < text->bytes) {
        size_t stable = stable_prefix(text->data + at, text->bytes - at, limit);
        if (at + stable < text->bytes && stable > 0) {
            stable = previous_character(text->data + at, stable); /* it may take marks */
        }
        RL_TRY(tok_text_copy(out, text, at, stable));
        at += stable;
        if (at == text->bytes) {
            break;
        }
        RL_TRY(form_stretch(text, &at, options, limit, run));
        RL_TRY(flush(run, composed, out));
    }
    return RL_OK;
}

rl_status tok_form_run(enum tok_form form, struct tok_text *text, struct tok_text *scratch)
{
    if (stable_prefix(text->data, text->bytes, stable_limit(form)) == text->bytes) {
        return RL_OK;
    }
    struct code_run run = {0};
    scratch->bytes = 0;
    rl_status status = form_write(form, text, &run, scratch);
    run_fini(&run);
    if (status == RL_OK) {
        tok_text_swap(text, scratch);
    }
    return status;
}
