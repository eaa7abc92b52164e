/* AVX-512 with VNNI: as ops_avx512.c, with the same bits, but products of few bits take one
 * instruction instead of two. */
#include "kernels/cpu/cpu.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) &&                      \
    defined(__AVX512DQ__) && defined(__AVX512VNNI__)

#define ISA_NAME "avx512"
#define ISA_OPS  inf_ops_avx512_vnni

#include "kernels/cpu/simd_avx512.h"

#include "kernels/cpu/simd_attention_cut.h"
#include "kernels/cpu/simd_gemm.h"
#include "kernels/cpu/simd_rows.h"
#include "kernels/cpu/simd_table.h"

#else
const inf_ops *inf_ops_avx512_vnni(void) { return NULL; }
#endif
