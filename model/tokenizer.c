/* The tokenizer as a whole: loading tokenizer.json, decoding, queries. Encoding is in
 * model/tokenizer_encode.c, the parts in model/tokenizer_*.c. Invariant: immutable after load. */
#include "model/tokenizer.h"

#include "core/log.h"
#include "model/folder.h"
#include "model/tokenizer_json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void token_buffer_fini(struct token_buffer *buffer)
{
    free(buffer->ids);
    buffer->ids = NULL;
    buffer->count = 0;
    buffer->capacity = 0;
}

/* ---- loading ---- */

void tokenizer_destroy(struct tokenizer *tokenizer)
{
    if (tokenizer == NULL) {
        return;
    }
    for (int i = 0; i < 4; i++) {
        free(tokenizer->special_text[i]);
    }
    free(tokenizer->chat_template);
    tok_idle_destroy(tokenizer->idle);
    tok_decoder_destroy(tokenizer->decoder);
    tok_post_fini(&tokenizer->post);
    tok_added_fini(&tokenizer->added);
    tok_bpe_fini(&tokenizer->bpe);
    tok_pretokenizer_destroy(tokenizer->pretokenizer);
    tok_normalizer_destroy(tokenizer->normalizer);
    free(tokenizer->dir);
    free(tokenizer);
}

/* Cutting or filling every text to a length is for classifiers; here it would be silent damage. */
static rl_status refuse_set(const json_t *json, const char *path, const char *name)
{
    const json_t *value = json_object_get(json, name);
    if (value == NULL || json_is_null(value)) {
        return RL_OK;
    }
    return rl_fail(RL_UNSUPPORTED, "%s: %s: expected null: texts are encoded whole", path, name);
}

static rl_status check_top(const json_t *json, const struct tok_where *where)
{
    struct tok_view version;
    if (!json_is_object(json)) {
        return rl_fail(RL_INVALID, "%s: expected an object", where->file);
    }
    RL_TRY(tok_json_known(json, where,
                          "version truncation padding added_tokens normalizer pre_tokenizer "
                          "post_processor decoder model"));
    RL_TRY(tok_json_optional_string(json, where, "version", &version));
    if (version.data != NULL && strcmp(version.data, "1.0") != 0) {
        return rl_fail(RL_UNSUPPORTED, "%s: version \"%.20s\", expected \"1.0\"", where->file,
                       version.data);
    }
    RL_TRY(refuse_set(json, where->file, "truncation"));
    return refuse_set(json, where->file, "padding");
}

static rl_status added_load(struct tokenizer *tokenizer, const json_t *json,
                            const struct tok_where *where)
{
    struct tok_where here = tok_where_child(where, "added_tokens");
    json_t *list = json_object_get(json, "added_tokens");
    if (list != NULL && !json_is_array(list)) {
        return rl_fail(RL_INVALID, "%s: added_tokens: expected an array", where->file);
    }
    return tok_added_init(&tokenizer->added, list, &here, &tokenizer->bpe.vocab,
                          tokenizer->normalizer);
}

static rl_status parts_load(struct tokenizer *tokenizer, const json_t *json, const char *path)
{
    struct tok_where top = {.file = path};
    struct tok_where here;
    RL_TRY(check_top(json, &top));
    here = tok_where_child(&top, "normalizer");
    RL_TRY(tok_normalizer_create(json_object_get(json, "normalizer"), &here, 0,
                                 &tokenizer->normalizer));
    here = tok_where_child(&top, "pre_tokenizer");
    RL_TRY(tok_pretokenizer_create(json_object_get(json, "pre_tokenizer"), &here, 0,
                                   &tokenizer->pretokenizer));
    here = tok_where_child(&top, "post_processor");
    RL_TRY(tok_post_init(&tokenizer->post, json_object_get(json, "post_processor"), &here));
    here = tok_where_child(&top, "decoder");
    RL_TRY(tok_decoder_create(json_object_get(json, "decoder"), &here, 0, &tokenizer->decoder));
    here = tok_where_child(&top, "model");
    RL_TRY(tok_bpe_init(&tokenizer->bpe, json_object_get(json, "model"), &here));
    tokenizer->needs_origin = tok_pretokenizer_needs_origin(tokenizer->pretokenizer);
    RL_TRY(tok_idle_create(&tokenizer->idle));
    return added_load(tokenizer, json, &top);
}

