/* Reading typed members of tokenizer.json. Owns the wording of errors: file, key, what was found
 * and what was expected. Invariant: outputs are written only on success. */
#include "model/tokenizer_json.h"

#include "core/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tok_where tok_where_child(const struct tok_where *where, const char *name)
{
    struct tok_where child = {.file = where->file};
    snprintf(child.key, sizeof(child.key), "%.110s%s%.40s", where->key,
             where->key[0] == '\0' ? "" : ".", name);
    return child;
}

struct tok_where tok_where_item(const struct tok_where *where, size_t index)
{
    struct tok_where child = {.file = where->file};
    snprintf(child.key, sizeof(child.key), "%.130s[%zu]", where->key, index);
    return child;
}

static const char *type_name(const json_t *value)
{
    if (value == NULL) {
        return "nothing";
    }
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a real number";
    case JSON_NULL:
        return "null";
    default:
        return "a boolean";
    }
}

static rl_status wrong_type(const struct tok_where *where, const char *name, const char *expected,
                            const json_t *found)
{
    return rl_fail(RL_INVALID, "%s: %s%s%s: expected %s, found %s", where->file, where->key,
                   where->key[0] == '\0' || name[0] == '\0' ? "" : ".", name, expected,
                   type_name(found));
}

rl_status tok_json_string(const json_t *object, const struct tok_where *where, const char *name,
                          struct tok_view *out)
{
    const json_t *value = json_object_get(object, name);
    if (!json_is_string(value)) {
        return wrong_type(where, name, "a string", value);
    }
    out->data = json_string_value(value);
    out->bytes = json_string_length(value);
    return RL_OK;
}

rl_status tok_json_optional_string(const json_t *object, const struct tok_where *where,
                                   const char *name, struct tok_view *out)
{
    const json_t *value = json_object_get(object, name);
    if (value == NULL || json_is_null(value)) {
        out->data = NULL;
        out->bytes = 0;
        return RL_OK;
    }
    return tok_json_string(object, where, name, out);
}

rl_status tok_json_bool(const json_t *object, const struct tok_where *where, const char *name,
                        int fallback, bool *out)
{
    const json_t *value = json_object_get(object, name);
    if (value == NULL && fallback >= 0) {
        *out = fallback != 0;
        return RL_OK;
    }
    if (!json_is_boolean(value)) {
        return wrong_type(where, name, "true or false", value);
    }
    *out = json_is_true(value);
    return RL_OK;
}

rl_status tok_json_array(const json_t *object, const struct tok_where *where, const char *name,
                         json_t **out)
{
    json_t *value = json_object_get(object, name);
    if (!json_is_array(value)) {
        return wrong_type(where, name, "an array", value);
    }
    *out = value;
    return RL_OK;
}

rl_status tok_json_id(const json_t *value, const struct tok_where *where, int32_t *out)
{
    if (!json_is_integer(value)) {
        return wrong_type(where, "", "a token id", value);
    }
    json_int_t id = json_integer_value(value);
    if (id < 0 || id >= TOK_ID_LIMIT) {
        return rl_fail(RL_INVALID, "%s: %s: token id %lld is out of range, expected 0 to %d",
                       where->file, where->key, (long long)id, TOK_ID_LIMIT - 1);
    }
    *out = (int32_t)id;
    return RL_OK;
}

rl_status tok_json_character(const json_t *object, const struct tok_where *where, const char *name,
                             struct tok_view *out)
{
    struct tok_view text;
    size_t bytes = 0;
    RL_TRY(tok_json_string(object, where, name, &text));
    if (text.bytes > 0) {
        (void)tok_utf8_get(text.data, &bytes);
    }
    if (text.bytes == 0 || bytes != text.bytes) {
        return rl_fail(RL_INVALID, "%s: %s.%s: expected one character, found \"%s\"", where->file,
                       where->key, name, text.data);
    }
    *out = text;
    return RL_OK;
}

