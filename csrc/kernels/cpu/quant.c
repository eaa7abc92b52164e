/* Packing of matrices of few bits, and rounding of inputs (quant.h).
 *
 * I8, for each output and group: scale = max |w| / 127, q = w / scale to the nearest, ties to even,
 * so no weight is off by more than half a scale. One whose weights are all below SMALLEST counts as
 * zeros.
 *
 * I4: the range from the smallest weight to the largest, 0 within, is cut into 15 steps, as GGUF's
 * Q4_1 does: scale = (max - min) / 15 and zero = -min / scale, both rounded to f16, then q = w /
 * scale + zero to the nearest of 0 to 15. Weights that come in rows of the same dtype (device.h)
 * keep their bits.
 *
 * A group with a NaN or an infinity gets a NaN for a scale, which shows in every output, as it
 * would have. */
#include "kernels/cpu/quant.h"

#include <float.h>

#include "kernels/convert.h"

static const float SMALLEST = 0x1p-119f; /* 127 / it is a float with room */

enum { GROUP_MOST = 128 };

typedef struct group {
    float w[GROUP_MOST][PANEL]; /* of inputs; zero beyond the outputs */
    int32_t inputs;
} group;

static void read_group(group *g, const uint8_t *src, int32_t src_dtype, int32_t outputs, int32_t k,
                       int32_t first) {
    uint64_t elem = inf_dtype_bytes(src_dtype);
    float row[GROUP_MOST];
    for (int32_t j = 0; j < PANEL; j++) {
        if (j < outputs)
            inf_convert(row, INF_DTYPE_F32, src + ((size_t)j * k + first) * elem, src_dtype,
                        (uint64_t)g->inputs);
        for (int32_t i = 0; i < g->inputs; i++)
            g->w[i][j] = j < outputs ? row[i] : 0.0f;
    }
}

/* To the nearest, ties to even, of |x| < 2^22; what is more or no number gives no other trouble
 * than a wrong number. rintf would be a call. */
static float nearest(float x) { return x + 0x1.8p23f - 0x1.8p23f; }

/* The least and the largest weight of each output, 0 among them; NaN where one is no number. */
static void ranges(const group *g, float *low, float *high) {
    float odd[PANEL] = {0};
    for (int32_t j = 0; j < PANEL; j++)
        low[j] = high[j] = 0;
    for (int32_t i = 0; i < g->inputs; i++)
        for (int32_t j = 0; j < PANEL; j++) {
            float w = g->w[i][j];
            low[j] = w < low[j] ? w : low[j];
            high[j] = w > high[j] ? w : high[j];
            odd[j] += w - w; /* 0 of a number, NaN of a NaN and of an infinity */
        }
    for (int32_t j = 0; j < PANEL; j++)
        low[j] += odd[j], high[j] += odd[j];
}

/* Where input i of a group has its bits of output j. */
static uint8_t *i8_at(uint8_t *blocks, int32_t i, int32_t j) {
    return blocks + (size_t)(i / 2) * PANEL * 2 + (size_t)j * 2 + (size_t)(i % 2);
}

static void put_i4(uint8_t *blocks, int32_t i, int32_t j, uint32_t q) {
    int32_t pair = i % BLOCK_INPUTS / 2; /* lower byte first */
    uint8_t *at = blocks + (size_t)(i / BLOCK_INPUTS) * PANEL * 4 + (size_t)j * 4 +
                  (size_t)(i % 2) * 2 + (size_t)(pair / 2);
    *at = (uint8_t)(*at | q << 4 * (pair % 2));
}

static void round_i8(const group *g, uint8_t *dst) {
    float low[PANEL], high[PANEL], scale[PANEL], inverse[PANEL];
    ranges(g, low, high);
    for (int32_t j = 0; j < PANEL; j++) {
        float most = high[j] > -low[j] ? high[j] : -low[j];
        scale[j] = most / 127;
        inverse[j] = most >= SMALLEST ? 127 / most : 0;
    }
    memcpy(dst, scale, sizeof scale);
    for (int32_t i = 0; i < g->inputs; i++) {
        int8_t q[PANEL];
        for (int32_t j = 0; j < PANEL; j++)
            q[j] = (int8_t)(inverse[j] > 0 ? nearest(g->w[i][j] * inverse[j]) : 0);
        for (int32_t j = 0; j < PANEL; j++)
            *i8_at(dst + HEAD_BYTES, i, j) = (uint8_t)q[j];
    }
}

