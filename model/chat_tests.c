/* Tests ("x is name") and the functions that templates may call. */
#include "model/chat_internal.h"

#include "core/log.h"

#include <string.h>
#include <time.h>

enum chat_test {
    TEST_DEFINED,
    TEST_UNDEFINED,
    TEST_NONE,
    TEST_STRING,
    TEST_NUMBER,
    TEST_INTEGER,
    TEST_FLOAT,
    TEST_BOOLEAN,
    TEST_TRUE,
    TEST_FALSE,
    TEST_MAPPING,
    TEST_SEQUENCE,
    TEST_ITERABLE,
    TEST_CALLABLE,
    TEST_ODD,
    TEST_EVEN,
    TEST_DIVISIBLE,
    TEST_EQUAL,
    TEST_UNEQUAL,
    TEST_LESS,
    TEST_LESS_EQUAL,
    TEST_GREATER,
    TEST_GREATER_EQUAL,
    TEST_IN
};

static const struct {
    const char *name;
    enum chat_test test;
} tests[] = {
    {"defined", TEST_DEFINED},
    {"undefined", TEST_UNDEFINED},
    {"none", TEST_NONE},
    {"string", TEST_STRING},
    {"number", TEST_NUMBER},
    {"integer", TEST_INTEGER},
    {"float", TEST_FLOAT},
    {"boolean", TEST_BOOLEAN},
    {"true", TEST_TRUE},
    {"false", TEST_FALSE},
    {"mapping", TEST_MAPPING},
    {"sequence", TEST_SEQUENCE},
    {"iterable", TEST_ITERABLE},
    {"callable", TEST_CALLABLE},
    {"odd", TEST_ODD},
    {"even", TEST_EVEN},
    {"divisibleby", TEST_DIVISIBLE},
    {"eq", TEST_EQUAL},
    {"equalto", TEST_EQUAL},
    {"ne", TEST_UNEQUAL},
    {"lt", TEST_LESS},
    {"lessthan", TEST_LESS},
    {"le", TEST_LESS_EQUAL},
    {"gt", TEST_GREATER},
    {"greaterthan", TEST_GREATER},
    {"ge", TEST_GREATER_EQUAL},
    {"in", TEST_IN},
};

