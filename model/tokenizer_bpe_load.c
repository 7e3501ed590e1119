/* The BPE model's members read from tokenizer.json: vocabulary, merges in both spellings, options.
 * Immutable after load, except the atomics that remember which tokens are whole words. Invariant:
 * every merge refers to tokens of the vocabulary. */
#include "model/tokenizer_json.h"

#include "core/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void tok_bpe_fini(struct tok_bpe *bpe)
{
    tok_vocab_fini(&bpe->vocab);
    free(bpe->merges);
    free((void *)bpe->whole);
    free((char *)bpe->unk.data);
    free((char *)bpe->prefix.data);
    free((char *)bpe->suffix.data);
    memset(bpe, 0, sizeof(*bpe));
}

static uint64_t pair_slot(uint64_t pair, uint64_t mask)
{
    pair *= 0x9E3779B97F4A7C15ULL;
    return (pair ^ pair >> 32) & mask;
}

/* The last of two equal merges wins, as in the reference. */
static void merge_insert(struct tok_bpe *bpe, uint64_t pair, uint32_t rank, int32_t id)
{
    uint64_t slot = pair_slot(pair, bpe->merge_mask);
    while (bpe->merges[slot].pair != UINT64_MAX && bpe->merges[slot].pair != pair) {
        slot = (slot + 1) & bpe->merge_mask;
    }
    bpe->merges[slot] = (struct tok_merge){pair, rank, id};
}

struct merge_source {
    struct tok_view left;
    struct tok_view right;
};

static rl_status bad_merge(const struct tok_where *where, size_t index, const char *what)
{
    return rl_fail(RL_INVALID, "%s: %s[%zu]: %s", where->file, where->key, index, what);
}

static rl_status merge_string(const json_t *value, const struct tok_where *where, size_t index,
                              struct merge_source *out)
{
    const char *text = json_string_value(value);
    size_t bytes = json_string_length(value);
    const char *space = memchr(text, ' ', bytes);
    size_t left = space != NULL ? (size_t)(space - text) : bytes;
    if (space == NULL || memchr(space + 1, ' ', bytes - left - 1) != NULL) {
        return bad_merge(where, index, "expected two tokens with one space between them");
    }
    out->left = (struct tok_view){text, left};
    out->right = (struct tok_view){space + 1, bytes - left - 1};
    return RL_OK;
}

static rl_status merge_pair(const json_t *value, const struct tok_where *where, size_t index,
                            struct merge_source *out)
{
    const json_t *left = json_array_get(value, 0);
    const json_t *right = json_array_get(value, 1);
    if (json_array_size(value) != 2 || !json_is_string(left) || !json_is_string(right)) {
        return bad_merge(where, index, "expected [\"left\", \"right\"]");
    }
    out->left = (struct tok_view){json_string_value(left), json_string_length(left)};
    out->right = (struct tok_view){json_string_value(right), json_string_length(right)};
    return RL_OK;
}

static rl_status merge_unknown(const struct tok_where *where, size_t index, struct tok_view token)
{
    return rl_fail(RL_INVALID, "%s: %s[%zu]: token \"%.*s\" is not in model.vocab", where->file,
                   where->key, index, (int)(token.bytes > 80 ? 80 : token.bytes), token.data);
}

static rl_status merge_resolve(struct tok_bpe *bpe, const struct tok_where *where, size_t index,
                               uint32_t rank, const struct merge_source *source)
{
    char buffer[512];
    const struct tok_view *left = &source->left;
    const struct tok_view *right = &source->right;
    int32_t a = tok_vocab_find(&bpe->vocab, left->data, left->bytes);
    int32_t b = tok_vocab_find(&bpe->vocab, right->data, right->bytes);
    if (a < 0 || b < 0) {
        return merge_unknown(where, index, a < 0 ? *left : *right);
    }
    size_t skip = bpe->prefix.bytes;
    if (right->bytes < skip) {
        return bad_merge(where, index, "right token is shorter than continuing_subword_prefix");
    }
    size_t bytes = left->bytes + right->bytes - skip;
    char *joined = bytes <= sizeof(buffer) ? buffer : malloc(bytes);
    if (joined == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for a merge", where->file);
    }
    memcpy(joined, left->data, left->bytes);
    memcpy(joined + left->bytes, right->data + skip, right->bytes - skip);
    int32_t id = tok_vocab_find(&bpe->vocab, joined, bytes);
    rl_status status =
        id >= 0 ? RL_OK : merge_unknown(where, index, (struct tok_view){joined, bytes});
    if (joined != buffer) {
        free(joined);
    }
    RL_TRY(status);
    merge_insert(bpe, (uint64_t)(uint32_t)a << 32 | (uint32_t)b, rank, id);
    return RL_OK;
}

static bool starts_marked(struct tok_view text)
{
    return text.bytes >= TOK_SPACE_MARK_BYTES &&
           memcmp(text.data, TOK_SPACE_MARK, TOK_SPACE_MARK_BYTES) == 0;
}

static bool all_marks(struct tok_view text)
{
    while (starts_marked(text)) {
        text.data += TOK_SPACE_MARK_BYTES;
        text.bytes -= TOK_SPACE_MARK_BYTES;
    }
    return text.bytes == 0;
}

/* Where nothing is ever joined over the start of a space mark, a text merges part by part. Every
 * character must leave a symbol that keeps its neighbours apart, hence the conditions. */
static bool marks_cut(const struct tok_bpe *bpe)
{
    int32_t mark = tok_vocab_find(&bpe->vocab, TOK_SPACE_MARK, TOK_SPACE_MARK_BYTES);
    bool plain = bpe->prefix.bytes == 0 && bpe->suffix.bytes == 0 && !bpe->ignore_merges;
    return plain && !bpe->mark_joined && mark >= 0 && bpe->unk_id >= 0 && !all_marks(bpe->unk);
}

