/* Template source to tokens, with the white-space rules of the `transformers` settings: the first
 * newline behind a block is dropped (trim_blocks), blanks before a block at the start of a line are
 * (lstrip_blocks), '-' at a tag's edge eats all white space on that side. */
#include "model/chat_internal.h"

#include "core/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct lexer {
    const char *at;
    const char *end;
    struct rl_arena *arena;
    struct chat_tokens *out;
    int line;
    bool line_starts; /* the text that follows begins a line */
};

static rl_status lex_fail(const struct lexer *lexer, const char *what)
{
    return rl_fail(RL_UNSUPPORTED, "chat template, line %d: %s; name another in data.chat_template",
                   lexer->line, what);
}

static rl_status push(struct lexer *lexer, struct chat_token token)
{
    struct chat_tokens *out = lexer->out;
    if (out->count == out->capacity) {
        size_t capacity = out->capacity * 2 + 256;
        struct chat_token *items = realloc(out->items, capacity * sizeof(*items));
        if (items == NULL) {
            return rl_fail(RL_NO_MEMORY, "chat template: no memory for %zu tokens", capacity);
        }
        out->items = items;
        out->capacity = capacity;
    }
    token.line = lexer->line;
    out->items[out->count++] = token;
    return RL_OK;
}

static void advance(struct lexer *lexer, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        lexer->line += lexer->at[i] == '\n';
    }
    lexer->at += bytes;
}

static bool is_space(char c)
{
    return c == ' ' || (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x1F);
}

static bool starts(const struct lexer *lexer, const char *text)
{
    size_t bytes = strlen(text);
    return (size_t)(lexer->end - lexer->at) >= bytes && memcmp(lexer->at, text, bytes) == 0;
}

static rl_status copy_string(struct lexer *lexer, const char *data, size_t bytes, const char **out)
{
    void *copy;
    RL_TRY(rl_arena_alloc(lexer->arena, bytes + 1, 1, &copy));
    memcpy(copy, data, bytes);
    ((char *)copy)[bytes] = '\0';
    *out = copy;
    return RL_OK;
}

/* ---- inside tags ---- */

static int digit_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : 99;
}

/* \xHH, \uHHHH, \UHHHHHHHH: digits follow at text; returns the code point, UINT32_MAX if bad. */
static uint32_t numeric_escape(const char *text, size_t left, int digits)
{
    uint32_t code = 0;
    if (left < (size_t)digits) {
        return UINT32_MAX;
    }
    for (int i = 0; i < digits; i++) {
        if (digit_value(text[i]) > 15) {
            return UINT32_MAX;
        }
        code = code << 4 | (uint32_t)digit_value(text[i]);
    }
    return code > 0x10FFFF || (code >= 0xD800 && code < 0xE000) ? UINT32_MAX : code;
}

/* One escape of a string literal at text[0] == '\\'; *used bytes are consumed. */
static rl_status unescape(const struct lexer *lexer, const char *text, size_t left,
                          struct tok_text *out, size_t *used)
{
    static const char letters[] = "nrtabfv\\'\"";
    static const char values[] = "\n\r\t\a\b\f\v\\'\"";
    char c = left > 1 ? text[1] : '\0';
    const char *found = c != '\0' ? strchr(letters, c) : NULL;
    *used = 2;
    if (found != NULL) {
        return tok_text_append(out, values + (found - letters), 1, 0);
    }
    if (c == '\n') {
        return RL_OK;
    }
    if (c >= '0' && c <= '7') {
        uint32_t code = 0;
        size_t i = 1;
        for (; i < 4 && i < left && text[i] >= '0' && text[i] <= '7'; i++) {
            code = code * 8 + (uint32_t)(text[i] - '0');
        }
        *used = i;
        return tok_text_put(out, code, 0);
    }
    int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (digits > 0) {
        uint32_t code = numeric_escape(text + 2, left - 2, digits);
        *used = 2 + (size_t)digits;
        return code == UINT32_MAX ? lex_fail(lexer, "a bad escape in a string")
                                  : tok_text_put(out, code, 0);
    }
    if (c == 'N') {
        return lex_fail(lexer, "\\N{...} in a string");
    }
    *used = 1; /* unknown escapes keep their backslash */
    return tok_text_append(out, "\\", 1, 0);
}

static rl_status lex_string(struct lexer *lexer)
{
    char quote = *lexer->at;
    const char *close = lexer->at + 1;
    struct tok_text text = {0};
    struct chat_token token = {.kind = CHAT_TOKEN_STRING};
    rl_status status = RL_OK;
    while (close < lexer->end && *close != quote) {
        close += *close == '\\' && close + 1 < lexer->end ? 2 : 1;
    }
    if (close >= lexer->end) {
        return lex_fail(lexer, "a string without an end");
    }
    for (const char *at = lexer->at + 1; at < close && status == RL_OK;) {
        size_t used = 1;
        status = *at == '\\' ? unescape(lexer, at, (size_t)(close - at), &text, &used)
                             : tok_text_append(&text, at, 1, 0);
        at += used;
    }
    if (status == RL_OK) {
        token.bytes = text.bytes;
        status = copy_string(lexer, text.data != NULL ? text.data : "", text.bytes, &token.data);
    }
    tok_text_fini(&text);
    RL_TRY(status);
    RL_TRY(push(lexer, token));
    advance(lexer, (size_t)(close - lexer->at) + 1);
    return RL_OK;
}

