/* Reference ops that move numbers and hardly compute: the host may not touch a device's memory, so
 * they are ops like any other. */
#include "kernels/hash_word.h"
#include "kernels/ref/ops_ref.h"

#include <string.h>

enum { VECTOR_ALIGN = 64 };

void zero_ref(const struct kernel_zero_args *a, struct rl_pool *pool)
{
    (void)pool;
    memset(a->data, 0, a->bytes);
}

void copy_rows_ref(const struct kernel_copy_args *a, struct rl_pool *pool)
{
    (void)pool;
    for (int64_t i = 0; i < a->rows; i++) {
        size_t at = (size_t)i * a->stride;
        memcpy((char *)a->to + at, (const char *)a->from + at, a->bytes);
    }
}

void gather_rows_ref(const struct kernel_gather_args *a, struct rl_pool *pool)
{
    (void)pool;
    for (int64_t i = 0; i < a->m; i++) {
        memcpy(a->y + i * a->c, a->x + (int64_t)a->rows[i] * a->c, (size_t)a->c * sizeof(float));
    }
}

void blend_ref(const struct kernel_blend_args *a, struct rl_pool *pool)
{
    (void)pool;
    for (int64_t i = 0; i < a->count; i++) {
        a->y[i] += a->rate * (a->x[i] - a->y[i]);
    }
}

void hash_words_ref(const struct kernel_hash_args *a, struct rl_pool *pool)
{
    (void)pool;
    uint64_t sum = 0;
    for (int64_t i = 0; i < a->count; i++) {
        sum += kernel_hash_word((uint64_t)i, a->words[i]);
    }
    *a->sum = sum;
}

/* bits = which elements of `width` bytes differ; `bytes` is a multiple of 8 of them. */
static void mark_elements(const unsigned char *now, const unsigned char *before, size_t bytes,
                          size_t width, uint8_t *bits)
{
    for (size_t i = 0; i < bytes / width; i += 8) {
        unsigned mark = 0;
        for (size_t j = 0; j < 8; j++) {
            bool differs = memcmp(now + (i + j) * width, before + (i + j) * width, width) != 0;
            mark |= (unsigned)differs << j;
        }
        bits[i / 8] = (uint8_t)mark;
    }
}

void vector_pack_ref(const struct kernel_vector_pack_args *a, struct rl_pool *pool)
{
    (void)pool;
    size_t bytes = (size_t)a->count * sizeof(float);
    size_t padded = (bytes + VECTOR_ALIGN - 1) / VECTOR_ALIGN * VECTOR_ALIGN;
    memcpy(a->packed, a->w, bytes);
    memset((char *)a->packed + bytes, 0, padded - bytes);
    if (a->changed != NULL) {
        mark_elements(a->packed, a->previous, padded,
                      a->dtype == KERNEL_BF16 ? sizeof(uint16_t) : sizeof(float), a->changed);
    }
}
