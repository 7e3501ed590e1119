/* See answer_key.h. */
#include "rewards/answer_key.h"

#include "core/hash.h"
#include "rewards/answer_text.h"
#include "rewards/number_text.h"

enum { KEY_TEXT = 1, KEY_NUMBER, KEY_PERCENT }; /* seeds, so that kinds never meet */

static uint64_t text_key(struct answer_span span)
{
    struct answer_span text = answer_span_trim(span);
    return text.text == NULL || text.bytes == 0 ? 0
                                                : rl_hash_seeded(text.text, text.bytes, KEY_TEXT);
}

static uint64_t number_key(const struct number *number)
{
    uint64_t hash = rational_hash(number->value);
    return rl_hash_seeded(&hash, sizeof hash, number->percent ? KEY_PERCENT : KEY_NUMBER);
}

/* The answer's place: marked ones before any other; *marked false: the whole text. */
static struct answer_span find_marked(struct answer_span text, bool *marked)
{
    struct answer_span tag = answer_last_tag(text);
    bool hashes = false;
    bool box = false;
    struct answer_span line = answer_after_hashes(text, &hashes);
    struct answer_span boxed = answer_last_box(text, &box);
    *marked = true;
    if (tag.text != NULL) {
        return tag;
    }
    if (hashes && line.text != NULL) {
        return line;
    }
    if (box && boxed.text != NULL) {
        return boxed;
    }
    *marked = false;
    return text;
}

uint64_t answer_key(const char *completion)
{
    struct answer_span text = answer_after_reasoning(answer_span_of(completion));
    struct number number = {.value = rational_create()};
    bool marked = false;
    if (text.text == NULL || number.value == NULL) {
        rational_destroy(number.value);
        return 0;
    }
    struct answer_span place = find_marked(text, &marked);
    bool is_number = marked ? number_read_whole(place, &number) || number_read_first(place, &number)
                            : number_read_last(place, &number);
    uint64_t key =
        is_number ? number_key(&number) : text_key(marked ? place : answer_last_line(place));
    rational_destroy(number.value);
    return key;
}
