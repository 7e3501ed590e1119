/* See cursor.h. */
#include "core/cursor.h"

#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "numbers are little-endian and copied as they lie in memory"
#endif

void rl_cursor_spoil(struct rl_cursor *cursor, const char *problem)
{
    if (cursor->problem == NULL) {
        cursor->problem = problem;
    }
}

const void *rl_cursor_view(struct rl_cursor *cursor, size_t bytes)
{
    const void *view = cursor->at;
    if (cursor->problem != NULL || cursor->left < bytes) {
        rl_cursor_spoil(cursor, "it ends inside a field");
        return NULL;
    }
    cursor->at += bytes;
    cursor->left -= bytes;
    return view;
}

void rl_cursor_get(struct rl_cursor *cursor, void *out, size_t bytes)
{
    const void *view = rl_cursor_view(cursor, bytes);
    if (view == NULL) {
        memset(out, 0, bytes);
    } else if (bytes > 0) {
        memcpy(out, view, bytes);
    }
}

uint32_t rl_cursor_u32(struct rl_cursor *cursor)
{
    uint32_t value = 0;
    rl_cursor_get(cursor, &value, sizeof(value));
    return value;
}

uint64_t rl_cursor_u64(struct rl_cursor *cursor)
{
    uint64_t value = 0;
    rl_cursor_get(cursor, &value, sizeof(value));
    return value;
}

double rl_cursor_f64(struct rl_cursor *cursor)
{
    double value = 0;
    rl_cursor_get(cursor, &value, sizeof(value));
    return value;
}

uint64_t rl_cursor_number(struct rl_cursor *cursor)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        unsigned char byte = 0;
        rl_cursor_get(cursor, &byte, 1);
        if (cursor->problem != NULL) {
            return 0;
        }
        if (shift == 63 && byte > 1) {
            break;
        }
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            return value;
        }
    }
    rl_cursor_spoil(cursor, "a number has more than 64 bits");
    return 0;
}

uint64_t rl_cursor_bounded(struct rl_cursor *cursor, uint64_t most, const char *problem)
{
    uint64_t value = rl_cursor_number(cursor);
    if (value > most) {
        rl_cursor_spoil(cursor, problem);
        return 0;
    }
    return value;
}
