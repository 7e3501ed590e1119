/* Character classes and properties of the reference engine's (Oniguruma's) pattern syntax,
 * rewritten for PCRE2. Nested classes, intersections and complements inside classes have no PCRE2
 * spelling; they become look-aheads around one-character atoms. Invariant: each function appends
 * exactly one atom that consumes one character. */
#include "model/tokenizer_internal.h"

#include "core/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char tok_regex_space_items[] = "\\x09-\\x0D\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}"
                                     "\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";
const char tok_regex_nonspace_items[] =
    "\\x00-\\x08\\x0E-\\x1F\\x21-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}"
    "\\x{200B}-\\x{2027}\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}"
    "\\x{3001}-\\x{D7FF}\\x{E000}-\\x{10FFFF}";

/* One && section of a class: plain items, and atoms that cannot be written as items. */
struct class_section {
    struct tok_text items;
    struct tok_text atoms; /* "atom|atom|..." */
};

static void section_fini(struct class_section *section)
{
    tok_text_fini(&section->items);
    tok_text_fini(&section->atoms);
}

rl_status tok_regex_emit(struct tok_text *out, const char *text)
{
    return tok_text_append(out, text, strlen(text), 0);
}

rl_status tok_regex_refuse(const struct tok_regex_parser *parser, const char *construct)
{
    return rl_fail(RL_UNSUPPORTED, "%s: %s in a regular expression is not supported", parser->where,
                   construct);
}

rl_status tok_regex_word_items(struct tok_text *out)
{
    RL_TRY(tok_regex_emit(out, "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"));
    RL_TRY(tok_unicode_newer(out, "Alphabetic"));
    RL_TRY(tok_unicode_newer(out, "M"));
    return tok_unicode_newer(out, "Nd");
}

static rl_status emit_code(struct tok_text *out, uint32_t code)
{
    char text[16];
    int length = snprintf(text, sizeof(text), "\\x{%X}", code);
    return tok_text_append(out, text, (size_t)length, 0);
}

static bool is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* ---- properties ---- */

struct property_alias {
    const char *name; /* lower case without spaces, - and _ */
    const char *items;
    const char *newer; /* properties that extend it, space-separated */
};

static const struct property_alias property_aliases[] = {
    {"alpha", "\\p{Alphabetic}", "Alphabetic"},
    {"alphabetic", "\\p{Alphabetic}", "Alphabetic"},
    {"alnum", "\\p{Alphabetic}\\p{Nd}", "Alphabetic Nd"},
    {"digit", "\\p{Nd}", "Nd"},
    {"upper", "\\p{Uppercase}", "Uppercase"},
    {"uppercase", "\\p{Uppercase}", "Uppercase"},
    {"lower", "\\p{Lowercase}", "Lowercase"},
    {"lowercase", "\\p{Lowercase}", "Lowercase"},
    {"space", tok_regex_space_items, NULL},
    {"whitespace", tok_regex_space_items, NULL},
    {"punct", "\\p{P}", "P"},
    {"word", "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}",
     "Alphabetic M Nd"},
    {":punct", "\\p{P}\\p{S}", "P S"}, /* in brackets these two mean something else */
    {":word", "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}", "Alphabetic M Nd"},
    {"xdigit", "0-9a-fA-F", NULL},
    {"cntrl", "\\x00-\\x1F\\x7F-\\x{9F}", NULL},
    {"blank", "\\x09\\x20\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{202F}\\x{205F}\\x{3000}", NULL},
    {"ascii", "\\x00-\\x7F", NULL},
    {"any", "\\x00-\\x{D7FF}\\x{E000}-\\x{10FFFF}", NULL},
    {"letter", "\\p{L}", "L"},
    {"mark", "\\p{M}", "M"},
    {"number", "\\p{N}", "N"},
    {"punctuation", "\\p{P}", "P"},
    {"symbol", "\\p{S}", "S"},
    {"separator", "\\p{Z}", NULL},
    {"uppercaseletter", "\\p{Lu}", "Lu"},
    {"lowercaseletter", "\\p{Ll}", "Ll"},
    {"titlecaseletter", "\\p{Lt}", "Lt"},
    {"modifierletter", "\\p{Lm}", "Lm"},
    {"otherletter", "\\p{Lo}", "Lo"},
    {"decimalnumber", "\\p{Nd}", "Nd"},
};

