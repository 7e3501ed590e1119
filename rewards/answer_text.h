/* Finding the answer in a completion: the conventions by which models mark it. Pure functions on
 * text; they return views into it and allocate nothing. */
#ifndef FORESIGHT_REWARDS_ANSWER_TEXT_H
#define FORESIGHT_REWARDS_ANSWER_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* A view of bytes inside a longer text; `text` NULL: nothing found. */
struct answer_span {
    const char *text;
    size_t bytes;
};

/* View of a whole string. */
struct answer_span answer_span_of(const char *text);

/* Without white space at both ends. */
struct answer_span answer_span_trim(struct answer_span span);

/* True if the span's bytes are exactly `text`. */
bool answer_span_equals(struct answer_span span, const char *text);

/* What follows the last </think>, or the whole text if there is none; nothing found if a <think>
 * was opened and never closed (the reasoning was cut off, so there is no answer). */
struct answer_span answer_after_reasoning(struct answer_span text);

/* Content of the last complete <answer>...</answer>; nothing found if the last <answer> is open. */
struct answer_span answer_last_tag(struct answer_span text);

/* The first line with content after the last "####"; *marked says whether there is a "####". */
struct answer_span answer_after_hashes(struct answer_span text, bool *marked);

/* Content of the last \boxed{...} or \fbox{...} with balanced braces, or of "\boxed 5" up to the
 * next space or $. *marked says whether there is a box; a last box that never closes is marked but
 * not found. */
struct answer_span answer_last_box(struct answer_span text, bool *marked);

/* The last line that is not blank. */
struct answer_span answer_last_line(struct answer_span text);

#endif
