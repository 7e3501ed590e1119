/* Private to model/tokenizer*.c: the parts that a tokenizer.json is made of and the text that flows
 * through them. Normalizer -> added tokens -> pre-tokenizer -> BPE -> post-processor; decoder back.
 * Everything here is immutable after load except the per-token atomics in struct tok_bpe and the
 * working spaces, each of which one call has to itself. */
#ifndef FORESIGHT_MODEL_TOKENIZER_INTERNAL_H
#define FORESIGHT_MODEL_TOKENIZER_INTERNAL_H

#include "model/tokenizer.h"

#include <jansson.h>
#include <stdatomic.h>

struct tok_where; /* tokenizer_json.h */

enum { TOK_DEPTH_MAX = 8, TOK_ID_LIMIT = 1 << 23 };

/* ---- text (tokenizer_text.c) ---- */

/* Marks kept beside each byte of a text, where a tokenizer needs them. */
enum tok_mark {
    TOK_MARK_ORIGIN = 1, /* comes from the first character of the input */
    TOK_MARK_PLAIN = 2   /* special tokens must not be recognised here */
};

/* Growable UTF-8 text; `mark` is NULL unless `marked`. Zero-initialise. */
struct tok_text {
    char *data;          /* [bytes] */
    unsigned char *mark; /* [bytes] enum tok_mark, only if marked */
    size_t bytes;
    size_t capacity;
    bool marked;
};

/* A borrowed string. */
struct tok_view {
    const char *data;
    size_t bytes;
};

/* Free the text's memory. */
void tok_text_fini(struct tok_text *text);

/* Make room for `extra` more bytes. Errors: RL_NO_MEMORY. */
rl_status tok_text_reserve(struct tok_text *text, size_t extra);

/* Append bytes, each with the same mark. Errors: RL_NO_MEMORY. */
rl_status tok_text_append(struct tok_text *text, const char *data, size_t bytes,
                          unsigned char mark);

/* Append a slice of another text with its marks. Errors: RL_NO_MEMORY. */
rl_status tok_text_copy(struct tok_text *text, const struct tok_text *from, size_t start,
                        size_t bytes);

/* Append one code point. Errors: RL_NO_MEMORY. */
rl_status tok_text_put(struct tok_text *text, uint32_t code, unsigned char mark);

/* Exchange two texts. */
void tok_text_swap(struct tok_text *a, struct tok_text *b);

/* Mark of the byte at `offset`, 0 where marks are not kept. */
unsigned char tok_text_mark(const struct tok_text *text, size_t offset);

/* Code point at data (valid UTF-8); *bytes is its length. */
uint32_t tok_utf8_get(const char *data, size_t *bytes);

/* Write a code point to out [4]; returns its length. */
size_t tok_utf8_put(uint32_t code, char *out);

/* Length of the valid UTF-8 prefix of data. */
size_t tok_utf8_valid(const char *data, size_t bytes);

/* Length of the invalid sequence at data that one U+FFFD stands for (the maximal prefix of a
 * well-formed sequence, at least one byte). */
size_t tok_utf8_bad(const char *data, size_t bytes);

/* Append arbitrary bytes, each invalid sequence as U+FFFD. Errors: RL_NO_MEMORY. */
rl_status tok_text_append_lossy(struct tok_text *text, const char *data, size_t bytes);

/* ---- Unicode (tokenizer_unicode.c) ---- */

/* General category as utf8proc numbers it, at least Unicode 16. */
int tok_unicode_category(uint32_t code);

/* White_Space. */
bool tok_unicode_space(uint32_t code);

/* Category in L, M, N, P, S ... by its letter. */
bool tok_unicode_major(uint32_t code, char major);

/* Is the character too new for the reference's own tables, as far as one of `flags` goes? */
enum tok_late {
    TOK_LATE_ACCENT = 1,
    TOK_LATE_BERT_ACCENT = 2,
    TOK_LATE_PUNCTUATION = 4,
    TOK_LATE_CONTROL = 8,
    TOK_LATE_COMBINING = 16,
    TOK_LATE_CANONICAL = 32,
    TOK_LATE_COMPATIBILITY = 64
};
bool tok_unicode_late(uint32_t code, unsigned flags);

/* Numbers and punctuation as the reference's pre-tokenizers see them. */
bool tok_unicode_number(uint32_t code);
bool tok_unicode_punctuation(uint32_t code);

/* Append the code points that `property` (a category as "L" or "Lu", a script, "Alphabetic",
 * "Uppercase", "Lowercase", or "" for all) gained after Unicode 14, as ranges of a character class
 * (\x{..}-\x{..}). Errors: RL_NO_MEMORY. */
