/* The vocabulary: spelling to id by one open-addressing table, id to spelling by two arrays.
 * Immutable after load. Invariant: ids are unique, spellings are unique. */
#include "model/tokenizer_json.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t value)
{
    value ^= value >> 32;
    value *= 0xD6E8FEB86659FD93ULL;
    value ^= value >> 29;
    return value;
}

static uint64_t hash_bytes(const char *data, size_t bytes)
{
    uint64_t hash = 0x9E3779B97F4A7C15ULL ^ bytes;
    uint64_t word;
    for (; bytes >= 8; bytes -= 8, data += 8) {
        memcpy(&word, data, 8);
        hash = mix(hash ^ word) * 0x9E3779B97F4A7C15ULL;
    }
    word = 0;
    for (size_t i = 0; i < bytes; i++) {
        word |= (uint64_t)(unsigned char)data[i] << (8 * i);
    }
    hash = mix(hash ^ word) * 0x9E3779B97F4A7C15ULL;
    return hash ^ hash >> 31;
}

void tok_vocab_fini(struct tok_vocab *vocab)
{
    free(vocab->pool);
    free(vocab->offset);
    free(vocab->length);
    free(vocab->slots);
    memset(vocab, 0, sizeof(*vocab));
}

/* First pass: sizes and the largest id. */
static rl_status vocab_measure(struct tok_vocab *vocab, const json_t *object,
                               const struct tok_where *where, size_t *pool_bytes)
{
    const char *spelling;
    json_t *value;
    *pool_bytes = 0;
    json_object_foreach((json_t *)object, spelling, value)
    {
        int32_t id;
        if (!json_is_integer(value) || json_integer_value(value) < 0 ||
            json_integer_value(value) >= TOK_ID_LIMIT) {
            struct tok_where here = tok_where_child(where, spelling);
            RL_TRY(tok_json_id(value, &here, &id));
        }
        id = (int32_t)json_integer_value(value);
        vocab->limit = id >= vocab->limit ? id + 1 : vocab->limit;
        *pool_bytes += strlen(spelling);
        vocab->count++;
    }
    return RL_OK;
}

static rl_status vocab_allocate(struct tok_vocab *vocab, const struct tok_where *where,
                                size_t pool_bytes)
{
    uint32_t slots = 16;
    while (slots < vocab->count * 2) {
        slots *= 2;
    }
    size_t limit = (size_t)vocab->limit;
    vocab->mask = slots - 1;
    vocab->pool = malloc(pool_bytes + 1);
    vocab->offset = malloc((limit + 1) * sizeof(*vocab->offset));
    vocab->length = calloc(limit + 1, sizeof(*vocab->length));
    vocab->slots = malloc(slots * sizeof(*vocab->slots));
    if (vocab->pool == NULL || vocab->offset == NULL || vocab->length == NULL ||
        vocab->slots == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for a vocabulary of %zu", where->file,
                       vocab->count);
    }
    memset(vocab->offset, 0xFF, (limit + 1) * sizeof(*vocab->offset));
    memset(vocab->slots, 0xFF, slots * sizeof(*vocab->slots));
    return RL_OK;
}

static void vocab_insert(struct tok_vocab *vocab, int32_t id, const char *data, size_t bytes)
{
    uint32_t slot = (uint32_t)hash_bytes(data, bytes) & vocab->mask;
    while (vocab->slots[slot] >= 0) {
        slot = (slot + 1) & vocab->mask;
    }
    vocab->slots[slot] = id;
}

rl_status tok_vocab_init(struct tok_vocab *vocab, const json_t *object,
                         const struct tok_where *where)
{
    size_t pool_bytes;
    uint64_t at = 0;
    const char *spelling;
    json_t *value;
    RL_TRY(vocab_measure(vocab, object, where, &pool_bytes));
    RL_TRY(vocab_allocate(vocab, where, pool_bytes));
    json_object_foreach((json_t *)object, spelling, value)
    {
        int32_t id = (int32_t)json_integer_value(value);
        size_t bytes = strlen(spelling);
        if (vocab->offset[id] != UINT64_MAX) {
            return rl_fail(RL_INVALID,
                           "%s: %s: id %d belongs to two tokens, \"%.*s\" and \"%.60s\"",
                           where->file, where->key, id, (int)vocab->length[id],
                           vocab->pool + vocab->offset[id], spelling);
        }
        memcpy(vocab->pool + at, spelling, bytes);
        vocab->offset[id] = at;
        vocab->length[id] = (uint32_t)bytes;
        vocab_insert(vocab, id, spelling, bytes);
        at += bytes;
    }
    return RL_OK;
}

int32_t tok_vocab_find(const struct tok_vocab *vocab, const char *data, size_t bytes)
{
    if (vocab->slots == NULL) {
        return -1;
    }
    uint32_t slot = (uint32_t)hash_bytes(data, bytes) & vocab->mask;
    for (;;) {
        int32_t id = vocab->slots[slot];
        if (id < 0) {
            return -1;
        }
        if (vocab->length[id] == bytes &&
            memcmp(vocab->pool + vocab->offset[id], data, bytes) == 0) {
            return id;
        }
        slot = (slot + 1) & vocab->mask;
    }
}

bool tok_vocab_spelling(const struct tok_vocab *vocab, int32_t id, struct tok_view *out)
{
    if (id < 0 || id >= vocab->limit || vocab->offset[id] == UINT64_MAX) {
        return false;
    }
    out->data = vocab->pool + vocab->offset[id];
    out->bytes = vocab->length[id];
    return true;
}
