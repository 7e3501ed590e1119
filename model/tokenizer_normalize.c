/* Normalizers: a tree of steps that rewrite a text in place, marks carried along with the
 * characters that they came from. Invariant: a step either rewrites the whole text or fails. */
#include "model/tokenizer_json.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum normalizer_kind {
    NORMALIZER_SEQUENCE,
    NORMALIZER_NFC,
    NORMALIZER_NFD,
    NORMALIZER_NFKC,
    NORMALIZER_NFKD,
    NORMALIZER_LOWERCASE,
    NORMALIZER_STRIP,
    NORMALIZER_STRIP_ACCENTS,
    NORMALIZER_REPLACE,
    NORMALIZER_PREPEND,
    NORMALIZER_NMT,
    NORMALIZER_BERT,
    NORMALIZER_BYTE_LEVEL
};

struct tok_normalizer {
    enum normalizer_kind kind;
    struct tok_view content; /* replace, prepend */
    struct tok_regex *regex; /* replace */
    bool left;               /* strip */
    bool right;
    bool clean; /* bert */
    bool chinese;
    bool accents;
    bool lowercase;
    struct tok_normalizer **children; /* sequence */
    size_t child_count;
};

static const struct tok_kind normalizer_kinds[] = {
    {"Sequence", NORMALIZER_SEQUENCE, "type normalizers"},
    {"NFC", NORMALIZER_NFC, "type"},
    {"NFD", NORMALIZER_NFD, "type"},
    {"NFKC", NORMALIZER_NFKC, "type"},
    {"NFKD", NORMALIZER_NFKD, "type"},
    {"Lowercase", NORMALIZER_LOWERCASE, "type"},
    {"Strip", NORMALIZER_STRIP, "type strip_left strip_right"},
    {"StripAccents", NORMALIZER_STRIP_ACCENTS, "type"},
    {"Replace", NORMALIZER_REPLACE, "type pattern content"},
    {"Prepend", NORMALIZER_PREPEND, "type prepend"},
    {"Nmt", NORMALIZER_NMT, "type"},
    {"BertNormalizer", NORMALIZER_BERT,
     "type clean_text handle_chinese_chars strip_accents lowercase"},
    {"ByteLevel", NORMALIZER_BYTE_LEVEL, "type"},
};
static const struct tok_kind_list normalizer_list = {
    "normalizer", normalizer_kinds, sizeof(normalizer_kinds) / sizeof(normalizer_kinds[0])};

void tok_normalizer_destroy(struct tok_normalizer *normalizer)
{
    if (normalizer == NULL) {
        return;
    }
    for (size_t i = 0; i < normalizer->child_count; i++) {
        tok_normalizer_destroy(normalizer->children[i]);
    }
    free(normalizer->children);
    free((char *)normalizer->content.data);
    tok_regex_destroy(normalizer->regex);
    free(normalizer);
}

static rl_status sequence_create(struct tok_normalizer *self, const json_t *json,
                                 const struct tok_where *where, int depth)
{
    json_t *list;
    RL_TRY(tok_json_array(json, where, "normalizers", &list));
    struct tok_where here = tok_where_child(where, "normalizers");
    self->children = calloc(json_array_size(list) + 1, sizeof(struct tok_normalizer *));
    if (self->children == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory", where->file);
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        struct tok_where item = tok_where_item(&here, i);
        struct tok_normalizer *child = NULL;
        RL_TRY(tok_normalizer_create(json_array_get(list, i), &item, depth + 1, &child));
        if (child == NULL) {
            return rl_fail(RL_INVALID, "%s: %s: null in a sequence", item.file, item.key);
        }
        self->children[self->child_count++] = child;
    }
    return RL_OK;
}

