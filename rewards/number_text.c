/* Reading numbers: see number_text.h. One recursive-descent reader over a cursor; nothing in the
 * grammar nests, so there is no depth to limit. */
#include "rewards/number_text.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

/* A place in a text. Readers either succeed and advance, or fail and leave the cursor alone. */
struct cursor {
    const char *text;
    size_t bytes;
    size_t at;
};

enum reading {
    READ_NOTHING, /* no number starts here */
    READ_VALUE,
    READ_WORTHLESS /* a number without a value (division by zero, too long); cursor is behind it */
};

static bool at_end(const struct cursor *cursor)
{
    return cursor->at >= cursor->bytes;
}

static char peek(const struct cursor *cursor, size_t ahead)
{
    return cursor->at + ahead < cursor->bytes ? cursor->text[cursor->at + ahead] : '\0';
}

static bool digit_at(const struct cursor *cursor, size_t ahead)
{
    return isdigit((unsigned char)peek(cursor, ahead)) != 0;
}

static bool take(struct cursor *cursor, const char *word)
{
    if (peek(cursor, 0) != word[0]) { /* most words are not there */
        return false;
    }
    size_t bytes = strlen(word);
    if (cursor->bytes - cursor->at < bytes || memcmp(cursor->text + cursor->at, word, bytes) != 0) {
        return false;
    }
    cursor->at += bytes;
    return true;
}

static bool take_any(struct cursor *cursor, const char *const *words)
{
    for (size_t i = 0; words[i] != NULL; i++) {
        if (take(cursor, words[i])) {
            return true;
        }
    }
    return false;
}

static void skip_spaces(struct cursor *cursor)
{
    static const char *const spaces[] = {" ",   "\t",  "\n",  "\r",       "~", "\\,",
                                         "\\;", "\\!", "\\ ", "\xc2\xa0", NULL};
    while (take_any(cursor, spaces)) {
    }
}

/* --- one decimal -------------------------------------------------------------------------------
 */

struct digits {
    char text[RATIONAL_MAX_DIGITS + 2];
    size_t count; /* may pass the capacity: then the literal is too long */
};

static void digits_push(struct digits *digits, char byte)
{
    if (digits->count < sizeof(digits->text)) {
        digits->text[digits->count] = byte;
    }
    digits->count++;
}

static void take_digits(struct cursor *cursor, struct digits *digits)
{
    while (digit_at(cursor, 0)) {
        digits_push(digits, peek(cursor, 0));
        cursor->at++;
    }
}

/* A separator with exactly three digits behind it. */
static bool take_thousands_separator(struct cursor *cursor)
{
    static const char *const separators[] = {",", "{,}", "\\,", ",\\!", NULL};
    struct cursor ahead = *cursor;
    if (!take_any(&ahead, separators) || !digit_at(&ahead, 0) || !digit_at(&ahead, 1) ||
        !digit_at(&ahead, 2) || digit_at(&ahead, 3)) {
        return false;
    }
    *cursor = ahead;
    return true;
}

static enum reading read_decimal(struct cursor *cursor, struct rational *value)
{
    struct digits digits;
    digits.count = 0;
    take_digits(cursor, &digits);
    if (digits.count >= 1 && digits.count <= 3) {
        while (take_thousands_separator(cursor)) {
            take_digits(cursor, &digits);
        }
    }
    if (peek(cursor, 0) == '.' && digit_at(cursor, 1)) {
        digits_push(&digits, '.');
        cursor->at++;
        take_digits(cursor, &digits);
    }
    if (digits.count == 0) {
        return READ_NOTHING;
    }
    bool fits = digits.count <= sizeof(digits.text) &&
                rational_set_decimal(value, digits.text, digits.count);
    return fits ? READ_VALUE : READ_WORTHLESS;
}

/* --- powers of ten, fractions -------------------------------------------------------------------
 */

