/* Filters ("x | name"), with Jinja's meaning and the tojson of the `transformers` library. */
#include "model/chat_internal.h"

#include "core/log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum chat_filter {
    FILTER_TRIM,
    FILTER_LENGTH,
    FILTER_TOJSON,
    FILTER_UPPER,
    FILTER_LOWER,
    FILTER_TITLE,
    FILTER_CAPITALIZE,
    FILTER_JOIN,
    FILTER_DEFAULT,
    FILTER_FIRST,
    FILTER_LAST,
    FILTER_STRING,
    FILTER_INT,
    FILTER_LIST,
    FILTER_REPLACE,
    FILTER_SAFE,
    FILTER_REVERSE,
    FILTER_ITEMS,
    FILTER_SELECTATTR,
    FILTER_REJECTATTR,
    FILTER_SELECT,
    FILTER_REJECT,
    FILTER_MAP
};

static const struct {
    const char *name;
    enum chat_filter filter;
} filters[] = {
    {"trim", FILTER_TRIM},
    {"length", FILTER_LENGTH},
    {"count", FILTER_LENGTH},
    {"tojson", FILTER_TOJSON},
    {"upper", FILTER_UPPER},
    {"lower", FILTER_LOWER},
    {"title", FILTER_TITLE},
    {"capitalize", FILTER_CAPITALIZE},
    {"join", FILTER_JOIN},
    {"default", FILTER_DEFAULT},
    {"d", FILTER_DEFAULT},
    {"first", FILTER_FIRST},
    {"last", FILTER_LAST},
    {"string", FILTER_STRING},
    {"int", FILTER_INT},
    {"list", FILTER_LIST},
    {"replace", FILTER_REPLACE},
    {"safe", FILTER_SAFE},
    {"reverse", FILTER_REVERSE},
    {"items", FILTER_ITEMS},
    {"selectattr", FILTER_SELECTATTR},
    {"rejectattr", FILTER_REJECTATTR},
    {"select", FILTER_SELECT},
    {"reject", FILTER_REJECT},
    {"map", FILTER_MAP},
};

int chat_filter_find(const char *name)
{
    for (size_t i = 0; i < sizeof(filters) / sizeof(filters[0]); i++) {
        if (strcmp(name, filters[i].name) == 0) {
            return (int)i;
        }
    }
    return -1;
}

/* str() of a value as a string value. */
static rl_status stringify(struct chat_run *run, const struct chat_value *value,
                           struct chat_value *out)
{
    struct tok_text text = {.marked = true};
    if (value->kind == CHAT_STRING) {
        *out = *value;
        return RL_OK;
    }
    rl_status status = chat_print(run, value, &text);
    if (status == RL_OK) {
        status = chat_from_text(run, &text, out);
    }
    tok_text_fini(&text);
    return status;
}

static rl_status filter_length(struct chat_run *run, const struct chat_value *value,
                               struct chat_value *out)
{
    switch (value->kind) {
    case CHAT_UNDEFINED:
        *out = chat_int(0);
        return RL_OK;
    case CHAT_STRING:
        *out = chat_int((int64_t)chat_string_length(&value->as.string));
        return RL_OK;
    case CHAT_LIST:
        *out = chat_int((int64_t)value->as.list->count);
        return RL_OK;
    case CHAT_DICT:
        *out = chat_int((int64_t)value->as.dict->count);
        return RL_OK;
    default:
        return chat_error(run, "length of a %s", chat_kind_name(value));
    }
}

static rl_status filter_tojson(struct chat_run *run, const struct chat_call *call,
                               struct chat_value *out)
{
    struct tok_text text = {.marked = true};
    const struct chat_value *ascii = chat_argument(call->arguments, 0, "ensure_ascii");
    const struct chat_value *indent = chat_argument(call->arguments, 1, "indent");
    RL_TRY(chat_arguments_check(run, call->arguments, 2, "ensure_ascii indent", "tojson"));
    if (ascii != NULL && chat_truth(ascii)) {
        return chat_error(run, "tojson(ensure_ascii=true) is not supported");
    }
    bool none = indent == NULL || indent->kind == CHAT_NONE;
    if (!none && (indent->kind != CHAT_INT || indent->as.integer < 0 || indent->as.integer > 64)) {
        return chat_error(run, "tojson with this indent");
    }
    rl_status status =
        chat_print_json(run, call->subject, none ? -1 : (int)indent->as.integer, 0, &text);
    if (status == RL_OK) {
        status = chat_from_text(run, &text, out);
    }
    tok_text_fini(&text);
    return status;
}

