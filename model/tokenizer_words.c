/* From words to ids with a memory of recent words in front of the merging, since few words make up
 * most of a text. Bounded: two places a word, the newer one kept. Invariant: what is remembered is
 * what merging gave, so the ids never depend on what was encoded before. */
#include "model/tokenizer_internal.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

enum {
    WORD_ENTRY_BYTES = sizeof(struct tok_word_entry),
    LAST_BYTE_SHIFT = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 56 : 0
};

rl_status tok_words_init(struct tok_words *words, const struct tok_bpe *bpe, bool raw)
{
    size_t bytes = (size_t)TOK_WORD_SLOTS * WORD_ENTRY_BYTES;
    memset(words, 0, sizeof(*words));
    words->bpe = bpe;
    words->raw = raw;
    words->entries = aligned_alloc(WORD_ENTRY_BYTES, bytes);
    if (words->entries == NULL) {
        return rl_fail(RL_NO_MEMORY, "tokenizer: no memory to remember %d words", TOK_WORD_SLOTS);
    }
    memset(words->entries, 0, bytes);
    return RL_OK;
}

void tok_words_fini(struct tok_words *words)
{
    free(words->entries);
    tok_bpe_work_fini(&words->work);
    tok_text_fini(&words->spelled);
    memset(words, 0, sizeof(*words));
}

/* A word as an entry has it: padded with zeros, its length last. */
struct word_key {
    uint64_t parts[4];
};

static struct word_key key_make(struct tok_view word)
{
    /* taking 32 bytes from `length` before the middle keeps the word's own and clears the rest */
    static const unsigned char keep[2 * TOK_WORD_SLACK] = {
        0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
        0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
    struct word_key key;
    struct word_key mask;
    memcpy(&key, word.data, sizeof(key));
    memcpy(&mask, keep + TOK_WORD_SLACK - word.bytes, sizeof(mask));
    for (int i = 0; i < 4; i++) {
        key.parts[i] &= mask.parts[i];
    }
    key.parts[3] |= (uint64_t)word.bytes
                    << LAST_BYTE_SHIFT; /* free: words are shorter than a key */
    return key;
}

static size_t key_slot(const struct word_key *key)
{
    uint64_t hash = key->parts[0] * 0x9E3779B97F4A7C15ULL + key->parts[1] * 0xD6E8FEB86659FD93ULL +
                    key->parts[2] * 0xC2B2AE3D27D4EB4FULL + key->parts[3] * 0x165667B19E3779F9ULL;
    hash = (hash ^ hash >> 32) * 0x9FB21C651E98DF25ULL;
    return (size_t)(hash >> 40) & (TOK_WORD_SLOTS - 1);
}

static rl_status word_merge(struct tok_words *words, struct tok_view word, struct token_buffer *out)
{
    if (words->raw) {
        words->spelled.bytes = 0;
        RL_TRY(tok_bytes_spell_view(&words->spelled, word));
        word = (struct tok_view){words->spelled.data, words->spelled.bytes};
    }
    return tok_bpe_encode(words->bpe, word, &words->work, out);
}

/* Merge a word that is not there and remember it in the place of the older of two. */
static rl_status word_learn(struct tok_words *words, const struct word_key *key,
                            struct tok_view word, struct token_buffer *out)
{
    size_t slot = key_slot(key);
    size_t before = out->count;
    RL_TRY(word_merge(words, word, out));
    size_t count = out->count - before;
    if (count > TOK_WORD_IDS) {
        return RL_OK;
    }
    struct tok_word_entry *entry = &words->entries[slot];
    words->entries[slot ^ 1] = *entry;
    memset(entry, 0, sizeof(*entry));
    memcpy(entry->word, key, sizeof(entry->word));
    if (count > 0) {
        memcpy(entry->ids, out->ids + before, count * sizeof(entry->ids[0]));
    }
    entry->ids[TOK_WORD_IDS] = (int32_t)count;
    return RL_OK;
}

static rl_status word_encode(struct tok_words *words, struct tok_view word,
                             struct token_buffer *out)
{
    if (word.bytes > TOK_WORD_BYTES) {
        return word_merge(words, word, out);
    }
    struct word_key key = key_make(word);
    size_t slot = key_slot(&key);
    const struct tok_word_entry *entry = &words->entries[slot];
    if (memcmp(entry->word, &key, sizeof(key)) != 0) {
        entry = &words->entries[slot ^ 1];
        if (memcmp(entry->word, &key, sizeof(key)) != 0) {
            return word_learn(words, &key, word, out);
        }
    }
    if (out->capacity - out->count < TOK_WORD_IDS + 1) {
        RL_TRY(tok_buffer_reserve(out, TOK_WORD_IDS + 1));
    }
    memcpy(out->ids + out->count, entry->ids, sizeof(entry->ids)); /* the count goes with them */
    out->count += (size_t)entry->ids[TOK_WORD_IDS];
    return RL_OK;
}

/* Bytes up to the next space mark behind another character, all if there is none. */
static size_t marked_part(struct tok_view text)
{
    size_t at = 0;
    while (text.bytes - at >= TOK_SPACE_MARK_BYTES &&
           memcmp(text.data + at, TOK_SPACE_MARK, TOK_SPACE_MARK_BYTES) == 0) {
        at += TOK_SPACE_MARK_BYTES;
    }
    while (at < text.bytes) {
        const char *mark = memchr(text.data + at, TOK_SPACE_MARK[0], text.bytes - at);
        if (mark == NULL) {
            break;
        }
        at = (size_t)(mark - text.data);
        if (text.bytes - at >= TOK_SPACE_MARK_BYTES &&
            memcmp(mark, TOK_SPACE_MARK, TOK_SPACE_MARK_BYTES) == 0) {
            return at;
        }
        at++;
    }
    return text.bytes;
}

rl_status tok_words_encode(struct tok_words *words, struct tok_view word, struct token_buffer *out)
{
    while (words->bpe->mark_cuts && word.bytes > 0) {
        size_t part = marked_part(word);
        RL_TRY(word_encode(words, (struct tok_view){word.data, part}, out));
        word.data += part;
        word.bytes -= part;
    }
    return word.bytes > 0 ? word_encode(words, word, out) : RL_OK;
}

rl_status tok_words_scan(struct tok_words *words, tok_scan_fn scan, struct tok_view text,
                         struct token_buffer *out)
{
    for (size_t at = 0; at < text.bytes;) {
        size_t end = scan(text.data, at, text.bytes);
        RL_TRY(word_encode(words, (struct tok_view){text.data + at, end - at}, out));
        at = end;
    }
    return RL_OK;
}
