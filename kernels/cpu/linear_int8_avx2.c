/* Linear maps on int8 weights with AVX2: numbers of 16 bits multiplied and summed in pairs, which
 * cannot overflow. */
#include "kernels/cpu/ops_cpu.h"

#if KERNEL_HAVE_X86
#include "kernels/cpu/linear_int8_cpu.h"
#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/work_cpu.h"
#include "kernels/int8.h"

#include <string.h>

#include "kernels/cpu/tile_simd.inc"

enum {
    INT8_ROWS = 3,
    INT8_VECS = 4,                     /* vectors of sums, two lanes an output */
    INT8_LANE_OUTPUTS = SIMD_LANES / 2 /* outputs of one of them */
};

typedef int16_t int8_x;

struct int8_tile {
    const int8_x *x;
    int64_t x_row;
    const char *panel;
    int64_t quads;
};

SIMD_INLINE void int8_store_x(int8_x *to, vf x)
{
    const __m256i q = _mm256_cvtps_epi32(x);
    const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    _mm_storeu_si128((__m128i *)(void *)to, half);
}

SIMD_INLINE vf int8_load_integers(const int32_t *from)
{
    return _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

SIMD_INLINE void int8_store_integers(int32_t *to, vf x)
{
    _mm256_storeu_si256((__m256i *)(void *)to, _mm256_cvtps_epi32(x));
}

/* Lane after lane, its four numbers. */
SIMD_INLINE void int8_store_quads(char *to, const vf quad[KERNEL_INT8_QUAD])
{
    const __m256i low = _mm256_set1_epi32(0xff);
    __m256i packed = _mm256_slli_epi32(_mm256_cvtps_epi32(quad[3]), 24);
    for (int i = 0; i < KERNEL_INT8_QUAD - 1; i++) {
        const __m256i one = _mm256_and_si256(_mm256_cvtps_epi32(quad[i]), low);
        packed = _mm256_or_si256(packed, _mm256_slli_epi32(one, 8 * i));
    }
    _mm256_storeu_si256((__m256i *)(void *)to, packed);
}

/* The four numbers of x at `from`, again and again. */
SIMD_INLINE __m256i int8_spread(const int8_x *from)
{
    int64_t four;
    memcpy(&four, from, sizeof four);
    return _mm256_set1_epi64x(four);
}

/* Two lanes an output, its first two numbers' products and its last two's, into one. */
SIMD_INLINE void int8_store_sums(const __m256i acc[INT8_VECS], int32_t *sums)
{
#pragma GCC unroll 2
    for (int v = 0; v < INT8_VECS; v += 2) {
        const __m256i pairs = _mm256_hadd_epi32(acc[v], acc[v + 1]);
        const __m256i sorted = _mm256_permute4x64_epi64(pairs, _MM_SHUFFLE(3, 1, 2, 0));
        _mm256_storeu_si256((__m256i *)(void *)(sums + v * INT8_LANE_OUTPUTS), sorted);
    }
}

/* Half a panel, outputs from `lane` on. */
SIMD_INLINE void int8_tile_rows(const struct int8_tile *t, const int rows, int64_t lane,
                                int32_t *sums)
{
    __m256i acc[INT8_ROWS][INT8_VECS];
    const char *w = t->panel + kernel_int8_index(0, lane);
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < INT8_VECS; v++) {
            acc[r][v] = _mm256_setzero_si256();
        }
    }
    for (int64_t q = 0; q < t->quads; q++) {
#pragma GCC unroll 4
        for (int v = 0; v < INT8_VECS; v++) {
            const char *from =
                w + q * KERNEL_INT8_QUAD_BYTES + v * INT8_LANE_OUTPUTS * KERNEL_INT8_QUAD;
            const __m256i wide =
                _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)from));
#pragma GCC unroll 3
            for (int r = 0; r < rows; r++) {
                const __m256i x = int8_spread(t->x + r * t->x_row + q * KERNEL_INT8_QUAD);
                acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(wide, x));
            }
        }
    }
#pragma GCC unroll 3
    for (int r = 0; r < rows; r++) {
        int8_store_sums(acc[r], sums + r * KERNEL_PANEL + lane);
    }
}

static __attribute__((noinline)) void int8_tile_run(const struct int8_tile *t, int rows,
                                                    int32_t *sums)
{
    for (int64_t lane = 0; lane < KERNEL_PANEL; lane += INT8_VECS * INT8_LANE_OUTPUTS) {
        switch (rows) {
        case 1:
            int8_tile_rows(t, 1, lane, sums);
            break;
        case 2:
            int8_tile_rows(t, 2, lane, sums);
            break;
        default:
            int8_tile_rows(t, INT8_ROWS, lane, sums);
        }
    }
}

#include "kernels/cpu/linear_int8_simd.inc"
#endif
