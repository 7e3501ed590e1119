/* Decoders: from the spellings of tokens to text, a tree of steps over a list of strings. Immutable
 * after load. Invariant: each step writes a whole new list. */
#include "model/tokenizer_json.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

enum decoder_kind {
    DECODER_SEQUENCE,
    DECODER_BYTE_LEVEL,
    DECODER_METASPACE,
    DECODER_BYTE_FALLBACK,
    DECODER_FUSE,
    DECODER_STRIP,
    DECODER_REPLACE,
    DECODER_BPE,
    DECODER_WORD_PIECE
};

struct tok_decoder {
    enum decoder_kind kind;
    struct tok_view content; /* replace: content, strip and metaspace: character, BPE: suffix,
                                word piece: prefix */
    struct tok_regex *regex; /* replace */
    size_t start;            /* strip: how many at most */
    size_t stop;
    bool prefix_dropped; /* metaspace: leading replacement was added by the encoder */
    bool cleanup;        /* word piece */
    struct tok_decoder **children;
    size_t child_count;
};

static const struct tok_kind decoder_kinds[] = {
    {"Sequence", DECODER_SEQUENCE, "type decoders"},
    {"ByteLevel", DECODER_BYTE_LEVEL, "type add_prefix_space trim_offsets use_regex"},
    {"Metaspace", DECODER_METASPACE,
     "type replacement add_prefix_space prepend_scheme split str_rep"},
    {"ByteFallback", DECODER_BYTE_FALLBACK, "type"},
    {"Fuse", DECODER_FUSE, "type"},
    {"Strip", DECODER_STRIP, "type content start stop"},
    {"Replace", DECODER_REPLACE, "type pattern content"},
    {"BPEDecoder", DECODER_BPE, "type suffix"},
    {"WordPiece", DECODER_WORD_PIECE, "type prefix cleanup"},
};
static const struct tok_kind_list decoder_list = {"decoder", decoder_kinds,
                                                  sizeof(decoder_kinds) / sizeof(decoder_kinds[0])};

/* ---- strings ---- */

rl_status tok_strings_end(struct tok_strings *strings)
{
    if (strings->count == strings->capacity) {
        size_t capacity = strings->capacity * 2 + 64;
        size_t *ends = realloc(strings->ends, capacity * sizeof(*ends));
        if (ends == NULL) {
            return rl_fail(RL_NO_MEMORY, "tokenizer: no memory for %zu tokens", capacity);
        }
        strings->ends = ends;
        strings->capacity = capacity;
    }
    strings->ends[strings->count++] = strings->text.bytes;
    return RL_OK;
}

struct tok_view tok_strings_get(const struct tok_strings *strings, size_t index)
{
    size_t start = index > 0 ? strings->ends[index - 1] : 0;
    const char *data = strings->text.data != NULL ? strings->text.data + start : "";
    return (struct tok_view){data, strings->ends[index] - start};
}

void tok_strings_fini(struct tok_strings *strings)
{
    tok_text_fini(&strings->text);
    free(strings->ends);
    memset(strings, 0, sizeof(*strings));
}

static rl_status strings_append(struct tok_strings *strings, const char *data, size_t bytes)
{
    return tok_text_append(&strings->text, data, bytes, 0);
}

/* ---- loading ---- */

void tok_decoder_destroy(struct tok_decoder *decoder)
{
    if (decoder == NULL) {
        return;
    }
    for (size_t i = 0; i < decoder->child_count; i++) {
        tok_decoder_destroy(decoder->children[i]);
    }
    free(decoder->children);
    free((char *)decoder->content.data);
    tok_regex_destroy(decoder->regex);
    free(decoder);
}

static rl_status sequence_create(struct tok_decoder *self, const json_t *json,
                                 const struct tok_where *where, int depth)
{
    json_t *list;
    RL_TRY(tok_json_array(json, where, "decoders", &list));
    struct tok_where here = tok_where_child(where, "decoders");
    self->children = calloc(json_array_size(list) + 1, sizeof(struct tok_decoder *));
    if (self->children == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory", where->file);
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        struct tok_where item = tok_where_item(&here, i);
        struct tok_decoder *child = NULL;
        RL_TRY(tok_decoder_create(json_array_get(list, i), &item, depth + 1, &child));
        if (child == NULL) {
            return rl_fail(RL_INVALID, "%s: %s: null in a sequence", item.file, item.key);
        }
        self->children[self->child_count++] = child;
    }
    return RL_OK;
}

