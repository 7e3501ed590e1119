/* The prompts of a data set: see prompts.h. Owns the rows' texts and ids, one block a prompt;
 * prompt_row knows the fields, prompt_encoder the templates. Invariant: prompts keep the order of
 * the files, so that a prompt's number means the same in every run over the same files. */
#include "rollout/prompts.h"

#include "core/log.h"
#include "core/text.h"
#include "rollout/prompt_encoder.h"
#include "rollout/prompt_row.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { LINE_LIMIT_BYTES = 16 << 20, CHUNK_BYTES = 1 << 16, BAD_ROWS_LOGGED = 5 };

struct prompts {
    struct prompt *items; /* [count]; each one's block is at `tokens` */
    uint64_t count;
    uint64_t capacity;
    uint64_t dropped_long;
    uint64_t dropped_bad;
};

/* What stays the same while files are read. */
struct loader {
    const struct rl_config *config;
    struct prompt_encoder *encoder;
    struct prompts *prompts;
    struct token_buffer ids;
    uint64_t rows;
};

/* --- lines of a file
 * ------------------------------------------------------------------------------- */

struct line_reader {
    FILE *file;
    const char *path;
    int64_t line; /* number of the line last read */
    char *chunk;  /* [CHUNK_BYTES] */
    size_t at;    /* in chunk */
    size_t filled;
    struct rl_text text;
    bool too_long; /* the line last read passed the limit; its text is not kept */
};

static void reader_close(struct line_reader *reader)
{
    rl_text_fini(&reader->text);
    free(reader->chunk);
    if (reader->file != NULL) {
        fclose(reader->file);
    }
}

static rl_status reader_open(const char *path, struct line_reader *reader)
{
    struct stat info;
    *reader = (struct line_reader){.path = path};
    rl_text_init(&reader->text, LINE_LIMIT_BYTES);
    reader->file = fopen(path, "rb");
    if (reader->file == NULL) {
        return rl_fail(RL_IO, "data file %s: %s", path, strerror(errno));
    }
    if (fstat(fileno(reader->file), &info) == 0 && S_ISDIR(info.st_mode)) {
        reader_close(reader);
        return rl_fail(RL_IO, "data file %s is a folder; expected a JSONL file", path);
    }
    reader->chunk = malloc(CHUNK_BYTES);
    if (reader->chunk == NULL) {
        reader_close(reader);
        return rl_fail(RL_NO_MEMORY, "buffer for %s", path);
    }
    return RL_OK;
}

/* Next bytes of the file up to a newline or the chunk's end; *ended: the line or file ended. */
static rl_status reader_piece(struct line_reader *reader, bool *line_ended, bool *file_ended)
{
    if (reader->at == reader->filled) {
        reader->filled = fread(reader->chunk, 1, CHUNK_BYTES, reader->file);
        reader->at = 0;
        if (reader->filled == 0) {
            *file_ended = true;
            return ferror(reader->file)
                       ? rl_fail(RL_IO, "data file %s: %s", reader->path, strerror(errno))
                       : RL_OK;
        }
    }
    const char *from = reader->chunk + reader->at;
    const char *newline = memchr(from, '\n', reader->filled - reader->at);
    size_t bytes = newline != NULL ? (size_t)(newline - from) : reader->filled - reader->at;
    reader->at += bytes + (newline != NULL);
    *line_ended = newline != NULL;
    if (reader->too_long || reader->text.bytes + bytes > LINE_LIMIT_BYTES) {
        reader->too_long = true;
        return RL_OK;
    }
    return rl_text_append(&reader->text, from, bytes);
}

/* Read one line into reader->text; RL_END after the last one. */
static rl_status reader_next(struct line_reader *reader)
{
    bool line_ended = false;
    bool file_ended = false;
    size_t start = reader->at;
    bool had_bytes = start < reader->filled;
    rl_text_clear(&reader->text);
    reader->too_long = false;
    while (!line_ended && !file_ended) {
        RL_TRY(reader_piece(reader, &line_ended, &file_ended));
        had_bytes = had_bytes || !file_ended;
    }
    if (!had_bytes) {
        return RL_END;
    }
    reader->line++;
    return RL_OK;
}

/* --- one prompt
 * ---------------------------------------------------------------------------------------- */

static rl_status reserve_one(struct prompts *prompts)
{
    if (prompts->count < prompts->capacity) {
        return RL_OK;
    }
    uint64_t capacity = prompts->capacity == 0 ? 256 : prompts->capacity * 2;
    struct prompt *grown = realloc(prompts->items, capacity * sizeof(*grown));
    if (grown == NULL) {
        return rl_fail(RL_NO_MEMORY, "%llu prompts", (unsigned long long)capacity);
    }
    prompts->items = grown;
    prompts->capacity = capacity;
    return RL_OK;
}

