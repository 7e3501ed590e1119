/* The mapping of weight slots: making it, attaching to it, removing what the dead left. Owns the
 * sizes and the header's plain members; the pin protocol is in weight_arena.c.
 *
 * Stale arenas: everybody who maps one holds a shared flock on it; one whose creator is gone and
 * that can be locked exclusively belongs to nobody. */
#include "transport/weight_arena_internal.h"

#include "core/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define ARENA_MAGIC UINT64_C(0x3154485752534646)
#define ARENA_PREFIX "foresight-"
#define ARENA_FOLDER "/dev/shm"

enum {
    ARENA_FORMAT = 4,
    ARENA_PAGE = 4096,
    ARENA_HUGE = 2 * 1024 * 1024,
    ARENA_READERS_MAX = 1000000,
    ARENA_NAMES_MAX = 1000
};

static uint64_t round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

/* Sizes of an arena with these options; slots of some size start on huge pages. */
static rl_status arena_plan(const struct weight_arena_options *options, struct arena_header *plan,
                            size_t *total_bytes)
{
    if (options->slots < 2 || options->slots > WEIGHT_ARENA_SLOTS_MAX || options->readers < 1 ||
        options->readers > ARENA_READERS_MAX || options->slot_bytes == 0 ||
        options->slot_bytes > SIZE_MAX / 64) {
        return rl_fail(RL_INVALID,
                       "weight arena of %d slots (2 to %d) of %zu bytes with %d readers (1 to %d)",
                       options->slots, WEIGHT_ARENA_SLOTS_MAX, options->slot_bytes,
                       options->readers, ARENA_READERS_MAX);
    }
    uint64_t unit = options->slot_bytes >= ARENA_HUGE ? ARENA_HUGE : ARENA_PAGE;
    *plan = (struct arena_header){.magic = ARENA_MAGIC,
                                  .format = ARENA_FORMAT,
                                  .slots = (uint32_t)options->slots,
                                  .slot_bytes = options->slot_bytes,
                                  .readers = (uint32_t)options->readers};
    plan->slot_stride = round_up(options->slot_bytes, unit);
    plan->slot_offset =
        round_up(sizeof *plan + (uint64_t)options->readers * sizeof(struct arena_pin), unit);
    *total_bytes = plan->slot_offset + plan->slot_stride * plan->slots;
    return RL_OK;
}

/* The plan's plain members; the atomics are zero in fresh memory. */
static void arena_fill_header(struct arena_header *header, const struct arena_header *plan)
{
    header->format = plan->format;
    header->slots = plan->slots;
    header->slot_bytes = plan->slot_bytes;
    header->slot_stride = plan->slot_stride;
    header->slot_offset = plan->slot_offset;
    header->readers = plan->readers;
    atomic_store(&header->keep_from, UINT64_MAX);
    header->magic = plan->magic;
}

/* Reserve the pages, so that a full file system shows here and not as a SIGBUS in the writer. */
static rl_status arena_reserve(const struct weight_arena *arena, size_t total_bytes)
{
    int error = posix_fallocate(arena->fd, 0, (off_t)total_bytes);
    if (error == 0) {
        return RL_OK;
    }
    struct statvfs space;
    uint64_t free_bytes = 0;
    if (statvfs(ARENA_FOLDER, &space) == 0) {
        free_bytes = (uint64_t)space.f_bavail * space.f_frsize;
    }
    return rl_fail(RL_IO,
                   "shared memory for the weights: %zu bytes are needed in %s, %" PRIu64
                   " are free there: %s",
                   total_bytes, ARENA_FOLDER, free_bytes, strerror(error));
}

static rl_status arena_open_name(struct weight_arena *arena)
{
    for (int i = 0; i < ARENA_NAMES_MAX; i++) {
        snprintf(arena->name, sizeof arena->name, "/" ARENA_PREFIX "%ld-%d", (long)getpid(), i);
        arena->fd = shm_open(arena->name, O_RDWR | O_CREAT | O_EXCL, 0600);
        if (arena->fd >= 0) {
            arena->named = true;
            break;
        }
        if (errno != EEXIST) {
            break;
        }
    }
    if (arena->fd < 0) {
        return rl_fail(RL_IO, "%s: cannot make shared memory: %s", arena->name, strerror(errno));
    }
    if (flock(arena->fd, LOCK_SH | LOCK_NB) != 0) {
        return rl_fail(RL_IO, "%s: cannot lock: %s", arena->name, strerror(errno));
    }
    return RL_OK;
}

