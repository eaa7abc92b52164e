/* Matrices of few bits: their layout, and the arithmetic that every table does on them.
 *
 * y = sum over groups of inputs: x's inputs are rounded to 16 bits, for each row and X_GROUP inputs
 * with the scale max |x| / 32767, and multiplied as integers, which is exact; then a group's sum is
 * scaled once:
 *
 *   I8       w = scale q,          |q| <= 127:      y += (scale x_scale) sum q x
 *   I4_32..  w = scale (q - zero), 0 <= q <= 15:    y += (scale x_scale) (sum q x - zero sum x)
 *
 * |sum q x| <= 128 * 127 * 32767 < 2^29. An input is off by 2^-16 of its group's largest at most,
 * which is between what f32 and bf16 inputs give. Sums of groups are added up in f32, in ascending
 * order, behind the bias: the same for any number of rows, tile, piece and thread, so that a row
 * has bit by bit the result that it has alone. Tables with fused multiply-adds round once where
 * plain C rounds twice.
 *
 * A panel is as in cpu.h, PANEL outputs, but by groups of inputs, the last perhaps of less. A
 * group is HEAD_BYTES, PANEL scales in f32, or PANEL scales and PANEL zeros in f16; then blocks of
 * BLOCK_INPUTS inputs, zero where there are no more. Inputs of a pair, 2p and 2p + 1, stand side by
 * side, as the instruction that multiplies and adds pairs wants them:
 *
 *   I8      [4 pairs, PANEL, 2] in 8 bits
 *   I4_..   [PANEL, 2] in 16 bits, of which pair s has bits 4s to 4s + 3 */
#ifndef INF_QUANT_H
#define INF_QUANT_H

#include "kernels/convert.h"
#include "kernels/cpu/cpu.h"

enum { X_GROUP = INF_I8_GROUP, BLOCK_INPUTS = 8, HEAD_BYTES = 64, MOST_X = 32767 };

static inline int is_i4(int32_t dtype) {
    return dtype == INF_DTYPE_I4_32 || dtype == INF_DTYPE_I4_64 || dtype == INF_DTYPE_I4_128;
}
static inline int is_quantised(int32_t dtype) { return dtype == INF_DTYPE_I8 || is_i4(dtype); }

static inline int32_t block_bytes(int32_t dtype) {
    return dtype == INF_DTYPE_I8 ? BLOCK_INPUTS * PANEL : BLOCK_INPUTS * PANEL / 2;
}

/* Bytes of a panel from its beginning to input i, a multiple of the group or k. */
static inline size_t quant_panel_bytes(int32_t dtype, int32_t i) {
    return (size_t)ceil_div(i, inf_dtype_group(dtype)) * HEAD_BYTES +
           (size_t)ceil_div(i, BLOCK_INPUTS) * (size_t)block_bytes(dtype);
}

/* The same of any packed dtype. */
static inline size_t panel_bytes(int32_t dtype, int32_t i) {
    return is_quantised(dtype) ? quant_panel_bytes(dtype, i)
                               : (size_t)i * PANEL * (dtype == INF_DTYPE_F32 ? 4 : 2);
}

/* Packs the outputs of one panel, of row-major numbers or of rows of the same dtype. */
void inf_quant_pack_panel(int32_t dtype, const uint8_t *src, int32_t src_dtype, int32_t outputs,
                          int32_t k, uint8_t *dst);

/* n <= X_GROUP inputs of a group: q[n], and their scale. A group with a NaN or an infinity gets a
 * NaN for a scale, which shows in every output; one whose inputs are all below SMALLEST_X counts as
 * zeros. */
static const float SMALLEST_X = 0x1p-110f; /* 32767 / it is a float with room */
float inf_quant_inputs(const float *x, int32_t n, int16_t *q);

#endif
