/* Linear maps on int8 weights with AVX-512 VNNI: four products a lane and instruction, of x + 128
 * without a sign and of w with one; the panel's offsets take the 128 back. Not every machine with
 * AVX-512 has VNNI: only what multiplies is compiled for it, and linear_avx512.c asks first. */
#include "kernels/cpu/ops_cpu.h"

#if KERNEL_HAVE_X86
#include "kernels/cpu/linear_int8_cpu.h"
#include "kernels/cpu/simd_avx512.h"
#include "kernels/cpu/work_cpu.h"
#include "kernels/int8.h"

#include <string.h>

#include "kernels/cpu/tile_simd.inc"

#define INT8_TARGET __attribute__((target("avx512vnni")))

enum {
    INT8_ROWS = 14,
    INT8_VECS = KERNEL_PANEL / SIMD_LANES,
    INT8_FEW_ROWS = 4, /* no more take less time than the weights' way from memory: */
    INT8_AHEAD = 4096  /* bytes by which those are asked for early */
};

typedef uint8_t int8_x; /* q + 128 */

struct int8_tile {
    const int8_x *x;
    int64_t x_row;
    const char *panel;
    int64_t quads;
};

SIMD_INLINE void int8_store_x(int8_x *to, vf x)
{
    const __m128i q = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x));
    _mm_storeu_si128((__m128i *)(void *)to, _mm_xor_si128(q, _mm_set1_epi8((char)0x80)));
}

SIMD_INLINE vf int8_load_integers(const int32_t *from)
{
    return _mm512_cvtepi32_ps(_mm512_loadu_si512(from));
}

SIMD_INLINE void int8_store_integers(int32_t *to, vf x)
{
    _mm512_storeu_si512(to, _mm512_cvtps_epi32(x));
}

/* Lane after lane, its four numbers. */
SIMD_INLINE void int8_store_quads(char *to, const vf quad[KERNEL_INT8_QUAD])
{
    const __m512i low = _mm512_set1_epi32(0xff);
    __m512i packed = _mm512_slli_epi32(_mm512_cvtps_epi32(quad[3]), 24);
    for (int i = 0; i < KERNEL_INT8_QUAD - 1; i++) {
        const __m512i one = _mm512_and_si512(_mm512_cvtps_epi32(quad[i]), low);
        packed = _mm512_or_si512(packed, _mm512_slli_epi32(one, (unsigned)(8 * i)));
    }
    _mm512_storeu_si512(to, packed);
}

/* The four numbers of x at `from`, in every lane. */
SIMD_INLINE __m512i int8_spread(const int8_x *from)
{
    int32_t four;
    memcpy(&four, from, sizeof four);
    return _mm512_set1_epi32(four);
}

/* `chains` neighbouring quads into sums of their own: few rows have too few others to fill the
 * time that one product takes. */
INT8_TARGET SIMD_INLINE void int8_quads(const struct int8_tile *t, const int rows, const int chains,
                                        int64_t q, __m512i (*acc)[INT8_VECS])
{
    const char *w = t->panel + KERNEL_INT8_HEAD_BYTES + q * KERNEL_INT8_QUAD_BYTES;
#pragma GCC unroll 4
    for (int c = 0; c < chains; c++) {
        if (rows <= INT8_FEW_ROWS) {
            _mm_prefetch(w + c * KERNEL_INT8_QUAD_BYTES + INT8_AHEAD, _MM_HINT_T0);
            _mm_prefetch(w + c * KERNEL_INT8_QUAD_BYTES + INT8_AHEAD + 64, _MM_HINT_T0);
        }
        const __m512i low = _mm512_loadu_si512(w + c * KERNEL_INT8_QUAD_BYTES);
        const __m512i high = _mm512_loadu_si512(w + c * KERNEL_INT8_QUAD_BYTES + 64);
#pragma GCC unroll 14
        for (int r = 0; r < rows; r++) {
            const __m512i x = int8_spread(t->x + r * t->x_row + (q + c) * KERNEL_INT8_QUAD);
            __m512i *sum = acc[c * rows + r];
            sum[0] = _mm512_dpbusd_epi32(sum[0], x, low);
            sum[1] = _mm512_dpbusd_epi32(sum[1], x, high);
        }
    }
}

INT8_TARGET SIMD_INLINE void int8_tile_rows(const struct int8_tile *t, const int rows,
                                            const int chains, int32_t *sums)
{
    __m512i acc[INT8_ROWS][INT8_VECS];
    const char *offset = t->panel + KERNEL_INT8_HEAD_BYTES / 2;
#pragma GCC unroll 14
    for (int i = 0; i < rows * chains; i++) {
        acc[i][0] = i < rows ? _mm512_loadu_si512(offset) : _mm512_setzero_si512();
        acc[i][1] = i < rows ? _mm512_loadu_si512(offset + 64) : _mm512_setzero_si512();
    }
    int64_t q = 0;
    for (; q + chains <= t->quads; q += chains) {
        int8_quads(t, rows, chains, q, acc);
    }
    for (; q < t->quads; q++) {
        int8_quads(t, rows, 1, q, acc);
    }
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < INT8_VECS; v++) {
#pragma GCC unroll 4
            for (int c = 1; c < chains; c++) {
                acc[i][v] = _mm512_add_epi32(acc[i][v], acc[c * rows + i][v]);
            }
            _mm512_storeu_si512(sums + i * KERNEL_PANEL + v * SIMD_LANES, acc[i][v]);
        }
    }
}

#define INT8_TILE(rows, chains)                                                                    \
    case rows:                                                                                     \
        int8_tile_rows(t, rows, chains, sums);                                                     \
        break;

static INT8_TARGET __attribute__((noinline)) void int8_tile_run(const struct int8_tile *t, int rows,
                                                                int32_t *sums)
{
    switch (rows) {
        INT8_TILE(1, 4)
        INT8_TILE(2, 4)
        INT8_TILE(3, 2)
        INT8_TILE(4, 2)
        INT8_TILE(5, 1)
        INT8_TILE(6, 1)
        INT8_TILE(7, 1)
        INT8_TILE(8, 1)
        INT8_TILE(9, 1)
        INT8_TILE(10, 1)
        INT8_TILE(11, 1)
        INT8_TILE(12, 1)
        INT8_TILE(13, 1)
    default:
        int8_tile_rows(t, INT8_ROWS, 1, sums);
    }
}

#include "kernels/cpu/linear_int8_simd.inc"
#endif
