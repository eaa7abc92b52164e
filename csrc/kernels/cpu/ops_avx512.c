/* AVX-512: the vector is 16 floats, and all arithmetic is in f32. */
#include "kernels/cpu/cpu.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)

#define ISA_NAME "avx512"
#define ISA_OPS  inf_ops_avx512

#include "kernels/cpu/simd_avx512.h"

#include "kernels/cpu/simd_attention_cut.h"
#include "kernels/cpu/simd_gemm.h"
#include "kernels/cpu/simd_rows.h"
#include "kernels/cpu/simd_table.h"

#else
const inf_ops *inf_ops_avx512(void) { return NULL; }
#endif
