/* Exact rational numbers: see rational.h. GMP aborts the process when memory runs out, so the bit
 * limit is checked before every operation that multiplies sizes, never after. */
#include "rewards/rational.h"

#include "core/hash.h"

#include <gmp.h>
#include <stdlib.h>
#include <string.h>

struct rational {
    mpq_t value;
};

struct rational *rational_create(void)
{
    struct rational *value = malloc(sizeof(*value));
    if (value != NULL) {
        mpq_init(value->value);
    }
    return value;
}

void rational_destroy(struct rational *value)
{
    if (value != NULL) {
        mpq_clear(value->value);
        free(value);
    }
}

void rational_set_int(struct rational *value, int64_t integer)
{
    mpq_set_si(value->value, (long)integer, 1);
}

static bool all_digits(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] < '0' || text[i] > '9') {
            return false;
        }
    }
    return true;
}

/* `digits` is a NUL-terminated string of digits with the decimal point taken out, the last
 * `fraction_digits` of which stood behind it. */
static void set_scaled(mpq_t value, const char *digits, bool negative, size_t fraction_digits)
{
    mpz_set_str(mpq_numref(value), digits, 10);
    if (negative) {
        mpz_neg(mpq_numref(value), mpq_numref(value));
    }
    mpz_ui_pow_ui(mpq_denref(value), 10, fraction_digits);
    mpq_canonicalize(value);
}

bool rational_set_decimal(struct rational *value, const char *text, size_t bytes)
{
    bool negative = bytes > 0 && text[0] == '-';
    if (bytes > 0 && (text[0] == '-' || text[0] == '+')) {
        text++;
        bytes--;
    }
    const char *point = memchr(text, '.', bytes);
    size_t whole = point != NULL ? (size_t)(point - text) : bytes;
    size_t fraction = point != NULL ? bytes - whole - 1 : 0;
    const char *tail = point != NULL ? point + 1 : text + bytes;
    if (whole + fraction == 0 || whole + fraction > RATIONAL_MAX_DIGITS ||
        !all_digits(text, whole) || !all_digits(tail, fraction)) {
        return false;
    }
    char digits[RATIONAL_MAX_DIGITS + 1];
    memcpy(digits, text, whole);
    if (fraction > 0) {
        memcpy(digits + whole, tail, fraction);
    }
    digits[whole + fraction] = '\0';
    set_scaled(value->value, digits, negative, fraction);
    return true;
}

void rational_copy(struct rational *out, const struct rational *from)
{
    mpq_set(out->value, from->value);
}

static size_t rational_bits(const struct rational *value)
{
    size_t numerator = mpz_sizeinbase(mpq_numref(value->value), 2);
    size_t denominator = mpz_sizeinbase(mpq_denref(value->value), 2);
    return numerator > denominator ? numerator : denominator;
}

/* Sum, product and quotient need at most the operands' bits together, plus a carry. */
static bool result_fits(const struct rational *a, const struct rational *b)
{
    return rational_bits(a) + rational_bits(b) + 1 <= RATIONAL_MAX_BITS;
}

bool rational_add(struct rational *out, const struct rational *a, const struct rational *b)
{
    if (!result_fits(a, b)) {
        return false;
    }
    mpq_add(out->value, a->value, b->value);
    return true;
}

bool rational_subtract(struct rational *out, const struct rational *a, const struct rational *b)
{
    if (!result_fits(a, b)) {
        return false;
    }
    mpq_sub(out->value, a->value, b->value);
    return true;
}

bool rational_multiply(struct rational *out, const struct rational *a, const struct rational *b)
{
    if (!result_fits(a, b)) {
        return false;
    }
    mpq_mul(out->value, a->value, b->value);
    return true;
}

bool rational_divide(struct rational *out, const struct rational *a, const struct rational *b)
{
    if (mpq_sgn(b->value) == 0 || !result_fits(a, b)) {
        return false;
    }
    mpq_div(out->value, a->value, b->value);
    return true;
}

void rational_negate(struct rational *value)
{
    mpq_neg(value->value, value->value);
}

bool rational_scale_ten(struct rational *value, long exponent)
{
    if (exponent > RATIONAL_MAX_EXPONENT || exponent < -RATIONAL_MAX_EXPONENT) {
        return false;
    }
    struct rational *power = rational_create();
    if (power == NULL) {
        return false;
    }
    unsigned long magnitude = (unsigned long)(exponent < 0 ? -exponent : exponent);
    mpz_ui_pow_ui(mpq_numref(power->value), 10, magnitude);
    bool ok = exponent < 0 ? rational_divide(value, value, power)
                           : rational_multiply(value, value, power);
    rational_destroy(power);
    return ok;
}

bool rational_equal(const struct rational *a, const struct rational *b)
{
    return mpq_equal(a->value, b->value) != 0;
}

/* Chain the digits of `integer` to the hash `seed`. */
static uint64_t hash_integer(const mpz_t integer, uint64_t seed)
{
    size_t bytes = mpz_sizeinbase(integer, 16) + 2; /* a sign and the end */
    char *digits = malloc(bytes);
    if (digits == NULL) {
        return 0;
    }
    mpz_get_str(digits, 16, integer);
    uint64_t hash = rl_hash_seeded(digits, strlen(digits), seed);
    free(digits);
    return hash;
}

uint64_t rational_hash(const struct rational *value)
{
    return hash_integer(mpq_denref(value->value), hash_integer(mpq_numref(value->value), 0));
}
