/* A place in bytes that came from outside, and how much is left: every decoder of frames, records
 * and states reads its fields through one. Nothing is read past the end. The first problem sticks
 * and fields read after it are zero, so a run of fields is checked once, at its end. Numbers are
 * little-endian. Owns nothing; any thread, one at a time. */
#ifndef FORESIGHT_CORE_CURSOR_H
#define FORESIGHT_CORE_CURSOR_H

#include <stddef.h>
#include <stdint.h>

struct rl_cursor {
    const unsigned char *at;
    size_t left;
    const char
        *problem; /* what is wrong, for a message ("it ends inside ..."); NULL: nothing yet */
};

/* Note a problem, unless there is one already. `problem` must live on: a literal. */
void rl_cursor_spoil(struct rl_cursor *cursor, const char *problem);

/* The next `bytes` bytes, borrowed; NULL (a problem) if fewer are left. */
const void *rl_cursor_view(struct rl_cursor *cursor, size_t bytes);

/* The next `bytes` bytes into `out`; zeroes on a problem. */
void rl_cursor_get(struct rl_cursor *cursor, void *out, size_t bytes);

/* The next number of a fixed width; 0 on a problem. */
uint32_t rl_cursor_u32(struct rl_cursor *cursor);
uint64_t rl_cursor_u64(struct rl_cursor *cursor);
double rl_cursor_f64(struct rl_cursor *cursor);

/* The next number in 7-bit groups, lowest first, the top bit saying that more follow (LEB128); 0 on
 * a problem, such as more than 64 bits. */
uint64_t rl_cursor_number(struct rl_cursor *cursor);

/* The same, as large as `most` at most: else `problem`, and 0. */
uint64_t rl_cursor_bounded(struct rl_cursor *cursor, uint64_t most, const char *problem);

#endif
