/* See process_life.h: two fields of /proc/PID/stat, and the lists of children. */
#include "transport/process_life.h"

#include <dirent.h>
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

/* Of one thread; -1: no such list. */
static int children_of_thread(int64_t pid, const char *thread)
{
    char path[128];
    long long child = 0;
    int count = 0;
    snprintf(path, sizeof path, "/proc/%lld/task/%.20s/children", (long long)pid, thread);
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return -1;
    }
    while (fscanf(file, "%lld", &child) == 1) {
        count += process_life_began(child) != 0;
    }
    fclose(file);
    return count;
}

int process_life_children(int64_t pid)
{
    char path[64];
    int count = -1;
    snprintf(path, sizeof path, "/proc/%lld/task", (long long)pid);
    DIR *folder = opendir(path);
    if (folder == NULL) {
        return -1;
    }
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        int more = entry->d_name[0] != '.' ? children_of_thread(pid, entry->d_name) : -1;
        count = more < 0 ? count : (count < 0 ? 0 : count) + more;
    }
    closedir(folder);
    return count;
}
