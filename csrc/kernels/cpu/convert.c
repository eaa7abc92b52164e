/* Number formats of weight files: F32, F16 (IEEE 754 binary16) and BF16 (the upper half of
 * binary32); and of KV: those and E4M3 (cpu.h). */
#include "kernels/convert.h"
#include "kernels/cpu/cpu.h"

uint64_t inf_dtype_bytes(int32_t dtype) {
    switch (dtype) {
    case INF_DTYPE_F32:
        return 4;
    case INF_DTYPE_F16:
    case INF_DTYPE_BF16:
        return 2;
    case INF_DTYPE_E4M3:
        return 1;
    default:
        return 0;
    }
}

int32_t inf_dtype_group(int32_t dtype) {
    switch (dtype) {
    case INF_DTYPE_I8:
    case INF_DTYPE_I4_128:
        return 128;
    case INF_DTYPE_I4_64:
        return 64;
    case INF_DTYPE_I4_32:
        return 32;
    default:
        return 0;
    }
}

uint64_t inf_row_bytes(int32_t dtype, int64_t k) {
    int32_t group = dtype != INF_DTYPE_I8 ? inf_dtype_group(dtype) : 0;
    if (group == 0) {
        return (uint64_t)k * inf_dtype_bytes(dtype);
    }
    return k % group == 0 ? (uint64_t)(k / group) * (4 + (uint64_t)group / 2) : 0;
}

/* Rounds to nearest, ties to even; beyond the largest number to infinity. */
static uint16_t f16_from_f32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u);
    }
    if (magnitude >= 0x477ff000u) { /* 65520, halfway to the next power of two */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) { /* below 2^-14: a multiple of 2^-24, rounded by adding 0.5 */
        float shifted = fabsf(value) + 0.5f;
        memcpy(&bits, &shifted, sizeof bits);
        return (uint16_t)(sign | (bits - 0x3f000000u));
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
    if (dtype == INF_DTYPE_E4M3) {
        return e4m3_to_f32(*src);
    }
    uint16_t bits;
    memcpy(&bits, src, sizeof(bits));
    return dtype == INF_DTYPE_F16 ? f16_to_f32(bits) : bf16_to_f32(bits);
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
    if (dst_dtype == INF_DTYPE_E4M3) {
        uint8_t *to = dst;
        for (uint64_t i = 0; i < n; i++) {
            to[i] = e4m3_from_f32(load_number(from + i * src_bytes, src_dtype));
        }
        return;
    }
    uint16_t *to = dst;
    for (uint64_t i = 0; i < n; i++) {
        float value = load_number(from + i * src_bytes, src_dtype);
        to[i] = dst_dtype == INF_DTYPE_F16 ? f16_from_f32(value) : bf16_from_f32(value);
    }
}
