/* Vector vocabulary on AVX-512 (F, BW, DQ, VL): 16 lanes. Same names as simd_avx2.h; see ops_cpu.h.
 * Loads and stores need no alignment. Functions ending in _n touch only the first n lanes (0 <= n
 * <= SIMD_LANES); lanes beyond are zero in the result and are not read or written in memory. */
#ifndef FORESIGHT_KERNELS_CPU_SIMD_AVX512_H
#define FORESIGHT_KERNELS_CPU_SIMD_AVX512_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define SIMD_BITS 512
#define SIMD_NAME(name) name##_avx512
#define SIMD_INLINE static inline __attribute__((always_inline, unused))

enum {
    SIMD_LANES = 16,
    /* register tiles, rows x vectors, that fit the 32 registers: see tile_simd.inc */
    TILE_ROWS = 14,
    TILE_VECS = 2,
    TILE_MID_ROWS = 6,
    TILE_MID_VECS = 4,
    TILE_LOW_ROWS = 2,
    TILE_LOW_VECS = 8
};

typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 vm;
typedef __m512d vd; /* half as many doubles */

SIMD_INLINE vf v_zero(void)
{
    return _mm512_setzero_ps();
}

SIMD_INLINE vf v_set1(float x)
{
    return _mm512_set1_ps(x);
}

SIMD_INLINE vf v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

SIMD_INLINE void v_store(float *p, vf x)
{
    _mm512_storeu_ps(p, x);
}

/* Bring the cache line of p closer; any address is allowed. */
SIMD_INLINE void v_prefetch(const float *p)
{
    _mm_prefetch((const char *)p, _MM_HINT_T0);
}

/* The same, into the second-level cache. */
SIMD_INLINE void v_prefetch_second(const char *p)
{
    _mm_prefetch(p, _MM_HINT_T1);
}

/* True in lanes below n. */
SIMD_INLINE vm v_mask_n(int n)
{
    return (vm)(n >= SIMD_LANES ? 0xffffU : (1U << (n > 0 ? n : 0)) - 1U);
}

SIMD_INLINE vf v_load_n(const float *p, int n)
{
    return n >= SIMD_LANES ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(v_mask_n(n), p);
}

SIMD_INLINE void v_store_n(float *p, vf x, int n)
{
    if (n >= SIMD_LANES) { /* masked stores are slow on some machines */
        _mm512_storeu_ps(p, x);
    } else {
        _mm512_mask_storeu_ps(p, v_mask_n(n), x);
    }
}

SIMD_INLINE vf v_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}

SIMD_INLINE vf v_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}

SIMD_INLINE vf v_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}

SIMD_INLINE vf v_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}

SIMD_INLINE vf v_sqrt(vf a)
{
    return _mm512_sqrt_ps(a);
}

/* a b + c, a b - c and c - a b, rounded once. */
SIMD_INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}

SIMD_INLINE vf v_fms(vf a, vf b, vf c)
{
    return _mm512_fmsub_ps(a, b, c);
}

SIMD_INLINE vf v_fnma(vf a, vf b, vf c)
{
    return _mm512_fnmadd_ps(a, b, c);
}

/* If a lane of either is NaN the result is b's lane: put the value that may be NaN second. */
SIMD_INLINE vf v_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}

SIMD_INLINE vf v_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}

/* mask ? a : b, by lane. */
SIMD_INLINE vf v_select(vm mask, vf a, vf b)
{
    return _mm512_mask_blend_ps(mask, b, a);
}

SIMD_INLINE vm v_greater(vf a, vf b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}

SIMD_INLINE vm v_is_nan(vf a)
{
    return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
}

/* True in lanes first <= lane < end. */
SIMD_INLINE vm v_mask_range(int first, int end)
{
    return (vm)(v_mask_n(end) & ~v_mask_n(first));
}

/* Sum of the lanes in a fixed tree: halves are added to halves. */
SIMD_INLINE float v_sum(vf a)
{
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

SIMD_INLINE float v_max_lane(vf a)
{
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

SIMD_INLINE float v_first(vf a)
{
    return _mm512_cvtss_f32(a);
}

SIMD_INLINE vf v_round(vf a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* a 2^n for integral n, rounded once. */
SIMD_INLINE vf v_scale2(vf a, vf n)
{
    return _mm512_scalef_ps(a, n);
}

/* Exponent e and mantissa m in [sqrt(1/2), sqrt(2)) of a normal a = m 2^e. */
SIMD_INLINE vf v_split2(vf a, vf *exponent)
{
    vi bits = _mm512_castps_si512(a);
    vi shifted = _mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f3504f3));
    vi e = _mm512_srai_epi32(shifted, 23);
    *exponent = _mm512_cvtepi32_ps(e);
    return _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(e, 23)));
}

/* SIMD_LANES bf16 values, widened. */
SIMD_INLINE vf v_load_bf16(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

/* To bf16, round to nearest even, NaN made quiet. */
SIMD_INLINE void v_store_bf16(uint16_t *p, vf x)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i even = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    __m512i chosen = _mm512_mask_blend_epi32(v_is_nan(x), even, quiet);
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16)));
}

/* mask[0 .. 1] = one bit a lane: do the bits of p and q differ? */
SIMD_INLINE void v_mark(const float *p, const float *q, uint8_t *mask)
{
    uint16_t bits = _mm512_cmpneq_epi32_mask(_mm512_loadu_si512(p), _mm512_loadu_si512(q));
    memcpy(mask, &bits, sizeof bits);
}

/* The same of SIMD_LANES bf16 values. */
SIMD_INLINE void v_mark_bf16(const uint16_t *p, const uint16_t *q, uint8_t *mask)
{
    __m256i a = _mm256_loadu_si256((const __m256i *)(const void *)p);
    __m256i b = _mm256_loadu_si256((const __m256i *)(const void *)q);
    uint16_t bits = _mm256_cmpneq_epi16_mask(a, b);
    memcpy(mask, &bits, sizeof bits);
}

/* r[i] lane j <-> r[j] lane i, for SIMD_LANES rows. */
SIMD_INLINE void v_transpose(vf r[16])
{
    vf t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512d a = _mm512_castps_pd(t[4 * i]);
        __m512d b = _mm512_castps_pd(t[4 * i + 1]);
        __m512d c = _mm512_castps_pd(t[4 * i + 2]);
        __m512d d = _mm512_castps_pd(t[4 * i + 3]);
        r[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        r[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        r[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        r[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

SIMD_INLINE vd vd_zero(void)
{
    return _mm512_setzero_pd();
}

/* acc + x^2 of the lower (half 0) or upper lanes of x, in double. */
SIMD_INLINE vd vd_add_square(vd acc, vf x, int half)
{
    __m256 part = half == 0 ? _mm512_castps512_ps256(x) : _mm512_extractf32x8_ps(x, 1);
    __m512d wide = _mm512_cvtps_pd(part);
    return _mm512_fmadd_pd(wide, wide, acc);
}

SIMD_INLINE double vd_sum(vd a)
{
    __m256d h = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    __m128d q = _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
    return _mm_cvtsd_f64(_mm_add_sd(q, _mm_unpackhi_pd(q, q)));
}

#endif
