/* Text to value and value to text, by type. Strict: a value that does not look like its type is an
 * error, never a guess. Invariant: what config_print_value writes, config_set reads back bit by
 * bit. */
#include "core/config_table.h"

#include "core/log.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_NUMBER_BYTES = 64 };

#define CONFIG_BAD(format, ...)                                                                    \
    rl_fail(RL_INVALID, "%s: %s.%s: " format, where, row->section, row->name, __VA_ARGS__)

static bool config_is_null(const struct config_scalar *scalar)
{
    const char *text = scalar->text;
    return !scalar->quoted && (text[0] == '\0' || strcmp(text, "~") == 0 ||
                               strcmp(text, "null") == 0 || strcmp(text, "Null") == 0);
}

static rl_status config_parse_bool(const struct config_row *row, const struct config_scalar *scalar,
                                   const char *where, bool *out)
{
    bool is_true = strcmp(scalar->text, "true") == 0;
    if (scalar->quoted || (!is_true && strcmp(scalar->text, "false") != 0)) {
        return CONFIG_BAD("\"%.80s\" is not a truth value; write true or false, without quotes",
                          scalar->text);
    }
    *out = is_true;
    return RL_OK;
}

/* Decimal digits, sign, point and exponent only: no hexadecimal, no "inf", no blanks. */
static bool config_parse_double(const struct config_scalar *scalar, double *out)
{
    const char *text = scalar->text;
    if (scalar->quoted || text[0] == '\0' || scalar->bytes >= CONFIG_NUMBER_BYTES ||
        strspn(text, "0123456789+-.eE") != scalar->bytes) {
        return false;
    }
    char *end = NULL;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(value)) {
        return false;
    }
    *out = value;
    return true;
}

static rl_status config_parse_real(const struct config_row *row, const struct config_scalar *scalar,
                                   const char *where, double *out)
{
    double value = 0.0;
    if (!config_parse_double(scalar, &value)) {
        return CONFIG_BAD("\"%.80s\" is not a finite number (without quotes)", scalar->text);
    }
    *out = value;
    return RL_OK;
}

/* 1e6 is a whole number too, and so is 2.0; 2.5 is not. */
static rl_status config_parse_int(const struct config_row *row, const struct config_scalar *scalar,
                                  const char *where, int64_t *out)
{
    double value = 0.0;
    bool number = config_parse_double(scalar, &value);
    if (!number || value != floor(value) || fabs(value) > 0x1p53) {
        return CONFIG_BAD("\"%.80s\" is not a whole number (without quotes)", scalar->text);
    }
    *out = (int64_t)value;
    return RL_OK;
}

static rl_status config_parse_auto_int(const struct config_row *row,
                                       const struct config_scalar *scalar, const char *where,
                                       int64_t *out)
{
    if (strcmp(scalar->text, "auto") == 0) {
        *out = CONFIG_AUTO;
        return RL_OK;
    }
    int64_t value = 0;
    RL_TRY(config_parse_int(row, scalar, where, &value));
    if (value < 0) { /* -1 stands for the word, and is not another way to write it */
        return CONFIG_BAD("%" PRId64 " is out of range, expected %.0f .. %.0f or auto", value,
                          row->min, row->max);
    }
    *out = value;
    return RL_OK;
}

static rl_status config_parse_enum(const struct config_row *row, const struct config_scalar *scalar,
                                   const char *where, int *out)
{
    char choice[CONFIG_NUMBER_BYTES];
    const char *names[32];
    char storage[32][CONFIG_NUMBER_BYTES];
    size_t count = 0;
    for (int i = 0; i < 32 && config_choice_name(row->choices, i, choice, sizeof choice); i++) {
        if (strcmp(choice, scalar->text) == 0) {
            *out = i;
            return RL_OK;
        }
        memcpy(storage[count], choice, sizeof choice);
        names[count] = storage[count];
        count++;
    }
    const char *nearest = rl_text_nearest(scalar->text, names, count);
    return CONFIG_BAD("\"%.80s\" is not one of %s%s%s%s", scalar->text, row->choices,
                      nearest != NULL ? "; did you mean " : "", nearest != NULL ? nearest : "",
                      nearest != NULL ? "?" : "");
}