/* Copy a text to *at, advance it. */
static const char *put_text(char **at, const char *text, size_t bytes)
{
    char *copy = *at;
    memcpy(copy, text, bytes);
    copy[bytes] = '\0';
    *at += bytes + 1;
    return copy;
}

static rl_status keep_prompt(struct loader *loader, const struct prompt_row *row,
                             const struct rl_text *line, int64_t line_number)
{
    struct prompts *prompts = loader->prompts;
    RL_TRY(reserve_one(prompts));
    size_t ids_bytes = loader->ids.count * sizeof(int32_t);
    size_t text = strlen(row->text);
    size_t gold = strlen(row->ground_truth);
    size_t source = strlen(row->data_source);
    char *block = malloc(ids_bytes + text + gold + source + line->bytes + 4);
    if (block == NULL) {
        return rl_fail(RL_NO_MEMORY, "prompt of %zu tokens", loader->ids.count);
    }
    memcpy(block, loader->ids.ids, ids_bytes);
    char *at = block + ids_bytes;
    struct prompt *prompt = &prompts->items[prompts->count];
    prompt->tokens = (const int32_t *)(const void *)block;
    prompt->token_count = (uint32_t)loader->ids.count;
    prompt->line = line_number;
    prompt->text = put_text(&at, row->text, text);
    prompt->ground_truth = put_text(&at, row->ground_truth, gold);
    prompt->data_source = put_text(&at, row->data_source, source);
    prompt->row_json = put_text(&at, rl_text_str(line), line->bytes);
    prompts->count++;
    return RL_OK;
}

/* A row that cannot be used: an error, or counted and left out. */
static rl_status refuse_row(struct loader *loader, const struct line_reader *reader,
                            const char *problem)
{
    if (loader->config->data.bad_rows == CONFIG_BAD_ROWS_ERROR) {
        return rl_fail(RL_INVALID, "%s:%lld: %s", reader->path, (long long)reader->line, problem);
    }
    loader->prompts->dropped_bad++;
    if (loader->prompts->dropped_bad <= BAD_ROWS_LOGGED) {
        rl_log(RL_LOG_WARN, "%s:%lld: row skipped: %s", reader->path, (long long)reader->line,
               problem);
    }
    return RL_OK;
}

static rl_status encode_row(struct loader *loader, const struct line_reader *reader,
                            const struct prompt_row *row)
{
    if (row->messages != NULL && !prompt_encoder_takes_messages(loader->encoder)) {
        return refuse_row(loader, reader,
                          "the prompt is a list of messages but there is no chat template; set "
                          "data.chat_template or data.prompt_template");
    }
    rl_status status = prompt_encoder_run(loader->encoder, row, &loader->ids);
    if (rl_status_scope(status) == RL_SCOPE_ITEM) {
        char problem[PROMPT_PROBLEM_BYTES];
        snprintf(problem, sizeof(problem), "%s", rl_log_last_error());
        return refuse_row(loader, reader, problem);
    }
    RL_TRY(status);
    if (loader->ids.count == 0) {
        return refuse_row(loader, reader, "the prompt has no tokens");
    }
    if (loader->ids.count > (size_t)loader->config->data.max_prompt_length) {
        loader->prompts->dropped_long++;
        return RL_OK;
    }
    return keep_prompt(loader, row, &reader->text, reader->line);
}

static rl_status load_row(struct loader *loader, const struct line_reader *reader)
{
    char problem[PROMPT_PROBLEM_BYTES] = "";
    struct prompt_row row = {0};
    loader->rows++;
    if (reader->too_long) {
        snprintf(problem, sizeof(problem), "the line is longer than %d bytes", LINE_LIMIT_BYTES);
        return refuse_row(loader, reader, problem);
    }
    rl_status status =
        prompt_row_parse(rl_text_str(&reader->text), reader->text.bytes, &row, problem);
    if (status == RL_INVALID) {
        return refuse_row(loader, reader, problem);
    }
    if (status != RL_OK) {
        return rl_fail(status, "%s:%lld: %s", reader->path, (long long)reader->line, problem);
    }
    status = encode_row(loader, reader, &row);
    prompt_row_fini(&row);
    return status;
}

/* --- files
 * ------------------------------------------------------------------------------------------------
 */

static bool blank(const struct rl_text *text)
{
    return strspn(rl_text_str(text), " \t\r") == text->bytes;
}

/* A byte order mark at the start of a file is no part of its first row. */
static void drop_mark(struct line_reader *reader)
{
    struct rl_text *text = &reader->text;
    if (reader->line == 1 && text->bytes >= 3 && memcmp(text->data, "\xef\xbb\xbf", 3) == 0) {
        memmove(text->data, text->data + 3, text->bytes - 2);
        text->bytes -= 3;
    }
}