/* Optional sign and up to six digits; enough to say "too large" with. */
static bool read_exponent(struct cursor *cursor, long *out)
{
    struct cursor ahead = *cursor;
    bool negative = take(&ahead, "-") || take(&ahead, "\xe2\x88\x92");
    if (!negative) {
        take(&ahead, "+");
    }
    if (!digit_at(&ahead, 0)) {
        return false;
    }
    long value = 0;
    while (digit_at(&ahead, 0)) {
        value = value < 100000 ? value * 10 + (peek(&ahead, 0) - '0') : value;
        ahead.at++;
    }
    *out = negative ? -value : value;
    *cursor = ahead;
    return true;
}

static bool read_times_ten(struct cursor *cursor, long *exponent)
{
    static const char *const times[] = {"\\times", "\\cdot", "\xc3\x97", "x", "*", NULL};
    struct cursor ahead = *cursor;
    skip_spaces(&ahead);
    if (!take_any(&ahead, times)) {
        return false;
    }
    skip_spaces(&ahead);
    if (!take(&ahead, "10^")) {
        return false;
    }
    bool braced = take(&ahead, "{");
    if (!read_exponent(&ahead, exponent) || (braced && !take(&ahead, "}"))) {
        return false;
    }
    *cursor = ahead;
    return true;
}

static enum reading read_power(struct cursor *cursor, struct rational *value)
{
    long exponent = 0;
    struct cursor ahead = *cursor;
    if ((take(&ahead, "e") || take(&ahead, "E")) && read_exponent(&ahead, &exponent)) {
        *cursor = ahead;
    } else if (!read_times_ten(cursor, &exponent)) {
        return READ_VALUE;
    }
    return rational_scale_ten(value, exponent) ? READ_VALUE : READ_WORTHLESS;
}

static bool take_sign(struct cursor *cursor, bool *negative)
{
    if (take(cursor, "-") || take(cursor, "\xe2\x88\x92")) {
        *negative = true;
        return true;
    }
    return take(cursor, "+");
}

/* {decimal} with an optional sign, or one bare digit. */
static enum reading read_frac_argument(struct cursor *cursor, struct rational *value)
{
    skip_spaces(cursor);
    if (digit_at(cursor, 0)) {
        rational_set_int(value, peek(cursor, 0) - '0');
        cursor->at++;
        return READ_VALUE;
    }
    if (!take(cursor, "{")) {
        return READ_NOTHING;
    }
    bool negative = false;
    skip_spaces(cursor);
    take_sign(cursor, &negative);
    enum reading reading = read_decimal(cursor, value);
    skip_spaces(cursor);
    if (reading == READ_NOTHING || !take(cursor, "}")) {
        return READ_NOTHING;
    }
    if (negative) {
        rational_negate(value);
    }
    return reading;
}

/* Divide and report; a quotient without a value is still a number that was read. */
static enum reading finish_quotient(enum reading top, enum reading bottom, struct rational *value,
                                    const struct rational *divisor)
{
    bool ok = top == READ_VALUE && bottom == READ_VALUE && rational_divide(value, value, divisor);
    return ok ? READ_VALUE : READ_WORTHLESS;
}

/* \frac{a}{b}, \frac12 and its kin. */
static enum reading read_frac(struct cursor *cursor, struct rational *value)
{
    static const char *const names[] = {"\\frac", "\\dfrac", "\\tfrac", "\\cfrac", NULL};
    struct cursor ahead = *cursor;
    if (!take_any(&ahead, names)) {
        return READ_NOTHING;
    }
    struct rational *divisor = rational_create();
    if (divisor == NULL) {
        return READ_NOTHING;
    }
    enum reading reading = READ_NOTHING;
    enum reading top = read_frac_argument(&ahead, value);
    enum reading bottom = top != READ_NOTHING ? read_frac_argument(&ahead, divisor) : READ_NOTHING;
    if (bottom != READ_NOTHING) {
        reading = finish_quotient(top, bottom, value, divisor);
        *cursor = ahead;
    }
    rational_destroy(divisor);
    return reading;
}