rl_status tok_unicode_newer(struct tok_text *out, const char *property);

/* Lower case of one code point, as Unicode's full mapping; writes up to 3 codes, returns count. */
int tok_unicode_lower(uint32_t code, uint32_t out[3]);

/* ---- regular expressions (tokenizer_regex.c, tokenizer_regex_class.c) ---- */

struct tok_regex;

/* Translate a pattern in the syntax of the library's engine and compile it. `where` names the part
 * of the file for errors. Caller owns *out. Errors: RL_UNSUPPORTED, RL_NO_MEMORY. */
rl_status tok_regex_create(const char *pattern, size_t bytes, const char *where,
                           struct tok_regex **out);

/* The same for a literal string. */
rl_status tok_regex_create_literal(const char *text, size_t bytes, const char *where,
                                   struct tok_regex **out);

/* Free. Takes NULL. */
void tok_regex_destroy(struct tok_regex *regex);

/* Translate to PCRE2 syntax, appended to out; see tok_regex_create. */
rl_status tok_regex_translate(const char *pattern, size_t bytes, const char *where,
                              struct tok_text *out);

/* Parser state shared by the two translation files. */
struct tok_regex_parser {
    const char *at;
    const char *end;
    const char *where;
    bool caseless;
    int depth;
};

/* Translate the class after '[' (parser stands behind it) to one PCRE2 atom appended to out. */
rl_status tok_regex_class(struct tok_regex_parser *parser, struct tok_text *out);

/* Translate `\p{..}`, parser behind the p; `negated` for \P. Appends one atom. */
rl_status tok_regex_property(struct tok_regex_parser *parser, bool negated, struct tok_text *out);

/* Append the class items of the engine's \w (in a class) and outside of one. */
rl_status tok_regex_word_items(struct tok_text *out);

/* RL_UNSUPPORTED naming the construct. */
rl_status tok_regex_refuse(const struct tok_regex_parser *parser, const char *construct);

/* Append a NUL-terminated string of pattern. */
rl_status tok_regex_emit(struct tok_text *out, const char *text);

extern const char tok_regex_space_items[];    /* class items of White_Space */
extern const char tok_regex_nonspace_items[]; /* its complement */

/* One match. */
struct tok_match {
    size_t start;
    size_t end;
};

/* Successive matches as the library's iterator finds them. */
struct tok_matcher {
    const struct tok_regex *regex;
    struct tok_view text;
    size_t next;
    size_t last_end;
    bool matched;
    void *data; /* pcre2 match data */
    void *context;
};

/* Start iterating over text. Pair with tok_matcher_fini. Errors: RL_NO_MEMORY. */
rl_status tok_matcher_init(struct tok_matcher *matcher, const struct tok_regex *regex,
                           struct tok_view text);

/* Reuse the matcher for another text. */
void tok_matcher_reset(struct tok_matcher *matcher, struct tok_view text);

/* Next match, or RL_END. Errors: RL_TOO_LONG if the engine's work limit is hit. */
rl_status tok_matcher_next(struct tok_matcher *matcher, struct tok_match *match);

/* Free what init allocated. */
void tok_matcher_fini(struct tok_matcher *matcher);

/* ---- hand-written matchers (tokenizer_scan.c) ---- */

/* The patterns that have one, as files spell them. */
#define TOK_PATTERN_GPT2                                                                           \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define TOK_PATTERN_LATER(number)                                                                  \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" number                           \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define TOK_PATTERN_CL100K TOK_PATTERN_LATER("\\p{N}{1,3}")
#define TOK_PATTERN_QWEN2 TOK_PATTERN_LATER("\\p{N}")

/* End of the match that begins at `at` < bytes of valid UTF-8; always behind `at`. */
typedef size_t (*tok_scan_fn)(const char *data, size_t at, size_t bytes);

/* Matcher of exactly this pattern, NULL if there is none. */
tok_scan_fn tok_scan_find(struct tok_view pattern);

/* ---- normalizer (tokenizer_normalize.c) ---- */

struct tok_normalizer;

/* Build from JSON; NULL or null gives *out = NULL. */
rl_status tok_normalizer_create(const json_t *json, const struct tok_where *where, int depth,
                                struct tok_normalizer **out);
void tok_normalizer_destroy(struct tok_normalizer *normalizer);

/* Rewrite `text` in place; `scratch` is working space with the same marked flag. */
rl_status tok_normalizer_run(const struct tok_normalizer *normalizer, struct tok_text *text,
                             struct tok_text *scratch);

