/* Vector vocabulary on AVX2 with FMA: 8 lanes. Same names as simd_avx512.h; see ops_cpu.h.
 * Loads and stores need no alignment. Functions ending in _n touch only the first n lanes (0 <= n
 * <= SIMD_LANES); lanes beyond are zero in the result and are not read or written in memory. */
#ifndef FORESIGHT_KERNELS_CPU_SIMD_AVX2_H
#define FORESIGHT_KERNELS_CPU_SIMD_AVX2_H

#include <immintrin.h>
#include <stdint.h>

#define SIMD_BITS 256
#define SIMD_NAME(name) name##_avx2
#define SIMD_INLINE static inline __attribute__((always_inline, unused))

enum {
    SIMD_LANES = 8,
    /* register tiles, rows x vectors, that fit the 16 registers: see tile_simd.inc */
    TILE_ROWS = 6,
    TILE_VECS = 2,
    TILE_MID_ROWS = 3,
    TILE_MID_VECS = 4,
    TILE_LOW_ROWS = 1,
    TILE_LOW_VECS = 8
};

typedef __m256 vf;
typedef __m256i vi;
typedef __m256 vm;  /* all bits of a lane set: true */
typedef __m256d vd; /* half as many doubles */

SIMD_INLINE vf v_zero(void)
{
    return _mm256_setzero_ps();
}

SIMD_INLINE vf v_set1(float x)
{
    return _mm256_set1_ps(x);
}

SIMD_INLINE vf v_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

SIMD_INLINE void v_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x);
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
    vi lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes));
}

SIMD_INLINE vf v_load_n(const float *p, int n)
{
    if (n >= SIMD_LANES) {
        return _mm256_loadu_ps(p);
    }
    return _mm256_maskload_ps(p, _mm256_castps_si256(v_mask_n(n)));
}

SIMD_INLINE void v_store_n(float *p, vf x, int n)
{
    if (n >= SIMD_LANES) { /* masked stores are slow on some machines */
        _mm256_storeu_ps(p, x);
    } else {
        _mm256_maskstore_ps(p, _mm256_castps_si256(v_mask_n(n)), x);
    }
}

SIMD_INLINE vf v_add(vf a, vf b)
{
    return _mm256_add_ps(a, b);
}

SIMD_INLINE vf v_sub(vf a, vf b)
{
    return _mm256_sub_ps(a, b);
}

SIMD_INLINE vf v_mul(vf a, vf b)
{
    return _mm256_mul_ps(a, b);
}

SIMD_INLINE vf v_div(vf a, vf b)
{
    return _mm256_div_ps(a, b);
}

SIMD_INLINE vf v_sqrt(vf a)
{
    return _mm256_sqrt_ps(a);
}

/* a b + c, a b - c and c - a b, rounded once. */
SIMD_INLINE vf v_fma(vf a, vf b, vf c)
{
    return _mm256_fmadd_ps(a, b, c);
}

SIMD_INLINE vf v_fms(vf a, vf b, vf c)
{
    return _mm256_fmsub_ps(a, b, c);
}

SIMD_INLINE vf v_fnma(vf a, vf b, vf c)
{
    return _mm256_fnmadd_ps(a, b, c);
}

/* If a lane of either is NaN the result is b's lane: put the value that may be NaN second. */
SIMD_INLINE vf v_max(vf a, vf b)
{
    return _mm256_max_ps(a, b);
}

SIMD_INLINE vf v_min(vf a, vf b)
{
    return _mm256_min_ps(a, b);
}

/* mask ? a : b, by lane. */
SIMD_INLINE vf v_select(vm mask, vf a, vf b)
{
    return _mm256_blendv_ps(b, a, mask);
}

SIMD_INLINE vm v_greater(vf a, vf b)
{
    return _mm256_cmp_ps(a, b, _CMP_GT_OQ);
}

SIMD_INLINE vm v_is_nan(vf a)
{
    return _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
}

