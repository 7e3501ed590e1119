/* Memory and random inputs for the programs that test kernels. Buffers that a kernel only reads are
 * exactly as long as they are said to be (AddressSanitizer sees a read beyond); buffers that it
 * writes lie between guard zones that are checked. */
#ifndef FORESIGHT_TESTS_KERNEL_SUPPORT_H
#define FORESIGHT_TESTS_KERNEL_SUPPORT_H

#include "core/rng.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* 1 in programs that run on the emulated GPU. */
#ifndef SUPPORT_EMULATED
#define SUPPORT_EMULATED 0
#endif

enum { SUPPORT_AREAS = 48, SUPPORT_GUARD = 64, SUPPORT_ALIGN = 64 };

#define SUPPORT_UNUSED __attribute__((unused))

/* One buffer. `written`: an output, guarded and compared. */
struct area {
    char *block;
    char *data;
    size_t bytes;
    bool written;
    bool integers;              /* compare exactly */
    int64_t packed_n, packed_k; /* a packed weight: its size; 0: none */
    size_t packed_width;        /* bytes of an element; 0: one bit */
    double floor;               /* least magnitude that differences are held against */
};

/* What the random values look like. */
enum flavour { FLAVOUR_PLAIN, FLAVOUR_ZEROS, FLAVOUR_TINY, FLAVOUR_MIXED, FLAVOUR_COUNT };

struct memory {
    struct rl_rng rng;
    enum flavour flavour;
    struct area areas[SUPPORT_AREAS];
    int count;
};

/* The memories in use, so that a pointer's area can be found. */
enum { SUPPORT_MEMORIES = 16 };
static struct memory *support_memories[SUPPORT_MEMORIES];

static SUPPORT_UNUSED void memory_init(struct memory *m, uint64_t seed, enum flavour flavour)
{
    int i = 0;
    *m = (struct memory){.rng = rl_rng_make(seed, 77), .flavour = flavour};
    while (support_memories[i] != NULL && support_memories[i] != m) {
        if (++i == SUPPORT_MEMORIES) {
            fprintf(stderr, "too many test memories at a time\n");
            abort();
        }
    }
    support_memories[i] = m;
}

/* The area that `data` points into, or NULL. */
static SUPPORT_UNUSED struct area *support_find_area(const void *data)
{
    const char *at = data;
    for (int i = 0; i < SUPPORT_MEMORIES; i++) {
        for (int j = 0; support_memories[i] != NULL && j < support_memories[i]->count; j++) {
            struct area *a = &support_memories[i]->areas[j];
            if (at >= a->data && at < a->data + a->bytes + (a->bytes == 0)) {
                return a;
            }
        }
    }
    return NULL;
}

static SUPPORT_UNUSED void memory_fini(struct memory *m)
{
    for (int i = 0; i < m->count; i++) {
        free(m->areas[i].block);
    }
    m->count = 0;
    for (int i = 0; i < SUPPORT_MEMORIES; i++) {
        support_memories[i] = support_memories[i] == m ? NULL : support_memories[i];
    }
}

static SUPPORT_UNUSED void *memory_area(struct memory *m, size_t bytes, bool written)
{
    size_t guard = written ? SUPPORT_GUARD : 0;
    void *block = NULL;
    if (m->count == SUPPORT_AREAS ||
        posix_memalign(&block, SUPPORT_ALIGN, bytes + 2 * guard + (bytes == 0)) != 0) {
        fprintf(stderr, "out of memory for a test buffer of %zu bytes\n", bytes);
        abort();
    }
    memset(block, 0xa5, bytes + 2 * guard);
    struct area *area = &m->areas[m->count++];
    *area = (struct area){
        .block = block, .data = (char *)block + guard, .bytes = bytes, .written = written};
    memset(area->data, 0, bytes);
    return area->data;
}

/* True if nothing was written outside of any output. */
static SUPPORT_UNUSED bool memory_guards_hold(const struct memory *m)
{
    for (int i = 0; i < m->count; i++) {
        const struct area *a = &m->areas[i];
        for (size_t b = 0; a->written && b < SUPPORT_GUARD; b++) {
            if ((unsigned char)a->block[b] != 0xa5 ||
                (unsigned char)a->data[a->bytes + b] != 0xa5) {
                return false;
            }
        }
    }
    return true;
}

static SUPPORT_UNUSED int64_t memory_pick(struct memory *m, int64_t low, int64_t high)
{
    return low + (int64_t)rl_rng_next_below(&m->rng, (uint64_t)(high - low + 1));
}