static rl_status tokenizer_fill(struct tokenizer *tokenizer, const char *dir)
{
    char path[MODEL_PATH_BYTES];
    json_t *json;
    tokenizer->dir = strdup(dir);
    if (tokenizer->dir == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory", dir);
    }
    RL_TRY(model_folder_path(dir, "tokenizer.json", path));
    rl_status status = tok_json_load(path, JSON_REJECT_DUPLICATES, &json);
    if (status == RL_NOT_FOUND) {
        return rl_fail(RL_IO, "%s: no such file", path);
    }
    RL_TRY(status);
    status = parts_load(tokenizer, json, path);
    json_decref(json);
    RL_TRY(status);
    return tok_config_load(tokenizer);
}

rl_status tokenizer_load(const char *dir, struct tokenizer **out)
{
    struct tokenizer *tokenizer = calloc(1, sizeof(*tokenizer));
    if (tokenizer == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for a tokenizer", dir);
    }
    tokenizer->bos_id = -1;
    tokenizer->eos_id = -1;
    tokenizer->pad_id = -1;
    rl_status status = tokenizer_fill(tokenizer, dir);
    if (status != RL_OK) {
        tokenizer_destroy(tokenizer);
        return status;
    }
    *out = tokenizer;
    return RL_OK;
}

/* ---- decoding ---- */

static rl_status strings_collect(const struct tokenizer *tokenizer, const int32_t *ids,
                                 size_t count, bool skip_special, struct tok_strings *strings)
{
    for (size_t i = 0; i < count; i++) {
        const struct tok_added_token *added = tok_added_by_id(&tokenizer->added, ids[i]);
        struct tok_view spelling;
        if (added != NULL) {
            spelling = added->display;
        } else if (!tok_vocab_spelling(&tokenizer->bpe.vocab, ids[i], &spelling)) {
            continue;
        }
        if (added != NULL && added->skipped && skip_special) {
            continue;
        }
        if (tokenizer->decoder == NULL && strings->count > 0) {
            RL_TRY(tok_text_append(&strings->text, " ", 1, 0));
        }
        RL_TRY(tok_text_append(&strings->text, spelling.data, spelling.bytes, 0));
        RL_TRY(tok_strings_end(strings));
    }
    return RL_OK;
}

rl_status tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t count,
                           bool skip_special, char **text, size_t *bytes)
{
    struct tok_strings strings = {0};
    struct tok_strings scratch = {0};
    rl_status status = strings_collect(tokenizer, ids, count, skip_special, &strings);
    if (status == RL_OK && tokenizer->decoder != NULL) {
        status = tok_decoder_run(tokenizer->decoder, &strings, &scratch);
    }
    if (status == RL_OK) {
        status = tok_text_append(&strings.text, "", 1, 0);
    }
    if (status == RL_OK) {
        *text = strings.text.data;
        *bytes = strings.text.bytes - 1;
        strings.text = (struct tok_text){0};
    }
    tok_strings_fini(&strings);
    tok_strings_fini(&scratch);
    return status;
}

/* ---- queries ---- */

int32_t tokenizer_vocab_count(const struct tokenizer *tokenizer)
{
    int32_t model = tokenizer->bpe.vocab.limit;
    return model > tokenizer->added.limit ? model : tokenizer->added.limit;
}

int32_t tokenizer_token_id(const struct tokenizer *tokenizer, const char *spelling)
{
    struct tok_view view = {spelling, strlen(spelling)};
    const struct tok_added_token *added = tok_added_by_content(&tokenizer->added, view);
    return added != NULL ? added->id : tok_vocab_find(&tokenizer->bpe.vocab, view.data, view.bytes);
}

bool tokenizer_is_special(const struct tokenizer *tokenizer, int32_t id)
{
    const struct tok_added_token *added = tok_added_by_id(&tokenizer->added, id);
    return added != NULL && added->special;
}

const char *tokenizer_chat_template(const struct tokenizer *tokenizer)
{
    return tokenizer->chat_template;
}

int32_t tokenizer_eos_id(const struct tokenizer *tokenizer)
{
    return tokenizer->eos_id;
}

int32_t tokenizer_bos_id(const struct tokenizer *tokenizer)
{
    return tokenizer->bos_id;
}

int32_t tokenizer_pad_id(const struct tokenizer *tokenizer)
{
    return tokenizer->pad_id;
}
