/* Pre-tokenizers: a list of steps that cut pieces into smaller ones and sometimes respell them.
 * Sequences are flattened at load. Invariant: a step never touches a piece that is a token already.
 */
#include "model/tokenizer_json.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

enum pre_kind {
    PRE_SEQUENCE,
    PRE_BYTE_LEVEL,
    PRE_SPLIT,
    PRE_DIGITS,
    PRE_METASPACE,
    PRE_WHITESPACE,
    PRE_WHITESPACE_SPLIT,
    PRE_PUNCTUATION,
    PRE_DELIMITER,
    PRE_BERT,
    PRE_FIXED_LENGTH
};

enum pre_prepend { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };

struct pre_step {
    enum pre_kind kind;
    struct tok_regex *regex; /* split, whitespace; NULL if there is a matcher */
    tok_scan_fn scan;        /* byte level with its pattern, split at a known one; or NULL */
    enum tok_behavior behavior;
    bool invert;
    bool prefix_space; /* byte level */
    bool individual;   /* digits */
    bool split;        /* metaspace */
    enum pre_prepend prepend;
    char character[5]; /* metaspace's replacement, delimiter */
    size_t length;     /* fixed length, in characters */
};

struct tok_pretokenizer {
    struct pre_step *steps; /* [count] */
    size_t count;
    size_t capacity;
};

static const struct tok_kind pre_kinds[] = {
    {"Sequence", PRE_SEQUENCE, "type pretokenizers"},
    {"ByteLevel", PRE_BYTE_LEVEL, "type add_prefix_space trim_offsets use_regex"},
    {"Split", PRE_SPLIT, "type pattern behavior invert"},
    {"Digits", PRE_DIGITS, "type individual_digits"},
    {"Metaspace", PRE_METASPACE, "type replacement add_prefix_space prepend_scheme split str_rep"},
    {"Whitespace", PRE_WHITESPACE, "type"},
    {"WhitespaceSplit", PRE_WHITESPACE_SPLIT, "type"},
    {"Punctuation", PRE_PUNCTUATION, "type behavior"},
    {"CharDelimiterSplit", PRE_DELIMITER, "type delimiter"},
    {"BertPreTokenizer", PRE_BERT, "type"},
    {"FixedLength", PRE_FIXED_LENGTH, "type length"},
};
static const struct tok_kind_list pre_list = {"pre-tokenizer", pre_kinds,
                                              sizeof(pre_kinds) / sizeof(pre_kinds[0])};

/* Words or runs of other visible characters; this engine's words include the joiners. */
static const char whitespace_pattern[] =
    "[[:word:]\\x{200C}\\x{200D}]+|[^[:word:]\\x{200C}\\x{200D}\\s]+";

void tok_pretokenizer_destroy(struct tok_pretokenizer *pretokenizer)
{
    if (pretokenizer == NULL) {
        return;
    }
    for (size_t i = 0; i < pretokenizer->count; i++) {
        tok_regex_destroy(pretokenizer->steps[i].regex);
    }
    free(pretokenizer->steps);
    free(pretokenizer);
}

/* ---- loading ---- */

static rl_status metaspace_create(struct pre_step *step, const json_t *json,
                                  const struct tok_where *where)
{
    static const char *const schemes[] = {"always", "first", "never"};
    struct tok_view text;
    const json_t *prefix = json_object_get(json, "add_prefix_space");
    RL_TRY(tok_json_character(json, where, "replacement", &text));
    memcpy(step->character, text.data, text.bytes);
    RL_TRY(tok_json_optional_string(json, where, "prepend_scheme", &text));
    int scheme = text.data == NULL ? 0 : -1;
    for (int i = 0; scheme < 0 && i < 3; i++) {
        scheme = strcmp(text.data, schemes[i]) == 0 ? i : -1;
    }
    if (scheme < 0) {
        return rl_fail(RL_INVALID, "%s: %s.prepend_scheme: expected always, first or never",
                       where->file, where->key);
    }
    if (json_is_false(prefix) && scheme != PREPEND_NEVER) {
        return rl_fail(RL_INVALID, "%s: %s: add_prefix_space contradicts prepend_scheme",
                       where->file, where->key);
    }
    step->prepend = (enum pre_prepend)scheme;
    const json_t *split = json_object_get(json, "split");
    step->split = true;
    return json_is_null(split) ? RL_OK : tok_json_bool(json, where, "split", 1, &step->split);
}

