/* Methods of strings and dicts, with Python's meaning. Invariant: results keep the taint of the
 * bytes that they are made of. */
#include "model/chat_internal.h"

#include "core/log.h"

#include <string.h>
#include <utf8proc.h>

enum chat_method {
    METHOD_STARTSWITH,
    METHOD_ENDSWITH,
    METHOD_STRIP,
    METHOD_LSTRIP,
    METHOD_RSTRIP,
    METHOD_SPLIT,
    METHOD_SPLITLINES,
    METHOD_REPLACE,
    METHOD_UPPER,
    METHOD_LOWER,
    METHOD_CAPITALIZE,
    METHOD_FIND,
    METHOD_COUNT,
    METHOD_JOIN,
    METHOD_REMOVEPREFIX,
    METHOD_REMOVESUFFIX,
    METHOD_ITEMS,
    METHOD_KEYS,
    METHOD_VALUES,
    METHOD_GET
};

static const char *const methods[] = {
    "startswith",   "endswith",     "strip", "lstrip",     "rstrip", "split", "splitlines",
    "replace",      "upper",        "lower", "capitalize", "find",   "count", "join",
    "removeprefix", "removesuffix", "items", "keys",       "values", "get"};

int chat_method_find(const char *name)
{
    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        if (strcmp(name, methods[i]) == 0) {
            return (int)i;
        }
    }
    return -1;
}

const struct chat_value *chat_argument(const struct chat_arguments *arguments, size_t position,
                                       const char *name)
{
    for (size_t i = 0; i < arguments->count; i++) {
        bool found =
            arguments->names[i] == NULL ? i == position : strcmp(arguments->names[i], name) == 0;
        if (found) {
            return &arguments->values[i];
        }
    }
    return NULL;
}

static bool name_listed(const char *names, const char *name)
{
    size_t length = strlen(name);
    while (*names != '\0') {
        size_t word = strcspn(names, " ");
        if (word == length && memcmp(names, name, length) == 0) {
            return true;
        }
        names += word + (names[word] == ' ');
    }
    return false;
}

rl_status chat_arguments_check(const struct chat_run *run, const struct chat_arguments *arguments,
                               size_t most, const char *names, const char *what)
{
    size_t positional = 0;
    for (size_t i = 0; i < arguments->count; i++) {
        if (arguments->names[i] == NULL) {
            positional++;
        } else if (!name_listed(names, arguments->names[i])) {
            return chat_error(run, "%s has no argument \"%.60s\"", what, arguments->names[i]);
        }
    }
    return positional <= most ? RL_OK
                              : chat_error(run, "%s takes at most %zu arguments", what, most);
}

/* ---- helpers on strings ---- */

size_t chat_find(const struct chat_string *string, const struct chat_string *wanted, size_t from)
{
    if (from > string->bytes || wanted->bytes > string->bytes - from) {
        return SIZE_MAX;
    }
    if (wanted->bytes == 0) {
        return from;
    }
    const char *found =
        memmem(string->data + from, string->bytes - from, wanted->data, wanted->bytes);
    return found != NULL ? (size_t)(found - string->data) : SIZE_MAX;
}

/* str.isspace of one character: White_Space and the four information separators. */
static bool is_space(uint32_t code)
{
    return tok_unicode_space(code) || (code >= 0x1C && code <= 0x1F);
}

static bool strips(uint32_t code, const struct chat_string *chars)
{
    if (chars == NULL) {
        return is_space(code);
    }
    for (size_t at = 0; at < chars->bytes;) {
        size_t length;
        if (tok_utf8_get(chars->data + at, &length) == code) {
            return true;
        }
        at += length;
    }
    return false;
}