/* True in lanes first <= lane < end. */
SIMD_INLINE vm v_mask_range(int first, int end)
{
    return _mm256_andnot_ps(v_mask_n(first), v_mask_n(end));
}

/* Sum of the lanes in a fixed tree: halves are added to halves. */
SIMD_INLINE float v_sum(vf a)
{
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

SIMD_INLINE float v_max_lane(vf a)
{
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

SIMD_INLINE float v_first(vf a)
{
    return _mm256_cvtss_f32(a);
}

SIMD_INLINE vf v_round(vf a)
{
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* a 2^n for integral n with |n| <= 252: two steps, so that results may be denormal. */
SIMD_INLINE vf v_scale2(vf a, vf n)
{
    vi whole = _mm256_cvtps_epi32(n);
    vi half = _mm256_srai_epi32(whole, 1);
    vi rest = _mm256_sub_epi32(whole, half);
    vi bias = _mm256_set1_epi32(127);
    vf first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    vf second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return v_mul(v_mul(a, first), second);
}

/* Exponent e and mantissa m in [sqrt(1/2), sqrt(2)) of a normal a = m 2^e. */
SIMD_INLINE vf v_split2(vf a, vf *exponent)
{
    vi bits = _mm256_castps_si256(a);
    vi shifted = _mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f3504f3));
    vi e = _mm256_srai_epi32(shifted, 23);
    *exponent = _mm256_cvtepi32_ps(e);
    return _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(e, 23)));
}

/* SIMD_LANES bf16 values, widened. */
SIMD_INLINE vf v_load_bf16(const uint16_t *p)
{
    vi wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

/* To bf16, round to nearest even, NaN made quiet. */
SIMD_INLINE void v_store_bf16(uint16_t *p, vf x)
{
    vi bits = _mm256_castps_si256(x);
    vi odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    vi even = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    vi quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    vi chosen = _mm256_castps_si256(
        v_select(v_is_nan(x), _mm256_castsi256_ps(quiet), _mm256_castsi256_ps(even)));
    chosen = _mm256_srli_epi32(chosen, 16);
    __m128i low = _mm256_castsi256_si128(chosen);
    __m128i high = _mm256_extracti128_si256(chosen, 1);
    _mm_storeu_si128((__m128i *)(void *)p, _mm_packus_epi32(low, high));
}

/* mask[0] = one bit a lane: do the bits of p and q differ? */
SIMD_INLINE void v_mark(const float *p, const float *q, uint8_t *mask)
{
    vi a = _mm256_loadu_si256((const __m256i *)(const void *)p);
    vi b = _mm256_loadu_si256((const __m256i *)(const void *)q);
    *mask = (uint8_t)~_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b)));
}

/* The same of SIMD_LANES bf16 values. */
SIMD_INLINE void v_mark_bf16(const uint16_t *p, const uint16_t *q, uint8_t *mask)
{
    __m128i a = _mm_loadu_si128((const __m128i *)(const void *)p);
    __m128i b = _mm_loadu_si128((const __m128i *)(const void *)q);
    __m128i same = _mm_packs_epi16(_mm_cmpeq_epi16(a, b), _mm_setzero_si128());
    *mask = (uint8_t)~_mm_movemask_epi8(same);
}

/* r[i] lane j <-> r[j] lane i, for SIMD_LANES rows. */
SIMD_INLINE void v_transpose(vf r[8])
{
    vf t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        r[i] = t[i];
    }
}

SIMD_INLINE vd vd_zero(void)
{
    return _mm256_setzero_pd();
}

/* acc + x^2 of the lower (half 0) or upper lanes of x, in double. */
SIMD_INLINE vd vd_add_square(vd acc, vf x, int half)
{
    __m128 part = half == 0 ? _mm256_castps256_ps128(x) : _mm256_extractf128_ps(x, 1);
    __m256d wide = _mm256_cvtps_pd(part);
    return _mm256_fmadd_pd(wide, wide, acc);
}

SIMD_INLINE double vd_sum(vd a)
{
    __m128d q = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(q, _mm_unpackhi_pd(q, q)));
}

#endif
