/* K and V in e4m3, 8-bit numbers of 4 bits of exponent (bias 7) and 3 of mantissa: 0x7e is 448, the
 * largest, 0x7f is NaN, and there are no infinities. Their scale is 1.
 *
 * Every e4m3 number is a f16 number, so products take them as f16. sm_90 has an instruction for
 * two. Elsewhere, and in emulation: sign, exponent and mantissa in f16's places make a number that
 * is 2^8 too small (the biases are 7 and 15), also where the exponent is 0, and one exact product
 * mends it; only NaN, which that makes 480, gets the rest of f16's exponent by hand.
 *
 * From f32 they are rounded to the nearest, ties to even; what is beyond 448 becomes 448,
 * infinities too, and NaN 0x7f. */
#ifndef INF_CUDA_E4M3_CUH
#define INF_CUDA_E4M3_CUH

#include "kernels/cuda/prelude.cuh"

struct e4m3 {
    uint8_t bits;
};

#if !defined(INF_EMU) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

/* Four numbers, from the lowest byte up, as two pairs of f16. */
static __device__ __forceinline__ void e4m3x4_to_f16(uint32_t four, uint32_t pairs[2]) {
    asm("{\n\t.reg .b16 lo, hi;\n\tmov.b32 {lo, hi}, %2;\n\tcvt.rn.f16x2.e4m3x2 %0, lo;\n\t"
        "cvt.rn.f16x2.e4m3x2 %1, hi;\n\t}"
        : "=r"(pairs[0]), "=r"(pairs[1])
        : "r"(four));
}
/* The same of the lowest and third byte, and of the others. */
static __device__ __forceinline__ void e4m3x4_crossed_to_f16(uint32_t four, uint32_t pairs[2]) {
    e4m3x4_to_f16(__byte_perm(four, 0, 0x3120), pairs);
}
static __device__ __forceinline__ uint32_t pack_e4m3x2(float lo, float hi) {
    uint16_t d; /* the first operand is the upper half */
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(d) : "f"(hi), "f"(lo));
    return d;
}

#else

/* Two numbers in the upper bytes of the halves. */
static __device__ __forceinline__ uint32_t e4m3_halves_to_f16(uint32_t two) {
    uint32_t size = two & 0x7f007f00u, nan = (size + 0x01000100u) & 0x80008000u;
    uint32_t small = (size >> 1) | (two & 0x80008000u);
    return mul_f16x2(small, 0x5c005c00u) /* 256 each */ | (nan >> 2);
}
static __device__ __forceinline__ void e4m3x4_to_f16(uint32_t four, uint32_t pairs[2]) {
    pairs[0] = e4m3_halves_to_f16(__byte_perm(four, 0, 0x1404));
    pairs[1] = e4m3_halves_to_f16(__byte_perm(four, 0, 0x3424));
}
static __device__ __forceinline__ void e4m3x4_crossed_to_f16(uint32_t four, uint32_t pairs[2]) {
    pairs[0] = e4m3_halves_to_f16(__byte_perm(four, 0, 0x2404));
    pairs[1] = e4m3_halves_to_f16(__byte_perm(four, 0, 0x3414));
}
static __device__ __forceinline__ uint32_t e4m3_of(float x) {
    uint32_t bits = __float_as_uint(x), sign = bits >> 24 & 0x80u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) {
        return 0x7fu;
    }
    if (size >= 0x43e00000u) { /* 448 */
        return sign | 0x7eu;
    }
    if (size < 0x3c800000u) { /* below 2^-6: multiples of 2^-9; the sum rounds to even for us */
        return sign | (__float_as_uint(__fadd_rn(bits_to_float(size), 16384.0f)) - 0x46800000u);
    }
    return sign | (size - 0x3c000000u + 0x7ffffu + (size >> 20 & 1u)) >> 20;
}
static __device__ __forceinline__ uint32_t pack_e4m3x2(float lo, float hi) {
    return e4m3_of(hi) << 8 | e4m3_of(lo);
}

#endif

/* A pair of numbers of act, f16 or bf16, as f16. */
static __device__ __forceinline__ uint32_t pair_to_f16(uint32_t pair, int32_t act) {
    return act == INF_DTYPE_F16
               ? pair
               : pack_f16x2(bits_to_float(pair << 16), bits_to_float(pair & 0xffff0000u));
}

/* Four numbers as f32. */
static __device__ __forceinline__ void e4m3x4_to_float(uint32_t four, float x[4]) {
    uint32_t pairs[2];
    e4m3x4_to_f16(four, pairs);
    x[0] = f16_to_float((uint16_t)(pairs[0] & 0xffffu)), x[1] = f16_to_float(pairs[0] >> 16);
    x[2] = f16_to_float((uint16_t)(pairs[1] & 0xffffu)), x[3] = f16_to_float(pairs[1] >> 16);
}
static __device__ __forceinline__ uint32_t pack_e4m3x4(const float x[4]) {
    return pack_e4m3x2(x[0], x[1]) | pack_e4m3x2(x[2], x[3]) << 16;
}

static __device__ __forceinline__ float load1(const e4m3 *p) {
    uint32_t pairs[2];
    e4m3x4_to_f16(p->bits, pairs);
    return f16_to_float((uint16_t)(pairs[0] & 0xffffu));
}
static __device__ __forceinline__ void store1(e4m3 *p, float x) {
    p->bits = (uint8_t)pack_e4m3x2(x, 0.0f);
}

#endif
