/* The vector of simd_*.h in AVX-512: 16 floats; a panel of weights is one vector.
 *
 * Of 32 registers a gemm tile takes 6 rows x 4 panels = 24 sums, 4 weights and a broadcast; an
 * attention tile 4 queries x 4 keys (or 4 x 4 vectors of values) = 16 sums and 8 operands. */
#ifndef INF_SIMD_AVX512_H
#define INF_SIMD_AVX512_H

#include <immintrin.h>

enum { W = 16, GEMM_ROWS = 6, ATTN_Q = 4, ATTN_V = 4 };

typedef __m512 vec;

static inline vec v_zero(void) { return _mm512_setzero_ps(); }
static inline vec v_set(float x) { return _mm512_set1_ps(x); }
static inline vec v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v_store(float *p, vec x) { _mm512_storeu_ps(p, x); }
static inline vec v_add(vec a, vec b) { return _mm512_add_ps(a, b); }
static inline vec v_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
static inline vec v_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
static inline vec v_div(vec a, vec b) { return _mm512_div_ps(a, b); }
static inline vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); } /* b where either is NaN */
static inline vec v_min(vec a, vec b) { return _mm512_min_ps(a, b); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec v_fnma(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); }
static inline vec v_round(vec x) { return _mm512_roundscale_ps(x, 8); }
static inline vec v_ldexp(vec x, vec n) { return _mm512_scalef_ps(x, n); }
static inline float v_sum(vec x) { return _mm512_reduce_add_ps(x); }
static inline float v_top(vec x) { return _mm512_reduce_max_ps(x); }

static inline __mmask16 first_n(int32_t n) { return (__mmask16)((1u << n) - 1u); }
static inline vec v_load_n(const float *p, int32_t n) {
    return _mm512_maskz_loadu_ps(first_n(n), p);
}
static inline void v_store_n(float *p, vec x, int32_t n) {
    _mm512_mask_storeu_ps(p, first_n(n), x);
}

static inline vec widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
static inline vec v_load_bf16(const bf16 *p) {
    return widen(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
static inline vec v_load_bf16_n(const bf16 *p, int32_t n) {
    return widen(_mm256_maskz_loadu_epi16(first_n(n), p));
}

/* e4m3_to_f32 for each number. Exponent and mantissa in f16's places make a number 2^8 too small,
 * and f16's small numbers need no care; 0x7f gets the exponent that f16's NaN has. */
static inline vec widen_e4m3(__m128i bytes) {
    __m256i x = _mm256_cvtepu8_epi16(bytes), size = _mm256_and_si256(x, _mm256_set1_epi16(0x7f));
    __m256i nan = _mm256_slli_epi16(_mm256_add_epi16(size, _mm256_set1_epi16(1)), 7);
    __m256i sign = _mm256_slli_epi16(_mm256_srli_epi16(x, 7), 15);
    __m256i half = _mm256_or_si256(_mm256_slli_epi16(size, 7), sign);
    half = _mm256_or_si256(half, _mm256_and_si256(nan, _mm256_set1_epi16(0x4000)));
    return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f));
}
static inline vec v_load_e4m3(const e4m3 *p) {
    return widen_e4m3(_mm_loadu_si128((const __m128i *)(const void *)p));
}
static inline vec v_load_e4m3_n(const e4m3 *p, int32_t n) {
    return widen_e4m3(_mm_maskz_loadu_epi8(first_n(n), p));
}

/* bf16_from_f32 for each number. */
static inline void v_store_bf16(bf16 *p, vec x) {
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    up = _mm512_srli_epi32(_mm512_mask_mov_epi32(up, nan, quiet), 16);
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtepi32_epi16(up));
}

/* The sums of four vectors, to p[0..3]. */
static inline void v_sum4(float *p, vec a, vec b, vec c, vec d) {
    vec ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vec cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512d x = _mm512_castps_pd(ab), y = _mm512_castps_pd(cd);
    vec all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                            _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

/* A row of a panel, as vectors. */
enum { PANEL_VECS = 1 };

/* ---- integers, of 32 bits or pairs of 16 ---- */

typedef __m512i ivec;

static inline ivec i_zero(void) { return _mm512_setzero_si512(); }
static inline ivec i_pair(int32_t pair) { return _mm512_set1_epi32(pair); }
static inline ivec i_load(const void *p) { return _mm512_loadu_si512(p); }
static inline vec v_from_i(ivec x) { return _mm512_cvtepi32_ps(x); }
static inline vec v_load_f16(const void *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

/* sum + a[2i] b[2i] + a[2i+1] b[2i+1] for each i. */
static inline ivec i_dot(ivec sum, ivec a, ivec b) {
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}

/* 32 numbers of 8 bits; bits 4s to 4s + 3 of 32 numbers of 16. */
static inline ivec i_load_8(const void *p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p));
}
static inline ivec i_nibbles(const void *p, const int s) {
    return _mm512_and_si512(_mm512_srli_epi16(i_load(p), (unsigned)(4 * s)), _mm512_set1_epi16(15));
}

/* The larger of a size and that of x, as the bits of a float. */
static inline ivec i_max_size(ivec size, vec x) {
    ivec bits = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
    return _mm512_max_epi32(size, bits);
}
static inline int32_t i_top(ivec x) { return _mm512_reduce_max_epi32(x); }
static inline int32_t i_sum(ivec x) { return _mm512_reduce_add_epi32(x); }

/* 16 numbers to the nearest, ties to even. */
static inline void i_store_16(int16_t *p, vec x) {
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
}

/* Panels of a tile for so many rows: 24 sums, 4 weights and a pair. */
#define QUANT_PANELS(rows) 4

#endif