static rl_status byte_level_create(struct pre_step *step, const json_t *json,
                                   const struct tok_where *where)
{
    bool use_regex;
    bool trim;
    RL_TRY(tok_json_bool(json, where, "add_prefix_space", -1, &step->prefix_space));
    RL_TRY(tok_json_bool(json, where, "trim_offsets", 1, &trim));
    RL_TRY(tok_json_bool(json, where, "use_regex", 1, &use_regex));
    struct tok_view pattern = {TOK_PATTERN_GPT2, sizeof(TOK_PATTERN_GPT2) - 1};
    step->scan = use_regex ? tok_scan_find(pattern) : NULL;
    return RL_OK;
}

/* A pattern whose matches cover the text cuts the same way whether they or what is between them is
 * kept. */
static rl_status split_create(struct pre_step *step, const json_t *json,
                              const struct tok_where *where)
{
    RL_TRY(tok_behavior_parse(json, where, NULL, &step->behavior));
    RL_TRY(tok_json_bool(json, where, "invert", -1, &step->invert));
    const json_t *pattern = json_object_get(json, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    bool kept = step->behavior == (step->invert ? TOK_REMOVED : TOK_ISOLATED);
    if (kept && json_is_string(regex) && json_object_size(pattern) == 1) {
        step->scan =
            tok_scan_find((struct tok_view){json_string_value(regex), json_string_length(regex)});
    }
    return step->scan != NULL ? RL_OK : tok_json_pattern(json, where, &step->regex);
}

static rl_status fixed_length_create(struct pre_step *step, const json_t *json,
                                     const struct tok_where *where)
{
    const json_t *length = json_object_get(json, "length");
    step->length = 5;
    if (length == NULL) {
        return RL_OK;
    }
    if (!json_is_integer(length) || json_integer_value(length) < 1) {
        return rl_fail(RL_INVALID, "%s: %s.length: expected a whole number of at least 1",
                       where->file, where->key);
    }
    step->length = (size_t)json_integer_value(length);
    return RL_OK;
}

static rl_status step_members(struct pre_step *step, const json_t *json,
                              const struct tok_where *where)
{
    struct tok_view text;
    switch (step->kind) {
    case PRE_BYTE_LEVEL:
        return byte_level_create(step, json, where);
    case PRE_SPLIT:
        return split_create(step, json, where);
    case PRE_DIGITS:
        RL_TRY(tok_json_bool(json, where, "individual_digits", -1, &step->individual));
        step->behavior = step->individual ? TOK_ISOLATED : TOK_CONTIGUOUS;
        return RL_OK;
    case PRE_METASPACE:
        return metaspace_create(step, json, where);
    case PRE_WHITESPACE:
        step->behavior = TOK_REMOVED;
        step->invert = true;
        return tok_regex_create(whitespace_pattern, strlen(whitespace_pattern), where->file,
                                &step->regex);
    case PRE_PUNCTUATION:
        return tok_behavior_parse(json, where, "Isolated", &step->behavior);
    case PRE_DELIMITER:
        step->behavior = TOK_REMOVED;
        RL_TRY(tok_json_character(json, where, "delimiter", &text));
        memcpy(step->character, text.data, text.bytes);
        return RL_OK;
    case PRE_FIXED_LENGTH:
        return fixed_length_create(step, json, where);
    default:
        step->behavior = TOK_REMOVED;
        return RL_OK;
    }
}

static rl_status step_add(struct tok_pretokenizer *self, const json_t *json,
                          const struct tok_where *where, int depth);

static rl_status sequence_add(struct tok_pretokenizer *self, const json_t *json,
                              const struct tok_where *where, int depth)
{
    json_t *list;
    RL_TRY(tok_json_array(json, where, "pretokenizers", &list));
    struct tok_where here = tok_where_child(where, "pretokenizers");
    for (size_t i = 0; i < json_array_size(list); i++) {
        struct tok_where item = tok_where_item(&here, i);
        RL_TRY(step_add(self, json_array_get(list, i), &item, depth + 1));
    }
    return RL_OK;
}

static rl_status step_room(struct tok_pretokenizer *self)
{
    if (self->count < self->capacity) {
        return RL_OK;
    }
    size_t capacity = self->capacity * 2 + 4;
    struct pre_step *steps = realloc(self->steps, capacity * sizeof(*steps));
    if (steps == NULL) {
        return rl_fail(RL_NO_MEMORY, "tokenizer: no memory for a pre-tokenizer");
    }
    self->steps = steps;
    self->capacity = capacity;
    return RL_OK;
}

static rl_status step_add(struct tok_pretokenizer *self, const json_t *json,
                          const struct tok_where *where, int depth)
{
    int kind = 0;
    RL_TRY(tok_json_kind(json, where, depth, &pre_list, &kind));
    if (kind == PRE_SEQUENCE) {
        return sequence_add(self, json, where, depth);
    }
    RL_TRY(step_room(self));
    struct pre_step *step = &self->steps[self->count++];
    memset(step, 0, sizeof(*step));
    step->kind = (enum pre_kind)kind;
    return step_members(step, json, where);
}

rl_status tok_pretokenizer_create(const json_t *json, const struct tok_where *where, int depth,
                                  struct tok_pretokenizer **out)
{
    if (json == NULL || json_is_null(json)) {
        *out = NULL;
        return RL_OK;
    }
    struct tok_pretokenizer *self = calloc(1, sizeof(*self));
    if (self == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory", where->file);
    }
    rl_status status = step_add(self, json, where, depth);
    if (status != RL_OK) {
        tok_pretokenizer_destroy(self);
        return status;
    }
    *out = self;
    return RL_OK;
}

bool tok_pretokenizer_needs_origin(const struct tok_pretokenizer *pretokenizer)
{
    for (size_t i = 0; pretokenizer != NULL && i < pretokenizer->count; i++) {
        if (pretokenizer->steps[i].kind == PRE_METASPACE &&
            pretokenizer->steps[i].prepend == PREPEND_FIRST) {
            return true;
        }
    }
    return false;
}

bool tok_pretokenizer_raw(const struct tok_pretokenizer *pretokenizer)
{
    return pretokenizer != NULL && pretokenizer->count > 0 &&
           pretokenizer->steps[pretokenizer->count - 1].kind == PRE_BYTE_LEVEL;
}

tok_scan_fn tok_pretokenizer_scan(const struct tok_pretokenizer *pretokenizer)
{
    if (!tok_pretokenizer_raw(pretokenizer) || pretokenizer->count > 2) {
        return NULL;
    }
    const struct pre_step *first = &pretokenizer->steps[0];
    const struct pre_step *last = &pretokenizer->steps[pretokenizer->count - 1];
    bool cuts_once = first == last || (first->kind == PRE_SPLIT && last->scan == NULL);
    return cuts_once && !last->prefix_space ? first->scan : NULL;
}

/* ---- running: each function handles one text piece and appends to pieces_next ---- */

struct pre_run {
    const struct pre_step *step;
    bool raw;     /* the step leaves the spelling in bytes to the encoder */
    bool respell; /* pieces are in the next text */
    struct tok_work *work;
    struct tok_matcher *matcher; /* for steps with a regex */
    struct tok_splitter splitter;
};

static rl_status regex_piece(struct pre_run *run, const struct tok_text *text, size_t start,
                             size_t bytes)
{
    struct tok_match match;
    rl_status status;
    tok_splitter_start(&run->splitter, start);
    tok_matcher_reset(run->matcher, (struct tok_view){text->data + start, bytes});
    while ((status = tok_matcher_next(run->matcher, &match)) == RL_OK) {
        RL_TRY(tok_splitter_match(&run->splitter, match.start, match.end));
    }
    return status == RL_END ? tok_splitter_finish(&run->splitter, bytes) : status;
}

static rl_status scan_piece(struct pre_run *run, const struct tok_text *text, size_t start,
                            size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        size_t end = run->step->scan(text->data + start, at, bytes);
        RL_TRY(tok_pieces_add(&run->work->pieces_next, start + at, end - at, -1));
        at = end;
    }
    return RL_OK;
}

