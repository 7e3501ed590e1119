/* Growable UTF-8 text with optional marks per byte. Owns the memory of struct tok_text and the
 * rules of well-formed UTF-8; knows nothing of tokens. Invariant: what is appended is valid UTF-8
 * (the lossy append makes it so). */
#include "model/tokenizer_internal.h"

#include "core/log.h"

#include <stdlib.h>
#include <string.h>

void tok_text_fini(struct tok_text *text)
{
    free(text->data);
    free(text->mark);
    text->data = NULL;
    text->mark = NULL;
    text->bytes = 0;
    text->capacity = 0;
}

rl_status tok_text_reserve(struct tok_text *text, size_t extra)
{
    if (text->capacity - text->bytes >= extra) {
        return RL_OK;
    }
    size_t capacity = text->capacity + text->capacity / 2 + extra + 64;
    if (capacity < extra) {
        return rl_fail(RL_NO_MEMORY, "tokenizer: text too long");
    }
    char *data = realloc(text->data, capacity);
    if (data == NULL) {
        return rl_fail(RL_NO_MEMORY, "tokenizer: no memory for %zu bytes of text", capacity);
    }
    text->data = data;
    if (text->marked) {
        unsigned char *mark = realloc(text->mark, capacity);
        if (mark == NULL) {
            return rl_fail(RL_NO_MEMORY, "tokenizer: no memory for %zu marks", capacity);
        }
        text->mark = mark;
    }
    text->capacity = capacity;
    return RL_OK;
}

rl_status tok_text_append(struct tok_text *text, const char *data, size_t bytes, unsigned char mark)
{
    if (bytes == 0) {
        return RL_OK;
    }
    RL_TRY(tok_text_reserve(text, bytes));
    memcpy(text->data + text->bytes, data, bytes);
    if (text->marked) {
        memset(text->mark + text->bytes, mark, bytes);
    }
    text->bytes += bytes;
    return RL_OK;
}

rl_status tok_text_copy(struct tok_text *text, const struct tok_text *from, size_t start,
                        size_t bytes)
{
    size_t at = text->bytes;
    if (bytes == 0) {
        return RL_OK;
    }
    RL_TRY(tok_text_append(text, from->data + start, bytes, 0));
    if (text->marked && from->marked) {
        memcpy(text->mark + at, from->mark + start, bytes);
    }
    return RL_OK;
}

rl_status tok_text_put(struct tok_text *text, uint32_t code, unsigned char mark)
{
    char spelled[4];
    return tok_text_append(text, spelled, tok_utf8_put(code, spelled), mark);
}

void tok_text_swap(struct tok_text *a, struct tok_text *b)
{
    struct tok_text held = *a;
    *a = *b;
    *b = held;
}

unsigned char tok_text_mark(const struct tok_text *text, size_t offset)
{
    return text->marked && offset < text->bytes ? text->mark[offset] : 0;
}

uint32_t tok_utf8_get(const char *data, size_t *bytes)
{
    const unsigned char *b = (const unsigned char *)data;
    if (b[0] < 0x80) {
        *bytes = 1;
        return b[0];
    }
    if (b[0] < 0xE0) {
        *bytes = 2;
        return (b[0] & 0x1FU) << 6 | (b[1] & 0x3FU);
    }
    if (b[0] < 0xF0) {
        *bytes = 3;
        return (b[0] & 0x0FU) << 12 | (b[1] & 0x3FU) << 6 | (b[2] & 0x3FU);
    }
    *bytes = 4;
    return (b[0] & 0x07U) << 18 | (b[1] & 0x3FU) << 12 | (b[2] & 0x3FU) << 6 | (b[3] & 0x3FU);
}

size_t tok_utf8_put(uint32_t code, char *out)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xC0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3F));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xE0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3F));
        out[2] = (char)(0x80 | (code & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3F));
    out[2] = (char)(0x80 | (code >> 6 & 0x3F));
    out[3] = (char)(0x80 | (code & 0x3F));
    return 4;
}

/* Bytes of a sequence by its first byte and the legal range of its second; 0: no such start. */
static size_t sequence_length(unsigned char first, unsigned char *low, unsigned char *high)
{
    *low = 0x80;
    *high = 0xBF;
    if (first < 0x80) {
        return 1;
    }
    if (first >= 0xC2 && first <= 0xDF) {
        return 2;
    }
    if (first >= 0xE0 && first <= 0xEF) {
        *low = first == 0xE0 ? 0xA0 : 0x80;
        *high = first == 0xED ? 0x9F : 0xBF;
        return 3;
    }
    if (first >= 0xF0 && first <= 0xF4) {
        *low = first == 0xF0 ? 0x90 : 0x80;
        *high = first == 0xF4 ? 0x8F : 0xBF;
        return 4;
    }
    return 0;
}

/* Bytes at data that belong to one sequence; *whole if it is complete. */
static size_t sequence_scan(const char *data, size_t bytes, bool *whole)
{
    unsigned char low;
    unsigned char high;
    size_t length = sequence_length((unsigned char)data[0], &low, &high);
    size_t seen = 1;
    while (seen < length && seen < bytes) {
        unsigned char byte = (unsigned char)data[seen];
        if (byte < low || byte > high) {
            break;
        }
        low = 0x80;
        high = 0xBF;
        seen++;
    }
    *whole = length != 0 && seen == length;
    return seen;
}

size_t tok_utf8_valid(const char *data, size_t bytes)
{
    size_t at = 0;
    while (at < bytes) {
        uint64_t word;
        while (bytes - at >= 8) {
            memcpy(&word, data + at, 8);
            if ((word & 0x8080808080808080ULL) != 0) {
                break;
            }
            at += 8;
        }
        if (at == bytes) {
            break;
        }
        bool whole;
        size_t length = sequence_scan(data + at, bytes - at, &whole);
        if (!whole) {
            return at;
        }
        at += length;
    }
    return bytes;
}

size_t tok_utf8_bad(const char *data, size_t bytes)
{
    bool whole;
    return sequence_scan(data, bytes, &whole);
}

rl_status tok_text_append_lossy(struct tok_text *text, const char *data, size_t bytes)
{
    while (bytes > 0) {
        size_t good = tok_utf8_valid(data, bytes);
        RL_TRY(tok_text_append(text, data, good, 0));
        if (good == bytes) {
            break;
        }
        RL_TRY(tok_text_append(text, "\xEF\xBF\xBD", 3, 0));
        good += tok_utf8_bad(data + good, bytes - good);
        data += good;
        bytes -= good;
    }
    return RL_OK;
}
