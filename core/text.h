/* Small helpers for text: a growable buffer with a mandatory limit, reading a whole file with a
 * size limit, and the nearest name for "did you mean". JSON is jansson's business, not this file's.
 */
#ifndef FORESIGHT_CORE_TEXT_H
#define FORESIGHT_CORE_TEXT_H

#include "core/status.h"

#include <stdarg.h>
#include <stddef.h>

/* Bytes that grow on demand up to `limit`; a NUL always follows the last one (not counted). */
struct rl_text {
    char *data;      /* owned; NULL until something is appended: use rl_text_str */
    size_t bytes;    /* in use */
    size_t capacity; /* allocated */
    size_t limit;    /* most bytes it may ever hold */
};

/* Start empty. Allocates nothing. Release with rl_text_fini. */
void rl_text_init(struct rl_text *text, size_t limit_bytes);

/* Free the bytes. Takes a zeroed struct; may be called twice. */
void rl_text_fini(struct rl_text *text);

/* Empty it, keep the memory. */
void rl_text_clear(struct rl_text *text);

/* Append `bytes` bytes; unchanged on failure. Errors: RL_TOO_LONG (limit), RL_NO_MEMORY. */
rl_status rl_text_append(struct rl_text *text, const void *data, size_t bytes);

/* Append a NUL-terminated string, or one byte. Errors as rl_text_append. */
rl_status rl_text_append_str(struct rl_text *text, const char *string);
rl_status rl_text_append_byte(struct rl_text *text, char byte);

/* Append formatted text; unchanged on failure. Errors: as rl_text_append, RL_INTERNAL (format). */
rl_status rl_text_printf(struct rl_text *text, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The same with a va_list. */
rl_status rl_text_vprintf(struct rl_text *text, const char *format, va_list args)
    __attribute__((format(printf, 2, 0)));

/* Make room for `bytes` more, so that the next appends cannot fail. Errors as rl_text_append. */
rl_status rl_text_reserve(struct rl_text *text, size_t bytes);

/* The content as a string; "" if empty; borrowed until the next change. */
const char *rl_text_str(const struct rl_text *text);

/* Hand the bytes over (release with free; never NULL on success); the buffer is empty afterwards.
 * Errors: RL_NO_MEMORY. */
rl_status rl_text_take(struct rl_text *text, char **data, size_t *bytes);

/* Copy of a string; caller frees *out. Errors: RL_NO_MEMORY. */
rl_status rl_text_copy(const char *string, char **out);

/* Read a whole regular file of at most `max_bytes`. Caller frees *data; a NUL follows the last
 * byte. `bytes` may be NULL. Errors: RL_IO (missing, unreadable, not a regular file), RL_TOO_LONG,
 * RL_NO_MEMORY; each names the path. */
rl_status rl_file_read(const char *path, size_t max_bytes, char **data, size_t *bytes);

/* Edits (insert, delete, replace, swap neighbours) between two strings; SIZE_MAX if either is
 * longer than 64 bytes. */
size_t rl_text_distance(const char *a, const char *b);

/* The candidate nearest to `name`, the first of equals; NULL if none is near enough to be a likely
 * slip of the pen. Borrowed from `candidates` [count]. */
const char *rl_text_nearest(const char *name, const char *const *candidates, size_t count);

#endif
