/* Exact rational numbers on GMP, the only place that sees gmp.h. Every operation is bounded: a
 * result of more than RATIONAL_MAX_BITS bits is refused, so hostile input cannot exhaust memory.
 * Failures here are verdicts about a text, not errors, and are not logged: bool, not rl_status. */
#ifndef FORESIGHT_REWARDS_RATIONAL_H
#define FORESIGHT_REWARDS_RATIONAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    RATIONAL_MAX_DIGITS = 4096,   /* digits of one literal */
    RATIONAL_MAX_EXPONENT = 4096, /* |power of ten| of one literal */
    RATIONAL_MAX_BITS = 65536     /* numerator and denominator of any result */
};

struct rational;

/* New value 0; caller owns it. NULL if memory ran out. */
struct rational *rational_create(void);

/* Takes NULL. */
void rational_destroy(struct rational *value);

/* Set to a whole number. */
void rational_set_int(struct rational *value, int64_t integer);

/* Set from plain decimal digits: optional '+' or '-', digits, optional '.', digits; no spaces, at
 * least one digit. False (value unchanged) if the text is anything else or over the limits. */
bool rational_set_decimal(struct rational *value, const char *text, size_t bytes);

/* Copy the value. */
void rational_copy(struct rational *out, const struct rational *from);

/* out may be a or b. False (out undefined but valid) if the result is over the limits or, for
 * divide, b is 0. */
bool rational_add(struct rational *out, const struct rational *a, const struct rational *b);
bool rational_subtract(struct rational *out, const struct rational *a, const struct rational *b);
bool rational_multiply(struct rational *out, const struct rational *a, const struct rational *b);
bool rational_divide(struct rational *out, const struct rational *a, const struct rational *b);

/* value = -value. */
void rational_negate(struct rational *value);

/* value *= 10^exponent. False if |exponent| or the result is over the limits. */
bool rational_scale_ten(struct rational *value, long exponent);

/* True if the values are equal. */
bool rational_equal(const struct rational *a, const struct rational *b);

/* Equal values, equal hashes (xxh3 of numerator and denominator in lowest terms). 0 if memory ran
 * out. */
uint64_t rational_hash(const struct rational *value);

#endif