/* Bytes of the UTF-8 sequence at `text`, 0 if it is malformed (overlong, surrogate, cut off). */
static size_t config_utf8(const unsigned char *text, size_t left, uint32_t *code)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length = text[0] < 0x80 ? 1 : text[0] >= 0xF0 ? 4 : text[0] >= 0xE0 ? 3 : 2;
    if ((text[0] >= 0x80 && text[0] < 0xC2) || text[0] > 0xF4 || length > left) {
        return 0;
    }
    uint32_t value = length == 1 ? text[0] : text[0] & (0xFFu >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        if ((text[i] & 0xC0) != 0x80) {
            return 0;
        }
        value = value << 6 | (text[i] & 0x3Fu);
    }
    if (value < least[length] || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
        return 0;
    }
    *code = value;
    return length;
}

static rl_status config_parse_str(const struct config_row *row, const struct config_scalar *scalar,
                                  const char *where, char **out)
{
    if (scalar->bytes > CONFIG_STR_BYTES) {
        return CONFIG_BAD("%zu bytes, at most %d are taken", scalar->bytes, CONFIG_STR_BYTES);
    }
    for (size_t i = 0; i < scalar->bytes;) {
        uint32_t code = 0;
        size_t length =
            config_utf8((const unsigned char *)scalar->text + i, scalar->bytes - i, &code);
        if (length == 0 || code == 0) {
            return CONFIG_BAD("byte %zu of the value is %s", i,
                              length == 0 ? "not UTF-8" : "NUL, which no string may hold");
        }
        i += length;
    }
    char *copy = NULL;
    RL_TRY(rl_text_copy(config_is_null(scalar) ? "" : scalar->text, &copy));
    free(*out);
    *out = copy;
    return RL_OK;
}

void config_range_text(const struct config_row *row, char *out, size_t bytes)
{
    if (row->type == CONFIG_INT || row->type == CONFIG_AUTO_INT) {
        snprintf(out, bytes, "%.0f .. %.0f%s", row->min, row->max,
                 row->type == CONFIG_AUTO_INT ? " or auto" : "");
    } else {
        snprintf(out, bytes, "%.15g .. %.15g", row->min, row->max);
    }
}

bool config_is_number(const struct config_row *row)
{
    return row->type == CONFIG_INT || row->type == CONFIG_AUTO_INT || row->type == CONFIG_REAL;
}

rl_status config_check_range(const struct rl_config *config, const struct config_row *row,
                             const char *where)
{
    const void *member = config_member_const(config, row);
    char name[CONFIG_NUMBER_BYTES];
    if (row->type == CONFIG_ENUM) {
        int index = *(const int *)member;
        if (!config_choice_name(row->choices, index, name, sizeof name)) {
            return CONFIG_BAD("choice %d, expected one of %s", index, row->choices);
        }
    }
    if (!config_is_number(row) ||
        (row->type == CONFIG_AUTO_INT && *(const int64_t *)member == CONFIG_AUTO)) {
        return RL_OK;
    }
    double value =
        row->type == CONFIG_REAL ? *(const double *)member : (double)*(const int64_t *)member;
    if (!(value >= row->min && value <= row->max)) {
        config_range_text(row, name, sizeof name);
        return CONFIG_BAD("%.15g is out of range, expected %s", value, name);
    }
    return RL_OK;
}

static rl_status config_store(struct rl_config *config, const struct config_row *row,
                              const struct config_scalar *scalar, const char *where)
{
    void *member = config_member(config, row);
    switch (row->type) {
    case CONFIG_BOOL:
        return config_parse_bool(row, scalar, where, member);
    case CONFIG_INT:
        return config_parse_int(row, scalar, where, member);
    case CONFIG_AUTO_INT:
        return config_parse_auto_int(row, scalar, where, member);
    case CONFIG_REAL:
        return config_parse_real(row, scalar, where, member);
    case CONFIG_STR:
        return config_parse_str(row, scalar, where, member);
    case CONFIG_ENUM:
        return config_parse_enum(row, scalar, where, member);
    }
    return rl_fail(RL_INTERNAL, "%s.%s has no type", row->section, row->name);
}