static rl_status arena_map_shared(struct weight_arena *arena, size_t total_bytes)
{
    void *mapping = mmap(NULL, total_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, arena->fd, 0);
    if (mapping == MAP_FAILED) {
        return rl_fail(RL_NO_MEMORY, "%s: cannot map %zu bytes: %s", arena->name, total_bytes,
                       strerror(errno));
    }
    arena->mapping = mapping;
    arena->mapping_bytes = total_bytes;
    arena->header = mapping;
    return RL_OK;
}

/* Anonymous memory aligned to huge pages: map too much and return the ends. */
static rl_status arena_map_private(struct weight_arena *arena, size_t total_bytes)
{
    size_t wanted = round_up(total_bytes, ARENA_PAGE);
    size_t bytes = wanted + ARENA_HUGE;
    unsigned char *raw =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) {
        return rl_fail(RL_NO_MEMORY, "no memory for %zu bytes of weights: %s", total_bytes,
                       strerror(errno));
    }
    size_t head = (ARENA_HUGE - (uintptr_t)raw % ARENA_HUGE) % ARENA_HUGE;
    if (head > 0) {
        munmap(raw, head);
    }
    munmap(raw + head + wanted, bytes - head - wanted);
    arena->mapping = raw + head;
    arena->mapping_bytes = wanted;
    arena->header = (struct arena_header *)(void *)arena->mapping;
    madvise(arena->mapping, wanted, MADV_HUGEPAGE); /* a wish; no harm if refused */
    return RL_OK;
}

static rl_status arena_build(struct weight_arena *arena, const struct weight_arena_options *options)
{
    struct arena_header plan;
    size_t total_bytes = 0;
    RL_TRY(arena_plan(options, &plan, &total_bytes));
    if (options->shared) {
        weight_arena_remove_stale();
        RL_TRY(arena_open_name(arena));
        RL_TRY(arena_reserve(arena, total_bytes));
        RL_TRY(arena_map_shared(arena, total_bytes));
    } else {
        RL_TRY(arena_map_private(arena, total_bytes));
    }
    arena_fill_header(arena->header, &plan);
    return RL_OK;
}

static struct weight_arena *arena_alloc(bool creator)
{
    struct weight_arena *arena = calloc(1, sizeof *arena);
    if (arena != NULL) {
        arena->fd = -1;
        arena->writing = -1;
        arena->creator = creator;
    }
    return arena;
}

rl_status weight_arena_create(const struct weight_arena_options *options, struct weight_arena **out)
{
    struct weight_arena *arena = arena_alloc(true);
    if (arena == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a weight arena");
    }
    rl_status status = arena_build(arena, options);
    if (status != RL_OK) {
        weight_arena_close(arena);
        return status;
    }
    *out = arena;
    return RL_OK;
}

static rl_status attach_open(struct weight_arena *arena, const char *name, size_t *bytes)
{
    if (strlen(name) >= sizeof arena->name ||
        strncmp(name, "/" ARENA_PREFIX, strlen("/" ARENA_PREFIX)) != 0) {
        return rl_fail(RL_NOT_FOUND, "\"%s\" is not the name of a weight arena", name);
    }
    snprintf(arena->name, sizeof arena->name, "%s", name);
    arena->fd = shm_open(name, O_RDWR, 0);
    if (arena->fd < 0) {
        return rl_fail(errno == ENOENT ? RL_NOT_FOUND : RL_IO, "%s: cannot open: %s", name,
                       strerror(errno));
    }
    struct stat info;
    if (flock(arena->fd, LOCK_SH | LOCK_NB) != 0 || fstat(arena->fd, &info) != 0) {
        return rl_fail(RL_IO, "%s: cannot lock or stat: %s", name, strerror(errno));
    }
    if (info.st_size < (off_t)sizeof(struct arena_header)) {
        return rl_fail(RL_CORRUPT, "%s: %lld bytes are too few for a weight arena", name,
                       (long long)info.st_size);
    }
    *bytes = (size_t)info.st_size;
    return RL_OK;
}