struct chat_value chat_strip(const struct chat_string *string, const struct chat_string *chars,
                             bool left, bool right)
{
    size_t start = 0;
    size_t end = string->bytes;
    size_t length;
    while (left && start < end && strips(tok_utf8_get(string->data + start, &length), chars)) {
        start += length;
    }
    while (right && end > start) {
        size_t last = end - 1;
        while (last > start && ((unsigned char)string->data[last] & 0xC0) == 0x80) {
            last--;
        }
        if (!strips(tok_utf8_get(string->data + last, &length), chars)) {
            break;
        }
        end = last;
    }
    return chat_slice(string, start, end);
}

static rl_status replace_into(const struct chat_string *string, const struct chat_string *old,
                              const struct chat_string *fresh, struct tok_text *out)
{
    size_t done = 0;
    struct chat_string part;
    for (size_t at = chat_find(string, old, 0); at != SIZE_MAX && old->bytes > 0;
         at = chat_find(string, old, done)) {
        part = chat_slice(string, done, at).as.string;
        RL_TRY(chat_append(out, &part));
        RL_TRY(chat_append(out, fresh));
        done = at + old->bytes;
    }
    part = chat_slice(string, done, string->bytes).as.string;
    return chat_append(out, &part);
}

rl_status chat_replace(struct chat_run *run, const struct chat_string *string,
                       const struct chat_string *old, const struct chat_string *fresh,
                       struct chat_value *out)
{
    struct tok_text text = {.marked = true};
    if (old->bytes == 0) {
        return chat_error(run, "replace of an empty string");
    }
    rl_status status = replace_into(string, old, fresh, &text);
    if (status == RL_OK) {
        status = chat_from_text(run, &text, out);
    }
    tok_text_fini(&text);
    return status;
}

/* Between the parts of a title: what Jinja's filter splits words at. */
static bool starts_word(uint32_t before)
{
    return is_space(before) || before == '-' || before == '(' || before == '{' || before == '[' ||
           before == '<';
}

/* Simple case mappings only; characters with longer ones are refused rather than mangled. */
static bool has_long_mapping(uint32_t code)
{
    return code == 0xDF || code == 0x130 || code == 0x149 || code == 0x1F0 || code == 0x390 ||
           code == 0x3B0 || code == 0x3A3 || code == 0x587 || (code >= 0x1E96 && code <= 0x1E9E) ||
           (code >= 0x1F50 && code <= 0x1FFC) || (code >= 0xFB00 && code <= 0xFB17);
}

rl_status chat_recase(struct chat_run *run, const struct chat_string *string, enum chat_case wanted,
                      struct chat_value *out)
{
    struct tok_text text = {.marked = true};
    rl_status status = RL_OK;
    bool first = true;
    for (size_t at = 0; at < string->bytes && status == RL_OK;) {
        size_t length;
        uint32_t code = tok_utf8_get(string->data + at, &length);
        bool upper = wanted == CHAT_CASE_UPPER || (wanted != CHAT_CASE_LOWER && first);
        utf8proc_int32_t mapped = upper ? utf8proc_toupper((utf8proc_int32_t)code)
                                        : utf8proc_tolower((utf8proc_int32_t)code);
        if (has_long_mapping(code)) {
            status = chat_error(run, "upper or lower case of U+%04X is not supported", code);
            break;
        }
        status =
            tok_text_put(&text, (uint32_t)mapped, string->taint != NULL ? string->taint[at] : 0);
        first = wanted == CHAT_CASE_TITLE && starts_word(code);
        at += length;
    }
    if (status == RL_OK) {
        status = chat_from_text(run, &text, out);
    }
    tok_text_fini(&text);
    return status;
}

/* ---- methods ---- */

static rl_status need_string(struct chat_run *run, const struct chat_value *value, const char *what)
{
    if (value != NULL && value->kind == CHAT_STRING) {
        return RL_OK;
    }
    return chat_error(run, "%s expects a string, found %s", what,
                      value != NULL ? chat_kind_name(value) : "nothing");
}

static bool has_affix(const struct chat_string *string, const struct chat_string *affix, bool end)
{
    return affix->bytes <= string->bytes &&
           (affix->bytes == 0 || memcmp(string->data + (end ? string->bytes - affix->bytes : 0),
                                        affix->data, affix->bytes) == 0);
}