/* "/b" behind a decimal. */
static enum reading read_slash(struct cursor *cursor, enum reading top, struct rational *value)
{
    struct cursor ahead = *cursor;
    if (!take(&ahead, "/") || !digit_at(&ahead, 0)) {
        return top;
    }
    struct rational *divisor = rational_create();
    if (divisor == NULL) {
        return READ_WORTHLESS;
    }
    enum reading bottom = read_decimal(&ahead, divisor);
    top = finish_quotient(top, bottom, value, divisor);
    rational_destroy(divisor);
    *cursor = ahead;
    return top;
}

/* A mixed number's fraction behind its whole part: "\frac{1}{2}", or " 1/2" with digits only. */
static enum reading read_mixed_part(struct cursor *cursor, struct rational *part)
{
    struct cursor ahead = *cursor;
    skip_spaces(&ahead);
    enum reading reading = read_frac(&ahead, part);
    if (reading == READ_NOTHING && peek(cursor, 0) == ' ' && digit_at(cursor, 1)) {
        ahead = *cursor;
        ahead.at++;
        size_t digits = 0;
        while (digit_at(&ahead, digits)) {
            digits++;
        }
        if (peek(&ahead, digits) == '/' && digit_at(&ahead, digits + 1)) {
            reading = read_slash(&ahead, read_decimal(&ahead, part), part);
        }
    }
    if (reading != READ_NOTHING) {
        *cursor = ahead;
    }
    return reading;
}

static enum reading read_mixed(struct cursor *cursor, struct rational *value)
{
    struct rational *part = rational_create();
    if (part == NULL) {
        return READ_WORTHLESS;
    }
    enum reading reading = read_mixed_part(cursor, part);
    if (reading == READ_VALUE) {
        reading = rational_add(value, value, part) ? READ_VALUE : READ_WORTHLESS;
    } else if (reading == READ_NOTHING) {
        reading = READ_VALUE;
    }
    rational_destroy(part);
    return reading;
}

static enum reading read_unsigned(struct cursor *cursor, struct rational *value)
{
    enum reading reading = read_frac(cursor, value);
    if (reading != READ_NOTHING) {
        return reading;
    }
    size_t start = cursor->at;
    reading = read_decimal(cursor, value);
    if (reading != READ_VALUE) {
        return reading == READ_WORTHLESS ? read_slash(cursor, reading, value) : reading;
    }
    bool whole = memchr(cursor->text + start, '.', cursor->at - start) == NULL;
    size_t end = cursor->at;
    reading = read_power(cursor, value);
    if (cursor->at != end) {
        return reading;
    }
    reading = read_slash(cursor, reading, value);
    return cursor->at == end && whole ? read_mixed(cursor, value) : reading;
}

/* --- signs, currency, percent
 * --------------------------------------------------------------------- */

static bool take_currency(struct cursor *cursor)
{
    static const char *const signs[] = {"\\$", "$", "\xe2\x82\xac", "\xc2\xa3", "\xc2\xa5", NULL};
    if (!take_any(cursor, signs)) {
        return false;
    }
    skip_spaces(cursor);
    return true;
}

static bool take_percent(struct cursor *cursor)
{
    struct cursor ahead = *cursor;
    skip_spaces(&ahead);
    if (!take(&ahead, "%") && !take(&ahead, "\\%")) {
        return false;
    }
    *cursor = ahead;
    return true;
}

/* A number that starts exactly at the cursor; `sign`: a sign may stand before it. */
static enum reading read_number(struct cursor *cursor, bool sign, struct number *out)
{
    struct cursor ahead = *cursor;
    bool negative = false;
    take_currency(&ahead);
    if (sign && take_sign(&ahead, &negative)) {
        skip_spaces(&ahead);
        take_currency(&ahead);
    }
    enum reading reading = read_unsigned(&ahead, out->value);
    if (reading == READ_NOTHING) {
        return READ_NOTHING;
    }
    if (negative) {
        rational_negate(out->value);
    }
    out->percent = take_percent(&ahead);
    *cursor = ahead;
    return reading;
}

/* --- a whole span
 * ---------------------------------------------------------------------------------- */