static bool character_matches(const struct pre_step *step, uint32_t code)
{
    size_t length;
    switch (step->kind) {
    case PRE_DIGITS:
        return code < 0x80 ? code >= '0' && code <= '9' : tok_unicode_number(code);
    case PRE_PUNCTUATION:
        return tok_unicode_punctuation(code);
    case PRE_DELIMITER:
    case PRE_METASPACE:
        return code == tok_utf8_get(step->character, &length);
    default:
        return tok_unicode_space(code);
    }
}

static rl_status character_piece(struct pre_run *run, const struct tok_text *text, size_t start,
                                 size_t bytes)
{
    tok_splitter_start(&run->splitter, start);
    for (size_t at = 0; at < bytes;) {
        size_t length;
        uint32_t code = tok_utf8_get(text->data + start + at, &length);
        if (character_matches(run->step, code)) {
            RL_TRY(tok_splitter_match(&run->splitter, at, at + length));
        }
        at += length;
    }
    return tok_splitter_finish(&run->splitter, bytes);
}

/* Whitespace is removed and every punctuation character stands alone. */
static rl_status bert_piece(struct pre_run *run, const struct tok_piece *piece)
{
    struct tok_pieces *out = &run->work->pieces_next;
    const char *data = run->work->text.data + piece->start;
    size_t word = 0;
    for (size_t at = 0; at < piece->bytes;) {
        size_t length;
        uint32_t code = tok_utf8_get(data + at, &length);
        bool space = tok_unicode_space(code);
        bool mark = tok_unicode_punctuation(code);
        if (space || mark) {
            RL_TRY(tok_pieces_add(out, piece->start + word, at - word, -1));
            RL_TRY(tok_pieces_add(out, piece->start + at, mark ? length : 0, -1));
            word = at + length;
        }
        at += length;
    }
    return tok_pieces_add(out, piece->start + word, piece->bytes - word, -1);
}

