/* Hand-written matchers of the three pre-tokenizer patterns that most models use. A pattern is
 * recognised by its exact text; every other one goes through the regular expressions. Pure
 * functions. Invariant: each gives the ranges that the expression gives, byte for byte; all three
 * match something at every position, so their matches cover a text. */
#include "model/tokenizer_internal.h"

#include <string.h>
#include <utf8proc.h>

enum scan_class { SCAN_OTHER = '.', SCAN_LETTER = 'L', SCAN_NUMBER = 'N', SCAN_SPACE = '_' };

/* Classes of ASCII; '*' at the bytes of longer characters. */
static const char byte_classes[] = "........._____.."
                                   "................"
                                   "_..............."
                                   "NNNNNNNNNN......"
                                   ".LLLLLLLLLLLLLLL"
                                   "LLLLLLLLLLL....."
                                   ".LLLLLLLLLLLLLLL"
                                   "LLLLLLLLLLL....."
                                   "********************************"
                                   "********************************"
                                   "********************************"
                                   "********************************";

static char byte_class(char byte)
{
    return byte_classes[(unsigned char)byte];
}

/* Class of a character beyond ASCII. */
static enum scan_class wide_class(const char *data, size_t *length)
{
    uint32_t code = tok_utf8_get(data, length);
    switch (tok_unicode_category(code)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return SCAN_LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return SCAN_NUMBER;
    default:
        return tok_unicode_space(code) ? SCAN_SPACE : SCAN_OTHER;
    }
}

static enum scan_class class_at(const char *data, size_t *length)
{
    char class = byte_class(*data);
    if (class == '*') {
        return wide_class(data, length);
    }
    *length = 1;
    return (enum scan_class) class;
}

/* End of the run of characters of one class that begins at or before `at`. */
static size_t run_end(const char *data, size_t at, size_t bytes, enum scan_class class)
{
    while (at < bytes) {
        size_t length = 1;
        char here = byte_class(data[at]);
        if (here != (char)class && (here != '*' || wide_class(data + at, &length) != class)) {
            break;
        }
        at += length;
    }
    return at;
}

/* White space up to its end or, where something visible follows, up to its last character. */
static size_t space_end(const char *data, size_t at, size_t bytes)
{
    size_t end = at;
    size_t last = at;
    size_t length;
    while (end < bytes && class_at(data + end, &length) == SCAN_SPACE) {
        last = end;
        end += length;
    }
    return end == bytes || last == at ? end : last;
}

static bool is_line_end(char byte)
{
    return byte == '\n' || byte == '\r';
}

/* White space up to behind its last line end, where it has one. */
static size_t lines_end(const char *data, size_t at, size_t bytes)
{
    size_t line = at;
    size_t length;
    for (size_t end = at; end < bytes && class_at(data + end, &length) == SCAN_SPACE;
         end += length) {
        line = is_line_end(data[end]) ? end + 1 : line;
    }
    return line > at ? line : space_end(data, at, bytes);
}

/* Length of 's 't 're 've 'm 'll 'd at the apostrophe in front of `left` bytes, 0 if it is none.
 * Capitals are folded by `fold` 0x20. */
static size_t contraction(const char *data, size_t left, unsigned fold)
{
    char first = left > 1 ? (char)((unsigned char)data[1] | fold) : '\0';
    char second = left > 2 ? (char)((unsigned char)data[2] | fold) : '\0';
    switch (first) {
    case 's':
    case 't':
    case 'm':
    case 'd':
        return 2;
    case 'r':
    case 'v':
        return second == 'e' ? 3 : 0;
    case 'l':
        return second == 'l' ? 3 : 0;
    default:
        return 0;
    }
}

/* The pattern of GPT-2. */
static size_t scan_gpt2(const char *data, size_t at, size_t bytes)
{
    size_t length;
    size_t start = at + (data[at] == ' ' && at + 1 < bytes);
    if (data[at] == '\'') {
        length = contraction(data + at, bytes - at, 0);
        if (length > 0) {
            return at + length;
        }
    }
    enum scan_class class = class_at(data + start, &length);
    switch (class) {
    case SCAN_LETTER:
        return run_end(data, start + length, bytes, SCAN_LETTER);
    case SCAN_SPACE:
        return space_end(data, at, bytes);
    default:
        return run_end(data, start + length, bytes, class);
    }
}

/* The same of the later patterns, in any case; U+017F folds to s. */
static size_t contraction_caseless(const char *data, size_t left)
{
    return left > 2 && memcmp(data + 1, "\xC5\xBF", 2) == 0 ? 3 : contraction(data, left, 0x20);
}

static size_t numbers_end(const char *data, size_t at, size_t bytes, int digits)
{
    size_t length;
    while (digits > 0 && at < bytes && class_at(data + at, &length) == SCAN_NUMBER) {
        at += length;
        digits--;
    }
    return at;
}

/* Symbols and the line ends behind them. */
static size_t symbols_end(const char *data, size_t at, size_t bytes)
{
    at = run_end(data, at, bytes, SCAN_OTHER);
    while (at < bytes && is_line_end(data[at])) {
        at++;
    }
    return at;
}

/* The pattern that cl100k_base brought, with numbers of up to `digits` digits. */
static size_t scan_later(const char *data, size_t at, size_t bytes, int digits)
{
    size_t length;
    size_t behind;
    enum scan_class class = class_at(data + at, &length);
    size_t next = at + length;
    if (class == SCAN_LETTER) {
        return run_end(data, next, bytes, SCAN_LETTER);
    }
    if (class == SCAN_NUMBER) {
        return numbers_end(data, next, bytes, digits - 1);
    }
    if (data[at] == '\'' && (length = contraction_caseless(data + at, bytes - at)) > 0) {
        return at + length;
    }
    if (next < bytes && !is_line_end(data[at])) {
        enum scan_class after = class_at(data + next, &behind);
        if (after == SCAN_LETTER) {
            return run_end(data, next + behind, bytes, SCAN_LETTER);
        }
        if (after == SCAN_OTHER && data[at] == ' ') {
            return symbols_end(data, next + behind, bytes);
        }
    }
    return class == SCAN_OTHER ? symbols_end(data, next, bytes) : lines_end(data, at, bytes);
}

static size_t scan_cl100k(const char *data, size_t at, size_t bytes)
{
    return scan_later(data, at, bytes, 3);
}

static size_t scan_qwen2(const char *data, size_t at, size_t bytes)
{
    return scan_later(data, at, bytes, 1);
}

tok_scan_fn tok_scan_find(struct tok_view pattern)
{
    static const struct {
        const char *pattern;
        tok_scan_fn scan;
    } known[] = {
        {TOK_PATTERN_GPT2, scan_gpt2},
        {TOK_PATTERN_CL100K, scan_cl100k},
        {TOK_PATTERN_QWEN2, scan_qwen2},
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strlen(known[i].pattern) == pattern.bytes &&
            memcmp(known[i].pattern, pattern.data, pattern.bytes) == 0) {
            return known[i].scan;
        }
    }
    return NULL;
}
