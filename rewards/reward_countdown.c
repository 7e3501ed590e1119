/* The `countdown` reward: an expression that uses every given number exactly once and makes the
 * target, compared as exact rationals.
 * Where the puzzle comes from, first that fits: the ground truth as JSON {"target", "numbers"};
 * the data row, or its object `meta`, `extra_info` or `reward_model.ground_truth`, with `numbers`
 * or `nums` and `target`; the row's `input` ("3,5,7") and `output`. A target that is not named is
 * the ground truth. Where the expression stands, after any reasoning: the last <answer> tag, after
 * the last "####", the last \boxed{}, else the last line; "= value" may follow if it is true. */
#include "rewards/answer_text.h"
#include "rewards/expression.h"
#include "rewards/reward_ops.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct puzzle {
    struct expression_numbers numbers; /* sorted */
    int64_t target;
};

static int compare_int64(const void *a, const void *b)
{
    int64_t left = *(const int64_t *)a;
    int64_t right = *(const int64_t *)b;
    return (left > right) - (left < right);
}

/* A whole decimal integer with outer white space; separators and signs but '-' are not allowed. */
static bool read_integer(struct answer_span span, int64_t *out)
{
    char digits[24];
    char *end = NULL;
    span = answer_span_trim(span);
    if (span.bytes == 0 || span.bytes >= sizeof(digits) ||
        strspn(span.text, "-0123456789") < span.bytes) {
        return false;
    }
    memcpy(digits, span.text, span.bytes);
    digits[span.bytes] = '\0';
    long long value = strtoll(digits, &end, 10);
    if (*end != '\0' || value > INT64_MAX / 2 || value < -(INT64_MAX / 2)) {
        return false;
    }
    *out = value;
    return true;
}

static bool json_to_integer(const json_t *value, int64_t *out)
{
    if (json_is_integer(value)) {
        *out = json_integer_value(value);
        return true;
    }
    return json_is_string(value) && read_integer(answer_span_of(json_string_value(value)), out);
}

static bool push_number(struct expression_numbers *numbers, int64_t number)
{
    if (numbers->count == EXPRESSION_NUMBERS_MAX || number < 0) {
        return false; /* a negative literal could not be told from a difference */
    }
    numbers->items[numbers->count++] = number;
    return true;
}

static bool numbers_from_array(const json_t *array, struct expression_numbers *out)
{
    size_t index;
    json_t *item;
    out->count = 0;
    json_array_foreach(array, index, item)
    {
        int64_t number = 0;
        if (!json_to_integer(item, &number) || !push_number(out, number)) {
            return false;
        }
    }
    return out->count > 0;
}

/* "30,100,93" or the same with spaces. */
static bool numbers_from_text(const char *text, struct expression_numbers *out)
{
    out->count = 0;
    for (;;) {
        size_t bytes = strcspn(text, ",");
        int64_t number = 0;
        if (!read_integer((struct answer_span){text, bytes}, &number) ||
            !push_number(out, number)) {
            return false;
        }
        if (text[bytes] == '\0') {
            return true;
        }
        text += bytes + 1;
    }
}

static bool puzzle_from_object(const json_t *object, const char *ground_truth, struct puzzle *out)
{
    const json_t *numbers = json_object_get(object, "numbers");
    if (numbers == NULL) {
        numbers = json_object_get(object, "nums");
    }
    const json_t *target = json_object_get(object, "target");
    bool found = json_is_array(numbers) && numbers_from_array(numbers, &out->numbers);
    if (!found) {
        const json_t *input = json_object_get(object, "input");
        found = json_is_string(input) && numbers_from_text(json_string_value(input), &out->numbers);
        target = target != NULL ? target : json_object_get(object, "output");
    }
    return found && (target != NULL ? json_to_integer(target, &out->target)
                                    : read_integer(answer_span_of(ground_truth), &out->target));
}

static bool puzzle_from_row(const json_t *row, const char *ground_truth, struct puzzle *out)
{
    const json_t *reward_model = json_object_get(row, "reward_model");
    const json_t *places[] = {row, json_object_get(row, "meta"), json_object_get(row, "extra_info"),
                              json_object_get(reward_model, "ground_truth")};
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        if (json_is_object(places[i]) && puzzle_from_object(places[i], ground_truth, out)) {
            return true;
        }
    }
    return false;
}

