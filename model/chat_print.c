/* Values as text: Python's str() and repr(), and json.dumps as the templates' tojson calls it.
 * Invariant: a character that came from the caller's data keeps that mark. */
#include "model/chat_internal.h"

#include "core/log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* Shortest decimal digits that read back as the same double; exponent of the first digit. */
static void shortest_digits(double real, char digits[24], int *exponent)
{
    char text[40];
    for (int precision = 0; precision < 17; precision++) {
        snprintf(text, sizeof(text), "%.*e", precision, real);
        if (strtod(text, NULL) == real) {
            break;
        }
    }
    size_t count = 0;
    const char *at = text;
    for (; *at != 'e'; at++) {
        if (*at >= '0' && *at <= '9') {
            digits[count++] = *at;
        }
    }
    digits[count] = '\0';
    *exponent = (int)strtol(at + 1, NULL, 10);
}

static rl_status print_fixed(const char *digits, int exponent, struct tok_text *out)
{
    int count = (int)strlen(digits);
    if (exponent < 0) {
        RL_TRY(tok_regex_emit(out, "0."));
        for (int i = -1; i > exponent; i--) {
            RL_TRY(tok_regex_emit(out, "0"));
        }
        return tok_regex_emit(out, digits);
    }
    for (int i = 0; i <= exponent; i++) {
        RL_TRY(tok_text_append(out, i < count ? digits + i : "0", 1, 0));
    }
    RL_TRY(tok_regex_emit(out, "."));
    return tok_regex_emit(out, count > exponent + 1 ? digits + exponent + 1 : "0");
}