static rl_status bert_create(struct tok_normalizer *self, const json_t *json,
                             const struct tok_where *where)
{
    const json_t *accents = json_object_get(json, "strip_accents");
    RL_TRY(tok_json_bool(json, where, "clean_text", -1, &self->clean));
    RL_TRY(tok_json_bool(json, where, "handle_chinese_chars", -1, &self->chinese));
    RL_TRY(tok_json_bool(json, where, "lowercase", -1, &self->lowercase));
    self->accents = self->lowercase;
    if (accents != NULL && !json_is_null(accents)) {
        RL_TRY(tok_json_bool(json, where, "strip_accents", -1, &self->accents));
    }
    return RL_OK;
}

static rl_status normalizer_members(struct tok_normalizer *self, const json_t *json,
                                    const struct tok_where *where, int depth)
{
    struct tok_view text;
    switch (self->kind) {
    case NORMALIZER_SEQUENCE:
        return sequence_create(self, json, where, depth);
    case NORMALIZER_STRIP:
        RL_TRY(tok_json_bool(json, where, "strip_left", -1, &self->left));
        return tok_json_bool(json, where, "strip_right", -1, &self->right);
    case NORMALIZER_REPLACE:
        RL_TRY(tok_json_pattern(json, where, &self->regex));
        RL_TRY(tok_json_string(json, where, "content", &text));
        return tok_view_copy(text, &self->content);
    case NORMALIZER_PREPEND:
        RL_TRY(tok_json_string(json, where, "prepend", &text));
        return tok_view_copy(text, &self->content);
    case NORMALIZER_BERT:
        return bert_create(self, json, where);
    default:
        return RL_OK;
    }
}

rl_status tok_normalizer_create(const json_t *json, const struct tok_where *where, int depth,
                                struct tok_normalizer **out)
{
    int kind = 0;
    if (json == NULL || json_is_null(json)) {
        *out = NULL;
        return RL_OK;
    }
    RL_TRY(tok_json_kind(json, where, depth, &normalizer_list, &kind));
    struct tok_normalizer *self = calloc(1, sizeof(*self));
    if (self == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory", where->file);
    }
    self->kind = (enum normalizer_kind)kind;
    rl_status status = normalizer_members(self, json, where, depth);
    if (status != RL_OK) {
        tok_normalizer_destroy(self);
        return status;
    }
    *out = self;
    return RL_OK;
}

/* ---- running ---- */

/* A step that maps one character to any number of them. */
typedef rl_status (*character_fn)(uint32_t code, unsigned char mark, struct tok_text *out);

static rl_status map_characters(struct tok_text *text, struct tok_text *scratch, character_fn map)
{
    scratch->bytes = 0;
    for (size_t at = 0; at < text->bytes;) {
        size_t length;
        uint32_t code = tok_utf8_get(text->data + at, &length);
        RL_TRY(map(code, tok_text_mark(text, at), scratch));
        at += length;
    }
    tok_text_swap(text, scratch);
    return RL_OK;
}

static rl_status map_lower(uint32_t code, unsigned char mark, struct tok_text *out)
{
    uint32_t lower[3];
    int count = tok_unicode_lower(code, lower);
    for (int i = 0; i < count; i++) {
        RL_TRY(tok_text_put(out, lower[i], mark));
    }
    return RL_OK;
}

static rl_status map_strip_marks(uint32_t code, unsigned char mark, struct tok_text *out)
{
    bool accent = (tok_unicode_major(code, 'M') && !tok_unicode_late(code, TOK_LATE_ACCENT)) ||
                  code == 0x1CF2 || code == 0x1CF3; /* were marks in older versions */
    return accent ? RL_OK : tok_text_put(out, code, mark);
}

static rl_status map_strip_nonspacing(uint32_t code, unsigned char mark, struct tok_text *out)
{
    bool accent = (tok_unicode_category(code) == UTF8PROC_CATEGORY_MN &&
                   !tok_unicode_late(code, TOK_LATE_BERT_ACCENT)) ||
                  code == 0x1734;
    return accent ? RL_OK : tok_text_put(out, code, mark);
}