static rl_status merges_read(struct tok_bpe *bpe, const json_t *list, const struct tok_where *where)
{
    size_t index;
    json_t *value;
    uint32_t rank = 0;
    bool strings = json_is_string(json_array_get(list, 0));
    json_array_foreach((json_t *)list, index, value)
    {
        struct merge_source source = {{NULL, 0}, {NULL, 0}};
        if (json_is_string(value) && strings) {
            if (strncmp(json_string_value(value), "#version", 8) == 0) {
                continue;
            }
            RL_TRY(merge_string(value, where, index, &source));
        } else if (json_is_array(value) && !strings) {
            RL_TRY(merge_pair(value, where, index, &source));
        } else {
            return bad_merge(where, index,
                             "expected \"left right\" or [\"left\", \"right\"], "
                             "one kind throughout");
        }
        RL_TRY(merge_resolve(bpe, where, index, rank, &source));
        bpe->mark_joined =
            bpe->mark_joined || (starts_marked(source.right) && !all_marks(source.left));
        rank++;
    }
    return RL_OK;
}

static rl_status merges_init(struct tok_bpe *bpe, const json_t *json, const struct tok_where *where)
{
    json_t *list;
    RL_TRY(tok_json_array(json, where, "merges", &list));
    struct tok_where here = tok_where_child(where, "merges");
    uint64_t slots = 16;
    while (slots < json_array_size(list) * 2) {
        slots *= 2;
    }
    bpe->merge_mask = slots - 1;
    bpe->merges = malloc(slots * sizeof(*bpe->merges));
    if (bpe->merges == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for %zu merges", where->file,
                       json_array_size(list));
    }
    memset(bpe->merges, 0xFF, slots * sizeof(*bpe->merges));
    return merges_read(bpe, list, &here);
}

static rl_status options_init(struct tok_bpe *bpe, const json_t *json,
                              const struct tok_where *where)
{
    struct tok_view text;
    const json_t *dropout = json_object_get(json, "dropout");
    if (dropout != NULL && !json_is_null(dropout) &&
        !(json_is_number(dropout) && json_number_value(dropout) == 0.0)) {
        return rl_fail(RL_UNSUPPORTED, "%s: %s.dropout: expected null, encoding must be exact",
                       where->file, where->key);
    }
    RL_TRY(tok_json_bool(json, where, "fuse_unk", 0, &bpe->fuse_unk));
    RL_TRY(tok_json_bool(json, where, "byte_fallback", 0, &bpe->byte_fallback));
    RL_TRY(tok_json_bool(json, where, "ignore_merges", 0, &bpe->ignore_merges));
    RL_TRY(tok_json_optional_string(json, where, "continuing_subword_prefix", &text));
    RL_TRY(tok_view_copy(text, &bpe->prefix));
    RL_TRY(tok_json_optional_string(json, where, "end_of_word_suffix", &text));
    RL_TRY(tok_view_copy(text, &bpe->suffix));
    RL_TRY(tok_json_optional_string(json, where, "unk_token", &text));
    return text.data == NULL ? RL_OK : tok_view_copy(text, &bpe->unk);
}

static rl_status tables_init(struct tok_bpe *bpe, const struct tok_where *where)
{
    char spelling[8];
    for (uint32_t code = 0; code < sizeof(bpe->direct) / sizeof(bpe->direct[0]); code++) {
        bpe->direct[code] = tok_vocab_find(&bpe->vocab, spelling, tok_utf8_put(code, spelling));
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        snprintf(spelling, sizeof(spelling), "<0x%02X>", byte);
        bpe->byte_ids[byte] = tok_vocab_find(&bpe->vocab, spelling, 6);
    }
    bpe->unk_id = -1;
    if (bpe->unk.data != NULL) {
        bpe->unk_id = tok_vocab_find(&bpe->vocab, bpe->unk.data, bpe->unk.bytes);
    }
    bpe->whole = calloc((size_t)bpe->vocab.limit + 1, sizeof(*bpe->whole));
    if (bpe->whole == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory", where->file);
    }
    return RL_OK;
}

rl_status tok_bpe_init(struct tok_bpe *bpe, const json_t *json, const struct tok_where *where)
{
    struct tok_view type;
    if (!json_is_object(json)) {
        return rl_fail(RL_INVALID, "%s: model: expected an object", where->file);
    }
    RL_TRY(tok_json_optional_string(json, where, "type", &type));
    if (type.data != NULL && strcmp(type.data, "BPE") != 0) {
        return rl_fail(RL_UNSUPPORTED, "%s: model.type \"%.60s\" is not supported, only BPE is",
                       where->file, type.data);
    }
    if (type.data == NULL && json_object_get(json, "merges") == NULL) {
        return rl_fail(RL_UNSUPPORTED, "%s: model has neither a type nor merges", where->file);
    }
    RL_TRY(tok_json_known(json, where,
                          "type dropout unk_token continuing_subword_prefix end_of_word_suffix "
                          "fuse_unk byte_fallback ignore_merges vocab merges"));
    RL_TRY(options_init(bpe, json, where));
    const json_t *vocab = json_object_get(json, "vocab");
    struct tok_where here = tok_where_child(where, "vocab");
    if (!json_is_object(vocab)) {
        return rl_fail(RL_INVALID, "%s: model.vocab: expected an object of token ids", where->file);
    }
    RL_TRY(tok_vocab_init(&bpe->vocab, vocab, &here));
    RL_TRY(tables_init(bpe, where));
    RL_TRY(merges_init(bpe, json, where));
    bpe->mark_cuts = marks_cut(bpe);
    return RL_OK;
}
