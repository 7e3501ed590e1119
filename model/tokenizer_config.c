/* The files beside tokenizer.json: which tokens begin, end and pad a text, and the chat template.
 * Owns no rules of tokenization. A missing file is fine, a broken one is not. */
#include "model/tokenizer_json.h"

#include "core/log.h"
#include "model/folder.h"
#include "transport/atomic_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROLE_COUNT = 4, TEXT_FILE_LIMIT = 64 << 20 };

static const char *const roles[ROLE_COUNT] = {"bos_token", "eos_token", "pad_token", "unk_token"};

/* Load DIR/NAME if it is there; *out NULL if not. Numbers may exceed 64 bits (model_max_length). */
static rl_status optional_json(const char *dir, const char *name, json_t **out)
{
    char path[MODEL_PATH_BYTES];
    RL_TRY(model_folder_path(dir, name, path));
    *out = NULL;
    rl_status status = tok_json_load(path, JSON_DECODE_INT_AS_REAL, out);
    if (status == RL_NOT_FOUND) {
        return RL_OK;
    }
    if (status == RL_OK && !json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        return rl_fail(RL_INVALID, "%s: expected an object", path);
    }
    return status;
}

/* "text" or {"content": "text"}; NULL if the role is not set. */
static const char *role_text(const json_t *config, const char *role)
{
    const json_t *value = json_object_get(config, role);
    if (json_is_object(value)) {
        value = json_object_get(value, "content");
    }
    return json_string_value(value);
}

static rl_status roles_read(struct tokenizer *tokenizer, const json_t *config)
{
    for (int i = 0; i < ROLE_COUNT; i++) {
        const char *text = role_text(config, roles[i]);
        if (text == NULL || tokenizer->special_text[i] != NULL) {
            continue;
        }
        tokenizer->special_text[i] = strdup(text);
        if (tokenizer->special_text[i] == NULL) {
            return rl_fail(RL_NO_MEMORY, "%s: no memory", tokenizer->dir);
        }
    }
    return RL_OK;
}

static const json_t *named_template(const json_t *value)
{
    size_t index;
    json_t *item;
    json_array_foreach((json_t *)value, index, item)
    {
        const char *name = json_string_value(json_object_get(item, "name"));
        if (name != NULL && strcmp(name, "default") == 0) {
            return json_object_get(item, "template");
        }
    }
    return NULL;
}

static rl_status template_read(struct tokenizer *tokenizer, const json_t *config)
{
    const json_t *value = json_object_get(config, "chat_template");
    if (json_is_array(value)) {
        value = named_template(value);
    }
    if (tokenizer->chat_template != NULL || !json_is_string(value)) {
        return RL_OK;
    }
    tokenizer->chat_template = strdup(json_string_value(value));
    return tokenizer->chat_template != NULL
               ? RL_OK
               : rl_fail(RL_NO_MEMORY, "%s: no memory", tokenizer->dir);
}