static rl_status metaspace_create(struct tok_decoder *self, const json_t *json,
                                  const struct tok_where *where)
{
    struct tok_view text;
    RL_TRY(tok_json_optional_string(json, where, "prepend_scheme", &text));
    bool never = text.data != NULL && strcmp(text.data, "never") == 0;
    if (text.data != NULL && !never && strcmp(text.data, "always") != 0 &&
        strcmp(text.data, "first") != 0) {
        return rl_fail(RL_INVALID, "%s: %s.prepend_scheme: expected always, first or never",
                       where->file, where->key);
    }
    if (json_is_false(json_object_get(json, "add_prefix_space")) && !never) {
        return rl_fail(RL_INVALID, "%s: %s: add_prefix_space contradicts prepend_scheme",
                       where->file, where->key);
    }
    self->prefix_dropped = !never;
    RL_TRY(tok_json_character(json, where, "replacement", &text));
    return tok_view_copy(text, &self->content);
}

static rl_status strip_create(struct tok_decoder *self, const json_t *json,
                              const struct tok_where *where)
{
    const json_t *start = json_object_get(json, "start");
    const json_t *stop = json_object_get(json, "stop");
    struct tok_view text;
    if (!json_is_integer(start) || !json_is_integer(stop) || json_integer_value(start) < 0 ||
        json_integer_value(stop) < 0) {
        return rl_fail(RL_INVALID, "%s: %s: start and stop must be whole numbers", where->file,
                       where->key);
    }
    self->start = (size_t)json_integer_value(start);
    self->stop = (size_t)json_integer_value(stop);
    RL_TRY(tok_json_character(json, where, "content", &text));
    return tok_view_copy(text, &self->content);
}

static rl_status decoder_members(struct tok_decoder *self, const json_t *json,
                                 const struct tok_where *where, int depth)
{
    struct tok_view text;
    switch (self->kind) {
    case DECODER_SEQUENCE:
        return sequence_create(self, json, where, depth);
    case DECODER_METASPACE:
        return metaspace_create(self, json, where);
    case DECODER_STRIP:
        return strip_create(self, json, where);
    case DECODER_REPLACE:
        RL_TRY(tok_json_pattern(json, where, &self->regex));
        RL_TRY(tok_json_string(json, where, "content", &text));
        return tok_view_copy(text, &self->content);
    case DECODER_BPE:
        RL_TRY(tok_json_string(json, where, "suffix", &text));
        return tok_view_copy(text, &self->content);
    case DECODER_WORD_PIECE:
        RL_TRY(tok_json_bool(json, where, "cleanup", -1, &self->cleanup));
        RL_TRY(tok_json_string(json, where, "prefix", &text));
        return tok_view_copy(text, &self->content);
    default:
        return RL_OK;
    }
}

rl_status tok_decoder_create(const json_t *json, const struct tok_where *where, int depth,
                             struct tok_decoder **out)
{
    int kind = 0;
    if (json == NULL || json_is_null(json)) {
        *out = NULL;
        return RL_OK;
    }
    RL_TRY(tok_json_kind(json, where, depth, &decoder_list, &kind));
    struct tok_decoder *self = calloc(1, sizeof(*self));
    if (self == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory", where->file);
    }
    self->kind = (enum decoder_kind)kind;
    rl_status status = decoder_members(self, json, where, depth);
    if (status != RL_OK) {
        tok_decoder_destroy(self);
        return status;
    }
    *out = self;
    return RL_OK;
}

/* ---- running: from `in` to `out`, which is empty ---- */

static rl_status byte_level_token(struct tok_view token, struct tok_text *bytes)
{
    RL_TRY(tok_text_reserve(bytes, token.bytes));
    char *to = bytes->data + bytes->bytes;
    for (size_t at = 0; at < token.bytes; to++) {
        size_t length = 1;
        int value = (unsigned char)token.data[at];
        if (value <= ' ' || value >= 0x7F) {
            value = tok_bytes_value(tok_utf8_get(token.data + at, &length));
        }
        if (value < 0) { /* not of the alphabet: the token stands for its own bytes */
            return tok_text_append(bytes, token.data, token.bytes, 0);
        }
        *to = (char)value;
        at += length;
    }
    bytes->bytes = (size_t)(to - bytes->data);
    return RL_OK;
}

static rl_status run_byte_level(const struct tok_strings *in, struct tok_strings *out)
{
    struct tok_text bytes = {0};
    rl_status status = RL_OK;
    for (size_t i = 0; i < in->count && status == RL_OK; i++) {
        status = byte_level_token(tok_strings_get(in, i), &bytes);
    }
    if (status == RL_OK) {
        status = tok_text_append_lossy(&out->text, bytes.data, bytes.bytes);
    }
    tok_text_fini(&bytes);
    return status == RL_OK ? tok_strings_end(out) : status;
}