static const char *const category_spellings[] = {
    "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N",  "Nd", "Nl", "No", "P", "Pc",
    "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S", "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp"};

static rl_status emit_newer(struct tok_text *out, const char *names)
{
    char name[16];
    while (names != NULL && *names != '\0') {
        size_t length = strcspn(names, " ");
        snprintf(name, sizeof(name), "%.*s", (int)length, names);
        RL_TRY(tok_unicode_newer(out, name));
        names += length + (names[length] == ' ');
    }
    return RL_OK;
}

/* Scripts keep the reference's capitals so that the table of newer characters finds them. */
static void script_name(const char *name, size_t bytes, char *out, size_t room)
{
    size_t at = 0;
    bool capital = true;
    for (size_t i = 0; i < bytes && at + 1 < room; i++) {
        char c = name[i] == ' ' || name[i] == '-' ? '_' : name[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (letter) {
            c = (char)(capital ? c & ~0x20 : c | 0x20);
        }
        capital = c == '_';
        out[at++] = c;
    }
    out[at] = '\0';
}

static rl_status emit_script(const char *name, size_t bytes, struct tok_text *out)
{
    char script[40];
    char item[60];
    script_name(name, bytes, script, sizeof(script));
    int length = snprintf(item, sizeof(item), "\\p{sc:%s}", script);
    RL_TRY(tok_text_append(out, item, (size_t)length, 0));
    return tok_unicode_newer(out, script);
}

/* Items of a property; the name has no '^'. Categories with unassigned characters are refused: they
 * shrink from one Unicode version to the next. */
static rl_status property_items(const struct tok_regex_parser *parser, const char *name,
                                size_t bytes, struct tok_text *out)
{
    char plain[40] = "";
    size_t count = 0;
    for (size_t i = 0; i < bytes && count + 1 < sizeof(plain); i++) {
        if (name[i] != ' ' && name[i] != '-' && name[i] != '_') {
            plain[count++] = (char)(name[i] >= 'A' && name[i] <= 'Z' ? name[i] | 0x20 : name[i]);
        }
    }
    plain[count] = '\0';
    for (size_t i = 0; i < sizeof(category_spellings) / sizeof(category_spellings[0]); i++) {
        const char *category = category_spellings[i];
        if (strlen(category) == count && plain[0] == (category[0] | 0x20) &&
            (count == 1 || plain[1] == category[1])) {
            char item[16];
            snprintf(item, sizeof(item), "\\p{%s}", category);
            RL_TRY(tok_regex_emit(out, item));
            return tok_unicode_newer(out, category);
        }
    }
    for (size_t i = 0; i < sizeof(property_aliases) / sizeof(property_aliases[0]); i++) {
        if (strcmp(plain, property_aliases[i].name) == 0) {
            RL_TRY(tok_regex_emit(out, property_aliases[i].items));
            return emit_newer(out, property_aliases[i].newer);
        }
    }
    if (count < 2 || (count == 2 && plain[0] == 'c') || plain[0] < 'a' || plain[0] > 'z' ||
        strncmp(plain, "in", 2) == 0 || strspn(plain, "abcdefghijklmnopqrstuvwxyz") != count) {
        return tok_regex_refuse(parser, "this property");
    }
    return emit_script(name, bytes, out);
}

/* Reads "{name}" or "{^name}" behind \p. */
static rl_status property_parse(struct tok_regex_parser *parser, bool *negated,
                                struct tok_text *items)
{
    if (parser->at == parser->end || *parser->at != '{') {
        return tok_regex_refuse(parser, "\\p without braces");
    }
    const char *name = ++parser->at;
    const char *close = memchr(name, '}', (size_t)(parser->end - name));
    if (close == NULL) {
        return tok_regex_refuse(parser, "an unclosed \\p{");
    }
    if (*name == '^') {
        *negated = !*negated;
        name++;
    }
    parser->at = close + 1;
    return property_items(parser, name, (size_t)(close - name), items);
}

static rl_status emit_class(struct tok_text *out, bool negated, const struct tok_text *items)
{
    RL_TRY(tok_regex_emit(out, negated ? "[^" : "["));
    RL_TRY(tok_text_copy(out, items, 0, items->bytes));
    return tok_regex_emit(out, "]");
}

rl_status tok_regex_property(struct tok_regex_parser *parser, bool negated, struct tok_text *out)
{
    struct tok_text items = {0};
    rl_status status;
    RL_TRY_GOTO(property_parse(parser, &negated, &items), status, done);
    status = emit_class(out, negated, &items);
done:
    tok_text_fini(&items);
    return status;
}

/* ---- classes ---- */

static rl_status section_atom(struct class_section *section, const struct tok_text *atom)
{
    if (section->atoms.bytes > 0) {
        RL_TRY(tok_regex_emit(&section->atoms, "|"));
    }
    return tok_text_copy(&section->atoms, atom, 0, atom->bytes);
}

/* A complemented set of items inside a class. */
static rl_status section_complement(struct class_section *section, const struct tok_text *items)
{
    struct tok_text atom = {0};
    rl_status status;
    RL_TRY_GOTO(emit_class(&atom, true, items), status, done);
    status = section_atom(section, &atom);
done:
    tok_text_fini(&atom);
    return status;
}

static rl_status section_set(struct class_section *section, bool negated,
                             const struct tok_text *items)
{
    if (negated) {
        return section_complement(section, items);
    }
    return tok_text_copy(&section->items, items, 0, items->bytes);
}

/* \xHH, \x{H..}, \uHHHH: parser stands behind the letter. */
static rl_status hex_escape(struct tok_regex_parser *parser, char letter, uint32_t *code)
{
    bool braces = letter == 'x' && parser->at < parser->end && *parser->at == '{';
    int most = braces ? 8 : letter == 'x' ? 2 : 4;
    uint32_t value = 0;
    int digits = 0;
    parser->at += braces;
    while (digits < most && parser->at < parser->end && is_hex(*parser->at)) {
        char c = *parser->at++;
        value = value << 4 | (uint32_t)(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
        digits++;
    }
    bool closed = !braces || (parser->at < parser->end && *parser->at == '}');
    if (digits == 0 || !closed || (letter == 'u' && digits != 4) || value > 0x10FFFF ||
        (value >= 0xD800 && value < 0xE000) || (letter == 'x' && !braces && value >= 0x80)) {
        return tok_regex_refuse(parser, "this numeric escape");
    }
    parser->at += braces;
    *code = value;
    return RL_OK;
}

/* Escape that stands for one character; parser behind the backslash. */
static rl_status class_escape_code(struct tok_regex_parser *parser, uint32_t *code)
{
    static const char letters[] = "ntrfvaeb";
    static const unsigned char values[] = {10, 9, 13, 12, 11, 7, 27, 8};
    char c = *parser->at;
    const char *found = c != '\0' ? strchr(letters, c) : NULL;
    if (found != NULL) {
        parser->at++;
        *code = values[found - letters];
        return RL_OK;
    }
    if (c == 'x' || c == 'u') {
        parser->at++;
        return hex_escape(parser, c, code);
    }
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
        return tok_regex_refuse(parser, "this escape in a class");
    }
    size_t bytes;
    *code = tok_utf8_get(parser->at, &bytes);
    parser->at += bytes;
    return RL_OK;
}

/* Escapes that stand for a set. *used tells whether there was one. */
static rl_status class_escape_set(struct tok_regex_parser *parser, struct class_section *section,
                                  bool *used)
{
    char c = *parser->at;
    struct tok_text items = {0};
    rl_status status = RL_OK;
    bool negated = c >= 'A' && c <= 'Z';
    *used = c != '\0' && strchr("sSdDwWhHpP", c) != NULL;
    if (!*used) {
        return RL_OK;
    }
    parser->at++;
    switch (c | 0x20) {
    case 's':
        return tok_regex_emit(&section->items,
                              negated ? tok_regex_nonspace_items : tok_regex_space_items);
    case 'd':
        status = tok_regex_emit(&items, "\\p{Nd}");
        status = status == RL_OK ? tok_unicode_newer(&items, "Nd") : status;
        break;
    case 'w':
        status = tok_regex_word_items(&items);
        break;
    case 'h':
        status = tok_regex_emit(&items, "0-9a-fA-F");
        break;
    default:
        status = property_parse(parser, &negated, &items);
        break;
    }
    if (status == RL_OK) {
        status = section_set(section, negated, &items);
    }
    tok_text_fini(&items);
    return status;
}

/* "[:name:]"; *used tells whether there was one. Parser stands behind the '['. */
static rl_status class_posix(struct tok_regex_parser *parser, struct class_section *section,
                             bool *used)
{
    const char *name = parser->at + 1;
    bool negated = false;
    *used = false;
    if (parser->end - parser->at < 4 || *parser->at != ':') {
        return RL_OK;
    }
    if (*name == '^') {
        negated = true;
        name++;
    }
    const char *stop = name;
    while (stop < parser->end && *stop >= 'a' && *stop <= 'z') {
        stop++;
    }
    if (parser->end - stop < 2 || stop[0] != ':' || stop[1] != ']') {
        return tok_regex_refuse(parser, "[: in a class");
    }
    struct tok_text items = {0};
    bool apart = strncmp(name, "punct:", 6) == 0 || strncmp(name, "word:", 5) == 0;
    const char *wanted = !apart ? name : *name == 'p' ? ":punct" : ":word";
    size_t length = apart ? strlen(wanted) : (size_t)(stop - name);
    rl_status status = property_items(parser, wanted, length, &items);
    if (status == RL_OK) {
        status = section_set(section, negated, &items);
    }
    tok_text_fini(&items);
    parser->at = stop + 2;
    *used = true;
    return status;
}

/* One character or a range of them. */
static rl_status class_range(struct tok_regex_parser *parser, struct class_section *section)
{
    uint32_t first;
    uint32_t last;
    size_t bytes;
    if (*parser->at == '\\') {
        parser->at++;
        RL_TRY(class_escape_code(parser, &first));
    } else {
        first = tok_utf8_get(parser->at, &bytes);
        parser->at += bytes;
    }
    RL_TRY(emit_code(&section->items, first));
    if (parser->end - parser->at < 2 || parser->at[0] != '-' || parser->at[1] == ']') {
        return RL_OK;
    }
    parser->at++;
    if (*parser->at == '[') {
        return tok_regex_refuse(parser, "a range that ends in a class");
    }
    if (*parser->at == '\\') {
        parser->at++;
        if (parser->at == parser->end || strchr("sSdDwWhHpP", *parser->at) != NULL) {
            return tok_regex_refuse(parser, "a range that ends in a class");
        }
        RL_TRY(class_escape_code(parser, &last));
    } else {
        last = tok_utf8_get(parser->at, &bytes);
        parser->at += bytes;
    }
    if (last < first) {
        return tok_regex_refuse(parser, "an empty range");
    }
    RL_TRY(tok_regex_emit(&section->items, "-"));
    return emit_code(&section->items, last);
}

static rl_status class_nested(struct tok_regex_parser *parser, struct class_section *section)
{
    bool used;
    RL_TRY(class_posix(parser, section, &used));
    if (used) {
        return RL_OK;
    }
    struct tok_text atom = {0};
    rl_status status = tok_regex_class(parser, &atom);
    if (status == RL_OK) {
        status = section_atom(section, &atom);
    }
    tok_text_fini(&atom);
    return status;
}

static rl_status class_item(struct tok_regex_parser *parser, struct class_section *section)
{
    bool used = false;
    if (*parser->at == '[') {
        parser->at++;
        return class_nested(parser, section);
    }
    if (*parser->at == '\\') {
        if (parser->end - parser->at < 2) {
            return tok_regex_refuse(parser, "a trailing backslash");
        }
        parser->at++;
        RL_TRY(class_escape_set(parser, section, &used));
        if (used) {
            return RL_OK;
        }
        parser->at--;
    }
    return class_range(parser, section);
}

/* Parse items up to ']' or '&&'; *more tells that another section follows. */
static rl_status class_section_parse(struct tok_regex_parser *parser, struct class_section *section,
                                     bool *more)
{
    *more = false;
    while (parser->at < parser->end && *parser->at != ']') {
        if (parser->end - parser->at >= 2 && parser->at[0] == '&' && parser->at[1] == '&') {
            parser->at += 2;
            *more = true;
            return RL_OK;
        }
        RL_TRY(class_item(parser, section));
    }
    if (parser->at == parser->end) {
        return tok_regex_refuse(parser, "an unclosed class");
    }
    parser->at++;
    return RL_OK;
}

/* The section as one atom. */
static rl_status section_emit(const struct class_section *section, struct tok_text *out)
{
    if (section->atoms.bytes == 0 && section->items.bytes == 0) {
        return tok_regex_emit(out, "(?!)");
    }
    if (section->atoms.bytes == 0) {
        return emit_class(out, false, &section->items);
    }
    RL_TRY(tok_regex_emit(out, "(?:"));
    if (section->items.bytes > 0) {
        RL_TRY(emit_class(out, false, &section->items));
        RL_TRY(tok_regex_emit(out, "|"));
    }
    RL_TRY(tok_text_copy(out, &section->atoms, 0, section->atoms.bytes));
    return tok_regex_emit(out, ")");
}

static rl_status class_sections(struct tok_regex_parser *parser, struct tok_text *guards,
                                struct class_section *last, bool *simple)
{
    bool more = true;
    *simple = true;
    while (more) {
        section_fini(last);
        memset(last, 0, sizeof(*last));
        RL_TRY(class_section_parse(parser, last, &more));
        if (more) {
            *simple = false;
            RL_TRY(tok_regex_emit(guards, "(?="));
            RL_TRY(section_emit(last, guards));
            RL_TRY(tok_regex_emit(guards, ")"));
        }
    }
    *simple = *simple && last->atoms.bytes == 0 && last->items.bytes > 0;
    return RL_OK;
}

static rl_status class_emit(bool negated, bool simple, const struct tok_text *guards,
                            const struct class_section *last, struct tok_text *out)
{
    if (simple) {
        return emit_class(out, negated, &last->items);
    }
    RL_TRY(tok_regex_emit(out, negated ? "(?:(?!" : "(?:"));
    RL_TRY(tok_text_copy(out, guards, 0, guards->bytes));
    RL_TRY(section_emit(last, out));
    return tok_regex_emit(out, negated ? ")(?s:.))" : ")");
}

rl_status tok_regex_class(struct tok_regex_parser *parser, struct tok_text *out)
{
    struct tok_text guards = {0};
    struct class_section last = {0};
    bool simple;
    rl_status status;
    bool negated = parser->at < parser->end && *parser->at == '^';
    parser->at += negated;
    if (parser->at < parser->end && *parser->at == ']') {
        return tok_regex_refuse(parser, "an empty class");
    }
    if (++parser->depth > 32) {
        return tok_regex_refuse(parser, "deep nesting");
    }
    RL_TRY_GOTO(class_sections(parser, &guards, &last, &simple), status, done);
    status = class_emit(negated, simple, &guards, &last, out);
done:
    parser->depth--;
    section_fini(&last);
    tok_text_fini(&guards);
    return status;
}