/* Whole file, NUL-terminated; RL_NOT_FOUND (not logged) if there is none. */
static rl_status read_file(const char *path, char **out, size_t *bytes)
{
    struct tok_text text = {0};
    char block[16384];
    size_t count;
    rl_status status = RL_OK;
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return errno == ENOENT ? RL_NOT_FOUND
                               : rl_fail(RL_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    while (status == RL_OK && (count = fread(block, 1, sizeof(block), file)) > 0) {
        status = text.bytes > TEXT_FILE_LIMIT
                     ? rl_fail(RL_TOO_LONG, "%s: larger than %d bytes", path, TEXT_FILE_LIMIT)
                     : tok_text_append(&text, block, count, 0);
    }
    if (status == RL_OK && ferror(file)) {
        status = rl_fail(RL_IO, "%s: cannot read: %s", path, strerror(errno));
    }
    fclose(file);
    if (status == RL_OK) {
        status = tok_text_append(&text, "", 1, 0);
    }
    if (status != RL_OK) {
        tok_text_fini(&text);
        return status;
    }
    *out = text.data;
    *bytes = text.bytes - 1;
    return RL_OK;
}

static rl_status template_file(struct tokenizer *tokenizer)
{
    char path[MODEL_PATH_BYTES];
    size_t bytes;
    RL_TRY(model_folder_path(tokenizer->dir, "chat_template.jinja", path));
    rl_status status = read_file(path, &tokenizer->chat_template, &bytes);
    if (status == RL_NOT_FOUND) {
        return RL_OK;
    }
    RL_TRY(status);
    if (tok_utf8_valid(tokenizer->chat_template, bytes) != bytes ||
        strlen(tokenizer->chat_template) != bytes) {
        return rl_fail(RL_INVALID, "%s: is not UTF-8 text", path);
    }
    return RL_OK;
}

static int32_t role_id(const struct tokenizer *tokenizer, int role)
{
    const char *text = tokenizer->special_text[role];
    return text != NULL ? tokenizer_token_id(tokenizer, text) : -1;
}

/* A number, or the first of a list of them. */
static int32_t generation_id(const json_t *config, const char *name, int32_t limit)
{
    const json_t *value = json_object_get(config, name);
    if (json_is_array(value)) {
        value = json_array_get(value, 0);
    }
    double id = json_is_real(value) ? json_real_value(value) : -1.0;
    return id >= 0.0 && id < (double)limit ? (int32_t)id : -1;
}

static rl_status generation_read(struct tokenizer *tokenizer)
{
    json_t *config;
    int32_t limit = tokenizer_vocab_count(tokenizer);
    RL_TRY(optional_json(tokenizer->dir, "generation_config.json", &config));
    if (tokenizer->bos_id < 0) {
        tokenizer->bos_id = generation_id(config, "bos_token_id", limit);
    }
    if (tokenizer->eos_id < 0) {
        tokenizer->eos_id = generation_id(config, "eos_token_id", limit);
    }
    if (tokenizer->pad_id < 0) {
        tokenizer->pad_id = generation_id(config, "pad_token_id", limit);
    }
    json_decref(config);
    return RL_OK;
}

rl_status tok_config_load(struct tokenizer *tokenizer)
{
    static const char *const files[] = {"tokenizer_config.json", "special_tokens_map.json",
                                        "chat_template.json"};
    RL_TRY(template_file(tokenizer));
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        json_t *config;
        RL_TRY(optional_json(tokenizer->dir, files[i], &config));
        rl_status status = roles_read(tokenizer, config);
        if (status == RL_OK) {
            status = template_read(tokenizer, config);
        }
        json_decref(config);
        RL_TRY(status);
    }
    tokenizer->bos_id = role_id(tokenizer, 0);
    tokenizer->eos_id = role_id(tokenizer, 1);
    tokenizer->pad_id = role_id(tokenizer, 2);
    return generation_read(tokenizer);
}

const char *tokenizer_special_text(const struct tokenizer *tokenizer, const char *role)
{
    for (int i = 0; i < ROLE_COUNT; i++) {
        if (strcmp(role, roles[i]) == 0) {
            return tokenizer->special_text[i];
        }
    }
    return NULL;
}

rl_status tokenizer_copy_files(const struct tokenizer *tokenizer, const char *dir)
{
    static const char *const files[] = {"tokenizer.json",     "tokenizer_config.json",
                                        "vocab.json",         "merges.txt",
                                        "added_tokens.json",  "special_tokens_map.json",
                                        "chat_template.json", "chat_template.jinja"};
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        char path[MODEL_PATH_BYTES];
        char target[MODEL_PATH_BYTES];
        char *data;
        size_t bytes;
        RL_TRY(model_folder_path(tokenizer->dir, files[i], path));
        RL_TRY(model_folder_path(dir, files[i], target));
        rl_status status = read_file(path, &data, &bytes);
        if (status == RL_NOT_FOUND) {
            continue;
        }
        RL_TRY(status);
        status = atomic_file_write_all(target, data, bytes);
        free(data);
        RL_TRY(status);
    }
    return RL_OK;
}
