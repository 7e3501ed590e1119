/* Parser and checker of safetensors headers. The format is a fixed, flat kind of JSON, so it is
 * read by a small parser of its own: no recursion (depth costs nothing), memory bounded by the
 * header's length, integers exact to 64 bits, every error with its offset. Invariant: a header that
 * passes describes the data section completely, each byte in exactly one tensor. */
#include "model/safetensors_header.h"

#include "core/log.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    unsigned bits;
} dtypes[] = {
    {"BOOL", 8}, {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},   {"F8_E5M2", 8},     {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"I16", 16}, {"F8_E5M2FNUZ", 8}, {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32}, {"U32", 32},        {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64}, {"U64", 64},
};

struct parser {
    const char *path;
    const unsigned char *text;
    size_t bytes, at;
    char *strings; /* next free byte; the whole is as large as the header, so decoding fits */
    struct safetensors_header *header;
};

unsigned safetensors_dtype_bits(const char *dtype, const char **canonical)
{
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        if (strcmp(dtypes[i].name, dtype) == 0) {
            *canonical = dtypes[i].name;
            return dtypes[i].bits;
        }
    }
    return 0;
}

static rl_status fail_at(const struct parser *p, const char *expected)
{
    return rl_fail(RL_CORRUPT, "%s: header byte %zu: %s", p->path, p->at, expected);
}

static void skip_space(struct parser *p)
{
    while (p->at < p->bytes && strchr(" \t\r\n", p->text[p->at]) != NULL && p->text[p->at] != 0) {
        p->at++;
    }
}

/* Next byte that is not space, 0 at the end (a NUL in the text is no valid token either). */
static unsigned char peek(struct parser *p)
{
    skip_space(p);
    return p->at < p->bytes ? p->text[p->at] : 0;
}

static rl_status expect(struct parser *p, char token)
{
    if (peek(p) != (unsigned char)token) {
        char message[] = "expected ' '";
        message[10] = token;
        return fail_at(p, message);
    }
    p->at++;
    return RL_OK;
}

static rl_status parse_hex4(struct parser *p, uint32_t *out)
{
    uint32_t value = 0;
    for (int i = 0; i < 4; i++, p->at++) {
        unsigned char c = p->at < p->bytes ? p->text[p->at] : 0;
        uint32_t digit = 0;
        if (c >= '0' && c <= '9') {
            digit = c - '0';
        } else if ((c | 32) >= 'a' && (c | 32) <= 'f') {
            digit = (c | 32U) - 'a' + 10;
        } else {
            return fail_at(p, "expected four hexadecimal digits");
        }
        value = value * 16 + digit;
    }
    *out = value;
    return RL_OK;
}

static void put_utf8(struct parser *p, uint32_t code)
{
    char *s = p->strings;
    if (code < 0x80) {
        *s++ = (char)code;
    } else if (code < 0x800) {
        *s++ = (char)(0xc0 | code >> 6);
        *s++ = (char)(0x80 | (code & 63));
    } else if (code < 0x10000) {
        *s++ = (char)(0xe0 | code >> 12);
        *s++ = (char)(0x80 | (code >> 6 & 63));
        *s++ = (char)(0x80 | (code & 63));
    } else {
        *s++ = (char)(0xf0 | code >> 18);
        *s++ = (char)(0x80 | (code >> 12 & 63));
        *s++ = (char)(0x80 | (code >> 6 & 63));
        *s++ = (char)(0x80 | (code & 63));
    }
    p->strings = s;
}

static rl_status parse_unicode_escape(struct parser *p)
{
    uint32_t code = 0;
    RL_TRY(parse_hex4(p, &code));
    if (code >= 0xd800 && code < 0xdc00) {
        uint32_t low = 0;
        if (p->at + 2 > p->bytes || p->text[p->at] != '\\' || p->text[p->at + 1] != 'u') {
            return fail_at(p, "lone surrogate in a string");
        }
        p->at += 2;
        RL_TRY(parse_hex4(p, &low));
        if (low < 0xdc00 || low > 0xdfff) {
            return fail_at(p, "lone surrogate in a string");
        }
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code <= 0xdfff) {
        return fail_at(p, "lone surrogate in a string");
    } else if (code == 0) {
        return fail_at(p, "NUL in a string");
    }
    put_utf8(p, code);
    return RL_OK;
}

