/* Packing of weights, once per matrix at load. The source is row-major [n, k] f32, f16 or bf16; the
 * result is the panel layout of cpu.h in f32 or bf16. Reads n * k numbers, writes ceil(n / 16) * 16
 * * k. */
#include "kernels/cpu/cpu.h"

static int32_t size_of(int32_t dtype) {
    return dtype == INF_DTYPE_F32 ? 4 : dtype == INF_DTYPE_BF16 ? 2 : 0;
}

uint64_t inf_cpu_packed_bytes(int32_t dtype, int32_t n, int32_t k) {
    if (n <= 0 || k <= 0)
        return 0;
    return (uint64_t)ceil_div(n, PANEL) * PANEL * (uint64_t)k * (uint64_t)size_of(dtype);
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

void inf_cpu_pack(int32_t dtype, const void *src, int32_t src_dtype, int32_t n, int32_t k,
                  void *dst) {
    size_t elem = (size_t)size_of(dtype), src_elem = src_dtype == INF_DTYPE_F32 ? 4 : 2;
    if (elem == 0 || (size_of(src_dtype) == 0 && src_dtype != INF_DTYPE_F16))
        return;
    for (int32_t row = 0; row < n; row += PANEL) {
        int32_t outputs = min_i32(PANEL, n - row);
        size_t first = (size_t)row * k;
        const uint8_t *from = (const uint8_t *)src + first * src_elem;
        void *panel = (uint8_t *)dst + first * elem;
        if (dtype != src_dtype)
            convert_panel(dtype, from, src_dtype, outputs, k, panel);
        else if (dtype == INF_DTYPE_F32)
            copy_panel_32(from, outputs, k, panel);
        else
            copy_panel_16(from, outputs, k, panel);
    }
}