static bool is_name(char c, bool first)
{
    bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    return letter || (!first && c >= '0' && c <= '9');
}

static bool is_digit(const char *at, const char *end)
{
    return at < end && *at >= '0' && *at <= '9';
}

static const char *skip_digits(const char *at, const char *end)
{
    while (is_digit(at, end)) {
        at++;
    }
    return at;
}

/* 12, 1.5, 1e-3; what else Python writes as a number is refused. */
static rl_status lex_number(struct lexer *lexer)
{
    char text[40];
    const char *at = skip_digits(lexer->at, lexer->end);
    const char *whole = at;
    if (at < lexer->end && *at == '.' && is_digit(at + 1, lexer->end)) {
        at = skip_digits(at + 1, lexer->end);
    }
    if (at < lexer->end && (*at | 0x20) == 'e') {
        const char *exponent = at + 1;
        exponent += exponent < lexer->end && (*exponent == '+' || *exponent == '-');
        at = is_digit(exponent, lexer->end) ? skip_digits(exponent, lexer->end) : at;
    }
    size_t bytes = (size_t)(at - lexer->at);
    struct chat_token token = {.kind = at > whole ? CHAT_TOKEN_REAL : CHAT_TOKEN_INT};
    if (bytes >= sizeof(text) || (at < lexer->end && is_name(*at, false))) {
        return lex_fail(lexer, "this number");
    }
    memcpy(text, lexer->at, bytes);
    text[bytes] = '\0';
    errno = 0;
    token.real = strtod(text, NULL);
    token.integer = strtoll(text, NULL, 10);
    if (token.kind == CHAT_TOKEN_INT && errno != 0) {
        return lex_fail(lexer, "this number");
    }
    RL_TRY(push(lexer, token));
    advance(lexer, bytes);
    return RL_OK;
}

static rl_status lex_name(struct lexer *lexer)
{
    const char *at = lexer->at;
    struct chat_token token = {.kind = CHAT_TOKEN_NAME};
    while (at < lexer->end && is_name(*at, false)) {
        at++;
    }
    token.bytes = (size_t)(at - lexer->at);
    RL_TRY(copy_string(lexer, lexer->at, token.bytes, &token.data));
    RL_TRY(push(lexer, token));
    advance(lexer, token.bytes);
    return RL_OK;
}

static rl_status lex_operator(struct lexer *lexer, int *depth)
{
    static const char *const operators[] = {"**", "//", "==", "!=", ">=", "<=", ">", "<", "=",
                                            "+",  "-",  "/",  "*",  "%",  "~",  "[", "]", "(",
                                            ")",  "{",  "}",  ".",  ":",  "|",  ",", ";"};
    for (size_t i = 0; i < sizeof(operators) / sizeof(operators[0]); i++) {
        if (starts(lexer, operators[i])) {
            struct chat_token token = {
                .kind = CHAT_TOKEN_OPERATOR, .data = operators[i], .bytes = strlen(operators[i])};
            *depth += strchr("[({", operators[i][0]) != NULL;
            *depth -= strchr("])}", operators[i][0]) != NULL;
            RL_TRY(push(lexer, token));
            advance(lexer, token.bytes);
            return RL_OK;
        }
    }
    return lex_fail(lexer, "an unexpected character");
}

static void skip_space(struct lexer *lexer)
{
    size_t bytes = 0;
    while (lexer->at + bytes < lexer->end && is_space(lexer->at[bytes])) {
        bytes++;
    }
    advance(lexer, bytes);
}

/* The end of a tag with its effect on the text behind it; *done if it was there. */
static rl_status lex_end(struct lexer *lexer, bool block, bool *done)
{
    const char *close = block ? "%}" : "}}";
    char sign = lexer->at < lexer->end ? *lexer->at : '\0';
    const char *at = lexer->at;
    bool signed_end = sign == '-' || (sign == '+' && block);
    struct lexer probe = *lexer;
    probe.at += signed_end;
    *done = starts(&probe, close);
    if (!*done) {
        return RL_OK;
    }
    RL_TRY(push(lexer, (struct chat_token){.kind = block ? CHAT_TOKEN_BLOCK_END
                                                         : CHAT_TOKEN_VARIABLE_END}));
    advance(lexer, 2 + (size_t)signed_end);
    if (sign == '-') {
        skip_space(lexer);
    } else if (block && sign != '+' && lexer->at < lexer->end && *lexer->at == '\n') {
        advance(lexer, 1);
    }
    lexer->line_starts = lexer->at > at && lexer->at[-1] == '\n';
    return RL_OK;
}

