/* Byte-pair encoding of one word. Short words are merged by scanning for the lowest rank, long ones
 * with a heap over a linked list, so a word of n characters costs O(n log n). Both pick the lowest
 * rank and, among equals, the leftmost pair: the order of the reference. */
#include "model/tokenizer_internal.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

enum { SHORT_WORD = 24, WHOLE_UNKNOWN = 0, WHOLE_YES = 1, WHOLE_NO = 2 };

void tok_bpe_work_fini(struct tok_bpe_work *work)
{
    free(work->symbols);
    free(work->heap);
    tok_text_fini(&work->spelling);
    memset(work, 0, sizeof(*work));
}

rl_status tok_buffer_reserve(struct token_buffer *buffer, size_t extra)
{
    if (buffer->capacity - buffer->count >= extra) {
        return RL_OK;
    }
    size_t capacity = buffer->capacity * 2 + extra + 64;
    int32_t *ids = realloc(buffer->ids, capacity * sizeof(*ids));
    if (ids == NULL) {
        return rl_fail(RL_NO_MEMORY, "tokenizer: no memory for %zu ids", capacity);
    }
    buffer->ids = ids;
    buffer->capacity = capacity;
    return RL_OK;
}

rl_status tok_buffer_push(struct token_buffer *buffer, int32_t id)
{
    RL_TRY(tok_buffer_reserve(buffer, 1));
    buffer->ids[buffer->count++] = id;
    return RL_OK;
}

/* ---- symbols ---- */

static rl_status symbol_push(struct tok_bpe_work *work, int32_t id, size_t bytes)
{
    if (work->symbol_count == work->symbol_capacity) {
        size_t capacity = work->symbol_capacity * 2 + 64;
        struct tok_symbol *symbols =
            capacity > INT32_MAX ? NULL : realloc(work->symbols, capacity * sizeof(*symbols));
        if (symbols == NULL) {
            return rl_fail(RL_NO_MEMORY, "tokenizer: no memory for a word of %zu", capacity);
        }
        work->symbols = symbols;
        work->symbol_capacity = capacity;
    }
    int32_t index = (int32_t)work->symbol_count++;
    if (index > 0) {
        work->symbols[index - 1].next = index;
    }
    work->symbols[index] = (struct tok_symbol){id, index - 1, -1, (uint32_t)bytes};
    return RL_OK;
}

/* One character of the word on its way to a symbol. */
struct bpe_character {
    struct tok_view spelling; /* with prefix and suffix */
    size_t bytes;             /* without */
};

struct bpe_unknown {
    bool pending;
    size_t bytes;
};

static rl_status unknown_flush(const struct tok_bpe *bpe, struct bpe_unknown *unknown,
                               struct tok_bpe_work *work)
{
    if (!unknown->pending) {
        return RL_OK;
    }
    unknown->pending = false;
    return symbol_push(work, bpe->unk_id, unknown->bytes);
}

static bool byte_tokens_exist(const struct tok_bpe *bpe, struct tok_view spelling)
{
    for (size_t i = 0; i < spelling.bytes; i++) {
        if (bpe->byte_ids[(unsigned char)spelling.data[i]] < 0) {
            return false;
        }
    }
    return true;
}

/* Unknown characters: as bytes, else as the unknown token, else dropped. A pending unknown token is
 * not flushed before byte tokens: the reference adds it behind them. */
static rl_status unknown_character(const struct tok_bpe *bpe, const struct bpe_character *character,
                                   struct bpe_unknown *unknown, struct tok_bpe_work *work)
{
    if (bpe->byte_fallback && byte_tokens_exist(bpe, character->spelling)) {
        for (size_t i = 0; i < character->spelling.bytes; i++) {
            unsigned char byte = (unsigned char)character->spelling.data[i];
            RL_TRY(symbol_push(work, bpe->byte_ids[byte], 1));
        }
        return RL_OK;
    }
    if (bpe->unk.data == NULL) {
        return RL_OK;
    }
    if (bpe->unk_id < 0) {
        return rl_fail(RL_INVALID, "tokenizer: unk_token \"%.60s\" is not in model.vocab",
                       bpe->unk.data);
    }
    if (unknown->pending && bpe->fuse_unk) {
        unknown->bytes += character->bytes;
        return RL_OK;
    }
    RL_TRY(unknown_flush(bpe, unknown, work));
    unknown->pending = true;
    unknown->bytes = character->bytes;
    return RL_OK;
}

