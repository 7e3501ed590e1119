/* From the reference engine's (Oniguruma's) pattern syntax to PCRE2's, construct by construct. What
 * would mean something else in PCRE2 is rewritten (\h, \s, \w, \b, {n,m}+, classes); what cannot be
 * is refused by name. Invariant: a translated pattern finds the same matches. */
#include "model/tokenizer_internal.h"

#include "core/log.h"

#include <stdio.h>
#include <string.h>

enum { GROUP_DEPTH_MAX = 64, NO_ATOM = -1 };

struct translation {
    struct tok_regex_parser parser;
    struct tok_text *out;
    ptrdiff_t atom; /* start in out of the atom that a quantifier would bind to */
    bool quantified;
    uint32_t literal; /* last literal character under (?i), for multi-character folds */
    ptrdiff_t group_start[GROUP_DEPTH_MAX];
    bool group_caseless[GROUP_DEPTH_MAX];
    int groups;
};

static void begin_atom(struct translation *t)
{
    t->atom = (ptrdiff_t)t->out->bytes;
    t->quantified = false;
}

/* The reference folds these pairs with one ligature or sharp s; PCRE2 folds single characters. */
static bool folds_as_pair(uint32_t a, uint32_t b)
{
    a |= 0x20;
    b |= 0x20;
    return (a == 's' && (b == 's' || b == 't')) || (a == 'f' && (b == 'f' || b == 'i' || b == 'l'));
}

static rl_status emit_literal(struct translation *t, uint32_t code)
{
    char text[16];
    if (t->parser.caseless) {
        if (code >= 0x80 || folds_as_pair(t->literal, code)) {
            return tok_regex_refuse(&t->parser, "a caseless literal with a multi-character fold");
        }
        t->literal = code;
    }
    bool plain = (code >= '0' && code <= '9') || ((code | 0x20) >= 'a' && (code | 0x20) <= 'z') ||
                 code >= 0x80;
    if (plain) {
        return tok_text_put(t->out, code, 0);
    }
    int length = snprintf(text, sizeof(text), "\\x{%X}", code);
    return tok_text_append(t->out, text, (size_t)length, 0);
}

/* A set outside of a class: "[" items "]" built by re-reading the escape as a class. */
static rl_status emit_set(struct translation *t, const char *class_text)
{
    struct tok_regex_parser inner = t->parser;
    inner.at = class_text;
    inner.end = class_text + strlen(class_text);
    return tok_regex_class(&inner, t->out);
}

/* \w outside of a class also has the superscripts and fractions of Latin-1: the engine answers for
 * code points below 256 from a table of that character set. */
static rl_status emit_word(struct tok_text *out, bool negated)
{
    RL_TRY(tok_regex_emit(out, negated ? "[^" : "["));
    RL_TRY(tok_regex_word_items(out));
    return tok_regex_emit(out, "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}]");
}

static rl_status emit_boundary(struct tok_text *out, bool negated)
{
    RL_TRY(tok_regex_emit(out, negated ? "(?:(?<=" : "(?:(?<="));
    RL_TRY(emit_word(out, false));
    RL_TRY(tok_regex_emit(out, negated ? ")(?=" : ")(?!"));
    RL_TRY(emit_word(out, false));
    RL_TRY(tok_regex_emit(out, ")|(?<!"));
    RL_TRY(emit_word(out, false));
    RL_TRY(tok_regex_emit(out, negated ? ")(?!" : ")(?="));
    RL_TRY(emit_word(out, false));
    return tok_regex_emit(out, "))");
}

/* Escapes that stand for one character and are spelled the same in a class. */
static rl_status escape_code(struct translation *t)
{
    char class_text[24];
    const char *start = t->parser.at;
    struct tok_regex_parser probe = t->parser;
    size_t length = 1;
    if (*start == 'x' && probe.end - start > 1 && start[1] == '{') {
        const char *close = memchr(start, '}', (size_t)(probe.end - start));
        length = close != NULL ? (size_t)(close - start) + 1 : 1;
    } else if (*start == 'x' || *start == 'u') {
        length = 1 + (*start == 'x' ? 2U : 4U);
    }
    if (length > 14 || (size_t)(probe.end - start) < length) {
        return tok_regex_refuse(&t->parser, "this numeric escape");
    }
    if (t->parser.caseless && (*start == 'x' || *start == 'u')) {
        return tok_regex_refuse(&t->parser, "a numeric escape under (?i)");
    }
    snprintf(class_text, sizeof(class_text), "\\%.*s]", (int)length, start);
    t->parser.at += length;
    return emit_set(t, class_text);
}