rl_status chat_print_real(double real, struct tok_text *out)
{
    char digits[24];
    char tail[16];
    int exponent;
    if (isnan(real)) {
        return tok_regex_emit(out, "nan");
    }
    if (signbit(real)) {
        RL_TRY(tok_regex_emit(out, "-"));
        real = -real;
    }
    if (isinf(real)) {
        return tok_regex_emit(out, "inf");
    }
    shortest_digits(real, digits, &exponent);
    if (exponent >= -4 && exponent < 16) {
        return print_fixed(digits, exponent, out);
    }
    RL_TRY(tok_text_append(out, digits, 1, 0));
    if (digits[1] != '\0') {
        RL_TRY(tok_regex_emit(out, "."));
        RL_TRY(tok_regex_emit(out, digits + 1));
    }
    snprintf(tail, sizeof(tail), "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
    return tok_regex_emit(out, tail);
}

static rl_status print_int(int64_t integer, struct tok_text *out)
{
    char text[24];
    snprintf(text, sizeof(text), "%lld", (long long)integer);
    return tok_regex_emit(out, text);
}

/* ---- str and repr ---- */

static bool is_printable(uint32_t code)
{
    int category = tok_unicode_category(code);
    return code == ' ' || (category != UTF8PROC_CATEGORY_CN && category < UTF8PROC_CATEGORY_ZS);
}

static rl_status repr_character(uint32_t code, char quote, unsigned char mark, struct tok_text *out)
{
    char text[16];
    if (code == '\\' || code == (unsigned char)quote) {
        snprintf(text, sizeof(text), "\\%c", (char)code);
    } else if (code == '\n' || code == '\r' || code == '\t') {
        snprintf(text, sizeof(text), "\\%c", code == '\n' ? 'n' : code == '\r' ? 'r' : 't');
    } else if (is_printable(code)) {
        return tok_text_put(out, code, mark);
    } else if (code < 0x100) {
        snprintf(text, sizeof(text), "\\x%02x", code);
    } else {
        snprintf(text, sizeof(text), code < 0x10000 ? "\\u%04x" : "\\U%08x", code);
    }
    return tok_text_append(out, text, strlen(text), mark);
}

static rl_status repr_string(const struct chat_string *string, struct tok_text *out)
{
    bool single = memchr(string->data, '\'', string->bytes) != NULL;
    bool twofold = memchr(string->data, '"', string->bytes) != NULL;
    char quote = single && !twofold ? '"' : '\'';
    RL_TRY(tok_text_append(out, &quote, 1, 0));
    for (size_t at = 0; at < string->bytes;) {
        size_t length;
        uint32_t code = tok_utf8_get(string->data + at, &length);
        RL_TRY(repr_character(code, quote, string->taint != NULL ? string->taint[at] : 0, out));
        at += length;
    }
    return tok_text_append(out, &quote, 1, 0);
}

static rl_status repr_list(struct chat_run *run, const struct chat_list *list, int depth,
                           struct tok_text *out)
{
    RL_TRY(tok_regex_emit(out, list->tuple ? "(" : "["));
    for (size_t i = 0; i < list->count; i++) {
        RL_TRY(tok_regex_emit(out, i > 0 ? ", " : ""));
        RL_TRY(chat_print_repr(run, &list->items[i], depth + 1, out));
    }
    RL_TRY(tok_regex_emit(out, list->tuple && list->count == 1 ? "," : ""));
    return tok_regex_emit(out, list->tuple ? ")" : "]");
}

static rl_status repr_dict(struct chat_run *run, const struct chat_dict *dict, int depth,
                           struct tok_text *out)
{
    if (dict->is_loop || dict->is_namespace) {
        return chat_error(run, "a namespace or loop cannot be printed");
    }
    RL_TRY(tok_regex_emit(out, "{"));
    for (size_t i = 0; i < dict->count; i++) {
        RL_TRY(tok_regex_emit(out, i > 0 ? ", " : ""));
        RL_TRY(chat_print_repr(run, &dict->entries[i].key, depth + 1, out));
        RL_TRY(tok_regex_emit(out, ": "));
        RL_TRY(chat_print_repr(run, &dict->entries[i].value, depth + 1, out));
    }
    return tok_regex_emit(out, "}");
}

rl_status chat_print_repr(struct chat_run *run, const struct chat_value *value, int depth,
                          struct tok_text *out)
{
    if (depth > CHAT_DEPTH_LIMIT || out->bytes > CHAT_OUTPUT_BYTES) {
        return chat_error(run, "a value too large to print");
    }
    switch (value->kind) {
    case CHAT_UNDEFINED:
        return tok_regex_emit(out, "Undefined");
    case CHAT_NONE:
        return tok_regex_emit(out, "None");
    case CHAT_BOOL:
        return tok_regex_emit(out, value->as.truth ? "True" : "False");
    case CHAT_INT:
        return print_int(value->as.integer, out);
    case CHAT_REAL:
        return chat_print_real(value->as.real, out);
    case CHAT_STRING:
        return repr_string(&value->as.string, out);
    case CHAT_LIST:
        return repr_list(run, value->as.list, depth, out);
    case CHAT_DICT:
        return repr_dict(run, value->as.dict, depth, out);
    default:
        return chat_error(run, "a %s cannot be printed", chat_kind_name(value));
    }
}

rl_status chat_print(struct chat_run *run, const struct chat_value *value, struct tok_text *out)
{
    if (value->kind == CHAT_UNDEFINED) {
        return RL_OK;
    }
    if (value->kind == CHAT_STRING) {
        return chat_append(out, &value->as.string);
    }
    return chat_print_repr(run, value, 0, out);
}

/* ---- JSON ---- */

static rl_status json_character(unsigned char c, unsigned char mark, struct tok_text *out)
{
    static const char plain[] = "\"\\\n\r\t\b\f";
    static const char escaped[] = "\"\\nrtbf";
    char text[8] = "\\";
    const char *found = c != '\0' ? strchr(plain, c) : NULL;
    if (found != NULL) {
        text[1] = escaped[found - plain];
        return tok_text_append(out, text, 2, mark);
    }
    if (c < 0x20) {
        snprintf(text, sizeof(text), "\\u%04x", c);
        return tok_text_append(out, text, 6, mark);
    }
    return tok_text_append(out, (const char *)&c, 1, mark);
}

static rl_status json_string_print(const struct chat_string *string, struct tok_text *out)
{
    RL_TRY(tok_regex_emit(out, "\""));
    for (size_t i = 0; i < string->bytes; i++) {
        unsigned char mark = string->taint != NULL ? string->taint[i] : 0;
        RL_TRY(json_character((unsigned char)string->data[i], mark, out));
    }
    return tok_regex_emit(out, "\"");
}

static rl_status json_break(int indent, int depth, bool last, struct tok_text *out)
{
    if (indent < 0) {
        return last ? RL_OK : tok_regex_emit(out, " ");
    }
    RL_TRY(tok_regex_emit(out, "\n"));
    for (int i = 0; i < indent * depth; i++) {
        RL_TRY(tok_regex_emit(out, " "));
    }
    return RL_OK;
}

/* What goes between the items: a comma, then a space or a new line. */
static rl_status json_separate(int indent, int depth, bool first, struct tok_text *out)
{
    if (first) {
        return indent < 0 ? RL_OK : json_break(indent, depth, false, out);
    }
    RL_TRY(tok_regex_emit(out, ","));
    return json_break(indent, depth, false, out);
}

static rl_status json_list(struct chat_run *run, const struct chat_list *list, int indent,
                           int depth, struct tok_text *out)
{
    RL_TRY(tok_regex_emit(out, "["));
    for (size_t i = 0; i < list->count; i++) {
        RL_TRY(json_separate(indent, depth + 1, i == 0, out));
        RL_TRY(chat_print_json(run, &list->items[i], indent, depth + 1, out));
    }
    if (list->count > 0) {
        RL_TRY(json_break(indent, depth, true, out));
    }
    return tok_regex_emit(out, "]");
}

/* Keys that are not strings become strings, as json.dumps does. */
static rl_status json_key(struct chat_run *run, const struct chat_value *key, struct tok_text *out)
{
    if (key->kind == CHAT_STRING) {
        return json_string_print(&key->as.string, out);
    }
    if (key->kind > CHAT_REAL || key->kind == CHAT_UNDEFINED) {
        return chat_error(run, "tojson: a %s as key", chat_kind_name(key));
    }
    RL_TRY(tok_regex_emit(out, "\""));
    RL_TRY(chat_print_json(run, key, -1, 0, out));
    return tok_regex_emit(out, "\"");
}

static rl_status json_dict(struct chat_run *run, const struct chat_dict *dict, int indent,
                           int depth, struct tok_text *out)
{
    if (dict->is_loop || dict->is_namespace) {
        return chat_error(run, "tojson: a namespace or loop");
    }
    RL_TRY(tok_regex_emit(out, "{"));
    for (size_t i = 0; i < dict->count; i++) {
        RL_TRY(json_separate(indent, depth + 1, i == 0, out));
        RL_TRY(json_key(run, &dict->entries[i].key, out));
        RL_TRY(tok_regex_emit(out, ": "));
        RL_TRY(chat_print_json(run, &dict->entries[i].value, indent, depth + 1, out));
    }
    if (dict->count > 0) {
        RL_TRY(json_break(indent, depth, true, out));
    }
    return tok_regex_emit(out, "}");
}

rl_status chat_print_json(struct chat_run *run, const struct chat_value *value, int indent,
                          int depth, struct tok_text *out)
{
    if (depth > CHAT_DEPTH_LIMIT || out->bytes > CHAT_OUTPUT_BYTES) {
        return chat_error(run, "a value too large for tojson");
    }
    switch (value->kind) {
    case CHAT_NONE:
        return tok_regex_emit(out, "null");
    case CHAT_BOOL:
        return tok_regex_emit(out, value->as.truth ? "true" : "false");
    case CHAT_INT:
        return print_int(value->as.integer, out);
    case CHAT_REAL:
        if (isnan(value->as.real)) {
            return tok_regex_emit(out, "NaN");
        }
        if (isinf(value->as.real)) {
            return tok_regex_emit(out, value->as.real < 0 ? "-Infinity" : "Infinity");
        }
        return chat_print_real(value->as.real, out);
    case CHAT_STRING:
        return json_string_print(&value->as.string, out);
    case CHAT_LIST:
        return json_list(run, value->as.list, indent, depth, out);
    case CHAT_DICT:
        return json_dict(run, value->as.dict, indent, depth, out);
    default:
        return chat_error(run, "tojson: a %s", chat_kind_name(value));
    }
}
