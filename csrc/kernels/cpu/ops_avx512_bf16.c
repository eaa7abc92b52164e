/* AVX-512 with the dot products of bf16: as ops_avx512.c, but a gemm whose weights are bf16 rounds
 * x to bf16 as well, and multiplies twice as many numbers an instruction (simd_gemm.h). */
#include "kernels/cpu/cpu.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) &&                      \
    defined(__AVX512DQ__) && defined(__AVX512BF16__)

#define ISA_NAME "avx512_bf16"
#define ISA_OPS  inf_ops_avx512_bf16
#define BF16_DOT 1

#include "kernels/cpu/simd_avx512.h"

/* 16 numbers as bf16, to the nearest, ties to even; those below the smallest normal one count as 0.
 */
static inline void v_store_rounded(bf16 *p, vec x) {
    _mm256_storeu_si256((__m256i *)(void *)p, (__m256i)_mm512_cvtneps_pbh(x));
}

/* sum + a[2i] b[2i] + a[2i+1] b[2i+1] for each float i, of a pair that is the same for all and of
 * 32 numbers that lie at b. */
static inline vec v_dot(vec sum, int32_t pair, const bf16 *b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair),
                            (__m512bh)_mm512_loadu_si512((const void *)b));
}

#include "kernels/cpu/simd_attention_cut.h"
#include "kernels/cpu/simd_gemm.h"
#include "kernels/cpu/simd_rows.h"
#include "kernels/cpu/simd_table.h"

#else
const inf_ops *inf_ops_avx512_bf16(void) { return NULL; }
#endif