static rl_status affix_test(struct chat_run *run, const struct chat_string *string,
                            const struct chat_value *affix, bool end, struct chat_value *out)
{
    if (affix != NULL && affix->kind == CHAT_LIST && affix->as.list->tuple) {
        *out = chat_bool(false);
        for (size_t i = 0; i < affix->as.list->count && !out->as.truth; i++) {
            RL_TRY(affix_test(run, string, &affix->as.list->items[i], end, out));
        }
        return RL_OK;
    }
    RL_TRY(need_string(run, affix, end ? "endswith" : "startswith"));
    *out = chat_bool(has_affix(string, &affix->as.string, end));
    return RL_OK;
}

static rl_status split_spaces(struct chat_run *run, const struct chat_string *string, int64_t most,
                              struct chat_list *out)
{
    struct chat_string rest = chat_strip(string, NULL, true, false).as.string;
    while (rest.bytes > 0) {
        size_t at = 0;
        size_t length = 0;
        while (at < rest.bytes && !is_space(tok_utf8_get(rest.data + at, &length))) {
            at += length;
        }
        if (most-- == 0) {
            at = rest.bytes; /* the rest as it is, but for the blanks before it */
        }
        RL_TRY(chat_list_push(run, out, chat_slice(&rest, 0, at)));
        struct chat_string tail = chat_slice(&rest, at, rest.bytes).as.string;
        rest = chat_strip(&tail, NULL, true, false).as.string;
    }
    return RL_OK;
}

static rl_status split_at(struct chat_run *run, const struct chat_string *string,
                          const struct chat_string *separator, int64_t most, struct chat_list *out)
{
    size_t done = 0;
    if (separator->bytes == 0) {
        return chat_error(run, "split at an empty string");
    }
    for (size_t at = chat_find(string, separator, 0); at != SIZE_MAX && most-- != 0;
         at = chat_find(string, separator, done)) {
        RL_TRY(chat_list_push(run, out, chat_slice(string, done, at)));
        done = at + separator->bytes;
    }
    return chat_list_push(run, out, chat_slice(string, done, string->bytes));
}

static rl_status split(struct chat_run *run, const struct chat_string *string,
                       const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *separator = chat_argument(arguments, 0, "sep");
    const struct chat_value *most = chat_argument(arguments, 1, "maxsplit");
    RL_TRY(chat_arguments_check(run, arguments, 2, "sep maxsplit", "split"));
    if (most != NULL && most->kind != CHAT_INT) {
        return chat_error(run, "split with a %s as limit", chat_kind_name(most));
    }
    int64_t limit = most != NULL ? most->as.integer : -1;
    RL_TRY(chat_list_new(run, out));
    if (separator == NULL || separator->kind == CHAT_NONE) {
        return split_spaces(run, string, limit < 0 ? -1 : limit, out->as.list);
    }
    RL_TRY(need_string(run, separator, "split"));
    return split_at(run, string, &separator->as.string, limit < 0 ? -1 : limit, out->as.list);
}

/* Length of the line break at `at`, 0 if there is none. */
static size_t line_break(const struct chat_string *string, size_t at)
{
    size_t length;
    uint32_t code = tok_utf8_get(string->data + at, &length);
    if (code == '\r' && at + 1 < string->bytes && string->data[at + 1] == '\n') {
        return 2;
    }
    bool breaks = (code >= 10 && code <= 13) || (code >= 0x1C && code <= 0x1E) || code == 0x85 ||
                  code == 0x2028 || code == 0x2029;
    return breaks ? length : 0;
}

static rl_status split_lines(struct chat_run *run, const struct chat_string *string,
                             struct chat_value *out)
{
    size_t start = 0;
    RL_TRY(chat_list_new(run, out));
    for (size_t at = 0; at < string->bytes;) {
        size_t length;
        (void)tok_utf8_get(string->data + at, &length);
        size_t broken = line_break(string, at);
        if (broken > 0) {
            RL_TRY(chat_list_push(run, out->as.list, chat_slice(string, start, at)));
            start = at + broken;
            length = broken;
        }
        at += length;
    }
    return start < string->bytes
               ? chat_list_push(run, out->as.list, chat_slice(string, start, string->bytes))
               : RL_OK;
}