static rl_status escape_letter(struct translation *t, char c)
{
    switch (c) {
    case 's':
        return emit_set(t, "\\s]");
    case 'S':
        return emit_set(t, "\\S]");
    case 'd':
        return emit_set(t, "\\d]");
    case 'D':
        return emit_set(t, "^\\d]");
    case 'h':
        return emit_set(t, "\\h]");
    case 'H':
        return emit_set(t, "^\\h]");
    case 'w':
    case 'W':
        return emit_word(t->out, c == 'W');
    case 'b':
    case 'B':
        return emit_boundary(t->out, c == 'B');
    case 'p':
    case 'P':
        return tok_regex_property(&t->parser, c == 'P', t->out);
    case 'A':
    case 'Z':
    case 'z':
    case 'R':
        RL_TRY(tok_text_append(t->out, "\\", 1, 0));
        return tok_text_append(t->out, &c, 1, 0);
    default:
        return tok_regex_refuse(&t->parser, "this escape");
    }
}

static rl_status translate_escape(struct translation *t)
{
    begin_atom(t);
    if (++t->parser.at == t->parser.end) {
        return tok_regex_refuse(&t->parser, "a trailing backslash");
    }
    char c = *t->parser.at;
    if (strchr("ntrfvaexu", c) != NULL && c != '\0') {
        t->literal = 0;
        return escape_code(t);
    }
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
        t->parser.at++;
        t->literal = 0;
        return escape_letter(t, c);
    }
    if (c >= '0' && c <= '9') {
        return tok_regex_refuse(&t->parser, "a back-reference");
    }
    size_t bytes;
    uint32_t code = tok_utf8_get(t->parser.at, &bytes);
    t->parser.at += bytes;
    return emit_literal(t, code);
}

/* "(?imx-imx" up to ')' or ':'. The engine's m is PCRE2's s. */
static rl_status group_options(struct translation *t)
{
    bool on = true;
    char text[16] = "(?";
    size_t length = 2;
    while (t->parser.at < t->parser.end && *t->parser.at != ')' && *t->parser.at != ':') {
        char c = *t->parser.at++;
        if ((c != 'i' && c != 'm' && c != '-') || length > 8) {
            return tok_regex_refuse(&t->parser, "this group option");
        }
        on = c == '-' ? false : on;
        t->parser.caseless = c == 'i' ? on : t->parser.caseless;
        text[length++] = (char)(c == 'm' ? 's' : c);
    }
    if (t->parser.at == t->parser.end) {
        return tok_regex_refuse(&t->parser, "an unclosed group");
    }
    if (*t->parser.at == ')') {
        /* elsewhere it governs what follows, alternatives included: a rule PCRE2 does not share */
        if (t->out->bytes > 0) {
            return tok_regex_refuse(&t->parser, "an option that is set behind the start");
        }
        text[length++] = ')';
        t->groups--; /* opens no group: undone by the caller's increment */
    } else {
        text[length++] = ':';
    }
    t->parser.at++;
    return tok_text_append(t->out, text, length, 0);
}

static rl_status group_named(struct translation *t)
{
    const char *close = memchr(t->parser.at, '>', (size_t)(t->parser.end - t->parser.at));
    if (close == NULL) {
        return tok_regex_refuse(&t->parser, "an unclosed group name");
    }
    t->parser.at = close + 1;
    return tok_regex_emit(t->out, "(?:");
}

/* Parser behind "(?": copies the group's opening. */
static rl_status group_special(struct translation *t)
{
    static const char *const openings[] = {":", "=", "!", "<=", "<!", ">"};
    size_t left = (size_t)(t->parser.end - t->parser.at);
    for (size_t i = 0; i < sizeof(openings) / sizeof(openings[0]); i++) {
        size_t length = strlen(openings[i]);
        if (left >= length && memcmp(t->parser.at, openings[i], length) == 0) {
            t->parser.at += length;
            RL_TRY(tok_regex_emit(t->out, "(?"));
            return tok_regex_emit(t->out, openings[i]);
        }
    }
    if (left > 0 && *t->parser.at == '<') {
        return group_named(t);
    }
    return group_options(t);
}

static rl_status translate_open(struct translation *t)
{
    if (t->groups + 1 >= GROUP_DEPTH_MAX) {
        return tok_regex_refuse(&t->parser, "deep nesting");
    }
    int depth = t->groups;
    ptrdiff_t start = (ptrdiff_t)t->out->bytes;
    bool caseless = t->parser.caseless;
    t->parser.at++;
    t->literal = 0;
    if (t->parser.at < t->parser.end && *t->parser.at == '?') {
        t->parser.at++;
        RL_TRY(group_special(t));
    } else {
        RL_TRY(tok_regex_emit(t->out, "(?:"));
    }
    if (t->groups >= depth) {
        t->group_start[depth] = start;
        t->group_caseless[depth] = caseless;
    }
    t->groups++;
    t->atom = NO_ATOM;
    return RL_OK;
}

static rl_status translate_close(struct translation *t)
{
    if (t->groups == 0) {
        return tok_regex_refuse(&t->parser, "an unmatched )");
    }
    t->groups--;
    t->parser.at++;
    t->atom = t->group_start[t->groups];
    t->parser.caseless = t->group_caseless[t->groups];
    t->quantified = false;
    t->literal = 0;
    return tok_regex_emit(t->out, ")");
}