static rl_status map_nmt(uint32_t code, unsigned char mark, struct tok_text *out)
{
    bool dropped = (code >= 1 && code <= 8) || code == 0x0B || (code >= 0x0E && code <= 0x1F) ||
                   code == 0x7F || code == 0x8F || code == 0x9F;
    bool blank = code == 9 || code == 10 || code == 12 || code == 13 || code == 0x1680 ||
                 (code >= 0x200B && code <= 0x200F) || code == 0x2028 || code == 0x2029 ||
                 code == 0x2581 || code == 0xFEFF || code == 0xFFFD;
    return dropped ? RL_OK : tok_text_put(out, blank ? ' ' : code, mark);
}

static rl_status map_clean(uint32_t code, unsigned char mark, struct tok_text *out)
{
    bool space = tok_unicode_space(code);
    int category = tok_unicode_category(code);
    bool control = !(code == '\t' || code == '\n' || code == '\r') &&
                   (category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CF ||
                    category == UTF8PROC_CATEGORY_CO) &&
                   !tok_unicode_late(code, TOK_LATE_CONTROL);
    if (code == 0 || code == 0xFFFD || control) {
        return RL_OK;
    }
    return tok_text_put(out, space ? ' ' : code, mark);
}

static bool is_chinese(uint32_t code)
{
    return (code >= 0x4E00 && code <= 0x9FFF) || (code >= 0x3400 && code <= 0x4DBF) ||
           (code >= 0x20000 && code <= 0x2A6DF) || (code >= 0x2A700 && code <= 0x2B73F) ||
           (code >= 0x2B740 && code <= 0x2B81F) || (code >= 0x2B920 && code <= 0x2CEAF) ||
           (code >= 0xF900 && code <= 0xFAFF) || (code >= 0x2F800 && code <= 0x2FA1F);
}

static rl_status map_chinese(uint32_t code, unsigned char mark, struct tok_text *out)
{
    if (!is_chinese(code)) {
        return tok_text_put(out, code, mark);
    }
    RL_TRY(tok_text_put(out, ' ', mark));
    RL_TRY(tok_text_put(out, code, mark));
    return tok_text_put(out, ' ', mark);
}

static rl_status run_bert(const struct tok_normalizer *self, struct tok_text *text,
                          struct tok_text *scratch)
{
    if (self->clean) {
        RL_TRY(map_characters(text, scratch, map_clean));
    }
    if (self->chinese) {
        RL_TRY(map_characters(text, scratch, map_chinese));
    }
    if (self->accents) {
        RL_TRY(tok_form_run(TOK_FORM_NFD, text, scratch));
        RL_TRY(map_characters(text, scratch, map_strip_nonspacing));
    }
    return self->lowercase ? map_characters(text, scratch, map_lower) : RL_OK;
}

static rl_status run_strip(const struct tok_normalizer *self, struct tok_text *text,
                           struct tok_text *scratch)
{
    size_t start = 0;
    size_t end = text->bytes;
    size_t length;
    while (self->left && start < end &&
           tok_unicode_space(tok_utf8_get(text->data + start, &length))) {
        start += length;
    }
    while (self->right && end > start) {
        size_t last = end - 1;
        while (last > start && ((unsigned char)text->data[last] & 0xC0) == 0x80) {
            last--;
        }
        if (!tok_unicode_space(tok_utf8_get(text->data + last, &length))) {
            break;
        }
        end = last;
    }
    scratch->bytes = 0;
    RL_TRY(tok_text_copy(scratch, text, start, end - start));
    tok_text_swap(text, scratch);
    return RL_OK;
}