static rl_status parse_escape(struct parser *p)
{
    static const char from[] = "\"\\/bfnrt";
    static const char to[] = "\"\\/\b\f\n\r\t";
    unsigned char c = p->at < p->bytes ? p->text[p->at] : 0;
    if (c == 'u') {
        p->at++;
        return parse_unicode_escape(p);
    }
    const char *found = c == 0 ? NULL : strchr(from, c);
    if (found == NULL) {
        return fail_at(p, "unknown escape in a string");
    }
    *p->strings++ = to[found - from];
    p->at++;
    return RL_OK;
}

/* Bytes of the UTF-8 sequence at `s` [left], 0 if it is not valid (overlong, surrogate, too large).
 */
static size_t utf8_length(const unsigned char *s, size_t left)
{
    size_t length = s[0] < 0x80 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (length == 1) {
        return 1;
    }
    if (s[0] < 0xc2 || s[0] > 0xf4 || length > left) {
        return 0;
    }
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    bool bad = (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
               (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f);
    return bad ? 0 : length;
}

static rl_status parse_string(struct parser *p, char **out)
{
    RL_TRY(expect(p, '"'));
    char *start = p->strings;
    while (p->at < p->bytes && p->text[p->at] != '"') {
        unsigned char c = p->text[p->at];
        if (c < 0x20) {
            return fail_at(p, "control character in a string");
        }
        if (c == '\\') {
            p->at++;
            RL_TRY(parse_escape(p));
            continue;
        }
        size_t length = utf8_length(p->text + p->at, p->bytes - p->at);
        if (length == 0) {
            return fail_at(p, "invalid UTF-8");
        }
        memcpy(p->strings, p->text + p->at, length);
        p->strings += length;
        p->at += length;
    }
    RL_TRY(expect(p, '"'));
    *p->strings++ = '\0';
    *out = start;
    return RL_OK;
}

/* Digits only: no sign, fraction, exponent or leading zero. */
static rl_status parse_integer(struct parser *p, uint64_t *out)
{
    if (peek(p) < '0' || peek(p) > '9') {
        return fail_at(p, "expected an integer >= 0");
    }
    size_t first = p->at;
    uint64_t value = 0;
    for (; p->at < p->bytes && p->text[p->at] >= '0' && p->text[p->at] <= '9'; p->at++) {
        uint64_t digit = p->text[p->at] - '0';
        if (value > (UINT64_MAX - digit) / 10) {
            return fail_at(p, "integer does not fit 64 bits");
        }
        value = value * 10 + digit;
    }
    if (p->text[first] == '0' && p->at > first + 1) {
        return fail_at(p, "integer with a leading zero");
    }
    if (p->at < p->bytes && p->text[p->at] != 0 && strchr(".eE", p->text[p->at]) != NULL) {
        return fail_at(p, "expected an integer, found a real number");
    }
    *out = value;
    return RL_OK;
}

/* After an element of a list or object: true if another follows. */
static rl_status parse_next(struct parser *p, char close, bool *more)
{
    unsigned char c = peek(p);
    if (c != ',' && c != (unsigned char)close) {
        return fail_at(p, close == ']' ? "expected ',' or ']'" : "expected ',' or '}'");
    }
    p->at++;
    *more = c == ',';
    return RL_OK;
}

/* True, and past it, if the list or object just opened is empty. */
static bool parse_empty(struct parser *p, char close)
{
    bool empty = peek(p) == (unsigned char)close;
    p->at += empty ? 1 : 0;
    return empty;
}

static rl_status parse_shape(struct parser *p, struct safetensors_tensor *tensor)
{
    RL_TRY(expect(p, '['));
    bool more = !parse_empty(p, ']');
    while (more) {
        uint64_t size = 0;
        RL_TRY(parse_integer(p, &size));
        if (size > INT64_MAX) {
            return fail_at(p, "dimension does not fit 63 bits");
        }
        if (tensor->rank == SAFETENSORS_RANK_MAX) {
            return fail_at(p, "tensor of more than 8 dimensions");
        }
        tensor->shape[tensor->rank++] = (int64_t)size;
        RL_TRY(parse_next(p, ']', &more));
    }
    return RL_OK;
}

static rl_status parse_offsets(struct parser *p, struct safetensors_tensor *tensor)
{
    RL_TRY(expect(p, '['));
    RL_TRY(parse_integer(p, &tensor->begin));
    RL_TRY(expect(p, ','));
    RL_TRY(parse_integer(p, &tensor->end));
    return expect(p, ']');
}

static rl_status parse_dtype(struct parser *p, struct safetensors_tensor *tensor)
{
    char *dtype = NULL;
    RL_TRY(parse_string(p, &dtype));
    if (safetensors_dtype_bits(dtype, &tensor->dtype) == 0) {
        return rl_fail(RL_CORRUPT, "%s: tensor %.200s: unknown dtype %.40s", p->path, tensor->name,
                       dtype);
    }
    return RL_OK;
}

static rl_status parse_field(struct parser *p, struct safetensors_tensor *tensor, unsigned *seen)
{
    static const char *const names[] = {"dtype", "shape", "data_offsets"};
    char *field = NULL;
    RL_TRY(parse_string(p, &field));
    unsigned which = 0;
    while (which < 3 && strcmp(field, names[which]) != 0) {
        which++;
    }
    if (which == 3 || (*seen >> which & 1) != 0) {
        return rl_fail(RL_CORRUPT, "%s: tensor %.200s: %s field %.100s", p->path, tensor->name,
                       which == 3 ? "unknown" : "duplicate", field);
    }
    *seen |= 1U << which;
    RL_TRY(expect(p, ':'));
    if (which == 0) {
        return parse_dtype(p, tensor);
    }
    return which == 1 ? parse_shape(p, tensor) : parse_offsets(p, tensor);
}

static rl_status check_span(const struct parser *p, const struct safetensors_tensor *tensor)
{
    const char *dtype = NULL;
    uint64_t elements = 1;
    uint64_t bits = 0;
    for (int i = 0; i < tensor->rank; i++) {
        if (__builtin_mul_overflow(elements, (uint64_t)tensor->shape[i], &elements)) {
            return rl_fail(RL_CORRUPT, "%s: tensor %.200s: shape overflows", p->path, tensor->name);
        }
    }
    uint64_t unit = safetensors_dtype_bits(tensor->dtype, &dtype);
    if (elements > INT64_MAX || __builtin_mul_overflow(elements, unit, &bits) || bits % 8 != 0) {
        return rl_fail(RL_CORRUPT,
                       "%s: tensor %.200s: size is not a whole number of bytes in 64 "
                       "bits",
                       p->path, tensor->name);
    }
    if (tensor->begin > tensor->end || tensor->end - tensor->begin != bits / 8) {
        return rl_fail(RL_CORRUPT,
                       "%s: tensor %.200s: data_offsets [%llu, %llu] do not span the %llu bytes of "
                       "its shape and dtype",
                       p->path, tensor->name, (unsigned long long)tensor->begin,
                       (unsigned long long)tensor->end, (unsigned long long)(bits / 8));
    }
    return RL_OK;
}

/* Room for one more element in an array that doubles. */
static rl_status grow(const struct parser *p, void **array, int64_t count, int64_t *capacity,
                      size_t element_bytes)
{
    if (count < *capacity) {
        return RL_OK;
    }
    int64_t wanted = *capacity == 0 ? 64 : *capacity * 2;
    void *grown = realloc(*array, (size_t)wanted * element_bytes);
    if (grown == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for a header of %lld entries", p->path,
                       (long long)wanted);
    }
    *array = grown;
    *capacity = wanted;
    return RL_OK;
}