static rl_status lex_tag(struct lexer *lexer, bool block)
{
    int depth = 0;
    for (;;) {
        bool done = false;
        skip_space(lexer);
        if (lexer->at == lexer->end) {
            return lex_fail(lexer, "a tag without an end");
        }
        if (depth == 0) {
            RL_TRY(lex_end(lexer, block, &done));
        }
        if (done) {
            return RL_OK;
        }
        if (*lexer->at == '\'' || *lexer->at == '"') {
            RL_TRY(lex_string(lexer));
        } else if (*lexer->at >= '0' && *lexer->at <= '9') {
            RL_TRY(lex_number(lexer));
        } else if (is_name(*lexer->at, true)) {
            RL_TRY(lex_name(lexer));
        } else {
            RL_TRY(lex_operator(lexer, &depth));
        }
    }
}

/* ---- text and tags ---- */

/* End of the text before a tag, once the tag's rules have eaten from it. */
static const char *trimmed_end(const struct lexer *lexer, const char *start, const char *tag)
{
    char sign = tag + 2 < lexer->end ? tag[2] : '\0';
    const char *end = tag;
    if (sign == '-') {
        while (end > start && is_space(end[-1])) {
            end--;
        }
        return end;
    }
    if (sign == '+' || tag[1] == '{') {
        return tag;
    }
    while (end > start && end[-1] != '\n' && is_space(end[-1])) {
        end--;
    }
    bool at_line = end > start ? end[-1] == '\n' : lexer->line_starts;
    return at_line ? end : tag;
}

static rl_status lex_comment(struct lexer *lexer)
{
    while (lexer->at < lexer->end && !starts(lexer, "#}")) {
        advance(lexer, 1);
    }
    if (lexer->at == lexer->end) {
        return lex_fail(lexer, "a comment without an end");
    }
    char sign = lexer->at[-1];
    advance(lexer, 2);
    if (sign == '-') {
        skip_space(lexer);
    } else if (sign != '+' && lexer->at < lexer->end && *lexer->at == '\n') {
        advance(lexer, 1);
    }
    lexer->line_starts = lexer->at[-1] == '\n';
    return RL_OK;
}

static const char *next_tag(const struct lexer *lexer)
{
    for (const char *at = lexer->at; at + 1 < lexer->end; at++) {
        if (at[0] == '{' && (at[1] == '{' || at[1] == '%' || at[1] == '#')) {
            return at;
        }
    }
    return lexer->end;
}

static rl_status lex_piece(struct lexer *lexer)
{
    const char *tag = next_tag(lexer);
    const char *text_end = tag < lexer->end ? trimmed_end(lexer, lexer->at, tag) : tag;
    if (text_end > lexer->at) {
        struct chat_token token = {.kind = CHAT_TOKEN_TEXT,
                                   .bytes = (size_t)(text_end - lexer->at)};
        RL_TRY(copy_string(lexer, lexer->at, token.bytes, &token.data));
        RL_TRY(push(lexer, token));
    }
    advance(lexer, (size_t)(tag - lexer->at));
    if (tag == lexer->end) {
        return RL_OK;
    }
    char kind = tag[1];
    char sign = tag + 2 < lexer->end ? tag[2] : '\0';
    advance(lexer, 2);
    if (kind == '#') {
        return lex_comment(lexer);
    }
    advance(lexer, sign == '-' || sign == '+' ? 1 : 0);
    RL_TRY(push(lexer, (struct chat_token){.kind = kind == '%' ? CHAT_TOKEN_BLOCK_BEGIN
                                                               : CHAT_TOKEN_VARIABLE_BEGIN}));
    return lex_tag(lexer, kind == '%');
}

/* One kind of newline, and without the one at the very end. */
static rl_status normalize(const char *source, size_t bytes, struct tok_text *out)
{
    for (size_t i = 0; i < bytes; i++) {
        if (source[i] == '\r' && i + 1 < bytes && source[i + 1] == '\n') {
            continue;
        }
        char c = source[i] == '\r' ? '\n' : source[i];
        RL_TRY(tok_text_append(out, &c, 1, 0));
    }
    if (out->bytes > 0 && out->data[out->bytes - 1] == '\n') {
        out->bytes--;
    }
    return RL_OK;
}

rl_status chat_lex(const char *source, size_t bytes, struct rl_arena *arena,
                   struct chat_tokens *out)
{
    struct tok_text text = {0};
    rl_status status = normalize(source, bytes, &text);
    struct lexer lexer = {.at = text.data, .arena = arena, .out = out, .line = 1};
    lexer.end = text.bytes > 0 ? text.data + text.bytes : text.data;
    lexer.line_starts = true;
    while (status == RL_OK && lexer.at < lexer.end) {
        status = lex_piece(&lexer);
    }
    if (status == RL_OK) {
        status = push(&lexer, (struct chat_token){.kind = CHAT_TOKEN_EOF, .data = ""});
    }
    tok_text_fini(&text);
    return status;
}
