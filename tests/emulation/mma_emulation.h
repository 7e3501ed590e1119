/* kernels/cuda/mma_cuda.h on the CPU, for blocks of one dimension: the same fragments and rows,
 * lane by lane. The lanes of a warp hand in what they hold and read what the others did. Copies
 * move nothing until they are waited for, so that a kernel which forgets to wait computes garbage
 * here as well. */
#ifndef FORESIGHT_TESTS_EMULATION_MMA_EMULATION_H
#define FORESIGHT_TESTS_EMULATION_MMA_EMULATION_H

#include "kernels/bf16.h"
#include "tests/emulation/tensor_emulation.h"

#include <cuda_bf16.h>
#include <string.h>
#include <vector>

enum { EMULATION_COPY_THREADS = 1024 };

static inline uint16_t mma_bf16(float value)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

static inline uint32_t mma_bf16_pair(float low, float high)
{
    return (uint32_t)mma_bf16(low) | (uint32_t)mma_bf16(high) << 16;
}

/* Number `index` (0, 1) of a pair. */
static inline float emulation_mma_half(uint32_t pair, int index)
{
    return kernel_bf16_to_float((uint16_t)(pair >> (16 * index)));
}

/* A lane's fragments of both operands. */
struct emulation_mma_lane {
    uint32_t a[4], b[2];
};

static inline void mma_m16n8k16_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    struct emulation_mma_lane mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    const char *lanes = emulation_warp_gather(0xffffffffu, "mma", &mine, sizeof mine);
    const int lane = (int)emulation_lane();
    for (int e = 0; e < 4; e++) {
        const int row = lane / 4 + e / 2 * 8;
        const int column = lane % 4 * 2 + e % 2;
        for (int half = 0; half < 2; half++) {
            float x[TENSOR_PRODUCTS];
            float y[TENSOR_PRODUCTS];
            for (int k = 0; k < TENSOR_PRODUCTS; k++) {
                const char *left = lanes + (row % 8 * 4 + k / 2) * EMULATION_SLOT;
                const char *right = lanes + (column * 4 + k / 2) * EMULATION_SLOT;
                x[k] = emulation_mma_half(
                    ((const struct emulation_mma_lane *)left)->a[row / 8 + half * 2], k % 2);
                y[k] =
                    emulation_mma_half(((const struct emulation_mma_lane *)right)->b[half], k % 2);
            }
            d[e] = tensor_sum(d[e], x, y, TENSOR_PRODUCTS);
        }
    }
}

/* Element of the 8 x 8 matrix whose rows the lanes from `first` on point at. */
static inline uint32_t emulation_mma_at(const char *lanes, int first, int row, int column)
{
    const char *from = *(const char *const *)(lanes + (first + row) * EMULATION_SLOT);
    uint16_t bits;
    if ((uintptr_t)from % 16 != 0) {
        emulation_fail("ldmatrix: a row that is not aligned to 16 bytes");
    }
    memcpy(&bits, from + column * 2, sizeof bits);
    return bits;
}

static inline void emulation_mma_load(uint32_t to[4], const void *row, bool transposed)
{
    const char *lanes = emulation_warp_gather(0xffffffffu, "ldmatrix", &row, sizeof row);
    const int g = (int)emulation_lane() / 4;
    const int t = (int)emulation_lane() % 4 * 2;
    for (int i = 0; i < 4; i++) {
        to[i] = transposed ? emulation_mma_at(lanes, 8 * i, t, g) |
                                 emulation_mma_at(lanes, 8 * i, t + 1, g) << 16
                           : emulation_mma_at(lanes, 8 * i, g, t) |
                                 emulation_mma_at(lanes, 8 * i, g, t + 1) << 16;
    }
}

static inline void mma_load_x4(uint32_t to[4], const void *row)
{
    emulation_mma_load(to, row, false);
}

static inline void mma_load_x4_transposed(uint32_t to[4], const void *row)
{
    emulation_mma_load(to, row, true);
}

/* --- copies --- */

struct emulation_copy {
    char *to;
    const char *from;
    size_t bytes;
};

/* One thread's copies that have not arrived; `ends`: their count at each commit. */
struct emulation_copies {
    std::vector<struct emulation_copy> list;
    std::vector<size_t> ends;
};

/* Of each thread of the running block. */
inline struct emulation_copies emulation_copies_all[EMULATION_COPY_THREADS];

static inline struct emulation_copies *emulation_copies_mine(void)
{
    return &emulation_copies_all[threadIdx.x];
}

static inline void copy_async16(void *to, const void *from, int bytes)
{
    if ((uintptr_t)to % 16 != 0 || from == nullptr || (uintptr_t)from % 16 != 0 || bytes < 0 ||
        bytes > 16) {
        emulation_fail("cp.async: %d bytes from %p to %p", bytes, from, to);
    }
    emulation_copies_mine()->list.push_back({(char *)to, (const char *)from, (size_t)bytes});
}

static inline void copy_async_commit(void)
{
    struct emulation_copies *mine = emulation_copies_mine();
    mine->ends.push_back(mine->list.size());
}

template <int GROUPS> static inline void copy_async_wait(void)
{
    struct emulation_copies *mine = emulation_copies_mine();
    if (mine->ends.size() <= (size_t)GROUPS) {
        return;
    }
    const size_t groups = mine->ends.size() - (size_t)GROUPS;
    const size_t count = mine->ends[groups - 1];
    for (size_t i = 0; i < count; i++) {
        const struct emulation_copy *copy = &mine->list[i];
        memcpy(copy->to, copy->from, copy->bytes);
        memset(copy->to + copy->bytes, 0, 16 - copy->bytes);
    }
    mine->list.erase(mine->list.begin(), mine->list.begin() + (ptrdiff_t)count);
    mine->ends.erase(mine->ends.begin(), mine->ends.begin() + (ptrdiff_t)groups);
    for (size_t &end : mine->ends) {
        end -= count;
    }
}

#endif
