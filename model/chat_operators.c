/* Operators, subscripts and attributes with Python's meaning. Integers have 64 bits; what does not
 * fit is an error, never a wrap. */
#include "model/chat_internal.h"

#include "core/log.h"

#include <math.h>
#include <string.h>

static bool is_number(const struct chat_value *value)
{
    return value->kind == CHAT_INT || value->kind == CHAT_REAL || value->kind == CHAT_BOOL;
}

static double as_real(const struct chat_value *value)
{
    return value->kind == CHAT_REAL  ? value->as.real
           : value->kind == CHAT_INT ? (double)value->as.integer
                                     : (double)value->as.truth;
}

static int64_t as_int(const struct chat_value *value)
{
    return value->kind == CHAT_INT ? value->as.integer : (int64_t)value->as.truth;
}

static rl_status bad_operands(struct chat_run *run, const char *what, const struct chat_value *a,
                              const struct chat_value *b)
{
    return chat_error(run, "%s between %s and %s", what, chat_kind_name(a), chat_kind_name(b));
}

static rl_status real_arithmetic(struct chat_run *run, enum chat_operator op, double a, double b,
                                 struct chat_value *out)
{
    bool divides = op == CHAT_OP_DIVIDE || op == CHAT_OP_FLOOR_DIVIDE || op == CHAT_OP_REMAINDER;
    if (divides && b == 0.0) {
        return chat_error(run, "division by zero");
    }
    switch (op) {
    case CHAT_OP_ADD:
        *out = chat_real(a + b);
        return RL_OK;
    case CHAT_OP_SUBTRACT:
        *out = chat_real(a - b);
        return RL_OK;
    case CHAT_OP_MULTIPLY:
        *out = chat_real(a * b);
        return RL_OK;
    case CHAT_OP_DIVIDE:
        *out = chat_real(a / b);
        return RL_OK;
    case CHAT_OP_FLOOR_DIVIDE:
        *out = chat_real(floor(a / b));
        return RL_OK;
    case CHAT_OP_REMAINDER:
        *out = chat_real(a - b * floor(a / b));
        return RL_OK;
    default:
        return chat_error(run, "powers of real numbers are not supported");
    }
}

static rl_status int_power(struct chat_run *run, int64_t base, int64_t exponent,
                           struct chat_value *out)
{
    int64_t result = 1;
    if (exponent < 0 || exponent > 64) {
        return chat_error(run, "a power with exponent %lld", (long long)exponent);
    }
    for (int64_t i = 0; i < exponent; i++) {
        if (__builtin_mul_overflow(result, base, &result)) {
            return chat_error(run, "an integer beyond 64 bits");
        }
    }
    *out = chat_int(result);
    return RL_OK;
}

static rl_status int_division(struct chat_run *run, enum chat_operator op, int64_t a, int64_t b,
                              struct chat_value *out)
{
    if (b == 0) {
        return chat_error(run, "division by zero");
    }
    if (a == INT64_MIN && b == -1) {
        return chat_error(run, "an integer beyond 64 bits");
    }
    int64_t quotient = a / b;
    int64_t remainder = a % b;
    if (remainder != 0 && (remainder < 0) != (b < 0)) {
        quotient--;
        remainder += b;
    }
    *out = chat_int(op == CHAT_OP_FLOOR_DIVIDE ? quotient : remainder);
    return RL_OK;
}

static rl_status int_arithmetic(struct chat_run *run, enum chat_operator op, int64_t a, int64_t b,
                                struct chat_value *out)
{
    int64_t result = 0;
    bool overflow = false;
    switch (op) {
    case CHAT_OP_ADD:
        overflow = __builtin_add_overflow(a, b, &result);
        break;
    case CHAT_OP_SUBTRACT:
        overflow = __builtin_sub_overflow(a, b, &result);
        break;
    case CHAT_OP_MULTIPLY:
        overflow = __builtin_mul_overflow(a, b, &result);
        break;
    case CHAT_OP_DIVIDE:
        return real_arithmetic(run, op, (double)a, (double)b, out);
    case CHAT_OP_POWER:
        return int_power(run, a, b, out);
    default:
        return int_division(run, op, a, b, out);
    }
    if (overflow) {
        return chat_error(run, "an integer beyond 64 bits");
    }
    *out = chat_int(result);
    return RL_OK;
}

