/* Character properties as the reference library sees them (Unicode 16): utf8proc's tables, and a
 * table of what was assigned later than the oldest library that we meet. Pure functions. */
#include "model/tokenizer_internal.h"

#include <stdio.h>
#include <string.h>
#include <utf8proc.h>

struct newer_range {
    uint32_t first;
    uint32_t last;
    int category;
    const char *script;
    int flags;
};

static const struct newer_range newer_ranges[] = {
#define X(first, last, category, script, flags)                                                    \
    {first, last, UTF8PROC_CATEGORY_##category, script, flags},
#include "model/tokenizer_unicode_delta.def"
#undef X
};

enum { NEWER_COUNT = sizeof(newer_ranges) / sizeof(newer_ranges[0]) };

struct late_range {
    uint32_t first;
    uint32_t last;
    unsigned flags;
};

static const struct late_range late_ranges[] = {
#define X(first, last, flags) {first, last, flags},
#include "model/tokenizer_unicode_late.def"
#undef X
};

enum { LATE_COUNT = sizeof(late_ranges) / sizeof(late_ranges[0]) };

static const char *const category_names[] = {
    "Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps",
    "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co"};

static const struct newer_range *newer_find(uint32_t code)
{
    int low = 0;
    int high = NEWER_COUNT;
    while (low < high) {
        int middle = (low + high) / 2;
        if (code > newer_ranges[middle].last) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < NEWER_COUNT && code >= newer_ranges[low].first ? &newer_ranges[low] : NULL;
}

int tok_unicode_category(uint32_t code)
{
    int category = utf8proc_category((utf8proc_int32_t)code);
    if (category == UTF8PROC_CATEGORY_CN) {
        const struct newer_range *range = newer_find(code);
        return range != NULL ? range->category : category;
    }
    return category;
}

bool tok_unicode_space(uint32_t code)
{
    if (code < 0x80) {
        return code == ' ' || (code >= 9 && code <= 13);
    }
    return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) ||
           code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool tok_unicode_late(uint32_t code, unsigned flags)
{
    int low = 0;
    int high = LATE_COUNT;
    if (code < 0x300) {
        return false;
    }
    while (low < high) {
        int middle = (low + high) / 2;
        if (code > late_ranges[middle].last) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low < LATE_COUNT && code >= late_ranges[low].first &&
        (late_ranges[low].flags & flags) != 0) {
        return true;
    }
    return newer_find(code) != NULL;
}

bool tok_unicode_number(uint32_t code)
{
    /* the language of the reference is a version ahead of its regular expressions */
    return tok_unicode_major(code, 'N') || (code >= 0x11DE0 && code <= 0x11DE9) ||
           (code >= 0x16FF4 && code <= 0x16FF6);
}

bool tok_unicode_punctuation(uint32_t code)
{
    if (code < 0x80) {
        return (code >= '!' && code <= '/') || (code >= ':' && code <= '@') ||
               (code >= '[' && code <= '`') || (code >= '{' && code <= '~');
    }
    if (code == 0x166D || code == 0x111C9) { /* were punctuation in older versions */
        return true;
    }
    return tok_unicode_major(code, 'P') && !tok_unicode_late(code, TOK_LATE_PUNCTUATION);
}

bool tok_unicode_major(uint32_t code, char major)
{
    return category_names[tok_unicode_category(code)][0] == major;
}

static bool newer_has(const struct newer_range *range, const char *property)
{
    const char *category = category_names[range->category];
    if (property[0] == '\0' || strcmp(property, category) == 0 ||
        (property[1] == '\0' && property[0] == category[0]) ||
        strcmp(property, range->script) == 0) {
        return true;
    }
    return (strcmp(property, "Alphabetic") == 0 && (range->flags & 1) != 0) ||
           (strcmp(property, "Uppercase") == 0 && (range->flags & 2) != 0) ||
           (strcmp(property, "Lowercase") == 0 && (range->flags & 4) != 0);
}

/* Characters that were assigned before and gained a property since. */
static const char *gained_ranges(const char *property)
{
    if (strcmp(property, "Alphabetic") == 0) {
        return "\\x{363}-\\x{36F}\\x{C04}\\x{F82}\\x{F83}\\x{1DD3}-\\x{1DE6}\\x{11080}\\x{11081}";
    }
    if (strcmp(property, "Lowercase") == 0) {
        return "\\x{10FC}\\x{A7F2}-\\x{A7F4}\\x{AB69}";
    }
    return strcmp(property, "Mc") == 0 ? "\\x{1171E}" : "";
}

rl_status tok_unicode_newer(struct tok_text *out, const char *property)
{
    int at = 0;
    const char *gained = gained_ranges(property);
    RL_TRY(tok_text_append(out, gained, strlen(gained), 0));
    while (at < NEWER_COUNT) {
        if (!newer_has(&newer_ranges[at], property)) {
            at++;
            continue;
        }
        uint32_t first = newer_ranges[at].first;
        uint32_t last = newer_ranges[at].last;
        at++;
        while (at < NEWER_COUNT && newer_ranges[at].first == last + 1 &&
               newer_has(&newer_ranges[at], property)) {
            last = newer_ranges[at].last;
            at++;
        }
        char item[40];
        int length = snprintf(item, sizeof(item), "\\x{%X}-\\x{%X}", first, last);
        RL_TRY(tok_text_append(out, item, (size_t)length, 0));
    }
    return RL_OK;
}

/* Capitals of Unicode 15 to 17: first, last, distance to the small letter. */
static const struct {
    uint32_t first;
    uint32_t last;
    int32_t distance;
} newer_capitals[] = {
    {0x1C89, 0x1C89, 1},      {0xA7CB, 0xA7CB, 0x264 - 0xA7CB},
    {0xA7CC, 0xA7CC, 1},      {0xA7CE, 0xA7CE, 1},
    {0xA7D2, 0xA7D2, 1},      {0xA7D4, 0xA7D4, 1},
    {0xA7DA, 0xA7DA, 1},      {0xA7DC, 0xA7DC, 0x19B - 0xA7DC},
    {0x10D50, 0x10D65, 0x20}, {0x16EA0, 0x16EB8, 0x1B},
};

int tok_unicode_lower(uint32_t code, uint32_t out[3])
{
    if (code == 0x130) { /* the one letter whose lower case is two */
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    out[0] = (uint32_t)utf8proc_tolower((utf8proc_int32_t)code);
    for (size_t i = 0; code >= 0x1C89 && i < sizeof(newer_capitals) / sizeof(*newer_capitals);
         i++) {
        if (code >= newer_capitals[i].first && code <= newer_capitals[i].last) {
            out[0] = (uint32_t)((int32_t)code + newer_capitals[i].distance);
        }
    }
    return 1;
}
