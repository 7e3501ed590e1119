/* Arithmetic expressions over given integers: + - * / , parentheses and unary minus, evaluated as
 * exact rationals by a recursive-descent parser. No eval, no floats, bounded depth and length. */
#ifndef FORESIGHT_REWARDS_EXPRESSION_H
#define FORESIGHT_REWARDS_EXPRESSION_H

#include "rewards/answer_text.h"
#include "rewards/rational.h"

#include <stdint.h>

enum { EXPRESSION_NUMBERS_MAX = 64, EXPRESSION_DEPTH_MAX = 64, EXPRESSION_BYTES_MAX = 4096 };

/* The integers that occur in an expression, in its order. */
struct expression_numbers {
    int64_t items[EXPRESSION_NUMBERS_MAX];
    size_t count;
};

/* Evaluate `span`, which must be one expression as a whole (the spellings \times \cdot \div and the
 * characters of the same meaning are operators too). On success sets *value and lists the literals.
 * Returns NULL, or a static text that says what is wrong. */
const char *expression_evaluate(struct answer_span span, struct rational *value,
                                struct expression_numbers *numbers);

#endif