/* Spelling of the character at [at, at + bytes) with the affixes that its place asks for. */
static rl_status character_spelling(const struct tok_bpe *bpe, struct tok_view word, size_t at,
                                    struct bpe_character *character, struct tok_bpe_work *work)
{
    bool prefixed = at > 0 && bpe->prefix.bytes > 0;
    bool suffixed = at + character->bytes == word.bytes && bpe->suffix.bytes > 0;
    character->spelling = (struct tok_view){word.data + at, character->bytes};
    if (!prefixed && !suffixed) {
        return RL_OK;
    }
    work->spelling.bytes = 0;
    if (prefixed) {
        RL_TRY(tok_text_append(&work->spelling, bpe->prefix.data, bpe->prefix.bytes, 0));
    }
    RL_TRY(tok_text_append(&work->spelling, word.data + at, character->bytes, 0));
    if (suffixed) {
        RL_TRY(tok_text_append(&work->spelling, bpe->suffix.data, bpe->suffix.bytes, 0));
    }
    character->spelling = (struct tok_view){work->spelling.data, work->spelling.bytes};
    return RL_OK;
}

static rl_status word_symbols(const struct tok_bpe *bpe, struct tok_view word,
                              struct tok_bpe_work *work)
{
    struct bpe_unknown unknown = {0};
    work->symbol_count = 0;
    for (size_t at = 0; at < word.bytes;) {
        struct bpe_character character;
        uint32_t code = tok_utf8_get(word.data + at, &character.bytes);
        RL_TRY(character_spelling(bpe, word, at, &character, work));
        bool bare = character.spelling.data == word.data + at;
        int32_t id =
            bare && code < sizeof(bpe->direct) / sizeof(bpe->direct[0])
                ? bpe->direct[code]
                : tok_vocab_find(&bpe->vocab, character.spelling.data, character.spelling.bytes);
        if (id >= 0) {
            RL_TRY(unknown_flush(bpe, &unknown, work));
            RL_TRY(symbol_push(work, id, character.bytes));
        } else {
            RL_TRY(unknown_character(bpe, &character, &unknown, work));
        }
        at += character.bytes;
    }
    return unknown_flush(bpe, &unknown, work);
}

/* ---- merging ---- */

static const struct tok_merge *merge_find(const struct tok_bpe *bpe, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t hash = pair * 0x9E3779B97F4A7C15ULL;
    uint64_t slot = (hash ^ hash >> 32) & bpe->merge_mask;
    while (bpe->merges[slot].pair != pair) {
        if (bpe->merges[slot].pair == UINT64_MAX) {
            return NULL;
        }
        slot = (slot + 1) & bpe->merge_mask;
    }
    return &bpe->merges[slot];
}

static rl_status merge_short(const struct tok_bpe *bpe, struct tok_bpe_work *work,
                             struct token_buffer *out)
{
    const struct tok_merge *pairs[SHORT_WORD];
    int32_t ids[SHORT_WORD];
    size_t count = work->symbol_count;
    for (size_t i = 0; i < count; i++) {
        ids[i] = work->symbols[i].id;
    }
    for (size_t i = 0; i + 1 < count; i++) {
        pairs[i] = merge_find(bpe, ids[i], ids[i + 1]);
    }
    for (;;) {
        size_t best = count;
        for (size_t i = 0; i + 1 < count; i++) {
            if (pairs[i] != NULL && (best == count || pairs[i]->rank < pairs[best]->rank)) {
                best = i;
            }
        }
        if (best == count) {
            break;
        }
        ids[best] = pairs[best]->id;
        memmove(ids + best + 1, ids + best + 2, (count - best - 2) * sizeof(*ids));
        memmove(pairs + best, pairs + best + 1, (count - best - 2) * sizeof(*pairs));
        count--;
        if (best > 0) {
            pairs[best - 1] = merge_find(bpe, ids[best - 1], ids[best]);
        }
        if (best + 1 < count) {
            pairs[best] = merge_find(bpe, ids[best], ids[best + 1]);
        }
    }
    for (size_t i = 0; i < count; i++) {
        RL_TRY(tok_buffer_push(out, ids[i]));
    }
    return RL_OK;
}

static bool heap_before(const struct tok_heap_entry *a, const struct tok_heap_entry *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->position < b->position;
}