/* Canonical forms on a text (tokenizer_forms.c). */
enum tok_form { TOK_FORM_NFC, TOK_FORM_NFD, TOK_FORM_NFKC, TOK_FORM_NFKD };
rl_status tok_form_run(enum tok_form form, struct tok_text *text, struct tok_text *scratch);

/* ---- pieces and pre-tokenizer (tokenizer_pretokenize.c, tokenizer_split.c) ---- */

/* A slice of the work's text that becomes a word, or a token found already. */
struct tok_piece {
    size_t start;
    size_t bytes;
    int32_t token; /* -1: text */
};

struct tok_pieces {
    struct tok_piece *items;
    size_t count;
    size_t capacity;
};

/* Append; empty text pieces are dropped as the library does. Errors: RL_NO_MEMORY. */
rl_status tok_pieces_add(struct tok_pieces *pieces, size_t start, size_t bytes, int32_t token);

/* Everything one encode call needs. */
struct tok_work {
    struct tok_text text;
    struct tok_text text_next;
    struct tok_text scratch;
    struct tok_pieces pieces;
    struct tok_pieces pieces_next;
};

struct tok_pretokenizer;

rl_status tok_pretokenizer_create(const json_t *json, const struct tok_where *where, int depth,
                                  struct tok_pretokenizer **out);
void tok_pretokenizer_destroy(struct tok_pretokenizer *pretokenizer);

/* Split every text piece of work; pieces and text are replaced. Where tok_pretokenizer_raw says so,
 * the pieces are left as they lie in the text instead of spelled in the byte-level alphabet. */
rl_status tok_pretokenizer_run(const struct tok_pretokenizer *pretokenizer, struct tok_work *work);

/* True if the last step spells in the byte-level alphabet, which then is the encoder's to do. */
bool tok_pretokenizer_raw(const struct tok_pretokenizer *pretokenizer);

/* The matcher that all of a raw pre-tokenizer amounts to, NULL if there is more to it. */
tok_scan_fn tok_pretokenizer_scan(const struct tok_pretokenizer *pretokenizer);

/* True if any part asks where a piece lay in the input (Metaspace, prepend_scheme first). */
bool tok_pretokenizer_needs_origin(const struct tok_pretokenizer *pretokenizer);

enum tok_behavior {
    TOK_REMOVED,
    TOK_ISOLATED,
    TOK_MERGED_PREVIOUS,
    TOK_MERGED_NEXT,
    TOK_CONTIGUOUS
};

/* Collects (range, is match) pairs of one piece and cuts it by a behaviour. */
struct tok_splitter {
    struct tok_pieces *out;
    enum tok_behavior behavior;
    bool invert;
    size_t base;         /* start of the piece in the text */
    size_t covered;      /* end of the ranges seen, relative to base */
    bool previous_match; /* flag of the range before */
    bool pending_valid;  /* one range is held back, it may still grow */
    struct tok_piece pending;
};

void tok_splitter_start(struct tok_splitter *splitter, size_t base);
rl_status tok_splitter_match(struct tok_splitter *splitter, size_t start, size_t end);
rl_status tok_splitter_finish(struct tok_splitter *splitter, size_t bytes);
rl_status tok_behavior_parse(const json_t *object, const struct tok_where *where,
                             const char *fallback, enum tok_behavior *out);

/* Byte-level alphabet (tokenizer_bytes.c): the printable character that stands for each byte. */
size_t tok_bytes_char(unsigned char byte, char out[2]);
/* Byte of a character of that alphabet, -1 if it is none. */
int tok_bytes_value(uint32_t code);
/* Append a slice of `from` spelled in that alphabet. */
rl_status tok_bytes_spell(struct tok_text *out, const struct tok_text *from, size_t start,
                          size_t bytes);
/* The same of bytes without marks. */
rl_status tok_bytes_spell_view(struct tok_text *out, struct tok_view bytes);

/* ---- BPE (tokenizer_vocab.c, tokenizer_bpe.c) ---- */

/* Spelling <-> id. */
struct tok_vocab {
    char *pool;       /* all spellings */
    uint64_t *offset; /* [limit] into pool, UINT64_MAX: no such id */
    uint32_t *length; /* [limit] */
    int32_t *slots;   /* [mask + 1] id or -1 */
    uint32_t mask;
    int32_t limit; /* one past the largest id */
    size_t count;
};

rl_status tok_vocab_init(struct tok_vocab *vocab, const json_t *object,
                         const struct tok_where *where);
