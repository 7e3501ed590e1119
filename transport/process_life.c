/* See process_life.h: two fields of /proc/PID/stat. */
#include "transport/process_life.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LIFE_STAT_BYTES = 1024, LIFE_FIELD_BEGAN = 22, LIFE_FIELD_STATE = 3 };

uint64_t process_life_began(int64_t pid)
{
    char path[64];
    char text[LIFE_STAT_BYTES];
    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    int fd = pid > 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) {
        return 0;
    }
    ssize_t bytes = read(fd, text, sizeof text - 1);
    close(fd);
    text[bytes > 0 ? bytes : 0] = '\0';
    /* The name, second field, may hold anything, brackets too; the last one closes it. */
    const char *at = strrchr(text, ')');
    if (at == NULL || at[1] == '\0' || strchr("ZXx", at[2]) != NULL) {
        return 0;
    }
    for (int field = LIFE_FIELD_STATE - 1; at != NULL && field < LIFE_FIELD_BEGAN; field++) {
        at = strchr(at + 1, ' ');
    }
    return at != NULL ? strtoull(at, NULL, 10) : 0;
}