static bool list_has(const char *list, const char *name)
{
    size_t length = strlen(name);
    while (*list != '\0') {
        size_t word = strcspn(list, " ");
        if (word == length && memcmp(list, name, length) == 0) {
            return true;
        }
        list += word + (list[word] == ' ');
    }
    return false;
}

rl_status tok_json_known(const json_t *object, const struct tok_where *where, const char *known)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)object, name, value)
    {
        if (!list_has(known, name)) {
            return rl_fail(RL_UNSUPPORTED, "%s: %s%s%.60s: not a member that is known here (%s)",
                           where->file, where->key, where->key[0] == '\0' ? "" : ".", name, known);
        }
    }
    return RL_OK;
}

rl_status tok_json_kind(const json_t *object, const struct tok_where *where, int depth,
                        const struct tok_kind_list *list, int *kind)
{
    struct tok_view type = {0};
    size_t index = 0;
    if (depth > TOK_DEPTH_MAX) {
        return rl_fail(RL_UNSUPPORTED, "%s: %s: nested too deeply", where->file, where->key);
    }
    if (!json_is_object(object)) {
        return wrong_type(where, "", "an object or null", object);
    }
    RL_TRY(tok_json_string(object, where, "type", &type));
    while (index < list->count && strcmp(list->kinds[index].type, type.data) != 0) {
        index++;
    }
    if (index == list->count) {
        return rl_fail(RL_UNSUPPORTED, "%s: %s: %s type \"%.60s\" is not supported", where->file,
                       where->key, list->part, type.data);
    }
    RL_TRY(tok_json_known(object, where, list->kinds[index].members));
    *kind = list->kinds[index].kind;
    return RL_OK;
}

rl_status tok_json_pattern(const json_t *object, const struct tok_where *where,
                           struct tok_regex **out)
{
    const json_t *pattern = json_object_get(object, "pattern");
    struct tok_where here = tok_where_child(where, "pattern");
    char place[400];
    struct tok_view text;
    snprintf(place, sizeof(place), "%.200s: %s", here.file, here.key);
    if (!json_is_object(pattern) || json_object_size(pattern) != 1) {
        return wrong_type(&here, "", "{\"String\": ...} or {\"Regex\": ...}", pattern);
    }
    if (json_object_get(pattern, "String") != NULL) {
        RL_TRY(tok_json_string(pattern, &here, "String", &text));
        return tok_regex_create_literal(text.data, text.bytes, place, out);
    }
    RL_TRY(tok_json_string(pattern, &here, "Regex", &text));
    return tok_regex_create(text.data, text.bytes, place, out);
}

rl_status tok_view_copy(struct tok_view view, struct tok_view *out)
{
    char *copy = malloc(view.bytes + 1);
    if (copy == NULL) {
        return rl_fail(RL_NO_MEMORY, "tokenizer: no memory for %zu bytes", view.bytes);
    }
    if (view.bytes > 0) {
        memcpy(copy, view.data, view.bytes);
    }
    copy[view.bytes] = '\0';
    out->data = copy;
    out->bytes = view.bytes;
    return RL_OK;
}

rl_status tok_json_load(const char *path, size_t flags, json_t **out)
{
    FILE *file = fopen(path, "rb");
    json_error_t error;
    if (file == NULL) {
        if (errno == ENOENT) {
            return RL_NOT_FOUND;
        }
        return rl_fail(RL_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    json_t *json = json_loadf(file, JSON_ALLOW_NUL | flags, &error);
    bool bad = ferror(file) != 0;
    fclose(file);
    if (json == NULL && bad) {
        return rl_fail(RL_IO, "%s: cannot read", path);
    }
    if (json == NULL) {
        return rl_fail(RL_INVALID, "%s: line %d, column %d: %s", path, error.line, error.column,
                       error.text);
    }
    *out = json;
    return RL_OK;
}
