/* Choice of a table by what the CPU and its operating system support. */
#include "kernels/cpu/cpu.h"

enum { ISA_BEST = 0, ISA_C = 1, ISA_AVX2 = 2, ISA_AVX512 = 3, ISA_AVX512_BF16 = 4 };

#if defined(__x86_64__)
static int cpu_has_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static int cpu_has_avx512(void) {
    return cpu_has_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}

static int cpu_has_avx512_vnni(void) {
    return cpu_has_avx512() && __builtin_cpu_supports("avx512vnni");
}

static int cpu_has_avx512_bf16(void) {
    return cpu_has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); /* no CPU lacks VNNI */
}
#else
static int cpu_has_avx2(void) { return 0; }
static int cpu_has_avx512(void) { return 0; }
static int cpu_has_avx512_vnni(void) { return 0; }
static int cpu_has_avx512_bf16(void) { return 0; }
#endif

const inf_ops *inf_ops_cpu(int32_t isa) {
    switch (isa) {
    case ISA_C:
        return inf_ops_c();
    case ISA_AVX2:
        return cpu_has_avx2() ? inf_ops_avx2() : NULL;
    case ISA_AVX512:
        return cpu_has_avx512_vnni() ? inf_ops_avx512_vnni()
               : cpu_has_avx512()    ? inf_ops_avx512()
                                     : NULL;
    case ISA_AVX512_BF16: /* only for those who ask for it: it rounds more */
        return cpu_has_avx512_bf16() ? inf_ops_avx512_bf16() : NULL;
    case ISA_BEST:
        for (int32_t best = ISA_AVX512; best > ISA_C; best--) {
            const inf_ops *ops = inf_ops_cpu(best);
            if (ops != NULL)
                return ops;
        }
        return inf_ops_c();
    default:
        return NULL;
    }
}
