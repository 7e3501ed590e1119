/* Reading numbers as people and models write them: thousands separators, signs, decimals, simple
 * fractions (a/b, \frac{a}{b}, mixed), powers of ten, percent and currency signs. Values are exact.
 * Pure functions; all of them are linear in the text. */
#ifndef FORESIGHT_REWARDS_NUMBER_TEXT_H
#define FORESIGHT_REWARDS_NUMBER_TEXT_H

#include "rewards/answer_text.h"
#include "rewards/rational.h"

/* A number read from a text. `value` belongs to the caller, who creates and destroys it. */
struct number {
    struct rational *value;
    bool percent; /* a percent sign followed; `value` is what stood before it */
};

/* True if the whole span is one number: apart from it only white space, math and bold delimiters,
 * currency signs, a final full stop and a plain unit ("18 dollars", "90^\circ", "15\text{ cm}^2")
 * are allowed. */
bool number_read_whole(struct answer_span span, struct number *out);

/* True if the span begins with a number that is not an item's mark ("1. First", "2) then"). */
bool number_read_first(struct answer_span span, struct number *out);

/* True if there is a number, and the last one in the span has a value (1/0 has none). Digits inside
 * words, exponents and subscripts are no numbers; a minus between two terms is no sign. */
bool number_read_last(struct answer_span span, struct number *out);

/* Equal values; where one side or both carry a percent sign, p% may also be written p/100 or p
 * (but 28 and 0.28, with no sign on either side, differ). */
bool number_same(const struct number *a, const struct number *b);

#endif
