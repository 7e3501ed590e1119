/* Format, all little-endian: the header below, then the gaps and the values, each one zstd frame.
 * gaps: for each changed element, in ascending order, the unchanged ones before it since the last,
 * as a base-128 varint. values: the new elements, byte planes one after the other (all first bytes,
 * all second bytes, ...), since exponents compress and mantissas do not. */
#include "transport/weight_delta.h"

#include "core/log.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

enum {
    DELTA_MAGIC = 0x31445746, /* "FWD1" */
    DELTA_LEVEL = 1,          /* zstd; higher ones gain nothing on near-random gaps */
    DELTA_GAP_BYTES = 10,     /* longest varint */
    DELTA_WIDTH_MAX = 4
};

struct delta_header {
    uint32_t magic, element_bytes;
    uint32_t base_version, version;
    uint64_t image_bytes, count;
    uint64_t base_hash, hash;
    uint64_t gap_bytes;                /* before compression */
    uint64_t gap_packed, value_packed; /* zstd frames */
    uint64_t reserved;
    uint64_t checksum; /* xxh3 of the fields above and of what follows the header */
};
_Static_assert(sizeof(struct delta_header) == WEIGHT_DELTA_HEADER_BYTES, "no padding");

static uint64_t delta_checksum(const struct delta_header *header, const unsigned char *payload)
{
    uint64_t seed = XXH3_64bits(header, offsetof(struct delta_header, checksum));
    return XXH3_64bits_withSeed(payload, header->gap_packed + header->value_packed, seed);
}

/* --- encoding
 * -------------------------------------------------------------------------------------- */

static uint64_t mask_word(const uint8_t *changed, uint64_t byte, uint64_t bytes)
{
    uint64_t word = 0;
    uint64_t left = bytes - byte;
    memcpy(&word, changed + byte, left < sizeof word ? left : sizeof word);
    return word;
}

static uint64_t mask_count(const uint8_t *changed, uint64_t bytes)
{
    uint64_t count = 0;
    for (uint64_t byte = 0; byte < bytes; byte += 8) {
        count += (uint64_t)__builtin_popcountll(mask_word(changed, byte, bytes));
    }
    return count;
}

static unsigned char *put_gap(unsigned char *at, uint64_t gap)
{
    while (gap >= 128) {
        *at++ = (unsigned char)(gap | 128);
        gap >>= 7;
    }
    *at++ = (unsigned char)gap;
    return at;
}

/* Fill gaps and values; returns the end of the gaps. */
static unsigned char *gather(const struct delta_header *header, const uint8_t *changed,
                             const unsigned char *image, unsigned char *gaps, unsigned char *values)
{
    uint64_t mask_bytes = header->image_bytes / header->element_bytes / 8;
    uint64_t next = 0;
    uint64_t taken = 0;
    for (uint64_t byte = 0; byte < mask_bytes; byte += 8) {
        uint64_t word = mask_word(changed, byte, mask_bytes);
        while (word != 0) {
            uint64_t element = byte * 8 + (uint64_t)__builtin_ctzll(word);
            word &= word - 1;
            gaps = put_gap(gaps, element - next);
            next = element + 1;
            for (uint32_t plane = 0; plane < header->element_bytes; plane++) {
                values[plane * header->count + taken] =
                    image[element * header->element_bytes + plane];
            }
            taken++;
        }
    }
    return gaps;
}

static rl_status pack(const unsigned char *raw, size_t raw_bytes, unsigned char *at, size_t room,
                      uint64_t *packed)
{
    size_t result = ZSTD_compress(at, room, raw, raw_bytes, DELTA_LEVEL);
    if (ZSTD_isError(result)) {
        return rl_fail(RL_INTERNAL, "weight delta: zstd: %s", ZSTD_getErrorName(result));
    }
    *packed = result;
    return RL_OK;
}

