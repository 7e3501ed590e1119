/* Values of the template interpreter. All memory is the run's arena; values are never freed one by
 * one. Invariant: strings are valid UTF-8 and carry a taint for each byte or none at all. */
#include "model/chat_internal.h"

#include "core/log.h"

#include <string.h>

struct chat_value chat_none(void)
{
    return (struct chat_value){.kind = CHAT_NONE};
}

struct chat_value chat_undefined(void)
{
    return (struct chat_value){.kind = CHAT_UNDEFINED};
}

struct chat_value chat_bool(bool truth)
{
    return (struct chat_value){.kind = CHAT_BOOL, .as.truth = truth};
}

struct chat_value chat_int(int64_t integer)
{
    return (struct chat_value){.kind = CHAT_INT, .as.integer = integer};
}

struct chat_value chat_real(double real)
{
    return (struct chat_value){.kind = CHAT_REAL, .as.real = real};
}

struct chat_value chat_literal(const char *text)
{
    return (struct chat_value){.kind = CHAT_STRING, .as.string = {text, NULL, strlen(text)}};
}

struct chat_value chat_slice(const struct chat_string *string, size_t start, size_t end)
{
    struct chat_string part = {string->data + start,
                               string->taint != NULL ? string->taint + start : NULL, end - start};
    return (struct chat_value){.kind = CHAT_STRING, .as.string = part};
}

rl_status chat_from_text(struct chat_run *run, const struct tok_text *text, struct chat_value *out)
{
    void *data;
    void *taint;
    RL_TRY(rl_arena_alloc(run->arena, text->bytes, 1, &data));
    RL_TRY(rl_arena_calloc(run->arena, text->bytes, 1, &taint));
    if (text->bytes > 0) {
        memcpy(data, text->data, text->bytes);
        if (text->marked) {
            memcpy(taint, text->mark, text->bytes);
        }
    }
    *out = (struct chat_value){.kind = CHAT_STRING, .as.string = {data, taint, text->bytes}};
    return RL_OK;
}

rl_status chat_append(struct tok_text *text, const struct chat_string *string)
{
    size_t at = text->bytes;
    if (string->bytes > CHAT_OUTPUT_BYTES - at) {
        return rl_fail(RL_TOO_LONG, "chat template: text longer than %zu bytes", CHAT_OUTPUT_BYTES);
    }
    RL_TRY(tok_text_append(text, string->data, string->bytes, 0));
    if (string->taint != NULL && string->bytes > 0 && text->marked) {
        memcpy(text->mark + at, string->taint, string->bytes);
    }
    return RL_OK;
}

/* ---- lists and dicts ---- */

rl_status chat_list_new(struct chat_run *run, struct chat_value *out)
{
    void *list;
    RL_TRY(rl_arena_calloc(run->arena, 1, sizeof(struct chat_list), &list));
    *out = (struct chat_value){.kind = CHAT_LIST, .as.list = list};
    return RL_OK;
}

rl_status chat_list_push(struct chat_run *run, struct chat_list *list, struct chat_value item)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity * 2 + 4;
        void *items;
        RL_TRY(rl_arena_alloc(run->arena, capacity, sizeof(*list->items), &items));
        if (list->count > 0) {
            memcpy(items, list->items, list->count * sizeof(*list->items));
        }
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = item;
    return RL_OK;
}

rl_status chat_dict_new(struct chat_run *run, struct chat_value *out)
{
    void *dict;
    RL_TRY(rl_arena_calloc(run->arena, 1, sizeof(struct chat_dict), &dict));
    *out = (struct chat_value){.kind = CHAT_DICT, .as.dict = dict};
    return RL_OK;
}

static struct chat_entry *dict_entry(const struct chat_dict *dict, const struct chat_value *key)
{
    for (size_t i = 0; i < dict->count; i++) {
        if (chat_equal(&dict->entries[i].key, key)) {
            return &dict->entries[i];
        }
    }
    return NULL;
}

rl_status chat_dict_set(struct chat_run *run, struct chat_dict *dict, struct chat_value key,
                        struct chat_value value)
{
    struct chat_entry *entry = dict_entry(dict, &key);
    if (entry != NULL) {
        entry->value = value;
        return RL_OK;
    }
    if (dict->count == dict->capacity) {
        size_t capacity = dict->capacity * 2 + 4;
        void *entries;
        RL_TRY(rl_arena_alloc(run->arena, capacity, sizeof(*dict->entries), &entries));
        if (dict->count > 0) {
            memcpy(entries, dict->entries, dict->count * sizeof(*dict->entries));
        }
        dict->entries = entries;
        dict->capacity = capacity;
    }
    dict->entries[dict->count++] = (struct chat_entry){key, value};
    return RL_OK;
}

rl_status chat_dict_put(struct chat_run *run, struct chat_dict *dict, const char *key,
                        struct chat_value value)
{
    return chat_dict_set(run, dict, chat_literal(key), value);
}

const struct chat_value *chat_dict_get(const struct chat_dict *dict, const struct chat_value *key)
{
    const struct chat_entry *entry = dict_entry(dict, key);
    return entry != NULL ? &entry->value : NULL;
}

const struct chat_value *chat_dict_find(const struct chat_dict *dict, const char *key)
{
    struct chat_value name = chat_literal(key);
    return chat_dict_get(dict, &name);
}

/* ---- from JSON ---- */

static rl_status tainted_string(struct chat_run *run, const char *data, size_t bytes,
                                struct chat_value *out)
{
    struct tok_text text = {.marked = true};
    rl_status status = tok_text_append_lossy(&text, data, bytes);
    if (status == RL_OK && text.bytes > 0) {
        memset(text.mark, TOK_MARK_PLAIN, text.bytes);
    }
    if (status == RL_OK) {
        status = chat_from_text(run, &text, out);
    }
    tok_text_fini(&text);
    return status;
}

