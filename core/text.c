/* Growable text, whole-file reading, nearest names. Owns no state. The invariant of struct rl_text:
 * bytes < capacity whenever data is not NULL, data[bytes] == 0, bytes <= limit. */
#include "core/text.h"

#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TEXT_START_BYTES = 64, TEXT_NAME_BYTES = 64 };

void rl_text_init(struct rl_text *text, size_t limit_bytes)
{
    *text = (struct rl_text){.limit = limit_bytes};
}

void rl_text_fini(struct rl_text *text)
{
    free(text->data);
    *text = (struct rl_text){.limit = text->limit};
}

void rl_text_clear(struct rl_text *text)
{
    text->bytes = 0;
    if (text->data != NULL) {
        text->data[0] = '\0';
    }
}

rl_status rl_text_reserve(struct rl_text *text, size_t bytes)
{
    if (bytes > text->limit - text->bytes) {
        return rl_fail(RL_TOO_LONG, "text of %zu bytes and %zu more, limit %zu", text->bytes, bytes,
                       text->limit);
    }
    size_t needed = text->bytes + bytes + 1;
    if (needed == 0) {
        return rl_fail(RL_TOO_LONG, "text of %zu bytes cannot be addressed", bytes);
    }
    if (needed <= text->capacity) {
        return RL_OK;
    }
    size_t doubled = text->capacity > SIZE_MAX / 2 ? SIZE_MAX : text->capacity * 2;
    size_t capacity = needed > doubled ? needed : doubled;
    capacity = capacity < TEXT_START_BYTES ? TEXT_START_BYTES : capacity;
    char *data = realloc(text->data, capacity);
    if (data == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for text of %zu bytes", capacity);
    }
    data[text->bytes] = '\0';
    text->data = data;
    text->capacity = capacity;
    return RL_OK;
}

rl_status rl_text_append(struct rl_text *text, const void *data, size_t bytes)
{
    RL_TRY(rl_text_reserve(text, bytes));
    if (bytes > 0) {
        memcpy(text->data + text->bytes, data, bytes);
    }
    text->bytes += bytes;
    text->data[text->bytes] = '\0';
    return RL_OK;
}

rl_status rl_text_append_str(struct rl_text *text, const char *string)
{
    return rl_text_append(text, string, strlen(string));
}

rl_status rl_text_append_byte(struct rl_text *text, char byte)
{
    return rl_text_append(text, &byte, 1);
}

rl_status rl_text_vprintf(struct rl_text *text, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    rl_status status = RL_OK;
    if (length < 0) {
        status = rl_fail(RL_INTERNAL, "cannot format \"%s\"", format);
    } else {
        status = rl_text_reserve(text, (size_t)length);
    }
    if (status == RL_OK) {
        vsnprintf(text->data + text->bytes, (size_t)length + 1, format, again);
        text->bytes += (size_t)length;
    }
    va_end(again);
    return status;
}

rl_status rl_text_printf(struct rl_text *text, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    rl_status status = rl_text_vprintf(text, format, args);
    va_end(args);
    return status;
}

const char *rl_text_str(const struct rl_text *text)
{
    return text->data != NULL ? text->data : "";
}

rl_status rl_text_take(struct rl_text *text, char **data, size_t *bytes)
{
    RL_TRY(rl_text_reserve(text, 0));
    *data = text->data;
    if (bytes != NULL) {
        *bytes = text->bytes;
    }
    *text = (struct rl_text){.limit = text->limit};
    return RL_OK;
}

rl_status rl_text_copy(const char *string, char **out)
{
    size_t bytes = strlen(string) + 1;
    char *copy = malloc(bytes);
    if (copy == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a string of %zu bytes", bytes);
    }
    memcpy(copy, string, bytes);
    *out = copy;
    return RL_OK;
}

/* Read until the end of the file: its size may be wrong (growing, /proc). One byte more than the
 * limit is asked for, so that a file just too long is noticed. */