/* str() of both, joined. */
static rl_status concatenate(struct chat_run *run, const struct chat_value *a,
                             const struct chat_value *b, struct chat_value *out)
{
    struct tok_text text = {.marked = true};
    rl_status status = chat_print(run, a, &text);
    if (status == RL_OK) {
        status = chat_print(run, b, &text);
    }
    if (status == RL_OK) {
        status = chat_from_text(run, &text, out);
    }
    tok_text_fini(&text);
    return status;
}

static rl_status join_lists(struct chat_run *run, const struct chat_list *a,
                            const struct chat_list *b, struct chat_value *out)
{
    RL_TRY(chat_list_new(run, out));
    out->as.list->tuple = a->tuple;
    for (size_t i = 0; i < a->count; i++) {
        RL_TRY(chat_list_push(run, out->as.list, a->items[i]));
    }
    for (size_t i = 0; i < b->count; i++) {
        RL_TRY(chat_list_push(run, out->as.list, b->items[i]));
    }
    return RL_OK;
}

static rl_status repeat(struct chat_run *run, const struct chat_value *string, int64_t times,
                        struct chat_value *out)
{
    struct tok_text text = {.marked = true};
    rl_status status = RL_OK;
    for (int64_t i = 0; i < times && status == RL_OK && string->as.string.bytes > 0; i++) {
        status = chat_append(&text, &string->as.string);
    }
    if (status == RL_OK) {
        status = chat_from_text(run, &text, out);
    }
    tok_text_fini(&text);
    return status;
}

rl_status chat_binary(struct chat_run *run, enum chat_operator op, const struct chat_value *a,
                      const struct chat_value *b, struct chat_value *out)
{
    static const char *const names[] = {"+", "-", "*", "/", "//", "%", "**", "~"};
    if (op == CHAT_OP_CONCATENATE) {
        return concatenate(run, a, b, out);
    }
    if (op == CHAT_OP_ADD && a->kind == CHAT_STRING && b->kind == CHAT_STRING) {
        return concatenate(run, a, b, out);
    }
    if (op == CHAT_OP_ADD && a->kind == CHAT_LIST && b->kind == CHAT_LIST &&
        a->as.list->tuple == b->as.list->tuple) {
        return join_lists(run, a->as.list, b->as.list, out);
    }
    if (op == CHAT_OP_MULTIPLY && a->kind == CHAT_STRING && b->kind == CHAT_INT) {
        return repeat(run, a, b->as.integer, out);
    }
    if (op == CHAT_OP_MULTIPLY && a->kind == CHAT_INT && b->kind == CHAT_STRING) {
        return repeat(run, b, a->as.integer, out);
    }
    if (!is_number(a) || !is_number(b)) {
        return bad_operands(run, names[op], a, b);
    }
    if (a->kind == CHAT_REAL || b->kind == CHAT_REAL) {
        return real_arithmetic(run, op, as_real(a), as_real(b), out);
    }
    return int_arithmetic(run, op, as_int(a), as_int(b), out);
}

/* ---- comparison ---- */