static rl_status run_metaspace(const struct tok_decoder *self, const struct tok_strings *in,
                               struct tok_strings *out)
{
    for (size_t i = 0; i < in->count; i++) {
        struct tok_view token = tok_strings_get(in, i);
        for (size_t at = 0; at < token.bytes;) {
            size_t length;
            (void)tok_utf8_get(token.data + at, &length);
            bool replaced = length == self->content.bytes &&
                            memcmp(token.data + at, self->content.data, length) == 0;
            if (!replaced) {
                RL_TRY(strings_append(out, token.data + at, length));
            } else if (i > 0 || !self->prefix_dropped) {
                RL_TRY(strings_append(out, " ", 1));
            }
            at += length;
        }
        RL_TRY(tok_strings_end(out));
    }
    return RL_OK;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Byte of a token like <0x0A>, -1 if it is not one. The reference's parser lets "+A" pass too. */
static int byte_token(struct tok_view token)
{
    if (token.bytes != 6 || memcmp(token.data, "<0x", 3) != 0 || token.data[5] != '>') {
        return -1;
    }
    int low = hex_digit(token.data[4]);
    int high = token.data[3] == '+' ? 0 : hex_digit(token.data[3]);
    return low < 0 || high < 0 ? -1 : high * 16 + low;
}

static rl_status bytes_flush(struct tok_text *bytes, struct tok_strings *out)
{
    size_t count = bytes->bytes;
    bytes->bytes = 0;
    if (count == 0) {
        return RL_OK;
    }
    if (tok_utf8_valid(bytes->data, count) == count) {
        RL_TRY(strings_append(out, bytes->data, count));
        return tok_strings_end(out);
    }
    for (size_t i = 0; i < count; i++) {
        RL_TRY(strings_append(out, "\xEF\xBF\xBD", 3));
        RL_TRY(tok_strings_end(out));
    }
    return RL_OK;
}

static rl_status byte_fallback_tokens(const struct tok_strings *in, struct tok_text *bytes,
                                      struct tok_strings *out)
{
    for (size_t i = 0; i < in->count; i++) {
        struct tok_view token = tok_strings_get(in, i);
        int value = byte_token(token);
        if (value >= 0) {
            char byte = (char)value;
            RL_TRY(tok_text_append(bytes, &byte, 1, 0));
            continue;
        }
        RL_TRY(bytes_flush(bytes, out));
        RL_TRY(strings_append(out, token.data, token.bytes));
        RL_TRY(tok_strings_end(out));
    }
    return bytes_flush(bytes, out);
}

static rl_status run_byte_fallback(const struct tok_strings *in, struct tok_strings *out)
{
    struct tok_text bytes = {0};
    rl_status status = byte_fallback_tokens(in, &bytes, out);
    tok_text_fini(&bytes);
    return status;
}

static rl_status run_fuse(const struct tok_strings *in, struct tok_strings *out)
{
    RL_TRY(strings_append(out, in->text.data, in->text.bytes));
    return tok_strings_end(out);
}

static bool has_at(struct tok_view token, size_t at, struct tok_view wanted)
{
    return wanted.bytes <= token.bytes - at &&
           memcmp(token.data + at, wanted.data, wanted.bytes) == 0;
}

static rl_status run_strip(const struct tok_decoder *self, const struct tok_strings *in,
                           struct tok_strings *out)
{
    size_t length = self->content.bytes;
    for (size_t i = 0; i < in->count; i++) {
        struct tok_view token = tok_strings_get(in, i);
        size_t start = 0;
        size_t end = token.bytes;
        for (size_t k = 0; k < self->start && has_at(token, start, self->content); k++) {
            start += length;
        }
        for (size_t k = 0; k < self->stop && end - start >= length; k++) {
            if (!has_at(token, end - length, self->content)) {
                break;
            }
            end -= length;
        }
        RL_TRY(strings_append(out, token.data + start, end - start));
        RL_TRY(tok_strings_end(out));
    }
    return RL_OK;
}

static rl_status replace_token(const struct tok_decoder *self, struct tok_matcher *matcher,
                               struct tok_view token, struct tok_strings *out)
{
    struct tok_match match;
    size_t done = 0;
    rl_status status = RL_END;
    tok_matcher_reset(matcher, token);
    while (token.bytes > 0 && (status = tok_matcher_next(matcher, &match)) == RL_OK) {
        RL_TRY(strings_append(out, token.data + done, match.start - done));
        RL_TRY(strings_append(out, self->content.data, self->content.bytes));
        done = match.end;
    }
    if (status != RL_END) {
        return status;
    }
    RL_TRY(strings_append(out, token.data + done, token.bytes - done));
    return tok_strings_end(out);
}

static rl_status run_replace(const struct tok_decoder *self, const struct tok_strings *in,
                             struct tok_strings *out)
{
    struct tok_matcher matcher;
    rl_status status = RL_OK;
    RL_TRY(tok_matcher_init(&matcher, self->regex, (struct tok_view){"", 0}));
    for (size_t i = 0; i < in->count && status == RL_OK; i++) {
        status = replace_token(self, &matcher, tok_strings_get(in, i), out);
    }
    tok_matcher_fini(&matcher);
    return status;
}

/* Append token with every `old` replaced by `fresh`. */
static rl_status append_replaced(struct tok_view token, struct tok_view old, const char *fresh,
                                 struct tok_text *out)
{
    size_t at = 0;
    while (at < token.bytes) {
        if (old.bytes > 0 && has_at(token, at, old)) {
            RL_TRY(tok_regex_emit(out, fresh));
            at += old.bytes;
        } else {
            RL_TRY(tok_text_append(out, token.data + at, 1, 0));
            at++;
        }
    }
    return RL_OK;
}

static rl_status run_bpe(const struct tok_decoder *self, const struct tok_strings *in,
                         struct tok_strings *out)
{
    for (size_t i = 0; i < in->count; i++) {
        RL_TRY(append_replaced(tok_strings_get(in, i), self->content, i + 1 == in->count ? "" : " ",
                               &out->text));
        RL_TRY(tok_strings_end(out));
    }
    return RL_OK;
}

/* English clean-up of what the tokenizer took apart, one replacement after another. */
static rl_status clean_up(struct tok_text *text, struct tok_text *scratch)
{
    static const char *const pairs[][2] = {{" .", "."},     {" ?", "?"},           {" !", "!"},
                                           {" ,", ","},     {" ' ", "'"},          {" n't", "n't"},
                                           {" 'm", "'m"},   {" do not", " don't"}, {" 's", "'s"},
                                           {" 've", "'ve"}, {" 're", "'re"}};
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        scratch->bytes = 0;
        RL_TRY(append_replaced((struct tok_view){text->data, text->bytes},
                               (struct tok_view){pairs[i][0], strlen(pairs[i][0])}, pairs[i][1],
                               scratch));
        tok_text_swap(text, scratch);
    }
    return RL_OK;
}