rl_status config_set(struct rl_config *config, size_t index, const struct config_scalar *scalar,
                     const char *where)
{
    const struct config_row *row = config_row_of(index);
    if (row->type != CONFIG_STR && strlen(scalar->text) != scalar->bytes) {
        return CONFIG_BAD("%s", "the value holds a NUL byte");
    }
    if (row->type != CONFIG_STR && config_is_null(scalar)) {
        return CONFIG_BAD("%s", "no value; leave the line out for the default");
    }
    RL_TRY(config_store(config, row, scalar, where));
    RL_TRY(config_check_range(config, row, where));
    config->set_flags[index] = 1;
    return RL_OK;
}

/* Double-quoted YAML. Escaped: what YAML forbids, folds or reads as markup. */
static rl_status config_print_quoted(const char *text, struct rl_text *out)
{
    size_t bytes = strlen(text);
    RL_TRY(rl_text_append_byte(out, '"'));
    for (size_t i = 0; i < bytes;) {
        uint32_t code = 0;
        size_t length = config_utf8((const unsigned char *)text + i, bytes - i, &code);
        if (length == 0) {
            return rl_fail(RL_INVALID, "a string that is not UTF-8 cannot be written as YAML");
        }
        bool odd = code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x2028 ||
                   code == 0x2029 || code == 0xfeff || code == 0xfffe || code == 0xffff;
        if (code == '"' || code == '\\') {
            RL_TRY(rl_text_printf(out, "\\%c", (int)code));
        } else if (code == '\n') {
            RL_TRY(rl_text_append_str(out, "\\n"));
        } else if (odd) {
            RL_TRY(rl_text_printf(out, code < 0x100 ? "\\x%02X" : "\\u%04X", (unsigned)code));
        } else {
            RL_TRY(rl_text_append(out, text + i, length));
        }
        i += length;
    }
    return rl_text_append_byte(out, '"');
}

static rl_status config_print_real(double value, struct rl_text *out)
{
    char text[CONFIG_NUMBER_BYTES];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) {
            break;
        }
    }
    return rl_text_append_str(out, text);
}

static rl_status config_print_choice(const struct config_row *row, int index, struct rl_text *out)
{
    char name[CONFIG_NUMBER_BYTES];
    if (!config_choice_name(row->choices, index, name, sizeof name)) {
        return rl_fail(RL_INVALID, "%s.%s: choice %d, expected one of %s", row->section, row->name,
                       index, row->choices);
    }
    return rl_text_append_str(out, name);
}

rl_status config_print_value(const struct rl_config *config, const struct config_row *row,
                             struct rl_text *out)
{
    const void *member = config_member_const(config, row);
    switch (row->type) {
    case CONFIG_BOOL:
        return rl_text_append_str(out, *(const bool *)member ? "true" : "false");
    case CONFIG_INT:
        return rl_text_printf(out, "%" PRId64, *(const int64_t *)member);
    case CONFIG_AUTO_INT:
        return *(const int64_t *)member == CONFIG_AUTO
                   ? rl_text_append_str(out, "auto")
                   : rl_text_printf(out, "%" PRId64, *(const int64_t *)member);
    case CONFIG_REAL:
        return config_print_real(*(const double *)member, out);
    case CONFIG_STR:
        return config_print_quoted(*(char *const *)member, out);
    case CONFIG_ENUM:
        return config_print_choice(row, *(const int *)member, out);
    }
    return RL_INTERNAL;
}

rl_status config_print_default(const struct config_row *row, struct rl_text *out)
{
    switch (row->type) {
    case CONFIG_BOOL:
        return rl_text_append_str(out, row->def_number != 0.0 ? "true" : "false");
    case CONFIG_INT:
    case CONFIG_AUTO_INT:
    case CONFIG_REAL:
        return config_print_real(row->def_number, out);
    case CONFIG_STR:
        return config_print_quoted(row->def_text, out);
    case CONFIG_ENUM:
        return config_print_choice(row, (int)row->def_number, out);
    }
    return RL_INTERNAL;
}
