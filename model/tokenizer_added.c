/* Added tokens: which there are, and where they stand in a text. Matching is leftmost-longest, as
 * the reference does it, with its treatment of neighbouring spaces and words. Immutable after load.
 * Invariant: ids are those that the reference would assign; a file that says otherwise is refused.
 */
#include "model/tokenizer_json.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

void tok_added_fini(struct tok_added *added)
{
    for (size_t i = 0; i < added->count; i++) {
        free((char *)added->tokens[i].content.data);
        free((char *)added->tokens[i].display.data);
    }
    free(added->tokens);
    free(added->by_id);
    free(added->contents.nodes);
    free(added->raw.nodes);
    free(added->normalized.nodes);
    tok_regex_destroy(added->word);
    memset(added, 0, sizeof(*added));
}

const struct tok_added_token *tok_added_by_id(const struct tok_added *added, int32_t id)
{
    if (id < 0 || id >= added->limit || added->by_id[id] < 0) {
        return NULL;
    }
    return &added->tokens[added->by_id[id]];
}

/* ---- trie ---- */

static void trie_init(struct tok_trie *trie)
{
    memset(trie->root, 0xFF, sizeof(trie->root));
}

static rl_status trie_node(struct tok_trie *trie, unsigned char byte, int32_t sibling, int32_t *out)
{
    if (trie->count == trie->capacity) {
        size_t capacity = trie->capacity * 2 + 64;
        struct tok_trie_node *nodes = realloc(trie->nodes, capacity * sizeof(*nodes));
        if (nodes == NULL) {
            return rl_fail(RL_NO_MEMORY, "tokenizer: no memory for added tokens");
        }
        trie->nodes = nodes;
        trie->capacity = capacity;
    }
    *out = (int32_t)trie->count++;
    trie->nodes[*out] = (struct tok_trie_node){byte, -1, sibling, -1};
    return RL_OK;
}

static int32_t trie_step(const struct tok_trie *trie, int32_t node, unsigned char byte)
{
    int32_t at = trie->nodes[node].child;
    while (at >= 0 && trie->nodes[at].byte != byte) {
        at = trie->nodes[at].sibling;
    }
    return at;
}

const struct tok_added_token *tok_added_by_content(const struct tok_added *added,
                                                   struct tok_view content)
{
    const struct tok_trie *trie = &added->contents;
    int32_t node = content.bytes > 0 ? trie->root[(unsigned char)content.data[0]] : -1;
    for (size_t i = 1; i < content.bytes && node >= 0; i++) {
        node = trie_step(trie, node, (unsigned char)content.data[i]);
    }
    return node >= 0 && trie->nodes[node].token >= 0 ? &added->tokens[trie->nodes[node].token]
                                                     : NULL;
}

static rl_status trie_add(struct tok_trie *trie, const char *data, size_t bytes, int32_t token)
{
    int32_t node = trie->root[(unsigned char)data[0]];
    if (node < 0) {
        RL_TRY(trie_node(trie, (unsigned char)data[0], -1, &node));
        trie->root[(unsigned char)data[0]] = node;
    }
    for (size_t i = 1; i < bytes; i++) {
        int32_t next = trie_step(trie, node, (unsigned char)data[i]);
        if (next < 0) {
            RL_TRY(trie_node(trie, (unsigned char)data[i], trie->nodes[node].child, &next));
            trie->nodes[node].child = next;
        }
        node = next;
    }
    if (trie->nodes[node].token < 0) { /* of equal patterns the first one wins */
        trie->nodes[node].token = token;
    }
    return RL_OK;
}

/* ---- loading ---- */

static rl_status token_read(const json_t *json, const struct tok_where *where,
                            struct tok_added_token *out)
{
    struct tok_view content;
    struct tok_where here = tok_where_child(where, "id");
    if (!json_is_object(json)) {
        return rl_fail(RL_INVALID, "%s: %s: expected an object", where->file, where->key);
    }
    RL_TRY(tok_json_known(json, where, "id content single_word lstrip rstrip normalized special"));
    RL_TRY(tok_json_id(json_object_get(json, "id"), &here, &out->id));
    RL_TRY(tok_json_bool(json, where, "single_word", -1, &out->single_word));
    RL_TRY(tok_json_bool(json, where, "lstrip", -1, &out->lstrip));
    RL_TRY(tok_json_bool(json, where, "rstrip", -1, &out->rstrip));
    RL_TRY(tok_json_bool(json, where, "normalized", -1, &out->normalized));
    RL_TRY(tok_json_bool(json, where, "special", -1, &out->special));
    RL_TRY(tok_json_string(json, where, "content", &content));
    if (content.bytes == 0) {
        return rl_fail(RL_INVALID, "%s: %s.content: is empty", where->file, where->key);
    }
    return tok_view_copy(content, &out->content);
}

