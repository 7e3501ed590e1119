/* Writing safetensors. Owns the header's text. Invariant: what is written passes every check of the
 * reader; data begins at a multiple of 8. */
#include "model/safetensors.h"

#include "core/log.h"
#include "core/text.h"
#include "model/safetensors_header.h"
#include "transport/atomic_file.h"

#include <string.h>

enum { HEADER_TEXT_MAX = 100000000 };

static rl_status put_string(struct rl_text *text, const char *string)
{
    RL_TRY(rl_text_append_byte(text, '"'));
    for (const char *s = string; *s != '\0'; s++) {
        unsigned char c = (unsigned char)*s;
        if (c < 0x20) {
            RL_TRY(rl_text_printf(text, "\\u%04x", c));
            continue;
        }
        if (c == '"' || c == '\\') {
            RL_TRY(rl_text_append_byte(text, '\\'));
        }
        RL_TRY(rl_text_append_byte(text, *s));
    }
    return rl_text_append_byte(text, '"');
}

static rl_status check_entry(const char *path, const struct safetensors_entry *entry)
{
    const char *dtype = NULL;
    unsigned bits = safetensors_dtype_bits(entry->dtype, &dtype);
    if (bits < 8 || (uint64_t)safetensors_elements(entry) * (bits / 8) != entry->bytes) {
        return rl_fail(RL_INVALID, "%s: tensor %.200s: %zu bytes do not fit dtype %s and its shape",
                       path, entry->name, entry->bytes, entry->dtype);
    }
    return RL_OK;
}

static rl_status put_entry(struct rl_text *text, const struct safetensors_entry *entry,
                           uint64_t begin)
{
    RL_TRY(rl_text_append_byte(text, ','));
    RL_TRY(put_string(text, entry->name));
    RL_TRY(rl_text_printf(text, ":{\"dtype\":\"%s\",\"shape\":[", entry->dtype));
    for (int i = 0; i < entry->rank; i++) {
        RL_TRY(rl_text_printf(text, "%s%lld", i == 0 ? "" : ",", (long long)entry->shape[i]));
    }
    return rl_text_printf(text, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin,
                          (unsigned long long)(begin + entry->bytes));
}

static rl_status put_header(struct rl_text *text, const char *path,
                            const struct safetensors_entry *entries, int64_t count)
{
    uint64_t begin = 0;
    RL_TRY(rl_text_append_str(text, "{\"__metadata__\":{\"format\":\"pt\"}"));
    for (int64_t i = 0; i < count; i++) {
        RL_TRY(check_entry(path, &entries[i]));
        RL_TRY(put_entry(text, &entries[i], begin));
        begin += entries[i].bytes;
    }
    RL_TRY(rl_text_append_byte(text, '}'));
    while (text->bytes % 8 != 0) {
        RL_TRY(rl_text_append_byte(text, ' '));
    }
    return RL_OK;
}

static rl_status write_header(struct atomic_file *file, const struct rl_text *text)
{
    unsigned char length[8];
    for (int i = 0; i < 8; i++) {
        length[i] = (unsigned char)((uint64_t)text->bytes >> (8 * i));
    }
    RL_TRY(atomic_file_write(file, length, sizeof length));
    return atomic_file_write(file, rl_text_str(text), text->bytes);
}

rl_status safetensors_write_header(const char *path, const struct safetensors_entry *entries,
                                   int64_t count, struct atomic_file **out)
{
    struct rl_text text;
    struct atomic_file *file = NULL;
    rl_text_init(&text, HEADER_TEXT_MAX);
    rl_status status = RL_OK;
    RL_TRY_GOTO(put_header(&text, path, entries, count), status, done);
    RL_TRY_GOTO(atomic_file_open(path, &file), status, done);
    RL_TRY_GOTO(write_header(file, &text), status, done);
    *out = file;
    file = NULL;
done:
    atomic_file_abort(file);
    rl_text_fini(&text);
    return status;
}

rl_status safetensors_write(const char *path, const struct safetensors_entry *entries,
                            int64_t count)
{
    struct atomic_file *file = NULL;
    RL_TRY(safetensors_write_header(path, entries, count, &file));
    for (int64_t i = 0; i < count; i++) {
        rl_status status = atomic_file_write(file, entries[i].data, entries[i].bytes);
        if (status != RL_OK) {
            atomic_file_abort(file);
            return status;
        }
    }
    return atomic_file_commit(file);
}