static rl_status parse_tensor(struct parser *p, char *name)
{
    struct safetensors_header *header = p->header;
    struct safetensors_tensor tensor = {.name = name};
    unsigned seen = 0;
    RL_TRY(expect(p, '{'));
    bool more = !parse_empty(p, '}');
    while (more) {
        RL_TRY(parse_field(p, &tensor, &seen));
        RL_TRY(parse_next(p, '}', &more));
    }
    if (seen != 7) {
        return rl_fail(RL_CORRUPT, "%s: tensor %.200s: %s is missing", p->path, name,
                       (seen & 1) == 0   ? "dtype"
                       : (seen & 2) == 0 ? "shape"
                                         : "data_offsets");
    }
    RL_TRY(check_span(p, &tensor));
    void *array = header->tensors;
    RL_TRY(grow(p, &array, header->tensor_count, &header->tensor_capacity, sizeof tensor));
    header->tensors = array;
    header->tensors[header->tensor_count++] = tensor;
    return RL_OK;
}

static rl_status parse_metadata(struct parser *p)
{
    struct safetensors_header *header = p->header;
    RL_TRY(expect(p, '{'));
    bool more = !parse_empty(p, '}');
    while (more) {
        struct safetensors_pair pair = {NULL, NULL};
        RL_TRY(parse_string(p, &pair.key));
        RL_TRY(expect(p, ':'));
        RL_TRY(parse_string(p, &pair.value));
        void *array = header->pairs;
        RL_TRY(grow(p, &array, header->pair_count, &header->pair_capacity, sizeof pair));
        header->pairs = array;
        header->pairs[header->pair_count++] = pair;
        RL_TRY(parse_next(p, '}', &more));
    }
    return RL_OK;
}