/* The id that the reference gives a token: that of the vocabulary, else the next free one. */
static int32_t assigned_id(const struct tok_added *added, const struct tok_vocab *vocab,
                           struct tok_view content)
{
    int32_t id = tok_vocab_find(vocab, content.data, content.bytes);
    if (id >= 0) {
        return id;
    }
    int32_t size = (int32_t)vocab->count;
    return added->limit > size ? added->limit : size;
}

static rl_status token_check(const struct tok_added *added, const struct tok_added_token *token,
                             const struct tok_vocab *vocab, const struct tok_where *where)
{
    int32_t expected = assigned_id(added, vocab, token->content);
    if (tok_added_by_content(added, token->content) != NULL) {
        return rl_fail(RL_INVALID, "%s: %s: \"%.80s\" is there twice", where->file, where->key,
                       token->content.data);
    }
    if ((size_t)token->id < added->room && added->by_id[token->id] >= 0) {
        return rl_fail(RL_INVALID, "%s: %s: id %d belongs to \"%.80s\" already", where->file,
                       where->key, token->id, added->tokens[added->by_id[token->id]].content.data);
    }
    if (token->id != expected) {
        return rl_fail(RL_INVALID,
                       "%s: %s: \"%.80s\" has id %d, but would be given %d (its id in the "
                       "vocabulary, or the first free one)",
                       where->file, where->key, token->content.data, token->id, expected);
    }
    return RL_OK;
}

/* Check a token, whose content it takes over, and enter it. */
static rl_status token_enter(struct tok_added *added, struct tok_added_token *token,
                             const struct tok_vocab *vocab, const struct tok_where *where)
{
    rl_status status = token_check(added, token, vocab, where);
    if (status == RL_OK) {
        status = trie_add(&added->contents, token->content.data, token->content.bytes,
                          (int32_t)added->count);
    }
    if (status != RL_OK) {
        free((char *)token->content.data);
        return status;
    }
    added->by_id[token->id] = (int32_t)added->count;
    added->tokens[added->count++] = *token;
    added->limit = token->id >= added->limit ? token->id + 1 : added->limit;
    return RL_OK;
}

static rl_status tokens_read(struct tok_added *added, const json_t *array,
                             const struct tok_where *where, const struct tok_vocab *vocab)
{
    size_t count = json_array_size(array);
    added->tokens = calloc(count + 1, sizeof(*added->tokens));
    /* no token can be given an id beyond these */
    added->room = (size_t)vocab->limit + vocab->count + count + 1;
    added->by_id = malloc(added->room * sizeof(*added->by_id));
    if (added->tokens == NULL || added->by_id == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for %zu added tokens", where->file, count);
    }
    memset(added->by_id, 0xFF, added->room * sizeof(*added->by_id));
    for (size_t i = 0; i < count; i++) {
        struct tok_where here = tok_where_item(where, i);
        struct tok_added_token token = {0};
        RL_TRY(token_read(json_array_get(array, i), &here, &token));
        RL_TRY(token_enter(added, &token, vocab, &here));
    }
    return RL_OK;
}

static rl_status pattern_add(struct tok_added *added, size_t index, const struct tok_where *where,
                             const struct tok_normalizer *normalizer)
{
    struct tok_added_token *token = &added->tokens[index];
    struct tok_trie *trie = token->normalized ? &added->normalized : &added->raw;
    struct tok_text pattern = {0};
    struct tok_text scratch = {0};
    rl_status status;
    RL_TRY_GOTO(tok_text_append(&pattern, token->content.data, token->content.bytes, 0), status,
                done);
    if (token->normalized) {
        RL_TRY_GOTO(tok_normalizer_run(normalizer, &pattern, &scratch), status, done);
    }
    if (pattern.bytes == 0) {
        struct tok_where here = tok_where_item(where, index);
        status = rl_fail(RL_UNSUPPORTED, "%s: %s: \"%.80s\" normalizes to nothing", here.file,
                         here.key, token->content.data);
        goto done;
    }
    trie->has_special = trie->has_special || token->special;
    RL_TRY_GOTO(tok_view_copy((struct tok_view){pattern.data, pattern.bytes}, &token->display),
                status, done);
    status = trie_add(trie, pattern.data, pattern.bytes, (int32_t)index);
done:
    tok_text_fini(&pattern);
    tok_text_fini(&scratch);
    return status;
}

rl_status tok_added_init(struct tok_added *added, const json_t *array,
                         const struct tok_where *where, const struct tok_vocab *vocab,
                         const struct tok_normalizer *normalizer)
{
    static const char word_pattern[] = "[[:word:]\\x{200C}\\x{200D}]";
    bool single_word = false;
    trie_init(&added->contents);
    trie_init(&added->raw);
    trie_init(&added->normalized);
    RL_TRY(tokens_read(added, array, where, vocab));
    for (int special = 1; special >= 0; special--) { /* special tokens come first */
        for (size_t i = 0; i < added->count; i++) {
            single_word = single_word || added->tokens[i].single_word;
            if (added->tokens[i].special == (special == 1)) {
                RL_TRY(pattern_add(added, i, where, normalizer));
            }
        }
    }
    for (size_t i = 0; i < added->count; i++) {
        const struct tok_added_token *same = tok_added_by_content(added, added->tokens[i].display);
        added->tokens[i].skipped = same != NULL && same->special;
    }
    if (!single_word) {
        return RL_OK;
    }
    return tok_regex_create(word_pattern, strlen(word_pattern), where->file, &added->word);
}