static rl_status word_piece_token(const struct tok_decoder *self, struct tok_view token, bool first,
                                  struct tok_text texts[2])
{
    texts[0].bytes = 0;
    if (!first && has_at(token, 0, self->content)) {
        token.data += self->content.bytes;
        token.bytes -= self->content.bytes;
    } else if (!first) {
        RL_TRY(tok_text_append(&texts[0], " ", 1, 0));
    }
    RL_TRY(tok_text_append(&texts[0], token.data, token.bytes, 0));
    return self->cleanup ? clean_up(&texts[0], &texts[1]) : RL_OK;
}

static rl_status run_word_piece(const struct tok_decoder *self, const struct tok_strings *in,
                                struct tok_strings *out)
{
    struct tok_text texts[2] = {{0}, {0}};
    rl_status status = RL_OK;
    for (size_t i = 0; i < in->count && status == RL_OK; i++) {
        status = word_piece_token(self, tok_strings_get(in, i), i == 0, texts);
        if (status == RL_OK) {
            status = strings_append(out, texts[0].data, texts[0].bytes);
        }
        if (status == RL_OK) {
            status = tok_strings_end(out);
        }
    }
    tok_text_fini(&texts[0]);
    tok_text_fini(&texts[1]);
    return status;
}

static rl_status run_step(const struct tok_decoder *self, const struct tok_strings *in,
                          struct tok_strings *out)
{
    switch (self->kind) {
    case DECODER_BYTE_LEVEL:
        return run_byte_level(in, out);
    case DECODER_METASPACE:
        return run_metaspace(self, in, out);
    case DECODER_BYTE_FALLBACK:
        return run_byte_fallback(in, out);
    case DECODER_FUSE:
        return run_fuse(in, out);
    case DECODER_STRIP:
        return run_strip(self, in, out);
    case DECODER_REPLACE:
        return run_replace(self, in, out);
    case DECODER_BPE:
        return run_bpe(self, in, out);
    case DECODER_WORD_PIECE:
        return run_word_piece(self, in, out);
    default:
        return rl_fail(RL_INTERNAL, "tokenizer: unknown decoder");
    }
}

rl_status tok_decoder_run(const struct tok_decoder *decoder, struct tok_strings *strings,
                          struct tok_strings *scratch)
{
    if (decoder->kind == DECODER_SEQUENCE) {
        for (size_t i = 0; i < decoder->child_count; i++) {
            RL_TRY(tok_decoder_run(decoder->children[i], strings, scratch));
        }
        return RL_OK;
    }
    scratch->text.bytes = 0;
    scratch->count = 0;
    RL_TRY(run_step(decoder, strings, scratch));
    struct tok_strings held = *strings;
    *strings = *scratch;
    *scratch = held;
    return RL_OK;
}