static rl_status encode_payload(struct delta_header *header, const unsigned char *gaps,
                                const unsigned char *values, void **out, size_t *bytes)
{
    size_t value_bytes = header->count * header->element_bytes;
    size_t gap_room = ZSTD_compressBound(header->gap_bytes);
    size_t room = gap_room + ZSTD_compressBound(value_bytes);
    unsigned char *data = malloc(sizeof *header + room);
    if (data == NULL) {
        return rl_fail(RL_NO_MEMORY, "weight delta: no memory for %zu bytes", room);
    }
    unsigned char *at = data + sizeof *header;
    rl_status status = pack(gaps, header->gap_bytes, at, gap_room, &header->gap_packed);
    if (status == RL_OK) {
        status = pack(values, value_bytes, at + header->gap_packed, room - header->gap_packed,
                      &header->value_packed);
    }
    if (status != RL_OK) {
        free(data);
        return status;
    }
    header->checksum = delta_checksum(header, at);
    memcpy(data, header, sizeof *header);
    *out = data;
    *bytes = sizeof *header + header->gap_packed + header->value_packed;
    return RL_OK;
}

static bool shape_is_sound(uint32_t element_bytes, uint64_t image_bytes)
{
    return (element_bytes == 2 || element_bytes == 4) && image_bytes > 0 &&
           image_bytes % (8 * (uint64_t)element_bytes) == 0 && image_bytes <= SIZE_MAX / 64;
}

rl_status weight_delta_encode(const struct weight_delta_info *info, const uint8_t *changed,
                              const void *image, void **out, size_t *bytes)
{
    if (!shape_is_sound(info->element_bytes, info->image_bytes)) {
        return rl_fail(RL_INVALID, "weight delta: an image of %" PRIu64 " bytes in elements of %u",
                       info->image_bytes, info->element_bytes);
    }
    struct delta_header header = {
        .magic = DELTA_MAGIC,
        .element_bytes = info->element_bytes,
        .base_version = info->base_version,
        .version = info->version,
        .image_bytes = info->image_bytes,
        .base_hash = info->base_hash,
        .hash = info->hash,
        .count = mask_count(changed, info->image_bytes / info->element_bytes / 8)};
    unsigned char *gaps = malloc(header.count * DELTA_GAP_BYTES + 1);
    unsigned char *values = malloc(header.count * header.element_bytes + 1);
    rl_status status = RL_OK;
    if (gaps == NULL || values == NULL) {
        status =
            rl_fail(RL_NO_MEMORY, "weight delta: no memory for %" PRIu64 " elements", header.count);
    } else {
        header.gap_bytes = (uint64_t)(gather(&header, changed, image, gaps, values) - gaps);
        status = encode_payload(&header, gaps, values, out, bytes);
    }
    free(gaps);
    free(values);
    return status;
}

/* --- reading
 * --------------------------------------------------------------------------------------- */

/* Sizes first, in an order in which no sum can overflow; then the checksum. */
static rl_status read_header(const void *data, size_t bytes, struct delta_header *out)
{
    struct delta_header header = {0};
    if (bytes < sizeof header) {
        return rl_fail(RL_CORRUPT, "weight delta: %zu bytes, a header takes %zu", bytes,
                       sizeof header);
    }
    memcpy(&header, data, sizeof header);
    size_t payload = bytes - sizeof header;
    if (header.magic != DELTA_MAGIC || header.reserved != 0 ||
        !shape_is_sound(header.element_bytes, header.image_bytes)) {
        return rl_fail(RL_CORRUPT, "weight delta: no sound header");
    }
    if (header.gap_packed > payload || header.value_packed != payload - header.gap_packed) {
        return rl_fail(RL_CORRUPT, "weight delta: its parts do not fill its %zu bytes", bytes);
    }
    if (header.count > header.image_bytes / header.element_bytes ||
        header.gap_bytes < header.count || header.gap_bytes > header.count * DELTA_GAP_BYTES) {
        return rl_fail(RL_CORRUPT,
                       "weight delta: %" PRIu64 " elements in %" PRIu64
                       " bytes of gaps for an image of %" PRIu64 " bytes",
                       header.count, header.gap_bytes, header.image_bytes);
    }
    if (delta_checksum(&header, (const unsigned char *)data + sizeof header) != header.checksum) {
        return rl_fail(RL_CORRUPT, "weight delta: checksum differs");
    }
    *out = header;
    return RL_OK;
}

