/* CPU memory and identification. Owns the two counters of held bytes (process-wide atomics); each
 * block carries its size in the 64 bytes before it. */
#include "kernels/device.h"

#include "core/log.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { DEVICE_ALIGN = 64, DEVICE_HUGE = 2 * 1024 * 1024, DEVICE_NAME_MAX = 128 };

enum { DEVICE_CACHE_GUESS = 16 * 1024 * 1024 };

struct block {
    void *base;    /* of the mapping */
    size_t mapped; /* bytes of the mapping */
    size_t bytes;  /* as asked for */
};

static atomic_size_t held_bytes;
static atomic_size_t peak_bytes_held;

static void count_bytes(size_t bytes)
{
    size_t now = atomic_fetch_add(&held_bytes, bytes) + bytes;
    size_t peak = atomic_load(&peak_bytes_held);
    while (now > peak && !atomic_compare_exchange_weak(&peak_bytes_held, &peak, now)) {
    }
}

rl_status device_alloc(size_t bytes, const char *what, void **out)
{
    if (bytes > SIZE_MAX / 2) {
        return rl_fail(RL_NO_MEMORY, "%s: %zu bytes asked for", what, bytes);
    }
    size_t align = bytes >= DEVICE_HUGE ? DEVICE_HUGE : DEVICE_ALIGN;
    size_t mapped = bytes + DEVICE_ALIGN + align;
    char *base = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        return rl_fail(RL_NO_MEMORY, "%s: cannot allocate %zu bytes (%zu held already)", what,
                       bytes, atomic_load(&held_bytes));
    }
    uintptr_t first = (uintptr_t)base + DEVICE_ALIGN;
    char *data = base + DEVICE_ALIGN + (align - first % align) % align;
    if (bytes >= DEVICE_HUGE) {
        (void)madvise(base, mapped, MADV_HUGEPAGE); /* only advice: slower without */
    }
    struct block block = {.base = base, .mapped = mapped, .bytes = bytes};
    memcpy(data - DEVICE_ALIGN, &block, sizeof block);
    count_bytes(bytes);
    *out = data;
    return RL_OK;
}

void device_forget(void *data)
{
    const struct block *block = (const void *)((const char *)data - DEVICE_ALIGN);
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)data + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)data + block->bytes) / page * page;
    if (end > first) {
        (void)madvise((void *)first, end - first, MADV_DONTNEED); /* else it stays */
    }
}

void device_free(void *data)
{
    if (data == NULL) {
        return;
    }
    struct block block;
    memcpy(&block, (char *)data - DEVICE_ALIGN, sizeof block);
    atomic_fetch_sub(&held_bytes, block.bytes);
    (void)munmap(block.base, block.mapped); /* fails only for a pointer that is not ours */
}

void device_memory(size_t *now_bytes, size_t *peak_bytes)
{
    *now_bytes = atomic_load(&held_bytes);
    *peak_bytes = atomic_load(&peak_bytes_held);
}

/* Copy the text after "model name :" of /proc/cpuinfo; false if there is none. */
static bool read_cpu_name(char *name, size_t size)
{
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (file == NULL) {
        return false;
    }
    char line[256];
    bool found = false;
    while (!found && fgets(line, sizeof line, file) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon != NULL) {
            colon += strspn(colon, ": \t");
            (void)snprintf(name, size, "%.*s", (int)strcspn(colon, "\n"), colon);
            found = true;
        }
    }
    (void)fclose(file);
    return found;
}

const char *device_cpu_name(void)
{
    static _Thread_local char name[DEVICE_NAME_MAX];
    if (name[0] == '\0' && !read_cpu_name(name, sizeof name)) {
        (void)snprintf(name, sizeof name, "unknown CPU");
    }
    return name;
}

size_t device_cache_bytes(void)
{
    long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return bytes > 0 ? (size_t)bytes : DEVICE_CACHE_GUESS;
}

int device_cpu_count(void)
{
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (int)count : 1;
}