static rl_status filter_join(struct chat_run *run, const struct chat_call *call,
                             struct chat_value *out)
{
    struct tok_text text = {.marked = true};
    const struct chat_value *separator = chat_argument(call->arguments, 0, "d");
    struct chat_list *items;
    rl_status status = RL_OK;
    RL_TRY(chat_arguments_check(run, call->arguments, 1, "d", "join"));
    RL_TRY(chat_iterate(run, call->subject, &items));
    for (size_t i = 0; i < items->count && status == RL_OK; i++) {
        if (i > 0 && separator != NULL) {
            status = chat_print(run, separator, &text);
        }
        if (status == RL_OK) {
            status = chat_print(run, &items->items[i], &text);
        }
    }
    if (status == RL_OK) {
        status = chat_from_text(run, &text, out);
    }
    tok_text_fini(&text);
    return status;
}

static rl_status filter_default(struct chat_run *run, const struct chat_call *call,
                                struct chat_value *out)
{
    const struct chat_value *fallback = chat_argument(call->arguments, 0, "default_value");
    const struct chat_value *falsy = chat_argument(call->arguments, 1, "boolean");
    RL_TRY(chat_arguments_check(run, call->arguments, 2, "default_value boolean", "default"));
    bool missing = call->subject->kind == CHAT_UNDEFINED ||
                   (falsy != NULL && chat_truth(falsy) && !chat_truth(call->subject));
    *out = !missing ? *call->subject : fallback != NULL ? *fallback : chat_literal("");
    return RL_OK;
}

static rl_status filter_end(struct chat_run *run, const struct chat_value *value, bool last,
                            struct chat_value *out)
{
    struct chat_list *items;
    RL_TRY(chat_iterate(run, value, &items));
    *out = items->count > 0 ? items->items[last ? items->count - 1 : 0] : chat_undefined();
    return RL_OK;
}

static rl_status filter_reverse(struct chat_run *run, const struct chat_value *value,
                                struct chat_value *out)
{
    struct chat_value bounds[3] = {chat_none(), chat_none(), chat_int(-1)};
    struct chat_list *items;
    if (value->kind == CHAT_STRING) {
        return chat_slice_of(run, value, bounds, out);
    }
    RL_TRY(chat_iterate(run, value, &items));
    struct chat_value list = {.kind = CHAT_LIST, .as.list = items};
    return chat_slice_of(run, &list, bounds, out);
}

static rl_status filter_list(struct chat_run *run, const struct chat_value *value,
                             struct chat_value *out)
{
    struct chat_list *items;
    RL_TRY(chat_iterate(run, value, &items));
    RL_TRY(chat_list_new(run, out));
    for (size_t i = 0; i < items->count; i++) {
        RL_TRY(chat_list_push(run, out->as.list, items->items[i]));
    }
    return RL_OK;
}

static rl_status filter_int(struct chat_run *run, const struct chat_call *call,
                            struct chat_value *out)
{
    const struct chat_value *value = call->subject;
    char text[32];
    RL_TRY(chat_arguments_check(run, call->arguments, 0, "", "int"));
    *out = chat_int(0);
    if (value->kind == CHAT_INT || value->kind == CHAT_BOOL) {
        *out = chat_int(value->kind == CHAT_INT ? value->as.integer : (int64_t)value->as.truth);
        return RL_OK;
    }
    if (value->kind == CHAT_REAL && value->as.real > -9e18 && value->as.real < 9e18) {
        *out = chat_int((int64_t)value->as.real);
        return RL_OK;
    }
    if (value->kind == CHAT_REAL || value->kind == CHAT_STRING) {
        struct chat_string stripped =
            value->kind == CHAT_STRING ? chat_strip(&value->as.string, NULL, true, true).as.string
                                       : (struct chat_string){"", NULL, 0};
        char *end;
        if (stripped.bytes == 0 || stripped.bytes > 18 ||
            memchr(stripped.data, '.', stripped.bytes) != NULL) {
            return chat_error(run, "int of this value is not supported");
        }
        memcpy(text, stripped.data, stripped.bytes);
        text[stripped.bytes] = '\0';
        long long parsed = strtoll(text, &end, 10);
        if (*end != '\0') {
            return chat_error(run, "int of this value is not supported");
        }
        *out = chat_int(parsed);
    }
    return RL_OK;
}