static rl_status load_file(struct loader *loader, const char *path)
{
    struct line_reader reader;
    RL_TRY(reader_open(path, &reader));
    rl_status status;
    while ((status = reader_next(&reader)) == RL_OK) {
        drop_mark(&reader);
        if (!reader.too_long && blank(&reader.text)) {
            continue;
        }
        RL_TRY_GOTO(load_row(loader, &reader), status, done);
    }
    status = status == RL_END ? RL_OK : status;
done:
    reader_close(&reader);
    return status;
}

/* Each path of the comma-separated list, outer spaces removed. */
static rl_status load_files(struct loader *loader, const char *paths)
{
    const char *at = paths;
    for (;;) {
        at += strspn(at, " \t");
        size_t bytes = strcspn(at, ",");
        size_t trimmed = bytes;
        while (trimmed > 0 && (at[trimmed - 1] == ' ' || at[trimmed - 1] == '\t')) {
            trimmed--;
        }
        char *path = strndup(at, trimmed);
        if (path == NULL) {
            return rl_fail(RL_NO_MEMORY, "path of a data file");
        }
        rl_status status =
            trimmed > 0
                ? load_file(loader, path)
                : rl_fail(RL_INVALID, "data.train or data.eval \"%s\": a path is empty", paths);
        free(path);
        RL_TRY(status);
        if (at[bytes] == '\0') {
            return RL_OK;
        }
        at += bytes + 1;
    }
}

static rl_status check_result(const struct loader *loader, const char *paths)
{
    const struct prompts *prompts = loader->prompts;
    if (loader->rows == 0) {
        return rl_fail(RL_INVALID, "data files %s: no rows", paths);
    }
    if (prompts->count == 0) {
        return rl_fail(RL_INVALID,
                       "data files %s: none of %llu rows is usable (%llu longer than "
                       "data.max_prompt_length = %lld tokens, %llu bad)",
                       paths, (unsigned long long)loader->rows,
                       (unsigned long long)prompts->dropped_long,
                       (long long)loader->config->data.max_prompt_length,
                       (unsigned long long)prompts->dropped_bad);
    }
    if (prompts->dropped_long + prompts->dropped_bad > 0) {
        rl_log(RL_LOG_WARN,
               "data files %s: %llu prompts, %llu over-long and %llu bad rows left out", paths,
               (unsigned long long)prompts->count, (unsigned long long)prompts->dropped_long,
               (unsigned long long)prompts->dropped_bad);
    }
    return RL_OK;
}

rl_status prompts_load(const char *paths, const struct rl_config *config,
                       const struct tokenizer *tokenizer, const struct chat_template *chat,
                       struct prompts **out)
{
    struct loader loader = {.config = config};
    rl_status status;
    RL_TRY(prompt_encoder_create(config, tokenizer, chat, &loader.encoder));
    loader.prompts = calloc(1, sizeof(*loader.prompts));
    if (loader.prompts == NULL) {
        status = rl_fail(RL_NO_MEMORY, "prompts of %s", paths);
        goto done;
    }
    RL_TRY_GOTO(load_files(&loader, paths), status, done);
    RL_TRY_GOTO(check_result(&loader, paths), status, done);
    *out = loader.prompts;
    loader.prompts = NULL;
done:
    token_buffer_fini(&loader.ids);
    prompts_destroy(loader.prompts);
    prompt_encoder_destroy(loader.encoder);
    return status;
}

void prompts_destroy(struct prompts *prompts)
{
    if (prompts == NULL) {
        return;
    }
    for (uint64_t i = 0; i < prompts->count; i++) {
        free((void *)(uintptr_t)prompts->items[i].tokens);
    }
    free(prompts->items);
    free(prompts);
}

uint64_t prompts_count(const struct prompts *prompts)
{
    return prompts->count;
}

uint64_t prompts_dropped(const struct prompts *prompts)
{
    return prompts->dropped_long + prompts->dropped_bad;
}

const struct prompt *prompts_at(const struct prompts *prompts, uint64_t index)
{
    return &prompts->items[index];
}

/* One round of a 64-bit mixing function (the finaliser of SplitMix64). */
static uint64_t mix(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value) + UINT64_C(0x9e3779b97f4a7c15);
    hash = (hash ^ (hash >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    hash = (hash ^ (hash >> 27)) * UINT64_C(0x94d049bb133111eb);
    return hash ^ (hash >> 31);
}

uint64_t prompts_hash(const struct prompts *prompts)
{
    uint64_t hash = mix(0, prompts->count);
    for (uint64_t i = 0; i < prompts->count; i++) {
        const struct prompt *prompt = &prompts->items[i];
        hash = mix(hash, prompt->token_count);
        for (uint32_t j = 0; j < prompt->token_count; j++) {
            hash = mix(hash, (uint32_t)prompt->tokens[j]);
        }
    }
    return hash;
}