static rl_status fixed_piece(struct pre_run *run, const struct tok_piece *piece)
{
    const char *data = run->work->text.data + piece->start;
    size_t start = 0;
    size_t count = 0;
    for (size_t at = 0; at < piece->bytes;) {
        size_t length;
        (void)tok_utf8_get(data + at, &length);
        at += length;
        if (++count == run->step->length || at == piece->bytes) {
            RL_TRY(tok_pieces_add(&run->work->pieces_next, piece->start + start, at - start, -1));
            start = at;
            count = 0;
        }
    }
    return RL_OK;
}

/* Spaces become the replacement, one more may go before; then cut before each replacement. */
static rl_status metaspace_piece(struct pre_run *run, const struct tok_piece *piece)
{
    const struct pre_step *step = run->step;
    const struct tok_text *text = &run->work->text;
    struct tok_text *out = &run->work->text_next;
    const char *data = text->data + piece->start;
    size_t length = strlen(step->character);
    size_t start = out->bytes;
    bool begins =
        data[0] == ' ' || (piece->bytes >= length && memcmp(data, step->character, length) == 0);
    unsigned char mark = tok_text_mark(text, piece->start);
    bool wanted = step->prepend == PREPEND_ALWAYS ||
                  (step->prepend == PREPEND_FIRST && (mark & TOK_MARK_ORIGIN) != 0);
    if (wanted && !begins) {
        RL_TRY(tok_text_append(out, step->character, length, mark));
    }
    for (size_t at = 0; at < piece->bytes;) {
        const char *space = memchr(data + at, ' ', piece->bytes - at);
        size_t plain = space != NULL ? (size_t)(space - data) - at : piece->bytes - at;
        RL_TRY(tok_text_copy(out, text, piece->start + at, plain));
        at += plain;
        if (space != NULL) {
            RL_TRY(tok_text_append(out, step->character, length,
                                   tok_text_mark(text, piece->start + at)));
            at++;
        }
    }
    if (!step->split) {
        return tok_pieces_add(&run->work->pieces_next, start, out->bytes - start, -1);
    }
    return character_piece(run, out, start, out->bytes - start);
}

/* Pieces from `first` on, which lie in `text`, go into the next text, spelled in bytes. */
static rl_status pieces_spell(struct pre_run *run, const struct tok_text *text, size_t first)
{
    struct tok_text *next = &run->work->text_next;
    for (size_t i = first; i < run->work->pieces_next.count; i++) {
        struct tok_piece *item = &run->work->pieces_next.items[i];
        size_t start = next->bytes;
        RL_TRY(run->raw ? tok_text_copy(next, text, item->start, item->bytes)
                        : tok_bytes_spell(next, text, item->start, item->bytes));
        item->start = start;
        item->bytes = next->bytes - start;
    }
    return RL_OK;
}