static rl_status filter_replace(struct chat_run *run, const struct chat_call *call,
                                struct chat_value *out)
{
    struct chat_value parts[3];
    RL_TRY(chat_arguments_check(run, call->arguments, 2, "", "replace"));
    if (call->arguments->count != 2) {
        return chat_error(run, "replace expects two strings");
    }
    RL_TRY(stringify(run, call->subject, &parts[0]));
    RL_TRY(stringify(run, &call->arguments->values[0], &parts[1]));
    RL_TRY(stringify(run, &call->arguments->values[1], &parts[2]));
    return chat_replace(run, &parts[0].as.string, &parts[1].as.string, &parts[2].as.string, out);
}

/* "a.b" or "a" of an item. */
static rl_status item_attribute(struct chat_run *run, const struct chat_value *item,
                                const struct chat_value *path, struct chat_value *out)
{
    if (path->kind != CHAT_STRING || memchr(path->as.string.data, '.', path->as.string.bytes)) {
        return chat_error(run, "an attribute must be one plain name");
    }
    return chat_item(run, item, path, out);
}

/* Does the test named by arguments[at], with the arguments behind it, hold? */
static rl_status holds(struct chat_run *run, const struct chat_value *value,
                       const struct chat_arguments *arguments, size_t at, bool *out)
{
    char name[32];
    if (arguments->count <= at) {
        *out = chat_truth(value);
        return RL_OK;
    }
    const struct chat_value *test = &arguments->values[at];
    if (test->kind != CHAT_STRING || test->as.string.bytes >= sizeof(name)) {
        return chat_error(run, "the name of a test was expected");
    }
    memcpy(name, test->as.string.data, test->as.string.bytes);
    name[test->as.string.bytes] = '\0';
    int index = chat_test_find(strcmp(name, "==") == 0 ? "eq" : name);
    if (index < 0) {
        return rl_fail(RL_UNSUPPORTED, "chat template, line %d: test \"%s\" is not supported",
                       run->line, name);
    }
    struct chat_arguments rest = {arguments->values + at + 1, arguments->names + at + 1,
                                  arguments->count - at - 1};
    struct chat_call call = {value, &rest};
    return chat_test_call(run, index, &call, out);
}

static rl_status filter_select(struct chat_run *run, const struct chat_call *call, bool attribute,
                               bool keep, struct chat_value *out)
{
    struct chat_list *items;
    RL_TRY(chat_arguments_check(run, call->arguments, 8, "", "select"));
    RL_TRY(chat_iterate(run, call->subject, &items));
    RL_TRY(chat_list_new(run, out));
    if (attribute && call->arguments->count == 0) {
        return chat_error(run, "the name of an attribute was expected");
    }
    for (size_t i = 0; i < items->count; i++) {
        struct chat_value value = items->items[i];
        bool truth;
        if (attribute) {
            RL_TRY(item_attribute(run, &items->items[i], &call->arguments->values[0], &value));
        }
        RL_TRY(holds(run, &value, call->arguments, attribute ? 1 : 0, &truth));
        if (truth == keep) {
            RL_TRY(chat_list_push(run, out->as.list, items->items[i]));
        }
    }
    return RL_OK;
}

