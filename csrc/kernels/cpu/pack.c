/* Packing of weights, once per matrix at load. The source is row-major [n, k] f32, f16 or bf16; the
 * result is the panel layout of cpu.h in f32, bf16 or few bits. Reads n * k numbers, writes ceil(n
 * / 16)
 * * 16 * k, or in few bits what quant.c does. */
#include "kernels/cpu/quant.h"

static int is_packed(int32_t dtype) {
    return dtype == INF_DTYPE_F32 || dtype == INF_DTYPE_BF16 || is_quantised(dtype);
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
    int moves = is_i4(dtype) && src_dtype == dtype && k % inf_dtype_group(dtype) == 0;
    if (!is_packed(dtype) || !(is_source(src_dtype) || moves))
        return;
    uint8_t *panel = dst;
    for (int32_t row = 0; row < n; row += PANEL, panel += panel_bytes(dtype, k)) {
        int32_t outputs = min_i32(PANEL, n - row);
        const uint8_t *from = (const uint8_t *)src + (size_t)row * inf_row_bytes(src_dtype, k);
        if (is_quantised(dtype))
            inf_quant_pack_panel(dtype, from, src_dtype, outputs, k, panel);
        else if (dtype != src_dtype)
            convert_panel(dtype, from, src_dtype, outputs, k, panel);
        else if (dtype == INF_DTYPE_F32)
            copy_panel_32(from, outputs, k, (uint32_t *)(void *)panel);
        else
            copy_panel_16(from, outputs, k, (uint16_t *)(void *)panel);
    }
}