/* Remove one pair of delimiters around the span, if it has them. */
static bool strip_pair(struct answer_span *span)
{
    static const char *const pairs[][2] = {{"$$", "$$"},   {"$", "$"},   {"\\(", "\\)"},
                                           {"\\[", "\\]"}, {"**", "**"}, {"{", "}"}};
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        size_t open = strlen(pairs[i][0]);
        size_t close = strlen(pairs[i][1]);
        if (span->bytes > open + close && memcmp(span->text, pairs[i][0], open) == 0 &&
            memcmp(span->text + span->bytes - close, pairs[i][1], close) == 0) {
            *span = answer_span_trim(
                (struct answer_span){span->text + open, span->bytes - open - close});
            return true;
        }
    }
    return false;
}

/* Words that change the quantity in front of them, so that it cannot be read without them. */
static bool word_is_plain(const char *word, size_t bytes)
{
    static const char *const words[] = {
        "or",     "and",    "hundred", "thousand", "million", "billion", "trillion", "dozen",
        "pi",     "base",   "mod",     "times",    "plus",    "minus",   "over",     "half",
        "halves", "thirds", "percent", "squared",  "cubed",   "to",      "not",      NULL};
    if (bytes < 2) {
        return false; /* a single letter is a variable */
    }
    for (size_t i = 0; words[i] != NULL; i++) {
        if (strlen(words[i]) == bytes && strncasecmp(words[i], word, bytes) == 0) {
            return false;
        }
    }
    return true;
}

static bool take_word(struct cursor *cursor, size_t least)
{
    size_t start = cursor->at;
    while (isalpha((unsigned char)peek(cursor, 0))) {
        cursor->at++;
    }
    size_t bytes = cursor->at - start;
    return bytes >= least && (bytes == 1 || word_is_plain(cursor->text + start, bytes));
}

/* "^2" or "^{2}" behind a unit. */
static void take_unit_power(struct cursor *cursor)
{
    static const char *const powers[] = {"^2", "^3", "^{2}", "^{3}", "\xc2\xb2", "\xc2\xb3", NULL};
    take_any(cursor, powers);
}

/* \text{ cm}^2 and its kin. */
static bool take_unit_group(struct cursor *cursor)
{
    static const char *const names[] = {"\\text{", "\\mbox{", "\\mathrm{", "\\textrm{", NULL};
    if (!take_any(cursor, names)) {
        return false;
    }
    skip_spaces(cursor);
    do {
        if (!take_word(cursor, 1)) {
            return false;
        }
        take(cursor, ".");
        take_unit_power(cursor);
        skip_spaces(cursor);
    } while (!at_end(cursor) && (take(cursor, "/") || peek(cursor, 0) != '}'));
    if (!take(cursor, "}")) {
        return false;
    }
    take_unit_power(cursor);
    return true;
}

/* True if what follows a number is nothing, or a unit that can be left out. */
static bool tail_is_plain(struct cursor *cursor)
{
    static const char *const degrees[] = {"^\\circ", "^{\\circ}", "\xc2\xb0", NULL};
    if (!take_any(cursor, degrees)) {
        take_currency(cursor);
    }
    bool spaced = isspace((unsigned char)peek(cursor, 0)) != 0;
    skip_spaces(cursor);
    while (!at_end(cursor) && peek(cursor, 0) != '.') {
        bool group = peek(cursor, 0) == '\\';
        if (group ? !take_unit_group(cursor) : !spaced || !take_word(cursor, 2)) {
            return false;
        }
        take_unit_power(cursor);
        spaced = isspace((unsigned char)peek(cursor, 0)) != 0;
        skip_spaces(cursor);
    }
    take(cursor, ".");
    skip_spaces(cursor);
    return at_end(cursor);
}

bool number_read_whole(struct answer_span span, struct number *out)
{
    span = answer_span_trim(span);
    if (span.bytes > 1 && span.text[span.bytes - 1] == '.') {
        span.bytes--;
    }
    span = answer_span_trim(span);
    while (strip_pair(&span)) {
    }
    struct cursor cursor = {span.text, span.bytes, 0};
    skip_spaces(&cursor);
    return read_number(&cursor, true, out) == READ_VALUE && tail_is_plain(&cursor);
}