void tok_vocab_fini(struct tok_vocab *vocab);
int32_t tok_vocab_find(const struct tok_vocab *vocab, const char *data, size_t bytes);
bool tok_vocab_spelling(const struct tok_vocab *vocab, int32_t id, struct tok_view *out);

struct tok_merge {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: free */
    uint32_t rank;
    int32_t id;
};

struct tok_bpe {
    struct tok_vocab vocab;
    struct tok_merge *merges; /* [merge_mask + 1] open addressing */
    uint64_t merge_mask;
    int32_t direct[0x250];        /* id of one-character tokens, -1 if none */
    int32_t byte_ids[256];        /* <0x..> tokens, -1 if none */
    _Atomic unsigned char *whole; /* [vocab.limit] is a word equal to the token that token alone? */
    struct tok_view unk;          /* data NULL: none */
    int32_t unk_id;               /* -1: not in the vocabulary */
    struct tok_view prefix;       /* bytes 0: none */
    struct tok_view suffix;
    bool fuse_unk;
    bool byte_fallback;
    bool ignore_merges;
    bool mark_joined; /* a merge joins what is not all U+2581 with U+2581 behind it */
    bool mark_cuts;   /* so that words may be cut before each U+2581 behind another character */
};

/* U+2581, which stands for a space in many vocabularies. */
#define TOK_SPACE_MARK "\xE2\x96\x81"
enum { TOK_SPACE_MARK_BYTES = sizeof(TOK_SPACE_MARK) - 1 };

struct tok_symbol {
    int32_t id;
    int32_t previous;
    int32_t next;
    uint32_t bytes; /* 0: merged away */
};

struct tok_heap_entry {
    uint32_t rank;
    int32_t position;
    int32_t id;
};

/* Working space of the merge loop. Zero-initialise. */
struct tok_bpe_work {
    struct tok_symbol *symbols;
    size_t symbol_count;
    size_t symbol_capacity;
    struct tok_heap_entry *heap;
    size_t heap_count;
    size_t heap_capacity;
    struct tok_text spelling;
};

rl_status tok_bpe_init(struct tok_bpe *bpe, const json_t *json, const struct tok_where *where);
void tok_bpe_fini(struct tok_bpe *bpe);

/* Append the ids of one word. Errors: RL_NO_MEMORY, RL_INVALID (unk_token not in vocab). */
rl_status tok_bpe_encode(const struct tok_bpe *bpe, struct tok_view word, struct tok_bpe_work *work,
                         struct token_buffer *out);
void tok_bpe_work_fini(struct tok_bpe_work *work);

/* Make room for `extra` more ids. Errors: RL_NO_MEMORY. */
rl_status tok_buffer_reserve(struct token_buffer *buffer, size_t extra);

/* Append an id. Errors: RL_NO_MEMORY. */
rl_status tok_buffer_push(struct token_buffer *buffer, int32_t id);

/* ---- words to ids, with a memory of recent words (tokenizer_words.c) ---- */

enum {
    TOK_WORD_BYTES = 31,      /* longest word that is remembered */
    TOK_WORD_IDS = 7,         /* most ids that are */
    TOK_WORD_SLOTS = 1 << 15, /* words remembered at most */
    TOK_WORD_SLACK = 32       /* bytes behind a word that may be read */
};

/* A word and its ids; one line of the processor's cache. */
struct tok_word_entry {
    unsigned char word[TOK_WORD_BYTES + 1]; /* padded with zeros; last: its length, 0 if free */
    int32_t ids[TOK_WORD_IDS + 1];          /* last: how many */
};

/* One encoder's state: of one thread at a time. */
struct tok_words {
    const struct tok_bpe *bpe;
    bool raw;                       /* words are to be spelled in the byte-level alphabet first */
    struct tok_word_entry *entries; /* [TOK_WORD_SLOTS], two places for each word */
    struct tok_bpe_work work;
    struct tok_text spelled;
};

/* Errors: RL_NO_MEMORY. */
rl_status tok_words_init(struct tok_words *words, const struct tok_bpe *bpe, bool raw);
void tok_words_fini(struct tok_words *words);

/* Append the ids of a word, behind which TOK_WORD_SLACK bytes can be read (whatever they are).
 * Errors: as tok_bpe_encode. */
rl_status tok_words_encode(struct tok_words *words, struct tok_view word, struct token_buffer *out);

/* The same for each word that `scan` finds in a text, with the same slack behind it. */
rl_status tok_words_scan(struct tok_words *words, tok_scan_fn scan, struct tok_view text,
                         struct token_buffer *out);

/* ---- added tokens (tokenizer_added.c) ---- */