/* map(attribute="name", default=...) or map("filter", arguments...). */
static rl_status filter_map(struct chat_run *run, const struct chat_call *call,
                            struct chat_value *out)
{
    const struct chat_value *attribute = chat_argument(call->arguments, SIZE_MAX, "attribute");
    const struct chat_value *fallback = chat_argument(call->arguments, SIZE_MAX, "default");
    struct chat_arguments rest = {0};
    char name[32] = "";
    struct chat_list *items;
    RL_TRY(chat_arguments_check(run, call->arguments, attribute != NULL ? 0 : 4,
                                "attribute default", "map"));
    if (attribute == NULL && call->arguments->count > 0 &&
        call->arguments->values[0].kind == CHAT_STRING &&
        call->arguments->values[0].as.string.bytes < sizeof(name)) {
        memcpy(name, call->arguments->values[0].as.string.data,
               call->arguments->values[0].as.string.bytes);
        rest = (struct chat_arguments){call->arguments->values + 1, call->arguments->names + 1,
                                       call->arguments->count - 1};
    }
    int filter = chat_filter_find(name);
    if (attribute == NULL && filter < 0) {
        return rl_fail(RL_UNSUPPORTED, "chat template, line %d: map with \"%s\" is not supported",
                       run->line, name);
    }
    RL_TRY(chat_iterate(run, call->subject, &items));
    RL_TRY(chat_list_new(run, out));
    for (size_t i = 0; i < items->count; i++) {
        struct chat_value value;
        struct chat_call inner = {&items->items[i], &rest};
        if (attribute != NULL) {
            RL_TRY(item_attribute(run, &items->items[i], attribute, &value));
            value = value.kind == CHAT_UNDEFINED && fallback != NULL ? *fallback : value;
        } else {
            RL_TRY(chat_filter_call(run, filter, &inner, &value));
        }
        RL_TRY(chat_list_push(run, out->as.list, value));
    }
    return RL_OK;
}

static rl_status filter_items(struct chat_run *run, const struct chat_call *call,
                              struct chat_value *out)
{
    if (call->subject->kind == CHAT_UNDEFINED) {
        return chat_list_new(run, out);
    }
    return chat_method_call(run, chat_method_find("items"), call, out);
}

/* Filters on str(x). */
static rl_status text_filter(struct chat_run *run, enum chat_filter filter,
                             const struct chat_call *call, struct chat_value *out)
{
    static const enum chat_case cases[] = {[FILTER_UPPER] = CHAT_CASE_UPPER,
                                           [FILTER_LOWER] = CHAT_CASE_LOWER,
                                           [FILTER_TITLE] = CHAT_CASE_TITLE,
                                           [FILTER_CAPITALIZE] = CHAT_CASE_CAPITALIZE};
    struct chat_value text;
    const struct chat_value *chars = chat_argument(call->arguments, 0, "chars");
    RL_TRY(chat_arguments_check(run, call->arguments, filter == FILTER_TRIM ? 1 : 0,
                                filter == FILTER_TRIM ? "chars" : "", "this filter"));
    RL_TRY(stringify(run, call->subject, &text));
    if (filter == FILTER_STRING || filter == FILTER_SAFE) {
        *out = text;
        return RL_OK;
    }
    if (filter != FILTER_TRIM) {
        return chat_recase(run, &text.as.string, cases[filter], out);
    }
    bool given = chars != NULL && chars->kind == CHAT_STRING;
    if (chars != NULL && !given && chars->kind != CHAT_NONE) {
        return chat_error(run, "trim of a %s", chat_kind_name(chars));
    }
    *out = chat_strip(&text.as.string, given ? &chars->as.string : NULL, true, true);
    return RL_OK;
}

rl_status chat_filter_call(struct chat_run *run, int filter, const struct chat_call *call,
                           struct chat_value *out)
{
    enum chat_filter which = filters[filter].filter;
    switch (which) {
    case FILTER_LENGTH:
        return filter_length(run, call->subject, out);
    case FILTER_TOJSON:
        return filter_tojson(run, call, out);
    case FILTER_JOIN:
        return filter_join(run, call, out);
    case FILTER_DEFAULT:
        return filter_default(run, call, out);
    case FILTER_FIRST:
    case FILTER_LAST:
        return filter_end(run, call->subject, which == FILTER_LAST, out);
    case FILTER_INT:
        return filter_int(run, call, out);
    case FILTER_LIST:
        return filter_list(run, call->subject, out);
    case FILTER_REPLACE:
        return filter_replace(run, call, out);
    case FILTER_REVERSE:
        return filter_reverse(run, call->subject, out);
    case FILTER_ITEMS:
        return filter_items(run, call, out);
    case FILTER_SELECTATTR:
    case FILTER_REJECTATTR:
        return filter_select(run, call, true, which == FILTER_SELECTATTR, out);
    case FILTER_SELECT:
    case FILTER_REJECT:
        return filter_select(run, call, false, which == FILTER_SELECT, out);
    case FILTER_MAP:
        return filter_map(run, call, out);
    default:
        return text_filter(run, which, call, out);
    }
}