/* Roughly normal with deviation `scale`: the sum of three uniform parts of one draw, which is
 * cheap; the fourth part decides what the flavour does. */
static SUPPORT_UNUSED float memory_value(struct memory *m, double scale)
{
    uint64_t bits = rl_rng_next_bits(&m->rng);
    double sum =
        (double)(bits & 0xffff) + (double)(bits >> 16 & 0xffff) + (double)(bits >> 32 & 0xffff);
    double value = scale * 2.0 * (sum / 65536.0 - 1.5);
    double dice = (double)(bits >> 48) / 65536.0;
    switch (m->flavour) {
    case FLAVOUR_ZEROS:
        value = dice < 0.5 ? (dice < 0.25 ? -0.0 : 0.0) : value;
        break;
    case FLAVOUR_TINY:
        value = dice < 0.3 ? value * 1e-39 : value;
        break;
    case FLAVOUR_MIXED:
        value = dice < 0.1 ? value * 4.0 : dice < 0.3 ? value * 1e-6 : value;
        break;
    default:
        break;
    }
    return (float)value;
}

/* Random input of `count` floats. */
static SUPPORT_UNUSED float *memory_floats(struct memory *m, int64_t count, double scale)
{
    float *data = memory_area(m, (size_t)count * sizeof(float), false);
    for (int64_t i = 0; i < count; i++) {
        data[i] = memory_value(m, scale);
    }
    return data;
}

/* Output of `count` floats with random old contents. */
static SUPPORT_UNUSED float *memory_output(struct memory *m, int64_t count, double scale)
{
    float *data = memory_area(m, (size_t)count * sizeof(float), true);
    for (int64_t i = 0; i < count; i++) {
        data[i] = memory_value(m, scale);
    }
    return data;
}

/* Scratch of head_decode for m rows. */
static SUPPORT_UNUSED struct kernel_decode_chunk *memory_chunks(struct memory *m, int64_t rows,
                                                                int64_t v)
{
    int64_t chunks = (v + KERNEL_HEAD_CHUNK - 1) / KERNEL_HEAD_CHUNK;
    return memory_area(m, (size_t)(rows * chunks) * sizeof(struct kernel_decode_chunk), false);
}

/* The last area's values come from terms of this size, even if they cancel. */
static SUPPORT_UNUSED float *memory_floor(struct memory *m, float *area, double floor)
{
    m->areas[m->count - 1].floor = floor;
    return area;
}

/* Output of `count` integers, -1 at first. */
static SUPPORT_UNUSED int32_t *memory_output_ids(struct memory *m, int64_t count)
{
    int32_t *data = memory_area(m, (size_t)count * sizeof(int32_t), true);
    m->areas[m->count - 1].integers = true;
    memset(data, 0xff, (size_t)count * sizeof(int32_t));
    return data;
}

/* Scratch: guarded, but its contents are nobody's business. */
static SUPPORT_UNUSED void *memory_scratch(struct memory *m, size_t bytes)
{
    void *data = memory_area(m, bytes, true);
    return data;
}

static SUPPORT_UNUSED int32_t *memory_ids(struct memory *m, int64_t count, int64_t below)
{
    int32_t *ids = memory_area(m, (size_t)count * sizeof(int32_t), false);
    for (int64_t i = 0; i < count; i++) {
        ids[i] = (int32_t)memory_pick(m, 0, below - 1);
    }
    return ids;
}

static SUPPORT_UNUSED const struct kernel_table *support_ref(void)
{
    const struct kernel_table *ref = NULL;
    if (kernel_table_get(KERNEL_ISA_REF, &ref) != RL_OK) {
        abort();
    }
    return ref;
}

/* The last area is a packed weight [n, k] with elements of `width` bytes (0: one bit each). */
static SUPPORT_UNUSED void memory_packed(struct memory *m, int64_t n, int64_t k, size_t width)
{
    struct area *a = &m->areas[m->count - 1];
    a->packed_n = n;
    a->packed_k = k;
    a->packed_width = width;
}

/* Largest difference of two outputs relative to the largest reference value; infinite if one is NaN
 * and the other is not. */
