/* The byte-level alphabet: each of the 256 bytes has a printable character, itself where it is one,
 * else one from U+0100 on, in byte order. Pure functions. */
#include "model/tokenizer_internal.h"

static bool is_itself(uint32_t code)
{
    return (code >= '!' && code <= '~') || (code >= 0xA1 && code <= 0xAC) ||
           (code >= 0xAE && code <= 0xFF);
}

/* Code point of a byte: unprintable ones are numbered 0x100.. in the order 0-32, 127-160, 173. */
static uint32_t byte_code(unsigned char byte)
{
    if (is_itself(byte)) {
        return byte;
    }
    if (byte <= 32) {
        return 0x100U + byte;
    }
    return byte == 173 ? 0x143U : 0x100U + 33 + (byte - 127U);
}

size_t tok_bytes_char(unsigned char byte, char out[2])
{
    return tok_utf8_put(byte_code(byte), out);
}

int tok_bytes_value(uint32_t code)
{
    if (code < 0x100) {
        return is_itself(code) ? (int)code : -1;
    }
    if (code <= 0x120) {
        return (int)(code - 0x100);
    }
    if (code <= 0x142) {
        return (int)(code - 0x100 - 33 + 127);
    }
    return code == 0x143 ? 173 : -1;
}

rl_status tok_bytes_spell(struct tok_text *out, const struct tok_text *from, size_t start,
                          size_t bytes)
{
    RL_TRY(tok_text_reserve(out, bytes * 2));
    char *to = out->data + out->bytes;
    for (size_t i = 0; i < bytes; i++) {
        unsigned char byte = (unsigned char)from->data[start + i];
        size_t length = 1;
        if (byte > ' ' && byte < 0x7F) {
            *to = (char)byte;
        } else {
            length = tok_bytes_char(byte, to);
        }
        for (size_t k = 0; out->marked && k < length; k++) {
            out->mark[(size_t)(to - out->data) + k] = tok_text_mark(from, start + i);
        }
        to += length;
    }
    out->bytes = (size_t)(to - out->data);
    return RL_OK;
}

rl_status tok_bytes_spell_view(struct tok_text *out, struct tok_view bytes)
{
    RL_TRY(tok_text_reserve(out, bytes.bytes * 2));
    char *to = out->data + out->bytes;
    for (size_t i = 0; i < bytes.bytes; i++) {
        to += tok_bytes_char((unsigned char)bytes.data[i], to);
    }
    out->bytes = (size_t)(to - out->data);
    return RL_OK;
}