rl_status weight_delta_inspect(const void *data, size_t bytes, struct weight_delta_info *out)
{
    struct delta_header header = {0};
    RL_TRY(read_header(data, bytes, &header));
    *out = (struct weight_delta_info){.base_version = header.base_version,
                                      .version = header.version,
                                      .element_bytes = header.element_bytes,
                                      .image_bytes = header.image_bytes,
                                      .count = header.count,
                                      .base_hash = header.base_hash,
                                      .hash = header.hash};
    return RL_OK;
}

static rl_status unpack(const unsigned char *packed, size_t packed_bytes, unsigned char **raw,
                        size_t raw_bytes)
{
    if (ZSTD_getFrameContentSize(packed, packed_bytes) != raw_bytes) {
        return rl_fail(RL_CORRUPT, "weight delta: a part does not unpack to %zu bytes", raw_bytes);
    }
    *raw = malloc(raw_bytes + 1);
    if (*raw == NULL) {
        return rl_fail(RL_NO_MEMORY, "weight delta: no memory for %zu bytes", raw_bytes);
    }
    size_t result = ZSTD_decompress(*raw, raw_bytes, packed, packed_bytes);
    if (ZSTD_isError(result) || result != raw_bytes) {
        return rl_fail(RL_CORRUPT, "weight delta: a part cannot be unpacked");
    }
    return RL_OK;
}

/* Next varint; false at the end of the gaps, or if it is longer than one can be. */
static bool get_gap(const unsigned char **at, const unsigned char *end, uint64_t *gap)
{
    uint64_t value = 0;
    for (int shift = 0; shift < 63 && *at < end; shift += 7) {
        unsigned char byte = *(*at)++;
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) {
            *gap = value;
            return true;
        }
    }
    return false;
}

static rl_status scatter(const struct delta_header *header, const unsigned char *gaps,
                         const unsigned char *values, unsigned char *image)
{
    const unsigned char *end = gaps + header->gap_bytes;
    uint64_t elements = header->image_bytes / header->element_bytes;
    uint64_t next = 0;
    for (uint64_t i = 0; i < header->count; i++) {
        uint64_t gap = 0;
        if (!get_gap(&gaps, end, &gap) || gap >= elements - next) {
            return rl_fail(RL_CORRUPT, "weight delta: element %" PRIu64 " lies outside the image",
                           i);
        }
        next += gap;
        unsigned char *place = image + next * header->element_bytes;
        for (uint32_t plane = 0; plane < header->element_bytes; plane++) {
            place[plane] = values[plane * header->count + i];
        }
        next++;
    }
    return gaps == end ? RL_OK : rl_fail(RL_CORRUPT, "weight delta: more gaps than elements");
}

static rl_status check_base(const struct delta_header *header, const struct weight_delta_base *base)
{
    if (header->image_bytes != base->image_bytes) {
        return rl_fail(RL_INVALID,
                       "weight delta: for an image of %" PRIu64 " bytes, this one has %zu",
                       header->image_bytes, base->image_bytes);
    }
    if (header->base_version != base->version || header->base_hash != base->hash) {
        return rl_fail(RL_INVALID,
                       "weight delta: from version %u (hash %016" PRIx64
                       "), here is version %u (hash %016" PRIx64 ")",
                       header->base_version, header->base_hash, base->version, base->hash);
    }
    return RL_OK;
}

rl_status weight_delta_apply(const void *data, size_t bytes, const struct weight_delta_base *base,
                             void *image)
{
    struct delta_header header = {0};
    RL_TRY(read_header(data, bytes, &header));
    RL_TRY(check_base(&header, base));
    const unsigned char *payload = (const unsigned char *)data + sizeof header;
    unsigned char *gaps = NULL;
    unsigned char *values = NULL;
    rl_status status = unpack(payload, header.gap_packed, &gaps, header.gap_bytes);
    if (status == RL_OK) {
        status = unpack(payload + header.gap_packed, header.value_packed, &values,
                        header.count * header.element_bytes);
    }
    if (status == RL_OK) {
        if (image != base->image) {
            memcpy(image, base->image, base->image_bytes);
        }
        status = scatter(&header, gaps, values, image);
    }
    if (status == RL_OK && XXH3_64bits(image, base->image_bytes) != header.hash) {
        status = rl_fail(RL_CORRUPT, "weight delta: version %u does not have its hash %016" PRIx64,
                         header.version, header.hash);
    }
    free(gaps);
    free(values);
    return status;
}
