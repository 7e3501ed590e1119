/* The tokenizer as a whole: loading tokenizer.json, encoding, decoding. The parts are in
 * model/tokenizer_*.c. Invariant: immutable after load; each call has its own working space. */
#include "model/tokenizer.h"

#include "core/log.h"
#include "model/folder.h"
#include "model/tokenizer_internal.h"

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

/* ---- encoding ---- */

struct encode_job {
    const struct tokenizer *tokenizer;
    bool plain;              /* no special tokens anywhere */
    struct tok_text input;   /* valid UTF-8; owned */
    struct tok_text segment; /* text between two added tokens, being normalized */
    struct tok_pieces raw;   /* the input cut at tokens found before normalization */
    struct tok_pieces cut;   /* a segment cut at tokens found after it */
    struct tok_work work;
    struct tok_bpe_work bpe;
};

static void job_fini(struct encode_job *job)
{
    tok_text_fini(&job->input);
    tok_text_fini(&job->segment);
    tok_text_fini(&job->work.text);
    tok_text_fini(&job->work.text_next);
    tok_text_fini(&job->work.scratch);
    free(job->raw.items);
    free(job->cut.items);
    free(job->work.pieces.items);
    free(job->work.pieces_next.items);
    tok_bpe_work_fini(&job->bpe);
}

static void job_mark_all(struct encode_job *job)
{
    job->input.marked = true;
    job->segment.marked = true;
    job->work.text.marked = true;
    job->work.text_next.marked = true;
    job->work.scratch.marked = true;
}

/* Copy the text in; marks are kept only where something asks for them. */
static rl_status job_input(struct encode_job *job, const char *text, size_t bytes,
                           const unsigned char *mask)
{
    if (mask != NULL || job->tokenizer->needs_origin) {
        job_mark_all(job);
    }
    if (mask == NULL) {
        RL_TRY(tok_text_append_lossy(&job->input, text, bytes));
    } else {
        size_t good = tok_utf8_valid(text, bytes);
        if (good != bytes) {
            return rl_fail(RL_INVALID, "tokenizer: text is not UTF-8 at byte %zu", good);
        }
        RL_TRY(tok_text_append(&job->input, text, bytes, 0));
        for (size_t i = 0; i < bytes; i++) {
            job->input.mark[i] = mask[i] != 0 ? TOK_MARK_PLAIN : 0;
        }
    }
    if (job->input.marked && job->input.bytes > 0) {
        size_t first;
        (void)tok_utf8_get(job->input.data, &first);
        for (size_t i = 0; i < first; i++) {
            job->input.mark[i] |= TOK_MARK_ORIGIN;
        }
    }
    return RL_OK;
}

/* Normalize one stretch of text and cut it at the tokens that are matched after that. */
static rl_status job_segment(struct encode_job *job, const struct tok_piece *piece)
{
    const struct tok_added *added = &job->tokenizer->added;
    struct tok_work *work = &job->work;
    job->segment.bytes = 0;
    RL_TRY(tok_text_copy(&job->segment, &job->input, piece->start, piece->bytes));
    RL_TRY(tok_normalizer_run(job->tokenizer->normalizer, &job->segment, &work->scratch));
    struct tok_added_scan scan = {.added = added,
                                  .trie = &added->normalized,
                                  .text = &job->segment,
                                  .bytes = job->segment.bytes,
                                  .plain = job->plain};
    job->cut.count = 0;
    RL_TRY(tok_added_split(&scan, &job->cut));
    size_t base = work->text.bytes;
    RL_TRY(tok_text_copy(&work->text, &job->segment, 0, job->segment.bytes));
    for (size_t i = 0; i < job->cut.count; i++) {
        const struct tok_piece *item = &job->cut.items[i];
        RL_TRY(tok_pieces_add(&work->pieces, base + item->start, item->bytes, item->token));
    }
    return RL_OK;
}

static rl_status job_pieces(struct encode_job *job)
{
    const struct tok_added *added = &job->tokenizer->added;
    struct tok_added_scan scan = {.added = added,
                                  .trie = &added->raw,
                                  .text = &job->input,
                                  .bytes = job->input.bytes,
                                  .plain = job->plain};
    RL_TRY(tok_added_split(&scan, &job->raw));
    for (size_t i = 0; i < job->raw.count; i++) {
        const struct tok_piece *piece = &job->raw.items[i];
        if (piece->token >= 0) {
            RL_TRY(tok_pieces_add(&job->work.pieces, 0, 0, piece->token));
        } else {
            RL_TRY(job_segment(job, piece));
        }
    }
    return tok_pretokenizer_run(job->tokenizer->pretokenizer, &job->work);
}

static rl_status job_ids(struct encode_job *job, struct token_buffer *out)
{
    const struct tok_work *work = &job->work;
    for (size_t i = 0; i < work->pieces.count; i++) {
        const struct tok_piece *piece = &work->pieces.items[i];
        if (piece->token >= 0) {
            RL_TRY(tok_buffer_push(out, piece->token));
        } else {
            struct tok_view word = {work->text.data + piece->start, piece->bytes};
            RL_TRY(tok_bpe_encode(&job->tokenizer->bpe, word, &job->bpe, out));
        }
    }
    return RL_OK;
}

static rl_status job_run(struct encode_job *job, bool add_special, struct token_buffer *out)
{
    size_t from = out->count;
    RL_TRY(job_pieces(job));
    RL_TRY(job_ids(job, out));
    return tok_post_run(&job->tokenizer->post, add_special, from, out);
}

rl_status tokenizer_encode_masked(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                                  const unsigned char *plain, unsigned flags,
                                  struct token_buffer *out)
{
    struct encode_job job = {.tokenizer = tokenizer, .plain = (flags & TOKENIZER_PLAIN_TEXT) != 0};
    size_t before = out->count;
    rl_status status = job_input(&job, text, bytes, plain);
    if (status == RL_OK) {
        status = job_run(&job, (flags & TOKENIZER_ADD_SPECIAL) != 0, out);
    }
    if (status != RL_OK) {
        out->count = before;
    }
    job_fini(&job);
    return status;
}

rl_status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                           unsigned flags, struct token_buffer *out)
{
    return tokenizer_encode_masked(tokenizer, text, bytes, NULL, flags, out);
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