static void round_i4(const group *g, uint8_t *dst) {
    float low[PANEL], high[PANEL], scale[PANEL], zero[PANEL], inverse[PANEL];
    uint16_t head[2][PANEL];
    ranges(g, low, high);
    for (int32_t j = 0; j < PANEL; j++) {
        scale[j] = (high[j] - low[j]) / 15;
    }
    inf_convert(head[0], INF_DTYPE_F16, scale, INF_DTYPE_F32, PANEL);
    inf_convert(scale, INF_DTYPE_F32, head[0], INF_DTYPE_F16, PANEL);
    for (int32_t j = 0; j < PANEL; j++) { /* an infinite scale makes NaNs of all, as it should */
        inverse[j] = scale[j] > 0 ? 1 / scale[j] : 0;
        zero[j] = inverse[j] > 0 ? fminf(-low[j] * inverse[j], 15) : 0;
    }
    inf_convert(head[1], INF_DTYPE_F16, zero, INF_DTYPE_F32, PANEL);
    inf_convert(zero, INF_DTYPE_F32, head[1], INF_DTYPE_F16, PANEL);
    memcpy(dst, head, sizeof head);
    for (int32_t i = 0; i < g->inputs; i++) {
        uint8_t q[PANEL];
        for (int32_t j = 0; j < PANEL; j++) {
            float each = nearest(g->w[i][j] * inverse[j] + zero[j]);
            each = each > 0 ? each : 0; /* a NaN too */
            q[j] = (uint8_t)(int32_t)(each < 15 ? each : 15);
        }
        for (int32_t j = 0; j < PANEL; j++)
            put_i4(dst + HEAD_BYTES, i, j, q[j]);
    }
}

/* Bits 0 to 3 of each byte, side by side. */
static uint32_t every_second(uint32_t x) {
    x &= 0x0f0f0f0fu;
    x = (x | x >> 4) & 0x00ff00ffu;
    return (x | x >> 8) & 0xffffu;
}

/* Group `index` of a panel of rows as device.h has them: the bits that came, elsewhere. */
static void move_i4(int32_t dtype, const uint8_t *src, int32_t outputs, int32_t k, int32_t index,
                    uint8_t *dst) {
    int32_t inputs = inf_dtype_group(dtype);
    size_t bytes = 4 + (size_t)inputs / 2, row = inf_row_bytes(dtype, k);
    for (int32_t j = 0; j < outputs; j++) {
        const uint8_t *from = src + (size_t)j * row + (size_t)index * bytes;
        memcpy(dst + (size_t)j * 2, from, 2);
        memcpy(dst + (size_t)(PANEL + j) * 2, from + 2, 2);
        for (int32_t i = 0; i < inputs / BLOCK_INPUTS; i++) {
            uint32_t numbers;
            memcpy(&numbers, from + 4 + i * 4, sizeof numbers);
            numbers = every_second(numbers) | every_second(numbers >> 4) << 16;
            memcpy(dst + HEAD_BYTES + ((size_t)i * PANEL + (size_t)j) * 4, &numbers,
                   sizeof numbers);
        }
    }
}

void inf_quant_pack_panel(int32_t dtype, const uint8_t *src, int32_t src_dtype, int32_t outputs,
                          int32_t k, uint8_t *dst) {
    group g;
    memset(dst, 0, quant_panel_bytes(dtype, k));
    for (int32_t first = 0; first < k; first += inf_dtype_group(dtype)) {
        uint8_t *to = dst + quant_panel_bytes(dtype, first);
        g.inputs = min_i32(inf_dtype_group(dtype), k - first);
        if (src_dtype == dtype) {
            move_i4(dtype, src, outputs, k, first / inf_dtype_group(dtype), to);
            continue;
        }
        read_group(&g, src, src_dtype, outputs, k, first);
        if (dtype == INF_DTYPE_I8)
            round_i8(&g, to);
        else
            round_i4(&g, to);
    }
}

float inf_quant_inputs(const float *x, int32_t n, int16_t *q) {
    uint32_t most_bits = 0; /* sizes in order, and beyond them infinity and NaNs */
    for (int32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7fffffffu;
        most_bits = bits > most_bits ? bits : most_bits;
    }
    float most;
    memcpy(&most, &most_bits, sizeof most);
    int finite = most_bits < 0x7f800000u;
    float inverse = finite && most >= SMALLEST_X ? MOST_X / most : 0;
    for (int32_t i = 0; i < n; i++)
        q[i] = inverse > 0 ? (int16_t)rintf(x[i] * inverse) : 0;
    return finite ? most / MOST_X : NAN;
}