static bool puzzle_find(const struct reward_input *input, struct puzzle *out)
{
    json_t *gold = json_loads(input->ground_truth, 0, NULL);
    bool found = json_is_object(gold) && puzzle_from_object(gold, "", out);
    json_decref(gold);
    if (!found) {
        json_t *row = json_loads(input->extra_json, 0, NULL);
        found = json_is_object(row) && puzzle_from_row(row, input->ground_truth, out);
        json_decref(row);
    }
    if (found) {
        qsort(out->numbers.items, out->numbers.count, sizeof(out->numbers.items[0]), compare_int64);
    }
    return found;
}

/* The span with delimiters of mathematics around it removed. */
static struct answer_span strip_math(struct answer_span span)
{
    span = answer_span_trim(span);
    if (span.bytes >= 2 && span.text[0] == '$' && span.text[span.bytes - 1] == '$') {
        span = answer_span_trim((struct answer_span){span.text + 1, span.bytes - 2});
    }
    return span;
}

static struct answer_span find_expression(struct answer_span text)
{
    bool marked = false;
    if (memmem(text.text, text.bytes, "<answer>", strlen("<answer>")) != NULL) {
        return answer_last_tag(text);
    }
    struct answer_span span = answer_after_hashes(text, &marked);
    if (marked) {
        return span;
    }
    span = answer_last_box(text, &marked);
    return marked ? span : answer_last_line(text);
}

static bool same_numbers(struct expression_numbers *used, const struct puzzle *puzzle)
{
    qsort(used->items, used->count, sizeof(used->items[0]), compare_int64);
    return used->count == puzzle->numbers.count &&
           memcmp(used->items, puzzle->numbers.items, used->count * sizeof(used->items[0])) == 0;
}

/* NULL if the expression solves the puzzle, else why not. */
static const char *judge(struct answer_span span, const struct puzzle *puzzle,
                         struct rational *value, struct rational *target)
{
    struct expression_numbers numbers = {.count = 0};
    span = strip_math(span);
    const char *equals = span.bytes > 0 ? memchr(span.text, '=', span.bytes) : NULL;
    rational_set_int(target, puzzle->target);
    if (equals != NULL) {
        size_t left = (size_t)(equals - span.text);
        struct answer_span right = {equals + 1, span.bytes - left - 1};
        span.bytes = left;
        const char *problem = expression_evaluate(right, value, &numbers);
        if (problem != NULL || !rational_equal(value, target)) {
            return "what follows the equals sign is not the target";
        }
    }
    const char *problem = expression_evaluate(span, value, &numbers);
    if (problem != NULL) {
        return problem;
    }
    if (!same_numbers(&numbers, puzzle)) {
        return "not every given number is used exactly once";
    }
    return rational_equal(value, target) ? NULL : "the expression does not make the target";
}

static void countdown_score(const void *state, const struct reward_input *input,
                            struct reward_output *out)
{
    (void)state;
    struct puzzle puzzle;
    if (!puzzle_find(input, &puzzle)) {
        out->reason = "the row names no numbers and target";
        return;
    }
    struct answer_span text = answer_after_reasoning(answer_span_of(input->completion));
    struct answer_span span = text.text != NULL ? find_expression(text) : text;
    if (span.text == NULL) {
        out->valid = true;
        out->reason = "no expression in the answer";
        return;
    }
    struct rational *value = rational_create();
    struct rational *target = rational_create();
    if (value == NULL || target == NULL) {
        out->reason = "no memory for the expression";
    } else {
        const char *problem = judge(span, &puzzle, value, target);
        out->valid = true;
        out->value = problem == NULL ? 1.0 : 0.0;
        out->reason = problem == NULL ? "the expression makes the target" : problem;
    }
    rational_destroy(target);
    rational_destroy(value);
}

const struct reward_ops reward_countdown_ops = {
    .name = "countdown", .gold_is_puzzle = true, .score = countdown_score};
