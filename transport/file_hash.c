/* Hashes a file in pieces, so that its size does not matter. */
#include "transport/file_hash.h"

#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

enum { FILE_HASH_PIECE = 1024 * 1024 };

static rl_status hash_fd(const char *path, int fd, XXH3_state_t *state, uint64_t *bytes)
{
    unsigned char *piece = malloc(FILE_HASH_PIECE);
    if (piece == NULL) {
        return rl_fail(RL_NO_MEMORY, "%s: no memory to hash it", path);
    }
    rl_status status = RL_OK;
    uint64_t total = 0;
    for (;;) {
        ssize_t got = read(fd, piece, FILE_HASH_PIECE);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0) {
            status = rl_fail(RL_IO, "%s: cannot read: %s", path, strerror(errno));
            break;
        }
        if (got == 0) {
            break;
        }
        XXH3_64bits_update(state, piece, (size_t)got);
        total += (uint64_t)got;
    }
    free(piece);
    *bytes = total;
    return status;
}

static rl_status open_regular(const char *path, int *out)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    if (fd < 0) {
        return rl_fail(RL_IO, "%s: cannot open: %s", path, strerror(errno));
    }
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(fd);
        return rl_fail(RL_IO, "%s: not a regular file", path);
    }
    *out = fd;
    return RL_OK;
}

rl_status file_hash(const char *path, uint64_t *bytes, uint64_t *hash)
{
    int fd = -1;
    RL_TRY(open_regular(path, &fd));
    XXH3_state_t *state = XXH3_createState();
    rl_status status = RL_OK;
    if (state == NULL || XXH3_64bits_reset(state) != XXH_OK) {
        status = rl_fail(RL_NO_MEMORY, "%s: no memory to hash it", path);
    } else {
        status = hash_fd(path, fd, state, bytes);
    }
    if (status == RL_OK) {
        *hash = XXH3_64bits_digest(state);
    }
    XXH3_freeState(state);
    close(fd);
    return status;
}
