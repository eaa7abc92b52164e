/* Number formats of weight files: F32, F16 (IEEE 754 binary16) and BF16 (the upper half of
 * binary32). */
#include <string.h>

#include "infinite/device.h"
#include "kernels/convert.h"

uint64_t inf_dtype_bytes(int32_t dtype) {
    switch (dtype) {
    case INF_DTYPE_F32:
        return 4;
    case INF_DTYPE_F16:
    case INF_DTYPE_BF16:
        return 2;
    default:
        return 0;
    }
}

static float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = (half >> 10) & 0x1fu;
    uint32_t mantissa = half & 0x3ffu;
    if (exponent == 31) {
        return from_bits(sign | 0x7f800000u | (mantissa << 13));
    }
    if (exponent == 0) { /* zero and subnormals: mantissa * 2^-24 */
        float magnitude = (float)mantissa * 0x1p-24f;
        return sign != 0 ? -magnitude : magnitude;
    }
    return from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

static uint16_t float_to_bf16(float value) {
    uint32_t bits = to_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((bits >> 16) | 0x40u); /* NaN stays NaN */
    }
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* Rounds to nearest, ties to even; beyond the largest number to infinity. */
static uint16_t float_to_half(float value) {
    uint32_t bits = to_bits(value);
    uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u);
    }
    if (magnitude >= 0x477ff000u) { /* 65520, halfway to the next power of two */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) { /* below 2^-14: a multiple of 2^-24, rounded by adding 0.5 */
        float shifted = from_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (to_bits(shifted) - to_bits(0.5f)));
    }
    uint32_t odd = (magnitude >> 13) & 1u;
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

static float load_number(const uint8_t *src, int32_t dtype) {
    if (dtype == INF_DTYPE_F32) {
        float value;
        memcpy(&value, src, sizeof(value));
        return value;
    }
    uint16_t bits;
    memcpy(&bits, src, sizeof(bits));
    return dtype == INF_DTYPE_F16 ? half_to_float(bits) : from_bits((uint32_t)bits << 16);
}

void inf_convert(void *dst, int32_t dst_dtype, const void *src, int32_t src_dtype, uint64_t n) {
    uint64_t src_bytes = inf_dtype_bytes(src_dtype);
    const uint8_t *from = src;
    if (dst_dtype == src_dtype) {
        memcpy(dst, src, n * src_bytes);
        return;
    }
    if (dst_dtype == INF_DTYPE_F32) {
        float *to = dst;
        for (uint64_t i = 0; i < n; i++) {
            to[i] = load_number(from + i * src_bytes, src_dtype);
        }
        return;
    }
    uint16_t *to = dst;
    for (uint64_t i = 0; i < n; i++) {
        float value = load_number(from + i * src_bytes, src_dtype);
        to[i] = dst_dtype == INF_DTYPE_F16 ? float_to_half(value) : float_to_bf16(value);
    }
}
