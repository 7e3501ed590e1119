/* Atomic files. Owns the temporary name, the buffer and the running hash; knows nothing of what is
 * written. Invariant: the target's name never points at a file that is not complete on the disk. */
#include "transport/atomic_file.h"

#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

enum { ATOMIC_FILE_BUFFER_BYTES = 1 << 20, ATOMIC_FILE_NAMES_MAX = 1000 };

struct atomic_file {
    int fd;
    char *path;
    char *temporary;
    unsigned char *buffer; /* [ATOMIC_FILE_BUFFER_BYTES] */
    size_t buffered;
    uint64_t bytes;
    XXH3_state_t *hash;
};

static rl_status fail_io(const struct atomic_file *file, const char *action, int error)
{
    const char *hint = error == ENOSPC || error == EDQUOT || error == EFBIG
                           ? " (no room left; the file of that name, if any, is unchanged)"
                           : "";
    return rl_fail(RL_IO, "%s: %s: %s%s", file->path, action, strerror(error), hint);
}

static void atomic_file_free(struct atomic_file *file)
{
    if (file->fd >= 0) {
        close(file->fd);
    }
    if (file->hash != NULL) {
        XXH3_freeState(file->hash);
    }
    free(file->buffer);
    free(file->temporary);
    free(file->path);
    free(file);
}

/* The process id keeps ranks apart; the number steps over what a killed process left behind. */
static rl_status open_temporary(struct atomic_file *file)
{
    size_t room = strlen(file->path) + 48;
    file->temporary = malloc(room);
    if (file->temporary == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory for the temporary name", file->path);
    }
    for (int i = 0; i < ATOMIC_FILE_NAMES_MAX; i++) {
        snprintf(file->temporary, room, "%s.tmp.%ld.%d", file->path, (long)getpid(), i);
        file->fd = open(file->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file->fd >= 0) {
            return RL_OK;
        }
        if (errno != EEXIST) {
            break;
        }
    }
    return fail_io(file, "cannot create a temporary file beside it", errno);
}

rl_status atomic_file_open(const char *path, struct atomic_file **out)
{
    struct atomic_file *file = calloc(1, sizeof(*file));
    if (file == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory to open the file", path);
    }
    file->fd = -1;
    file->path = strdup(path);
    file->buffer = malloc(ATOMIC_FILE_BUFFER_BYTES);
    file->hash = XXH3_createState();
    rl_status status = RL_OK;
    if (file->path == NULL || file->buffer == NULL || file->hash == NULL) {
        status = rl_fail(RL_NO_MEMORY, "%s: no memory for the write buffer", path);
    } else if (XXH3_64bits_reset(file->hash) != XXH_OK) {
        status = rl_fail(RL_INTERNAL, "%s: cannot start the hash", path);
    } else {
        status = open_temporary(file);
    }
    if (status != RL_OK) {
        atomic_file_free(file);
        return status;
    }
    *out = file;
    return RL_OK;
}

static rl_status write_fully(struct atomic_file *file, const unsigned char *data, size_t bytes)
{
    while (bytes > 0) {
        ssize_t written = write(file->fd, data, bytes);
        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written <= 0) {
            return fail_io(file, "cannot write", written < 0 ? errno : EIO);
        }
        data += written;
        bytes -= (size_t)written;
    }
    return RL_OK;
}

static rl_status flush_buffer(struct atomic_file *file)
{
    size_t bytes = file->buffered;
    file->buffered = 0;
    return write_fully(file, file->buffer, bytes);
}

rl_status atomic_file_write(struct atomic_file *file, const void *data, size_t bytes)
{
    if (bytes == 0) {
        return RL_OK;
    }
    XXH3_64bits_update(file->hash, data, bytes);
    file->bytes += bytes;
    if (bytes >= ATOMIC_FILE_BUFFER_BYTES) {
        RL_TRY(flush_buffer(file));
        return write_fully(file, data, bytes);
    }
    if (file->buffered + bytes > ATOMIC_FILE_BUFFER_BYTES) {
        RL_TRY(flush_buffer(file));
    }
    memcpy(file->buffer + file->buffered, data, bytes);
    file->buffered += bytes;
    return RL_OK;
}

uint64_t atomic_file_hash(const struct atomic_file *file)
{
    return XXH3_64bits_digest(file->hash);
}

uint64_t atomic_file_bytes(const struct atomic_file *file)
{
    return file->bytes;
}

/* The rename is only durable once the folder itself is on the disk. */
static rl_status sync_folder(const struct atomic_file *file)
{
    char *folder = strdup(file->path);
    if (folder == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory to name its folder", file->path);
    }
    char *slash = strrchr(folder, '/');
    const char *name = ".";
    if (slash == folder) {
        name = "/";
    } else if (slash != NULL) {
        *slash = '\0';
        name = folder;
    }
    int fd = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    rl_status status = RL_OK;
    /* Some network file systems refuse fsync on folders (EINVAL); there is nothing better to do. */
    if (fd < 0 || (fsync(fd) != 0 && errno != EINVAL)) {
        status = fail_io(file, "cannot flush its folder", errno);
    }
    if (fd >= 0) {
        close(fd);
    }
    free(folder);
    return status;
}

static rl_status finish_file(struct atomic_file *file)
{
    RL_TRY(flush_buffer(file));
    if (fsync(file->fd) != 0) {
        return fail_io(file, "cannot flush to the disk", errno);
    }
    int fd = file->fd;
    file->fd = -1;
    if (close(fd) != 0) {
        return fail_io(file, "cannot close", errno);
    }
    if (rename(file->temporary, file->path) != 0) {
        return fail_io(file, "cannot rename the temporary file to it", errno);
    }
    return RL_OK;
}

rl_status atomic_file_commit(struct atomic_file *file)
{
    rl_status status = finish_file(file);
    if (status != RL_OK) {
        atomic_file_abort(file);
        return status;
    }
    status = sync_folder(file);
    atomic_file_free(file);
    return status;
}

void atomic_file_abort(struct atomic_file *file)
{
    if (file == NULL) {
        return;
    }
    unlink(file->temporary);
    atomic_file_free(file);
}

rl_status atomic_file_write_all(const char *path, const void *data, size_t bytes)
{
    struct atomic_file *file = NULL;
    RL_TRY(atomic_file_open(path, &file));
    rl_status status = atomic_file_write(file, data, bytes);
    if (status != RL_OK) {
        atomic_file_abort(file);
        return status;
    }
    return atomic_file_commit(file);
}