static rl_status list_from_json(struct chat_run *run, const json_t *json, int depth,
                                struct chat_value *out)
{
    size_t index;
    json_t *item;
    RL_TRY(chat_list_new(run, out));
    json_array_foreach((json_t *)json, index, item)
    {
        struct chat_value value;
        RL_TRY(chat_from_json(run, item, depth + 1, &value));
        RL_TRY(chat_list_push(run, out->as.list, value));
    }
    return RL_OK;
}

static rl_status dict_from_json(struct chat_run *run, const json_t *json, int depth,
                                struct chat_value *out)
{
    const char *name;
    json_t *item;
    RL_TRY(chat_dict_new(run, out));
    if (json_object_size(json) > 10000) {
        return rl_fail(RL_TOO_LONG, "chat template: an object with more than 10000 members");
    }
    json_object_foreach((json_t *)json, name, item)
    {
        struct chat_value key;
        struct chat_value value;
        RL_TRY(tainted_string(run, name, strlen(name), &key));
        RL_TRY(chat_from_json(run, item, depth + 1, &value));
        RL_TRY(chat_dict_set(run, out->as.dict, key, value));
    }
    return RL_OK;
}

rl_status chat_from_json(struct chat_run *run, const json_t *json, int depth,
                         struct chat_value *out)
{
    if (depth > CHAT_DEPTH_LIMIT) {
        return rl_fail(RL_TOO_LONG, "chat template: data nested deeper than %d", CHAT_DEPTH_LIMIT);
    }
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return dict_from_json(run, json, depth, out);
    case JSON_ARRAY:
        return list_from_json(run, json, depth, out);
    case JSON_STRING:
        return tainted_string(run, json_string_value(json), json_string_length(json), out);
    case JSON_INTEGER:
        *out = chat_int(json_integer_value(json));
        return RL_OK;
    case JSON_REAL:
        *out = chat_real(json_real_value(json));
        return RL_OK;
    case JSON_NULL:
        *out = chat_none();
        return RL_OK;
    default:
        *out = chat_bool(json_is_true(json));
        return RL_OK;
    }
}

/* ---- questions ---- */

bool chat_truth(const struct chat_value *value)
{
    switch (value->kind) {
    case CHAT_UNDEFINED:
    case CHAT_NONE:
        return false;
    case CHAT_BOOL:
        return value->as.truth;
    case CHAT_INT:
        return value->as.integer != 0;
    case CHAT_REAL:
        return value->as.real != 0.0;
    case CHAT_STRING:
        return value->as.string.bytes > 0;
    case CHAT_LIST:
        return value->as.list->count > 0;
    case CHAT_DICT:
        return value->as.dict->is_namespace || value->as.dict->is_loop || value->as.dict->count > 0;
    default:
        return true;
    }
}

static bool is_number(const struct chat_value *value)
{
    return value->kind == CHAT_BOOL || value->kind == CHAT_INT || value->kind == CHAT_REAL;
}

static double number_of(const struct chat_value *value)
{
    if (value->kind == CHAT_REAL) {
        return value->as.real;
    }
    return value->kind == CHAT_INT ? (double)value->as.integer : (double)value->as.truth;
}

static bool list_equal(const struct chat_list *a, const struct chat_list *b)
{
    if (a->count != b->count || a->tuple != b->tuple) {
        return false;
    }
    for (size_t i = 0; i < a->count; i++) {
        if (!chat_equal(&a->items[i], &b->items[i])) {
            return false;
        }
    }
    return true;
}

static bool dict_equal(const struct chat_dict *a, const struct chat_dict *b)
{
    if (a == b) {
        return true;
    }
    if (a->count != b->count || a->is_namespace || b->is_namespace) {
        return false;
    }
    for (size_t i = 0; i < a->count; i++) {
        const struct chat_value *other = chat_dict_get(b, &a->entries[i].key);
        if (other == NULL || !chat_equal(&a->entries[i].value, other)) {
            return false;
        }
    }
    return true;
}

bool chat_equal(const struct chat_value *a, const struct chat_value *b)
{
    if (is_number(a) && is_number(b)) {
        if (a->kind == CHAT_INT && b->kind == CHAT_INT) {
            return a->as.integer == b->as.integer;
        }
        return number_of(a) == number_of(b);
    }
    if (a->kind != b->kind) {
        return false;
    }
    switch (a->kind) {
    case CHAT_STRING:
        return a->as.string.bytes == b->as.string.bytes &&
               (a->as.string.bytes == 0 ||
                memcmp(a->as.string.data, b->as.string.data, a->as.string.bytes) == 0);
    case CHAT_LIST:
        return list_equal(a->as.list, b->as.list);
    case CHAT_DICT:
        return dict_equal(a->as.dict, b->as.dict);
    case CHAT_MACRO:
        return a->as.macro == b->as.macro;
    case CHAT_FUNCTION:
        return a->as.function == b->as.function;
    default:
        return true;
    }
}

bool chat_is_string(const struct chat_value *value, const char *text)
{
    return value->kind == CHAT_STRING && value->as.string.bytes == strlen(text) &&
           memcmp(value->as.string.data, text, value->as.string.bytes) == 0;
}

const char *chat_kind_name(const struct chat_value *value)
{
    static const char *const names[] = {"undefined", "None", "bool", "int",   "float",
                                        "str",       "list", "dict", "macro", "function"};
    return names[value->kind];
}

size_t chat_string_length(const struct chat_string *string)
{
    size_t count = 0;
    for (size_t i = 0; i < string->bytes; i++) {
        count += ((unsigned char)string->data[i] & 0xC0) != 0x80;
    }
    return count;
}
