/* AVX2 with FMA: the vector of simd_*.h is 8 floats; a row of a panel of weights is two vectors.
 *
 * Of 16 registers a gemm tile takes 6 rows x 1 panel (or 2 x 2, 1 x 4) = 12 sums, 2 weights and a
 * broadcast; an attention tile 2 queries x 4 keys (or 2 x 4 vectors of values) = 8 sums, 6
 * operands. */
#include "kernels/cpu/cpu.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#define ISA_NAME "avx2"
#define ISA_OPS  inf_ops_avx2
enum { W = 8, GEMM_ROWS = 6, ATTN_Q = 2, ATTN_V = 4 };

typedef __m256 vec;

static inline vec v_zero(void) { return _mm256_setzero_ps(); }
static inline vec v_set(float x) { return _mm256_set1_ps(x); }
static inline vec v_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void v_store(float *p, vec x) { _mm256_storeu_ps(p, x); }
static inline vec v_add(vec a, vec b) { return _mm256_add_ps(a, b); }
static inline vec v_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
static inline vec v_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
static inline vec v_div(vec a, vec b) { return _mm256_div_ps(a, b); }
static inline vec v_max(vec a, vec b) { return _mm256_max_ps(a, b); } /* b where either is NaN */
static inline vec v_min(vec a, vec b) { return _mm256_min_ps(a, b); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline vec v_fnma(vec a, vec b, vec c) { return _mm256_fnmadd_ps(a, b, c); }
static inline vec v_round(vec x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* x * 2^n in two steps, because 2^n alone may leave the range of normal numbers: |n| <= 252. */
static inline vec v_ldexp(vec x, vec n) {
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    __m256i rest = _mm256_sub_epi32(whole, half), bias = _mm256_set1_epi32(127);
    vec a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    vec b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(x, a), b);
}

static inline float v_sum(vec x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline float v_top(vec x) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

/* Tails go through memory: n < 8 numbers happen only where a width is no multiple of 8. */
static inline vec v_load_n(const float *p, int32_t n) {
    float all[8] = {0};
    memcpy(all, p, (size_t)n * sizeof *p);
    return v_load(all);
}
static inline void v_store_n(float *p, vec x, int32_t n) {
    float all[8];
    v_store(all, x);
    memcpy(p, all, (size_t)n * sizeof *p);
}

static inline vec v_load_bf16(const bf16 *p) {
    __m128i x = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
static inline vec v_load_bf16_n(const bf16 *p, int32_t n) {
    bf16 all[8] = {0};
    memcpy(all, p, (size_t)n * sizeof *p);
    return v_load_bf16(all);
}

/* e4m3_to_f32 for each number. Exponent and mantissa in f16's places make a number 2^8 too small,
 * and f16's small numbers need no care; 0x7f gets the exponent that f16's NaN has. Every CPU with
 * AVX2 converts f16. */
static inline vec v_load_e4m3(const e4m3 *p) {
    __m128i x = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(const void *)p));
    __m128i size = _mm_and_si128(x, _mm_set1_epi16(0x7f));
    __m128i nan = _mm_slli_epi16(_mm_add_epi16(size, _mm_set1_epi16(1)), 7);
    __m128i half = _mm_or_si128(_mm_slli_epi16(size, 7), _mm_slli_epi16(_mm_srli_epi16(x, 7), 15));
    half = _mm_or_si128(half, _mm_and_si128(nan, _mm_set1_epi16(0x4000)));
    return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f));
}
static inline vec v_load_e4m3_n(const e4m3 *p, int32_t n) {
    e4m3 all[8] = {0};
    memcpy(all, p, (size_t)n * sizeof *p);
    return v_load_e4m3(all);
}

/* bf16_from_f32 for each number. */
static inline void v_store_bf16(bf16 *p, vec x) {
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    up = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
    __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(up), _mm256_extracti128_si256(up, 1));
    _mm_storeu_si128((__m128i *)(void *)p, packed);
}

/* The sums of four vectors, to p[0..3]. */
static inline void v_sum4(float *p, vec a, vec b, vec c, vec d) {
    vec ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    vec cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    __m256d x = _mm256_castps_pd(ab), y = _mm256_castps_pd(cd);
    vec all = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(x, y)),
                            _mm256_castpd_ps(_mm256_unpackhi_pd(x, y)));
    _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}

enum { PANEL_VECS = 2 };

/* ---- integers, of 32 bits or pairs of 16 ---- */

typedef __m256i ivec;

static inline ivec i_zero(void) { return _mm256_setzero_si256(); }
static inline ivec i_pair(int32_t pair) { return _mm256_set1_epi32(pair); }
static inline ivec i_load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline vec v_from_i(ivec x) { return _mm256_cvtepi32_ps(x); }
static inline vec v_load_f16(const void *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

/* sum + a[2i] b[2i] + a[2i+1] b[2i+1] for each i. */
static inline ivec i_dot(ivec sum, ivec a, ivec b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}

/* 16 numbers of 8 bits; bits 4s to 4s + 3 of 16 numbers of 16. */
static inline ivec i_load_8(const void *p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
}
static inline ivec i_nibbles(const void *p, const int s) {
    return _mm256_and_si256(_mm256_srli_epi16(i_load(p), 4 * s), _mm256_set1_epi16(15));
}

/* The larger of a size and that of x, as the bits of a float. */
static inline ivec i_max_size(ivec size, vec x) {
    ivec bits = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
    return _mm256_max_epi32(size, bits);
}
static inline int32_t i_top(ivec x) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}
static inline int32_t i_sum(ivec x) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

/* 8 numbers to the nearest, ties to even. */
static inline void i_store_16(int16_t *p, vec x) {
    ivec all = _mm256_cvtps_epi32(x);
    __m128i low = _mm256_castsi256_si128(all), high = _mm256_extracti128_si256(all, 1);
    _mm_storeu_si128((__m128i *)(void *)p, _mm_packs_epi32(low, high));
}

/* Panels of a tile for so many rows: 12 sums, 2 weights, a pair and a product. */
#define QUANT_PANELS(rows) ((rows) <= 3 ? 2 : 1)

#include "kernels/cpu/simd_attention_cut.h"
#include "kernels/cpu/simd_gemm.h"
#include "kernels/cpu/simd_rows.h"
#include "kernels/cpu/simd_table.h"

#else
const inf_ops *inf_ops_avx2(void) { return NULL; }
#endif