struct tok_added_token {
    struct tok_view content;
    struct tok_view display; /* what decoding gives: the normalized content of a normalized token */
    bool skipped;            /* by decoding without special tokens: display is a special token */
    int32_t id;
    bool single_word;
    bool lstrip;
    bool rstrip;
    bool normalized;
    bool special;
};

/* A trie over bytes: children of a node are a list; those of the root a table. */
struct tok_trie_node {
    unsigned char byte;
    int32_t child;   /* first child, -1: none */
    int32_t sibling; /* -1: none */
    int32_t token;   /* index of the token that ends here, -1: none */
};

struct tok_trie {
    struct tok_trie_node *nodes;
    size_t count;
    size_t capacity;
    int32_t root[256]; /* node by first byte, -1: none */
    bool has_special;
};

struct tok_added {
    struct tok_added_token *tokens; /* [count] in file order */
    size_t count;
    int32_t *by_id; /* [room] index of the token, -1: none */
    size_t room;
    int32_t limit;              /* one past the largest id */
    struct tok_trie contents;   /* all, as the file spells them */
    struct tok_trie raw;        /* matched before normalization */
    struct tok_trie normalized; /* matched after it */
    struct tok_regex *word;     /* one word character, if a token is single_word */
};

rl_status tok_added_init(struct tok_added *added, const json_t *array,
                         const struct tok_where *where, const struct tok_vocab *vocab,
                         const struct tok_normalizer *normalizer);
void tok_added_fini(struct tok_added *added);
const struct tok_added_token *tok_added_by_id(const struct tok_added *added, int32_t id);
const struct tok_added_token *tok_added_by_content(const struct tok_added *added,
                                                   struct tok_view content);

/* Cut text [start, start + bytes) at the trie's tokens and append the pieces. Where the text's
 * marks have TOK_MARK_PLAIN, or `plain` is true, special tokens are not matched. */
struct tok_added_scan {
    const struct tok_added *added;
    const struct tok_trie *trie;
    const struct tok_text *text;
    size_t start;
    size_t bytes;
    bool plain;
};
rl_status tok_added_split(const struct tok_added_scan *scan, struct tok_pieces *out);

/* ---- post-processor (tokenizer_post.c) ---- */

struct tok_post {
    struct token_buffer single; /* template: id, or TOK_POST_SEQUENCE for the text's ids */
    bool active;
};
enum { TOK_POST_SEQUENCE = -1 };
rl_status tok_post_init(struct tok_post *post, const json_t *json, const struct tok_where *where);
void tok_post_fini(struct tok_post *post);
/* Apply the template to out[from ..]. */
rl_status tok_post_run(const struct tok_post *post, bool add_special, size_t from,
                       struct token_buffer *out);

/* ---- decoder (tokenizer_decode.c) ---- */

/* Tokens as strings, one after another. Zero-initialise. */
struct tok_strings {
    struct tok_text text;
    size_t *ends; /* [count] */
    size_t count;
    size_t capacity;
};

rl_status tok_strings_end(struct tok_strings *strings);
struct tok_view tok_strings_get(const struct tok_strings *strings, size_t index);
void tok_strings_fini(struct tok_strings *strings);

struct tok_decoder;
rl_status tok_decoder_create(const json_t *json, const struct tok_where *where, int depth,
                             struct tok_decoder **out);
void tok_decoder_destroy(struct tok_decoder *decoder);
rl_status tok_decoder_run(const struct tok_decoder *decoder, struct tok_strings *strings,
                          struct tok_strings *scratch);

/* ---- the whole (tokenizer.c, tokenizer_encode.c, tokenizer_config.c) ---- */

struct tok_idle;

struct tokenizer {
    char *dir;
    struct tok_normalizer *normalizer; /* NULL: none */
    struct tok_pretokenizer *pretokenizer;
    struct tok_bpe bpe;
    struct tok_added added;
    struct tok_post post;
    struct tok_decoder *decoder; /* NULL: tokens joined by spaces */
    bool needs_origin;
    struct tok_idle *idle; /* working spaces between calls */
    int32_t eos_id;
    int32_t bos_id;
    int32_t pad_id;
    char *special_text[4]; /* bos, eos, pad, unk spelled out; NULL where not set */
    char *chat_template;   /* NULL: none */
};

/* Read tokenizer_config.json and friends into the tokenizer. */
rl_status tok_config_load(struct tokenizer *tokenizer);

/* A place for working spaces that no call is using. Errors: RL_NO_MEMORY. */
rl_status tok_idle_create(struct tok_idle **out);
/* Free it and them. Takes NULL. */
void tok_idle_destroy(struct tok_idle *idle);

#endif