static rl_status parse_header(struct parser *p)
{
    bool metadata_seen = false;
    if (p->bytes == 0 || p->text[0] != '{') {
        return fail_at(p, "the first byte must be '{'");
    }
    p->at = 1;
    bool more = !parse_empty(p, '}');
    while (more) {
        char *name = NULL;
        RL_TRY(parse_string(p, &name));
        RL_TRY(expect(p, ':'));
        if (strcmp(name, "__metadata__") != 0) {
            RL_TRY(parse_tensor(p, name));
        } else if (metadata_seen) {
            return fail_at(p, "duplicate __metadata__");
        } else {
            metadata_seen = true;
            RL_TRY(parse_metadata(p));
        }
        RL_TRY(parse_next(p, '}', &more));
    }
    skip_space(p);
    return p->at == p->bytes ? RL_OK : fail_at(p, "garbage after the JSON object");
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct safetensors_tensor *)a)->name,
                  ((const struct safetensors_tensor *)b)->name);
}

static int by_place(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a;
    const struct safetensors_tensor *y = b;
    if (x->begin != y->begin) {
        return x->begin < y->begin ? -1 : 1;
    }
    if (x->end != y->end) {
        return x->end < y->end ? -1 : 1;
    }
    return strcmp(x->name, y->name);
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const struct safetensors_pair *)a)->key,
                  ((const struct safetensors_pair *)b)->key);
}

static rl_status check_names(const char *path, struct safetensors_header *header)
{
    if (header->tensor_count > 0) {
        qsort(header->tensors, (size_t)header->tensor_count, sizeof *header->tensors, by_name);
    }
    for (int64_t i = 1; i < header->tensor_count; i++) {
        if (by_name(&header->tensors[i - 1], &header->tensors[i]) == 0) {
            return rl_fail(RL_CORRUPT, "%s: duplicate tensor name %.200s", path,
                           header->tensors[i].name);
        }
    }
    if (header->pair_count > 0) {
        qsort(header->pairs, (size_t)header->pair_count, sizeof *header->pairs, by_key);
    }
    for (int64_t i = 1; i < header->pair_count; i++) {
        if (by_key(&header->pairs[i - 1], &header->pairs[i]) == 0) {
            return rl_fail(RL_CORRUPT, "%s: duplicate metadata key %.200s", path,
                           header->pairs[i].key);
        }
    }
    return RL_OK;
}

static rl_status check_places(const char *path, uint64_t data_bytes,
                              struct safetensors_header *header)
{
    uint64_t end = 0;
    if (header->tensor_count > 0) {
        qsort(header->tensors, (size_t)header->tensor_count, sizeof *header->tensors, by_place);
    }
    for (int64_t i = 0; i < header->tensor_count; i++) {
        const struct safetensors_tensor *tensor = &header->tensors[i];
        if (tensor->begin != end) {
            return rl_fail(RL_CORRUPT, "%s: tensor %.200s begins at %llu, expected %llu (%s)", path,
                           tensor->name, (unsigned long long)tensor->begin, (unsigned long long)end,
                           tensor->begin < end ? "tensors overlap" : "hole between tensors");
        }
        end = tensor->end;
    }
    if (end != data_bytes) {
        return rl_fail(RL_CORRUPT, "%s: tensors end at byte %llu of a data section of %llu bytes",
                       path, (unsigned long long)end, (unsigned long long)data_bytes);
    }
    return RL_OK;
}

rl_status safetensors_header_parse(const char *path, const char *text, size_t bytes,
                                   uint64_t data_bytes, struct safetensors_header *out)
{
    memset(out, 0, sizeof *out);
    /* A decoded string with its NUL is never longer than its spelling with two quotes. */
    out->strings = malloc(bytes + 1);
    if (out->strings == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for a header of %zu bytes", path, bytes);
    }
    struct parser parser = {path, (const unsigned char *)text, bytes, 0, out->strings, out};
    RL_TRY(parse_header(&parser));
    RL_TRY(check_names(path, out));
    return check_places(path, data_bytes, out);
}

void safetensors_header_fini(struct safetensors_header *header)
{
    free(header->tensors);
    free(header->pairs);
    free(header->strings);
    memset(header, 0, sizeof *header);
}