static rl_status replace_all(const struct tok_normalizer *self, struct tok_matcher *matcher,
                             const struct tok_text *text, struct tok_text *out)
{
    struct tok_match match;
    size_t done = 0;
    rl_status status;
    while ((status = tok_matcher_next(matcher, &match)) == RL_OK) {
        RL_TRY(tok_text_copy(out, text, done, match.start - done));
        unsigned char mark = tok_text_mark(text, match.end > 0 ? match.end - 1 : 0);
        for (size_t i = match.start; text->marked && i < match.end; i++) {
            mark |= text->mark[i] & TOK_MARK_PLAIN;
        }
        RL_TRY(tok_text_append(out, self->content.data, self->content.bytes, mark));
        done = match.end;
    }
    if (status != RL_END) {
        return status;
    }
    return tok_text_copy(out, text, done, text->bytes - done);
}

static rl_status run_replace(const struct tok_normalizer *self, struct tok_text *text,
                             struct tok_text *scratch)
{
    struct tok_matcher matcher;
    if (text->bytes == 0) {
        return RL_OK;
    }
    scratch->bytes = 0;
    RL_TRY(tok_matcher_init(&matcher, self->regex, (struct tok_view){text->data, text->bytes}));
    rl_status status = replace_all(self, &matcher, text, scratch);
    tok_matcher_fini(&matcher);
    if (status == RL_OK) {
        tok_text_swap(text, scratch);
    }
    return status;
}

static rl_status run_prepend(const struct tok_normalizer *self, struct tok_text *text,
                             struct tok_text *scratch)
{
    if (text->bytes == 0) {
        return RL_OK;
    }
    scratch->bytes = 0;
    RL_TRY(tok_text_append(scratch, self->content.data, self->content.bytes,
                           tok_text_mark(text, 0) & TOK_MARK_ORIGIN));
    RL_TRY(tok_text_copy(scratch, text, 0, text->bytes));
    tok_text_swap(text, scratch);
    return RL_OK;
}

static rl_status run_byte_level(struct tok_text *text, struct tok_text *scratch)
{
    scratch->bytes = 0;
    RL_TRY(tok_bytes_spell(scratch, text, 0, text->bytes));
    tok_text_swap(text, scratch);
    return RL_OK;
}

static rl_status run_sequence(const struct tok_normalizer *self, struct tok_text *text,
                              struct tok_text *scratch)
{
    for (size_t i = 0; i < self->child_count; i++) {
        RL_TRY(tok_normalizer_run(self->children[i], text, scratch));
    }
    return RL_OK;
}

rl_status tok_normalizer_run(const struct tok_normalizer *normalizer, struct tok_text *text,
                             struct tok_text *scratch)
{
    if (normalizer == NULL) {
        return RL_OK;
    }
    switch (normalizer->kind) {
    case NORMALIZER_SEQUENCE:
        return run_sequence(normalizer, text, scratch);
    case NORMALIZER_NFC:
        return tok_form_run(TOK_FORM_NFC, text, scratch);
    case NORMALIZER_NFD:
        return tok_form_run(TOK_FORM_NFD, text, scratch);
    case NORMALIZER_NFKC:
        return tok_form_run(TOK_FORM_NFKC, text, scratch);
    case NORMALIZER_NFKD:
        return tok_form_run(TOK_FORM_NFKD, text, scratch);
    case NORMALIZER_LOWERCASE:
        return map_characters(text, scratch, map_lower);
    case NORMALIZER_STRIP:
        return run_strip(normalizer, text, scratch);
    case NORMALIZER_STRIP_ACCENTS:
        return map_characters(text, scratch, map_strip_marks);
    case NORMALIZER_REPLACE:
        return run_replace(normalizer, text, scratch);
    case NORMALIZER_PREPEND:
        return run_prepend(normalizer, text, scratch);
    case NORMALIZER_NMT:
        return map_characters(text, scratch, map_nmt);
    case NORMALIZER_BERT:
        return run_bert(normalizer, text, scratch);
    case NORMALIZER_BYTE_LEVEL:
        return run_byte_level(text, scratch);
    }
    return rl_fail(RL_INTERNAL, "tokenizer: unknown normalizer");
}