static int compare_strings(const struct chat_string *a, const struct chat_string *b)
{
    size_t shared = a->bytes < b->bytes ? a->bytes : b->bytes;
    int order = shared > 0 ? memcmp(a->data, b->data, shared) : 0;
    return order != 0 ? order : (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

static rl_status compare_order(struct chat_run *run, enum chat_operator op,
                               const struct chat_value *a, const struct chat_value *b, bool *out)
{
    bool less;
    bool equal;
    if (a->kind == CHAT_STRING && b->kind == CHAT_STRING) {
        int order = compare_strings(&a->as.string, &b->as.string);
        less = order < 0;
        equal = order == 0;
    } else if (is_number(a) && is_number(b)) {
        bool real = a->kind == CHAT_REAL || b->kind == CHAT_REAL;
        less = real ? as_real(a) < as_real(b) : as_int(a) < as_int(b);
        equal = real ? as_real(a) == as_real(b) : as_int(a) == as_int(b);
    } else {
        return bad_operands(run, "an ordering", a, b);
    }
    *out = op == CHAT_OP_LESS            ? less
           : op == CHAT_OP_LESS_EQUAL    ? less || equal
           : op == CHAT_OP_GREATER_EQUAL ? !less
                                         : !less && !equal;
    return RL_OK;
}

static rl_status contains(struct chat_run *run, const struct chat_value *item,
                          const struct chat_value *in, bool *out)
{
    *out = false;
    switch (in->kind) {
    case CHAT_UNDEFINED:
        return RL_OK;
    case CHAT_STRING:
        if (item->kind != CHAT_STRING) {
            return bad_operands(run, "in", item, in);
        }
        *out = chat_find(&in->as.string, &item->as.string, 0) != SIZE_MAX;
        return RL_OK;
    case CHAT_LIST:
        for (size_t i = 0; i < in->as.list->count && !*out; i++) {
            *out = chat_equal(&in->as.list->items[i], item);
        }
        return RL_OK;
    case CHAT_DICT:
        *out = chat_dict_get(in->as.dict, item) != NULL;
        return RL_OK;
    default:
        return bad_operands(run, "in", item, in);
    }
}

rl_status chat_compare(struct chat_run *run, enum chat_operator op, const struct chat_value *a,
                       const struct chat_value *b, bool *out)
{
    switch (op) {
    case CHAT_OP_EQUAL:
        *out = chat_equal(a, b);
        return RL_OK;
    case CHAT_OP_UNEQUAL:
        *out = !chat_equal(a, b);
        return RL_OK;
    case CHAT_OP_IN:
        return contains(run, a, b, out);
    case CHAT_OP_NOT_IN:
        RL_TRY(contains(run, a, b, out));
        *out = !*out;
        return RL_OK;
    default:
        return compare_order(run, op, a, b, out);
    }
}

/* ---- subscripts ---- */

/* Byte offset of the character at `index`, of a string that has at least as many. */
static size_t character_offset(const struct chat_string *string, size_t index)
{
    size_t at = 0;
    while (index > 0 && at < string->bytes) {
        size_t length;
        (void)tok_utf8_get(string->data + at, &length);
        at += length;
        index--;
    }
    return at;
}

static struct chat_value character_at(const struct chat_string *string, size_t index)
{
    size_t start = character_offset(string, index);
    size_t length;
    (void)tok_utf8_get(string->data + start, &length);
    return chat_slice(string, start, start + length);
}

static bool is_listed(const char *const *names, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(name, names[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* Would Python find a method under this name rather than an item? */
static bool is_method_of(const struct chat_value *of, const char *name)
{
    static const char *const names[] = {"items",   "keys",       "values",  "get",
                                        "pop",     "copy",       "update",  "clear",
                                        "popitem", "setdefault", "fromkeys"};
    bool of_dict = is_listed(names, sizeof(names) / sizeof(names[0]), name);
    if (of->kind == CHAT_DICT) {
        return of_dict && !of->as.dict->is_namespace && !of->as.dict->is_loop;
    }
    return of->kind == CHAT_STRING && !of_dict && chat_method_find(name) >= 0;
}

static struct chat_value opaque(void)
{
    return (struct chat_value){.kind = CHAT_FUNCTION, .as.function = CHAT_OPAQUE};
}

rl_status chat_attribute(struct chat_run *run, const struct chat_value *of, const char *name,
                         struct chat_value *out)
{
    const struct chat_value *found = NULL;
    if (of->kind == CHAT_UNDEFINED) {
        return chat_error(run, "attribute \"%.60s\" of an undefined value", name);
    }
    if (is_method_of(of, name)) {
        *out = opaque();
        return RL_OK;
    }
    if (of->kind == CHAT_DICT) {
        found = chat_dict_find(of->as.dict, name);
    }
    *out = found != NULL ? *found : chat_undefined();
    return RL_OK;
}

rl_status chat_item(struct chat_run *run, const struct chat_value *of,
                    const struct chat_value *index, struct chat_value *out)
{
    char name[64];
    *out = chat_undefined();
    if (of->kind == CHAT_UNDEFINED) {
        return chat_error(run, "an item of an undefined value");
    }
    if (of->kind == CHAT_DICT) {
        const struct chat_value *found = chat_dict_get(of->as.dict, index);
        if (found != NULL) {
            *out = *found;
            return RL_OK;
        }
    }
    if ((of->kind == CHAT_LIST || of->kind == CHAT_STRING) &&
        (index->kind == CHAT_INT || index->kind == CHAT_BOOL)) {
        int64_t count = of->kind == CHAT_LIST ? (int64_t)of->as.list->count
                                              : (int64_t)chat_string_length(&of->as.string);
        int64_t at = as_int(index) < 0 ? as_int(index) + count : as_int(index);
        if (at >= 0 && at < count) {
            *out = of->kind == CHAT_LIST ? of->as.list->items[at]
                                         : character_at(&of->as.string, (size_t)at);
        }
        return RL_OK;
    }
    if (index->kind == CHAT_STRING && index->as.string.bytes < sizeof(name)) {
        memcpy(name, index->as.string.data, index->as.string.bytes);
        name[index->as.string.bytes] = '\0';
        *out = is_method_of(of, name) ? opaque() : *out;
    }
    return RL_OK;
}

struct slice_range {
    int64_t start;
    int64_t stop;
    int64_t step;
};

static rl_status slice_bound(struct chat_run *run, const struct chat_value *bound, int64_t fallback,
                             int64_t *out)
{
    if (bound->kind == CHAT_NONE) {
        *out = fallback;
        return RL_OK;
    }
    if (bound->kind != CHAT_INT && bound->kind != CHAT_BOOL) {
        return chat_error(run, "a slice with a %s", chat_kind_name(bound));
    }
    *out = as_int(bound);
    return RL_OK;
}

static int64_t clamp(int64_t value, int64_t count, bool backwards)
{
    int64_t low = backwards ? -1 : 0;
    int64_t high = backwards ? count - 1 : count;
    value = value < 0 ? value + count : value;
    return value < low ? low : value > high ? high : value;
}

static rl_status slice_range(struct chat_run *run, const struct chat_value bounds[3], int64_t count,
                             struct slice_range *out)
{
    RL_TRY(slice_bound(run, &bounds[2], 1, &out->step));
    if (out->step == 0) {
        return chat_error(run, "a slice with step zero");
    }
    bool back = out->step < 0;
    RL_TRY(slice_bound(run, &bounds[0], back ? count - 1 : 0, &out->start));
    RL_TRY(slice_bound(run, &bounds[1], 0, &out->stop));
    out->start = clamp(out->start, count, back);
    out->stop = bounds[1].kind == CHAT_NONE ? (back ? -1 : count) : clamp(out->stop, count, back);
    return RL_OK;
}

static rl_status slice_string(struct chat_run *run, const struct chat_string *string,
                              const struct slice_range *range, struct chat_value *out)
{
    if (range->step == 1) {
        size_t start = character_offset(string, (size_t)range->start);
        size_t end =
            range->stop > range->start ? character_offset(string, (size_t)range->stop) : start;
        *out = chat_slice(string, start, end);
        return RL_OK;
    }
    struct tok_text text = {.marked = true};
    rl_status status = RL_OK;
    for (int64_t i = range->start; range->step > 0 ? i < range->stop : i > range->stop;
         i += range->step) {
        struct chat_value character = character_at(string, (size_t)i);
        RL_TRY_GOTO(chat_append(&text, &character.as.string), status, done);
        if ((run->steps += string->bytes / 64) > CHAT_STEP_LIMIT) {
            status = chat_error(run, "too much work");
            goto done;
        }
    }
    status = chat_from_text(run, &text, out);
done:
    tok_text_fini(&text);
    return status;
}

rl_status chat_slice_of(struct chat_run *run, const struct chat_value *of,
                        const struct chat_value bounds[3], struct chat_value *out)
{
    struct slice_range range = {0};
    if (of->kind == CHAT_STRING) {
        RL_TRY(slice_range(run, bounds, (int64_t)chat_string_length(&of->as.string), &range));
        return slice_string(run, &of->as.string, &range, out);
    }
    if (of->kind != CHAT_LIST) {
        return chat_error(run, "a slice of a %s", chat_kind_name(of));
    }
    RL_TRY(slice_range(run, bounds, (int64_t)of->as.list->count, &range));
    RL_TRY(chat_list_new(run, out));
    out->as.list->tuple = of->as.list->tuple;
    for (int64_t i = range.start; range.step > 0 ? i < range.stop : i > range.stop;) {
        RL_TRY(chat_list_push(run, out->as.list, of->as.list->items[i]));
        if (__builtin_add_overflow(i, range.step, &i)) {
            break;
        }
    }
    return RL_OK;
}