/* Put "(?:" before the current atom and ")" behind it. */
static rl_status wrap_atom(struct translation *t)
{
    size_t start = (size_t)t->atom;
    RL_TRY(tok_text_reserve(t->out, 4));
    memmove(t->out->data + start + 3, t->out->data + start, t->out->bytes - start);
    memcpy(t->out->data + start, "(?:", 3);
    t->out->bytes += 3;
    return tok_regex_emit(t->out, ")");
}

/* Length of "{n,m}" at the parser, 0 if the brace is a literal. */
static size_t interval_length(const struct tok_regex_parser *parser, bool *low_missing, bool *fixed)
{
    const char *at = parser->at + 1;
    const char *low = at;
    while (at < parser->end && *at >= '0' && *at <= '9') {
        at++;
    }
    size_t low_digits = (size_t)(at - low);
    size_t high_digits = 0;
    *fixed = at < parser->end && *at == '}';
    if (!*fixed && at < parser->end && *at == ',') {
        const char *high = ++at;
        while (at < parser->end && *at >= '0' && *at <= '9') {
            at++;
        }
        high_digits = (size_t)(at - high);
    }
    *low_missing = low_digits == 0;
    bool any = low_digits > 0 || high_digits > 0;
    if (at == parser->end || *at != '}' || !any || low_digits > 5 || high_digits > 5) {
        return 0;
    }
    return (size_t)(at - parser->at) + 1;
}

static rl_status translate_interval(struct translation *t, size_t length, bool low_missing,
                                    bool fixed)
{
    if (low_missing) {
        RL_TRY(tok_regex_emit(t->out, "{0"));
        RL_TRY(tok_text_append(t->out, t->parser.at + 1, length - 1, 0));
    } else {
        RL_TRY(tok_text_append(t->out, t->parser.at, length, 0));
    }
    t->parser.at += length;
    char next = t->parser.at < t->parser.end ? *t->parser.at : '\0';
    if (next == '?' && !fixed) {
        t->parser.at++;
        return tok_regex_emit(t->out, "?");
    }
    return RL_OK; /* a '+' (or '?' behind {n}) is a second quantifier there, see quantified */
}

static rl_status translate_quantifier(struct translation *t)
{
    bool low_missing = false;
    bool fixed = false;
    size_t length = 0;
    if (*t->parser.at == '{') {
        length = interval_length(&t->parser, &low_missing, &fixed);
        if (length == 0) {
            begin_atom(t);
            t->parser.at++;
            return emit_literal(t, '{');
        }
    }
    if (t->atom == NO_ATOM) {
        return tok_regex_refuse(&t->parser, "a quantifier without an operand");
    }
    if (t->quantified) {
        RL_TRY(wrap_atom(t));
    }
    t->quantified = true;
    t->literal = 0;
    if (length > 0) {
        return translate_interval(t, length, low_missing, fixed);
    }
    RL_TRY(tok_text_append(t->out, t->parser.at++, 1, 0));
    if (t->parser.at < t->parser.end && (*t->parser.at == '+' || *t->parser.at == '?')) {
        return tok_text_append(t->out, t->parser.at++, 1, 0);
    }
    return RL_OK;
}

static rl_status translate_plain(struct translation *t)
{
    char c = *t->parser.at;
    if (c == '|') {
        t->atom = NO_ATOM;
        t->literal = 0;
        t->parser.at++;
        return tok_regex_emit(t->out, "|");
    }
    begin_atom(t);
    if (c == '^' || c == '$' || c == '.') {
        t->literal = 0;
        return tok_text_append(t->out, t->parser.at++, 1, 0);
    }
    size_t bytes;
    uint32_t code = tok_utf8_get(t->parser.at, &bytes);
    t->parser.at += bytes;
    return emit_literal(t, code);
}

static rl_status translate_next(struct translation *t)
{
    switch (*t->parser.at) {
    case '\\':
        return translate_escape(t);
    case '[':
        begin_atom(t);
        t->parser.at++;
        t->literal = 0;
        return tok_regex_class(&t->parser, t->out);
    case '(':
        return translate_open(t);
    case ')':
        return translate_close(t);
    case '*':
    case '+':
    case '?':
    case '{':
        return translate_quantifier(t);
    default:
        return translate_plain(t);
    }
}

rl_status tok_regex_translate(const char *pattern, size_t bytes, const char *where,
                              struct tok_text *out)
{
    struct translation t = {.out = out, .atom = NO_ATOM};
    t.parser = (struct tok_regex_parser){.at = pattern, .end = pattern + bytes, .where = where};
    while (t.parser.at < t.parser.end) {
        RL_TRY(translate_next(&t));
    }
    return t.groups == 0 ? RL_OK : tok_regex_refuse(&t.parser, "an unclosed group");
}