int chat_test_find(const char *name)
{
    for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
        if (strcmp(name, tests[i].name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static bool is_plain_dict(const struct chat_value *value)
{
    return value->kind == CHAT_DICT && !value->as.dict->is_namespace && !value->as.dict->is_loop;
}

/* Tests of the kind alone. */
static bool kind_test(enum chat_test test, const struct chat_value *value)
{
    enum chat_kind kind = value->kind;
    switch (test) {
    case TEST_DEFINED:
        return kind != CHAT_UNDEFINED;
    case TEST_UNDEFINED:
        return kind == CHAT_UNDEFINED;
    case TEST_NONE:
        return kind == CHAT_NONE;
    case TEST_STRING:
        return kind == CHAT_STRING;
    case TEST_NUMBER:
        return kind == CHAT_INT || kind == CHAT_REAL || kind == CHAT_BOOL;
    case TEST_INTEGER:
        return kind == CHAT_INT;
    case TEST_FLOAT:
        return kind == CHAT_REAL;
    case TEST_BOOLEAN:
        return kind == CHAT_BOOL;
    case TEST_TRUE:
        return kind == CHAT_BOOL && value->as.truth;
    case TEST_FALSE:
        return kind == CHAT_BOOL && !value->as.truth;
    case TEST_MAPPING:
        return is_plain_dict(value);
    case TEST_CALLABLE:
        return kind == CHAT_MACRO || kind == CHAT_FUNCTION;
    default: /* sequence, iterable: undefined values count as empty ones */
        return kind == CHAT_STRING || kind == CHAT_LIST || kind == CHAT_UNDEFINED ||
               is_plain_dict(value);
    }
}

static rl_status remainder_test(struct chat_run *run, const struct chat_value *value,
                                struct chat_value divisor, int64_t wanted, bool *out)
{
    struct chat_value remainder;
    struct chat_value expected = chat_int(wanted);
    RL_TRY(chat_binary(run, CHAT_OP_REMAINDER, value, &divisor, &remainder));
    *out = chat_equal(&remainder, &expected);
    return RL_OK;
}

rl_status chat_test_call(struct chat_run *run, int test, const struct chat_call *call, bool *out)
{
    static const enum chat_operator operators[] = {[TEST_EQUAL] = CHAT_OP_EQUAL,
                                                   [TEST_UNEQUAL] = CHAT_OP_UNEQUAL,
                                                   [TEST_LESS] = CHAT_OP_LESS,
                                                   [TEST_LESS_EQUAL] = CHAT_OP_LESS_EQUAL,
                                                   [TEST_GREATER] = CHAT_OP_GREATER,
                                                   [TEST_GREATER_EQUAL] = CHAT_OP_GREATER_EQUAL,
                                                   [TEST_IN] = CHAT_OP_IN};
    enum chat_test which = tests[test].test;
    size_t wanted = which >= TEST_DIVISIBLE ? 1 : 0;
    if (call->arguments->count != wanted) {
        return chat_error(run, "test \"%s\" takes %zu arguments", tests[test].name, wanted);
    }
    if (which < TEST_ODD) {
        *out = kind_test(which, call->subject);
        return RL_OK;
    }
    if (which == TEST_ODD || which == TEST_EVEN) {
        return remainder_test(run, call->subject, chat_int(2), which == TEST_ODD, out);
    }
    if (which == TEST_DIVISIBLE) {
        return remainder_test(run, call->subject, call->arguments->values[0], 0, out);
    }
    return chat_compare(run, operators[which], call->subject, &call->arguments->values[0], out);
}

/* ---- functions ---- */

enum chat_function {
    FUNCTION_NAMESPACE,
    FUNCTION_DICT,
    FUNCTION_RAISE,
    FUNCTION_RANGE,
    FUNCTION_STRFTIME_NOW
};

static const char *const functions[] = {"namespace", "dict", "raise_exception", "range",
                                        "strftime_now"};

int chat_function_find(const char *name)
{
    for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
        if (strcmp(name, functions[i]) == 0) {
            return (int)i;
        }
    }
    return -1;
}

static rl_status make_dict(struct chat_run *run, const struct chat_arguments *arguments,
                           bool is_namespace, struct chat_value *out)
{
    RL_TRY(chat_dict_new(run, out));
    out->as.dict->is_namespace = is_namespace;
    for (size_t i = 0; i < arguments->count; i++) {
        const struct chat_value *value = &arguments->values[i];
        if (arguments->names[i] != NULL) {
            RL_TRY(chat_dict_put(run, out->as.dict, arguments->names[i], *value));
            continue;
        }
        if (value->kind != CHAT_DICT) {
            return chat_error(run, "expected name=value");
        }
        for (size_t k = 0; k < value->as.dict->count; k++) {
            RL_TRY(chat_dict_set(run, out->as.dict, value->as.dict->entries[k].key,
                                 value->as.dict->entries[k].value));
        }
    }
    return RL_OK;
}

static rl_status make_range(struct chat_run *run, const struct chat_arguments *arguments,
                            struct chat_value *out)
{
    int64_t bounds[3] = {0, 0, 1};
    RL_TRY(chat_arguments_check(run, arguments, 3, "", "range"));
    for (size_t i = 0; i < arguments->count; i++) {
        if (arguments->values[i].kind != CHAT_INT) {
            return chat_error(run, "range of a %s", chat_kind_name(&arguments->values[i]));
        }
        bounds[arguments->count == 1 ? 1 : i] = arguments->values[i].as.integer;
    }
    if (arguments->count == 0 || bounds[2] == 0) {
        return chat_error(run, "range with these arguments");
    }
    RL_TRY(chat_list_new(run, out));
    for (int64_t i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1];) {
        if (out->as.list->count >= 100000) { /* the sandbox's own limit */
            return chat_error(run, "a range of more than 100000");
        }
        RL_TRY(chat_list_push(run, out->as.list, chat_int(i)));
        if (__builtin_add_overflow(i, bounds[2], &i)) {
            break;
        }
    }
    return RL_OK;
}

static rl_status raise_exception(struct chat_run *run, const struct chat_arguments *arguments)
{
    struct tok_text text = {0};
    rl_status status = RL_OK;
    if (arguments->count > 0) {
        status = chat_print(run, &arguments->values[0], &text);
    }
    if (status == RL_OK) {
        status = chat_error(run, "the template refuses these messages: %.*s", (int)text.bytes,
                            text.data != NULL ? text.data : "");
    }
    tok_text_fini(&text);
    return status;
}

static rl_status strftime_now(struct chat_run *run, const struct chat_arguments *arguments,
                              struct chat_value *out)
{
    char format[64];
    char text[200];
    struct tm local;
    time_t now = time(NULL);
    struct tok_text copy = {.marked = true};
    if (arguments->count != 1 || arguments->values[0].kind != CHAT_STRING ||
        arguments->values[0].as.string.bytes >= sizeof(format) ||
        localtime_r(&now, &local) == NULL) {
        return chat_error(run, "strftime_now expects one short format");
    }
    memcpy(format, arguments->values[0].as.string.data, arguments->values[0].as.string.bytes);
    format[arguments->values[0].as.string.bytes] = '\0';
    size_t bytes = strftime(text, sizeof(text), format, &local);
    rl_status status = tok_text_append_lossy(&copy, text, bytes);
    if (status == RL_OK) {
        status = chat_from_text(run, &copy, out);
    }
    tok_text_fini(&copy);
    return status;
}

rl_status chat_function_call(struct chat_run *run, int function,
                             const struct chat_arguments *arguments, struct chat_value *out)
{
    switch ((enum chat_function)function) {
    case FUNCTION_NAMESPACE:
        return make_dict(run, arguments, true, out);
    case FUNCTION_DICT:
        return make_dict(run, arguments, false, out);
    case FUNCTION_RAISE:
        return raise_exception(run, arguments);
    case FUNCTION_RANGE:
        return make_range(run, arguments, out);
    default:
        return strftime_now(run, arguments, out);
    }
}