static rl_status file_read_all(int file, const char *path, struct rl_text *text)
{
    size_t max_bytes = text->limit - 1;
    for (;;) {
        size_t room = text->capacity - text->bytes - 1;
        if (room == 0) {
            size_t step = text->bytes < max_bytes + 1 - text->bytes ? text->bytes
                                                                    : max_bytes + 1 - text->bytes;
            RL_TRY(rl_text_reserve(text, step > 0 ? step : 1));
            room = text->capacity - text->bytes - 1;
        }
        size_t wanted = max_bytes + 1 - text->bytes;
        ssize_t got = read(file, text->data + text->bytes, wanted < room ? wanted : room);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            return rl_fail(RL_IO, "%s: cannot read at byte %zu: %s", path, text->bytes,
                           strerror(errno));
        }
        text->bytes += (size_t)got;
        text->data[text->bytes] = '\0';
        if (text->bytes > max_bytes) {
            return rl_fail(RL_TOO_LONG, "%s: longer than the limit of %zu bytes", path, max_bytes);
        }
        if (got == 0) {
            return RL_OK;
        }
    }
}

/* O_NONBLOCK: opening a pipe that nobody writes to must not hang. */
static rl_status file_open_regular(const char *path, int *out, size_t *bytes)
{
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0) {
        return rl_fail(RL_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    struct stat info;
    if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(file);
        return rl_fail(RL_IO, "%s: not a regular file", path);
    }
    *out = file;
    *bytes = info.st_size > 0 ? (size_t)info.st_size : 0;
    return RL_OK;
}

rl_status rl_file_read(const char *path, size_t max_bytes, char **data, size_t *bytes)
{
    int file = -1;
    size_t expected = 0;
    RL_TRY(file_open_regular(path, &file, &expected));
    struct rl_text text;
    rl_text_init(&text, max_bytes < SIZE_MAX - 1 ? max_bytes + 1 : SIZE_MAX - 1);
    rl_status status;
    if (expected > max_bytes) {
        status = rl_fail(RL_TOO_LONG, "%s: %zu bytes, limit %zu", path, expected, max_bytes);
        goto done;
    }
    RL_TRY_GOTO(rl_text_reserve(&text, expected + 1), status, done);
    RL_TRY_GOTO(file_read_all(file, path, &text), status, done);
    status = rl_text_take(&text, data, bytes);
done:
    rl_text_fini(&text);
    close(file);
    return status;
}

static size_t text_min(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Optimal string alignment, three rows of the table at a time. */
size_t rl_text_distance(const char *a, const char *b)
{
    size_t a_bytes = strlen(a);
    size_t b_bytes = strlen(b);
    if (a_bytes > TEXT_NAME_BYTES || b_bytes > TEXT_NAME_BYTES) {
        return SIZE_MAX;
    }
    size_t rows[3][TEXT_NAME_BYTES + 1];
    for (size_t j = 0; j <= b_bytes; j++) {
        rows[0][j] = j;
    }
    for (size_t i = 1; i <= a_bytes; i++) {
        size_t *row = rows[i % 3];
        const size_t *above = rows[(i + 2) % 3];
        const size_t *two_above = rows[(i + 1) % 3];
        row[0] = i;
        for (size_t j = 1; j <= b_bytes; j++) {
            size_t best = above[j - 1] + (a[i - 1] != b[j - 1]);
            best = text_min(best, text_min(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
                best = text_min(best, two_above[j - 2] + 1);
            }
            row[j] = best;
        }
    }
    return rows[a_bytes % 3][b_bytes];
}

const char *rl_text_nearest(const char *name, const char *const *candidates, size_t count)
{
    size_t length = strlen(name);
    size_t near_enough = length < 4 ? 1 : length < 9 ? 2 : length / 3;
    const char *best = NULL;
    size_t best_distance = near_enough + 1;
    for (size_t i = 0; i < count; i++) {
        size_t distance = rl_text_distance(name, candidates[i]);
        /* Replacing every letter is not a slip: "ab" is not near "cd". */
        if (distance < best_distance && distance < strlen(candidates[i])) {
            best = candidates[i];
            best_distance = distance;
        }
    }
    return best;
}