/* Cut with the step's pattern (a leading space may be added first), then spell in bytes. */
static rl_status byte_level_piece(struct pre_run *run, const struct tok_piece *piece)
{
    struct tok_work *work = run->work;
    const struct tok_text *text = &work->text;
    size_t start = piece->start;
    size_t bytes = piece->bytes;
    size_t first = work->pieces_next.count;
    if (run->step->prefix_space && text->data[start] != ' ') {
        work->scratch.bytes = 0;
        RL_TRY(tok_text_append(&work->scratch, " ", 1, tok_text_mark(text, start)));
        RL_TRY(tok_text_copy(&work->scratch, text, start, bytes));
        text = &work->scratch;
        start = 0;
        bytes++;
    }
    if (run->step->scan != NULL) {
        RL_TRY(scan_piece(run, text, start, bytes));
    } else {
        RL_TRY(tok_pieces_add(&work->pieces_next, start, bytes, -1));
    }
    return run->respell ? pieces_spell(run, text, first) : RL_OK;
}

static rl_status step_piece(struct pre_run *run, const struct tok_piece *piece)
{
    switch (run->step->kind) {
    case PRE_BYTE_LEVEL:
        return byte_level_piece(run, piece);
    case PRE_METASPACE:
        return metaspace_piece(run, piece);
    case PRE_BERT:
        return bert_piece(run, piece);
    case PRE_FIXED_LENGTH:
        return fixed_piece(run, piece);
    case PRE_SPLIT:
        return run->step->scan != NULL
                   ? scan_piece(run, &run->work->text, piece->start, piece->bytes)
                   : regex_piece(run, &run->work->text, piece->start, piece->bytes);
    case PRE_WHITESPACE:
        return regex_piece(run, &run->work->text, piece->start, piece->bytes);
    default:
        return character_piece(run, &run->work->text, piece->start, piece->bytes);
    }
}

static rl_status step_pieces(struct pre_run *run)
{
    struct tok_work *work = run->work;
    for (size_t i = 0; i < work->pieces.count; i++) {
        const struct tok_piece *piece = &work->pieces.items[i];
        if (piece->token >= 0) {
            RL_TRY(tok_pieces_add(&work->pieces_next, 0, 0, piece->token));
        } else {
            RL_TRY(step_piece(run, piece));
        }
    }
    return RL_OK;
}

static rl_status step_run(const struct pre_step *step, bool raw, struct tok_work *work)
{
    struct tok_matcher matcher;
    struct pre_run run = {.step = step, .raw = raw, .work = work};
    run.respell = step->kind == PRE_METASPACE ||
                  (step->kind == PRE_BYTE_LEVEL && (!raw || step->prefix_space));
    run.splitter = (struct tok_splitter){.out = &work->pieces_next,
                                         .behavior = step->kind == PRE_METASPACE ? TOK_MERGED_NEXT
                                                                                 : step->behavior,
                                         .invert = step->invert};
    work->pieces_next.count = 0;
    work->text_next.bytes = 0;
    if (step->regex != NULL) {
        RL_TRY(tok_matcher_init(&matcher, step->regex, (struct tok_view){"", 0}));
        run.matcher = &matcher;
    }
    rl_status status = step_pieces(&run);
    if (step->regex != NULL) {
        tok_matcher_fini(&matcher);
    }
    RL_TRY(status);
    struct tok_pieces held = work->pieces;
    work->pieces = work->pieces_next;
    work->pieces_next = held;
    if (run.respell) {
        tok_text_swap(&work->text, &work->text_next);
    }
    return RL_OK;
}

rl_status tok_pretokenizer_run(const struct tok_pretokenizer *pretokenizer, struct tok_work *work)
{
    for (size_t i = 0; pretokenizer != NULL && i < pretokenizer->count; i++) {
        bool last = i + 1 == pretokenizer->count;
        RL_TRY(step_run(&pretokenizer->steps[i], last && tok_pretokenizer_raw(pretokenizer), work));
    }
    return RL_OK;
}