/* ---- matching ---- */

static bool is_plain(const struct tok_added_scan *scan, size_t start, size_t end)
{
    if (scan->plain) {
        return true;
    }
    for (size_t i = start; scan->text->marked && i < end; i++) {
        if ((scan->text->mark[scan->start + i] & TOK_MARK_PLAIN) != 0) {
            return true;
        }
    }
    return false;
}

/* Longest token at `start` that may be matched there, -1 if there is none; *end is its end. */
static int32_t longest_at(const struct tok_added_scan *scan, size_t start, size_t *end)
{
    const char *data = scan->text->data + scan->start;
    int32_t found = -1;
    size_t at = start;
    int32_t node = scan->trie->root[(unsigned char)data[at]];
    while (node >= 0) {
        int32_t token = scan->trie->nodes[node].token;
        at++;
        if (token >= 0 && (!scan->added->tokens[token].special || !is_plain(scan, start, at))) {
            found = token;
            *end = at;
        }
        node = at < scan->bytes ? trie_step(scan->trie, node, (unsigned char)data[at]) : -1;
    }
    return found;
}

/* Is the character at (or, before, the one that ends at) `at` a word character? */
static rl_status word_beside(const struct tok_added_scan *scan, size_t at, bool before, bool *out)
{
    const char *data = scan->text->data + scan->start;
    struct tok_matcher matcher;
    struct tok_match match;
    size_t start = at;
    size_t length;
    *out = false;
    if (before ? at == 0 : at == scan->bytes) {
        return RL_OK;
    }
    while (before && ((unsigned char)data[--start] & 0xC0) == 0x80) {
    }
    (void)tok_utf8_get(data + start, &length);
    RL_TRY(tok_matcher_init(&matcher, scan->added->word, (struct tok_view){data + start, length}));
    rl_status status = tok_matcher_next(&matcher, &match);
    tok_matcher_fini(&matcher);
    if (status != RL_OK && status != RL_END) {
        return status;
    }
    *out = status == RL_OK;
    return RL_OK;
}

static size_t spaces_before(const struct tok_added_scan *scan, size_t at)
{
    const char *data = scan->text->data + scan->start;
    while (at > 0) {
        size_t last = at;
        size_t length;
        while (((unsigned char)data[--last] & 0xC0) == 0x80) {
        }
        if (!tok_unicode_space(tok_utf8_get(data + last, &length))) {
            break;
        }
        at = last;
    }
    return at;
}

static size_t spaces_behind(const struct tok_added_scan *scan, size_t at)
{
    const char *data = scan->text->data + scan->start;
    while (at < scan->bytes) {
        size_t length;
        if (!tok_unicode_space(tok_utf8_get(data + at, &length))) {
            break;
        }
        at += length;
    }
    return at;
}

/* Emit one match: text before it, then the token. *done is the end of what was emitted. */
static rl_status match_emit(const struct tok_added_scan *scan, const struct tok_added_token *token,
                            struct tok_match match, size_t *done, struct tok_pieces *out)
{
    if (token->single_word) {
        bool left;
        bool right;
        RL_TRY(word_beside(scan, match.start, true, &left));
        RL_TRY(word_beside(scan, match.end, false, &right));
        if (left || right) {
            return RL_OK;
        }
    }
    if (token->lstrip) {
        size_t start = spaces_before(scan, match.start);
        match.start = start > *done ? start : *done;
    }
    if (token->rstrip) {
        match.end = spaces_behind(scan, match.end);
    }
    if (match.start >= match.end) { /* its spaces went to the token before */
        return RL_OK;
    }
    if (*done < match.start) {
        RL_TRY(tok_pieces_add(out, scan->start + *done, match.start - *done, -1));
    }
    *done = match.end;
    return tok_pieces_add(out, 0, 0, token->id);
}

rl_status tok_added_split(const struct tok_added_scan *scan, struct tok_pieces *out)
{
    const char *data = scan->text->data + scan->start;
    size_t done = 0;
    size_t at = 0;
    while (at < scan->bytes && scan->trie->count > 0) {
        size_t end = at;
        if (scan->trie->root[(unsigned char)data[at]] < 0) {
            at++;
            continue;
        }
        int32_t token = longest_at(scan, at, &end);
        if (token < 0) {
            at++;
            continue;
        }
        RL_TRY(
            match_emit(scan, &scan->added->tokens[token], (struct tok_match){at, end}, &done, out));
        at = end;
    }
    if (done < scan->bytes) {
        return tok_pieces_add(out, scan->start + done, scan->bytes - done, -1);
    }
    return RL_OK;
}
