/* The `exact` reward: the answer equals the gold text byte for byte, outer white space ignored.
 * The answer is, after any reasoning in <think> tags: the content of the last <answer> tag if there
 * is one; else the line after the last "####" if there is one; else the whole text or its last
 * line, whichever fits. */
#include "rewards/answer_text.h"
#include "rewards/reward_ops.h"

#include <string.h>

static bool same(struct answer_span a, struct answer_span b)
{
    a = answer_span_trim(a);
    return a.bytes == b.bytes && memcmp(a.text, b.text, a.bytes) == 0;
}

static bool is_right(struct answer_span text, struct answer_span gold)
{
    bool marked = false;
    struct answer_span tag = answer_last_tag(text);
    if (tag.text != NULL) {
        return same(tag, gold);
    }
    struct answer_span line = answer_after_hashes(text, &marked);
    if (marked) {
        return same(line, gold);
    }
    return same(text, gold) || same(answer_last_line(text), gold);
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
    if (is_right(text, gold)) {
        out->value = 1.0;
        out->reason = "equal to the ground truth";
    }
}

const struct reward_ops reward_exact_ops = {.name = "exact", .score = exact_score};
