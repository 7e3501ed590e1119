/* Post-processors: what is put around the ids of a text (BOS, EOS, templates), reduced at load to
 * one template. Immutable after load. */
#include "model/tokenizer_json.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

enum post_kind { POST_SEQUENCE, POST_BYTE_LEVEL, POST_TEMPLATE, POST_CLS_SEP };

static const struct tok_kind post_kinds[] = {
    {"Sequence", POST_SEQUENCE, "type processors"},
    {"ByteLevel", POST_BYTE_LEVEL, "type add_prefix_space trim_offsets use_regex"},
    {"TemplateProcessing", POST_TEMPLATE, "type single pair special_tokens"},
    {"BertProcessing", POST_CLS_SEP, "type sep cls trim_offsets add_prefix_space"},
    {"RobertaProcessing", POST_CLS_SEP, "type sep cls trim_offsets add_prefix_space"},
};
static const struct tok_kind_list post_list = {"post-processor", post_kinds,
                                               sizeof(post_kinds) / sizeof(post_kinds[0])};

void tok_post_fini(struct tok_post *post)
{
    token_buffer_fini(&post->single);
    post->active = false;
}

static rl_status special_ids(struct tok_post *post, const json_t *special_tokens,
                             struct tok_view name, const struct tok_where *where)
{
    const json_t *entry = json_object_get(special_tokens, name.data);
    const json_t *ids = json_object_get(entry, "ids");
    size_t index;
    json_t *value;
    if (!json_is_array(ids)) {
        return rl_fail(RL_INVALID, "%s: %s: special token \"%.60s\" has no ids in special_tokens",
                       where->file, where->key, name.data);
    }
    json_array_foreach((json_t *)ids, index, value)
    {
        int32_t id;
        RL_TRY(tok_json_id(value, where, &id));
        RL_TRY(tok_buffer_push(&post->single, id));
    }
    return RL_OK;
}

/* {"Sequence": {"id": "A", ...}} or {"SpecialToken": {"id": NAME, ...}} */
static rl_status template_piece(struct tok_post *post, const json_t *piece,
                                const json_t *special_tokens, const struct tok_where *where)
{
    const json_t *sequence = json_object_get(piece, "Sequence");
    const json_t *special = json_object_get(piece, "SpecialToken");
    struct tok_view name;
    if (json_is_object(sequence)) {
        RL_TRY(tok_json_string(sequence, where, "id", &name));
        if (strcmp(name.data, "A") != 0) {
            return rl_fail(RL_UNSUPPORTED, "%s: %s: sequence \"%.20s\" in the template of one text",
                           where->file, where->key, name.data);
        }
        return tok_buffer_push(&post->single, TOK_POST_SEQUENCE);
    }
    if (!json_is_object(special)) {
        return rl_fail(RL_INVALID,
                       "%s: %s: expected {\"Sequence\": ...} or {\"SpecialToken\": ...}",
                       where->file, where->key);
    }
    RL_TRY(tok_json_string(special, where, "id", &name));
    return special_ids(post, special_tokens, name, where);
}

static rl_status template_init(struct tok_post *post, const json_t *json,
                               const struct tok_where *where)
{
    json_t *single;
    const json_t *special_tokens = json_object_get(json, "special_tokens");
    RL_TRY(tok_json_array(json, where, "single", &single));
    struct tok_where here = tok_where_child(where, "single");
    for (size_t i = 0; i < json_array_size(single); i++) {
        struct tok_where item = tok_where_item(&here, i);
        RL_TRY(template_piece(post, json_array_get(single, i), special_tokens, &item));
    }
    return RL_OK;
}

/* ["<s>", 0] */
static rl_status pair_id(const json_t *json, const struct tok_where *where, const char *name,
                         struct tok_post *post)
{
    const json_t *pair = json_object_get(json, name);
    struct tok_where here = tok_where_child(where, name);
    int32_t id;
    if (json_array_size(pair) != 2 || !json_is_string(json_array_get(pair, 0))) {
        return rl_fail(RL_INVALID, "%s: %s: expected [\"token\", id]", here.file, here.key);
    }
    RL_TRY(tok_json_id(json_array_get(pair, 1), &here, &id));
    return tok_buffer_push(&post->single, id);
}

static rl_status cls_sep_init(struct tok_post *post, const json_t *json,
                              const struct tok_where *where)
{
    RL_TRY(pair_id(json, where, "cls", post));
    RL_TRY(tok_buffer_push(&post->single, TOK_POST_SEQUENCE));
    return pair_id(json, where, "sep", post);
}

static rl_status post_add(struct tok_post *post, const json_t *json, const struct tok_where *where,
                          int depth);

static rl_status sequence_add(struct tok_post *post, const json_t *json,
                              const struct tok_where *where, int depth)
{
    json_t *list;
    RL_TRY(tok_json_array(json, where, "processors", &list));
    struct tok_where here = tok_where_child(where, "processors");
    for (size_t i = 0; i < json_array_size(list); i++) {
        struct tok_where item = tok_where_item(&here, i);
        RL_TRY(post_add(post, json_array_get(list, i), &item, depth + 1));
    }
    return RL_OK;
}

static rl_status post_add(struct tok_post *post, const json_t *json, const struct tok_where *where,
                          int depth)
{
    int kind = 0;
    RL_TRY(tok_json_kind(json, where, depth, &post_list, &kind));
    if (kind == POST_SEQUENCE) {
        return sequence_add(post, json, where, depth);
    }
    if (kind == POST_BYTE_LEVEL) { /* moves offsets only, never ids */
        return RL_OK;
    }
    if (post->active) {
        return rl_fail(RL_UNSUPPORTED, "%s: %s: a second post-processor that adds tokens",
                       where->file, where->key);
    }
    post->active = true;
    return kind == POST_TEMPLATE ? template_init(post, json, where)
                                 : cls_sep_init(post, json, where);
}

rl_status tok_post_init(struct tok_post *post, const json_t *json, const struct tok_where *where)
{
    if (json == NULL || json_is_null(json)) {
        return RL_OK;
    }
    return post_add(post, json, where, 0);
}

rl_status tok_post_run(const struct tok_post *post, bool add_special, size_t from,
                       struct token_buffer *out)
{
    struct token_buffer own = {0};
    rl_status status = RL_OK;
    if (!post->active) {
        return RL_OK;
    }
    for (size_t i = from; i < out->count && status == RL_OK; i++) {
        status = tok_buffer_push(&own, out->ids[i]);
    }
    if (status == RL_OK) {
        out->count = from;
    }
    for (size_t i = 0; i < post->single.count && status == RL_OK; i++) {
        int32_t id = post->single.ids[i];
        if (id != TOK_POST_SEQUENCE) {
            status = add_special ? tok_buffer_push(out, id) : RL_OK;
            continue;
        }
        for (size_t k = 0; k < own.count && status == RL_OK; k++) {
            status = tok_buffer_push(out, own.ids[k]);
        }
    }
    token_buffer_fini(&own);
    return status;
}