static rl_status join(struct chat_run *run, const struct chat_string *separator,
                      const struct chat_value *over, struct chat_value *out)
{
    struct tok_text text = {.marked = true};
    struct chat_list *items;
    rl_status status = RL_OK;
    RL_TRY(chat_iterate(run, over, &items));
    for (size_t i = 0; i < items->count && status == RL_OK; i++) {
        status = need_string(run, &items->items[i], "join");
        if (status == RL_OK && i > 0) {
            status = chat_append(&text, separator);
        }
        if (status == RL_OK) {
            status = chat_append(&text, &items->items[i].as.string);
        }
    }
    if (status == RL_OK) {
        status = chat_from_text(run, &text, out);
    }
    tok_text_fini(&text);
    return status;
}

static struct chat_value find_index(const struct chat_string *string,
                                    const struct chat_string *wanted)
{
    size_t at = chat_find(string, wanted, 0);
    if (at == SIZE_MAX) {
        return chat_int(-1);
    }
    struct chat_string before = chat_slice(string, 0, at).as.string;
    return chat_int((int64_t)chat_string_length(&before));
}

static struct chat_value count_of(const struct chat_string *string,
                                  const struct chat_string *wanted)
{
    int64_t count = 0;
    if (wanted->bytes == 0) {
        return chat_int((int64_t)chat_string_length(string) + 1);
    }
    for (size_t at = chat_find(string, wanted, 0); at != SIZE_MAX;
         at = chat_find(string, wanted, at + wanted->bytes)) {
        count++;
    }
    return chat_int(count);
}

/* Methods that take one string. */
static rl_status with_string(struct chat_run *run, enum chat_method method,
                             const struct chat_string *string,
                             const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *given = chat_argument(arguments, 0, "");
    RL_TRY(chat_arguments_check(run, arguments, 1, "", methods[method]));
    RL_TRY(need_string(run, given, methods[method]));
    const struct chat_string *text = &given->as.string;
    switch (method) {
    case METHOD_FIND:
        *out = find_index(string, text);
        return RL_OK;
    case METHOD_COUNT:
        *out = count_of(string, text);
        return RL_OK;
    case METHOD_REMOVEPREFIX:
        *out = chat_slice(string, has_affix(string, text, false) ? text->bytes : 0, string->bytes);
        return RL_OK;
    default:
        *out = chat_slice(string, 0,
                          string->bytes - (has_affix(string, text, true) ? text->bytes : 0));
        return RL_OK;
    }
}

static rl_status strip_method(struct chat_run *run, enum chat_method method,
                              const struct chat_string *string,
                              const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *chars = chat_argument(arguments, 0, "");
    RL_TRY(chat_arguments_check(run, arguments, 1, "", methods[method]));
    if (chars != NULL && chars->kind != CHAT_NONE) {
        RL_TRY(need_string(run, chars, methods[method]));
    }
    bool given = chars != NULL && chars->kind == CHAT_STRING;
    *out = chat_strip(string, given ? &chars->as.string : NULL, method != METHOD_RSTRIP,
                      method != METHOD_LSTRIP);
    return RL_OK;
}

static rl_status replace_method(struct chat_run *run, const struct chat_string *string,
                                const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *old = chat_argument(arguments, 0, "");
    const struct chat_value *fresh = chat_argument(arguments, 1, "");
    RL_TRY(chat_arguments_check(run, arguments, 2, "", "replace"));
    RL_TRY(need_string(run, old, "replace"));
    RL_TRY(need_string(run, fresh, "replace"));
    return chat_replace(run, string, &old->as.string, &fresh->as.string, out);
}

