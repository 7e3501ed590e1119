/* What tests of the tokenizer and the chat templates share: rows of JSON lines, scratch folders. */
#ifndef FORESIGHT_TESTS_TOKENIZER_FIXTURE_H
#define FORESIGHT_TESTS_TOKENIZER_FIXTURE_H

#include "core/log.h"
#include "model/chat.h"
#include "model/tokenizer.h"

#include <check.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DATA_DIR FORESIGHT_SOURCE_DIR "/tests/data/tokenizers"
#define SHARED_DIR FORESIGHT_SOURCE_DIR "/../shared/data"

struct rows {
    FILE *file;
    char *line;
    size_t capacity;
};

/* False if there is no such file. */
static inline bool rows_open(struct rows *rows, const char *path)
{
    *rows = (struct rows){.file = fopen(path, "rb")};
    return rows->file != NULL;
}

/* Next row, NULL behind the last; release with json_decref. */
static inline json_t *rows_next(struct rows *rows)
{
    json_error_t error;
    ssize_t bytes = getline(&rows->line, &rows->capacity, rows->file);
    if (bytes <= 0) {
        return NULL;
    }
    json_t *row = json_loadb(rows->line, (size_t)bytes, JSON_ALLOW_NUL, &error);
    ck_assert_msg(row != NULL, "%s", error.text);
    return row;
}

static inline void rows_close(struct rows *rows)
{
    free(rows->line);
    fclose(rows->file);
}

/* Are the ids those of the JSON list? */
static inline bool same_ids(const struct token_buffer *ids, const json_t *expected)
{
    if (ids->count != json_array_size(expected)) {
        return false;
    }
    for (size_t i = 0; i < ids->count; i++) {
        if (ids->ids[i] != json_integer_value(json_array_get(expected, i))) {
            return false;
        }
    }
    return true;
}

/* A fresh folder; the caller removes it with scratch_remove. */
static inline void scratch_create(char path[64])
{
    snprintf(path, 64, "/tmp/foresight_tokenizer_XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(path));
}

static inline void scratch_write(const char *dir, const char *name, const char *data, size_t bytes)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(data, 1, bytes, file), bytes);
    ck_assert_int_eq(fclose(file), 0);
}

static inline void scratch_text(const char *dir, const char *name, const char *text)
{
    scratch_write(dir, name, text, strlen(text));
}

static inline void scratch_copy(const char *dir, const char *from, const char *name)
{
    char path[4096];
    char *data = calloc(1, 1 << 20);
    snprintf(path, sizeof(path), "%s/%s", from, name);
    FILE *file = fopen(path, "rb");
    ck_assert_ptr_nonnull(file);
    size_t bytes = fread(data, 1, 1 << 20, file);
    fclose(file);
    scratch_write(dir, name, data, bytes);
    free(data);
}

static inline void scratch_remove(const char *dir)
{
    static const char *const names[] = {"tokenizer.json",         "tokenizer_config.json",
                                        "chat_template.jinja",    "special_tokens_map.json",
                                        "generation_config.json", "vectors.jsonl"};
    char path[4096];
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
        (void)unlink(path);
    }
    ck_assert_int_eq(rmdir(dir), 0);
}

#endif