static SUPPORT_UNUSED double area_difference(const struct area *want, const struct area *got)
{
    double largest = 0.0;
    double difference = 0.0;
    for (size_t i = 0; i + sizeof(float) <= want->bytes; i += sizeof(float)) {
        float a;
        float b;
        memcpy(&a, want->data + i, sizeof a);
        memcpy(&b, got->data + i, sizeof b);
        if (memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b))) {
            largest = isfinite(a) ? fmax(largest, fabs((double)a)) : largest;
            continue;
        }
        if (!isfinite(a) || !isfinite(b)) {
            return INFINITY;
        }
        largest = fmax(largest, fabs((double)a));
        difference = fmax(difference, fabs((double)a - (double)b));
    }
    return difference <= 1e-37 ? 0.0 : difference / fmax(largest, fmax(want->floor, 1e-30));
}

/* Packed random weights [n, k], by the reference. */
static SUPPORT_UNUSED void *memory_weights(struct memory *m, int64_t n, int64_t k,
                                           enum kernel_dtype dtype)
{
    const struct kernel_table *ref = support_ref();
    const enum kernel_dtype from = dtype == KERNEL_INT8 ? KERNEL_FP32 : dtype;
    float *w = memory_floats(m, n * k, 1.0 / sqrt((double)k));
    void *packed = memory_area(m, kernel_packed_bytes(n, k, from), false);
    memory_packed(m, n, k, from == KERNEL_BF16 ? 2 : 4);
    ref->linear_pack(
        &(struct kernel_linear_pack_args){.w = w, .packed = packed, .dtype = from, .n = n, .k = k},
        NULL);
    if (dtype != KERNEL_INT8) {
        return packed;
    }
    void *quantized = memory_area(m, kernel_packed_bytes(n, k, dtype), false);
    ref->linear_quantize(
        &(struct kernel_linear_quantize_args){
            .w = packed, .dtype = from, .packed = quantized, .n = n, .k = k},
        NULL);
    return quantized;
}

/* A batch of sequences with pages in shuffled order. */
struct sequences {
    struct kernel_segments segments;
    int64_t tokens, pages;
};

/* `lengths` [count]; every segment starts at `first` [count] (NULL: 0). Pages are numbered at
 * random among `pages` of the result. */
static SUPPORT_UNUSED struct sequences
memory_sequences(struct memory *m, int64_t count, const int64_t *lengths, const int64_t *first)
{
    struct sequences s = {.tokens = 0, .pages = 1};
    int32_t *start = memory_area(m, (size_t)(count + 1) * sizeof(int32_t), false);
    int32_t *position = memory_area(m, (size_t)count * sizeof(int32_t), false);
    const int32_t **tables = memory_area(m, (size_t)count * sizeof(*tables), false);
    for (int64_t i = 0; i < count; i++) {
        position[i] = first != NULL ? (int32_t)first[i] : 0;
        start[i + 1] = start[i] + (int32_t)lengths[i];
        s.pages += (position[i] + lengths[i] + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
    }
    uint64_t *order = memory_area(m, (size_t)s.pages * sizeof(uint64_t), false);
    rl_rng_permutation(m->rng.key, (uint64_t)s.pages, order);
    int32_t *numbers = memory_area(m, (size_t)s.pages * sizeof(int32_t), false);
    for (int64_t i = 0; i < s.pages; i++) {
        numbers[i] = (int32_t)order[i];
    }
    for (int64_t i = 0; i < count; i++) {
        tables[i] = numbers;
        numbers += (position[i] + lengths[i] + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
    }
    s.tokens = start[count];
    s.segments = (struct kernel_segments){
        .count = count, .segment_start = start, .first_position = position, .page_table = tables};
    return s;
}

#include "tests/device_table.h"

/* Tables that this machine runs: sets *table for index 0, 1, ...; false when there are no more. The
 * last one is the GPU's if there is one. On the emulated GPU: its table alone. */
static SUPPORT_UNUSED bool support_table(int index, const struct kernel_table **table)
{
    const char *only = getenv("FORESIGHT_TEST_TABLE"); /* "cuda": without the CPU's tables */
    bool gpu = SUPPORT_EMULATED || (only != NULL && strcmp(only, "cuda") == 0);
    int cpu_tables = gpu ? 0 : (int)kernel_isa_best() + 1;
    if (index < cpu_tables) {
        return kernel_table_get((enum kernel_isa)index, table) == RL_OK;
    }
    *table = &support_gpu_table;
    return index == cpu_tables && support_gpu_open();
}

/* Sets of inputs that each op gets; CHECK_KERNELS_SEEDS makes them fewer, for tools that slow a GPU
 * down. */
static SUPPORT_UNUSED uint64_t support_seeds(void)
{
    const char *text = getenv("CHECK_KERNELS_SEEDS");
    return text != NULL ? strtoull(text, NULL, 10) : SUPPORT_EMULATED ? 12 : 24;
}

#endif