static rl_status string_method(struct chat_run *run, enum chat_method method,
                               const struct chat_string *string,
                               const struct chat_arguments *arguments, struct chat_value *out)
{
    const struct chat_value *given = chat_argument(arguments, 0, "");
    switch (method) {
    case METHOD_STARTSWITH:
    case METHOD_ENDSWITH:
        RL_TRY(chat_arguments_check(run, arguments, 1, "", methods[method]));
        return affix_test(run, string, given, method == METHOD_ENDSWITH, out);
    case METHOD_STRIP:
    case METHOD_LSTRIP:
    case METHOD_RSTRIP:
        return strip_method(run, method, string, arguments, out);
    case METHOD_SPLIT:
        return split(run, string, arguments, out);
    case METHOD_REPLACE:
        return replace_method(run, string, arguments, out);
    case METHOD_FIND:
    case METHOD_COUNT:
    case METHOD_REMOVEPREFIX:
    case METHOD_REMOVESUFFIX:
        return with_string(run, method, string, arguments, out);
    case METHOD_JOIN:
        RL_TRY(chat_arguments_check(run, arguments, 1, "", "join"));
        return given != NULL ? join(run, string, given, out)
                             : chat_error(run, "join expects a list");
    default:
        break;
    }
    RL_TRY(chat_arguments_check(run, arguments, 0, "", methods[method]));
    if (method == METHOD_SPLITLINES) {
        return split_lines(run, string, out);
    }
    return chat_recase(run, string,
                       method == METHOD_UPPER   ? CHAT_CASE_UPPER
                       : method == METHOD_LOWER ? CHAT_CASE_LOWER
                                                : CHAT_CASE_CAPITALIZE,
                       out);
}

static rl_status dict_list(struct chat_run *run, enum chat_method method,
                           const struct chat_dict *dict, struct chat_value *out)
{
    RL_TRY(chat_list_new(run, out));
    for (size_t i = 0; i < dict->count; i++) {
        struct chat_value item =
            method == METHOD_KEYS ? dict->entries[i].key : dict->entries[i].value;
        if (method == METHOD_ITEMS) {
            RL_TRY(chat_list_new(run, &item));
            item.as.list->tuple = true;
            RL_TRY(chat_list_push(run, item.as.list, dict->entries[i].key));
            RL_TRY(chat_list_push(run, item.as.list, dict->entries[i].value));
        }
        RL_TRY(chat_list_push(run, out->as.list, item));
    }
    return RL_OK;
}

static rl_status dict_method(struct chat_run *run, enum chat_method method,
                             const struct chat_dict *dict, const struct chat_arguments *arguments,
                             struct chat_value *out)
{
    const struct chat_value *key = chat_argument(arguments, 0, "");
    const struct chat_value *fallback = chat_argument(arguments, 1, "");
    RL_TRY(chat_arguments_check(run, arguments, method == METHOD_GET ? 2 : 0, "", methods[method]));
    if (method != METHOD_GET) {
        return dict_list(run, method, dict, out);
    }
    if (key == NULL) {
        return chat_error(run, "get expects a key");
    }
    const struct chat_value *found = chat_dict_get(dict, key);
    *out = found != NULL ? *found : fallback != NULL ? *fallback : chat_none();
    return RL_OK;
}

rl_status chat_method_call(struct chat_run *run, int method, const struct chat_call *call,
                           struct chat_value *out)
{
    enum chat_method which = (enum chat_method)method;
    const struct chat_value *subject = call->subject;
    if (subject->kind == CHAT_STRING && which < METHOD_ITEMS) {
        return string_method(run, which, &subject->as.string, call->arguments, out);
    }
    if (subject->kind == CHAT_DICT && which >= METHOD_ITEMS && !subject->as.dict->is_namespace &&
        !subject->as.dict->is_loop) {
        return dict_method(run, which, subject->as.dict, call->arguments, out);
    }
    return chat_error(run, "a %s has no method \"%s\"", chat_kind_name(subject), methods[method]);
}