/* The header must be exactly what this build would have made for its own counts. */
static rl_status attach_check(const struct weight_arena *arena, size_t slot_bytes)
{
    const struct arena_header *header = arena->header;
    if (header->magic != ARENA_MAGIC || header->format != ARENA_FORMAT) {
        return rl_fail(RL_CORRUPT, "%s: not a weight arena of this build", arena->name);
    }
    if (header->slot_bytes != slot_bytes) {
        return rl_fail(RL_INVALID, "%s: slots of %" PRIu64 " bytes, this model's weights take %zu",
                       arena->name, header->slot_bytes, slot_bytes);
    }
    if (header->slots > WEIGHT_ARENA_SLOTS_MAX || header->readers > ARENA_READERS_MAX) {
        return rl_fail(RL_CORRUPT, "%s: %u slots, %u readers", arena->name, header->slots,
                       header->readers);
    }
    struct weight_arena_options options = {.shared = true,
                                           .slots = (int)header->slots,
                                           .slot_bytes = slot_bytes,
                                           .readers = (int)header->readers};
    struct arena_header plan;
    size_t total_bytes = 0;
    RL_TRY(arena_plan(&options, &plan, &total_bytes));
    if (plan.slot_offset != header->slot_offset || plan.slot_stride != header->slot_stride ||
        total_bytes != arena->mapping_bytes) {
        return rl_fail(RL_CORRUPT, "%s: its sizes do not fit together", arena->name);
    }
    return RL_OK;
}

static rl_status attach_build(struct weight_arena *arena, const char *name, size_t slot_bytes)
{
    size_t bytes = 0;
    RL_TRY(attach_open(arena, name, &bytes));
    RL_TRY(arena_map_shared(arena, bytes));
    RL_TRY(attach_check(arena, slot_bytes));
    /* Only the creator writes images: a stray store of a reader must not reach the others. */
    size_t offset = arena->header->slot_offset;
    if (mprotect(arena->mapping + offset, bytes - offset, PROT_READ) != 0) {
        return rl_fail(RL_IO, "%s: cannot protect the slots: %s", name, strerror(errno));
    }
    return RL_OK;
}

rl_status weight_arena_attach(const char *name, size_t slot_bytes, struct weight_arena **out)
{
    struct weight_arena *arena = arena_alloc(false);
    if (arena == NULL) {
        return rl_fail(RL_NO_MEMORY, "no memory for a weight arena");
    }
    rl_status status = attach_build(arena, name, slot_bytes);
    if (status != RL_OK) {
        weight_arena_close(arena);
        return status;
    }
    *out = arena;
    return RL_OK;
}

const char *weight_arena_name(const struct weight_arena *arena)
{
    return arena->name;
}

void weight_arena_unlink(struct weight_arena *arena)
{
    if (arena->creator && arena->named) {
        shm_unlink(arena->name);
        arena->named = false;
    }
}

void weight_arena_close(struct weight_arena *arena)
{
    if (arena == NULL) {
        return;
    }
    weight_arena_unlink(arena);
    arena_device_close(arena);
    if (arena->mapping != NULL) {
        munmap(arena->mapping, arena->mapping_bytes);
    }
    if (arena->fd >= 0) {
        close(arena->fd);
    }
    free(arena);
}

/* Pid in "foresight-PID-N", 0 if the name is not of that form. */
static long stale_pid(const char *name)
{
    size_t prefix = strlen(ARENA_PREFIX);
    if (strncmp(name, ARENA_PREFIX, prefix) != 0) {
        return 0;
    }
    char *end = NULL;
    errno = 0;
    long pid = strtol(name + prefix, &end, 10);
    return errno == 0 && pid > 0 && *end == '-' ? pid : 0;
}

static bool stale_remove(const char *entry)
{
    long pid = stale_pid(entry);
    if (pid == 0 || kill((pid_t)pid, 0) == 0 || errno != ESRCH) {
        return false;
    }
    char name[WEIGHT_ARENA_NAME_MAX];
    if (snprintf(name, sizeof name, "/%s", entry) >= (int)sizeof name) {
        return false;
    }
    int fd = shm_open(name, O_RDWR, 0);
    if (fd < 0) {
        return false;
    }
    bool free_of_users = flock(fd, LOCK_EX | LOCK_NB) == 0;
    bool removed = free_of_users && shm_unlink(name) == 0;
    close(fd);
    if (removed) {
        rl_log(RL_LOG_INFO, "removed the shared weights %s that a dead process left", name);
    }
    return removed;
}

int weight_arena_remove_stale(void)
{
    DIR *folder = opendir(ARENA_FOLDER);
    if (folder == NULL) {
        return 0;
    }
    int removed = 0;
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        removed += stale_remove(entry->d_name) ? 1 : 0;
    }
    closedir(folder);
    return removed;
}
