/* The `numeric` reward: the answer's number equals the gold's, as exact rationals. Where the answer
 * stands: after the last "####", else in the last \boxed{}, else the last number of the text,
 * always after any reasoning in <think> tags. A gold without "####" and \boxed{} must be a number
 * as a whole; one that cannot be read makes the sample unscorable, not wrong. */
#include "rewards/answer_text.h"
#include "rewards/number_text.h"
#include "rewards/reward_ops.h"

/* A number where the text marks its answer. *marked: there is a mark, so look no further. */
static bool read_marked(struct answer_span text, bool *marked, struct number *out)
{
    bool hashes = false;
    struct answer_span line = answer_after_hashes(text, &hashes);
    if (hashes && (number_read_whole(line, out) || number_read_first(line, out))) {
        *marked = true;
        return true;
    }
    /* "#### Step 2" is a heading, not an answer: go on looking. */
    struct answer_span box = answer_last_box(text, marked);
    return box.text != NULL && number_read_whole(box, out);
}

static bool read_gold(const char *text, struct number *out)
{
    bool marked = false;
    struct answer_span span = answer_span_of(text);
    return read_marked(span, &marked, out) || (!marked && number_read_whole(span, out));
}

static bool read_candidate(struct answer_span text, struct number *out)
{
    bool marked = false;
    return read_marked(text, &marked, out) || (!marked && number_read_last(text, out));
}

static void score_against(const struct number *gold, struct number *found,
                          const struct reward_input *input, struct reward_output *out)
{
    struct answer_span text = answer_after_reasoning(answer_span_of(input->completion));
    out->valid = true;
    if (text.text == NULL) {
        out->reason = "the reasoning was not closed";
    } else if (!read_candidate(text, found)) {
        out->reason = "no number in the answer";
    } else if (!number_same(gold, found)) {
        out->reason = "the number differs from the ground truth";
    } else {
        out->value = 1.0;
        out->reason = "the number equals the ground truth";
    }
}

static void numeric_score(const void *state, const struct reward_input *input,
                          struct reward_output *out)
{
    (void)state;
    struct number gold = {rational_create(), false};
    struct number found = {rational_create(), false};
    if (gold.value == NULL || found.value == NULL) {
        out->reason = "no memory for the numbers";
    } else if (!read_gold(input->ground_truth, &gold)) {
        out->reason = "the ground truth is not a number";
    } else {
        score_against(&gold, &found, input, out);
    }
    rational_destroy(found.value);
    rational_destroy(gold.value);
}

const struct reward_ops reward_numeric_ops = {.name = "numeric", .score = numeric_score};
