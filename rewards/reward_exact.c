/* The `exact` reward: the answer equals the gold text byte for byte, outer white space ignored.
 * The answer is, after any reasoning in <think> tags: the content of the last <answer> tag if there
 * is one; else the whole text or its last line, whichever fits. */
#include "rewards/answer_text.h"
#include "rewards/reward_ops.h"

#include <string.h>

static bool same(struct answer_span a, struct answer_span b)
{
    a = answer_span_trim(a);
    return a.bytes == b.bytes && memcmp(a.text, b.text, a.bytes) == 0;
}

static void exact_score(const void *state, const struct reward_input *input,
                        struct reward_output *out)
{
    (void)state;
    struct answer_span gold = answer_span_trim(answer_span_of(input->ground_truth));
    if (gold.bytes == 0) {
        out->reason = "the row has no ground truth";
        return;
    }
    out->valid = true;
    out->reason = "the answer differs from the ground truth";
    struct answer_span text = answer_after_reasoning(answer_span_of(input->completion));
    if (text.text == NULL) {
        out->reason = "the reasoning was not closed";
        return;
    }
    struct answer_span tag = answer_last_tag(text);
    bool right =
        tag.text != NULL ? same(tag, gold) : same(text, gold) || same(answer_last_line(text), gold);
    if (right) {
        out->value = 1.0;
        out->reason = "equal to the ground truth";
    }
}

const struct reward_ops reward_exact_ops = {.name = "exact", .score = exact_score};