bool number_read_first(struct answer_span span, struct number *out)
{
    static const char *const openers[] = {"**", "\\(", "\\[", "$$", NULL};
    struct cursor cursor = {span.text, span.bytes, 0};
    skip_spaces(&cursor);
    take_any(&cursor, openers);
    skip_spaces(&cursor);
    if (read_number(&cursor, true, out) != READ_VALUE) {
        return false;
    }
    char next = peek(&cursor, 0);
    if (next == ')' || next == ':' || next == '\\' || next == '^' || isalpha((unsigned char)next)) {
        return false;
    }
    return !(next == '.' && peek(&cursor, 1) == ' ' && peek(&cursor, 2) != '\0');
}

/* --- the last number
 * --------------------------------------------------------------------------------- */

/* The byte before the cursor that is not a space, '\0' at the start of the text. */
static char previous_solid(const struct cursor *cursor)
{
    size_t at = cursor->at;
    while (at > 0 && isspace((unsigned char)cursor->text[at - 1])) {
        at--;
    }
    return at > 0 ? cursor->text[at - 1] : '\0';
}

/* A minus here is a sign, not the operator of a difference (nothing to subtract from stands before
 * it) and not the bullet of a list (a space stands behind it). */
static bool sign_position(const struct cursor *cursor)
{
    if (isspace((unsigned char)peek(cursor, 0)) || isalnum((unsigned char)peek(cursor, 0)) ||
        isspace((unsigned char)peek(cursor, 1))) {
        return false;
    }
    char solid = previous_solid(cursor);
    char direct = cursor->at > 0 ? cursor->text[cursor->at - 1] : '\0';
    return !isdigit((unsigned char)solid) && strchr(")]}%", solid == '\0' ? 'x' : solid) == NULL &&
           !isalnum((unsigned char)direct);
}

/* Digits here would belong to a word, an exponent or a subscript. */
static bool glued_position(const struct cursor *cursor)
{
    char direct = cursor->at > 0 ? cursor->text[cursor->at - 1] : '\0';
    char second = cursor->at > 1 ? cursor->text[cursor->at - 2] : '\0';
    return isalpha((unsigned char)direct) || direct == '_' || direct == '^' ||
           (direct == '{' && (second == '_' || second == '^'));
}

static void skip_glued(struct cursor *cursor)
{
    while (isalnum((unsigned char)peek(cursor, 0)) || peek(cursor, 0) == '_') {
        cursor->at++;
    }
}

bool number_read_last(struct answer_span span, struct number *out)
{
    struct number found = {rational_create(), false};
    struct cursor cursor = {span.text, span.bytes, 0};
    bool valued = false;
    while (found.value != NULL && !at_end(&cursor)) {
        if (digit_at(&cursor, 0) && glued_position(&cursor)) {
            skip_glued(&cursor);
            continue;
        }
        enum reading reading = read_number(&cursor, sign_position(&cursor), &found);
        if (reading == READ_NOTHING) {
            cursor.at++;
            continue;
        }
        valued = reading == READ_VALUE;
        rational_copy(out->value, found.value);
        out->percent = found.percent;
    }
    rational_destroy(found.value);
    return valued;
}

/* --- comparison
 * ----------------------------------------------------------------------------------------- */

bool number_same(const struct number *a, const struct number *b)
{
    if (rational_equal(a->value, b->value)) {
        return true;
    }
    if (a->percent == b->percent) {
        return false;
    }
    const struct number *share = a->percent ? a : b;
    const struct number *plain = a->percent ? b : a;
    struct rational *scaled = rational_create();
    if (scaled == NULL) {
        return false;
    }
    rational_copy(scaled, share->value);
    bool same = rational_scale_ten(scaled, -2) && rational_equal(scaled, plain->value);
    rational_destroy(scaled);
    return same;
}