static rl_status heap_push(struct tok_bpe_work *work, struct tok_heap_entry entry)
{
    if (work->heap_count == work->heap_capacity) {
        size_t capacity = work->heap_capacity * 2 + 64;
        struct tok_heap_entry *heap = realloc(work->heap, capacity * sizeof(*heap));
        if (heap == NULL) {
            return rl_fail(RL_NO_MEMORY, "tokenizer: no memory for %zu merges", capacity);
        }
        work->heap = heap;
        work->heap_capacity = capacity;
    }
    size_t at = work->heap_count++;
    while (at > 0 && heap_before(&entry, &work->heap[(at - 1) / 2])) {
        work->heap[at] = work->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    work->heap[at] = entry;
    return RL_OK;
}

static struct tok_heap_entry heap_pop(struct tok_bpe_work *work)
{
    struct tok_heap_entry top = work->heap[0];
    struct tok_heap_entry last = work->heap[--work->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = at * 2 + 1;
        if (child >= work->heap_count) {
            break;
        }
        if (child + 1 < work->heap_count &&
            heap_before(&work->heap[child + 1], &work->heap[child])) {
            child++;
        }
        if (!heap_before(&work->heap[child], &last)) {
            break;
        }
        work->heap[at] = work->heap[child];
        at = child;
    }
    work->heap[at] = last;
    return top;
}

static rl_status heap_offer(const struct tok_bpe *bpe, struct tok_bpe_work *work, int32_t left)
{
    int32_t right = left >= 0 ? work->symbols[left].next : -1;
    if (right < 0) {
        return RL_OK;
    }
    const struct tok_merge *merge =
        merge_find(bpe, work->symbols[left].id, work->symbols[right].id);
    if (merge == NULL) {
        return RL_OK;
    }
    return heap_push(work, (struct tok_heap_entry){merge->rank, left, merge->id});
}

/* Apply one heap entry unless what it stood for is gone. */
static rl_status merge_entry(const struct tok_bpe *bpe, struct tok_bpe_work *work,
                             struct tok_heap_entry entry)
{
    struct tok_symbol *left = &work->symbols[entry.position];
    if (left->bytes == 0 || left->next < 0) {
        return RL_OK;
    }
    struct tok_symbol *right = &work->symbols[left->next];
    const struct tok_merge *merge = merge_find(bpe, left->id, right->id);
    if (merge == NULL || merge->id != entry.id) {
        return RL_OK;
    }
    left->id = entry.id;
    left->bytes += right->bytes;
    left->next = right->next;
    right->bytes = 0;
    if (left->next >= 0) {
        work->symbols[left->next].previous = entry.position;
    }
    RL_TRY(heap_offer(bpe, work, left->previous));
    return heap_offer(bpe, work, entry.position);
}

static rl_status merge_long(const struct tok_bpe *bpe, struct tok_bpe_work *work,
                            struct token_buffer *out)
{
    work->heap_count = 0;
    for (size_t i = 0; i < work->symbol_count; i++) {
        RL_TRY(heap_offer(bpe, work, (int32_t)i));
    }
    while (work->heap_count > 0) {
        RL_TRY(merge_entry(bpe, work, heap_pop(work)));
    }
    for (int32_t i = 0; i >= 0; i = work->symbols[i].next) {
        RL_TRY(tok_buffer_push(out, work->symbols[i].id));
    }
    return RL_OK;
}

static rl_status encode_word(const struct tok_bpe *bpe, struct tok_view word,
                             struct tok_bpe_work *work, struct token_buffer *out)
{
    RL_TRY(word_symbols(bpe, word, work));
    if (work->symbol_count == 0) {
        return RL_OK;
    }
    return work->symbol_count <= SHORT_WORD ? merge_short(bpe, work, out)
                                            : merge_long(bpe, work, out);
}

rl_status tok_bpe_encode(const struct tok_bpe *bpe, struct tok_view word, struct tok_bpe_work *work,
                         struct token_buffer *out)
{
    int32_t id = -1;
    bool plain = bpe->prefix.bytes == 0 && bpe->suffix.bytes == 0;
    if (plain || bpe->ignore_merges) {
        id = tok_vocab_find(&bpe->vocab, word.data, word.bytes);
    }
    if (id < 0) {
        return encode_word(bpe, word, work, out);
    }
    unsigned char known = atomic_load_explicit(&bpe->whole[id], memory_order_relaxed);
    if (bpe->ignore_merges || (plain && known == WHOLE_YES)) {
        return tok_buffer_push(out, id);
    }
    size_t before = out->count;
    RL_TRY(encode_word(bpe, word, work, out));
    if (plain && known == WHOLE_UNKNOWN) {
        /* most words are tokens: remember whether merging this one ends at that token */
        bool whole = out->count == before + 1 && out->ids[before] == id;
        atomic_store_explicit(&bpe->whole[id], whole ? WHOLE_YES : WHOLE_NO, memory_order_relaxed);
    }
    return RL_OK;
}
