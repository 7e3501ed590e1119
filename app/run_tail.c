/* See run_tail.h. */
#include "app/run_tail.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TAIL_BYTES = 1 << 15 };

/* The last line in text [bytes] that ends with a newline. */
static json_t *last_line(char *text, size_t bytes)
{
    while (bytes > 0 && text[bytes - 1] != '\n') {
        bytes--;
    }
    if (bytes == 0) {
        return NULL;
    }
    text[bytes - 1] = '\0';
    const char *before = strrchr(text, '\n');
    json_t *line = json_loads(before != NULL ? before + 1 : text, 0, NULL);
    if (!json_is_object(line)) {
        json_decref(line);
        return NULL;
    }
    return line;
}

json_t *run_tail(const char *path)
{
    json_t *line = NULL;
    char *text = malloc(TAIL_BYTES + 1);
    FILE *file = text != NULL ? fopen(path, "re") : NULL;
    if (file != NULL && fseek(file, 0, SEEK_END) == 0) {
        long end = ftell(file);
        (void)fseek(file, end > TAIL_BYTES ? end - TAIL_BYTES : 0, SEEK_SET);
        size_t bytes = fread(text, 1, TAIL_BYTES, file);
        text[bytes] = '\0';
        line = last_line(text, bytes);
    }
    if (file != NULL) {
        fclose(file);
    }
    free(text);
    return line;
}
