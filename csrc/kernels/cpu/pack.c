/* Packing of weights, once per matrix at load. The source is row-major [n, k] f32, f16 or bf16; the
 * result is the panel layout of cpu.h in f32, bf16 or I8. Reads n * k numbers, writes ceil(n / 16)
 * * 16 * k.
 *
 * I8, for each output and group: scale = max |w| / 127, q = w / scale to the nearest, ties to even,
 * so no weight is off by more than half a scale. One whose weights are all below SMALLEST counts as
 * zeros. A group with a NaN or an infinity gets a NaN for a
 * scale, which shows in every output, as it would have. */
#include <float.h>

#include "kernels/cpu/cpu.h"

static const float SMALLEST = 0x1p-119f; /* 127 / it is a float with room */

static int is_packed(int32_t dtype) {
    return dtype == INF_DTYPE_F32 || dtype == INF_DTYPE_BF16 || dtype == INF_DTYPE_I8;
}

static int is_source(int32_t dtype) {
    return dtype == INF_DTYPE_F32 || dtype == INF_DTYPE_BF16 || dtype == INF_DTYPE_F16;
}

uint64_t inf_cpu_packed_bytes(int32_t dtype, int32_t n, int32_t k) {
    if (n <= 0 || k <= 0 || !is_packed(dtype))
        return 0;
    return (uint64_t)ceil_div(n, PANEL) * panel_bytes(dtype, k);
}

/* The source may be a mapped file, so nothing is assumed about its alignment. */
static float number(const uint8_t *src, int32_t dtype) {
    if (dtype == INF_DTYPE_F32) {
        float f;
        memcpy(&f, src, sizeof f);
        return f;
    }
    uint16_t half;
    memcpy(&half, src, sizeof half);
    return dtype == INF_DTYPE_F16 ? f16_to_f32(half) : bf16_to_f32(half);
}

/* One panel whose type does not change: bits move, no rounding, NaN payloads included. */
#define COPY_PANEL(name, type)                                                                     \
    static void name(const uint8_t *restrict src, int32_t outputs, int32_t k,                      \
                     type *restrict dst) {                                                         \
        for (int32_t i = 0; i < k; i++)                                                            \
            for (int32_t j = 0; j < PANEL; j++) {                                                  \
                type number = 0;                                                                   \
                if (j < outputs)                                                                   \
                    memcpy(&number, src + ((size_t)j * k + i) * sizeof number, sizeof number);     \
                dst[(size_t)i * PANEL + j] = number;                                               \
            }                                                                                      \
    }
COPY_PANEL(copy_panel_32, uint32_t)
COPY_PANEL(copy_panel_16, uint16_t)

static void convert_panel(int32_t dtype, const uint8_t *src, int32_t src_dtype, int32_t outputs,
                          int32_t k, void *dst) {
    size_t elem = src_dtype == INF_DTYPE_F32 ? 4 : 2;
    for (int32_t i = 0; i < k; i++)
        for (int32_t j = 0; j < PANEL; j++) {
            float f = j < outputs ? number(src + ((size_t)j * k + i) * elem, src_dtype) : 0.0f;
            size_t at = (size_t)i * PANEL + j;
            if (dtype == INF_DTYPE_F32)
                ((float *)dst)[at] = f;
            else
                ((bf16 *)dst)[at] = bf16_from_f32(f);
        }
}

/* The scales of a group's outputs, and 1 / scale, 0 where all count as zeros. */
static void group_scales(float (*w)[PANEL], int32_t inputs, float *scale, float *inverse) {
    float most[PANEL] = {0};
    int finite[PANEL];
    for (int32_t j = 0; j < PANEL; j++)
        finite[j] = 1;
    for (int32_t i = 0; i < inputs; i++)
        for (int32_t j = 0; j < PANEL; j++) {
            float size = fabsf(w[i][j]);
            finite[j] &= size <= FLT_MAX;
            most[j] = size > most[j] ? size : most[j];
        }
    for (int32_t j = 0; j < PANEL; j++) {
        scale[j] = finite[j] ? most[j] / 127 : NAN;
        inverse[j] = finite[j] && most[j] >= SMALLEST ? 127 / most[j] : 0;
    }
}

static void quantise_panel(const uint8_t *src, int32_t src_dtype, int32_t outputs, int32_t k,
                           uint8_t *dst) {
    size_t elem = src_dtype == INF_DTYPE_F32 ? 4 : 2;
    for (int32_t first = 0; first < k; first += I8_GROUP) {
        float w[I8_GROUP][PANEL], scale[PANEL], inverse[PANEL];
        int32_t inputs = min_i32(I8_GROUP, k - first);
        for (int32_t j = 0; j < PANEL; j++)
            for (int32_t i = 0; i < inputs; i++)
                w[i][j] = j < outputs ? number(src + ((size_t)j * k + first + i) * elem, src_dtype)
                                      : 0.0f;
        group_scales(w, inputs, scale, inverse);
        memcpy(dst, scale, sizeof scale);
        dst += sizeof scale;
        for (int32_t i = 0; i < inputs; i++)
            for (int32_t j = 0; j < PANEL; j++) {
                float q = inverse[j] > 0 ? rintf(w[i][j] * inverse[j]) : 0;
                *dst++ = (uint8_t)(int8_t)q;
            }
    }
}

static bf16 rounded(const uint8_t *src, int32_t dtype) {
    bf16 bits;
    if (dtype != INF_DTYPE_BF16)
        return bf16_from_f32(number(src, dtype));
    memcpy(&bits, src, sizeof bits); /* as it is, NaN payloads included */
    return bits;
}

void inf_cpu_pack_pairs(const void *src, int32_t src_dtype, int32_t n, int32_t k, void *dst) {
    size_t elem = src_dtype == INF_DTYPE_F32 ? 4 : 2;
    bf16 *to = dst;
    if (!is_source(src_dtype))
        return;
    for (int32_t row = 0; row < n; row += PANEL)
        for (int32_t first = 0; first < k; first += 2)
            for (int32_t j = row; j < row + PANEL; j++)
                for (int32_t i = first; i < first + 2; i++) {
                    const uint8_t *from = (const uint8_t *)src + ((size_t)j * k + i) * elem;
                    *to++ = j < n && i < k ? rounded(from, src_dtype) : 0;
                }
}

void inf_cpu_pack(int32_t dtype, const void *src, int32_t src_dtype, int32_t n, int32_t k,
                  void *dst) {
    size_t src_elem = src_dtype == INF_DTYPE_F32 ? 4 : 2;
    if (!is_packed(dtype) || !is_source(src_dtype))
        return;
    uint8_t *panel = dst;
    for (int32_t row = 0; row < n; row += PANEL, panel += panel_bytes(dtype, k)) {
        int32_t outputs = min_i32(PANEL, n - row);
        const uint8_t *from = (const uint8_t *)src + (size_t)row * k * src_elem;
        if (dtype == INF_DTYPE_I8)
            quantise_panel(from, src_dtype, outputs, k, panel);
        else if (dtype != src_dtype)
            convert_panel(dtype, from, src_dtype, outputs, k, panel);
        else if (dtype == INF_DTYPE_F32)
            copy_panel_32(from, outputs, k, (uint32_t *)(void *)panel);
        else
            copy_panel_16(from, outputs, k, (uint16_t *)(void *)panel);
    }
}
