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

rl_status tok_unicode_newer(struct tok_text *out, const char *property)
{
    int at = 0;
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

int tok_unicode_lower(uint32_t code, uint32_t out[3])
{
    if (code == 0x130) { /* the one letter whose lower case is two */
        out[0] = 'i';
        out[1] = 0x307;
        return 2;
    }
    out[0] = (uint32_t)utf8proc_tolower((utf8proc_int32_t)code);
    return 1;
}
